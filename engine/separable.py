"""Blur, low resolution and smooth random fields: products of a block with small matrices.

A matrix [n, n] for an axis of n voxels costs n multiplications a voxel, which a GPU, a TPU and a
CPU all do at full speed; it needs no gather, and its shape does not depend on what is drawn, so all
of this runs under `jit` and `vmap` with traced parameters. A NaN or an infinity spreads along the
three axes through its voxel.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

TRUNCATE = 4  # standard deviations after which the Gaussian ends, scipy's default
_EXACT = jax.lax.Precision.HIGHEST  # on a TPU the default is one bfloat16 pass, of three digits


def blur(image: Array, sigma: Array) -> Array:
    """Blurs a block by a Gaussian, with the border reflected about the outer faces of its voxels.

    Equal to `scipy.ndimage.gaussian_filter` with its defaults, `mode="reflect"` and `truncate=4`,
    for any sigma up to half of the block's shortest side.

    Args:
        image: float `[D, H, W, C]`.
        sigma: `[3]`, standard deviation along each axis, voxels; 0 leaves an axis as it is, to the
            bit.

    Returns:
        Shape and type of the image.
    """
    return _product(image, [_gaussian(n, sigma[axis]) for axis, n in enumerate(image.shape[:3])])


def lower_resolution(image: Array, factor: Array) -> Array:
    """Samples a block more coarsely and brings it back to its shape: a scan of thicker voxels.

    Along an axis of n voxels round(n / factor) samples are taken by nearest neighbour, without a
    blur before, and interpolated linearly, with the centres of the outer voxels carried on to the
    border: what nnU-Net v2 does (batchgeneratorsv2, `SimulateLowResolutionTransform`: PyTorch's
    `interpolate` by "nearest-exact", then by "trilinear").

    Args:
        image: float `[D, H, W, C]`.
        factor: `[3]`, size of the coarse voxels in voxels, 1 or more; 1 leaves an axis as it is, to
            the bit.

    Returns:
        Shape and type of the image.
    """
    return _product(image, [_coarse(n, factor[axis]) for axis, n in enumerate(image.shape[:3])])


def acquire(image: Array, sigma: Array, factor: Array) -> Array:
    """`blur`, then `lower_resolution`, for the cost of one of them: a scan of thick slices.

    Args:
        image: float `[D, H, W, C]`.
        sigma: `[3]`, of the blur, voxels.
        factor: `[3]`, size of the coarse voxels in voxels, 1 or more.

    Returns:
        Shape and type of the image.
    """
    matrices = [
        jnp.matmul(_coarse(n, factor[axis]), _gaussian(n, sigma[axis]), precision=_EXACT)
        for axis, n in enumerate(image.shape[:3])
    ]
    return _product(image, matrices)


def resize(image: Array, shape: tuple[int, int, int]) -> Array:
    """Interpolates a block linearly to another shape, its outer faces staying where they are.

    PyTorch's `interpolate` by "trilinear": no blur before, so for finer shapes.

    Args:
        image: float `[d, h, w, C]`.
        shape: D, H, W.

    Returns:
        `[D, H, W, C]`, of the image's type.
    """
    return _product(image, [_hats(n, m) for n, m in zip(shape, image.shape[:3], strict=True)])


def smooth_field(
    key: Array, shape: Sequence[int], points: tuple[int, int, int], channels: int
) -> Array:
    """Draws a smooth random field, standard normal at each voxel.

    It is a uniform cubic B-spline over standard normal control points, divided by the standard
    deviation that this has at a voxel (from 0.58 to 0.71 an axis, as near as a voxel is to a
    point), which is itself smooth: a strength multiplied with the field is its standard deviation.
    Voxels nearer than a point's distance, n / (points - 3) voxels, go together.

    Args:
        key: a JAX key.
        shape: D, H, W.
        points: how many control points each axis has, 4 or more; three of them serve the borders.
        channels: how many independent fields are drawn.

    Returns:
        float32 `[D, H, W, channels]`.

    Raises:
        ValueError: an axis has fewer than 4 control points.
    """
    if min(points) < 4:
        raise ValueError(f"a cubic spline needs 4 control points along each axis, not {points}")
    control = jax.random.normal(key, (*points, channels))
    return _product(control, [_spline(n, p) for n, p in zip(shape, points, strict=True)])


def _product(image: Array, matrices: Sequence[Array]) -> Array:
    """A matrix [n, m] along each axis of [m, m, m, C].

    The first axis is contracted, its product becomes the last, three times over: each is one plain
    matrix product, and only the channels have to be moved at the end.
    """
    found = image.astype(jnp.float32)
    for matrix in matrices:
        found = jnp.tensordot(found, matrix, (0, 1), precision=_EXACT)
    return jnp.moveaxis(found, 0, -1).astype(image.dtype)


def _gaussian(n: int, sigma: Array) -> Array:
    """Weights [n, n] of the voxels for each voxel; each row adds up to 1."""
    row, column = np.arange(n)[:, None, None], np.arange(n)[None, :, None]
    # A voxel reappears in the mirrors: twice in every 2n, two periods to each side.
    period = 2 * n * np.arange(-2, 3)
    distance = row - np.concatenate([column + period, -1 - column + period], axis=-1)
    square = np.asarray(distance**2, np.float32)
    reach = jnp.floor(TRUNCATE * sigma + 0.5)
    weights = jnp.exp(-square / (2 * jnp.maximum(sigma, 1e-3) ** 2))
    weights = jnp.where(np.abs(distance) <= reach, weights, 0).sum(-1)
    return weights / weights.sum(-1, keepdims=True)


def _coarse(n: int, factor: Array) -> Array:
    """Weights [n, n]: row i takes the two coarse samples that lie next to it."""
    # In whole numbers, of halves of a voxel: a division of floats may miss the identity by a bit.
    count = jnp.maximum(jnp.round(n / factor), 1).astype(jnp.int32)
    where = jnp.clip((2 * np.arange(n) + 1) * count - n, 0, 2 * n * (count - 1))
    low, rest = jnp.divmod(where, 2 * n)
    high = jnp.minimum(low + 1, count - 1)

    def taken(sample: Array) -> Array:
        voxel = (2 * sample + 1) * n // (2 * count)
        return (np.arange(n) == voxel[:, None]).astype(jnp.float32)

    part = rest[:, None] / (2 * n)
    return (1 - part) * taken(low) + part * taken(high)


def _hats(n: int, samples: int) -> Array:
    """Weights [n, samples] of the two samples next to each voxel."""
    where = np.clip((np.arange(n) + 0.5) * samples / n - 0.5, 0, samples - 1)
    distance = np.abs(where[:, None] - np.arange(samples))
    return jnp.asarray(np.clip(1 - distance, 0, None), jnp.float32)


def _spline(n: int, points: int) -> Array:
    """Weights [n, points] of the control points, the squares of each row adding up to 1."""
    # Point k lies at k - 1 in units of the points' distance; the block spans 0 to points - 3.
    where = (np.arange(n)[:, None] + 0.5) / n * (points - 3)
    x = np.abs(where - (np.arange(points) - 1))
    weights = np.where(x < 1, (4 - 6 * x**2 + 3 * x**3) / 6, np.clip(2 - x, 0, None) ** 3 / 6)
    return jnp.asarray(weights / np.linalg.norm(weights, axis=1, keepdims=True), jnp.float32)
