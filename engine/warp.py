"""Turning, stretching and bending a block: image and label through the same coordinates."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array


def affine(
    rotation: Array, scaling: Array, shear: Array, translation: Array, spacing: Sequence[float]
) -> Array:
    """Where the voxels of a changed block come from, as an affine map about the block's centre.

    A voxel at the offset v from the centre, in voxels, comes from the offset
    `S⁻¹ R · diag(scaling) · H · S v + translation`, S being the voxel sizes: angles are true where
    voxels are no cubes.

    Args:
        rotation: `[3]`, radians about the three axes; R turns about the first axis first, as in
            Nobrainer and nnU-Net.
        scaling: `[3]`, above 1 for a head that gets smaller, as in nnU-Net.
        shear: `[3]`, mm a mm: of the first axis along the second, of the first along the third, of
            the second along the third. Volumes stay.
        translation: `[3]`, voxels.
        spacing: voxel sizes along the three axes, mm.

    Returns:
        `[3, 4]`, matrix and translation.
    """
    (cx, cy, cz), (sx, sy, sz) = jnp.cos(rotation), jnp.sin(rotation)
    turned = jnp.array(
        [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
            [-sy, cy * sx, cy * cx],
        ]
    )
    sheared = jnp.array([[1, shear[0], shear[1]], [0, 1, shear[2]], [0, 0, 1]])
    size = jnp.asarray(spacing, turned.dtype)
    # By sums of nine products: a matrix product may round to bfloat16 on some devices.
    matrix = ((turned * scaling)[:, :, None] * sheared).sum(1) * size / size[:, None]
    return jnp.concatenate([matrix, translation[:, None]], axis=1)


def warp(
    image: Array, label: Array, matrix: Array, displacement: Array | None = None
) -> tuple[Array, Array]:
    """Samples a block anew: each voxel takes what lies where `matrix` and `displacement` send it.

    Beyond its border the block goes on as its mirror image, which is not repeated at the edge
    (`mode="mirror"` of scipy.ndimage), label as image: so the two still belong together there.

    Args:
        image: float `[D, H, W, C]`, interpolated linearly.
        label: `[D, H, W]`. The nearest voxel's, so no value is new; a float label is the target of
            a regression and is interpolated linearly. There NaN spreads to the voxels around it.
        matrix: `[3, 4]`, of `affine`.
        displacement: `[D, H, W, 3]`, voxels, added to where the matrix leads.

    Returns:
        Image and label, shapes and types unchanged.
    """
    shape = label.shape
    if jnp.issubdtype(label.dtype, jnp.floating):
        both = jnp.concatenate([image, label[..., None].astype(image.dtype)], axis=-1)
        both = _linear(both, _coordinates(shape, matrix, displacement))
        return both[..., :-1], both[..., -1].astype(label.dtype)
    coordinates = _coordinates(shape, matrix, displacement)
    return _linear(image, coordinates), _nearest(label, coordinates)


def _coordinates(
    shape: tuple[int, ...], matrix: Array, displacement: Array | None
) -> tuple[Array, ...]:
    """For each axis, where on it each voxel comes from, `[D, H, W]`, within the block."""
    offsets = []
    for axis, n in enumerate(shape):
        offset = jnp.arange(n, dtype=matrix.dtype) - (n - 1) / 2
        offsets.append(offset.reshape([-1 if i == axis else 1 for i in range(3)]))
    found = []
    for axis, n in enumerate(shape):
        x, y, z = (matrix[axis, i] * offsets[i] for i in range(3))
        along = x + y + z + ((n - 1) / 2 + matrix[axis, 3])
        if displacement is not None:
            along = along + displacement[..., axis]
        found.append(_mirrored(along, n))
    return tuple(found)


def _mirrored(coordinate: Array, n: int) -> Array:
    """The coordinate between 0 and n - 1 that one anywhere on an axis is the mirror image of."""
    last = n - 1
    if last == 0:
        return jnp.zeros_like(coordinate)
    folded = coordinate - 2 * last * jnp.floor(coordinate / (2 * last))
    return jnp.clip(last - jnp.abs(folded - last), 0, last)  # rounding may leave it by a hair


def _linear(image: Array, coordinates: tuple[Array, ...]) -> Array:
    shape, channels = image.shape[:3], image.shape[3]
    flat = image.reshape(-1, channels)
    index = jnp.zeros(shape, jnp.int32)
    strides = list[int]()
    shares = list[Array]()
    for coordinate, n in zip(coordinates, shape, strict=True):
        # The last voxel is the upper corner of the cell before it, so that the upper corners are
        # one stride away everywhere.
        low = jnp.minimum(coordinate.astype(jnp.int32), max(n - 2, 0))
        index = index * n + low
        strides = [stride * n for stride in strides] + [min(1, n - 1)]
        shares.append((coordinate - low)[..., None].astype(image.dtype))

    def corner(offset: int, axis: int) -> Array:
        if axis == 3:
            return flat.at[index + offset].get(mode="promise_in_bounds")
        low, high = corner(offset, axis + 1), corner(offset + strides[axis], axis + 1)
        # In this form a share of 0 or 1 gives a voxel's very value.
        return low * (1 - shares[axis]) + high * shares[axis]

    return corner(0, 0)


def _nearest(label: Array, coordinates: tuple[Array, ...]) -> Array:
    index = jnp.zeros(label.shape, jnp.int32)
    for coordinate, n in zip(coordinates, label.shape, strict=True):
        index = index * n + (coordinate + 0.5).astype(jnp.int32)
    return label.reshape(-1).at[index].get(mode="promise_in_bounds")
