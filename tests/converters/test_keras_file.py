"""Keras files are read to the last bit, and bad ones end in one sentence."""

import contextlib
import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import h5py
import numpy as np
import pytest

from voxtune.converters.keras_file import ConversionError, KerasModel, read_keras_file

RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(3, 3, 3, 1, 2)).astype(np.float32)
BIAS = RANDOM.normal(size=2).astype(np.float32)


def refused(path: Path, *words: str) -> str:
    """The sentence with which a file is refused: one line that names the file."""
    with pytest.raises(ConversionError) as caught:
        read_keras_file(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    for word in words:
        assert word in sentence, sentence
    return sentence


def weights(model: KerasModel, layer: str) -> dict[str, np.ndarray]:
    return dict(next(found for found in model.layers if found.name == layer).weights)


# Models by hand


def layer(
    name: str, class_name: str, *inputs: str, call: dict | None = None, **config: Any
) -> dict[str, Any]:
    """A layer as Keras 2 writes it."""
    return {
        "class_name": class_name,
        "config": {"name": name, **config},
        "name": name,
        "inbound_nodes": [[[source, 0, 0, call or {}] for source in inputs]] if inputs else [],
    }


def functional(*layers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    config = {
        "name": "model",
        "layers": list(layers),
        "input_layers": [["image", 0, 0]],
        "output_layers": [[layers[-1].get("name"), 0, 0]],
    }
    return {"class_name": "Functional", "config": config | changes}


IMAGE = layer("image", "InputLayer", batch_input_shape=[None, 8, 8, 8, 1])
CONV = layer("conv", "Conv3D", "image", filters=2, kernel_size=[3, 3, 3])
SMALL = functional(IMAGE, CONV)
SMALL_TENSORS = {"conv": {"conv/kernel:0": KERNEL, "conv/bias:0": BIAS}}


def entry(name: str, array: np.ndarray, **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "dtype": "float32"} | changes


SMALL_MANIFEST = [
    {
        "paths": ["a.bin"],
        "weights": [entry("conv/kernel", KERNEL), entry("conv/bias", BIAS)],
    }
]
SMALL_SHARDS = {"a.bin": KERNEL.astype("<f4").tobytes() + BIAS.astype("<f4").tobytes()}


def write_tfjs(
    folder: Path,
    config: Any = SMALL,
    manifest: Any = SMALL_MANIFEST,
    shards: dict[str, bytes] = SMALL_SHARDS,
    **changes: Any,
) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    topology = {"keras_version": "2.7.0", "model_config": config}
    document = {"format": "layers-model", "modelTopology": topology, "weightsManifest": manifest}
    path = folder / "model.json"
    path.write_text(json.dumps(document | changes))
    return path


def write_h5(
    path: Path,
    config: Any = SMALL,
    tensors: dict[str, dict[str, Any]] = SMALL_TENSORS,
    alter: Callable[[h5py.File], object] = lambda file: None,
) -> Path:
    """A whole model in the layout of Keras 2, then altered."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.7.0"
        file.attrs["model_config"] = json.dumps(config).encode()
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in tensors]
        for name, arrays in tensors.items():
            held = group.create_group(name)
            held.attrs["weight_names"] = [weight.encode() for weight in arrays]
            for weight, array in arrays.items():
                held.create_dataset(weight, data=array)
        alter(file)
    return path


# The real files


@pytest.mark.parametrize(
    ("name", "layers", "parameters"),  # parameters as listed for these models
    [
        ("model5_gw_ae", 20, 5598),
        ("model11_gw_ae", 18, 23290),
        ("model20chan3cls", 20, 87183),
        ("model18cls", 20, 96408),
    ],
)
def test_brainchop_arrays_are_the_bytes_of_the_shard(
    shared_data: Path, name: str, layers: int, parameters: int
) -> None:
    folder = shared_data / "keras/brainchop" / name
    document = json.loads((folder / "model.json").read_text())
    (group,) = document["weightsManifest"]
    content = (folder / group["paths"][0]).read_bytes()

    model = read_keras_file(folder)

    assert read_keras_file(folder / "model.json").sha256 == model.sha256
    assert (
        model.sha256 == hashlib.sha256((folder / "model.json").read_bytes() + content).hexdigest()
    )
    assert (model.format, model.inputs, model.outputs) == (
        "TF.js layers model",
        ("input",),
        ("output",),
    )
    assert len(model.layers) == layers
    offset = 0
    for listed in group["weights"]:
        size = int(np.prod(listed["shape"]))
        wanted = np.frombuffer(content, "<f4", size, 4 * offset).reshape(listed["shape"])
        layer_name, short = listed["name"].rsplit("/", 1)
        np.testing.assert_array_equal(weights(model, layer_name)[short], wanted)
        offset += size
    assert (
        offset
        == parameters
        == sum(w.size for found in model.layers for w in found.weights.values())
    )


@pytest.mark.parametrize(
    ("name", "version", "parameters"),
    [
        ("nobrainer/unet", "2.14.0", 4768289),
        ("nobrainer/meshnet", "2.14.0", 72766),
        ("nobrainer/highresnet", "2.14.0", 875110),
        ("nobrainer/autoencoder", "2.14.0", 1642257),
        ("nobrainer/variational_meshnet", "2.14.0", 216310),
        ("keras3/small", "3.15.1", 43244),
        ("keras3/sequential", "3.15.1", 8717),
    ],
)
def test_h5_arrays_are_those_of_the_file(
    shared_data: Path, name: str, version: str, parameters: int
) -> None:
    path = shared_data / "keras" / f"{name}.h5"
    model = read_keras_file(path)
    assert (model.format, model.keras_version, model.left_out) == ("Keras HDF5", version, ())
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    total = 0
    with h5py.File(path) as file:
        listed = [
            layer["config"] for layer in json.loads(file.attrs["model_config"])["config"]["layers"]
        ]
        assert [dict(found.config) for found in model.layers] == listed
        for layer_name in file["model_weights"].attrs["layer_names"]:
            group = file["model_weights"][layer_name]
            found = weights(model, layer_name)
            assert len(found) == len(group.attrs["weight_names"])
            for weight in group.attrs["weight_names"]:
                short = weight.removesuffix(":0").rsplit("/", 1)[1]
                np.testing.assert_array_equal(found[short], group[weight][()])
                assert found[short].dtype == np.float32
                total += found[short].size
    assert total == parameters


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


# Files that the real Keras 3 writes here


@pytest.fixture(scope="module")
def keras() -> Any:
    return pytest.importorskip("keras")


@pytest.fixture(scope="module")
def keras_h5(keras: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny compiled Keras 3 model, two inputs and two outputs, and its legacy .h5 file."""
    layers = keras.layers
    image, extra = (keras.Input((6, 6, 6, 1), name=name) for name in ("image", "extra"))
    x = layers.Conv3D(2, 3, padding="same", name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.1, name="drop")(x)
    joined = layers.Concatenate(name="joined")([x, extra])
    head = layers.Conv3D(1, 1, name="head")(joined)
    model = keras.Model([image, extra], [head, x], name="tiny")
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    path = tmp_path_factory.mktemp("keras") / "tiny.h5"
    model.save(path)
    return path, model


def test_keras3_functional(keras_h5: tuple[Path, Any]) -> None:
    path, keras_model = keras_h5
    model = read_keras_file(path)
    assert model.name == "tiny"
    assert (model.inputs, model.outputs) == (("image", "extra"), ("head", "drop"))
    assert next(found for found in model.layers if found.name == "joined").inputs == (
        "drop",
        "extra",
    )
    for found in model.layers:
        wanted = {v.name: np.asarray(v) for v in keras_model.get_layer(found.name).weights}
        assert found.weights.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(found.weights[name], value)
            assert not found.weights[name].flags.writeable
    assert "optimizer_weights/adam/conv_kernel_momentum" in model.left_out
    assert all(name.startswith("optimizer_weights/") for name in model.left_out)


def test_keras3_lambda_is_refused(keras: Any, tmp_path: Path) -> None:
    image = keras.Input((4,))
    marker = str(tmp_path / "ran")
    out = keras.layers.Lambda(lambda x: (open(marker, "w"), x)[1], name="mine")(image)  # noqa: SIM115, PTH123
    Path(marker).unlink(missing_ok=True)
    keras.Model(image, out).save(tmp_path / "model.h5")
    refused(tmp_path / "model.h5", "'mine'", "Lambda", "refused")
    assert not Path(marker).exists()


def test_truncated_anywhere(keras_h5: tuple[Path, Any], tmp_path: Path) -> None:
    content = keras_h5[0].read_bytes()
    path = tmp_path / "cut.h5"
    for position in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:position])
        refused(path)


