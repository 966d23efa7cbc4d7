"""Normalisations, and the rescaling layers."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jax import Array, lax

from voxtune.models.activations import along_axis, axes_of
from voxtune.models.kind import (
    REQUIRED,
    Config,
    Inputs,
    Kind,
    Mode,
    Shape,
    Shapes,
    Weights,
    everywhere,
    pointwise,
)


def _scaled(x: Array, mean: Array, spread: Array, weights: Weights, shape: Sequence[int]) -> Array:
    """`(x - mean) spread`, then gamma and beta as far as there are any, reshaped to `shape`."""
    x = (x - mean) * spread
    if "gamma" in weights:
        x = x * weights["gamma"].reshape(shape)
    return x + weights["beta"].reshape(shape) if "beta" in weights else x


def _gamma_beta(config: Config, shape: Shape) -> dict[str, Shape]:
    return ({"gamma": shape} if config["scale"] else {}) | (
        {"beta": shape} if config["center"] else {}
    )


def _kept(shape: Shape, axes: Sequence[int]) -> Shape:
    """The shape with 1 for all axes but those."""
    return tuple(n if axis in axes else 1 for axis, n in enumerate(shape))


def _batch_norm(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    axes = axes_of(config["axis"], x.ndim)
    mean, variance = weights["moving_mean"], weights["moving_variance"]
    if mode.train:
        momentum = config["momentum"]
        others = tuple(axis for axis in range(x.ndim) if axis not in axes)
        batch_mean, batch_variance = _moments(x, others, mode.axis)
        if mode.statistics is not None:
            for name, old, new in (
                ("moving_mean", mean, batch_mean),
                ("moving_variance", variance, batch_variance),
            ):
                moved = old * momentum + lax.stop_gradient(new) * (1 - momentum)
                mode.statistics.update(name, moved)
        mean, variance = batch_mean, batch_variance
    shape = _kept(x.shape, axes)
    spread = lax.rsqrt(variance + config["epsilon"]).reshape(shape)
    return _scaled(x, mean.reshape(shape), spread, weights, shape)


def _moments(x: Array, axes: Sequence[int], mapped: str | None) -> tuple[Array, Array]:
    """Mean and variance along axes, and along a mapped axis where there is one."""
    if mapped is None:
        # jnp.var takes the mean off first: E[x²] - E[x]² loses digits where the mean is large.
        return jnp.mean(x, axes), jnp.var(x, axes)
    mean = lax.pmean(jnp.mean(x, axes, keepdims=True), mapped)
    variance = lax.pmean(jnp.mean((x - mean) ** 2, axes), mapped)
    return mean.reshape(variance.shape), variance


def _batch_norm_weights(config: Config, inputs: Shapes) -> dict[str, Shape]:
    (axis,) = axes_of(config["axis"], len(inputs[0]))
    shape = (inputs[0][axis],)
    return _gamma_beta(config, shape) | {"moving_mean": shape, "moving_variance": shape}


def _standardized(x: Array, axes: Sequence[int], epsilon: float) -> tuple[Array, Array]:
    mean = x.mean(axes, keepdims=True)
    return mean, lax.rsqrt(x.var(axes, keepdims=True) + epsilon)


def _layer_norm(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    axes = axes_of(config["axis"], x.ndim)
    mean, spread = _standardized(x, axes, config["epsilon"])
    return _scaled(x, mean, spread, weights, _kept(x.shape, axes))


def _layer_norm_weights(config: Config, inputs: Shapes) -> dict[str, Shape]:
    axes = sorted(axes_of(config["axis"], len(inputs[0])))
    return _gamma_beta(config, tuple(inputs[0][axis] for axis in axes))


def _channels_only(config: Config, rank: int) -> None:
    if axes_of(config["axis"], rank) != (rank - 1,):
        raise ValueError(f"axis={config['axis']!r} is not supported, the last one is")


def _groups(config: Config, channels: int) -> int:
    groups: int = channels if config["groups"] == -1 else config["groups"]
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels are not {groups} groups of the same size")
    return groups


def _group_norm(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    groups = _groups(config, x.shape[-1])
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    axes = (*range(1, x.ndim - 1), x.ndim)
    mean, spread = _standardized(grouped, axes, config["epsilon"])
    shape = (*(1,) * (x.ndim - 1), *grouped.shape[-2:])
    return _scaled(grouped, mean, spread, weights, shape).reshape(x.shape)


def _group_norm_weights(config: Config, inputs: Shapes) -> dict[str, Shape]:
    _channels_only(config, len(inputs[0]))
    _groups(config, inputs[0][-1])
    return _gamma_beta(config, inputs[0][-1:])


def _slab_norm(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    """Nobrainer's group normalisation: it reshapes without moving the channels to the front.

    `[B, D, H, W, C]` is read as `[B, G, D, H, W, C / G]`, so that a group is a slab of depth slices
    with all their channels, and gamma and beta vary within it with a period of C / G.
    """
    (x,) = inputs
    groups = _groups(config, x.shape[-1])
    grouped = x.reshape(x.shape[0], groups, *x.shape[1:-1], x.shape[-1] // groups)
    mean, spread = _standardized(grouped, range(2, x.ndim + 1), config["epsilon"])
    shape = (1, groups, *(1,) * (x.ndim - 2), x.shape[-1] // groups)
    return _scaled(grouped, mean, spread, weights, shape).reshape(x.shape)


def _instance_norm(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    """keras-contrib's: epsilon is added to the standard deviation, not to the variance."""
    (x,) = inputs
    kept = () if config["axis"] is None else axes_of(config["axis"], x.ndim)
    axes = tuple(axis for axis in range(1, x.ndim) if axis not in kept)
    spread = 1 / (x.std(axes, keepdims=True) + config["epsilon"])
    return _scaled(x, x.mean(axes, keepdims=True), spread, weights, _kept(x.shape, kept))


