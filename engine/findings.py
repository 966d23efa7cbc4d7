"""What a study shows: a cell for each arm and size, and how the first arm compares with others.

Scores of a subject are averaged over seeds first; subjects are what varies. So intervals and p say
what other subjects of the same kind would do with these networks; how networks of other seeds would
differ is told by the seeds' own means alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from voxtune.engine.learning_curve import crossing, rise, worth
from voxtune.engine.outcomes import Outcome
from voxtune.engine.sentences import sentences
from voxtune.engine.statistics import (
    FAILURE,
    ROUNDING,
    holm,
    mean_interval,
    rank_sum,
    sd_ratio,
    signed_rank,
)

SETTLED = 0.005  # gain of validation Dice over the last quarter of the steps, below which is none
_Seeds = Mapping[int, Outcome]  # networks of one arm and size


@dataclass(frozen=True)
class Cell:
    """One arm with one number of scans, over subjects.

    Attributes:
        arm: name of the arm.
        size: scans trained on.
        seeds: networks.
        subjects: scored, with a Dice.
        mean: of Dice, as all below.
        low: lower end of the mean's 95 % interval.
        high: upper end.
        sd: over subjects (n - 1).
        median: the middle.
        lower_quartile: 25th percentile.
        upper_quartile: 75th percentile.
        worst: the smallest.
        worst_subject: whose.
        failures: subjects below `FAILURE`, by their mean over seeds.
        failures_any: how often one network was below it on one subject.
        seeds_sd: of the networks' own means; NaN of one.
        hd95_mm: mean HD95 of the subjects that have one.
        hd95_left_out: subjects without, in any seed.
    """

    arm: str
    size: int
    seeds: int
    subjects: int
    mean: float
    low: float
    high: float
    sd: float
    median: float
    lower_quartile: float
    upper_quartile: float
    worst: float
    worst_subject: str
    failures: int
    failures_any: int
    seeds_sd: float
    hd95_mm: float
    hd95_left_out: int


@dataclass(frozen=True)
class Comparison:
    """The first arm and another with as many scans, of the same subjects.

    Attributes:
        size: scans trained on.
        arm: name of the first arm.
        other: of the other.
        subjects: that both have a Dice of, as all below.
        left_out: subjects that one of both alone has a Dice of.
        mean: of Dice of the first.
        other_mean: of the other's.
        difference: of both means.
        low: lower end of its 95 % bootstrap interval over subjects.
        high: upper end.
        rank_sum: of the signed ranks of differences; its sign may be another than the mean's.
        p: Wilcoxon signed-rank, two-sided; NaN of fewer than 6 subjects.
        p_holm: the same after Holm's correction for all differences of the study.
        ahead: subjects that the first arm is better on.
        seeds_ahead: seeds whose mean is better with the first arm.
        seeds: seeds that both have.
        sd_ratio: SD over subjects of the first by the other's.
        sd_ratio_low: lower end of its 95 % interval.
        sd_ratio_high: upper end.
        sd_p: of that ratio's being 1.
        sd_p_holm: the same after Holm's correction for all such ratios, a family of their own.
    """

    size: int
    arm: str
    other: str
    subjects: int
    left_out: int
    mean: float
    other_mean: float
    difference: float
    low: float
    high: float
    rank_sum: float
    p: float
    p_holm: float
    ahead: int
    seeds_ahead: int
    seeds: int
    sd_ratio: float
    sd_ratio_low: float
    sd_ratio_high: float
    sd_p: float = math.nan
    sd_p_holm: float = math.nan


@dataclass(frozen=True)
class Course:
    """How one arm and size came to its validation Dice, mean over seeds.

    Attributes:
        arm: name of the arm.
        size: scans trained on.
        steps: at which all seeds were validated; none where their last validations were at
            different steps, of which no mean curve can be drawn to its end.
        dice: there.
        ends: last validation of the seeds, each step once.
        gain: over the last quarter of the steps, whose beginning is interpolated between
            validations; NaN where there was none before.
        settled: whether that is below `SETTLED`, so that more steps of the same kind promise
            nothing. A learning rate that falls to 0 flattens any curve: another budget may not be
            settled there.
    """

    arm: str
    size: int
    steps: tuple[int, ...]
    dice: tuple[float, ...]
    ends: tuple[int, ...]
    gain: float
    settled: bool


@dataclass(frozen=True)
class Reach:
    """Steps after which the first arm has the other's final validation Dice.

    Attributes:
        size: scans trained on.
        arm: name of the first arm.
        other: of the other.
        target: the other's final validation Dice, mean over seeds; NaN where there is none, see
            `Course`.
        steps: interpolated between validations; the first validation where that has it already,
            NaN where it is never reached.
        of: last validation of the first arm; 0 where that has no course.
    """

    size: int
    arm: str
    other: str
    target: float
    steps: float
    of: int


@dataclass(frozen=True)
class Worth:
    """How many scans another arm would need for what the first has with fewer.

    Attributes:
        size: scans that the first arm was trained on.
        arm: name of the first arm.
        other: of the other.
        scans: interpolated between the logarithms of sizes on the other's mean Dice, made to rise
            where it falls; infinite where the other has it with no size of the study, NaN where it
            cannot be told, the other's smallest size where that has it already: at most so many.
        low: lower end of its 95 % percentile interval over subjects; NaN of fewer than four.
        high: upper end.
    """

    size: int
    arm: str
    other: str
    scans: float
    low: float
    high: float


@dataclass(frozen=True)
class Findings:
    """What a study shows, in numbers and in words.

    Attributes:
        cells: by size, then by arm in the design's order.
        comparisons: by size, then by arm.
        courses: as cells.
        reaches: as comparisons.
        worths: where there are two sizes at least.
        sentences: see `voxtune.engine.sentences.sentences`.
    """

    cells: Sequence[Cell]
    comparisons: Sequence[Comparison]
    courses: Sequence[Course]
    reaches: Sequence[Reach]
    worths: Sequence[Worth]
    sentences: Sequence[str]


def find(outcomes: Sequence[Outcome]) -> Findings:
    """Compares the networks of a study.

    A subject counts where all seeds that are averaged have a score of it. A comparison is of the
    seeds and the subjects that both arms have.

    Args:
        outcomes: in any order of seeds and sizes, their arms in the design's order; of each arm and
            size the same seeds.
    """
    arms = list(dict.fromkeys(each.arm for each in outcomes))
    sizes = sorted({each.size for each in outcomes})
    by_place: dict[tuple[str, int], dict[int, Outcome]] = {}
    for each in outcomes:
        by_place.setdefault((each.arm, each.size), {})[each.seed] = each
    places = [(arm, size) for size in sizes for arm in arms if (arm, size) in by_place]
    pairs = [
        (arms[0], arm, size)
        for arm, size in places
        if arm != arms[0] and by_place.get((arms[0], size), {}).keys() & by_place[arm, size].keys()
    ]
    cells = [_cell(arm, size, by_place[arm, size]) for arm, size in places]
    courses = [_course(arm, size, by_place[arm, size]) for arm, size in places]
    compared = [
        _comparison(first, other, size, *_shared(by_place[first, size], by_place[other, size]))
        for first, other, size in pairs
    ]
    of_means, of_spreads = holm([one.p for one in compared]), holm([one.sd_p for one in compared])
    comparisons = [
        replace(one, p_holm=p, sd_p_holm=sd_p)
        for one, p, sd_p in zip(compared, of_means, of_spreads, strict=True)
    ]
    reaches = [
        _reach(first, other, size, *_shared(by_place[first, size], by_place[other, size]))
        for first, other, size in pairs
    ]
    worths = [
        _worth(first, other, size, by_place[first, size], curve)
        for first, other, size in pairs
        if len(curve := {s: by_place[other, s] for s in sizes if (other, s) in by_place}) > 1
    ]
    said = sentences(arms, cells, comparisons, courses, reaches, worths)
    return Findings(cells, comparisons, courses, reaches, worths, said)


def _shared(first: _Seeds, other: _Seeds) -> tuple[_Seeds, _Seeds]:
    """The networks of both whose seeds both have."""
    seeds = sorted(first.keys() & other.keys())
    return {seed: first[seed] for seed in seeds}, {seed: other[seed] for seed in seeds}


def subject_scores(networks: Mapping[int, Outcome], measure: str = "dice") -> dict[str, float]:
    """Subject → mean over seeds, without those that a seed has no score of; in a fixed order.

    Args:
        networks: seed → what came of it, of one arm and size.
        measure: "dice" or "hd95_mm".
    """
    tables = [getattr(each, measure) for each in networks.values()]
    names = sorted(set.intersection(*(set(table) for table in tables)))
    means = {name: float(np.mean([table[name] for table in tables])) for name in names}
    return {name: value for name, value in means.items() if not math.isnan(value)}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _cell(arm: str, size: int, networks: _Seeds) -> Cell:
    scores, distances = subject_scores(networks), subject_scores(networks, "hd95_mm")
    dice = np.array(list(scores.values()), np.float64)
    low, high = np.clip(mean_interval(dice), 0, 1).tolist()  # of a few it would be wider
    lower, median, upper = np.percentile(dice if dice.size else [math.nan], (25, 50, 75)).tolist()
    of_seeds = [_mean([each.dice[name] for name in scores]) for each in networks.values()]
    worst = min(scores, key=lambda name: scores[name], default="")
    subjects = {name for each in networks.values() for name in each.dice}
    return Cell(
        arm=arm,
        size=size,
        seeds=len(networks),
        subjects=dice.size,
        mean=_mean(dice.tolist()),
        low=low,
        high=high,
        sd=float(dice.std(ddof=1)) if dice.size > 1 else math.nan,
        median=median,
        lower_quartile=lower,
        upper_quartile=upper,
        worst=scores.get(worst, math.nan),
        worst_subject=worst,
        failures=int((dice < FAILURE).sum()),
        failures_any=sum(one < FAILURE for each in networks.values() for one in each.dice.values()),
        seeds_sd=float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else math.nan,
        hd95_mm=_mean(list(distances.values())),
        hd95_left_out=len(subjects) - len(distances),
    )


def _comparison(arm: str, other: str, size: int, ours: _Seeds, theirs: _Seeds) -> Comparison:
    """Its p are not corrected yet."""
    first, second = subject_scores(ours), subject_scores(theirs)
    names = [name for name in first if name in second]
    a, b = (np.array([table[name] for name in names], np.float64) for table in (first, second))
    low, high = np.clip(mean_interval(a - b), -1, 1).tolist()
    ratio = sd_ratio(a, b)
    by_seed = [_mean([ours[s].dice[n] - theirs[s].dice[n] for n in names]) for s in ours]
    return Comparison(
        size=size,
        arm=arm,
        other=other,
        subjects=len(names),
        left_out=len(first.keys() ^ second.keys()),
        mean=_mean(a.tolist()),
        other_mean=_mean(b.tolist()),
        difference=_mean((a - b).tolist()),
        low=low,
        high=high,
        rank_sum=rank_sum(a - b),
        p=signed_rank(a - b),
        p_holm=math.nan,
        ahead=int((a - b > ROUNDING).sum()),
        seeds_ahead=sum(each > ROUNDING for each in by_seed),
        seeds=len(by_seed),
        sd_ratio=ratio.value,
        sd_ratio_low=ratio.low,
        sd_ratio_high=ratio.high,
        sd_p=ratio.p,
    )


def _mean_curve(networks: _Seeds) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Steps at which all seeds have a validation Dice, and its mean; none of different ends."""
    if len(_ends(networks)) > 1:
        return (), ()
    curves = [_validated(each) for each in networks.values()]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return tuple(steps), tuple(_mean([curve[step] for curve in curves]) for step in steps)


