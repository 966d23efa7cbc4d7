"""Operations and activations under their Keras names give what Keras 3 gives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from voxtune.models.activations import ACROSS_CHANNELS, ACTIVATIONS
from voxtune.models.kinds import KINDS, Mode
from voxtune.models.operations import FUNCTIONS

TESTED = {"Operation", "Activation"}

RNG = np.random.default_rng(0)
# Far and near, both signs, and the places where a function bends.
VALUES = jnp.asarray(
    np.concatenate([RNG.normal(size=40) * 3, [0, 0.5, -0.5, 1, -1, 3, -3, 6]]), jnp.float32
).reshape(4, 12)


def test_every_activation_is_as_in_keras(close: Any) -> None:
    import keras

    names = sorted(ACTIVATIONS.keys() - {"hard_sigmoid_keras2"})

    @jax.jit
    def both(x: Array) -> dict[str, Any]:
        def each(function: Any) -> Any:
            smooth = x + 0.01  # away from the bends, where a slope has no one value
            return function(x), jax.grad(lambda x: (function(x) ** 2).sum())(smooth)

        return {n: (each(ACTIVATIONS[n]), each(keras.activations.get(n))) for n in names}

    for name, (ours, theirs) in both(VALUES).items():
        assert np.isfinite(ours[0]).all(), name
        close(ours, theirs)
    # keras 2.14, backend.hard_sigmoid
    expected = np.clip(np.float64(VALUES) * 0.2 + 0.5, 0, 1)
    close(ACTIVATIONS["hard_sigmoid_keras2"](VALUES), expected)


def test_no_activation_of_keras_is_missing() -> None:
    from keras.src.activations import ALL_OBJECTS_DICT

    left_out = {"threshold", "sparsemax"}
    assert ACTIVATIONS.keys() - {"hard_sigmoid_keras2"} == ALL_OBJECTS_DICT.keys() - left_out


def test_activations_that_mix_channels_are_known() -> None:
    pair = jnp.array([1.0, 2.0])

    @jax.jit
    def first(x: Array) -> dict[str, Array]:
        return {name: ACTIVATIONS[name](x)[0] for name in ACTIVATIONS.keys() - {"glu"}}

    together, single = first(pair), first(pair[:1])
    alone = {name for name in together if together[name] != single[name]} | {"glu"}
    assert alone == ACROSS_CHANNELS


A = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
B = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
POSITIVE = jnp.abs(A) + 0.5
FLAGS = A > 0
T0, T1 = {"tensor": 0}, {"tensor": 1}


def value(number: Any) -> dict[str, Any]:
    return {"value": number}


_OF_ONE = """negative absolute sign exp expm1 square reciprocal sin cos tanh floor ceil round
sigmoid relu relu6 leaky_relu elu selu gelu silu softplus softsign softmax log_softmax mean sum max
min prod var std flip transpose hard_sigmoid"""
# Function, inputs, operands, parameters; by keras.ops the same unless a line below says otherwise.
OPERATIONS: list[tuple[str, list[Array], list[dict[str, Any]], dict[str, Any]]] = [
    *(
        (name, [A, B], [T0, T1], {})
        for name in (
            "add",
            "subtract",
            "multiply",
            "divide",
            "floor_divide",
            "mod",
            "maximum",
            "minimum",
            "equal",
            "not_equal",
            "greater",
            "greater_equal",
            "less",
            "less_equal",
        )
    ),
    *((name, [A], [T0], {}) for name in _OF_ONE.split()),
    *((name, [POSITIVE], [T0], {}) for name in ("log", "log1p", "sqrt", "rsqrt")),
    *((name, [FLAGS, FLAGS[::-1]], [T0, T1], {}) for name in ("logical_and", "logical_or")),
    ("logical_not", [FLAGS], [T0], {}),
    ("power", [POSITIVE, B], [T0, T1], {}),
    ("power", [A], [T0, value(2)], {}),
    ("subtract", [A], [value(1.0), T0], {}),
    ("subtract", [A, B], [T1, T0], {}),
    ("multiply", [A], [T0, value([0.5, 1.0, 2.0, -1.0])], {}),
    ("divide", [A], [T0, value(255)], {}),
    ("equal", [jnp.round(A)], [T0, value(0)], {}),
    ("clip", [A], [T0], {"x_min": -0.5, "x_max": 1.0}),
    ("leaky_relu", [A], [T0], {"negative_slope": 0.1}),
    ("elu", [A], [T0], {"alpha": 0.5}),
    ("gelu", [A], [T0], {"approximate": False}),
    ("softmax", [A], [T0], {"axis": 1}),
    ("log_softmax", [A], [T0], {"axis": 1}),
    *(
        (name, [A], [T0], {"axis": axis, "keepdims": keepdims})
        for name in ("mean", "sum", "max", "min", "prod", "var", "std")
        for axis, keepdims in ((-1, True), ([1, 2], False))
    ),
    ("where", [FLAGS, A, B], [T0, T1, {"tensor": 2}], {}),
    ("where", [FLAGS, A], [T0, T1, value(0.0)], {}),
    ("concatenate", [A, B], [T0, T1], {"axis": 1}),
    ("concatenate", [A, B], [T1, T0], {"axis": -1}),
    ("stack", [A, B], [T0, T1], {"axis": 1}),
    ("squeeze", [A[:, :1]], [T0], {}),
    ("squeeze", [A[:1, :1]], [T0], {"axis": 1}),
    ("expand_dims", [A], [T0], {"axis": -1}),
    ("transpose", [A], [T0], {"axes": [0, 2, 1]}),
    ("reshape", [A], [T0], {"newshape": [2, -1]}),
    ("pad", [A], [T0], {"pad_width": [[0, 0], [1, 0], [0, 2]]}),
    ("pad", [A], [T0], {"pad_width": [[0, 0], [1, 0], [0, 2]], "constant_values": 3.0}),
    ("flip", [A], [T0], {"axis": 1}),
    ("repeat", [A], [T0], {"repeats": 2, "axis": -1}),
    ("tile", [A], [T0], {"repeats": [1, 2, 3]}),
    ("matmul", [A, B.swapaxes(1, 2)], [T0, T1], {}),
    ("cast", [A], [T0], {"dtype": "int32"}),
    ("cast", [FLAGS], [T0], {"dtype": "float32"}),
    ("cast", [A], [T0], {"dtype": "bool"}),
]
# What keras.ops calls otherwise, or takes as a list.
_KERAS: dict[str, Any] = {
    "concatenate": lambda ops, *xs, **more: ops.concatenate(xs, **more),
    "stack": lambda ops, *xs, **more: ops.stack(xs, **more),
    "softmax": lambda ops, x, axis=-1: ops.softmax(x, axis),
}
# Defined here alone: what stands for Python's indexing, other slopes, no change.
_DEFINED: list[tuple[str, dict[str, Any], Any]] = [
    ("identity", {}, lambda x: x),
    ("hard_sigmoid", {"slope": 0.2, "offset": 0.5}, lambda x: np.clip(0.2 * x + 0.5, 0, 1)),
    ("cast", {"dtype": "float16"}, lambda x: x),
    ("getitem", {"key": [{"start": 0, "stop": 1, "step": None}]}, lambda x: x[0:1]),
    (
        "getitem",
        {"key": ["ellipsis", {"start": None, "stop": -1, "step": 2}]},
        lambda x: x[..., :-1:2],
    ),
    ("getitem", {"key": [{}, 1, "newaxis"]}, lambda x: x[:, 1, None]),
]


def ours(name: str, operands: Any, parameters: Any, inputs: Any) -> Array:
    config = {"function": name, "operands": operands, **parameters}
    return KINDS["Operation"].apply(config, {}, tuple(inputs), Mode(False))


def test_every_operation_is_as_in_keras(close: Any) -> None:
    import keras

    def theirs(name: str, operands: Any, parameters: Any, inputs: Any) -> Array:
        found = [
            inputs[each["tensor"]] if "tensor" in each else jnp.asarray(each["value"])
            for each in operands
        ]
        if name in _KERAS:
            return _KERAS[name](keras.ops, *found, **parameters)
        return getattr(keras.ops, name)(*found, **parameters)

    @jax.jit
    def both(inputs: Any) -> list[tuple[Array, Array]]:
        return [
            (ours(name, operands, more, given), theirs(name, operands, more, given))
            for (name, _, operands, more), given in zip(OPERATIONS, inputs, strict=True)
        ]

    found = both([inputs for _, inputs, _, _ in OPERATIONS])
    for (name, *_), (mine, other) in zip(OPERATIONS, found, strict=True):
        assert mine.dtype == other.dtype, name
        if mine.dtype == bool:
            np.testing.assert_array_equal(mine, other)
        else:
            close(mine, other)


@pytest.mark.parametrize(("name", "parameters", "definition"), _DEFINED)
def test_operation_is_as_defined(name: str, parameters: Any, definition: Any, close: Any) -> None:
    result = ours(name, [T0], parameters, [A])
    assert result.dtype == jnp.float32
    close(result, definition(np.asarray(A)))


def test_every_operation_is_tested() -> None:
    tested = {name for name, *_ in OPERATIONS} | {name for name, *_ in _DEFINED}
    assert FUNCTIONS.keys() == tested


@pytest.mark.parametrize(
    ("name", "parameters", "reason"),
    [
        ("fft", {}, "no operation is called 'fft'"),
        ("relu", {"max_value": 6.0}, "max_value"),
        ("getitem", {"key": ["first"]}, "'first' is no index"),
        ("reshape", {"newshape": [5, -1]}, "does not become"),
    ],
)
def test_operations_and_parameters_that_are_not_known_are_refused(
    name: str, parameters: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        ours(name, [T0], parameters, [A])
