"""Back to Keras: the same bits, the same output, and nothing written that is not."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest
from keras import layers

from voxtune.converters.keras_file import read_keras_file
from voxtune.converters.keras_model import KerasModel
from voxtune.converters.to_flax import convert
from voxtune.engine.cli import main
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec, read_model, write_model
from voxtune.models.graph import Graph, GraphCall, GraphLayer
from voxtune.models.parameters import shapes

RNG = np.random.default_rng(0)
CONTRACT = Contract("RAS", (1.0, 1.0, 1.0), "zscore", (8, 8, 8))


def model_dir(folder: Path, family: str, arguments: dict[str, Any], activation: str) -> Path:
    """A model directory with random weights."""
    outputs = arguments["outputs"]
    classes = tuple(LabelClass(value, str(value)) for value in range(max(2, outputs)))
    spec = ModelSpec(family, arguments, activation, classes, CONTRACT)
    values = {
        path: RNG.uniform(0.1, 0.3, shape).astype(np.float32)
        for path, shape in shapes(family, arguments).items()
    }
    write_model(folder, spec, values, history={})
    return folder


def graph(*layers: GraphLayer, training: bool | None = None) -> dict[str, Any]:
    """A chain of layers that ends in a convolution to two outputs, as arguments."""
    last = GraphLayer("last/one", "Conv3D", {"filters": 2, "kernel_size": [1, 1, 1]})
    names = ["image", *(each.name for each in layers), last.name]
    calls = tuple(GraphCall(b, b, (a,), training if b == "x" else None) for a, b in pairwise(names))
    found = Graph((*layers, last), calls, {"image": (8, 8, 8, 1)}, (last.name,))
    return {"graph": found.to_json(), "channels": 1, "outputs": 2}


NORM = GraphLayer("x", "BatchNormalization", {"epsilon": 0.01, "scale": False})
UP = GraphLayer("x", "Conv3DTranspose", {"filters": 2, "kernel_size": [2] * 3, "strides": [2] * 3})
OPERATION = GraphLayer(
    "x", "Operation", {"function": "subtract", "operands": [{"value": 1.0}, {"tensor": 0}]}
)
UNETR = {
    "outputs": 2,
    "size": [8, 8, 8],
    "width": 4,
    "blocks": 2,
    "heads": 2,
    "patch": 4,
    "mlp": 3,
    "filters": 2,
}
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "unet": ("unet", {"outputs": 3, "filters": 2, "depth": 1, "norm": "batch"}, "softmax"),
    "unet of one class": ("unet", {"outputs": 1, "filters": 2, "depth": 1}, "sigmoid"),
    "meshnet": ("meshnet", {"outputs": 2, "filters": 2, "dilations": [1, 2]}, "linear"),
    "highresnet": ("highresnet", {"outputs": 2, "filters": 2, "blocks": 1}, "softmax"),
    "synthseg_unet": ("synthseg_unet", {"outputs": 2, "filters": 2, "depth": 1}, "softmax"),
    "resenc_unet": (
        "resenc_unet",
        {"outputs": 2, "features": [2, 4], "blocks": [1, 2], "strides": [1, 2]},
        "softmax",
    ),
    "vnet": ("vnet", {"outputs": 2, "filters": 4, "depth": 1, "norm": "group"}, "softmax"),
    "unetr": ("unetr", UNETR, "softmax"),
    "graph": ("graph", graph(NORM, GraphLayer("y", "ELU", {})), "softmax"),
    "graph with an operation": ("graph", graph(OPERATION), "sigmoid"),
    "graph that goes up": ("graph", graph(UP), "linear"),
}

# Keras cannot write operations to .h5 (see below), nor read a norm of two axes from it.
NOT_H5 = ("graph with an operation", "highresnet", "unetr")


@pytest.mark.parametrize("case", CASES)
def test_keras_loads_the_same(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family, arguments, activation = CASES[case]
    folder = model_dir(tmp_path / "model", family, {"channels": 1, **arguments}, activation)
    spec, parameters = read_model(folder)
    stored = sorted(value.tobytes() for value in parameters.values())
    x = RNG.normal(size=(1, 8, 8, 8, 1)).astype(np.float32)
    logits = np.asarray(jax.jit(spec.network(parameters))(x), np.float64)
    if activation == "softmax":
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        wanted = exponentials / exponentials.sum(-1, keepdims=True)
    else:
        wanted = 1 / (1 + np.exp(-logits)) if activation == "sigmoid" else logits
    for suffix in (".keras",) if case in NOT_H5 else (".keras", ".h5"):
        path = tmp_path / f"back{suffix}"
        assert main(["export", str(folder), str(path)]) == 0
        assert "bit-identical, output equal to" in capsys.readouterr().out
        original = keras.models.load_model(path, compile=False)
        np.testing.assert_allclose(original(x), wanted, atol=1e-5 * max(1, abs(logits).max()))
        again = read_keras_file(path)
        assert isinstance(again, KerasModel)
        back = convert(again)
        assert sorted(value.tobytes() for value in back.parameters.values()) == stored
        assert back.output_activation == activation


def test_operations_do_not_take_the_names_of_layers(tmp_path: Path) -> None:
    """Keras would call an operation `add`, as it called the layer in the file."""
    add = {"function": "add", "operands": [{"tensor": 0}, {"value": 1.0}]}
    made = graph(GraphLayer("x", "Operation", add), GraphLayer("add", "ELU", {}))
    folder = model_dir(tmp_path / "model", "graph", made, "linear")
    keras.backend.clear_session()  # its numbering begins anew
    assert main(["export", str(folder), str(tmp_path / "back.keras")]) == 0
    back = keras.models.load_model(tmp_path / "back.keras")
    assert back.input_shape == (None, None, None, None, 1)


def test_from_keras_and_back_leaves_every_bit(tmp_path: Path) -> None:
    """A graph with shared and nested layers of several inputs, and a tensor that is all zeros."""
    inside = keras.Input((8, 8, 8, 1), name="inside")
    block = keras.Model(inside, layers.Conv3D(2, 3, padding="same", name="c")(inside), name="block")
    one, two = keras.Input((8, 8, 8, 1), name="one"), keras.Input((8, 8, 8, 1), name="two")
    x = layers.Concatenate()([block(one), block(two)])
    x = layers.PReLU(shared_axes=[1, 2, 3])(layers.GroupNormalization(2)(x))
    original = keras.Model([one, two], [layers.Conv3D(2, 1)(x), layers.Flatten()(x)])
    original.save(tmp_path / "net.keras")
    assert main(["convert", str(tmp_path / "net.keras"), str(tmp_path / "model"), "--verify"]) == 0
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "back.keras")]) == 0
    back = keras.models.load_model(tmp_path / "back.keras")
    assert len(back.weights) == len(original.weights)
    mine = sorted(np.asarray(each).tobytes() for each in back.weights)
    assert mine == sorted(np.asarray(each).tobytes() for each in original.weights)
    given = [RNG.normal(size=(1, 8, 8, 8, 1)).astype(np.float32) for _ in range(2)]
    for ours, theirs in zip(back(given), original(given), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "training", "says"),
    [
        (GraphLayer("x", "SlabGroupNormalization", {"groups": 1}), None, "'x' is a SlabGroup"),
        (GraphLayer("x", "InstanceNormalization", {"axis": -1}), None, "InstanceNormalization"),
        (NORM, True, "statistics of the batch"),
    ],
)
def test_what_keras_lacks_is_refused_by_name(
    layer: GraphLayer, training: bool | None, says: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = model_dir(tmp_path / "model", "graph", graph(layer, training=training), "linear")
    sentence = refused("export", folder, tmp_path / "back.keras")
    assert says in sentence
    assert str(folder) in sentence


def test_a_family_that_keras_lacks_a_layer_of_is_refused(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Nobrainer's VNet; with a group norm of channels it can be written, see above."""
    arguments = {"channels": 1, "outputs": 2, "filters": 4, "depth": 1}
    folder = model_dir(tmp_path / "model", "vnet", arguments, "softmax")
    sentence = refused("export", folder, tmp_path / "back.keras")
    assert (
        "'encoder1/unit1/norm' is a SlabGroupNormalization, which Keras 3 does not have" in sentence
    )


def test_a_form_that_keras_cannot_write_is_a_sentence(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = model_dir(tmp_path / "model", "graph", graph(OPERATION), "sigmoid")
    assert "name a .keras file" in refused("export", folder, tmp_path / "back.h5")


def test_bad_targets_are_a_sentence(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = model_dir(tmp_path / "model", *CASES["meshnet"])
    assert "must end in .keras or .h5" in refused("export", folder, tmp_path / "back.onnx")
    (tmp_path / "back.keras").write_text("mine")
    assert "exists" in refused("export", folder, tmp_path / "back.keras")
    (tmp_path / "folder.keras").mkdir()
    assert "is no file" in refused("export", folder, tmp_path / "folder.keras", "--overwrite")
    assert "no model.json" in refused("export", tmp_path, tmp_path / "other.keras")
    missing = tmp_path / "missing" / "back.keras"
    assert "cannot be written" in refused("export", folder, missing)
    assert main(["export", str(folder), str(tmp_path / "back.keras"), "--overwrite"]) == 0
    assert (tmp_path / "back.keras").read_bytes().startswith(b"PK")
