"""The loop, with steps and validations made up: when it stops, what it keeps, what it says."""

import io
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from voxtune.engine.config import Finetune
from voxtune.engine.dataset import Plan
from voxtune.engine.display import Display
from voxtune.engine.loop import DivergedError, Job, PreemptedError, train
from voxtune.engine.mesh import make_mesh
from voxtune.engine.meter import MEASURED, Meter
from voxtune.engine.metrics import Counts
from voxtune.engine.peaks import Peak
from voxtune.engine.profile import Profile
from voxtune.engine.progress import Progress
from voxtune.engine.run_dir import Log
from voxtune.engine.validation import Validation
from voxtune.models.errors import InputError


@dataclass(frozen=True)
class State:
    """In the place of a TrainState."""

    step: int
    skipped: int = 0


class Shelf:
    """In the place of checkpoints."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, float]] = []
        self.kept: dict[int, tuple[State, str]] = {}  # the progress as it is on disk
        self.waited = 0  # how many were there when somebody waited for all of them

    def save(self, step: int, state: State, progress: dict[str, Any], quality: float) -> None:
        self.saved.append((step, quality))
        self.kept[step] = state, json.dumps(progress)

    def wait(self) -> None:
        self.waited = len(self.saved)

    def restore(self, like: Any, step: int) -> tuple[State, dict[str, Any]]:
        state, progress = self.kept[step]
        return state, json.loads(progress)


class Batches:
    """In the place of a feed."""

    def __init__(self, seconds: float, step: int = 0) -> None:
        self._step, self._seconds = step, seconds

    def __next__(self) -> tuple[list[str], str]:
        time.sleep(self._seconds)
        self._step += 1
        return [f"sub-{self._step}", "sub-0"], f"batch of step {self._step - 1}"


def counts(number: int) -> Counts:
    """Of two classes, `number` voxels of each right, as many wrong."""
    each = np.array([number, number])
    return Counts(each, 2 * each, 2 * each)


class Run:
    """A loop and what came of it."""

    def __init__(
        self,
        folder: Path,
        scores: Callable[[int], float] = lambda step: math.nan,
        bad: Sequence[int] = (),
        **changed: Any,
    ) -> None:
        usual: dict[str, Any] = {"steps": 12, "validate_every": 3, "log_every": 4, "warmup": 0}
        self.config = Finetune(Path("m"), "s.csv", folder / "run", **usual | changed)
        self.shelf, self.file = Shelf(), folder / "metrics.jsonl"
        self._scores, self._bad = scores, bad
        self.stopped_at = 0  # the step at which it is told to end
        self.progress = Progress()
        self.feed, self.seconds = Batches(0.0), 0.0
        self.console = Console(record=True, file=io.StringIO(), width=200)

    def step(self, state: State, batch: Any) -> tuple[State, dict[str, Any]]:
        number = state.step + 1
        bad = number in self._bad
        after = State(number, state.skipped + 1 if bad else 0)
        loss = np.float32(math.nan if bad else 1 / number)
        assert batch == f"batch of step {state.step}"
        time.sleep(self.seconds)
        return after, {"loss": loss, "skipped": np.int32(after.skipped), "counts": counts(number)}

    def validate(self, state: State) -> Validation:
        value = self._scores(state.step)
        return Validation({} if math.isnan(value) else {"dice": {"lesion": value}})

    def __call__(self, state: State = State(0)) -> Any:
        log, names = Log(self.file), ("background", "lesion")
        plan = Plan((8, 8, 8), "random", 0.5, 2, 0)
        meter = Meter(plan, 0, make_mesh("data=1"), Peak(1.0, "made up"))
        profile = Profile(range(0), Path("nowhere"), print, meter.paused)
        steps = itertools.count(self.progress.step + 1)
        job: Any = Job(
            config=self.config,
            classes=names,
            step=self.step,  # type: ignore[arg-type]
            feed=self.feed,  # type: ignore[arg-type]
            validate=self.validate,  # type: ignore[arg-type]
            meter=meter,
            profile=profile,
            learning_rates=lambda step: {"trunk": 1 / (1 + step)},
            stops=lambda: next(steps) == self.stopped_at,
        )
        with Display(self.console, self.config.steps, self.config.log_every) as display:
            given: Any = (state, self.progress, self.shelf)
            return train(job, *given, log, display)

    def resumed(self, step: int) -> Any:
        """Goes on from a checkpoint, as a process of its own would."""
        state, progress = self.shelf.restore(None, step)
        self.stopped_at, self.progress = 0, Progress.of_json(progress, 2)
        self.feed = Batches(0.0, step)
        return self(state)

    def events(self, name: str) -> list[dict[str, Any]]:
        entries = map(json.loads, self.file.read_text().splitlines())
        return [each for each in entries if each["event"] == name]

    def said(self) -> str:
        return self.console.export_text()


def test_all_steps_are_run_and_logged(tmp_path: Path):
    run = Run(tmp_path, lambda step: step / 100, steps=10)
    state, validation = run()
    assert state == State(10)
    assert validation.scores == {"dice": {"lesion": 0.1}}
    assert [each["step"] for each in run.events("train")] == [4, 8, 10]
    assert [each["step"] for each in run.events("validation")] == [3, 6, 9, 10]
    assert run.shelf.saved == [(3, 0.03), (6, 0.06), (9, 0.09), (10, 0.1)]
    first = run.events("train")[0]
    assert first["loss"] == 0.25
    assert first["dice"] == {"lesion": 0.5}
    assert {"examples_per_second", "data_wait"} <= first.keys()
    assert first["learning_rates"] == {"trunk": 0.25}
    assert "validation at step 10: Dice lesion 0.100" in run.said()


def test_without_patience_the_last_weights_stay(tmp_path: Path):
    state, validation = Run(tmp_path, lambda step: 1 / step)()
    assert state == State(12)
    assert validation.scores["dice"]["lesion"] == 1 / 12


class TestPatience:
    def test_the_best_weights_are_kept_and_the_rest_is_not_run(self, tmp_path: Path) -> None:
        """Best at step 6; those of 9 and 12 are not better."""
        scores = {3: 0.5, 6: 0.7, 9: 0.6, 12: 0.65}
        run = Run(tmp_path, lambda step: scores[step], patience=2, steps=100)
        state, validation = run()
        assert state == State(6)
        assert validation.scores["dice"]["lesion"] == 0.7
        assert "stopped at step 12: no better validation since step 6" in run.said()

    def test_getting_better_goes_on(self, tmp_path: Path) -> None:
        run = Run(tmp_path, lambda step: step, patience=1)
        assert run()[0] == State(12)

    def test_as_good_is_not_better_but_the_later_is_kept(self, tmp_path: Path) -> None:
        run = Run(tmp_path, lambda step: 0.5, patience=2, steps=100)
        assert run()[0] == State(9)
        assert "stopped at step 9: no better validation since step 3" in run.said()

    def test_nothing_to_validate_on_does_not_stop(self, tmp_path: Path) -> None:
        assert Run(tmp_path, patience=1)()[0] == State(12)


class TestSkipping:
    def test_skipped_steps_are_counted_and_named(self, tmp_path: Path) -> None:
        run = Run(tmp_path, bad=(2, 3, 7))
        assert run()[0] == State(12)
        assert run.events("skipped") == [
            {"event": "skipped", "step": step, "subjects": [f"sub-{step}", "sub-0"]}
            for step in (2, 3, 7)
        ]
        assert [each["skipped"] for each in run.events("train")] == [2, 3, 3]
        assert "step 7 skipped: loss or gradient is not finite (sub-7, sub-0)" in run.said()

    def test_ten_in_a_row_end_the_run_with_the_last_good_weights(self, tmp_path: Path) -> None:
        run = Run(tmp_path, bad=range(5, 100), steps=100)
        words = r"10 steps in a row, up to step 14 .* checkpoint 15 holds .* \(sub-14, sub-0\)"
        with pytest.raises(InputError, match=words):
            run()
        assert run.shelf.saved[-1][0] == 15  # seen one step late; none changed anything since 4
        assert math.isnan(run.shelf.saved[-1][1])

    def test_a_good_step_after_ten_bad_ones_comes_too_late(self, tmp_path: Path) -> None:
        """It has run before the host looks: what it left is kept, and the sentence is right."""
        run = Run(tmp_path, bad=range(5, 15), steps=100)
        with pytest.raises(InputError, match=r"10 steps in a row, up to step 14 .* checkpoint 15"):
            run()

    def test_the_last_step_before_an_early_end_is_looked_at(self, tmp_path: Path) -> None:
        run = Run(tmp_path, lambda step: 0.5, bad=(6,), patience=1)
        run()
        assert [each["step"] for each in run.events("skipped")] == [6]

    def test_a_run_of_nothing_but_skipped_steps_fails(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not finite in 3 steps in a row"):
            Run(tmp_path, bad=range(100), steps=3)()

    def test_and_fails_again_where_it_is_gone_on_with(self, tmp_path: Path) -> None:
        run = Run(tmp_path, bad=range(100), steps=3)
        with pytest.raises(DivergedError) as first:
            run()
        with pytest.raises(DivergedError) as again:
            run.resumed(3)
        assert str(again.value) == str(first.value)

    def test_but_not_where_there_are_more_steps_that_are_good(self, tmp_path: Path) -> None:
        run = Run(tmp_path, bad=range(5, 16), steps=20)
        with pytest.raises(DivergedError):
            run()
        run.resumed(15)
        assert run.progress.given_up == ""


class TestGoingOn:
    """Told to end after any step, and gone on with: what comes of it is the same."""

    scores = MappingProxyType({3: 0.5, 6: 0.7, 9: 0.7, 12: 0.6})

    def run(self, folder: Path, **changed: Any) -> Run:
        folder.mkdir()
        return Run(folder, self.scores.get, bad=(2, 4, 5), **changed)  # type: ignore[arg-type]

    def lines(self, run: Run) -> list[dict[str, Any]]:
        entries = map(json.loads, run.file.read_text().splitlines())
        return [{k: v for k, v in each.items() if k not in MEASURED} for each in entries]

    @pytest.mark.parametrize("patience", [None, 2])
    @pytest.mark.parametrize("step", range(1, 12))
    def test_to_the_same_log_and_weights(
        self, tmp_path: Path, step: int, patience: int | None
    ) -> None:
        whole, run = (self.run(tmp_path / name, patience=patience) for name in ("whole", "run"))
        wanted = whole()
        run.stopped_at = step
        with pytest.raises(PreemptedError) as told:
            run()
        assert told.value.step == step
        assert run.shelf.waited == len(run.shelf.saved)  # on disk before anybody is told
        assert run.shelf.saved[-1][0] == step
        assert run.resumed(step) == wanted
        assert self.lines(run) == self.lines(whole)
        assert [each for each in run.shelf.saved if each[0] % 3 == 0] == whole.shelf.saved

    def test_told_at_the_last_step_it_is_done(self, tmp_path: Path) -> None:
        run = self.run(tmp_path / "run")
        run.stopped_at = 12
        assert run()[0] == State(12)
        assert [step for step, _ in run.shelf.saved] == [3, 6, 9, 12]

    def test_told_where_it_stops_by_itself_it_is_done(self, tmp_path: Path) -> None:
        run = self.run(tmp_path / "run", patience=1, steps=100)
        run.stopped_at = 9  # as good as at 6, so not better
        assert run()[0] == State(9)

    def test_after_its_last_step_it_only_gives_its_weights(self, tmp_path: Path) -> None:
        run = self.run(tmp_path / "run", patience=1, steps=100)
        wanted = run()
        before = self.lines(run)
        assert run.resumed(9) == wanted
        assert self.lines(run) == before

    def test_a_best_checkpoint_that_cannot_be_read_is_told_of(self, tmp_path: Path) -> None:
        scores = {3: 0.7, 6: 0.5}
        run = Run(tmp_path, scores.get, patience=1)  # type: ignore[arg-type]

        def unreadable(*_: Any) -> Any:
            raise InputError("Checkpoint 3 cannot be read.")

        run.shelf.restore = unreadable  # type: ignore[method-assign]
        assert run()[0] == State(6)
        assert "warning: Checkpoint 3 cannot be read. The last step's weights" in run.said()


def test_waiting_for_data_is_a_share_of_the_time(tmp_path: Path):
    """30 ms of waiting to 10 ms of computing."""
    run = Run(tmp_path, steps=8)
    run.feed, run.seconds = Batches(0.03), 0.01
    run()
    for each in run.events("train"):
        assert 0.6 < each["data_wait"] < 0.9
