"""How far the surfaces of two masks are apart, in mm.

The surface of a mask is its boundary voxels: those with a neighbour across a face that is not in
the mask. What lies beyond the volume is outside, so voxels at its border are boundary. Distances
are Euclidean, between centres of boundary voxels, through the whole affine: exact for voxels of
unequal edges, for turned grids and for sheared ones. With the distances of each predicted boundary
voxel to the nearest true one, and of each true one to the nearest predicted one:

- `hausdorff()` (HD) is the largest of all;
- `hausdorff(95)` (HD95) is the larger of the two 95th percentiles, each interpolated linearly;
- `average` (ASSD) is the mean of all, pooled;
- `dice(t)` (surface Dice) is the share, of all, of those that are at most t mm: the normalised
  surface Dice of Nikolov et al. 2021 (J Med Internet Res 23:e26151), with voxels counted in the
  place of areas (Seidlitz et al. 2022, Med Image Anal 80:102488).

These are MONAI's definitions. DeepMind's surface-distance differs: its surface elements lie at
corners of voxels, and count by their area. Largest difference over eleven pairs of masks (of
tests/engine/make_surface_fixtures.py; voxels of 0.5 to 3 mm), behind it the median:

|                      | MONAI 1.6.1    | DeepMind 0.1         |
|----------------------|----------------|----------------------|
| HD, mm               | 0.000001       | 0.18, median 0       |
| HD95, mm             | 0.000001       | 0.90, median 0.12    |
| ASSD, mm             | 0.000001       | 0.71, median 0.29    |
| surface Dice at 1 mm | 0.00000003     | 0.46, median 0.001   |
| one mask empty       | HD is infinite | distances infinite   |

DeepMind's ASSD, pooled by areas, was never the larger one: voxels side by side share corners, and
where two masks lie against each other their elements coincide while their voxels are one apart. The
0.46 is of plates of one and two voxels, two apart. HD can differ by a voxel's diagonal at most: of
the eight voxels round a corner with an element some are inside and some are not, so two that share
a face differ, and one is a boundary voxel whose centre is half a diagonal away; and each boundary
voxel has such corners. A way from one surface to the other is thus longer or shorter by two halves
at most. For HD95 and ASSD, which areas weigh, there is no such bound; what was measured stayed
below half a diagonal.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

# A distance that is the tolerance itself counts, though headers store float32 and turned grids
# round: 1 mm may come out as 1.0000001.
_ROUNDING_MM = 1e-5
_LEAF = 32  # points where a tree ends; more than usual, since each is built for one question


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances of boundary voxels to the nearest of the other mask, in mm.

    Attributes:
        to_true: of each predicted boundary voxel, float64 `[P]`, in no order; infinite where
            nothing is true.
        to_predicted: of each true boundary voxel, float64 `[T]`, likewise.
    """

    to_true: np.ndarray
    to_predicted: np.ndarray

    def hausdorff(self, percentile: float = 100) -> float:
        """The larger of both directions' percentiles, mm; NaN where a mask is empty."""
        both = (self.to_true, self.to_predicted)
        if not all(each.size for each in both):
            return np.nan
        return max(float(np.percentile(each, percentile)) for each in both)

    @property
    def average(self) -> float:
        """Mean of both directions' distances, pooled, mm; NaN where a mask is empty."""
        if not (self.to_true.size and self.to_predicted.size):
            return np.nan
        return float(np.concatenate((self.to_true, self.to_predicted)).mean())

    def dice(self, tolerance_mm: float) -> float:
        """Share of distances within the tolerance, 0 to 1: NaN where both masks are empty, 0 where
        one is."""
        number = self.to_true.size + self.to_predicted.size
        within = sum(
            int(np.count_nonzero(each <= tolerance_mm + _ROUNDING_MM))
            for each in (self.to_true, self.to_predicted)
        )
        return within / number if number else np.nan


def surface_distances(
    predicted: np.ndarray, true: np.ndarray, axes_mm: np.ndarray
) -> SurfaceDistances:
    """Distances between the boundaries of two masks.

    Args:
        predicted: bool `[D, H, W]`.
        true: likewise, on the same grid.
        axes_mm: `[3, 3]`, the affine's: column i is one step along axis i, in mm.
    """
    here, there = boundary(predicted), boundary(true)
    both = here & there
    axes = np.asarray(axes_mm).T
    points, others = np.argwhere(here) @ axes, np.argwhere(there) @ axes
    # Where both boundaries are, the distance is 0: most voxels of a good prediction need no search.
    shared = np.zeros(np.count_nonzero(both))
    return SurfaceDistances(
        np.concatenate((shared, _nearest(np.argwhere(here & ~both) @ axes, others))),
        np.concatenate((shared, _nearest(np.argwhere(there & ~both) @ axes, points))),
    )


def boundary(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask with a neighbour across a face that is outside it, bool `[D, H, W]`."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        for step in (-1, 1):  # what is rolled round is the padding
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return mask & ~inner


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance of each point `[N, 3]` to the nearest of the others `[M, 3]`, `[N]`."""
    if not len(others) or not len(points):
        return np.full(len(points), np.inf)
    return KDTree(others, leafsize=_LEAF).query(points)[0]
