"""Doubling the resolution, a join with the skip connection and a convolution, in one.

Arrays are channels-last, `[B, D, H, W, C]`.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from voxtune.models.lowering import conv, lowering_of
from voxtune.models.up_slices import up_conv_slices

# A TPU rounds products to bfloat16 unless told not to.
_exact_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def _joint_kernel(up: Array, kernel: Array) -> Array:
    """The two convolutions are a transposed one of stride 2: its kernel.

    Coarse voxel i gives to fine voxels 2i - 1 to 2i + 2: by tap a of the first, which makes 2i + a,
    and tap d of the second, which takes it to 2i + a - d + 1.

    Args:
        up: `[2, 2, 2, C, U]`.
        kernel: `[3, 3, 3, U, O]`.

    Returns:
        `[C, 4, 4, 4, O]`.
    """
    joint = _exact_einsum("xyzcu,defuo->xyzcdefo", up, kernel[::-1, ::-1, ::-1])
    for _ in range(3):  # the leading axis goes into that of the second's taps
        joint = _both(joint[0], joint[1], axis=3)
    return joint


def _both(first: Array, second: Array, axis: int) -> Array:
    """What the two voxels that one becomes get, by the place of who sees it: 3 → 4 on an axis."""
    before, behind = (
        [(n, 1 - n) if each == axis else (0, 0) for each in range(first.ndim)] for n in (1, 0)
    )
    return jnp.pad(first, behind) + jnp.pad(second, before)


def _by_phase(joint: Array) -> Array:
    """`[C, 4, 4, 4, O]` → `[phase D, H, W, seen D, H, W, C, O]`, each of two.

    Fine voxel 2i + p sees coarse voxels i + p - 1 + q, by place 3 - p - 2q of the kernel.
    """
    channels, *_, filters = joint.shape
    joint = joint[:, ::-1, ::-1, ::-1].reshape(channels, 2, 2, 2, 2, 2, 2, filters)
    return joint.transpose(2, 4, 6, 1, 3, 5, 0, 7)


def _part(x: Array, start: Sequence[int], sizes: Sequence[int]) -> Array:
    """A box of all channels."""
    (d, h, w), (depth, height, width) = start, sizes
    return x[:, d : d + depth, h : h + height, w : w + width]


def _up_conv(x: Array, joint: Array) -> Array:
    """What a fine volume sees of a coarse one, phase by phase.

    Args:
        x: the coarse one, `[B, D, H, W, C]`.
        joint: see `_joint_kernel`.

    Returns:
        `[B, 2D, 2H, 2W, O]`.
    """
    (batch, *coarse), kernels = x.shape[:4], _by_phase(joint)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
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


def _added(x: Array, joint: Array, skip: Array, of_skip: Array, bias: Array) -> Array:
    """What a fine volume sees of a coarse one and of the skip connection, and the bias."""
    up_conv = up_conv_slices if lowering_of(of_skip.shape) == "slices" else _up_conv
    joint, of_skip, bias = (each.astype(x.dtype) for each in (joint, of_skip, bias))
    return up_conv(x, joint) + conv(skip, of_skip) + bias


def pays(x: Array, up_kernel: Array, kernel: Array) -> bool:
    """Whether `conv_of_up_and_skip` is faster than its parts. Arguments as there.

    So it is where convolutions are loops over depth slices, and the volume outweighs the folding of
    the kernels.
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
) -> Array:
    """`conv(concatenate([skip, up(x)])) + bias`, where `up` is a transposed convolution of 2.

    Between `up` and the convolution there is no activation, so the two are one linear map: a
    2x2x2 convolution of the coarse volume for each of eight phases. It takes 8/27 of the
    convolution's operations on `up`'s channels, and the fine volume of `up` is never made. The
    kernels have to be folded at each step, 216 products `[C, U] @ [U, O]`, as many operations as
    the convolution needs for C coarse voxels: so it pays for large blocks alone.

    Args:
        x: `[B, D, H, W, C]`.
        skip: `[B, 2D, 2H, 2W, S]`.
        up_kernel: `[2, 2, 2, C, U]`.
        up_bias: `[U]`.
        kernel: `[3, 3, 3, S + U, O]`.
        bias: `[O]`.

    Returns:
        `[B, 2D, 2H, 2W, O]`, of the type of `x`; kernels are folded in their own type.
    """
    skips = skip.shape[-1]
    of_skip, of_up = kernel[..., :skips, :], kernel[..., skips:, :]
    # A channel of ones carries the bias: beside the volume it is zero, as `up` is there.
    with_ones = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    with_bias = jnp.concatenate(
        [up_kernel, jnp.broadcast_to(up_bias, (2, 2, 2, 1, len(up_bias)))], axis=3
    )
    return _added(with_ones, _joint_kernel(with_bias, of_up), skip, of_skip, bias)


def repeated_pays(x: Array, kernel: Array) -> bool:
    """Whether `conv_of_repeated_and_skip` is faster than its parts. Arguments as there.

    With 384 channels of 2x2x2 voxels it took 2.6 times as long, with their gradients, and with 192
    of 4x4x4 and fewer of more 0.6 to 0.9 times (two CPU cores).
    """
    voxels = math.prod(x.shape[:4])
    return lowering_of(kernel.shape) == "slices" and 4 * voxels >= x.shape[-1]


def conv_of_repeated_and_skip(x: Array, skip: Array, kernel: Array, bias: Array) -> Array:
    """`conv(concatenate([skip, repeat_voxels(x)])) + bias`: as above, and nothing to be multiplied.

    A voxel and its repetition are under two taps at once, whose sum is what counts.

    Args:
        x: `[B, D, H, W, C]`.
        skip: `[B, 2D, 2H, 2W, S]`.
        kernel: `[3, 3, 3, S + C, O]`.
        bias: `[O]`.

    Returns:
        `[B, 2D, 2H, 2W, O]`, of the type of `x`; sums of taps are taken in their own type.
    """
    skips = skip.shape[-1]
    of_skip, joint = kernel[..., :skips, :], kernel[::-1, ::-1, ::-1, skips:]
    for axis in range(3):
        joint = _both(joint, joint, axis)
    return _added(x, joint.transpose(3, 0, 1, 2, 4), skip, of_skip, bias)
