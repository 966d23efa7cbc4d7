"""SavedModels and checkpoints are read without TensorFlow, and bad ones end in one sentence.

TensorFlow 2.14 wrote the files in `tensorflow/`. `saved` and `ckpt` are of one Keras model, a
Sequential model inside a functional one, compiled with Adam: weight number n of the model holds
n, n + 1/8, n + 2/8, ... in Keras's order. The SavedModel's program, saved_model.pb, is left out, as
it is never read. `tf1` is a checkpoint of TensorFlow 1's kind: a kernel 0, 1, 2 and a bias 7.
`sliced` has a partitioned variable.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from voxtune.converters.keras_file import KerasModel, KerasWeights, read_keras_file

FILES = Path(__file__).with_name("tensorflow")
ORDER = [
    ("inner/conv", "kernel", (1, 1, 1, 1, 2)),
    ("inner/conv", "bias", (2,)),
    ("inner/norm", "gamma", (2,)),
    ("inner/norm", "beta", (2,)),
    ("inner/norm", "moving_mean", (2,)),
    ("inner/norm", "moving_variance", (2,)),
    ("head", "kernel", (1, 1, 1, 2, 1)),
    ("head", "bias", (1,)),
]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    shutil.copytree(FILES / "saved", folder)
    (folder / "saved_model.pb").touch()
    return folder


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    shutil.copytree(FILES / "ckpt", tmp_path / "ckpt")
    return tmp_path / "ckpt"


def test_saved_model_is_a_whole_model(saved: Path) -> None:
    model = read_keras_file(saved)
    assert isinstance(model, KerasModel)
    assert (model.format, model.keras_version, model.backend, model.name) == (
        "TensorFlow SavedModel",
        "2.14.0",
        "tensorflow",
        "tiny",
    )
    assert sum(len(layer.weights) for layer in model.layers) == len(ORDER)
    for number, (layer, name, shape) in enumerate(ORDER):
        array = model.by_name[layer].weights[name]
        wanted = (np.arange(np.prod(shape)) / 8 + number).reshape(shape)
        np.testing.assert_array_equal(array, wanted.astype(np.float32))
    assert model.inputs == ("image",)
    assert [call.layer for call in model.calls][-3:] == ["inner/norm", "relu", "head"]
    # The shape is a list again, which keras_metadata.pb writes as a tuple with its class.
    assert list(model.by_name["image"].config["batch_input_shape"]) == [None, 4, 4, 4, 1]
    assert all("optimizer" in name or "metrics" in name for name in model.left_out)
    assert any(name.startswith("optimizer/") for name in model.left_out)


@pytest.mark.parametrize("given", ["", "tiny", "tiny.index", "tiny.data-00000-of-00001"])
def test_checkpoint_by_its_folder_prefix_or_files(ckpt: Path, given: str) -> None:
    found = read_keras_file(ckpt / given)
    assert isinstance(found, KerasWeights)
    assert found.format == "TensorFlow checkpoint"
    assert [*found.layers] == ["conv", "norm", "head"]  # the order of the model
    for number, (layer, name, shape) in enumerate(ORDER):
        wanted = (np.arange(np.prod(shape)) / 8 + number).reshape(shape)
        array = found.layers[layer.rpartition("/")[2]][name]
        np.testing.assert_array_equal(array, wanted.astype(np.float32))
    content = b"".join(
        (ckpt / name).read_bytes() for name in ("tiny.index", "tiny.data-00000-of-00001")
    )
    assert found.sha256 == hashlib.sha256(content).hexdigest()


def test_folder_with_one_index(ckpt: Path) -> None:
    (ckpt / "checkpoint").unlink()
    assert isinstance(read_keras_file(ckpt), KerasWeights)


def test_a_path_of_another_machine(ckpt: Path, tmp_path: Path) -> None:
    """Only its last part counts: nothing outside of the folder is read."""
    (ckpt / "checkpoint").write_text('model_checkpoint_path: "/home/someone/../x/tiny"\n')
    assert isinstance(read_keras_file(ckpt), KerasWeights)


def test_saved_model_without_its_configuration(saved: Path) -> None:
    (saved / "keras_metadata.pb").unlink()
    found = read_keras_file(saved)
    assert isinstance(found, KerasWeights)
    assert [*found.layers] == ["conv", "norm", "head"]


def test_tensorflow_1(tmp_path: Path) -> None:
    """Variables by name; Adam's moments and counters are left out."""
    found = read_keras_file(FILES / "tf1")
    assert isinstance(found, KerasWeights)
    assert {layer: {*own} for layer, own in found.layers.items()} == {
        "layer_1/conv3d": {"kernel_m", "bias_m"}
    }
    np.testing.assert_array_equal(found.layers["layer_1/conv3d"]["kernel_m"], [0, 1, 2])
    np.testing.assert_array_equal(found.layers["layer_1/conv3d"]["bias_m"], [7])
    assert "global_step" in found.left_out
    assert "layer_1/conv3d/kernel_m/Adam_1" in found.left_out
    # A SavedModel of TensorFlow 1's estimators holds the same in its folder.
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").touch()
    for file in (FILES / "tf1").glob("model*"):
        name = file.name.replace("model.ckpt-3", "variables")
        shutil.copy(file, tmp_path / "variables" / name)
    assert [*read_keras_file(tmp_path).layers] == ["layer_1/conv3d"]