def test_flipped_bits_never_give_another_error(keras_h5: tuple[Path, Any], tmp_path: Path) -> None:
    content = keras_h5[0].read_bytes()
    path = tmp_path / "flipped.h5"
    random = np.random.default_rng(3)
    for _ in range(100):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(ConversionError):  # a flip within a tensor goes unseen
            read_keras_file(path)


# The graph


def graph_of(config: Any, path: Path, tensors: Any = SMALL_TENSORS) -> KerasModel:
    return read_keras_file(write_h5(path / "graph.h5", config, tensors))


def test_keras2_functional(tmp_path: Path) -> None:
    config = functional(
        IMAGE,
        CONV,
        layer("a", "ReLU", "conv"),
        layer("b", "Dropout", "conv", call={"training": None}),
        layer("join", "Concatenate", "b", "a", "b", axis=-1, data_format="channels_first"),
        output_layers=[["join", 0, 0], ["a", 0, 0]],
    )
    model = graph_of(config, tmp_path)
    assert model.layers[-1].inputs == ("b", "a", "b")
    assert model.layers[-1].config["data_format"] == "channels_first"
    assert model.outputs == ("join", "a")
    np.testing.assert_array_equal(weights(model, "conv")["kernel"], KERNEL)


def test_config_may_be_str_and_layers_out_of_order(tmp_path: Path) -> None:
    config = functional(CONV, IMAGE, output_layers=[["conv", 0, 0]])

    def as_str(file: h5py.File) -> None:
        file.attrs["model_config"] = json.dumps(config)

    model = read_keras_file(write_h5(tmp_path / "m.h5", alter=as_str))
    assert [found.name for found in model.layers] == ["conv", "image"]


