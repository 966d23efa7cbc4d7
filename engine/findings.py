"""What a study shows: a cell for each arm and size, and how the first arm compares with others.

Scores of a subject are averaged over seeds first; subjects are what varies. No JAX here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from voxtune.engine.outcomes import Outcome

FAILURE = 0.1  # Dice below which a subject is a failure


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
        failures: subjects below `FAILURE`.
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
        subjects: that both have a Dice of.
        difference: mean of Dice of the first minus the other's.
        low: lower end of its 95 % bootstrap interval over subjects.
        high: upper end.
        p: Wilcoxon signed-rank, two-sided.
        p_holm: the same after Holm's correction for all comparisons of the study.
        ahead: subjects that the first arm is better on.
        seeds_ahead: seeds whose mean is better with the first arm.
        seeds: seeds that both have.
        sd_ratio: SD over subjects of the first by the other's.
        sd_ratio_low: lower end of its 95 % interval.
        sd_ratio_high: upper end.
    """

    size: int
    arm: str
    other: str
    subjects: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    ahead: int
    seeds_ahead: int
    seeds: int
    sd_ratio: float
    sd_ratio_low: float
    sd_ratio_high: float


@dataclass(frozen=True)
class Course:
    """How one arm and size came to its validation Dice, mean over seeds.

    Attributes:
        arm: name of the arm.
        size: scans trained on.
        steps: at which it was validated.
        dice: there.
        gain: over the last quarter of the steps.
        settled: whether that is so small that more steps of the same kind promise nothing.
    """

    arm: str
    size: int
    steps: tuple[int, ...]
    dice: tuple[float, ...]
    gain: float
    settled: bool


@dataclass(frozen=True)
class Reach:
    """Steps after which the first arm has the other's final validation Dice.

    Attributes:
        size: scans trained on.
        arm: name of the first arm.
        other: of the other.
        target: the other's final validation Dice, mean over seeds.
        steps: interpolated between validations; NaN where it is never reached.
        of: steps that both were trained.
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
        scans: interpolated between the logarithms of sizes; infinite where the other has it with no
            size of the study, NaN where it cannot be told.
        low: lower end of its 95 % bootstrap interval over subjects.
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
    """All of that, and in words.

    Attributes:
        cells: by size, then by arm in the design's order.
        comparisons: by size, then by arm.
        courses: as cells.
        reaches: as comparisons.
        worths: where there are two sizes at least.
        sentences: what follows from the numbers, also where nothing does.
    """

    cells: Sequence[Cell]
    comparisons: Sequence[Comparison]
    courses: Sequence[Course]
    reaches: Sequence[Reach]
    worths: Sequence[Worth]
    sentences: Sequence[str]


def find(outcomes: Sequence[Outcome]) -> Findings:
    """Compares the networks of a study.

    Args:
        outcomes: in any order of seeds and sizes, their arms in the design's order; of each arm and
            size the same seeds.
    """
    raise NotImplementedError
