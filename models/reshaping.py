"""Layers that move values around without changing them: padding, cropping, reshaping."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from voxtune.models.kind import (
    REQUIRED,
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
    pointwise,
    spatial_names,
)


def _pairs(value: Any, axes: int, name: str) -> tuple[tuple[int, int], ...]:
    """Places before and after, for each axis: Keras takes a number, numbers, or pairs."""
    if isinstance(value, int):
        value = [value] * axes
    elif axes == 1 and len(value) == 2:
        value = [value]
    pairs = tuple((each, each) if isinstance(each, int) else tuple(each) for each in value)
    if len(pairs) != axes or any(
        len(pair) != 2 or any(not isinstance(n, int) or n < 0 for n in pair) for pair in pairs
    ):
        raise ValueError(f"{name}={value!r} is not a pair of places for each of {axes} axes")
    return pairs


def _zero_padding(axes: int) -> Kind:
    def compute(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
        (x,) = inputs
        need_rank(x.shape, axes + 2)
        return jnp.pad(x, ((0, 0), *_pairs(config["padding"], axes, "padding"), (0, 0)))

    def window(config: Config, inputs: Shapes, output: Shape) -> Windows:
        pairs = _pairs(config["padding"], axes, "padding")
        return tuple(Window(offset=-first) for first, _ in pairs)

    return Kind(compute, window=window, settings={"padding": 1}, summary=_SUMMARY, narrow=True)


def _cropping(axes: int) -> Kind:
    def compute(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
        (x,) = inputs
        need_rank(x.shape, axes + 2)
        kept = [slice(None)]
        for (first, last), n in zip(
            _pairs(config["cropping"], axes, "cropping"), x.shape[1:-1], strict=True
        ):
            if first + last >= n:
                raise ValueError(f"nothing is left of {n} places")
            kept.append(slice(first, n - last))
        return x[tuple(kept)]

    def window(config: Config, inputs: Shapes, output: Shape) -> Windows:
        pairs = _pairs(config["cropping"], axes, "cropping")
        return tuple(Window(offset=first) for first, _ in pairs)

    return Kind(
        compute, window=window, settings={"cropping": int(axes != 2)}, summary=_SUMMARY, narrow=True
    )


def _zero_padding_channels(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(config["padding"],) * 2])


def _flatten(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _reshape(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    return x.reshape(x.shape[0], *resolved(config["target_shape"], x.shape[1:]))


def resolved(target: Sequence[int], shape: Shape) -> Shape:
    """The target of a reshape, with a -1 replaced by what is left.

    Raises:
        ValueError: the sizes differ.
    """
    size = math.prod(shape)
    known = math.prod(n for n in target if n != -1)
    whole = tuple(size // known if n == -1 and known else n for n in target)
    if math.prod(whole) != size or sum(n == -1 for n in target) > 1:
        raise ValueError(f"{list(shape)} does not become {list(target)}")
    return whole


def _permute(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    return inputs[0].transpose(0, *config["dims"])  # 1 is the first axis after the batch


def _repeat_vector(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    need_rank(x.shape, 2)
    return jnp.repeat(x[:, None], config["n"], axis=1)


def _identity(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    return inputs[0]


def _same_rank(inputs: Inputs) -> Inputs:
    """Keras adds axes of size 1 after the batch where arrays have fewer axes than others."""
    rank = max(x.ndim for x in inputs)
    return tuple(x.reshape(x.shape[0], *(1,) * (rank - x.ndim), *x.shape[1:]) for x in inputs)


def _merging(function: Callable[[Array, Array], Array], count: int | None = None) -> Kind:
    """A layer that folds its inputs with a function of two."""

    def compute(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
        if count is not None and len(inputs) != count:
            raise ValueError(f"it takes {count} inputs, not {len(inputs)}")
        first, *rest = _same_rank(inputs)
        for each in rest:
            first = function(first, each)
        return first

    return Kind(compute, summary=_MERGING, narrow=True)


def _average(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    first, *rest = _same_rank(inputs)
    return sum(rest, start=first) / len(inputs)


def _concatenate(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    return jnp.concatenate(inputs, axis=config["axis"])


def _concatenate_window(config: Config, inputs: Shapes, output: Shape) -> Windows:
    last = config["axis"] in (-1, len(output) - 1)
    return pointwise(config, inputs, output) if last else None


_SUMMARY = "padding, cropping and reshaping"
_MERGING = "merging"
KINDS: Mapping[str, Kind] = {
    "Concatenate": Kind(
        _concatenate,
        window=_concatenate_window,
        settings={"axis": -1},
        summary=_MERGING,
        narrow=True,
    ),
    "Add": _merging(jnp.add),
    "Subtract": _merging(jnp.subtract, 2),
    "Multiply": _merging(jnp.multiply),
    "Average": Kind(_average, summary=_MERGING, narrow=True),
    "Maximum": _merging(jnp.maximum),
    "Minimum": _merging(jnp.minimum),
    **spatial_names("ZeroPadding{}", _zero_padding),
    "ZeroPadding3DChannels": Kind(
        _zero_padding_channels, settings={"padding": REQUIRED}, summary=_SUMMARY, narrow=True
    ),
    **spatial_names("Cropping{}", _cropping),
    "Flatten": Kind(_flatten, window=everywhere, summary=_SUMMARY, narrow=True),
    "Reshape": Kind(
        _reshape,
        window=everywhere,
        settings={"target_shape": REQUIRED},
        summary=_SUMMARY,
        narrow=True,
    ),
    "Permute": Kind(
        _permute, window=everywhere, settings={"dims": REQUIRED}, summary=_SUMMARY, narrow=True
    ),
    "RepeatVector": Kind(
        _repeat_vector, window=everywhere, settings={"n": REQUIRED}, summary=_SUMMARY, narrow=True
    ),
    "Identity": Kind(_identity, summary=_SUMMARY, narrow=True),
}
