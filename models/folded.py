"""A transposed convolution, a join with the skip connection and a convolution, in one.

Arrays are channels-last, `[B, D, H, W, C]`.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from voxtune.models.lowering import conv, lowering_of

# A TPU rounds products to bfloat16 unless told not to.
_exact_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def _phases(products: Array) -> Array:
    """Sums by phase and coarse voxel along one axis: `[part, tap, ...]` → `[phase, seen, ...]`.

    A coarse voxel i has the parts 0 and 1, fine voxels 2i and 2i + 1. By its taps 0, 1, 2 a
    convolution at phase 0 sees part 1 of i - 1, then both parts of i; at phase 1 both parts of i,
    then part 0 of i + 1.
    """
    first = jnp.stack([products[1, 0], products[0, 1] + products[1, 2]])
    second = jnp.stack([products[0, 0] + products[1, 1], products[0, 2]])
    return jnp.stack([first, second])


def _phase_kernels(up: Array, kernel: Array) -> Array:
    """What each of eight phases sees of the eight coarse voxels round it.

    Args:
        up: `[2, 2, 2, C, U]`.
        kernel: `[3, 3, 3, U, O]`.

    Returns:
        `[phase D, H, W, seen D, H, W, C, O]`, each of two.
    """
    products = _exact_einsum("xyzcu,defuo->xdyezfco", up, kernel)
    for _ in range(3):  # the two leading axes go behind the other two pairs
        products = jnp.moveaxis(_phases(products), (0, 1), (4, 5))
    return products.transpose(0, 2, 4, 1, 3, 5, 6, 7)


def _inside(size: int, dtype: jnp.dtype) -> Array:
    """`[size, 3]`: 1 where a tap of a voxel lies in the volume, else 0."""
    seen = jnp.arange(size)[:, None] + jnp.arange(-1, 2)
    return ((seen >= 0) & (seen < size)).astype(dtype)


def _part(x: Array, start: Sequence[int], sizes: Sequence[int]) -> Array:
    """A box of all channels."""
    (d, h, w), (depth, height, width) = start, sizes
    return x[:, d : d + depth, h : h + height, w : w + width]


def _of_up(padded: Array, kernels: Array) -> Array:
    """What a fine volume sees of a coarse one, phase by phase.

    Args:
        padded: the coarse one, `[B, D + 2, H + 2, W + 2, C]`.
        kernels: see `_phase_kernels`.

    Returns:
        `[B, 2D, 2H, 2W, O]`.
    """
    batch, *coarse = padded.shape[0], *(size - 2 for size in padded.shape[1:4])
    pairs = list(itertools.product(range(2), repeat=3))
    phases = []
    for phase in pairs:
        seen = [
            _part(padded, [p + q for p, q in zip(phase, each, strict=True)], coarse)
            for each in pairs
        ]
        matrix = kernels[phase].reshape(-1, kernels.shape[-1])
        phases.append(jnp.concatenate(seen, axis=-1) @ matrix)
    y = jnp.stack(phases).reshape(2, 2, 2, batch, *coarse, -1)
    y = y.transpose(3, 4, 0, 5, 1, 6, 2, 7)
    return y.reshape(batch, *(2 * size for size in coarse), -1)


def _of_up_slices(padded: Array, kernels: Array) -> Array:
    """`_of_up` in a loop over coarse depth slices, whose rows stay in cache."""
    batch, *coarse = padded.shape[0], *(size - 2 for size in padded.shape[1:4])

    def put_slice(index: Array, out: Array) -> Array:
        planes = lax.dynamic_slice_in_dim(padded, index, 3, axis=1)
        return lax.dynamic_update_slice_in_dim(out, _of_up(planes, kernels), 2 * index, axis=1)

    shape = (batch, *(2 * size for size in coarse), kernels.shape[-1])
    return lax.fori_loop(0, coarse[0], put_slice, jnp.zeros(shape, padded.dtype))


def pays_without_gradients(x: Array, up_kernel: Array, kernel: Array) -> bool:
    """Whether `conv_of_up_and_skip` by slices is the faster way to a result alone.

    Where convolutions are loops over depth slices, and the volume outweighs the folding of the
    kernels. Arguments as there.
    """
    voxels = math.prod(x.shape[:4])
    return lowering_of(kernel.shape) == "slices" and voxels >= 16 * up_kernel.shape[-2]


def conv_of_up_and_skip(
    x: Array,
    skip: Array,
    up_kernel: Array,
    up_bias: Array,
    kernel: Array,
    bias: Array,
    *,
    slices: bool = False,
) -> Array:
    """`conv(concatenate([skip, up(x)])) + bias`, where `up` is a transposed convolution of 2.

    Between `up` and the convolution there is no activation, so the two are one linear map: a
    2x2x2 convolution of the coarse volume for each of eight phases. It takes 8/27 of the
    convolution's operations on `up`'s channels, and the fine volume of `up` is never made. What
    `up`'s bias adds depends on how many taps lie inside the volume. The kernels have to be folded
    at each step, 216 products `[C, U] @ [U, O]`, as many operations as the convolution needs for C
    coarse voxels: so it pays for large blocks alone.

    Args:
        x: `[B, D, H, W, C]`.
        skip: `[B, 2D, 2H, 2W, S]`.
        up_kernel: `[2, 2, 2, C, U]`.
        up_bias: `[U]`.
        kernel: `[3, 3, 3, S + U, O]`.
        bias: `[O]`.
        slices: whether to go over coarse depth slices: faster and in less memory on CPUs, for what
            needs no gradient.

    Returns:
        `[B, 2D, 2H, 2W, O]`, of the type of `x`; kernels are folded in their own type.
    """
    *fine, skips = skip.shape[1:]
    of_skip, of_up = kernel[..., :skips, :], kernel[..., skips:, :]
    kernels = _phase_kernels(up_kernel, of_up).astype(x.dtype)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
    y = (_of_up_slices if slices else _of_up)(padded, kernels)
    inside = (_inside(size, up_bias.dtype) for size in fine)
    border = _exact_einsum("defuo,u->defo", of_up, up_bias)
    added = _exact_einsum("xd,ye,zf,defo->xyzo", *inside, border) + bias
    return y + conv(skip, of_skip.astype(x.dtype)) + added.astype(x.dtype)