def _instance_norm_weights(config: Config, inputs: Shapes) -> dict[str, Shape]:
    if config["axis"] is None:
        return _gamma_beta(config, (1,))
    (axis,) = axes_of(config["axis"], len(inputs[0]))
    if axis == 0:
        raise ValueError("axis=0 is the batch")
    return _gamma_beta(config, (inputs[0][axis],))


def _unit_norm(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    square = (x**2).sum(axes_of(config["axis"], x.ndim), keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, 1e-24))  # a norm of 1e-12, as Keras has it


def _normalization(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    axes = sorted(_normalized_axes(config, x.ndim))
    shape = _kept(x.shape, axes)
    mean, variance = _mean_and_variance(config, weights)
    kept = tuple(x.shape[axis] for axis in axes)
    mean = jnp.broadcast_to(mean, kept).reshape(shape)
    spread = jnp.maximum(jnp.sqrt(jnp.broadcast_to(variance, kept).reshape(shape)), 1e-7)
    return mean + x * spread if config["invert"] else (x - mean) / spread


def _mean_and_variance(config: Config, weights: Weights) -> tuple[Array, Array]:
    if config["mean"] is None:
        return lax.stop_gradient(weights["mean"]), lax.stop_gradient(weights["variance"])
    return (
        jnp.asarray(config["mean"], jnp.float32),
        jnp.asarray(config["variance"], jnp.float32),
    )


def _normalized_axes(config: Config, rank: int) -> tuple[int, ...]:
    return () if config["axis"] is None else axes_of(config["axis"], rank)


def _normalization_weights(config: Config, inputs: Shapes) -> dict[str, Shape]:
    if config["mean"] is not None:
        return {}
    axes = sorted(_normalized_axes(config, len(inputs[0])))
    shape = tuple(inputs[0][axis] for axis in axes)
    return {"mean": shape, "variance": shape}


def _rescaling(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    scale = jnp.asarray(config["scale"], jnp.float32)
    return inputs[0] * scale + jnp.asarray(config["offset"], jnp.float32)


_AFFINE = {"center": True, "scale": True}
_SUMMARY = "normalisation (in groups: of the last axis)"
KINDS: Mapping[str, Kind] = {
    "BatchNormalization": Kind(
        _batch_norm,
        _batch_norm_weights,
        pointwise,
        {"axis": -1, "momentum": 0.99, "epsilon": 1e-3, **_AFFINE},
        {"renorm": False},
        _SUMMARY,
    ),
    "LayerNormalization": Kind(
        _layer_norm,
        _layer_norm_weights,
        along_axis,
        {"axis": -1, "epsilon": 1e-3, **_AFFINE},
        {"rms_scaling": False},
        _SUMMARY,
    ),
    "GroupNormalization": Kind(
        _group_norm,
        _group_norm_weights,
        everywhere,
        {"groups": 32, "axis": -1, "epsilon": 1e-3, **_AFFINE},
        {},
        _SUMMARY,
    ),
    "SlabGroupNormalization": Kind(
        _slab_norm,
        _group_norm_weights,
        everywhere,
        {"groups": 4, "axis": -1, "epsilon": 1e-5, **_AFFINE},
        {},
        _SUMMARY,
    ),
    "InstanceNormalization": Kind(
        _instance_norm,
        _instance_norm_weights,
        everywhere,
        {"axis": None, "epsilon": 1e-3, **_AFFINE},
        {},
        _SUMMARY,
    ),
    "UnitNormalization": Kind(
        _unit_norm, window=along_axis, settings={"axis": -1}, summary=_SUMMARY
    ),
    "Normalization": Kind(
        _normalization,
        _normalization_weights,
        pointwise,
        {"axis": -1, "mean": None, "variance": None, "invert": False},
        {},
        _SUMMARY,
    ),
    "Rescaling": Kind(_rescaling, settings={"scale": REQUIRED, "offset": 0.0}, summary=_SUMMARY),
}
