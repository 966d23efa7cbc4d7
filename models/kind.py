"""What a kind of Keras layer is: settings, weights, what it computes, and how far it looks.

The kinds themselves stand in files of their own, by what they do; `voxtune.models.kinds` gathers
them in one table.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import jax.numpy as jnp
from flax import nnx
from jax import Array

Config = Mapping[str, Any]
Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]  # of the inputs, batch included
Weights = Mapping[str, Array]
Inputs = tuple[Array, ...]

REQUIRED: Any = ...  # the default of a setting that has none


class Statistics(Protocol):
    """Where a layer's statistics are kept."""

    def update(self, name: str, value: Array, /) -> None: ...


@dataclass(frozen=True)
class Mode:
    """How a layer is called.

    Attributes:
        train: whether statistics are taken from the batch.
        rngs: source of randomness: layers that are random draw where there is one, and must have
            one where `train`.
        statistics: told of new moving statistics where `train`.
        axis: as in `voxtune.models.run.Run`.
    """

    train: bool
    rngs: nnx.Rngs | None = None
    statistics: Statistics | None = None
    axis: str | None = None

    @property
    def draws(self) -> bool:
        """Whether layers that are random draw, or drop."""
        return self.train or self.rngs is not None

    def key(self) -> Array:
        """A new random key.

        Raises:
            ValueError: the layer was called without a source of randomness.
        """
        if self.rngs is None:
            raise ValueError("it is random in training and needs `rngs`")
        return cast(Array, self.rngs.dropout())


