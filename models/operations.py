"""Operations on arrays that stand in a Keras graph without a layer, under keras.ops's names."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from voxtune.models.activations import axes_of
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
    pointwise,
)
from voxtune.models.reshaping import resolved

Operand = Array | float | bool
Index = Sequence[Any]  # for each axis an integer, {"start", "stop", "step"}, "ellipsis", "newaxis"


def _cast(x: Operand, dtype: str) -> Array:
    """Floating point numbers of any width become float32: Keras's widths are for its hardware."""
    if dtype.startswith(("float", "bfloat")):
        return jnp.asarray(x, jnp.float32)
    return jnp.asarray(x).astype(bool if dtype == "bool" else jnp.int32)


def _slices(key: Index) -> tuple[Any, ...]:
    def one(each: Any) -> Any:
        if isinstance(each, Mapping):
            return slice(each.get("start"), each.get("stop"), each.get("step"))
        if each in ("ellipsis", "newaxis"):
            return ... if each == "ellipsis" else None
        if isinstance(each, int):
            return each
        raise ValueError(f"{each!r} is no index")

    return tuple(one(each) for each in key)


def _getitem(x: Array, *, key: Index) -> Array:
    return x[_slices(key)]


def _reshape(x: Array, *, newshape: Sequence[int]) -> Array:
    return x.reshape(resolved(newshape, x.shape))


def _pad(x: Array, *, pad_width: Sequence[Sequence[int]], constant_values: float = 0) -> Array:
    if len(pad_width) != x.ndim or any(len(pair) != 2 for pair in pad_width):
        raise ValueError(f"pad_width={pad_width!r} is not a pair of places for each axis")
    return jnp.pad(x, pad_width, constant_values=constant_values)


