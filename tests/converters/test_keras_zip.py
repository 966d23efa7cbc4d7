"""`.keras` files are read to the last bit, zipped or not, and hostile archives end at once."""

import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from voxtune.converters.keras_file import KerasModel, read_keras_file


@pytest.fixture
def members(keras2: Any) -> dict[str, bytes]:
    """The three members of a good `.keras` file."""
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file["layers/conv3d/vars/0"] = keras2.kernel
        file["layers/conv3d/vars/1"] = keras2.bias
    return {
        "metadata.json": json.dumps({"keras_version": "3.5.0"}).encode(),
        "config.json": json.dumps(keras2.small).encode(),
        "model.weights.h5": weights.getvalue(),
    }


def write(path: Path, members: dict[str, bytes], **how: Any) -> Path:
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def check(model: Any, keras2: Any) -> None:
    assert isinstance(model, KerasModel)
    assert (model.format, model.keras_version, model.left_out) == ("Keras .keras", "3.5.0", ())
    (conv,) = (layer for layer in model.layers if layer.name == "conv")
    np.testing.assert_array_equal(conv.weights["0"], keras2.kernel)
    np.testing.assert_array_equal(conv.weights["1"], keras2.bias)


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zipped(tmp_path: Path, members: dict[str, bytes], keras2: Any, how: int) -> None:
    check(read_keras_file(write(tmp_path / "m.zip", members, compression=how)), keras2)


def test_folder(tmp_path: Path, members: dict[str, bytes], keras2: Any) -> None:
    for name, content in members.items():
        (tmp_path / name).write_bytes(content)
    check(read_keras_file(tmp_path), keras2)


def test_real_files_hold_what_their_h5_twins_hold(shared_data: Path) -> None:
    for name in ("small", "sequential"):
        path = shared_data / "keras/keras3" / f"{name}.keras"
        found, twin = read_keras_file(path), read_keras_file(path.with_suffix(".h5"))
        assert isinstance(found, KerasModel)
        assert isinstance(twin, KerasModel)
        assert found.keras_version == twin.keras_version
        assert (found.calls, found.inputs, found.outputs) == (
            twin.calls,
            twin.inputs,
            twin.outputs,
        )
        for own, other in zip(found.layers, twin.layers, strict=True):
            assert own.name == other.name
            for left, right in zip(own.weights.values(), other.weights.values(), strict=True):
                np.testing.assert_array_equal(left, right)


def test_what_keras3_writes_now(keras: Any, tmp_path: Path) -> None:
    """Nested and shared layers, attention, bfloat16, seeds, and Adam's moments beside them."""
    layers = keras.layers
    image = keras.Input((4, 4, 1), name="image")
    block = [layers.Dense(4, name="d1"), layers.Dropout(0.1), layers.BatchNormalization(name="bn")]
    inner = keras.Sequential(block, name="inner")
    shared = layers.Dense(4, name="shared", dtype="bfloat16")
    x = layers.Reshape((16, 4))(inner(image))
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = shared(shared(x))
    source = keras.Model(image, layers.Dense(1, name="head")(x), name="net")
    source.compile("adam", "mse")
    source.optimizer.build(source.trainable_variables)
    source.save(tmp_path / "m.keras")
    source.save(tmp_path / "m.h5")
    found, twin = read_keras_file(tmp_path / "m.keras"), read_keras_file(tmp_path / "m.h5")
    assert isinstance(found, KerasModel)
    assert isinstance(twin, KerasModel)
    wanted = {
        "inner/d1": source.get_layer("inner").layers[0],
        "inner/bn": source.get_layer("inner").layers[2],
        **{name: source.get_layer(name) for name in ("attention", "shared", "head")},
    }
    for model in (found, twin):
        assert {layer.name for layer in model.layers if layer.weights} == wanted.keys()
        for name, layer in wanted.items():
            own = sorted(np.asarray(value, np.float32).tobytes() for value in layer.get_weights())
            held = model.by_name[name].weights.values()
            assert sorted(value.tobytes() for value in held) == own
    assert {*found.by_name["attention"].weights} >= {"query_dense/0", "output_dense/1"}
    assert any(name.startswith("optimizer/vars/") for name in found.left_out)


