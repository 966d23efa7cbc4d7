"""Files in Keras's .h5 layouts are read to the last bit, and bad ones end in one sentence."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

from voxtune.converters.keras_file import (
    read_keras_file,
)
from voxtune.converters.keras_model import TensorRef

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
        entries = json.loads(file.attrs["model_config"])["config"]["layers"]
        assert [(found.class_name, found.config.get("filters")) for found in model.layers][
            -len(entries) :
        ] == [(entry["class_name"], entry["config"].get("filters")) for entry in entries]
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
    assert model.inputs == ("image", "extra")
    assert model.outputs == (TensorRef("head"), TensorRef("drop"))
    joined = next(call for call in model.calls if call.name == "joined")
    assert joined.args == ((TensorRef("drop"), TensorRef("extra")),) or joined.args == (
        [TensorRef("drop"), TensorRef("extra")],
    )
    assert model.backend == "jax"
    for found in model.layers:
        wanted = {v.name: np.asarray(v) for v in keras_model.get_layer(found.name).weights}
        assert found.weights.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(found.weights[name], value)
            assert not found.weights[name].flags.writeable
    # Keras numbers its optimizers: "adam", "adam_1", ...
    assert any(name.endswith("/conv_kernel_momentum") for name in model.left_out)
    assert all(name.startswith("optimizer_weights/") for name in model.left_out)


def test_truncated_anywhere(
    keras_h5: tuple[Path, Any], tmp_path: Path, refused: Callable[..., str]
) -> None:
    content = keras_h5[0].read_bytes()
    path = tmp_path / "cut.h5"
    for position in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:position])
        refused(path)


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
    assert weights(model, "conv")["kernel"].dtype == np.float16
    np.testing.assert_array_equal(
        weights(model, "conv")["kernel"], keras2.kernel.astype(np.float16)
    )
    assert weights(model, "conv")["bias"].dtype == np.dtype("float32")
    np.testing.assert_array_equal(weights(model, "conv")["bias"], keras2.bias)


def test_version_is_empty_when_unknown(tmp_path: Path, write_h5: Callable[..., Path]) -> None:
    model = read_keras_file(
        write_h5(tmp_path / "m.h5", alter=lambda f: f.attrs.__delitem__("keras_version"))
    )
    assert model.keras_version == ""


@pytest.mark.parametrize(
    ("names", "backend"),
    [
        (("conv_W:0", "conv_b:0"), "tensorflow"),
        (("conv_W", "conv_b"), "theano"),
        (("conv/kernel", "conv/bias"), ""),  # not of Keras 1
    ],
)
def test_backend_that_keras1_does_not_state(
    tmp_path: Path, names: tuple[str, str], backend: str, keras2: Any, write_h5: Callable[..., Path]
) -> None:
    tensors = {"conv": dict(zip(names, keras2.tensors["conv"].values(), strict=True))}
    model = read_keras_file(write_h5(tmp_path / "m.h5", tensors=tensors))
    assert model.backend == backend
    stated = write_h5(
        tmp_path / "n.h5",
        tensors=tensors,
        alter=lambda file: file["model_weights"].attrs.__setitem__("backend", b"jax"),
    )
    assert read_keras_file(stated).backend == "jax"


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


def _nested(file: h5py.File) -> None:
    group = file
    for _ in range(50):
        group = group.create_group("a" * 100)


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


def _bomb(group: Any) -> None:
    group.create_dataset("bias:0", (2**30,), "f4", compression="gzip", chunks=(2**20,))


def _unknown_filter(group: Any) -> None:
    group.create_dataset("bias:0", (2,), "f4", chunks=(2,), scaleoffset=2)


def _own_float(group: Any) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(99)
    h5py.h5d.create(group.id, b"bias:0", kind, h5py.h5s.create_simple((2,)))


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
    "nested deep": (_nested, ("lies deeper", "refused")),
    "named type": (lambda f: f.__setitem__("type", np.dtype("f4")), ("neither a group",)),
    "external storage": (_replaced(_external_storage), ("conv/bias:0'", "another file")),
    "virtual": (_replaced(_virtual), ("conv/bias:0'", "virtual")),
    "enormous": (_replaced(_enormous), ("conv/bias:0'", "the file has 0")),
    "bomb": (_replaced(_bomb), ("conv/bias:0'", "far more bytes")),
    "unknown filter": (_replaced(_unknown_filter), ("conv/bias:0'", "h5repack")),
    "object": (_replaced(_object), ("conv/bias:0'", "type")),
    "complex": (
        _replaced(lambda g: g.create_dataset("bias:0", data=BIAS.astype("c8"))),
        ("conv/bias:0'", "complex64"),
    ),
    "float of a person's own": (_replaced(_own_float), ("conv/bias:0'", "type")),
    "empty": (
        _replaced(lambda g: g.create_dataset("bias:0", (0,), "f4")),
        ("conv/bias:0'", "cut short"),
    ),
    "null": (
        _replaced(lambda g: g.create_dataset("bias:0", data=h5py.Empty("f4"))),
        ("conv/bias:0'", "cut short"),
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


def test_compressed_tensors(
    tmp_path: Path,
    weights: Callable[..., dict[str, np.ndarray]],
    keras2: Any,
    write_h5: Callable[..., Path],
) -> None:
    """`h5repack -f GZIP=9` of a file that Keras wrote; lzf and shuffle too."""

    def repack(file: h5py.File) -> None:
        group = file["model_weights/conv/conv"]
        del group["kernel:0"], group["bias:0"]
        group.create_dataset(
            "kernel:0", data=keras2.kernel, compression="gzip", shuffle=True, chunks=(2, 2, 3, 1, 1)
        )
        group.create_dataset("bias:0", data=keras2.bias, compression="lzf", fletcher32=True)

    model = read_keras_file(write_h5(tmp_path / "m.h5", alter=repack))
    np.testing.assert_array_equal(weights(model, "conv")["kernel"], keras2.kernel)
    np.testing.assert_array_equal(weights(model, "conv")["bias"], keras2.bias)


def test_other_floats_and_numbers(
    tmp_path: Path,
    weights: Callable[..., dict[str, np.ndarray]],
    keras2: Any,
    write_h5: Callable[..., Path],
) -> None:
    """float64 stays, bfloat16 (two bytes without a meaning to HDF5) becomes float32, and integers
    are no weights."""
    brain = np.array([1.0, -2.5], ml_dtypes.bfloat16)
    tensors = {
        "conv": {
            "conv/kernel:0": keras2.kernel.astype(np.float64),
            "conv/bias:0": brain,
            "conv/seed:0": np.arange(2),
        }
    }
    model = read_keras_file(write_h5(tmp_path / "m.h5", tensors=tensors))
    found = weights(model, "conv")
    assert found["kernel"].dtype == np.float64
    assert found["bias"].dtype == np.float32
    np.testing.assert_array_equal(found["bias"], [1.0, -2.5])
    assert model.left_out == ("model_weights/conv/conv/seed:0",)
    assert found.keys() == {"kernel", "bias"}


def test_small_datasets_within_their_headers(
    tmp_path: Path,
    weights: Callable[..., dict[str, np.ndarray]],
    keras2: Any,
    write_h5: Callable[..., Path],
) -> None:
    def compact(group: Any) -> None:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((2,))
        made = h5py.h5d.create(group.id, b"bias:0", h5py.h5t.IEEE_F32LE, space, plan)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, keras2.bias)

    model = read_keras_file(write_h5(tmp_path / "m.h5", alter=_replaced(compact)))
    np.testing.assert_array_equal(weights(model, "conv")["bias"], keras2.bias)


def test_tensors_on_the_same_bytes(
    tmp_path: Path, refused: Callable[..., str], keras2: Any, write_h5: Callable[..., Path]
) -> None:
    """Otherwise a small file could fill the memory with copies of one large tensor."""
    tensors = {"conv": {"conv/a:0": keras2.kernel, "conv/b:0": keras2.kernel + 1}}
    path = write_h5(tmp_path / "m.h5", tensors=tensors)
    with h5py.File(path) as file:
        first, second = (
            file[f"model_weights/conv/conv/{name}:0"].id.get_offset().to_bytes(8, "little")
            for name in "ab"
        )
    content = path.read_bytes()
    assert content.count(second) == 1
    path.write_bytes(content.replace(second, first))
    refused(path, "on the bytes of another")


def test_impossible_entry_of_a_text_heap(
    tmp_path: Path, refused: Callable[..., str], write_h5: Callable[..., Path]
) -> None:
    """An entry of size zero, or so large that its end wraps around, holds libhdf5 2.0 for ever."""
    path = write_h5(tmp_path / "m.h5")
    content = path.read_bytes()
    free_space = content.index(b"GCOL") + 16  # the first entry
    entry_bytes = bytes(8) + (2**64 - 16).to_bytes(8, "little")
    path.write_bytes(content[:free_space] + entry_bytes + content[free_space + 16 :])
    refused(path, "broken")


# Files without a whole model


def test_other_h5(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["data"] = BIAS
    refused(path, "no Keras model")
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"
    refused(path, "without its weights")