# Broken and hostile ones


def test_slices(refused: Callable[..., str]) -> None:
    refused(FILES / "sliced", "'part/kernel'", "slices")


def test_missing_and_linked_shards(ckpt: Path, refused: Callable[..., str]) -> None:
    shard = ckpt / "tiny.data-00000-of-00001"
    shard.rename(ckpt.parent / "elsewhere")
    refused(ckpt, "'tiny.data-00000-of-00001'", "missing")
    shard.symlink_to(ckpt.parent / "elsewhere")
    refused(ckpt, "'tiny.data-00000-of-00001'", "link")


def test_cut_anywhere(ckpt: Path, saved: Path, refused: Callable[..., str]) -> None:
    for file, given in (
        (ckpt / "tiny.index", ckpt),
        (ckpt / "tiny.data-00000-of-00001", ckpt),
        (saved / "keras_metadata.pb", saved),
    ):
        content = file.read_bytes()
        # The last bytes of the shard are those of the graph of objects, cut by a single one too.
        for position in (*range(1, len(content), len(content) // 20), len(content) - 1):
            file.write_bytes(content[:position])
            refused(given)
        file.write_bytes(content)


def test_size_that_the_shard_does_not_have(ckpt: Path, refused: Callable[..., str]) -> None:
    """Sizes of 2 become 127: more than there is, and on the bytes of what follows."""
    index = ckpt / "tiny.index"
    content = index.read_bytes()
    size = b"\x12\x02\x08\x02"  # a size of the shape, 2, as a message
    assert size in content
    index.write_bytes(content.replace(size, b"\x12\x02\x08\x7f"))
    refused(ckpt, "a shape and a size disagree")


def _varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + _varint(number >> 7) if number > 127 else bytes([number])


def _block(entries: list[tuple[int, bytes, bytes]]) -> bytes:
    """Entries of (bytes taken from the key before, the rest of the key, value)."""
    sizes = [tuple(map(_varint, (same, len(key), len(v)))) for same, key, v in entries]
    body = b"".join(
        b"".join(size) + key + v for size, (_, key, v) in zip(sizes, entries, strict=True)
    )
    return body + bytes(4) + b"\1\0\0\0"


@pytest.mark.parametrize(
    ("entries", "uses", "words"),
    [
        ([(0, b"x" * 4090, b""), *[(4087, b"%03d" % n, b"") for n in range(999)]] * 20, 1, "names"),
        ([(0, b"%03d" % n, b"") for n in range(999)], 20_000, "overlap"),
    ],
    ids=["endless names", "a block many times"],
)
def test_tables_that_unpack_to_far_more(
    ckpt: Path, refused: Callable[..., str], entries: list, uses: int, words: str
) -> None:
    block = _block(entries)
    handle = _varint(0) + _varint(len(block))
    handles = _block([(0, b"%05d" % n, handle) for n in range(uses)])
    start = _varint(len(block) + 5) + _varint(len(handles))
    footer = (b"\0\0" + start).ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
    index = ckpt / "tiny.index"
    index.write_bytes(block + bytes(5) + handles + bytes(5) + footer)
    refused(ckpt, "'tiny.index'", words)


def test_compressed_table(ckpt: Path, refused: Callable[..., str]) -> None:
    index = ckpt / "tiny.index"
    content = bytearray(index.read_bytes())
    content[-48 - 5 - 1 :] = bytes(len(content[-48 - 5 - 1 :]))
    index.write_bytes(content)
    refused(ckpt, "'tiny.index'", "broken")
