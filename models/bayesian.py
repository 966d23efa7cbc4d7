"""Layers whose weights are normal distributions: TF Probability's and kwyk's.

The mean of each weight is used, or a draw where there is a source of randomness. TF Probability
draws in prediction too. What is drawn, and how, stands in `voxtune.models.posterior`.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax.numpy as jnp
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
    like,
    per_axis,
    pointwise,
    spatial_names,
)
from voxtune.models.posterior import (
    drawn,
    flipout,
    learned_divergence,
    locally_drawn,
    normal_divergence,
    scale_of,
    weight_norm,
)

Estimate = Callable[[Array, Array, Config], Array]  # input, kernel and settings → result


def _scale(weights: Weights, name: str) -> Array:
    return scale_of(weights[f"{name}_posterior_untransformed_scale"])


def _bias(config: Config, weights: Weights, mode: Mode) -> Array | None:
    if not config["use_bias"]:
        return None
    mean = weights["bias_posterior_loc"]
    if not (mode.draws and config["random_bias"]):
        return mean
    return drawn(mean, _scale(weights, "bias"), mode.key())


def _reparameterized(
    linear: Estimate, config: Config, weights: Weights, inputs: Inputs, mode: Mode
) -> Array:
    kernel = weights["kernel_posterior_loc"]
    if mode.draws:
        kernel = drawn(kernel, _scale(weights, "kernel"), mode.key())
    return finish(linear(inputs[0], kernel, config), config, _bias(config, weights, mode))


def _flipped(
    linear: Estimate, config: Config, weights: Weights, inputs: Inputs, mode: Mode
) -> Array:
    """By `flipout`; a dense layer has signs for each place too, as in TF Probability."""
    (x,), mean = inputs, weights["kernel_posterior_loc"]
    if mode.draws:

        def once(x: Array, kernel: Array) -> Array:
            return linear(x, kernel, config)

        scale, places = _scale(weights, "kernel"), linear is _matmul
        result = flipout(once, x, mean, scale, mode.key, places=places)
    else:
        result = linear(x, mean, config)
    return finish(result, config, _bias(config, weights, mode))


def _matmul(x: Array, kernel: Array, config: Config) -> Array:
    return x @ like(kernel, x)


def _shapes(kernel: Shape, config: Config) -> dict[str, Shape]:
    found = {"kernel_posterior_loc": kernel, "kernel_posterior_untransformed_scale": kernel}
    if config["learned_prior"]:
        found |= {"kernel_prior_untransformed_scale": (1,), "kernel_prior_loc": kernel}
    if config["use_bias"]:
        found["bias_posterior_loc"] = kernel[-1:]
        if config["random_bias"]:
            found["bias_posterior_untransformed_scale"] = kernel[-1:]
    return found


def _divergence(config: Config, weights: Weights) -> Array:
    """Of the kernel alone: TF Probability knows no prior for biases unless it is told one."""
    mean, scale = weights["kernel_posterior_loc"], _scale(weights, "kernel")
    if not config["learned_prior"]:
        return normal_divergence(mean, scale)
    raw = weights["kernel_prior_untransformed_scale"]
    return learned_divergence(mean, scale, weights["kernel_prior_loc"], raw)


def _dense_shapes(config: Config, inputs: Shapes) -> dict[str, Shape]:
    return _shapes((inputs[0][-1], config["units"]), config)


# TF Probability's layers always have a bias of fixed value unless they are told otherwise.
# The prior of kernels is standard normal, or Nobrainer's, which is learned.
_COMMON = {"use_bias": True, "random_bias": False, "learned_prior": False, "activation": None}
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
        **_COMMON,
    }
    compute = partial(estimate, convolve)
    return Kind(compute, shapes, conv_window, settings, {}, _SUMMARY, True, _divergence)


def _dense_kind(estimate: Callable[..., Array]) -> Kind:
    settings = {"units": REQUIRED, **_COMMON}
    compute = partial(estimate, _matmul)
    return Kind(compute, _dense_shapes, pointwise, settings, {}, _SUMMARY, True, _divergence)


def _normalised(weights: Weights) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Mean and standard deviation of the kernel and of the bias of kwyk's layer."""
    kernel = weight_norm(weights["v"], weights["g"]), abs(weights["kernel_a"])
    return kernel, (weights["bias_m"], abs(weights["bias_a"]))


def _weight_norm_conv(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,), (kernel, bias) = inputs, _normalised(weights)

    def linear(x: Array, kernel: Array) -> Array:
        return convolve(x, kernel, config)

    if mode.draws:
        return locally_drawn(linear, x, kernel, bias, mode.key)
    result = linear(x, kernel[0])
    return result + like(bias[0], result)


def _weight_norm_shapes(config: Config, inputs: Shapes) -> dict[str, Shape]:
    size, filters = per_axis(config["kernel_size"], 3, "kernel_size"), config["filters"]
    kernel = (*size, inputs[0][-1], filters)
    return {
        "v": kernel,
        "g": (1, 1, 1, 1, filters),
        "kernel_a": kernel,
        "bias_m": (filters,),
        "bias_a": (filters,),
    }


def _weight_norm_divergence(config: Config, weights: Weights) -> Array:
    # As in kwyk, 1e-8 keeps the logarithm of a standard deviation of zero finite.
    kernel, bias = _normalised(weights)
    found = (normal_divergence(mean, scale + 1e-8) for mean, scale in (kernel, bias))
    return sum(found, start=jnp.zeros(()))


def _weight_norm_kind() -> Kind:
    settings = {
        "filters": REQUIRED,
        "kernel_size": REQUIRED,
        "strides": 1,
        "padding": "valid",
        "dilation_rate": 1,
    }
    return Kind(
        _weight_norm_conv,
        _weight_norm_shapes,
        conv_window,
        settings,
        summary="variational layer of kwyk",
        narrow=True,
        divergence=_weight_norm_divergence,
    )


KINDS: Mapping[str, Kind] = {
    **spatial_names("Conv{}Flipout", partial(_conv_kind, _flipped)),
    **spatial_names("Conv{}Reparameterization", partial(_conv_kind, _reparameterized)),
    "DenseFlipout": _dense_kind(_flipped),
    "DenseReparameterization": _dense_kind(_reparameterized),
    "VWNConv3D": _weight_norm_kind(),
}
