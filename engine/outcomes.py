"""What came of each network of a study: scores of each subject, and the way there. No JAX here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
        by_class: name of a class → subject → Dice.
        curve: steps and mean validation Dice there, by which nothing of the result is measured.
        seconds: of training, by the log; NaN where that is not told.
    """

    arm: str
    size: int
    seed: int
    factor: float
    dice: Mapping[str, float]
    hd95_mm: Mapping[str, float]
    by_class: Mapping[str, Mapping[str, float]]
    curve: Sequence[tuple[int, float]]
    seconds: float
