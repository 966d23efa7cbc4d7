"""The training loop: steps, lines, validations, checkpoints, and when to stop."""

import functools
import math
import operator
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from voxtune.engine.changes import Batch
from voxtune.engine.checkpoint import Checkpoints
from voxtune.engine.config import Finetune
from voxtune.engine.display import Display
from voxtune.engine.feed import Feed
from voxtune.engine.metrics import Counts, scores
from voxtune.engine.optimizer import learning_rates
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
        batch: blocks a step.
        classes: names of the classes, background first; empty where an image is learned.
        step: the compiled training step.
        feed: batches without end, on the devices.
        validate: measures a state.
    """

    config: Finetune
    batch: int
    classes: tuple[str, ...]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    feed: Feed
    validate: Callable[[TrainState], Validation]


@dataclass
class Best:
    """The best validation so far."""

    patience: int | None
    step: int = 0
    value: float = -math.inf
    since: int = 0
    stale: int = 0

    def add(self, step: int, value: float) -> None:
        """Takes note of a validation; of two that are as good, the later one is kept."""
        better = value > self.value
        self.stale = 0 if better else self.stale + 1
        self.since = step if better else self.since
        if value >= self.value:
            self.step, self.value = step, value

    @property
    def over(self) -> bool:
        """Whether there has been no better one for too long."""
        return self.patience is not None and self.stale >= self.patience


class NotFiniteError(Exception):
    """So many steps in a row were skipped, the last of them this one, with these subjects."""

    def __init__(self, in_a_row: int, step: int, names: list[str]) -> None:
        super().__init__()
        self.in_a_row, self.step, self.names = in_a_row, step, names


class Skips:
    """Watches for steps that were skipped, one step late, so that no device waits for the host."""

    def __init__(self, config: Finetune, log: Log, display: Display) -> None:
        self._config, self._log, self._display = config, log, display
        self._last: tuple[int, Any, list[str]] | None = None
        self.total = 0

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
        self.total += 1
        self._log.write(event="skipped", step=step, subjects=names)
        if in_a_row == 1:
            self._display.line(
                f"step {step} skipped: loss or gradient is not finite ({', '.join(names)})"
            )
        if in_a_row >= min(PATIENCE, self._config.steps):
            raise NotFiniteError(in_a_row, step, names)


def train(
    job: Job, state: TrainState, checkpoints: Checkpoints, log: Log, display: Display
) -> tuple[TrainState, Validation]:
    """Runs all steps, or as many as early stopping allows.

    Returns:
        The last state, or with `patience` the best one, and its validation.

    Raises:
        InputError: the loss was not finite in too many steps in a row.
    """
    config = job.config
    best, skips = Best(config.patience), Skips(config, log, display)
    validation = kept = Validation({})
    counts: list[Counts] = []  # on the devices until a line is due: adding them up would wait
    since, waited, done, shown = time.perf_counter(), 0.0, 0, ""
    for step in range(1, config.steps + 1):
        began = time.perf_counter()
        names, batch = next(job.feed)
        waited += time.perf_counter() - began
        state, metrics = job.step(state, batch)
        del batch  # or its memory would be held while the next ones are placed
        last = step == config.steps
        try:
            skips.add(step, metrics, names)
            if last or step % config.validate_every == 0:
                skips.look()
        except NotFiniteError as error:
            # Steps after it were skipped too, or are good: what they left is the last good state.
            checkpoints.save(step, state, job.feed.state(), math.nan)
            raise InputError(_given_up(error, step, config)) from error
        if "counts" in metrics:
            counts.append(metrics.pop("counts"))
        done += 1
        if step % config.log_every == 0 or last:
            values = {name: float(value) for name, value in metrics.items() if name != "skipped"}
            seconds = time.perf_counter() - since
            values["examples_per_second"] = done * job.batch / seconds
            values["data_wait"] = waited / seconds
            since, waited, done = time.perf_counter(), 0.0, 0
            rates = learning_rates(config, step - 1)
            dice = {"dice": _dice(counts, job.classes)} if counts else {}
            log.write(event="train", step=step, **values, **rates, **dice, skipped=skips.total)
            counts.clear()
            rate = values["examples_per_second"]
            shown = f"loss {values['loss']:.3f}  {rate:.2f} blocks/s"
        display.step(step, shown)
        if step % config.validate_every == 0 or last:
            began = time.perf_counter()
            validation = job.validate(state)
            value = validation.monitored(config.monitor)
            checkpoints.save(step, state, job.feed.state(), value)
            if validation.scores:
                log.write(event="validation", step=step, **validation.scores)
                display.line(f"validation at step {step}: {validation.line()}")
                best.add(step, -math.inf if math.isnan(value) else value)
                kept = validation if best.step == step else kept
            since += time.perf_counter() - began  # validation is not training
            if best.over:
                display.line(
                    f"stopped at step {step}: no better validation since step {best.since}"
                )
                break
    if config.patience is None or best.step == 0:
        return state, validation
    display.line(f"the weights of step {best.step} are kept")
    if best.step == step:
        return state, validation
    return checkpoints.restore(state, best.step)[0], kept


def _dice(counts: Sequence[Counts], classes: tuple[str, ...]) -> dict[str, float]:
    """Of all blocks of some steps together."""
    values = scores(functools.reduce(operator.add, counts))["dice"]
    return dict(zip(classes[1:], map(float, values), strict=True))


def _given_up(error: NotFiniteError, step: int, config: Finetune) -> str:
    """Why a run ends whose steps change nothing any more."""
    return (
        f"Loss, gradient or update was not finite in {error.in_a_row} steps in a row, up to step "
        f"{error.step} of {config.run_dir}, and they were skipped; its checkpoint {step} holds "
        f"the last good weights. Look at the scans of that step "
        f"({', '.join(dict.fromkeys(error.names))}), or lower --trunk-lr and --head-lr and start "
        "again."
    )
