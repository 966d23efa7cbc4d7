"""Whole-model .h5 files are read to the last bit, and bad ones end in one sentence."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from voxtune.converters.keras_file import ConversionError, read_keras_file

BIAS = np.ones(2, np.float32)


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
    shared_data: Path,
    name: str,
    version: str,
    parameters: int,
    weights: Callable[..., dict[str, np.ndarray]],
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


# Files that the real Keras 3 writes here


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


def test_truncated_anywhere(
    keras_h5: tuple[Path, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
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


# Files by hand


def test_names_split_nested_and_in_other_scopes(
    tmp_path: Path,
    weights: Callable[..., dict[str, np.ndarray]],
    keras2: Any,
    write_h5: Callable[..., Path],
) -> None:
    """Long attributes are split; layer names may hold slashes; a weight's scope may be another."""
    config = keras2.functional(
        keras2.image,
        keras2.layer("block/conv", "Conv3D", "image"),
        keras2.layer("block", "Dense", "block/conv"),
    )
    tensors = {
        "block": {"block/query/kernel": keras2.bias, "block/key/kernel": keras2.bias + 1},
        "block/conv": {"block/conv/kernel:0": keras2.kernel, "other_1/bias:0": keras2.bias},
    }

    def split(file: h5py.File) -> None:
        attributes = file["model_weights"].attrs
        names = attributes["layer_names"]
        del attributes["layer_names"]
        attributes["layer_names0"], attributes["layer_names1"] = names[:1], names[1:]

    config["config"]["layers"][1]["config"].pop("name")  # Nobrainer's layers name themselves once
    model = read_keras_file(write_h5(tmp_path / "m.h5", config, tensors, split))
    np.testing.assert_array_equal(weights(model, "block/conv")["kernel"], keras2.kernel)
    np.testing.assert_array_equal(weights(model, "block/conv")["bias"], keras2.bias)
    np.testing.assert_array_equal(weights(model, "block")["key/kernel"], keras2.bias + 1)
    assert weights(model, "block").keys() == {"query/kernel", "key/kernel"}


def test_fixed_length_names_and_float16(
    tmp_path: Path,
    weights: Callable[..., dict[str, np.ndarray]],
    keras2: Any,
    write_h5: Callable[..., Path],
) -> None:
    def fixed(file: h5py.File) -> None:
        file["model_weights"].attrs["layer_names"] = np.array([b"image", b"conv"])
        file["model_weights"].create_group("image")
        file.attrs["model_config"] = np.bytes_(json.dumps(keras2.small).encode())

    half = {
        "conv": {
            "conv/kernel:0": keras2.kernel.astype(np.float16),
            "conv/bias:0": keras2.bias.astype(">f4"),
        }
    }
    model = read_keras_file(write_h5(tmp_path / "m.hdf5", tensors=half, alter=fixed))
    assert weights(model, "conv")["kernel"].dtype == np.float32
    np.testing.assert_array_equal(
        weights(model, "conv")["kernel"], keras2.kernel.astype(np.float16)
    )
    np.testing.assert_array_equal(weights(model, "conv")["bias"], keras2.bias)


def test_version_is_empty_when_unknown(tmp_path: Path, write_h5: Callable[..., Path]) -> None:
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
    value[()] = np.frombuffer(file.attrs["model_config"].encode(), np.uint8)
    file.attrs.create("model_config", value, (), h5py.vlen_dtype(np.uint8))


def _config_deep(file: h5py.File) -> None:
    file.attrs["model_config"] = "[" * 200_000


def _config_cut(file: h5py.File) -> None:
    file.attrs["model_config"] = file.attrs["model_config"][:-5]


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
def test_bad_h5(
    tmp_path: Path,
    alter: Any,
    words: tuple[str, ...],
    refused: Callable[..., str],
    write_h5: Callable[..., Path],
) -> None:
    refused(write_h5(tmp_path / "bad.h5", alter=alter), *words)


def test_h5_layer_absent_from_the_config(
    tmp_path: Path, refused: Callable[..., str], keras2: Any, write_h5: Callable[..., Path]
) -> None:
    tensors = keras2.tensors | {"stray": {"stray/kernel:0": keras2.kernel}}
    refused(write_h5(tmp_path / "m.h5", tensors=tensors), "'stray/kernel:0'", "no layer")


def test_h5_two_weights_of_one_short_name(
    tmp_path: Path, refused: Callable[..., str], keras2: Any, write_h5: Callable[..., Path]
) -> None:
    tensors = {"conv": {"a/kernel:0": keras2.kernel, "b/kernel:0": keras2.kernel}}
    refused(write_h5(tmp_path / "m.h5", tensors=tensors), "two tensors", "'kernel'")


def test_impossible_entry_of_a_text_heap(
    tmp_path: Path, refused: Callable[..., str], write_h5: Callable[..., Path]
) -> None:
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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    write_h5: Callable[..., Path],
) -> None:
    path = write_h5(tmp_path / "m.h5")
    monkeypatch.setattr("voxtune.converters.hdf5._MAX_NAMES_BYTES", 10)
    refused(path, "layer_names", "too large")


# Files without a whole model


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda file: None, ("no Keras model",)),
        (lambda file: file.attrs.__setitem__("layer_names", [b"a"]), ("weights only",)),
        (lambda file: file.create_group("layers"), (".weights.h5",)),
        (lambda file: file.attrs.__setitem__("model_config", "{}"), ("without its weights",)),
    ],
)
def test_other_h5(
    tmp_path: Path, alter: Any, words: tuple[str, ...], refused: Callable[..., str]
) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        alter(file)
    refused(tmp_path / "other.h5", *words)