@pytest.mark.parametrize("as_list", [False, True])
def test_sequential_without_input_layer(tmp_path: Path, as_list: bool) -> None:
    conv = {
        "class_name": "Conv3D",
        "config": {"name": "conv", "batch_input_shape": [None, 8, 8, 8, 1]},
    }
    relu = {"class_name": "ReLU", "config": {"name": "relu"}}
    config: Any = [conv, relu] if as_list else {"name": "chain", "layers": [conv, relu]}
    model = graph_of({"class_name": "Sequential", "config": config}, tmp_path)
    assert model.name == ("sequential" if as_list else "chain")
    assert [found.inputs for found in model.layers] == [(), ("conv_input",), ("conv",)]
    assert model.layers[0].class_name == "InputLayer"
    assert model.layers[0].config["batch_input_shape"] == [None, 8, 8, 8, 1]
    assert (model.inputs, model.outputs) == (("conv_input",), ("relu",))


def keras3_node(*arguments: Any, **kwargs: Any) -> list[dict[str, Any]]:
    return [{"args": list(arguments), "kwargs": kwargs}]


def keras3_tensor(name: str, node: int = 0) -> dict[str, Any]:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, node, 0]}}


BAD_GRAPHS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a list": ([], ("not that of a Keras model",)),
    "no layers": (functional(IMAGE, layers=[]), ("no layers",)),
    "layers no list": (functional(IMAGE, layers={"a": 1}), ("no layers",)),
    "entry no layer": (functional(IMAGE, layers=[IMAGE, 3]), ("entry 1",)),
    "no name": (functional(IMAGE, {"class_name": "ReLU", "config": {}}), ("no name",)),
    "duplicate": (functional(IMAGE, CONV, CONV), ("two layers", "'conv'")),
    "other class": ({"class_name": "Mine", "config": {"layers": [IMAGE]}}, ("'Mine'",)),
    "lambda": (functional(IMAGE, layer("f", "Lambda", "image")), ("'f'", "Lambda", "refused")),
    "wrapped lambda": (
        functional(IMAGE, layer("f", "TimeDistributed", "image", layer=layer("inner", "Lambda"))),
        ("'f'", "refused"),
    ),
    "nested lambda": (
        functional(IMAGE, layer("f", "Functional", "image", layers=[layer("inner", "Lambda")])),
        ("'f'", "refused"),
    ),
    "lambda as activation": (
        functional(IMAGE, layer("f", "Dense", "image", activation={"class_name": "__lambda__"})),
        ("'f'", "refused"),
    ),
    "nested": (
        functional(IMAGE, layer("f", "Functional", "image", layers=[])),
        ("'f'", "model inside the model"),
    ),
    "shared": (
        functional(IMAGE, CONV | {"inbound_nodes": CONV["inbound_nodes"] * 2}),
        ("'conv'", "shared layer"),
    ),
    "second output": (
        functional(IMAGE, CONV | {"inbound_nodes": [[["image", 0, 1, {}]]]}),
        ("'conv'", "one output"),
    ),
    "called with": (
        functional(IMAGE, layer("f", "TFOpLambda", "image", call={"y": 2.0})),
        ("'f'", "'y'"),
    ),
    "always training": (
        functional(IMAGE, layer("f", "Dropout", "image", call={"training": True})),
        ("'f'", "'training'"),
    ),
    "operator, Keras 3": (
        functional(IMAGE, CONV | {"inbound_nodes": keras3_node(keras3_tensor("image"), 1.0)}),
        ("'conv'", "no tensor"),
    ),
    "keyword, Keras 3": (
        functional(
            IMAGE, CONV | {"inbound_nodes": keras3_node(keras3_tensor("image"), training=True)}
        ),
        ("'conv'", "'training'"),
    ),
    "second node, Keras 3": (
        functional(IMAGE, CONV | {"inbound_nodes": keras3_node(keras3_tensor("image", 1))}),
        ("'conv'", "used once"),
    ),
    "no history, Keras 3": (
        functional(
            IMAGE,
            CONV | {"inbound_nodes": keras3_node({"class_name": "__keras_tensor__", "config": 3})},
        ),
        ("'conv'", "connections"),
    ),
    "unknown source": (
        functional(IMAGE, layer("f", "ReLU", "nowhere")),
        ("'f'", "'nowhere'"),
    ),
    "unknown output": (functional(IMAGE, CONV, output_layers=[["x", 0, 0]]), ("'x'", "outputs")),
    "outputs by name": (functional(IMAGE, CONV, output_layers={"a": 1}), ("outputs",)),
    "no outputs": (functional(IMAGE, CONV, output_layers=[]), ("outputs",)),
    "input is a layer": (functional(IMAGE, CONV, input_layers=[["conv", 0, 0]]), ("inputs",)),
    "reads nothing": (functional(IMAGE, CONV, layer("f", "ReLU")), ("'f'", "reads nothing")),
    "input reads": (functional(IMAGE, layer("f", "InputLayer", "image")), ("'f'", "reads")),
    "cycle": (
        functional(IMAGE, layer("f", "Add", "image", "g"), layer("g", "ReLU", "f")),
        ("its own output",),
    ),
    "nodes no list": (functional(IMAGE, CONV | {"inbound_nodes": 3}), ("'conv'", "connections")),
    "node no list": (functional(IMAGE, CONV | {"inbound_nodes": [3]}), ("'conv'", "connections")),
    "reference no list": (
        functional(IMAGE, CONV | {"inbound_nodes": [[3]]}),
        ("'conv'", "connections"),
    ),
    "no shape": (
        {"class_name": "Sequential", "config": {"layers": [layer("r", "ReLU")]}},
        ("input shape",),
    ),
}