# Hostile archives


def _without(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda members: {key: value for key, value in members.items() if key != name}


BAD: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], tuple[str, ...]]] = {
    "no config": (_without("config.json"), ("without config.json",)),
    "no weights": (_without("model.weights.h5"), ("without model.weights.h5",)),
    "path upwards": (lambda m: m | {"a/../../x": b""}, ("outside", "refused")),
    "path from the root": (lambda m: m | {"/etc/x": b""}, ("outside", "refused")),
    "drive": (lambda m: m | {"..\\x": b""}, ("outside", "refused")),
    "too many": (lambda m: m | {str(n): b"" for n in range(10_000)}, ("more than",)),
    "bomb": (lambda m: m | {"model.weights.h5": bytes(2**27)}, ("model.weights.h5", "unpack")),
    "bomb of text": (lambda m: m | {"config.json": bytes(2**27)}, ("config.json", "unpack")),
    "bomb of values": (lambda m: m | {"config.json": b"[],{}," * 2**21}, ("values", "too many")),
    "deep config": (lambda m: m | {"config.json": b"[" * 10_000}, ("nests too deep",)),
    "deeper": (lambda m: m | {"metadata.json": b'{"a":' * 200_000}, ("nests too deep",)),
    "metadata a list": (
        lambda m: (
            m
            | {
                "metadata.json": b"[",
            }
        ),
        ("JSON",),
    ),
    "weights no HDF5": (lambda m: m | {"model.weights.h5": b"\x89HDF"}, ("HDF5",)),
}


@pytest.mark.parametrize(("alter", "words"), BAD.values(), ids=BAD.keys())
def test_bad_archive(
    tmp_path: Path,
    members: dict[str, bytes],
    alter: Callable[[dict[str, bytes]], dict[str, bytes]],
    words: tuple[str, ...],
    refused: Callable[..., str],
) -> None:
    path = write(tmp_path / "m.keras", alter(members), compression=zipfile.ZIP_DEFLATED)
    start = time.process_time()
    refused(path, *words)
    assert time.process_time() - start < 5  # seconds; it is one on an idle machine


def test_duplicate_member(
    tmp_path: Path, members: dict[str, bytes], refused: Callable[..., str]
) -> None:
    path = write(tmp_path / "m.keras", members)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    refused(path, "'config.json' twice")


def test_sizes_that_lie(
    tmp_path: Path, members: dict[str, bytes], refused: Callable[..., str]
) -> None:
    """What comes out is no more than the directory claims, and the claim was checked."""
    members["config.json"] = bytes(2**22)
    path = write(tmp_path / "m.keras", members, compression=zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    path.write_bytes(content.replace((2**22).to_bytes(4, "little"), (99).to_bytes(4, "little")))
    refused(path, "broken")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(
    tmp_path: Path, members: dict[str, bytes], refused: Callable[..., str], compression: int
) -> None:
    """LZMA takes as much memory as its header says, and raises errors of its own."""
    path = write(tmp_path / "m.keras", members, compression=compression)
    refused(path, "config.json is compressed")


def test_password(tmp_path: Path, members: dict[str, bytes], refused: Callable[..., str]) -> None:
    path = write(tmp_path / "m.keras", members)
    with zipfile.ZipFile(path) as archive:
        flag = archive.start_dir + 8
    content = bytearray(path.read_bytes())
    content[flag] |= 1
    path.write_bytes(content)
    refused(path, "broken")


def test_cut_anywhere(
    tmp_path: Path, members: dict[str, bytes], refused: Callable[..., str]
) -> None:
    path = write(tmp_path / "m.keras", members)
    content = path.read_bytes()
    for position in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:position])
        refused(path)


def test_links_in_a_folder(
    tmp_path: Path, members: dict[str, bytes], refused: Callable[..., str]
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name, content in members.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").rename(tmp_path / "elsewhere.json")
    (folder / "config.json").symlink_to(tmp_path / "elsewhere.json")
    refused(folder, "link", "refused")
