"""Random weights and random shares: how they are drawn, and how far they are from a prior.

What is random follows a normal distribution, or a Bernoulli one where values are dropped. A
divergence is that of Kullback and Leibler, in nats, summed over all weights.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Linear = Callable[[Array, Array], Array]  # input and kernel → result, in the type of the input
Keys = Callable[[], Array]  # a new random key each time

_LEAST = float(np.finfo(np.float32).eps)  # of TF Probability's standard deviations
_SMALL = 1e-7  # keeps logarithms of shares finite, in Nobrainer as in kwyk
TEMPERATURE = 0.02  # of concrete dropout
SHARES = (0.05, 0.95)  # bounds of what concrete dropout keeps


# --- drawing -----------------------------------------------------------------------------------


def scale_of(raw: Array) -> Array:
    """The standard deviation that TF Probability keeps as its inverse softplus."""
    return _LEAST + jax.nn.softplus(raw)


def drawn(mean: Array, scale: Array, key: Array) -> Array:
    """A draw of weights: the plain reparameterisation (Kingma and Welling 2014)."""
    return mean + scale * jax.random.normal(key, mean.shape, mean.dtype)


def flipout(
    linear: Linear, x: Array, mean: Array, scale: Array, keys: Keys, *, places: bool = False
) -> Array:
    """One kernel drawn for the batch, and signs for each example that make its noise its own.

    Flipout (Wen et al. 2018, arXiv 1803.04386), as TF Probability has it.

    Args:
        linear: what a kernel does.
        x: `[B, ..., C]`.
        mean: `[..., C, O]`, of the kernel.
        scale: likewise, its standard deviation.
        keys: source of random keys.
        places: whether each place has signs of its own too, as in dense layers.

    Returns:
        `[B, ..., O]`.
    """
    result = linear(x, mean)
    noise = drawn(jnp.zeros_like(mean), scale, keys())
    batch = (x.shape[0], *(x.shape[1:-1] if places else (1,) * (x.ndim - 2)))
    sign_in = jax.random.rademacher(keys(), (*batch, x.shape[-1]), x.dtype)
    sign_out = jax.random.rademacher(keys(), (*batch, result.shape[-1]), result.dtype)
    return result + linear(x * sign_in, noise) * sign_out


def locally_drawn(
    linear: Linear,
    x: Array,
    kernel: tuple[Array, Array],
    bias: tuple[Array, Array],
    keys: Keys,
) -> Array:
    """Draws results in the place of weights: the local reparameterisation, as kwyk has it.

    A result is normal, with the mean `linear(x, mean)` and the variance `linear(x², scale²)`, to
    each of which the bias adds its own. Kingma et al. (2015, arXiv 1506.02557) draw each result
    by itself; kwyk (McClure et al. 2019) draws one number for each filter, which all places and
    examples share.

    Args:
        linear: what a kernel does.
        x: `[B, ..., C]`.
        kernel: mean and standard deviation, `[..., C, O]` each.
        bias: mean and standard deviation, `[O]` each.
        keys: source of random keys.

    Returns:
        `[B, ..., O]`.
    """
    mean = linear(x, kernel[0])
    variance = linear(x * x, kernel[1] ** 2)
    wide = jnp.promote_types(variance.dtype, jnp.float32)
    spread = jnp.sqrt(variance.astype(wide) + bias[1] ** 2 + 1e-8)
    noise = spread * jax.random.normal(keys(), bias[0].shape, bias[0].dtype)
    return mean + (bias[0] + noise).astype(mean.dtype)


def weight_norm(direction: Array, length: Array) -> Array:
    """Kernels of a given length each: g v / |v| (Salimans and Kingma 2016, arXiv 1602.07868).

    Args:
        direction: v, `[..., C, O]`; its length has no say.
        length: g, `[1, ..., 1, O]`.
    """
    squares = (direction**2).sum(range(direction.ndim - 1), keepdims=True)
    return length * direction * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def kept(x: Array, share: float, keys: Keys | None) -> Array:
    """Values each kept with a probability, and not scaled; without keys what is to be expected."""
    if keys is None:
        return x * share
    return jnp.where(jax.random.bernoulli(keys(), share, x.shape), x, 0)


def concretely_kept(x: Array, shares: Array, keys: Keys | None) -> Array:
    """`kept` with a probability for each channel that gradients reach.

    Concrete dropout (Gal et al. 2017, arXiv 1705.07832): a value is multiplied by
    `sigmoid((log(p / (1 - p)) + log(u / (1 - u))) / 0.02)`, u uniform between 0 and 1, which is
    nearly always close to 0 or 1.

    Args:
        x: `[B, ..., C]`.
        shares: p, `[C]`; counts as 0.05 or 0.95 beyond these.
        keys: source of random keys; None for what is to be expected, `p x`.

    Returns:
        `[B, ..., C]`, of the type of `x`.
    """
    shares = jnp.clip(shares, *SHARES)
    if keys is None:
        return x * shares.astype(x.dtype)
    uniform = jax.random.uniform(keys(), x.shape, shares.dtype)
    return x * jax.nn.sigmoid((_logit(shares) + _logit(uniform)) / TEMPERATURE).astype(x.dtype)


def _logit(share: Array) -> Array:
    return jnp.log(share + _SMALL) - jnp.log(1 - share + _SMALL)


# --- divergences -------------------------------------------------------------------------------


def normal_divergence(
    mean: Array, scale: Array, prior_mean: Array | float = 0.0, prior_scale: Array | float = 1.0
) -> Array:
    """KL of a normal distribution to another, summed: a scalar.

    `Σ log(s' / s) + (s² + (m - m')²) / (2 s'²) - 1/2`, the prior's m' and s' with a prime.
    """
    ratio = scale / prior_scale
    distance = (mean - prior_mean) / prior_scale
    return (0.5 * (ratio**2 + distance**2 - 1) - jnp.log(ratio)).sum()


def learned_divergence(mean: Array, scale: Array, prior_mean: Array, prior_raw: Array) -> Array:
    """`normal_divergence` to a prior that is learned, and what Nobrainer adds to it.

    The prior's one standard deviation is `1e-4 + softplus(raw)`. It has a prior of its own, log
    normal around 1 with a width of 1, whose negative logarithm is added once for each weight.
    """
    prior_scale = 1e-4 + jax.nn.softplus(prior_raw)
    log = jnp.log(prior_scale)
    surprise = (log + 0.5 * log**2 + 0.5 * math.log(2 * math.pi)).sum()
    return normal_divergence(mean, scale, prior_mean, prior_scale) + mean.size * surprise


def bernoulli_divergence(shares: Array) -> Array:
    """KL of what concrete dropout keeps to a half, summed: a scalar."""
    shares = jnp.clip(shares, *SHARES)
    half = math.log(0.5)
    on = shares * (jnp.log(shares + _SMALL) - half)
    off = (1 - shares) * (jnp.log(1 - shares + _SMALL) - half)
    return (on + off).sum()