@pytest.mark.parametrize(("config", "words"), BAD_GRAPHS.values(), ids=BAD_GRAPHS.keys())
def test_bad_graph(tmp_path: Path, config: Any, words: tuple[str, ...]) -> None:
    refused(write_h5(tmp_path / "bad.h5", config), *words)


def test_words_of_the_file_cannot_break_the_sentence(tmp_path: Path) -> None:
    name = "\x1b[31m\n" + "x" * 10_000
    sentence = refused(
        write_h5(tmp_path / "m.h5", functional(IMAGE, layer(name, "Lambda", "image")))
    )
    assert "\x1b" not in sentence
    assert len(sentence) < 500


# HDF5


def test_names_split_nested_and_in_other_scopes(tmp_path: Path) -> None:
    """Long attributes are split; layer names may hold slashes; a weight's scope may be another."""
    config = functional(
        IMAGE, layer("block/conv", "Conv3D", "image"), layer("block", "Dense", "block/conv")
    )
    tensors = {
        "block": {"block/query/kernel": BIAS, "block/key/kernel": BIAS + 1},
        "block/conv": {"block/conv/kernel:0": KERNEL, "other_1/bias:0": BIAS},
    }

    def split(file: h5py.File) -> None:
        attributes = file["model_weights"].attrs
        names = attributes["layer_names"]
        del attributes["layer_names"]
        attributes["layer_names0"], attributes["layer_names1"] = names[:1], names[1:]

    config["config"]["layers"][1]["config"].pop("name")  # Nobrainer's layers name themselves once
    model = read_keras_file(write_h5(tmp_path / "m.h5", config, tensors, split))
    np.testing.assert_array_equal(weights(model, "block/conv")["kernel"], KERNEL)
    np.testing.assert_array_equal(weights(model, "block/conv")["bias"], BIAS)
    np.testing.assert_array_equal(weights(model, "block")["key/kernel"], BIAS + 1)
    assert weights(model, "block").keys() == {"query/kernel", "key/kernel"}


def test_fixed_length_names_and_float16(tmp_path: Path) -> None:
    def fixed(file: h5py.File) -> None:
        file["model_weights"].attrs["layer_names"] = np.array([b"image", b"conv"])
        file["model_weights"].create_group("image")
        file.attrs["model_config"] = np.bytes_(json.dumps(SMALL).encode())

    half = {"conv": {"conv/kernel:0": KERNEL.astype(np.float16), "conv/bias:0": BIAS.astype(">f4")}}
    model = read_keras_file(write_h5(tmp_path / "m.hdf5", tensors=half, alter=fixed))
    assert weights(model, "conv")["kernel"].dtype == np.float32
    np.testing.assert_array_equal(weights(model, "conv")["kernel"], KERNEL.astype(np.float16))
    np.testing.assert_array_equal(weights(model, "conv")["bias"], BIAS)


