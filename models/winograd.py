"""Four voxels of a row from six products in the place of twelve: Winograd's F(4, 3) along width.

Cook and Toom's polynomial product (Lavin and Gray 2016, arXiv 1509.09308), at 0, 1, -1, 1/2, -2 and
infinity: with 2 and -2, as is usual, errors are up to twice as large (256 channels). They are two
to four times those of the plain sum, 6e-7 to 1.2e-6 of the largest value in float32.

It takes half of the products, and half of the rows that are gathered for them. Measured and left
out: the same along depth, where rows are gathered six times for four slices, which is faster from
64 channels on alone, by a sixth; F(2, 3), two thirds of the products, slower throughout; sums over
depth before they are turned to voxels, a tenth to a fifth slower; the image's sums for the whole
volume at once, slower with 16 and 21 channels.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array, lax

_VOXELS = 4  # that are found together
_LEAST = 2e9  # operations of a convolution
_FEWEST = 16  # channels: 16 to 16 or 32 take a quarter to a third less time (96³)
# Six sums of six neighbours in a row, the second of which is the first of the four.
_OF_IMAGE = (
    (1, -3 / 2, -2, 3 / 2, 1, 0),
    (0, -4 / 3, 2 / 3, 10 / 3, 4 / 3, 0),
    (0, -4 / 3, 10 / 3, -2 / 3, -4 / 3, 0),
    (0, 64 / 15, 32 / 15, -64 / 15, -32 / 15, 0),
    (0, 4 / 15, -8 / 15, -4 / 15, 8 / 15, 0),
    (0, 1, -3 / 2, -2, 3 / 2, 1),
)
_OF_KERNEL = (
    (1, 0, 0),
    (1 / 4, 1 / 4, 1 / 4),
    (1 / 4, -1 / 4, 1 / 4),
    (1 / 2, 1 / 4, 1 / 8),
    (1 / 8, -1 / 4, 1 / 2),
    (0, 0, 1),
)
_OF_PRODUCTS = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, -2, 0),
    (0, 1, 1, 1 / 4, 4, 0),
    (0, 1, -1, 1 / 8, -8, 1),
)


def _sum(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    """Of the arrays whose weight is not zero."""
    pairs = zip(weights, arrays, strict=True)
    first, *rest = (each if weight == 1 else weight * each for weight, each in pairs if weight)
    return sum(rest, start=first)


def pays(x: Array, kernel: Array, dilation: int) -> bool:
    """Whether it is the faster way, and exact enough; arguments as in `slice_products`.

    With few channels the sums round the products take longer than the products saved; voxels
    beside the volume, which wide dilations add and the last four of a row, cost what others do;
    bfloat16 would lose too much; and it compiles for twice as long, half a second more, which a
    small volume does not repay.
    """
    *_, width, channels = x.shape
    filters = kernel.shape[-1]
    whole = _VOXELS * dilation * -(-width // (_VOXELS * dilation))
    fits = whole <= 1.2 * width and 8 * dilation <= width
    wide = min(x.dtype.itemsize, kernel.dtype.itemsize) >= 4
    large = 2 * 27 * filters * math.prod(x.shape) >= _LEAST
    return wide and fits and large and min(channels, filters) >= _FEWEST


def slice_products(x: Array, kernel: Array, dilation: int) -> Callable[[Array], Array]:
    """What a 3x3x3 convolution takes from each depth slice.

    Args:
        x: `[B, D, H, W, C]`.
        kernel: `[3, 3, 3, C, O]`.
        dilation: distance of the taps, voxels.

    Returns:
        A function from a slice's index to `[B, H, W, 3O]`, for the three depth taps side by side.
    """
    (batch, depth, height, width, channels), gap = x.shape, dilation
    groups = -(-width // (_VOXELS * gap))
    # Voxel `(4 group + place) * gap + offset` of a row: those of a group are `gap` apart.
    behind = (groups + 1) * _VOXELS * gap - width - gap
    padded = jnp.pad(x, ((0, 0), (0, 0), (gap, gap), (gap, behind), (0, 0)))
    shape = batch, depth, height + 2 * gap, groups + 1, _VOXELS, gap, channels
    padded, row = padded.reshape(shape), groups * gap
    taps = jnp.einsum(
        "pw,dhwco->phcdo",
        jnp.asarray(_OF_KERNEL, kernel.dtype),
        kernel,
        precision=lax.Precision.HIGHEST,
    ).reshape(len(_OF_KERNEL), 3 * channels, -1)

    def products(index: Array) -> Array:
        plane = lax.dynamic_index_in_dim(padded, index, 1, keepdims=False)
        seen = [plane[:, :, :-1, place] for place in range(_VOXELS)]
        seen += [plane[:, :, 1:, place] for place in range(len(_OF_IMAGE) - _VOXELS)]
        # One after the other would compile for a third longer.
        sums = jnp.stack([_sum(weights, seen) for weights in _OF_IMAGE])
        sums = sums.reshape(len(_OF_IMAGE), batch, -1, row, channels)
        shifts = [sums[:, :, i * gap : i * gap + height] for i in range(3)]
        found = jnp.einsum("pbhwi,pio->pbhwo", jnp.concatenate(shifts, axis=-1), taps)
        fours = [_sum(weights, tuple(found)) for weights in _OF_PRODUCTS]
        fours = [each.reshape(batch, height, groups, gap, -1) for each in fours]
        return jnp.stack(fours, axis=3).reshape(batch, height, _VOXELS * row, -1)[:, :, :width]

    return products
