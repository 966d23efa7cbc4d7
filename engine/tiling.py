"""Windows that cover a volume, and how much each counts where they overlap. No JAX here."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

Corner = tuple[int, int, int]
Weights = tuple[np.ndarray, np.ndarray, np.ndarray]  # along each axis; their product is a voxel's


def tiles(shape: Sequence[int], block: Sequence[int], overlap: float) -> list[Corner]:
    """First voxels of windows that cover a volume, the last axis moving fastest.

    Args:
        shape: of the volume, voxels; where it is smaller than a window, one lies at 0.
        block: shape of a window, voxels.
        overlap: least share of a window that its neighbour covers too, from 0 to below 1, but for
            rounding to whole voxels.
    """
    depth, height, width = _starts(shape, block, overlap)
    return list(itertools.product(depth, height, width))


def weighted_tiles(
    shape: Sequence[int], block: Sequence[int], overlap: float
) -> list[tuple[Corner, Weights]]:
    """`tiles`, each with the weights of its voxels, which add up to 1 in every voxel of the volume.

    Before that they are a Gaussian round the centre of the window, an eighth of the window wide
    (nnU-Net's), since the border of a window lacks context. Sums over windows are products of sums
    along the axes, as windows and Gaussians are.

    Args:
        shape: of the volume, at least that of a window, voxels.
        block: see `tiles`.
        overlap: see `tiles`.
    """
    starts = _starts(shape, block, overlap)
    axes = [
        list(zip(firsts, _axis_weights(size, edge, firsts), strict=True))
        for firsts, size, edge in zip(starts, shape, block, strict=True)
    ]
    found = []
    for (d, along_d), (h, along_h), (w, along_w) in itertools.product(*axes):
        found.append(((d, h, w), (along_d, along_h, along_w)))
    return found


def block_starts(size: int, block: int, overlap: float) -> list[int]:
    """Where windows begin along an axis: as few as overlap enough, evenly spaced.

    The same as nnU-Net's `compute_steps_for_sliding_window` with a step of 1 - overlap (Isensee et
    al. 2021).

    Args:
        size: of the axis, at least `block`, voxels.
        block: edge of a window, voxels.
        overlap: least share of a window that its neighbour covers too.
    """
    step = max(1.0, block * round(1 - overlap, 9))  # 1 - 0.8 is 0.2 less a little, a window more
    count = 1 + math.ceil((size - block) / step)
    apart = (size - block) / max(1, count - 1)
    return [round(apart * index) for index in range(count)]


def _starts(shape: Sequence[int], block: Sequence[int], overlap: float) -> list[list[int]]:
    return [
        block_starts(max(size, edge), edge, overlap)
        for size, edge in zip(shape, block, strict=True)
    ]


def _axis_weights(size: int, block: int, starts: Sequence[int]) -> list[np.ndarray]:
    """Of each window along an axis, float32 `[block]`; over windows they add up to 1."""
    bell = np.exp(-0.5 * ((np.arange(block) - (block - 1) / 2) / (block / 8)) ** 2)
    total = np.zeros(size)
    for first in starts:
        total[first : first + block] += bell
    return [(bell / total[first : first + block]).astype(np.float32) for first in starts]
