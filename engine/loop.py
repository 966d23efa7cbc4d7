"""The training loop: steps, lines, validations, checkpoints, and when to stop."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from voxtune.engine.changes import Batch
from voxtune.engine.checkpoint import Checkpoints
from voxtune.engine.config import Finetune
from voxtune.engine.display import Display
from voxtune.engine.feed import Feed
from voxtune.engine.meter import Meter
from voxtune.engine.profile import Profile
from voxtune.engine.progress import Best, Progress
from voxtune.engine.run_dir import Log
from voxtune.engine.step import Metrics, TrainState
from voxtune.engine.validation import Validation
from voxtune.models.errors import InputError

PATIENCE = 10  # steps in a row that may be skipped before a run stops


@dataclass(frozen=True)
class Job:
    """What a loop needs.

    Attributes:
        config: of the run.
        classes: names of the classes, background first; empty where an image is learned.
        step: the compiled training step.
        feed: batches without end, on the devices.
        validate: measures a state.
        meter: measures how fast it goes.
        profile: traces steps, if any.
        learning_rates: of each group of parameters at a step, counted from 0.
        stops: asked once after each step whether the run has to end now.
    """

    config: Finetune
    classes: tuple[str, ...]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    feed: Feed
    validate: Callable[[TrainState], Validation]
    meter: Meter
    profile: Profile
    learning_rates: Callable[[int], Mapping[str, float]]
    stops: Callable[[], bool]


class PreemptedError(Exception):
    """The run was told to end, and has left a checkpoint of this step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step


class DivergedError(InputError):
    """The run has come to nothing: too many steps in a row were skipped."""


class NotFiniteError(Exception):
    """So many steps in a row were skipped, the last of them this one, with these subjects."""

    def __init__(self, in_a_row: int, step: int, names: list[str]) -> None:
        super().__init__()
        self.in_a_row, self.step, self.names = in_a_row, step, names


class Skips:
    """Watches for steps that were skipped, one step late, so that no device waits for the host."""

    def __init__(self, config: Finetune, progress: Progress, log: Log, display: Display) -> None:
        self._config, self._progress = config, progress
        self._log, self._display = log, display
        self._last: tuple[int, Any, list[str]] | None = None

    def add(self, step: int, metrics: Metrics, names: list[str]) -> None:
        """Takes note of a step, and looks at the one before it.

        Raises:
            NotFiniteError: that was one too many.
        """
        self.look()
        self._last = step, metrics["skipped"], names

    def look(self) -> None:
        """Looks at the last step that was taken note of.

        Raises:
            NotFiniteError: it was one too many.
        """
        if self._last is None:
            return
        (step, skipped, names), self._last = self._last, None
        in_a_row = int(skipped)
        if in_a_row == 0:
            return
        self._progress.skipped += 1
        self._log.write(event="skipped", step=step, subjects=names)
        if in_a_row == 1:
            self._display.line(
                f"step {step} skipped: loss or gradient is not finite ({', '.join(names)})"
            )
        if in_a_row >= min(PATIENCE, self._config.steps):
            raise NotFiniteError(in_a_row, step, names)


def train(
    job: Job,
    state: TrainState,
    progress: Progress,
    checkpoints: Checkpoints,
    log: Log,
    display: Display,
) -> tuple[TrainState, Validation]:
    """Runs all steps that are left, or as many as early stopping allows.

    Returns:
        The last state, or with `patience` the best one, and its validation.

    Raises:
        DivergedError: the loss was not finite in too many steps in a row, or had not been when the
            run ended before, with no step left to try again.
        PreemptedError: the run was told to end.
    """
    config, best, meter = job.config, progress.best, job.meter
    skips, shown = Skips(config, progress, log, display), ""
    if progress.given_up and progress.step >= config.steps:
        raise DivergedError(progress.given_up)
    progress.given_up = ""
    while progress.step < config.steps and not _over(config, best):
        job.profile.begin(progress.step + 1)
        with meter.waiting():
            names, batch = next(job.feed)
        state, metrics = job.step(state, batch)
        job.profile.end(metrics)
        del batch  # or its memory would be held while the next ones are placed
        progress.step = step = progress.step + 1
        last, stops = step == config.steps, job.stops()
        logs = last or step % config.log_every == 0
        validates = last or step % config.validate_every == 0
        try:
            skips.add(step, metrics, names)
            if logs or validates or stops:  # all wait for the step, and tell of it
                skips.look()
        except NotFiniteError as error:
            # Steps after it were skipped too, or are good: what they left is the last good state.
            progress.given_up = _given_up(error, step, config)
            checkpoints.save(step, state, progress.to_json(), math.nan)
            checkpoints.wait()  # it is going to be said that it is there
            raise DivergedError(progress.given_up) from error
        progress.add(metrics.pop("counts", None))
        meter.step()
        if logs:
            values = {name: float(value) for name, value in metrics.items() if name != "skipped"}
            values |= meter.line()
            nested = {"learning_rates": job.learning_rates(step - 1), **progress.dice(job.classes)}
            log.write(event="train", step=step, **values, **nested, skipped=progress.skipped)
            rate = values["examples_per_second"]
            shown = f"loss {values['loss']:.3f}  {rate:.2f} blocks/s"
        display.step(step, shown)
        if validates:
            job.profile.close()  # it has a pause of its own
            with meter.paused():
                _validate(job, state, progress, checkpoints, log, display)
        elif stops:
            checkpoints.save(step, state, progress.to_json(), math.nan)
        if stops and not last and not _over(config, best):
            checkpoints.wait()
            raise PreemptedError(step)
    if _over(config, best):
        display.line(
            f"stopped at step {progress.step}: no better validation since step {best.since}"
        )
    if config.patience is None or best.step == 0:
        return state, progress.last
    display.line(f"the weights of step {best.step} are kept")
    if best.step == progress.step:
        return state, progress.last
    try:
        return checkpoints.restore(state, best.step)[0], best.validation
    except InputError as error:
        display.line(f"warning: {error} The last step's weights are kept instead")
        return state, progress.last


def _over(config: Finetune, best: Best) -> bool:
    """Whether there has been no better validation for too long."""
    return config.patience is not None and best.stale >= config.patience


def _validate(
    job: Job,
    state: TrainState,
    progress: Progress,
    checkpoints: Checkpoints,
    log: Log,
    display: Display,
) -> None:
    step, config = progress.step, job.config
    progress.last = validation = job.validate(state)
    value = validation.monitored(config.monitor)
    if validation.scores:
        # Before the checkpoint: a run that goes on from it has its line.
        log.write(event="validation", step=step, **validation.scores)
        display.line(f"validation at step {step}: {validation.line()}")
        progress.best.add(step, -math.inf if math.isnan(value) else value, validation)
    checkpoints.save(step, state, progress.to_json(), value)


def _given_up(error: NotFiniteError, step: int, config: Finetune) -> str:
    """Why a run ends whose steps change nothing any more."""
    return (
        f"Loss, gradient or update was not finite in {error.in_a_row} steps in a row, up to step "
        f"{error.step} of {config.run_dir}, and they were skipped; its checkpoint {step} holds "
        f"the last good weights. Look at the scans of that step "
        f"({', '.join(dict.fromkeys(error.names))}), or lower --trunk-lr and --head-lr and start "
        "again."
    )