def test_version_is_empty_when_unknown(tmp_path: Path) -> None:
    model = read_keras_file(
        write_h5(tmp_path / "m.h5", alter=lambda f: f.attrs.__delitem__("keras_version"))
    )
    assert model.keras_version == ""


def _unlisted(file: h5py.File) -> None:
    file["model_weights/conv"].create_dataset("extra", data=BIAS)


def _outside(file: h5py.File) -> None:
    file.create_dataset("payload", data=BIAS)


def _listed_only(file: h5py.File) -> None:
    file["model_weights/conv"].attrs["weight_names"] = [b"conv/kernel:0", b"conv/bias:0", b"gone"]


def _listed_twice(file: h5py.File) -> None:
    file["model_weights/conv"].attrs["weight_names"] = [b"conv/kernel:0", b"conv/kernel:0"]


def _layer_twice(file: h5py.File) -> None:
    file["model_weights"].attrs["layer_names"] = [b"conv", b"conv"]


def _layer_gone(file: h5py.File) -> None:
    file["model_weights"].attrs["layer_names"] = [b"conv", b"ghost"]


def _names_numbers(file: h5py.File) -> None:
    file["model_weights"].attrs["layer_names"] = np.arange(3)


def _config_number(file: h5py.File) -> None:
    file.attrs["model_config"] = 3


def _config_sequence(file: h5py.File) -> None:
    value = np.empty((), object)
    value[()] = np.frombuffer(json.dumps(SMALL).encode(), np.uint8)
    file.attrs.create("model_config", value, (), h5py.vlen_dtype(np.uint8))


def _config_deep(file: h5py.File) -> None:
    file.attrs["model_config"] = "[" * 200_000


def _config_cut(file: h5py.File) -> None:
    file.attrs["model_config"] = json.dumps(SMALL)[:-5]


def _soft_link(file: h5py.File) -> None:
    file["model_weights/conv/conv/soft"] = h5py.SoftLink("/model_weights/conv/conv/kernel:0")


def _external_link(file: h5py.File) -> None:
    file["model_weights/conv/conv/bias:0x"] = h5py.ExternalLink("other.h5", "/secret")


def _hard_link(file: h5py.File) -> None:
    file["optimizer_weights"] = file["model_weights"]


def _cycle(file: h5py.File) -> None:
    file["model_weights/conv/again"] = file["/"]


def _replaced(create: Callable[[Any], object]) -> Callable[[h5py.File], None]:
    """An alteration that puts another dataset in the place of the bias."""

    def alter(file: h5py.File) -> None:
        group = file["model_weights/conv/conv"]
        del group["bias:0"]
        create(group)

    return alter


def _external_storage(group: Any) -> None:
    group.create_dataset("bias:0", (2,), "f4", external=[("/etc/passwd", 0, 8)])


def _virtual(group: Any) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("/elsewhere.h5", "x", (2,))
    group.create_virtual_dataset("bias:0", layout)


def _enormous(group: Any) -> None:
    group.create_dataset("bias:0", (2**40, 2**20), "f4")


def _chunked(group: Any) -> None:
    group.create_dataset("bias:0", data=np.zeros(2**16, np.float32), compression="gzip")


def _object(group: Any) -> None:
    group.create_dataset("bias:0", data=["a", "b"], dtype=h5py.string_dtype())


BAD_H5: dict[str, tuple[Callable[[h5py.File], object], tuple[str, ...]]] = {
    "unlisted tensor": (_unlisted, ("extra", "no layer")),
    "tensor outside": (_outside, ("payload", "no layer")),
    "listed tensor gone": (_listed_only, ("'gone'", "not in the file")),
    "tensor listed twice": (_listed_twice, ("'conv/kernel:0'", "twice")),
    "layer listed twice": (_layer_twice, ("'conv'", "twice")),
    "layer gone": (_layer_gone, ("'ghost'", "not in the file")),
    "names are numbers": (_names_numbers, ("layer_names",)),
    "config is a number": (_config_number, ("model_config",)),
    "config is a sequence": (_config_sequence, ("model_config", "not a text")),
    "config nested deep": (_config_deep, ("nests too deep",)),
    "config cut": (_config_cut, ("JSON", "cut short")),
    "soft link": (_soft_link, ("soft", "link", "refused")),
    "external link": (_external_link, ("link", "refused")),
    "hard link": (_hard_link, ("two names", "refused")),
    "group in itself": (_cycle, ("two names", "refused")),
    "named type": (lambda f: f.__setitem__("type", np.dtype("f4")), ("neither a group",)),
    "external storage": (_replaced(_external_storage), ("'conv/bias:0'", "another file")),
    "virtual": (_replaced(_virtual), ("'conv/bias:0'", "virtual")),
    "enormous": (_replaced(_enormous), ("'conv/bias:0'", "0 bytes in the file")),
    "compressed": (_replaced(_chunked), ("'conv/bias:0'", "h5repack")),
    "object": (_replaced(_object), ("'conv/bias:0'", "type")),
    "double": (
        _replaced(lambda g: g.create_dataset("bias:0", data=BIAS.astype("f8"))),
        ("'conv/bias:0'", "float64"),
    ),
    "empty": (
        _replaced(lambda g: g.create_dataset("bias:0", (0,), "f4")),
        ("'conv/bias:0'", "0 bytes"),
    ),
}


