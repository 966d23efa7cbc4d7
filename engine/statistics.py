"""Statistics of paired samples, of which subjects are what varies. No JAX here.

Intervals are of 95 % by a bootstrap over subjects: 9999 resamples, always the same ones for as many
subjects. They are symmetric and studentised (Hall 1988, Journal of the Royal Statistical Society B
50:35): as many standard errors to both sides as 95 % of the resamples are, by their own standard
errors, away from the sample.

How often they hold was measured once on 1000 simulated studies each, with 1999 resamples, of normal
and of skewed Dice-like pairs, with and without an effect, and of skewed pairs where one subject in
ten fails in one arm alone. Figures of that are in the docstrings. A smaller form of the skewed
pairs, 200 studies with 399 resamples, is in tests/engine/test_statistics.py; normal pairs and
failures are not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap, rankdata, wilcoxon

CONFIDENCE, RESAMPLES, SEED = 0.95, 9999, 0
FEWEST_OF_SPREAD = 8  # of fewer, whether the interval of a ratio holds was not measured
# How all of it is computed, for who reads the results: a text for each paragraph.
METHOD = (
    "A subject's Dice is the mean over classes, and over the seeds of an arm, before anything else "
    "is computed: what varies are the subjects. Intervals of means and differences are symmetric "
    "studentised bootstrap intervals of 95 % over subjects (Hall 1988, Journal of the Royal "
    f"Statistical Society B 50:35), of {RESAMPLES} resamples; those of a ratio of standard "
    "deviations likewise, of its logarithm. The interval of a number of scans is of plain "
    "percentiles of a bootstrap over subjects (Efron 1981, The Canadian Journal of Statistics "
    "9:139).",
    "p of a difference is two-sided, of the signed-rank test (Wilcoxon 1945, Biometrics Bulletin "
    "1:80); p of a ratio of standard deviations is of the same bootstrap as its interval. Both are "
    "corrected for being many (Holm 1979, Scandinavian Journal of Statistics 6:65): all "
    "differences of the study as one family, all ratios as another. A difference or a ratio is "
    "shown where its p is below 0.05 after that, its interval does not hold 0 or 1, and it is not "
    "0.000 or 1.00 as printed; a difference only where the sum of signed ranks has its sign too, "
    f"a ratio only of {FEWEST_OF_SPREAD} subjects and more.",
    "So intervals and p say what other subjects of the same kind would do with these networks. How "
    "networks of other seeds differ is told by the seeds' own means alone, and other hospitals, "
    "tasks or models may do otherwise.",
)
FAILURE = 0.1  # Dice below which a subject is a failure
FEWEST = 6  # of fewer subjects no signed-rank test has p < 0.05, whatever they say
FEWEST_OF_INTERVAL = 4  # of fewer too many resamples are of one subject alone
_AT_ONCE = 1000  # resamples in memory
DECIMALS = 9
ROUNDING = 10.0**-DECIMALS  # means of the same numbers may differ by less than that
_TINY = ROUNDING**2
_WIDEST = math.log(1000)  # of half a ratio's interval that says anything, in logarithms
_FAR = 1e9  # standard errors

Interval = tuple[float, float]


@dataclass(frozen=True)
class SpreadRatio:
    """Of standard deviations.

    Attributes:
        value: the ratio.
        low: lower end of its 95 % interval.
        high: upper end.
        p: of its being 1, two-sided, by the same resamples: below 0.05 where 1 is not in there.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan


def mean_interval(values: np.ndarray, resamples: int = RESAMPLES) -> Interval:
    """Of a mean; of a mean difference where the values are paired differences.

    It held in 95 to 97 % of simulated studies with 8 subjects, in 94 to 95 % with 20 and in 95 to
    96 % with 60. With failures it held in 65 to 84 % with 8, 89 to 90 % with 20 and 96 to 98 % with
    60: failures that a sample lacks cannot be told from it.

    Args:
        values: float64 `[N]`.
        resamples: of the bootstrap.

    Returns:
        Lower and upper end; NaN of fewer than four values, and where so few of them differ that
        more than 5 % of the resamples do not vary.
    """
    deviations = _deviations((values,), _mean_and_error, resamples)
    if not deviations.size:
        return math.nan, math.nan
    mean, error = map(float, _mean_and_error(values))
    half = error * _quantile(deviations) if error else 0.0
    return (mean - half, mean + half) if math.isfinite(half) else (math.nan, math.nan)


def signed_rank(differences: np.ndarray) -> float:
    """Wilcoxon's signed-rank test of paired differences, two-sided.

    Differences of 0 (to nine decimals) are left out, as Wilcoxon did; ties have their mean rank.
    The distribution is exact for up to 50 differences without ties and for up to 13 with, else the
    normal approximation corrected for ties: SciPy's choices.

    Args:
        differences: float64 `[N]`.

    Returns:
        p: 1 where all differences are 0; NaN of fewer than `FEWEST`, which could show nothing.
    """
    if differences.size < FEWEST:
        return math.nan
    kept = _not_zero(differences)
    return float(wilcoxon(kept).pvalue) if kept.size else 1.0


def rank_sum(differences: np.ndarray) -> float:
    """Sum of the signed ranks of paired differences, of which `signed_rank` is the test.

    Above 0 where the ranks are for what is larger in these differences, which need not be what is
    larger on average.
    """
    kept = _not_zero(differences)
    return float(rankdata(np.abs(kept)) @ np.sign(kept))


