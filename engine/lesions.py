"""Which lesions were found: agreement counted in components of a mask, not in voxels.

A lesion is a component of 26 neighbours (by faces, edges and corners). A true one is found where at
least one of its voxels is predicted, else missed; a predicted one is false where none of its voxels
is true. Then

- sensitivity is found / (found + missed), undefined where nothing is true;
- precision is found / (found + false), undefined where nothing is predicted;
- F1 is 2 found / (2 found + missed + false), undefined where both masks are empty.

Several true lesions that one predicted one covers are all found; several predicted ones in a true
one find it once, and none is false.
"""

from dataclasses import dataclass

import numpy as np

from voxtune.engine.components import connected


@dataclass(frozen=True)
class Detection:
    """Lesions of one class of one subject.

    Attributes:
        found: true ones of which any voxel is predicted.
        missed: true ones of which none is.
        false: predicted ones of which no voxel is true.
    """

    found: int
    missed: int
    false: int

    @property
    def sensitivity(self) -> float:
        """0 to 1, NaN where nothing is true."""
        return _share(self.found, self.found + self.missed)

    @property
    def precision(self) -> float:
        """0 to 1, NaN where nothing is predicted."""
        return _share(self.found, self.found + self.false)

    @property
    def f1(self) -> float:
        """0 to 1, NaN where nothing is true nor predicted."""
        return _share(2 * self.found, 2 * self.found + self.missed + self.false)


def detect(predicted: np.ndarray, true: np.ndarray) -> Detection:
    """Lesions found, missed and false.

    Args:
        predicted: bool `[D, H, W]`.
        true: likewise, on the same grid.
    """
    true_lesions, number = connected(true)
    predicted_lesions, predicted_number = connected(predicted)
    found = _touched(true_lesions, predicted)
    return Detection(found, number - found, predicted_number - _touched(predicted_lesions, true))


def _touched(lesions: np.ndarray, mask: np.ndarray) -> int:
    """How many components have a voxel in a mask."""
    inside = np.unique(lesions[mask])
    return int(np.count_nonzero(inside))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else np.nan
