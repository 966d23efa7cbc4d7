"""What one job does of a study. What is done is known from the folder alone."""

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console

from voxtune.engine.arms import Design, Trial
from voxtune.engine.config import Study
from voxtune.engine.loop import DivergedError
from voxtune.engine.run_dir import HeldError
from voxtune.engine.sharing import Others, claimed
from voxtune.engine.trials import is_scored, log_of, saved_run, score_trial, train_trial
from voxtune.engine.tuning import chosen, diverged, has_diverged, validation_dice
from voxtune.engine.validation import Validation
from voxtune.engine.volume import written_beside
from voxtune.models.errors import InputError


@dataclass
class Work:
    """What one job does of a study.

    Attributes:
        design: of the study.
        config: likewise.
        console: told of each run.
        number: of this job, from 1 on.
        parts: among how many jobs the work is shared.
        seconds: that runs of this job took.
        done: names of runs that are trained and scored, as far as they were looked at.
    """

    design: Design
    config: Study
    console: Console
    number: int
    parts: int
    seconds: list[float] = field(default_factory=list)
    done: set[str] = field(default_factory=set)

    def do(self) -> None:
        """All of this job's share, as far as other jobs let it.

        Raises:
            InputError: something cannot be read, trained or written.
            PreemptedError: a run was told to end.
        """
        tuning = self._share(self.design.tuning(self.config), lambda x: (x.size, x.factor))
        for count, trial in enumerate(tuning, 1):
            if validation_dice(trial) is None:
                self._tune(trial, f"learning rates, {count} of {len(tuning)}", own=True)
        others = Others(self.config.out, self.console)
        while waiting := self._compare():
            if self._take_over(waiting):
                continue
            if not others.go_on([each.name for each in self._unfinished(waiting)]):
                break
        self._compare()  # those that another job had

    def trials(self) -> list[Trial]:
        """Of the comparison; with the usual learning rates where none are chosen yet."""
        return self.design.trials(self.config, chosen(self.design, self.config))

    def left(self) -> int:
        """How many runs of the comparison are not trained and scored."""
        known = chosen(self.design, self.config)
        return sum(
            (each.arm, each.size) not in known or not self._done(each) for each in self.trials()
        )

    def failed(self) -> list[Trial]:
        """Runs of the comparison that came to nothing, of whichever job."""
        known = chosen(self.design, self.config)
        return [x for x in self.trials() if (x.arm, x.size) in known and has_diverged(x)]

    def missing(self) -> list[str]:
        """Names of the runs that are to be done, those by which learning rates are chosen first."""
        known = chosen(self.design, self.config)
        trials = self.trials()
        unknown = {(each.arm, each.size) for each in trials} - known.keys()
        compared = [each for each in trials if (each.arm, each.size) in known]
        todo = [each for each in compared if not self._done(each) and not has_diverged(each)]
        return [each.name for each in (*self._unfinished(unknown), *todo)]

    def _share(
        self, trials: Sequence[Trial], alike: Callable[[Trial], Hashable]
    ) -> Sequence[Trial]:
        """This job's: all arms of what is alike, or an arm and a machine would be one."""
        own = list(dict.fromkeys(map(alike, trials)))[self.number - 1 :: self.parts]
        return [each for each in trials if alike(each) in own]

    def _done(self, trial: Trial) -> bool:
        if trial.name not in self.done:
            saved = saved_run(trial)
            if saved is not None and saved.finished and is_scored(trial, self.config):
                self.done.add(trial.name)
        return trial.name in self.done

    def _compare(self) -> set[tuple[str, int]]:
        """Does this job's runs of the comparison, but those that another job has.

        Returns:
            Arms and sizes whose learning rates are not chosen yet.
        """
        known = chosen(self.design, self.config)
        share = self._share(self.trials(), lambda each: (each.seed, each.size))
        for count, trial in enumerate(share, 1):
            if (trial.arm, trial.size) in known and not has_diverged(trial):
                left = sum(not self._done(each) for each in share[count:])
                self._do(trial, f"{count} of {len(share)}", left)
        return {(each.arm, each.size) for each in share} - known.keys()

    def _unfinished(self, keys: set[tuple[str, int]]) -> list[Trial]:
        """Tuning runs of arms and sizes."""
        return [
            each
            for each in self.design.tuning(self.config)
            if (each.arm, each.size) in keys and validation_dice(each) is None
        ]

    def _take_over(self, keys: set[tuple[str, int]]) -> bool:
        """Does a tuning run that no other job is at, if there is one and disks have locks."""
        todo = self._unfinished(keys)
        return any(self._tune(each, "learning rates, of another job", own=False) for each in todo)

    def _tune(self, trial: Trial, where: str, own: bool) -> bool:
        """Trains a run by which learning rates are chosen; False where another job has it."""
        with claimed(self.config.out, trial.name, own) as mine:
            if not mine:
                return False
            if validation_dice(trial) is None:
                self._say(f"{trial.name}  ({where})", bold=True)
                self._timed(lambda: self._trained(trial), 0)
            return validation_dice(trial) is not None

    def _do(self, trial: Trial, where: str, left: int) -> None:
        """Trains and scores a run of the comparison, as far as that is not done."""
        if self._done(trial):
            return
        with claimed(self.config.out, trial.name, True) as mine:
            if not mine:
                self._say(f"{trial.name}: another job is at it")
                return
            if self._done(trial) or has_diverged(trial):
                return
            self._say(f"{trial.name}  ({where})", bold=True)
            self._timed(lambda: self._trained_and_scored(trial), left)

    def _timed(self, act: Callable[[], Validation | None], left: int) -> None:
        """Says what came of a run, and how long further ones are going to take."""
        start = time.monotonic()
        validation = act()
        if validation is None:
            return
        self.seconds.append(time.monotonic() - start)
        minutes = left * sum(self.seconds) / len(self.seconds) / 60
        until = f", about {minutes:.0f} min left" if left else ""
        self._say(f"  {validation.line()} in validation, {self.seconds[-1]:.0f} s{until}")

    def _trained_and_scored(self, trial: Trial) -> Validation | None:
        validation = self._trained(trial)
        if validation is not None:
            with self._log(trial) as log:
                score_trial(trial, self.config, log)
        return validation

    def _trained(self, trial: Trial) -> Validation | None:
        """Trains; None where that came to nothing, or another process has the run directory."""
        try:
            with self._log(trial) as log:
                return train_trial(trial, log)
        except HeldError:
            self._say("  another process writes its run directory")
        except DivergedError as error:
            self._say(f"  {error}")
            with written_beside(diverged(trial)) as beside:
                beside.write_text(f"{error}\n")
        return None

    @contextmanager
    def _log(self, trial: Trial) -> Iterator[Console]:
        """What takes all that finetune, predict and evaluate say of a run."""
        path = log_of(trial, self.config)
        try:
            path.parent.mkdir(exist_ok=True)
            stream = path.open("a")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}.") from error
        with stream, self.console.status(f"{trial.name}; details in {path}"):
            yield Console(file=stream, markup=False, width=120)

    def _say(self, text: str, bold: bool = False) -> None:
        style = "bold" if bold else None
        self.console.print(text, style=style, highlight=False, soft_wrap=True)