def _not_zero(differences: np.ndarray) -> np.ndarray:
    rounded = differences.round(DECIMALS)
    return rounded[rounded != 0]


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected for being many: below a level, none of them is so by chance but with that risk.

    Holm 1979, Scandinavian Journal of Statistics 6:65: the k-th smallest of m is multiplied by
    m - k + 1; none gets smaller than one before it, nor larger than 1. NaN is left out: it stays
    NaN, and does not count in m.
    """
    places = [place for place, p in enumerate(p_values) if not math.isnan(p)]
    places.sort(key=lambda place: p_values[place])
    corrected, last = [math.nan] * len(p_values), 0.0
    for rank, place in enumerate(places):
        last = max(last, min(1.0, (len(places) - rank) * p_values[place]))
        corrected[place] = last
    return corrected


def sd_ratio(first: np.ndarray, other: np.ndarray, resamples: int = RESAMPLES) -> SpreadRatio:
    """Standard deviation (n - 1) of one sample by that of another, of the same subjects.

    Its interval is of the logarithm, with the jackknife's standard error, which is the larger one.
    Where it could be told it held in 97 to 98 % of simulated studies with 8 subjects, in 93 to 95 %
    with 20 and in 95 to 96 % with 60; with failures in 65 to 88 % with 8, 84 to 90 % with 20 and 95
    to 96 % with 60.

    Args:
        first: float64 `[N]`.
        other: `[N]`, of the same subjects in the same order; these are resampled as pairs.
        resamples: of the bootstrap.

    Returns:
        The ratio, its interval, and p of its being 1. Where one of them does not vary at all the
        ratio is 0 or infinite, and there is neither interval nor p: NaN. Nor are there of fewer
        than four subjects, and where one of them varies by a single subject. There is no interval
        that would be beyond a thousandfold. All is NaN where neither varies, or of fewer than two
        subjects.
    """
    above, below = _spread(first), _spread(other)
    if math.isnan(above) or not above + below:
        return SpreadRatio(math.nan)
    if not above or not below:
        return SpreadRatio(math.inf if above else 0.0)
    ratio = above / below
    error = _jackknife_error(first, other) if first.size > 2 else math.nan
    deviations = _deviations((first, other), _log_ratio_and_error, resamples)
    if not deviations.size or math.isnan(error):
        return SpreadRatio(ratio)
    value, half = math.log(ratio), error * _quantile(deviations)
    # As many standard errors or more are as many of the resamples away, and the sample itself.
    reached = int((deviations * error >= abs(value)).sum())
    p = (1 + reached) / (1 + deviations.size)
    if not half < _WIDEST:
        return SpreadRatio(ratio, p=p)
    return SpreadRatio(ratio, math.exp(value - half), math.exp(value + half), p)


def _spread(values: np.ndarray) -> float:
    """Standard deviation, 0 where that is of rounding alone, NaN of a single value."""
    if values.size < 2:
        return math.nan
    found = float(values.std(ddof=1))
    return found if found > ROUNDING else 0.0


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the last axis; the error is 0 where that is of rounding alone."""
    spread = values.std(axis=-1, ddof=1)
    error = np.where(spread > ROUNDING, spread, 0.0) / math.sqrt(values.shape[-1])
    return values.mean(axis=-1), error


def _log_ratio_and_error(first: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of the ratio of standard deviations, and its standard error by the delta method."""
    squares = [(each - each.mean(axis=-1, keepdims=True)) ** 2 for each in (first, other)]
    above, below = (np.maximum(each.mean(axis=-1, keepdims=True), _TINY) for each in squares)
    parts = squares[0] / above - squares[1] / below  # twice what each subject adds to the logarithm
    error = parts.std(axis=-1, ddof=1) / (2 * math.sqrt(first.shape[-1]))
    return 0.5 * np.log(above / below)[..., 0], error


def _jackknife_error(first: np.ndarray, other: np.ndarray) -> float:
    """Standard error of the logarithm of the ratio, from samples that lack one subject each.

    NaN where one of these does not vary.
    """
    n = first.size
    others = np.array([np.delete(np.arange(n), place) for place in range(n)])  # [N, N - 1]
    if min(_spread(each[own]) for each in (first, other) for own in others) == 0:
        return math.nan
    found, _ = _log_ratio_and_error(first[others], other[others])
    return math.sqrt((n - 1) * float(found.var()))


def _deviations(
    samples: tuple[np.ndarray, ...],
    statistic: Callable[..., tuple[np.ndarray, np.ndarray]],
    resamples: int,
) -> np.ndarray:
    """How far resamples are from the sample, in their own standard errors: float64 `[R]`.

    Args:
        samples: of the same subjects, float64 `[N]` each; of too few there are no resamples.
        statistic: of samples `[..., N]`, and its standard error in each.
        resamples: of the bootstrap.
    """
    if samples[0].size < FEWEST_OF_INTERVAL:
        return np.zeros(0)
    value = statistic(*samples)[0]

    def deviation(*resampled: np.ndarray, axis: int) -> np.ndarray:
        found, errors = statistic(*resampled)
        apart = np.abs(found - value)
        # A resample that does not vary is no number of its errors away, unless it is just there.
        result = np.where(apart > ROUNDING, _FAR, 0.0)
        return np.divide(apart, errors, out=result, where=errors > ROUNDING)

    return bootstrap(
        samples,
        deviation,
        paired=len(samples) > 1,
        vectorized=True,
        n_resamples=resamples,
        batch=_AT_ONCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).bootstrap_distribution


def _quantile(deviations: np.ndarray) -> float:
    """Standard errors to both sides that hold the level; infinite where nothing does."""
    found = float(np.quantile(deviations, CONFIDENCE, method="inverted_cdf"))
    return found if found < _FAR else math.inf
