"""Classes on the scan's own grid, from probabilities that stay on the devices."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from voxtune.engine.conform import (
    Conformed,
    exactly_to_scan_grid,
    fill_cut_off,
    to_conformed,
    to_scan_axes,
)
from voxtune.engine.predicted import Predicted, class_dtype, most_probable

# Voxels that a program is given at a time, whatever the scan: those that are looked up, and those
# whose probabilities are interpolated.
_LOOKED_UP, _INTERPOLATED = 2**18, 2**15
_CORNERS = tuple(np.ndindex(2, 2, 2))  # of a cell, the cube between eight neighbouring voxels


def to_scan_grid(
    conformed: Conformed, found: Predicted, threshold: float | None = None
) -> np.ndarray:
    """The most probable class of each of the scan's own voxels.

    Resampled scans get each class's map interpolated linearly at their voxel centres, and the
    largest wins: boundaries fall between the conformed voxels, not on them. Where the eight voxels
    around are of one class, so is what lies between; the others alone are interpolated. Scan voxels
    that the grid cut off are of the first class.

    Args:
        conformed: what `conform` returned for the scan.
        found: probabilities on the conformed grid.
        threshold: see `most_probable`.

    Returns:
        Indices of classes, uint8 (uint16 beyond 256 classes), shaped as the scan.
    """
    if found.shape != conformed.data.shape:
        raise ValueError(f"{found.shape} is not on the grid {conformed.data.shape}")
    if conformed.exact:
        return exactly_to_scan_grid(conformed, found.winners(threshold), 0)
    winners = _interpolated(conformed, found, threshold)
    fill_cut_off(conformed, winners, 0)
    return to_scan_axes(conformed, winners)


def _interpolated(conformed: Conformed, found: Predicted, threshold: float | None) -> np.ndarray:
    """Winning class `[reoriented_shape]`."""
    classes, shape = found.held.shape[-1], conformed.reoriented_shape
    first = np.array([part.start for part in found.inside], np.int32)
    size = np.array(found.shape, np.int32)
    matrix = to_conformed(conformed)
    grid = np.array(shape, np.int32), np.float32(matrix), first, size
    cells = _cells(found.held, threshold)
    winners = np.empty(math.prod(shape), class_dtype(classes))
    for start in range(0, winners.size, _LOOKED_UP):
        classed = _looked_up(_LOOKED_UP, cells, np.uint32(start), *grid)
        part = np.asarray(classed)[: winners.size - start]
        winners[start : start + part.size] = part
        mixed = start + np.flatnonzero(part == classes)
        for begin in range(0, mixed.size, _INTERPOLATED):
            these = mixed[begin : begin + _INTERPOLATED]
            cell, share = _places(these, shape, matrix, size)
            winners[these] = np.asarray(_contest(found.held, cell + first, share, threshold))[
                : these.size
            ]
    return winners.reshape(shape)


def _places(
    these: np.ndarray, shape: tuple[int, int, int], matrix: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cells that voxels of the reoriented scan lie in, and where in them, `[_INTERPOLATED, 3]`.

    Beyond the border it is the border. Counted in float64, as the resampling of images is.
    """
    voxels = np.stack(np.unravel_index(these, shape))
    place = np.clip(matrix[:3, :3] @ voxels + matrix[:3, 3:], 0, size[:, None] - 1).T
    cell = np.minimum(np.floor(place), np.maximum(size - 2, 0))
    padding = ((0, _INTERPOLATED - len(these)), (0, 0))
    return np.pad(np.int32(cell), padding), np.pad(np.float32(place - cell), padding)


@jax.jit
def _cells(held: Array, threshold: float | None) -> Array:
    """The class of all eight voxels of each cell `[D, H, W]`, K where they differ."""
    classes = held.shape[-1]
    winners = most_probable(held, threshold).astype(class_dtype(classes + 1))
    low = high = winners
    for axis in range(3):
        # The last cell of an axis sticks out, and none lies in it unless the axis has one voxel.
        low, high = (
            each(x, jnp.concatenate([x[_after(axis)], x[_last(axis)]], axis))
            for each, x in ((jnp.minimum, low), (jnp.maximum, high))
        )
    return jnp.where(low == high, low, classes).astype(winners.dtype)


def _after(axis: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(1, None),)


def _last(axis: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(-1, None),)


@partial(jax.jit, static_argnums=0)
def _looked_up(
    count: int, cells: Array, start: Array, shape: Array, matrix: Array, first: Array, size: Array
) -> Array:
    """What the cells say of `count` voxels of the reoriented scan, from the `start`-th on."""
    # Of a scan of 2^31 voxels they go beyond int32.
    number = start.astype(jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    shape = shape.astype(jnp.uint32)
    voxels = (number // (shape[1] * shape[2]), number // shape[2] % shape[1], number % shape[2])
    index = []
    for axis in range(3):
        x, y, z = (matrix[axis, each] * voxels[each] for each in range(3))
        cell = jnp.floor(x + y + z + matrix[axis, 3]).astype(jnp.int32)
        index.append(first[axis] + jnp.clip(cell, 0, jnp.maximum(size[axis] - 2, 0)))
    return cells[tuple(index)]


@jax.jit
def _contest(held: Array, cell: Array, share: Array, threshold: float | None) -> Array:
    """The class that wins at places in cells `[N, 3]`."""
    total = jnp.zeros((len(cell), held.shape[-1]), jnp.float32)
    last = jnp.array(held.shape[:3]) - 1
    for corner in _CORNERS:
        weight = jnp.where(jnp.array(corner), share, 1 - share).prod(-1)
        depth, height, width = jnp.minimum(cell + jnp.array(corner), last).T
        total += weight[:, None] * held[depth, height, width]
    return most_probable(total, threshold)