@pytest.mark.parametrize(("alter", "words"), BAD_H5.values(), ids=BAD_H5.keys())
def test_bad_h5(tmp_path: Path, alter: Any, words: tuple[str, ...]) -> None:
    refused(write_h5(tmp_path / "bad.h5", alter=alter), *words)


def test_h5_layer_absent_from_the_config(tmp_path: Path) -> None:
    tensors = SMALL_TENSORS | {"stray": {"stray/kernel:0": KERNEL}}
    refused(write_h5(tmp_path / "m.h5", tensors=tensors), "'stray/kernel:0'", "no layer")


def test_h5_two_weights_of_one_short_name(tmp_path: Path) -> None:
    tensors = {"conv": {"a/kernel:0": KERNEL, "b/kernel:0": KERNEL}}
    refused(write_h5(tmp_path / "m.h5", tensors=tensors), "two tensors", "'kernel'")


def test_config_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_h5(tmp_path / "m.h5")
    folder = write_tfjs(tmp_path / "web")
    for module in ("hdf5", "tfjs"):
        monkeypatch.setattr(f"voxtune.converters.{module}.MAX_CONFIG_BYTES", 100)
    refused(path, "text", "too large")
    refused(folder, "too large")


def test_impossible_entry_of_a_text_heap(tmp_path: Path) -> None:
    """An entry of size zero, or so large that its end wraps around, holds libhdf5 2.0 for ever."""
    path = write_h5(tmp_path / "m.h5")
    content = path.read_bytes()
    free_space = content.index(b"GCOL") + 16  # the first entry
    for size in (0, 2**64 - 16, len(content)):
        for index in (0, 1):
            entry_bytes = index.to_bytes(8, "little") + size.to_bytes(8, "little")
            path.write_bytes(content[:free_space] + entry_bytes + content[free_space + 16 :])
            if (size, index) != (0, 1):
                refused(path, "broken")


def test_many_names_may_not_multiply_one_long_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_h5(tmp_path / "m.h5")
    monkeypatch.setattr("voxtune.converters.hdf5._MAX_NAMES_BYTES", 10)
    refused(path, "layer_names", "too large")


# TF.js


def test_several_groups_and_shards(tmp_path: Path) -> None:
    """Shards are cut anywhere within a group; each group begins at its own zero."""
    data = SMALL_SHARDS["a.bin"]
    manifest = [
        {"paths": ["a.bin", "b.bin"], "weights": SMALL_MANIFEST[0]["weights"]},
        {
            "paths": ["c.bin"],
            "weights": [entry("scale/gamma", BIAS), entry("Adam/m", BIAS, group="optimizer")],
        },
    ]
    shards = {"a.bin": data[:7], "b.bin": data[7:], "c.bin": 2 * BIAS.tobytes()}
    config = functional(IMAGE, CONV, layer("scale", "BatchNormalization", "conv"))
    path = write_tfjs(tmp_path, config, manifest, shards)
    model = read_keras_file(tmp_path)
    np.testing.assert_array_equal(weights(model, "conv")["kernel"], KERNEL)
    np.testing.assert_array_equal(weights(model, "conv")["bias"], BIAS)
    np.testing.assert_array_equal(weights(model, "scale")["gamma"], BIAS)
    assert model.left_out == ("Adam/m",)
    assert (model.path, model.keras_version) == (path, "2.7.0")
    assert model.sha256 == hashlib.sha256(path.read_bytes() + data + 2 * BIAS.tobytes()).hexdigest()


