"""Nearest upsampling, and the convolution that follows it in a VNet, in one.

Arrays are channels-last, `[B, D, H, W, C]`.
"""

import jax.numpy as jnp
from jax import Array

from voxtune.models.layers import Conv


def repeat_voxels(x: Array) -> Array:
    """Each voxel twice along each axis: `[B, D, H, W, C]` → `[B, 2D, 2H, 2W, C]`."""
    batch, depth, height, width, channels = x.shape
    blocks = jnp.broadcast_to(
        x[:, :, None, :, None, :, None], (batch, depth, 2, height, 2, width, 2, channels)
    )
    return blocks.reshape(batch, 2 * depth, 2 * height, 2 * width, channels)


def _folded(kernel: Array, axis: int) -> Array:
    """Kernel of two taps along an axis → `[..., neighbour, parity, ...]` in the axis's place.

    Of the two voxels that one becomes, the first (parity 0) sees its own twice, the second sees
    its own and the neighbour behind.
    """
    first, second = jnp.take(kernel, 0, axis), jnp.take(kernel, 1, axis)
    own = jnp.stack([first + second, first], axis)
    behind = jnp.stack([jnp.zeros_like(second), second], axis)
    return jnp.stack([own, behind], axis)


def conv_repeated(x: Array, kernel: Array) -> Array:
    """`repeat_voxels`, then a 2x2x2 convolution with padding "same" (its zeros lie behind).

    A voxel becomes eight that see nothing but itself and its neighbours behind: one matrix product
    `[BDHW, 8C] @ [8C, 8O]` of as many operations, without the repeated volume. On two CPU cores,
    16³ voxels, 32 to 16 channels: 4 ms against 41 for the plain two, their gradients 11 against 76.

    Args:
        x: `[B, D, H, W, C]`.
        kernel: `[2, 2, 2, C, O]`; sums of its taps are taken in its own type.

    Returns:
        `[B, 2D, 2H, 2W, O]`.
    """
    batch, depth, height, width, channels = x.shape
    filters = kernel.shape[-1]
    for axis in (2, 1, 0):  # from behind, since each puts two axes in the place of one
        kernel = _folded(kernel, axis)
    # Now [neighbour, parity] for each axis in turn, then C and O.
    matrix = kernel.transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(8 * channels, 8 * filters)
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 1), (0, 0)))
    seen = jnp.concatenate(
        [
            padded[:, i : i + depth, j : j + height, k : k + width]
            for i in range(2)
            for j in range(2)
            for k in range(2)
        ],
        axis=-1,
    )
    y = seen @ matrix.astype(x.dtype)
    y = y.reshape(batch, depth, height, width, 2, 2, 2, filters).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return y.reshape(batch, 2 * depth, 2 * height, 2 * width, filters)


class RepeatConv(Conv):
    """`UpSampling3D` of 2 and then `Conv3D` with a kernel of 2, padding "same", as in Keras."""

    def linear(self, x: Array) -> Array:
        """`[B, D, H, W, C]` → `[B, 2D, 2H, 2W, O]`, without bias."""
        return conv_repeated(x, self.kernel[...])
