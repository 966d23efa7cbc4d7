"""A transposed convolution of stride 2 by a kernel of 4x4x4, as a loop over depth slices: for CPUs.

As `voxtune.models.depth_slices` does it.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import Array, lax

from voxtune.models.depth_slices import examples_apart, outer, strided_rows, summed, wide_type

Pair = tuple[Array, Array]


@jax.custom_vjp
def up_conv_slices(x: Array, kernel: Array) -> Array:
    """Coarse voxel i gives to fine voxels 2i - 1 to 2i + 2, along each axis.

    Args:
        x: `[B, D, H, W, C]`.
        kernel: `[C, 4, 4, 4, O]`.

    Returns:
        `[B, 2D, 2H, 2W, O]`.
    """
    (batch, depth, height, width, channels), filters = x.shape, kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    # In a plane, fine voxel 2i + p sees coarse voxels i + p - 1 + q, by place 3 - p - 2q:
    # [p of height and width, (q of both, C), (place in depth, O)].
    taps = kernel[:, :, ::-1, ::-1].reshape(channels, 4, 2, 2, 2, 2, filters)
    taps = taps.transpose(3, 5, 2, 4, 0, 1, 6).reshape(2, 2, 4 * channels, 4 * filters)
    pairs = list(itertools.product(range(2), repeat=2))

    def add_slice(index: Array, out: Array) -> Array:
        plane = lax.dynamic_index_in_dim(padded, index, 1, keepdims=False)
        phases = []
        for h, w in pairs:
            seen = [plane[:, h + i : h + i + height, w + j : w + j + width] for i, j in pairs]
            rows = jnp.concatenate(seen, axis=-1)
            phases.append(jnp.matmul(rows, taps[h, w], preferred_element_type=out.dtype))
        y = jnp.stack(phases).reshape(2, 2, batch, height, width, 4, filters)
        y = y.transpose(2, 5, 3, 0, 4, 1, 6).reshape(batch, 4, 2 * height, 2 * width, filters)
        y = y + lax.dynamic_slice_in_dim(out, 2 * index, 4, axis=1)
        return lax.dynamic_update_slice_in_dim(out, y, 2 * index, axis=1)

    fine = batch, 2 * depth + 2, 2 * height, 2 * width, filters
    out = lax.fori_loop(0, depth, add_slice, jnp.zeros(fine, wide_type(x, kernel)))
    return out[:, 1:-1].astype(x.dtype)


def _forward(x: Array, kernel: Array) -> tuple[Array, Pair]:
    return up_conv_slices(x, kernel), (x, kernel)


def _backward(residuals: Pair, gradient: Array) -> Pair:
    """Both from the 64 fine voxels that each coarse one gives to, gathered once."""
    x, kernel = residuals
    padded = jnp.pad(gradient, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
    taps = kernel.reshape(len(kernel), -1)
    wide = wide_type(x, gradient)

    def add_slice(index: Array, sofar: Pair) -> Pair:
        of_x, of_taps = sofar
        rows = strided_rows(padded, index, 4)
        here = jnp.matmul(rows, taps.T, preferred_element_type=wide)
        coarse = lax.dynamic_index_in_dim(x, index, 1, keepdims=False)
        of_x = lax.dynamic_update_index_in_dim(of_x, here, index, 1)
        return of_x, of_taps + outer(coarse, rows)

    start = jnp.zeros(x.shape, wide), jnp.zeros((*examples_apart(x), *taps.shape), wide)
    of_x, of_taps = lax.fori_loop(0, x.shape[1], add_slice, start)
    return of_x.astype(x.dtype), summed(of_taps).reshape(kernel.shape).astype(kernel.dtype)


up_conv_slices.defvjp(_forward, _backward)
