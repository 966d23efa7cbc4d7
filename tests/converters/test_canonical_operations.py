"""Operations of Keras 3 and of tf.keras, with constants and operands in their order."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.converters.canonical import CanonicalModel, canonical
from voxtune.converters.errors import ConversionError
from voxtune.converters.keras_config import parse_graph
from voxtune.converters.keras_model import KerasModel

Check = Callable[..., CanonicalModel]


def test_operations_of_keras3(keras: Any, same_as_keras: Check) -> None:
    ops = keras.ops
    x = keras.Input((4, 6), name="x")
    y = keras.Input((4, 6), name="y")
    outputs = [
        1 - x,
        2 / (ops.abs(x) + 1),
        x * y - y,
        keras.layers.Add()([x, y]),  # the layer of the same name as the operation
        ops.maximum(x, 0.2) ** 2,
        ops.clip(x, -0.5, 0.5),
        ops.leaky_relu(x, 0.3),
        ops.gelu(x),
        ops.gelu(x, approximate=False),
        ops.hard_sigmoid(x),
        ops.elu(x, 0.5),
        ops.where(x > y, x, 0.0),
        ops.cast(ops.less_equal(x, y), "float32"),
        ops.stack([x, y], axis=1),
        ops.tile(x, (1, 2, 1)),
        ops.repeat(x, 3, axis=-1),
        ops.var(x, axis=1, keepdims=True),
        x[:, None, 1:3, ..., 2],
        x + np.arange(6, dtype="float32"),
        ops.split(x, [1, 4], axis=2)[1],
    ]
    same_as_keras(keras.Model([x, y], outputs))


TF = "TFOpLambda"
# What TensorFlow computes, said with NumPy.
OPERATIONS: dict[str, tuple[str, list[Any], Callable[[np.ndarray, np.ndarray], Any]]] = {
    "1 - x": (
        "math.subtract",
        ["_CONSTANT_VALUE", -1, 1.0, {"y": ["image", 0, 0], "name": None}],
        lambda x, y: 1 - x,
    ),
    "x / 2": ("math.truediv", ["image", 0, 0, {"y": 2.0, "name": None}], lambda x, y: x / 2),
    "y - x": ("math.subtract", ["y", 0, 0, {"y": ["image", 0, 0]}], lambda x, y: y - x),
    "x ** 2": ("math.pow", ["image", 0, 0, {"y": 2}], lambda x, y: x**2),
    "x > y": (
        "math.greater",
        ["image", 0, 0, {"y": ["y", 0, 0], "name": None}],
        lambda x, y: x > y,
    ),
    "concat": (
        "concat",
        [["image", 0, 0, {"axis": -1}], ["y", 0, 0, {"axis": -1}]],
        lambda x, y: np.concatenate([x, y], -1),
    ),
    "mean": (
        "math.reduce_mean",
        ["image", 0, 0, {"axis": [1, 2], "keepdims": True}],
        lambda x, y: x.mean((1, 2), keepdims=True),
    ),
    "clip": (
        "clip_by_value",
        ["image", 0, 0, {"clip_value_min": -0.5, "clip_value_max": 0.25}],
        lambda x, y: np.clip(x, -0.5, 0.25),
    ),
    "slopes": (
        "nn.leaky_relu",
        ["image", 0, 0, {"alpha": 0.1}],
        lambda x, y: np.where(x > 0, x, 0.1 * x),
    ),
    "transpose": (
        "compat.v1.transpose",
        ["image", 0, 0, {"perm": [0, 2, 1, 3], "name": "transpose", "conjugate": False}],
        lambda x, y: x.transpose(0, 2, 1, 3),
    ),
    "reshape": (
        "reshape",
        ["image", 0, 0, {"shape": [-1, 4, 12]}],
        lambda x, y: x.reshape(-1, 4, 12),
    ),
    "slices": (
        "__operators__.getitem",
        [
            "image",
            0,
            0,
            {
                "slice_spec": [
                    {"class_name": "__ellipsis__"},
                    {"start": None, "stop": None, "step": -1},
                    {"start": 1, "stop": None, "step": None},
                ]
            },
        ],
        lambda x, y: x[..., ::-1, 1:],
    ),
    "pad": (
        "compat.v1.pad",
        ["image", 0, 0, {"paddings": [[0, 0], [1, 0], [0, 2], [0, 0]], "mode": "CONSTANT"}],
        lambda x, y: np.pad(x, [(0, 0), (1, 0), (0, 2), (0, 0)]),
    ),
    "split": (
        "split",
        ["image", 0, 0, {"num_or_size_splits": 3, "axis": -1}],
        lambda x, y: x[..., :1],
    ),
}


def of_tensorflow(keras2: Any, layer: dict[str, Any], y: Any = None) -> KerasModel:
    """A model of two inputs and one operation."""
    image = keras2.layer("image", "InputLayer", batch_input_shape=[None, 4, 4, 3])
    other = keras2.layer("y", "InputLayer", batch_input_shape=[None, 4, 4, 3])
    ends = {"input_layers": [["image", 0, 0], ["y", 0, 0]], "output_layers": [["op", 0, 0]]}
    graph = parse_graph(keras2.functional(image, other, layer, **ends), Path("net.h5"))
    return KerasModel(
        Path("net.h5"), "Keras HDF5", "2.9.0", "tensorflow", graph.name, graph.layers, graph.calls,
        graph.inputs, graph.outputs, "", (),
    )  # fmt: skip


def operation(function: str, node: Any) -> dict[str, Any]:
    kind = "SlicingOpLambda" if "getitem" in function else TF
    config = {"name": "op", "function": function}
    return {"class_name": kind, "name": "op", "config": config, "inbound_nodes": [node]}


@pytest.mark.parametrize(("function", "node", "expected"), OPERATIONS.values(), ids=OPERATIONS)
def test_operations_of_tensorflow(
    keras2: Any,
    computed: Callable[..., dict[str, np.ndarray]],
    function: str,
    node: list[Any],
    expected: Callable[[np.ndarray, np.ndarray], Any],
) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 3)).astype("f")
    found = computed(canonical(of_tensorflow(keras2, operation(function, node))), x, y)["op"]
    np.testing.assert_allclose(found, expected(x, y), rtol=1e-5, atol=1e-6)


def test_nodes_of_tensorflow_2_1(
    keras2: Any, computed: Callable[..., dict[str, np.ndarray]]
) -> None:
    node = {"name": "sub", "op": "Sub", "input": ["sub/x", "image"], "attr": {}}
    layer = keras2.layer(
        "op", "TensorFlowOpLayer", "image", node_def=json.dumps(node), constants={"0": 1.0}
    )
    x, y = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 3)).astype("f")
    found = computed(canonical(of_tensorflow(keras2, layer)), x, y)["op"]
    np.testing.assert_allclose(found, 1 - x, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "node", "words"),
    [
        ("image.resize", ["image", 0, 0, {"size": [8, 8]}], ("'op'", "image.resize")),
        ("math.add", ["image", 0, 0, {}], ("'op'", "without x2")),
        ("pad", ["image", 0, 0, {"paddings": [[0, 0]], "mode": "REFLECT"}], ("'op'", "mode")),
        ("nn.relu", ["image", 0, 0, {"surprise": 3}], ("'op'", "surprise")),
        ("math.add", ["image", 0, 0, {"y": {"a": {}}}], ("'op'", "neither a tensor")),
        ("split", ["image", 0, 0, {"num_or_size_splits": 2, "axis": -1}], ("'op'", "2 parts")),
        ("math.reduce_mean", ["image", 0, 0, {"axis": 9}], ("'op'",)),
    ],
)
def test_operations_that_are_refused(
    keras2: Any, function: str, node: Any, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConversionError) as caught:
        canonical(of_tensorflow(keras2, operation(function, node)))
    assert all(word in str(caught.value) for word in ("net.h5", *words)), caught.value
