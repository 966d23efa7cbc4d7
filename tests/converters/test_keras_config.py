"""A configuration becomes the graph of layers, in each spelling of Keras; no code gets in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from voxtune.converters.keras_file import read_keras_file


def test_graph_order_of_the_real_files(shared_data: Path) -> None:
    unet = {
        found.name: found
        for found in read_keras_file(shared_data / "keras/nobrainer/unet.h5").layers
    }
    assert unet["concatenate"].inputs == ("activation_5", "conv3d_transpose")
    small = {
        found.name: found for found in read_keras_file(shared_data / "keras/keras3/small.h5").layers
    }
    assert small["cat2"].inputs == ("enc2_relu", "up2")
    chain = read_keras_file(shared_data / "keras/keras3/sequential.h5")
    assert all(
        found.inputs == (before.name,)
        for before, found in zip(chain.layers[:-1], chain.layers[1:], strict=True)
    )
    assert (chain.inputs, chain.outputs) == (("input_layer",), ("dense_1",))


def test_keras2_functional(
    tmp_path: Path,
    weights: Callable[..., dict[str, np.ndarray]],
    keras2: Any,
    write_h5: Callable[..., Path],
) -> None:
    config = keras2.functional(
        keras2.image,
        keras2.conv,
        keras2.layer("a", "ReLU", "conv"),
        keras2.layer("b", "Dropout", "conv", call={"training": None}),
        keras2.layer("join", "Concatenate", "b", "a", "b", axis=-1, data_format="channels_first"),
        output_layers=[["join", 0, 0], ["a", 0, 0]],
    )
    model = read_keras_file(write_h5(tmp_path / "m.h5", config))
    assert model.layers[-1].inputs == ("b", "a", "b")
    assert model.layers[-1].config["data_format"] == "channels_first"
    assert model.outputs == ("join", "a")
    np.testing.assert_array_equal(weights(model, "conv")["kernel"], keras2.kernel)


def test_config_may_be_str_and_layers_out_of_order(
    tmp_path: Path, keras2: Any, write_h5: Callable[..., Path]
) -> None:
    config = keras2.functional(keras2.conv, keras2.image, output_layers=[["conv", 0, 0]])

    def as_str(file: h5py.File) -> None:
        file.attrs["model_config"] = json.dumps(config)

    model = read_keras_file(write_h5(tmp_path / "m.h5", alter=as_str))
    assert [found.name for found in model.layers] == ["conv", "image"]


@pytest.mark.parametrize("as_list", [False, True])
def test_sequential_without_input_layer(
    tmp_path: Path, as_list: bool, write_h5: Callable[..., Path]
) -> None:
    conv = {
        "class_name": "Conv3D",
        "config": {"name": "conv", "batch_input_shape": [None, 8, 8, 8, 1]},
    }
    relu = {"class_name": "ReLU", "config": {"name": "relu"}}
    config: Any = [conv, relu] if as_list else {"name": "chain", "layers": [conv, relu]}
    model = read_keras_file(
        write_h5(tmp_path / "m.h5", {"class_name": "Sequential", "config": config})
    )
    assert model.name == ("sequential" if as_list else "chain")
    assert [found.inputs for found in model.layers] == [(), ("conv_input",), ("conv",)]
    assert model.layers[0].class_name == "InputLayer"
    assert model.layers[0].config["batch_input_shape"] == [None, 8, 8, 8, 1]
    assert (model.inputs, model.outputs) == (("conv_input",), ("relu",))


def keras3_node(*arguments: Any, **kwargs: Any) -> list[dict[str, Any]]:
    return [{"args": list(arguments), "kwargs": kwargs}]


def keras3_tensor(name: str, node: int = 0) -> dict[str, Any]:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, node, 0]}}


# Each is made with the fixture keras2.
BAD_GRAPHS: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "a list": (lambda k: [], ("not that of a Keras model",)),
    "no layers": (lambda k: k.functional(k.image, layers=[]), ("no layers",)),
    "layers no list": (lambda k: k.functional(k.image, layers={"a": 1}), ("no layers",)),
    "entry no layer": (lambda k: k.functional(k.image, layers=[k.image, 3]), ("entry 1",)),
    "no name": (
        lambda k: k.functional(k.image, {"class_name": "ReLU", "config": {}}),
        ("no name",),
    ),
    "duplicate": (lambda k: k.functional(k.image, k.conv, k.conv), ("two layers", "'conv'")),
    "other class": (lambda k: {"class_name": "Mine", "config": {"layers": [k.image]}}, ("'Mine'",)),
    "lambda": (
        lambda k: k.functional(k.image, k.layer("f", "Lambda", "image")),
        ("'f'", "Lambda", "refused"),
    ),
    "wrapped lambda": (
        lambda k: k.functional(
            k.image, k.layer("f", "TimeDistributed", "image", layer=k.layer("inner", "Lambda"))
        ),
        ("'f'", "refused"),
    ),
    "nested lambda": (
        lambda k: k.functional(
            k.image, k.layer("f", "Functional", "image", layers=[k.layer("inner", "Lambda")])
        ),
        ("'f'", "refused"),
    ),
    "lambda as activation": (
        lambda k: k.functional(
            k.image, k.layer("f", "Dense", "image", activation={"class_name": "__lambda__"})
        ),
        ("'f'", "refused"),
    ),
    "nested": (
        lambda k: k.functional(k.image, k.layer("f", "Functional", "image", layers=[])),
        ("'f'", "model inside the model"),
    ),
    "shared": (
        lambda k: k.functional(k.image, k.conv | {"inbound_nodes": k.conv["inbound_nodes"] * 2}),
        ("'conv'", "shared layer"),
    ),
    "second output": (
        lambda k: k.functional(k.image, k.conv | {"inbound_nodes": [[["image", 0, 1, {}]]]}),
        ("'conv'", "one output"),
    ),
    "called with": (
        lambda k: k.functional(k.image, k.layer("f", "TFOpLambda", "image", call={"y": 2.0})),
        ("'f'", "'y'"),
    ),
    "always training": (
        lambda k: k.functional(k.image, k.layer("f", "Dropout", "image", call={"training": True})),
        ("'f'", "'training'"),
    ),
    "operator, Keras 3": (
        lambda k: k.functional(
            k.image, k.conv | {"inbound_nodes": keras3_node(keras3_tensor("image"), 1.0)}
        ),
        ("'conv'", "no tensor"),
    ),
    "keyword, Keras 3": (
        lambda k: k.functional(
            k.image, k.conv | {"inbound_nodes": keras3_node(keras3_tensor("image"), training=True)}
        ),
        ("'conv'", "'training'"),
    ),
    "second node, Keras 3": (
        lambda k: k.functional(
            k.image, k.conv | {"inbound_nodes": keras3_node(keras3_tensor("image", 1))}
        ),
        ("'conv'", "used once"),
    ),
    "no history, Keras 3": (
        lambda k: k.functional(
            k.image,
            k.conv
            | {"inbound_nodes": keras3_node({"class_name": "__keras_tensor__", "config": 3})},
        ),
        ("'conv'", "connections"),
    ),
    "unknown source": (
        lambda k: k.functional(k.image, k.layer("f", "ReLU", "nowhere")),
        ("'f'", "'nowhere'"),
    ),
    "unknown output": (
        lambda k: k.functional(k.image, k.conv, output_layers=[["x", 0, 0]]),
        ("'x'", "outputs"),
    ),
    "outputs by name": (
        lambda k: k.functional(k.image, k.conv, output_layers={"a": 1}),
        ("outputs",),
    ),
    "no outputs": (lambda k: k.functional(k.image, k.conv, output_layers=[]), ("outputs",)),
    "input is a layer": (
        lambda k: k.functional(k.image, k.conv, input_layers=[["conv", 0, 0]]),
        ("inputs",),
    ),
    "reads nothing": (
        lambda k: k.functional(k.image, k.conv, k.layer("f", "ReLU")),
        ("'f'", "reads nothing"),
    ),
    "input reads": (
        lambda k: k.functional(k.image, k.layer("f", "InputLayer", "image")),
        ("'f'", "reads"),
    ),
    "cycle": (
        lambda k: k.functional(
            k.image, k.layer("f", "Add", "image", "g"), k.layer("g", "ReLU", "f")
        ),
        ("its own output",),
    ),
    "nodes no list": (
        lambda k: k.functional(k.image, k.conv | {"inbound_nodes": 3}),
        ("'conv'", "connections"),
    ),
    "node no list": (
        lambda k: k.functional(k.image, k.conv | {"inbound_nodes": [3]}),
        ("'conv'", "connections"),
    ),
    "reference no list": (
        lambda k: k.functional(k.image, k.conv | {"inbound_nodes": [[3]]}),
        ("'conv'", "connections"),
    ),
    "no shape": (
        lambda k: {"class_name": "Sequential", "config": {"layers": [k.layer("r", "ReLU")]}},
        ("input shape",),
    ),
}


@pytest.mark.parametrize(("config", "words"), BAD_GRAPHS.values(), ids=BAD_GRAPHS.keys())
def test_bad_graph(
    tmp_path: Path,
    config: Callable[[Any], Any],
    words: tuple[str, ...],
    refused: Callable[..., str],
    keras2: Any,
    write_h5: Callable[..., Path],
) -> None:
    refused(write_h5(tmp_path / "bad.h5", config(keras2)), *words)


def test_words_of_the_file_cannot_break_the_sentence(
    tmp_path: Path, refused: Callable[..., str], keras2: Any, write_h5: Callable[..., Path]
) -> None:
    name = "\x1b[31m\n" + "x" * 10_000
    sentence = refused(
        write_h5(
            tmp_path / "m.h5",
            keras2.functional(keras2.image, keras2.layer(name, "Lambda", "image")),
        )
    )
    assert "\x1b" not in sentence
    assert len(sentence) < 500


def test_keras3_lambda_is_refused(keras: Any, tmp_path: Path, refused: Callable[..., str]) -> None:
    image = keras.Input((4,))
    marker = str(tmp_path / "ran")
    out = keras.layers.Lambda(lambda x: (open(marker, "w"), x)[1], name="mine")(image)  # noqa: SIM115, PTH123
    Path(marker).unlink(missing_ok=True)
    keras.Model(image, out).save(tmp_path / "model.h5")
    refused(tmp_path / "model.h5", "'mine'", "Lambda", "refused")
    assert not Path(marker).exists()
