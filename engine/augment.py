"""Random changes of training blocks, on the device, the same for image and label."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def augment(
    key: Array, image: Array, label: Array, flip_axes: Sequence[int]
) -> tuple[Array, Array]:
    """Flips each block along each of some axes with probability a half, and varies intensities.

    Of each channel by itself contrast is multiplied by 0.75 to 1.25 round the block's mean,
    brightness shifted by up to a tenth of the block's standard deviation, and Gaussian noise of up
    to a tenth of it added: the ranges of nnU-Net's contrast and noise (Isensee et al. 2021),
    rounded.

    Args:
        key: a JAX key; the same key makes the same changes.
        image: float `[B, D, H, W, C]`.
        label: `[B, D, H, W]`.
        flip_axes: spatial axes, 0 to 2, along which a flipped head is still a plausible head.

    Returns:
        Image and label, shapes and types unchanged.
    """
    keys = jax.random.split(key, image.shape[0])
    return jax.vmap(partial(_augment_one, flip_axes=flip_axes))(keys, image, label)


def _augment_one(
    key: Array, image: Array, label: Array, flip_axes: Sequence[int]
) -> tuple[Array, Array]:
    flip, contrast, shift, noise_size, noise = jax.random.split(key, 5)
    flipped = jax.random.bernoulli(flip, shape=(3,))
    for axis in flip_axes:
        image = jnp.where(flipped[axis], jnp.flip(image, axis), image)
        label = jnp.where(flipped[axis], jnp.flip(label, axis), label)
    space, channels = (0, 1, 2), image.shape[-1:]
    mean, spread = image.mean(space), image.std(space)
    image = (image - mean) * jax.random.uniform(contrast, channels, minval=0.75, maxval=1.25) + mean
    image = image + spread * jax.random.uniform(shift, channels, minval=-0.1, maxval=0.1)
    size = spread * jax.random.uniform(noise_size, channels, maxval=0.1)
    return image + size * jax.random.normal(noise, image.shape, image.dtype), label