def test_quantised_entries(tmp_path: Path) -> None:
    """TF.js: value = stored * scale + min. Odd sizes leave what follows unaligned."""
    rows = np.array([0, 1, 255], np.uint8)
    wide = np.array([0, 65535], "<u2")
    half = np.array([0.5, -2.0], "<f2")
    packed = {"dtype": "uint8", "scale": 0.1, "min": -3}
    manifest = [
        {
            "paths": ["a.bin"],
            "weights": [
                entry("conv/kernel", rows, quantization=packed),
                entry("conv/wide", wide, quantization=packed | {"dtype": "uint16"}),
                entry("conv/half", half, quantization={"dtype": "float16"}),
                entry("conv/bias", BIAS),
            ],
        }
    ]
    content = rows.tobytes() + wide.tobytes() + half.tobytes() + BIAS.tobytes()
    write_tfjs(tmp_path, manifest=manifest, shards={"a.bin": content})
    found = weights(read_keras_file(tmp_path), "conv")
    assert all(array.dtype == np.float32 for array in found.values())
    np.testing.assert_allclose(found["kernel"], [-3, -2.9, 22.5], rtol=1e-6)
    np.testing.assert_allclose(found["wide"], [-3, 6550.5], rtol=1e-6)
    np.testing.assert_array_equal(found["half"], [0.5, -2.0])
    np.testing.assert_array_equal(found["bias"], BIAS)


def test_tensor_goes_to_the_longest_layer_name(tmp_path: Path) -> None:
    config = functional(
        IMAGE, layer("block", "Dense", "image"), layer("block/conv", "Conv3D", "block")
    )
    entries = [entry("block/conv/kernel", KERNEL), entry("model/block/bias", BIAS)]
    write_tfjs(tmp_path, config, [{"paths": ["a.bin"], "weights": entries}])
    model = read_keras_file(tmp_path)
    np.testing.assert_array_equal(weights(model, "block/conv")["kernel"], KERNEL)
    np.testing.assert_array_equal(weights(model, "block")["bias"], BIAS)


def test_topology_written_by_tfjs_itself(tmp_path: Path) -> None:
    """TensorFlow.js saves the configuration without the model_config around it."""
    write_tfjs(tmp_path, modelTopology=SMALL | {"keras_version": "tfjs-layers 4.0.0"})
    assert read_keras_file(tmp_path).keras_version == "tfjs-layers 4.0.0"


def changed(**changes: Any) -> list[dict[str, Any]]:
    """The small manifest, its second entry changed."""
    kernel, bias = SMALL_MANIFEST[0]["weights"]
    return [{"paths": ["a.bin"], "weights": [kernel, bias | changes]}]  # type: ignore[operator]


def listing(*paths: Any) -> list[dict[str, Any]]:
    return [{"paths": list(paths), "weights": SMALL_MANIFEST[0]["weights"]}]


PACKED = {"dtype": "uint8", "scale": 1.0, "min": 0.0}
BAD_MANIFESTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "none": ([], ("no weights",)),
    "no list": ({"a": 1}, ("no weights",)),
    "group no object": ([3], ("group",)),
    "paths no list": ([{"paths": "a.bin", "weights": []}], ("group",)),
    "path no text": (listing(3), ("group",)),
    "entry no object": ([{"paths": ["a.bin"], "weights": [3]}], ("group",)),
    "no name": (changed(name=None), ("no usable name",)),
    "endless name": (changed(name="a/" * 5000), ("no usable name",)),
    "duplicate": (changed(name="conv/kernel"), ("'conv/kernel'", "twice")),
    "no layer": (changed(name="stray/bias"), ("'stray/bias'", "no layer")),
    "negative": (changed(shape=[-2]), ("'conv/bias'", "shape")),
    "zero": (changed(shape=[0]), ("'conv/bias'", "shape")),
    "fraction": (changed(shape=[2.0]), ("'conv/bias'", "shape")),
    "true": (changed(shape=[True]), ("'conv/bias'", "shape")),
    "no shape": (changed(shape=None), ("'conv/bias'", "shape")),
    "rank": (changed(shape=[1] * 65 + [2]), ("'conv/bias'", "shape")),
    "enormous": (changed(shape=[2**40, 2**40]), ("bytes", "cut short")),
    "wraps around": (changed(shape=[2**62, 4]), ("bytes", "cut short")),
    "shape too large": (changed(shape=[3]), ("bytes", "cut short")),
    "shape too small": (changed(shape=[1]), ("bytes", "another model")),
    "type": (changed(dtype="complex64"), ("'conv/bias'", "'complex64'")),
    "type a list": (changed(dtype=["float32"]), ("'conv/bias'", "type")),
    "quantised type": (changed(quantization={"dtype": "int4"}), ("'conv/bias'", "'int4'")),
    "quantization a list": (changed(quantization=[1]), ("'conv/bias'", "quantization")),
    "scale": (changed(quantization=PACKED | {"scale": "1"}), ("'conv/bias'", "scale")),
    "infinite": (changed(quantization=PACKED | {"min": float("inf")}), ("'conv/bias'", "min")),
    "huge integer": (changed(quantization=PACKED | {"min": 10**400}), ("'conv/bias'", "min")),
    "missing": (listing("b.bin"), ("'b.bin'", "missing")),
    "a folder": (listing("."), ("'.'", "missing")),
    "absolute": (listing("/etc/passwd"), ("'/etc/passwd'", "outside", "refused")),
    "parent": (listing("../secret.bin"), ("'../secret.bin'", "outside", "refused")),
    "link": (listing("link.bin"), ("'link.bin'", "outside", "refused")),
    "NUL": (listing("a\0.bin"), ("missing",)),
    "endless path": (listing("a" * 5000), ("missing",)),
    "half a character": (listing("\ud800.bin"), ("missing",)),
    "shard twice": (listing("a.bin", "./a.bin"), ("'./a.bin'", "twice")),
}