def _axis_tuple(axis: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    return axis if axis is None or isinstance(axis, int) else tuple(axis)


def _reduction(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduced(
        x: Array, *, axis: int | Sequence[int] | None = None, keepdims: bool = False
    ) -> Array:
        return function(x, axis=_axis_tuple(axis), keepdims=keepdims)

    return reduced


def _of_two(function: Callable[..., Array]) -> Callable[..., Array]:
    """Takes two operands or more, of which one may be a number."""

    def folded(first: Operand, second: Operand, *rest: Operand) -> Array:
        return functools.reduce(function, rest, function(first, second))

    return folded


# Element by element: an output depends on the same place of each operand.
_ELEMENTWISE: Mapping[str, Callable[..., Array]] = {
    "identity": lambda x: jnp.asarray(x),
    "cast": _cast,
    "add": _of_two(jnp.add),
    "subtract": jnp.subtract,
    "multiply": _of_two(jnp.multiply),
    "divide": jnp.true_divide,
    "floor_divide": jnp.floor_divide,
    "mod": jnp.mod,
    "power": jnp.power,
    "maximum": _of_two(jnp.maximum),
    "minimum": _of_two(jnp.minimum),
    "negative": jnp.negative,
    "absolute": jnp.abs,
    "sign": jnp.sign,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "square": jnp.square,
    "reciprocal": jnp.reciprocal,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tanh": jnp.tanh,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "clip": lambda x, *, x_min, x_max: jnp.clip(x, x_min, x_max),
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": lambda x, *, negative_slope=0.2: jax.nn.leaky_relu(x, negative_slope),
    "elu": lambda x, *, alpha=1.0: jax.nn.elu(x, alpha),
    "selu": jax.nn.selu,
    "gelu": lambda x, *, approximate=True: jax.nn.gelu(x, approximate=approximate),
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "hard_sigmoid": lambda x, *, slope=1 / 6, offset=0.5: jnp.clip(slope * x + offset, 0, 1),
    "equal": jnp.equal,
    "not_equal": jnp.not_equal,
    "greater": jnp.greater,
    "greater_equal": jnp.greater_equal,
    "less": jnp.less,
    "less_equal": jnp.less_equal,
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_not": jnp.logical_not,
    "where": jnp.where,
}

# Along one or several axes, `axis`.
_ALONG_AXIS: Mapping[str, Callable[..., Array]] = {
    "softmax": lambda x, *, axis=-1: jax.nn.softmax(x, axis=_axis_tuple(axis)),
    "log_softmax": lambda x, *, axis=-1: jax.nn.log_softmax(x, axis=_axis_tuple(axis)),
    "mean": _reduction(jnp.mean),
    "sum": _reduction(jnp.sum),
    "max": _reduction(jnp.max),
    "min": _reduction(jnp.min),
    "prod": _reduction(jnp.prod),
    "var": _reduction(jnp.var),
    "std": _reduction(jnp.std),
    "concatenate": lambda *xs, axis=-1: jnp.concatenate(xs, axis),
    "flip": lambda x, *, axis=None: jnp.flip(x, _axis_tuple(axis)),
    "repeat": lambda x, *, repeats, axis=None: jnp.repeat(x, repeats, axis),
}

_OTHERS: Mapping[str, Callable[..., Array]] = {
    "stack": lambda *xs, axis=0: jnp.stack(xs, axis),
    "squeeze": lambda x, *, axis=None: jnp.squeeze(x, _axis_tuple(axis)),
    "expand_dims": lambda x, *, axis: jnp.expand_dims(x, axis),
    "transpose": lambda x, *, axes=None: jnp.transpose(x, axes),
    "reshape": _reshape,
    "getitem": _getitem,
    "pad": _pad,
    "tile": lambda x, *, repeats: jnp.tile(x, repeats),
    "matmul": jnp.matmul,
}

FUNCTIONS: Mapping[str, Callable[..., Array]] = {**_ELEMENTWISE, **_ALONG_AXIS, **_OTHERS}
# Whether an axis that is not given is the last one, or all of them.
_LAST = frozenset({"softmax", "log_softmax", "concatenate"})


def _operands(config: Config, inputs: Sequence[Any]) -> list[Any]:
    """The operands in order: inputs, and constants as numbers or arrays."""
    found = []
    for each in config["operands"]:
        if "tensor" in each:
            found.append(inputs[each["tensor"]])
        else:
            value = each["value"]
            found.append(value if isinstance(value, int | float) else jnp.asarray(value))
    return found


def _operation(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    name = config["function"]
    if name not in FUNCTIONS:
        raise ValueError(f"no operation is called {name!r}")
    parameters = {k: v for k, v in config.items() if k not in ("function", "operands")}
    try:
        return FUNCTIONS[name](*_operands(config, inputs), **parameters)
    except TypeError as error:
        raise ValueError(f"{name} cannot be computed so: {error}") from error


def _window(config: Config, inputs: Shapes, output: Shape) -> Windows:
    name, rank = config["function"], len(inputs[0])
    if rank != len(output):
        return None
    if name in _ELEMENTWISE:
        return pointwise(config, inputs, output)
    if name in _ALONG_AXIS:
        axes = axes_of(config.get("axis", -1 if name in _LAST else None), rank)
        return pointwise(config, inputs, output) if set(axes) <= {rank - 1} else None
    if name == "pad":
        return tuple(Window(offset=-first) for first, _ in config["pad_width"][1:-1])
    if name == "getitem":
        return _slice_windows(config["key"], inputs[0])
    return None


def _slice_windows(key: Index, shape: Shape) -> Windows:
    """The windows of a slice that keeps all axes."""
    whole = {"start": None, "stop": None, "step": None}
    parts = list(key)
    if "ellipsis" in parts:
        at = parts.index("ellipsis")
        parts[at : at + 1] = [whole] * (len(shape) - len(parts) + 1)
    parts += [whole] * (len(shape) - len(parts))
    if not all(isinstance(each, Mapping) for each in parts):
        return None
    found = []
    for each, n in zip(parts[1:-1], shape[1:-1], strict=True):
        start, _, step = slice(each.get("start"), each.get("stop"), each.get("step")).indices(n)
        if step < 1:
            return None
        found.append(Window(stride=step, offset=start))
    return tuple(found)


KINDS: Mapping[str, Kind] = {
    "Operation": Kind(
        _operation,
        window=_window,
        settings={"function": REQUIRED, "operands": REQUIRED},
        summary=f"operations without a layer: {', '.join(FUNCTIONS)}",
    )
}
