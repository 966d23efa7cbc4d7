"""TF Probability's variational layers: each weight a normal distribution.

In prediction the mean of each weight is used; in training weights are drawn. TF Probability draws
in both.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from voxtune.models.convolutions import conv_window, convolve, finish
from voxtune.models.kind import (
    REQUIRED,
    Config,
    Inputs,
    Kind,
    Mode,
    Shape,
    Shapes,
    Weights,
    per_axis,
    pointwise,
    spatial_names,
)

Linear = Callable[[Array, Array, Config], Array]  # input, kernel and settings → result


def _noise(weights: Weights, name: str, mode: Mode) -> Array:
    """What is added to the mean of a weight when it is drawn."""
    raw = weights[f"{name}_posterior_untransformed_scale"]
    scale = float(np.finfo(np.float32).eps) + jax.nn.softplus(raw)
    return scale * jax.random.normal(mode.key(), raw.shape, raw.dtype)


def _bias(config: Config, weights: Weights, mode: Mode) -> Array | None:
    if not config["use_bias"]:
        return None
    mean = weights["bias_posterior_loc"]
    return mean + _noise(weights, "bias", mode) if mode.train and config["random_bias"] else mean


def _reparameterized(
    linear: Linear, config: Config, weights: Weights, inputs: Inputs, mode: Mode
) -> Array:
    kernel = weights["kernel_posterior_loc"]
    if mode.train:
        kernel = kernel + _noise(weights, "kernel", mode)
    return finish(linear(inputs[0], kernel, config), config, _bias(config, weights, mode))


def _flipped(linear: Linear, config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    """Draws one kernel for the batch, and signs for each example that make its noise its own.

    Flipout (Wen et al. 2018, arXiv 1803.04386). A dense layer has signs for each place too, as in
    TF Probability.
    """
    (x,) = inputs
    result = linear(x, weights["kernel_posterior_loc"], config)
    if mode.train:
        noise = _noise(weights, "kernel", mode)
        between = x.shape[1:-1] if linear is _matmul else (1,) * (x.ndim - 2)
        sign_in = _signs(mode, (x.shape[0], *between, x.shape[-1]), x.dtype)
        sign_out = _signs(mode, (x.shape[0], *between, result.shape[-1]), x.dtype)
        result = result + linear(x * sign_in, noise, config) * sign_out
    return finish(result, config, _bias(config, weights, mode))


def _signs(mode: Mode, shape: Shape, dtype: jnp.dtype) -> Array:
    return jax.random.rademacher(mode.key(), shape, dtype)


def _matmul(x: Array, kernel: Array, config: Config) -> Array:
    return x @ kernel


def _shapes(kernel: Shape, config: Config) -> dict[str, Shape]:
    found = {"kernel_posterior_loc": kernel, "kernel_posterior_untransformed_scale": kernel}
    if config["use_bias"]:
        found["bias_posterior_loc"] = kernel[-1:]
        if config["random_bias"]:
            found["bias_posterior_untransformed_scale"] = kernel[-1:]
    return found


def _dense_shapes(config: Config, inputs: Shapes) -> dict[str, Shape]:
    return _shapes((inputs[0][-1], config["units"]), config)


# TF Probability's layers always have a bias of fixed value unless they are told otherwise.
_BIAS = {"use_bias": True, "random_bias": False, "activation": None}
_SUMMARY = "variational layers of TF Probability"


def _conv_kind(estimate: Callable[..., Array], axes: int) -> Kind:
    def shapes(config: Config, inputs: Shapes) -> dict[str, Shape]:
        size = per_axis(config["kernel_size"], axes, "kernel_size")
        return _shapes((*size, inputs[0][-1], config["filters"]), config)

    settings = {
        "filters": REQUIRED,
        "kernel_size": REQUIRED,
        "strides": 1,
        "padding": "valid",
        "dilation_rate": 1,
        **_BIAS,
    }
    return Kind(partial(estimate, convolve), shapes, conv_window, settings, {}, _SUMMARY)


def _dense_kind(estimate: Callable[..., Array]) -> Kind:
    settings = {"units": REQUIRED, **_BIAS}
    return Kind(partial(estimate, _matmul), _dense_shapes, pointwise, settings, {}, _SUMMARY)


KINDS: Mapping[str, Kind] = {
    **spatial_names("Conv{}Flipout", partial(_conv_kind, _flipped)),
    **spatial_names("Conv{}Reparameterization", partial(_conv_kind, _reparameterized)),
    "DenseFlipout": _dense_kind(_flipped),
    "DenseReparameterization": _dense_kind(_reparameterized),
}