@pytest.mark.parametrize(("manifest", "words"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys())
def test_bad_manifest(tmp_path: Path, manifest: Any, words: tuple[str, ...]) -> None:
    (tmp_path / "secret.bin").write_bytes(SMALL_SHARDS["a.bin"])
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "link.bin").symlink_to(tmp_path / "secret.bin")
    refused(write_tfjs(tmp_path / "web", manifest=manifest), *words)


def test_shard_of_any_other_length(tmp_path: Path) -> None:
    data = SMALL_SHARDS["a.bin"]
    for length in (*range(0, len(data), 6), len(data) - 1):
        refused(write_tfjs(tmp_path, shards={"a.bin": data[:length]}), f"{length} bytes")
    refused(write_tfjs(tmp_path, shards={"a.bin": data + b"\0"}), "bytes")


def test_json_cut_anywhere(tmp_path: Path) -> None:
    path = write_tfjs(tmp_path)
    content = path.read_bytes()
    for position in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:position])
        refused(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, ("nests too deep",)),
        ("[]", ("no model",)),
        ("3", ("no model",)),
        ('{"a": 1}', ("no model",)),
        ('{"a": ' + "9" * 5000 + "}", ("JSON",)),
        ('{"format": "graph-model"}', ("graph model",)),
        (json.dumps(SMALL), ("without weights",)),
        ('{"modelTopology": {"model_config": {}}, "weightsManifest": [1]}', ("configuration",)),
    ],
)
def test_json_that_is_no_layers_model(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "model.json"
    path.write_text(text)
    refused(path, *words)


# Other files


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.h5", "does not exist")


def test_unusable_name() -> None:
    with pytest.raises(ConversionError, match="cannot be read"):
        read_keras_file(Path("a\0b"))


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_h5(tmp_path / "m.h5")

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(path, "Permission denied")


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    refused(tmp_path / "pipe.h5", "not a regular file")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.h5", b"", ("empty",)),
        ("cut.h5", b"\x89HDF", ("cut short",)),
        ("noise.bin", bytes(range(256)), ("no Keras file",)),
        ("saved_model.pb", b"\x08\x01", ("SavedModel", "not supported yet")),
        ("model.pkl", pickle.dumps({"a": 1}), ("no Keras file",)),
    ],
)
def test_other_file(tmp_path: Path, name: str, content: bytes, words: tuple[str, ...]) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, *words)


@pytest.mark.parametrize(("name", "what"), [("m.keras", ".keras file"), ("m.zip", "zip archive")])
def test_zip(tmp_path: Path, name: str, what: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("config.json", "{}")
    refused(tmp_path / name, what, "not supported yet", "model.save")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], ("without a model.json",)),
        (["saved_model.pb"], ("SavedModel", "not supported yet")),
        (["config.json", "model.weights.h5"], ("unpacked .keras",)),
    ],
)
def test_folder(tmp_path: Path, files: list[str], words: tuple[str, ...]) -> None:
    for name in files:
        (tmp_path / name).touch()
    refused(tmp_path, *words)


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda file: None, ("no Keras model",)),
        (lambda file: file.attrs.__setitem__("layer_names", [b"a"]), ("weights only",)),
        (lambda file: file.create_group("layers"), (".weights.h5",)),
        (lambda file: file.attrs.__setitem__("model_config", "{}"), ("without its weights",)),
    ],
)
def test_other_h5(tmp_path: Path, alter: Any, words: tuple[str, ...]) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        alter(file)
    refused(tmp_path / "other.h5", *words)


def test_reading_imports_no_framework() -> None:
    """The reader must not drag in what could run a file, nor the accelerator."""
    code = (
        "import sys, voxtune.converters.keras_file;"
        "sys.exit(bool({'tensorflow', 'keras', 'jax', 'flax'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
