"""What came of each network of a study: scores of each subject, and the way there."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtune.engine.arms import Trial
from voxtune.engine.config import Study
from voxtune.engine.labels import LARGEST
from voxtune.engine.run_log import METRICS, log_lines
from voxtune.engine.saved_config import read_config, read_json
from voxtune.engine.score import Score
from voxtune.engine.score_summary import grouped, mean_of
from voxtune.engine.score_table import FORMAT
from voxtune.engine.subjects import is_text
from voxtune.engine.trials import scores_of
from voxtune.models.errors import InputError

_FARTHEST = 1e9  # mm
_MOST_STEPS = 2**53
_FASTEST = 1e12  # blocks a second
_LONGEST = 1e9  # seconds


@dataclass(frozen=True)
class Outcome:
    """One network.

    Attributes:
        arm: name of the arm.
        size: scans that it was trained on.
        seed: of the run.
        factor: of the arm's learning rates.
        dice: subject → mean over classes, on the split that results are measured on; NaN where it
            is undefined.
        hd95_mm: likewise; NaN where a class is in one of both maps alone.
        curve: steps and mean validation Dice there, by which nothing of the result is measured.
        seconds: see `read_seconds`.
        compile_seconds: likewise.
    """

    arm: str
    size: int
    seed: int
    factor: float
    dice: Mapping[str, float]
    hd95_mm: Mapping[str, float]
    curve: Sequence[tuple[int, float]]
    seconds: float
    compile_seconds: float = math.nan


def read_outcome(trial: Trial, study: Study) -> Outcome:
    """What came of a network that is trained and scored.

    Raises:
        InputError: its scores or its log are missing, or are not what was written.
    """
    rows = read_scores(scores_of(trial, study))
    subjects = grouped(rows, lambda row: row.subject).items()
    run = trial.config.run_dir
    log = _read_log(run / METRICS)
    return Outcome(
        arm=trial.arm,
        size=trial.size,
        seed=trial.seed,
        factor=trial.factor,
        dice={name: mean_of(own, "dice") for name, own in subjects},
        hd95_mm={name: mean_of(own, "hd95_mm") for name, own in subjects},
        curve=list(_curve(log)),
        seconds=_seconds(log, read_config(run)["batch"]),
        compile_seconds=_compile_seconds(log),
    )


def read_seconds(run_dir: Path) -> tuple[float, float]:
    """Seconds of all training steps of a run, without validation, and of compilation, by its log.

    Each is NaN where that is not told.

    Raises:
        InputError: the log or config.json cannot be read.
    """
    log = _read_log(run_dir / METRICS)
    return _seconds(log, read_config(run_dir)["batch"]), _compile_seconds(log)


def read_scores(path: Path) -> list[Score]:
    """Dice and HD95 of each subject and class, as `voxtune evaluate -o FILE.json` wrote them.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        document = read_json(path)
        if document.get("format") != FORMAT:
            raise ValueError(f"its format is no '{FORMAT}'")
        entries = document.get("subjects")
        if not isinstance(entries, list) or not entries:
            raise ValueError("it has no subjects")
        rows = [_score(entry) for entry in entries]
        if len({(row.subject, row.value) for row in rows}) < len(rows):
            raise ValueError("it has a class of a subject twice")
        if len({(row.value, row.name) for row in rows}) > len({row.name for row in rows}):
            raise ValueError("it has one name for several classes")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no table of scores that can be read ({error}); remove it, and the study "
            "scores that network again."
        ) from error
    return rows


def _score(entry: Any) -> Score:
    """Raises ValueError where it is no entry of a class of a subject."""
    if not isinstance(entry, dict):
        raise ValueError("a subject of it is no object")
    subject, value, name = (entry.get(key) for key in ("subject", "value", "class"))
    if not isinstance(subject, str) or not isinstance(name, str) or not subject:
        raise ValueError("a subject or a class of it has no name")
    if not is_text(subject) or not is_text(name):
        raise ValueError("a name in it has control characters")
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise ValueError(f"{subject!r} has no value between 0 and {LARGEST}")
    dice = _number(entry, "dice", 1.0)
    return Score(subject, value, name, dice, hd95_mm=_number(entry, "hd95_mm", _FARTHEST))


def _number(entry: Mapping[str, Any], key: str, most: float) -> float:
    """A number between 0 and the most that it can be, NaN where null says that there is none.

    Raises:
        ValueError: it is something else.
    """
    if key not in entry:
        raise ValueError(f"an entry has no '{key}'")
    value = entry[key]
    if value is None:
        return math.nan
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise ValueError(f"{key} {str(value)[:40]!r} is no number that it can be")
    return float(value)


def _read_log(path: Path) -> list[dict[str, Any]]:
    """Entries of metrics.jsonl that have a step.

    Raises:
        InputError: it cannot be read, or has none.
    """
    try:
        entries = [entry for _, entry in log_lines(path) if _is_step(entry.get("step"))]
        if not entries:
            raise ValueError("it has no step")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no log of a run that can be read ({error}); remove the run, and the study "
            "trains it again."
        ) from error
    return entries


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_STEPS


def _curve(log: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, float]]:
    """Steps, increasing, with the mean validation Dice, or that of the only class."""
    found: dict[int, float] = {}
    for line in log:
        dice = line.get("dice")
        if line.get("event") != "validation" or not isinstance(dice, dict) or not dice:
            continue
        mean = dice.get("mean", next(iter(dice.values())) if len(dice) == 1 else None)
        found[line["step"]] = _share(mean)
    yield from sorted(found.items())


def _seconds(log: Sequence[Mapping[str, Any]], batch: int) -> float:
    """Of all steps, without compilation and validation."""
    total, last = 0.0, 0
    for line in log:
        if line.get("event") != "train":
            continue
        rate = line.get("examples_per_second")
        if not isinstance(rate, int | float) or not 0 < rate < _FASTEST:
            return math.nan
        total += (line["step"] - last) * batch / rate
        last = line["step"]
    return total if last else math.nan


def _compile_seconds(log: Sequence[Mapping[str, Any]]) -> float:
    """Of all parts of a run."""
    told = [line.get("seconds") for line in log if line.get("event") == "compiled"]
    known = [each for each in told if isinstance(each, int | float) and 0 <= each < _LONGEST]
    return float(sum(known)) if told and len(known) == len(told) else math.nan


def _share(value: Any) -> float:
    """A number from 0 to 1, NaN where it is none."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if known else math.nan