def _validated(network: Outcome) -> dict[int, float]:
    return {step: value for step, value in network.curve if not math.isnan(value)}


def _ends(networks: _Seeds) -> tuple[int, ...]:
    """Last validation of the seeds, 0 of one that has none."""
    return tuple(sorted({max(_validated(each), default=0) for each in networks.values()}))


def _course(arm: str, size: int, networks: _Seeds) -> Course:
    steps, dice = _mean_curve(networks)
    gain = rise(steps, dice, 0.75 * steps[-1]) if steps else math.nan
    return Course(arm, size, steps, dice, _ends(networks), gain, gain < SETTLED)  # NaN is not


def _reach(arm: str, other: str, size: int, ours: _Seeds, theirs: _Seeds) -> Reach:
    (steps, dice), (_, other_dice) = _mean_curve(ours), _mean_curve(theirs)
    target = other_dice[-1] if other_dice else math.nan
    of = steps[-1] if steps else 0
    return Reach(size, arm, other, target, crossing(steps, dice, target), of)


def _worth(arm: str, other: str, size: int, ours: _Seeds, theirs: Mapping[int, _Seeds]) -> Worth:
    first, curve = subject_scores(ours), [subject_scores(each) for each in theirs.values()]
    names = [name for name in first if all(name in table for table in curve)]
    if not names:
        return Worth(size, arm, other, math.nan, math.nan, math.nan)
    table = np.array([[each[name] for each in curve] for name in names], np.float64)
    return Worth(size, arm, other, *worth(list(theirs), table, np.array([first[n] for n in names])))
