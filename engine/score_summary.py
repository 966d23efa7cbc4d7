"""Scores over subjects: means, spreads and how sure these are.

The interval of a mean is that of `statistics.mean_interval`, cut where the measure ends: a Dice of
more than 1 there is not. It says how the mean would vary with other subjects of the same kind.
There is none of fewer than four.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from voxtune.engine.score import MEASURES, Score
from voxtune.engine.statistics import Interval, mean_interval

Key = TypeVar("Key", bound=Hashable)

_SHARES = ("dice", "jaccard", "precision", "recall", "surface_dice")  # and those of lesions
# Of these a subject has a mean over its classes; volumes and counts are of one class each.
_AVERAGED = tuple(
    name for name in MEASURES if not name.startswith("lesions_") and "_ml" not in name
)


@dataclass(frozen=True)
class Summary:
    """One measure of one class over subjects. NaN is undefined.

    Attributes:
        value: the class's value; None for the mean of classes, of each subject.
        name: the class's name.
        measure: a name of `MEASURES`.
        n: subjects counted.
        left_out: subjects where it is undefined.
        mean: of those counted, as all below.
        low: lower end of the 95 % interval of the mean.
        high: upper end.
        sd: standard deviation of the sample (n - 1).
        median: the middle.
        lower_quartile: 25th percentile.
        upper_quartile: 75th percentile.
        minimum: the smallest.
        maximum: the largest.
    """

    value: int | None
    name: str
    measure: str
    n: int
    left_out: int
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    sd: float = math.nan
    median: float = math.nan
    lower_quartile: float = math.nan
    upper_quartile: float = math.nan
    minimum: float = math.nan
    maximum: float = math.nan


def summarise(rows: Sequence[Score]) -> list[Summary]:
    """Each measure of each class over subjects, then of the mean of several classes.

    Of a subject's mean over classes see `mean_of`. The mean of classes has no volumes and no counts
    of lesions.
    """
    classes = grouped(rows, lambda row: row.value)
    result = [
        _summary(value, own[0].name, measure, [getattr(row, measure) for row in own])
        for value, own in classes.items()
        for measure in MEASURES
    ]
    if len(classes) > 1:
        subjects = grouped(rows, lambda row: row.subject).values()
        result += [
            _summary(None, "mean of classes", measure, [mean_of(own, measure) for own in subjects])
            for measure in _AVERAGED
        ]
    return result


def grouped(rows: Sequence[Score], key: Callable[[Score], Key]) -> dict[Key, list[Score]]:
    """Rows by what they have in common, in the order of their first ones."""
    groups: dict[Key, list[Score]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def mean_of(rows: Sequence[Score], measure: str) -> float:
    """Mean of a measure over a subject's classes, those that are in neither map left out.

    NaN where none is in either, or where the measure is undefined for one that is in one map: else
    who misses a class entirely would have the best distance.
    """
    # Dice is defined wherever the class is in a map.
    kept = [getattr(row, measure) for row in rows if not math.isnan(row.dice)]
    return sum(kept) / len(kept) if kept else math.nan


def _summary(value: int | None, name: str, measure: str, values: Sequence[float]) -> Summary:
    kept = np.array([each for each in values if not math.isnan(each)], np.float64)
    left_out = len(values) - kept.size
    if not kept.size:
        return Summary(value, name, measure, 0, left_out)
    low, high = _interval(measure, kept)
    lower, median, upper = np.percentile(kept, (25, 50, 75)).tolist()
    return Summary(
        value=value,
        name=name,
        measure=measure,
        n=kept.size,
        left_out=left_out,
        mean=float(kept.mean()),
        low=low,
        high=high,
        sd=float(kept.std(ddof=1)) if kept.size > 1 else math.nan,
        median=median,
        lower_quartile=lower,
        upper_quartile=upper,
        minimum=float(kept.min()),
        maximum=float(kept.max()),
    )


def _interval(measure: str, values: np.ndarray) -> Interval:
    """Of the mean, within what the measure can be."""
    if measure.startswith("difference_"):
        return mean_interval(values)
    largest = 1 if measure.startswith(_SHARES) or measure.startswith("lesion_") else math.inf
    low, high = np.clip(mean_interval(values), 0, largest).tolist()
    return low, high
