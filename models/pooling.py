"""Pooling, and its reverse: up-sampling."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array, lax

from voxtune.models.convolutions import window_of
from voxtune.models.kind import (
    Config,
    Inputs,
    Kind,
    Mode,
    Shape,
    Shapes,
    Weights,
    Window,
    Windows,
    everywhere,
    need_rank,
    per_axis,
    spatial_names,
)
from voxtune.models.lowering import max_pool


def _sizes(config: Config, axes: int) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """Size, stride and padding of a pooling layer."""
    size = per_axis(config["pool_size"], axes, "pool_size")
    given = config["strides"]
    strides = size if given is None else per_axis(given, axes, "strides")
    padding = str(config["padding"]).lower()
    if padding not in ("same", "valid"):
        raise ValueError(f"padding={config['padding']!r} is not supported")
    return size, strides, padding


def _window(config: Config, inputs: Shapes, output: Shape) -> Windows:
    sizes, strides, padding = _sizes(config, len(output) - 2)
    return tuple(
        window_of(padding, *each) for each in zip(sizes, strides, inputs[0][1:-1], strict=True)
    )


def _reduced(x: Array, start: float, function: Callable[..., Array], config: Config) -> Array:
    size, strides, padding = _sizes(config, x.ndim - 2)
    result: Array = lax.reduce_window(
        x, start, function, (1, *size, 1), (1, *strides, 1), padding.upper()
    )
    if result.size == 0 and x.size:
        raise ValueError("the input is smaller than the window")
    return result


def _max(axes: int) -> Kind:
    def compute(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
        (x,) = inputs
        need_rank(x.shape, axes + 2)
        size, strides, padding = _sizes(config, axes)
        if axes == 3 and size == strides and len(set(size)) == 1 and padding == "valid":
            if min(x.shape[1:-1]) < size[0]:
                raise ValueError("the input is smaller than the window")
            return max_pool(x, size[0])
        return _reduced(x, -jnp.inf, lax.max, config)

    return Kind(compute, window=_window, settings=_SETTINGS, summary=_SUMMARY, narrow=True)


def _average(axes: int) -> Kind:
    def compute(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
        (x,) = inputs
        need_rank(x.shape, axes + 2)
        size, _, padding = _sizes(config, axes)
        total = _reduced(x, 0.0, lax.add, config)
        if padding == "valid":
            return total / math.prod(size)
        ones = jnp.ones((1, *x.shape[1:-1], 1), x.dtype)
        return total / _reduced(ones, 0.0, lax.add, config)  # zeros of the padding do not count

    return Kind(compute, window=_window, settings=_SETTINGS, summary=_SUMMARY)


def _global_max(axes: int) -> Kind:
    def compute(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
        (x,) = inputs
        need_rank(x.shape, axes + 2)
        return x.max(range(1, axes + 1), keepdims=config["keepdims"])

    return Kind(
        compute, window=everywhere, settings={"keepdims": False}, summary=_SUMMARY, narrow=True
    )


def _global_average(axes: int) -> Kind:
    def compute(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
        (x,) = inputs
        need_rank(x.shape, axes + 2)
        return x.mean(range(1, axes + 1), keepdims=config["keepdims"])

    return Kind(compute, window=everywhere, settings={"keepdims": False}, summary=_SUMMARY)


def _repeated(x: Array, sizes: tuple[int, ...]) -> Array:
    """Each place so many times, along each spatial axis."""
    axes = len(sizes)
    spread = x.reshape(x.shape[0], *(m for n in x.shape[1:-1] for m in (n, 1)), x.shape[-1])
    pairs = [m for pair in zip(x.shape[1:-1], sizes, strict=True) for m in pair]
    spread = jnp.broadcast_to(spread, (x.shape[0], *pairs, x.shape[-1]))
    whole = (x.shape[axis + 1] * sizes[axis] for axis in range(axes))
    return spread.reshape(x.shape[0], *whole, x.shape[-1])


def _up_sampling(axes: int) -> Kind:
    def compute(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
        (x,) = inputs
        need_rank(x.shape, axes + 2)
        sizes = per_axis(config["size"], axes, "size")
        if _is_linear(config, axes):
            shape = (n * size for n, size in zip(x.shape[1:-1], sizes, strict=True))
            return jax.image.resize(x, (x.shape[0], *shape, x.shape[-1]), "bilinear")
        return _repeated(x, sizes)

    def window(config: Config, inputs: Shapes, output: Shape) -> Windows:
        sizes = per_axis(config["size"], axes, "size")
        if _is_linear(config, axes):  # weighs the two nearest places: a tent of twice the size
            return tuple(Window(2 * n - n % 2, up=n, offset=n // 2) for n in sizes)
        return tuple(Window(n, up=n) for n in sizes)

    more = {"interpolation": "nearest"} if axes == 2 else {}
    settings = {"size": 2, **more}
    return Kind(compute, window=window, settings=settings, summary=_SUMMARY, narrow=axes != 2)


def _is_linear(config: Config, axes: int) -> bool:
    how = config["interpolation"] if axes == 2 else "nearest"
    if how not in ("nearest", "bilinear"):
        raise ValueError(f"interpolation={how!r} is not supported")
    return bool(how == "bilinear")


_SETTINGS = {"pool_size": 2, "strides": None, "padding": "valid"}
_SUMMARY = "pooling and up-sampling (nearest; in 2D bilinear too)"
KINDS: Mapping[str, Kind] = {
    **spatial_names("MaxPooling{}", _max),
    **spatial_names("AveragePooling{}", _average),
    **spatial_names("GlobalMaxPooling{}", _global_max),
    **spatial_names("GlobalAveragePooling{}", _global_average),
    **spatial_names("UpSampling{}", _up_sampling),
}