@dataclass(frozen=True)
class Window:
    """The places of the input that a place of the output depends on, along one axis.

    Output o depends on those inputs i for which `o stride + offset - i up` lies in 0 .. `size` - 1:
    a convolution has `up` 1, what repeats its input or spreads it out has `stride` 1.

    Attributes:
        size: places, gaps of a dilation included.
        stride: places of the input from one output to the next.
        up: places of the output from one input to the next.
        offset: how far to the right the window ends.
    """

    size: int = 1
    stride: int = 1
    up: int = 1
    offset: int = 0

    def reach(self, low: int, high: int) -> tuple[int, int]:
        """First and last input that the outputs from `low` to `high` depend on.

        Where a window is smaller than `up`, some outputs depend on nothing: then the first may
        come after the last.
        """
        first = -((self.size - 1 - self.offset - low * self.stride) // self.up)
        return first, (high * self.stride + self.offset) // self.up


Windows = tuple[Window, ...] | None  # one for each spatial axis; None: the whole input


def pointwise(config: Config, inputs: Shapes, output: Shape) -> Windows:
    """The windows of layers that look at nothing but the place itself."""
    del config
    return (Window(),) * (len(output) - 2) if len(inputs[0]) == len(output) else None


def everywhere(config: Config, inputs: Shapes, output: Shape) -> Windows:
    """The windows of layers of which each output depends on every place of the input."""
    del config, inputs, output
    return None


def no_weights(config: Config, inputs: Shapes) -> dict[str, Shape]:
    """The weights of layers that have none."""
    del config, inputs
    return {}


def narrow_type(inputs: Inputs) -> jnp.dtype | None:
    """The type of those inputs that are floating point numbers of 16 bits; None if none are."""
    found = (x.dtype for x in inputs if jnp.issubdtype(x.dtype, jnp.floating))
    return next((dtype for dtype in found if dtype.itemsize < 4), None)


def like(weight: Array, x: Array) -> Array:
    """A weight in the type of what it meets where that has 16 bits, as it is otherwise."""
    dtype = narrow_type((x,))
    return weight if dtype is None else weight.astype(dtype)


def _anything(value: Any) -> bool:
    del value
    return True


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


# A file is a stranger's: settings that would be computed with are what they should be.
_SENSIBLE: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("filters", "units", "depth_multiplier", "num_heads", "key_dim", "n"), _count),
    **dict.fromkeys(("rate", "momentum"), _share),
    **dict.fromkeys(("epsilon", "stddev", "alpha", "negative_slope", "threshold"), _number),
}


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Settings that are not given have Keras 3's default values.

    Attributes:
        compute: as `apply`, but receives all settings, defaults included.
        shapes: as `weights`, likewise.
        window: all settings, shapes of inputs and output → where each output depends on.
        settings: those that change the result → Keras 3's default, `REQUIRED` where there is none.
        only: settings of which no other value than this one is supported.
        summary: the group of layers that it belongs to, in words, with what is supported.
        narrow: whether `compute` takes inputs of 16 bits as they are. If not, it is given float32,
            and its result becomes 16 bits again: norms, sums and the layers of strangers.
        divergence: all settings and weights → how far random weights are from their prior, nats;
            None where no weight is random.
    """

    compute: Callable[[Config, Weights, Inputs, Mode], Array]
    shapes: Callable[[Config, Shapes], dict[str, Shape]] = no_weights
    window: Callable[[Config, Shapes, Shape], Windows] = pointwise
    settings: Config = field(default_factory=dict)
    only: Config = field(default_factory=dict)
    summary: str = ""
    narrow: bool = False
    divergence: Callable[[Config, Weights], Array] | None = None

    def complete(self, config: Config) -> dict[str, Any]:
        """The settings, with defaults for those that are not given.

        Raises:
            ValueError: one is missing, or has a value that is not supported.
        """
        for name, value in {"data_format": "channels_last", **self.only}.items():
            if config.get(name, value) not in (value, None):
                raise ValueError(f"{name}={config[name]!r} is not supported")
        whole = {**self.settings, **config}
        for name, value in whole.items():
            if value is REQUIRED:
                raise ValueError(f"the setting '{name}' is missing")
            if name in self.settings and not _SENSIBLE.get(name, _anything)(value):
                raise ValueError(f"{name}={value!r} makes no sense")
        return whole

    def apply(self, config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
        """What the layer gives: settings, weights by name, inputs and mode → result.

        Raises:
            ValueError: a setting is not supported, or does not fit the inputs.
        """
        settings, dtype = self.complete(config), narrow_type(inputs)
        if dtype is None or self.narrow:
            return self.compute(settings, weights, inputs, mode)
        wide = tuple(x.astype(jnp.float32) if x.dtype == dtype else x for x in inputs)
        result = self.compute(settings, weights, wide, mode)
        return result.astype(dtype) if jnp.issubdtype(result.dtype, jnp.floating) else result

    def weights(self, config: Config, inputs: Shapes) -> dict[str, Shape]:
        """Settings and shapes of the inputs → name → shape of the weights, in Keras's order.

        Raises:
            ValueError: as `apply`.
        """
        return self.shapes(self.complete(config), inputs)

    def windows(self, config: Config, inputs: Shapes, output: Shape) -> Windows:
        """Where each place of the output depends on, for each spatial axis.

        None where every place depends on the whole input, or where this is not known.
        """
        return self.window(self.complete(config), inputs, output)


def per_axis(value: int | Sequence[int], axes: int, name: str) -> tuple[int, ...]:
    """A number for each spatial axis, out of one for all or a list.

    Raises:
        ValueError: it is neither.
    """
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    least = 0 if name == "output_padding" else 1
    if len(values) != axes or not all(type(each) is int and each >= least for each in values):
        raise ValueError(f"{name}={value!r} is not {axes} whole numbers of at least {least}")
    return values


def need_rank(shape: Shape, rank: int) -> None:
    """Raises ValueError unless the shape has so many axes, batch and channels included."""
    if len(shape) != rank:
        raise ValueError(f"its input needs {rank} axes, not {len(shape)}")


def spatial_names(name: str, kind: Callable[[int], Kind]) -> dict[str, Kind]:
    """`{name}1D` to `{name}3D`, with the braces replaced by the number of axes."""
    return {name.format(f"{axes}D"): kind(axes) for axes in (1, 2, 3)}
