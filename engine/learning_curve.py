"""What is read off a curve that should rise: over steps, or over numbers of scans. No JAX here."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from voxtune.engine.statistics import CONFIDENCE, DECIMALS, FEWEST_OF_INTERVAL, SEED

RESAMPLES = 1999
_AT_ONCE = 2**22  # numbers in memory


def crossing(places: Sequence[float], values: Sequence[float], target: float) -> float:
    """The first place at which a curve has a value, linearly interpolated.

    Args:
        places: increasing.
        values: there.
        target: that is looked for.

    Returns:
        The first place where the curve begins there or above; NaN where it never comes there.
    """
    for index, value in enumerate(values):
        if value >= target:
            if not index:
                return float(places[0])
            share = (target - values[index - 1]) / (value - values[index - 1])
            return float(places[index - 1] + share * (places[index] - places[index - 1]))
    return math.nan


def rise(places: Sequence[float], values: Sequence[float], since: float) -> float:
    """How much a curve rises from a place on, linearly interpolated; NaN where it begins later."""
    if not places or places[0] > since:
        return math.nan
    return float(values[-1] - np.interp(since, places, values))


def scans_for(sizes: Sequence[int], means: np.ndarray, target: float) -> float:
    """Number of scans with which a curve has a value, interpolated in their logarithm.

    Args:
        sizes: numbers of scans, increasing.
        means: value for each, float64 `[S]`; where they fall, by the closest curve that does not.
        target: value that is looked for.

    Returns:
        The smallest size where the curve begins there or above, infinity where it never gets there.
        At a value of the curve, to nine decimals, just its size.
    """
    if (np.diff(means) < 0).any():
        means = isotonic_regression(means).x
    values = means.round(DECIMALS).tolist()
    place = crossing(range(len(sizes)), values, round(target, DECIMALS))
    if math.isnan(place):
        return math.inf
    share, before = math.modf(place)
    size = float(sizes[int(before)])
    return size * (sizes[int(before) + 1] / size) ** share if share else size


def worth(
    sizes: Sequence[int], curve: np.ndarray, values: np.ndarray, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Number of scans with which others are, on average, where some scores are.

    Args:
        sizes: numbers of scans of the others, increasing.
        curve: scores of each subject with each, float64 `[N, S]`.
        values: scores that are looked for, of the same subjects, `[N]`.
        resamples: of the bootstrap over subjects.

    Returns:
        As `scans_for`, and both ends of its 95 % percentile interval (Efron 1981, The Canadian
        Journal of Statistics 9:139), NaN of fewer than four subjects.
    """
    count, scans = len(values), scans_for(sizes, curve.mean(axis=0), float(values.mean()))
    if count < FEWEST_OF_INTERVAL:
        return scans, math.nan, math.nan
    table = np.column_stack((curve, values))
    rng = np.random.default_rng(SEED)
    found: list[float] = []
    while len(found) < resamples:
        number = min(resamples - len(found), max(1, _AT_ONCE // table.size))
        drawn = rng.integers(0, count, (number, count))
        means = table[drawn].mean(axis=1)
        found += [scans_for(sizes, each[:-1], each[-1]) for each in means]
    tail = (1 - CONFIDENCE) / 2
    # Of values that are there: nothing lies between a number of scans and infinity.
    low, high = np.quantile(found, (tail, 1 - tail), method="inverted_cdf").tolist()
    return scans, low, high
