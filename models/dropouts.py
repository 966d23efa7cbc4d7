"""Layers that are random in training and do nothing in prediction."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from voxtune.models.kind import (
    REQUIRED,
    Config,
    Inputs,
    Kind,
    Mode,
    Shape,
    Weights,
    need_rank,
    spatial_names,
)
from voxtune.models.posterior import bernoulli_divergence, concretely_kept, kept

# Of SELU: what AlphaDropout drops becomes -alpha scale, the value of SELU far on the left.
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _noise_shape(given: Sequence[int | None] | None, shape: Shape) -> Shape:
    """The shape in which values are drawn; None in it is the input's own size."""
    if given is None:
        return shape
    return tuple(n if each is None else each for each, n in zip(given, shape, strict=True))


def drop(x: Array, rate: float, shape: Shape, mode: Mode) -> Array:
    """Sets a share of the values to zero, and scales the others to keep the mean.

    Args:
        x: any array.
        rate: the share.
        shape: the shape in which it is drawn what is dropped, spread over `x`.
        mode: nothing is dropped unless it `draws`.
    """
    if not mode.draws or rate == 0:
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    kept = jax.random.bernoulli(mode.key(), 1 - rate, shape)
    return jnp.where(kept, x / (1 - rate), 0)


def _dropout(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    return drop(x, config["rate"], _noise_shape(config["noise_shape"], x.shape), mode)


def _spatial_dropout(axes: int) -> Kind:
    def compute(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
        (x,) = inputs
        need_rank(x.shape, axes + 2)
        return drop(x, config["rate"], (x.shape[0], *(1,) * axes, x.shape[-1]), mode)

    return Kind(compute, settings={"rate": REQUIRED}, summary=_SUMMARY, narrow=True)


def _gaussian_noise(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    if not mode.draws or config["stddev"] == 0:
        return x
    return x + config["stddev"] * jax.random.normal(mode.key(), x.shape, x.dtype)


def _gaussian_dropout(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    rate = config["rate"]
    if not mode.draws or rate == 0:
        return x
    spread = math.sqrt(rate / (1 - rate))
    return x * (1 + spread * jax.random.normal(mode.key(), x.shape, x.dtype))


def _alpha_dropout(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    """Drops to SELU's lowest value, then restores the mean and variance of SELU's fixed point."""
    (x,) = inputs
    rate = config["rate"]
    if not mode.draws or rate == 0:
        return x
    low = -_SELU_ALPHA * _SELU_SCALE
    shape = _noise_shape(config["noise_shape"], x.shape)
    kept = jax.random.bernoulli(mode.key(), 1 - rate, shape)
    scale = ((1 - rate) * (1 + rate * low**2)) ** -0.5
    return scale * jnp.where(kept, x, low) - scale * low * rate


def _bernoulli_dropout(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    """Nobrainer's; without Monte Carlo it never drops, and scales by what it would keep."""
    (x,), share = inputs, 1 - config["rate"]
    draws = mode.draws and config["is_monte_carlo"]
    if config["scale_during_training"]:
        return kept(x, share, mode.key) / share if draws else x
    return kept(x, share, mode.key if draws else None)


def _concrete_dropout(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    return concretely_kept(inputs[0], weights["p"], mode.key if mode.draws else None)


def _concrete_divergence(config: Config, weights: Weights) -> Array:
    return bernoulli_divergence(weights["p"])


_SUMMARY = "dropout and noise"
_RATE = {"rate": REQUIRED, "noise_shape": None}
KINDS: Mapping[str, Kind] = {
    "Dropout": Kind(_dropout, settings=_RATE, summary=_SUMMARY, narrow=True),
    **spatial_names("SpatialDropout{}", _spatial_dropout),
    "GaussianNoise": Kind(_gaussian_noise, settings={"stddev": REQUIRED}, summary=_SUMMARY),
    "GaussianDropout": Kind(_gaussian_dropout, settings={"rate": REQUIRED}, summary=_SUMMARY),
    "AlphaDropout": Kind(_alpha_dropout, settings=_RATE, summary=_SUMMARY),
    "BernoulliDropout": Kind(
        _bernoulli_dropout,
        settings={"rate": REQUIRED, "is_monte_carlo": REQUIRED, "scale_during_training": True},
        summary=_SUMMARY,
        narrow=True,
    ),
    "ConcreteDropout": Kind(
        _concrete_dropout,
        lambda config, inputs: {"p": inputs[0][-1:]},
        summary=_SUMMARY,
        narrow=True,
        divergence=_concrete_divergence,
    ),
}
