"""Keras's activations by name, and the layers that apply one."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

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
    Shapes,
    Weights,
    Windows,
    like,
    narrow_type,
    pointwise,
)

Activation = Callable[[Array], Array]


def _summing(function: Activation) -> Activation:
    """An activation that adds up exponentials: in float32, also of values of 16 bits."""

    def computed(x: Array) -> Array:
        dtype = narrow_type((x,))
        return function(x) if dtype is None else function(x.astype(jnp.float32)).astype(dtype)

    return computed


# Keras 3's names. GELU is the exact (erf) form there and the tanh approximation by default in JAX;
# the slope of leaky_relu is 0.2 as an activation and 0.3 as a layer. Keras 2's hard_sigmoid had
# another slope than Keras 3's. Left out: `threshold`, which needs numbers that a name cannot tell,
# and `sparsemax`, which Keras 3.15 computes wrongly (its results do not add up to 1).
ACTIVATIONS: Mapping[str, Activation] = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.2),
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "celu": jax.nn.celu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "hard_silu": jax.nn.hard_silu,
    "hard_swish": jax.nn.hard_silu,
    "sigmoid": jax.nn.sigmoid,
    "log_sigmoid": jax.nn.log_sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_sigmoid_keras2": lambda x: jnp.clip(0.2 * x + 0.5, 0, 1),
    "sparse_sigmoid": jax.nn.sparse_sigmoid,
    "tanh": jnp.tanh,
    "hard_tanh": jax.nn.hard_tanh,
    "tanh_shrink": lambda x: x - jnp.tanh(x),
    "soft_shrink": lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.5, 0),
    "hard_shrink": lambda x: jnp.where(jnp.abs(x) > 0.5, x, 0),
    "softplus": jax.nn.softplus,
    "sparse_plus": jax.nn.sparse_plus,
    "squareplus": jax.nn.squareplus,
    "softsign": jax.nn.soft_sign,
    "exponential": jnp.exp,
    "softmax": _summing(jax.nn.softmax),
    "log_softmax": _summing(jax.nn.log_softmax),
    "glu": jax.nn.glu,
}

# Those that do not treat each value by itself.
ACROSS_CHANNELS = frozenset({"softmax", "log_softmax", "glu"})


def activate(x: Array, name: str | None) -> Array:
    """Applies an activation by its Keras name; None is none.

    Raises:
        ValueError: no activation is called so.
    """
    if name is None:
        return x
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"no activation is called {name!r}")
    return ACTIVATIONS[name](x)


def check_activation(name: str) -> None:
    """Makes sure that there is an activation of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r:.40} is none of {', '.join(ACTIVATIONS)}")


def relu(
    x: Array,
    *,
    negative_slope: float = 0.0,
    max_value: float | None = None,
    threshold: float = 0.0,
) -> Array:
    """Keras's ReLU with all its settings; what lies at the threshold counts as below it."""
    above = x if max_value is None else jnp.minimum(x, max_value)
    below = negative_slope * (x - threshold) if negative_slope else jnp.zeros_like(x)
    return jnp.where(x > threshold, above, below)


def _activation(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    return activate(inputs[0], config["activation"])


def _relu(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    return relu(
        inputs[0],
        negative_slope=config["negative_slope"] or 0.0,
        max_value=config["max_value"],
        threshold=config["threshold"] or 0.0,
    )


def _leaky_relu(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    return jax.nn.leaky_relu(inputs[0], config["negative_slope"])


def _elu(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    return jax.nn.elu(inputs[0], config["alpha"])


def _prelu(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    return jax.nn.relu(x) - like(weights["alpha"], x) * jax.nn.relu(-x)


def _prelu_weights(config: Config, inputs: Shapes) -> dict[str, Shape]:
    shape = list(inputs[0])
    for axis in config["shared_axes"] or ():  # 1 is the first axis after the batch
        shape[axis] = 1
    return {"alpha": tuple(shape[1:])}


def axes_of(axis: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Axes counted from the front; all of them for None.

    Raises:
        ValueError: the array has no such axis.
    """
    if axis is None:
        return tuple(range(rank))
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    if any(not -rank <= each < rank for each in axes):
        raise ValueError(f"axis={axis!r} does not exist in an array of {rank} axes")
    return tuple(each % rank for each in axes)


def along_axis(config: Config, inputs: Shapes, output: Shape) -> Windows:
    """The windows of layers that work along `axis`: the whole input unless that is channels."""
    rank = len(inputs[0])
    if set(axes_of(config["axis"], rank)) <= {rank - 1}:
        return pointwise(config, inputs, output)
    return None


def _softmax(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    return jax.nn.softmax(inputs[0], axis=axes_of(config["axis"], inputs[0].ndim))


_SUMMARY = "activations with settings"
KINDS: Mapping[str, Kind] = {
    "Activation": Kind(
        _activation,
        settings={"activation": REQUIRED},
        summary=f"activations by name: {', '.join(ACTIVATIONS)}",
        narrow=True,
    ),
    "ReLU": Kind(
        _relu,
        settings={"max_value": None, "negative_slope": 0.0, "threshold": 0.0},
        summary=_SUMMARY,
        narrow=True,
    ),
    "LeakyReLU": Kind(_leaky_relu, settings={"negative_slope": 0.3}, summary=_SUMMARY, narrow=True),
    "PReLU": Kind(
        _prelu, _prelu_weights, settings={"shared_axes": None}, summary=_SUMMARY, narrow=True
    ),
    "ELU": Kind(_elu, settings={"alpha": 1.0}, summary=_SUMMARY, narrow=True),
    "Softmax": Kind(_softmax, window=along_axis, settings={"axis": -1}, summary=_SUMMARY),
}
