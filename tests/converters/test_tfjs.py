"""TF.js layers models are read to the last bit, and bad ones end in one sentence."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.converters.keras_file import read_keras_file
from voxtune.converters.keras_model import TensorRef

RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(3, 3, 3, 1, 2)).astype(np.float32)
BIAS = RANDOM.normal(size=2).astype(np.float32)


def entry(name: str, array: np.ndarray, **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "dtype": "float32"} | changes


SMALL_MANIFEST = [
    {
        "paths": ["a.bin"],
        "weights": [entry("conv/kernel", KERNEL), entry("conv/bias", BIAS)],
    }
]
SMALL_SHARDS = {"a.bin": KERNEL.astype("<f4").tobytes() + BIAS.astype("<f4").tobytes()}


@pytest.fixture
def write_tfjs(keras2: Any) -> Callable[..., Path]:
    """Writes a model.json and its shards."""

    def write(
        folder: Path,
        config: Any = keras2.small,
        manifest: Any = SMALL_MANIFEST,
        shards: dict[str, bytes] = SMALL_SHARDS,
        **changes: Any,
    ) -> Path:
        folder.mkdir(exist_ok=True)
        for name, content in shards.items():
            (folder / name).write_bytes(content)
        topology = {"keras_version": "2.7.0", "model_config": config}
        document = {
            "format": "layers-model",
            "modelTopology": topology,
            "weightsManifest": manifest,
        }
        path = folder / "model.json"
        path.write_text(json.dumps(document | changes))
        return path

    return write


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
    shared_data: Path,
    name: str,
    layers: int,
    parameters: int,
    weights: Callable[..., dict[str, np.ndarray]],
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
    assert (model.format, model.inputs) == ("TF.js layers model", ("input",))
    assert model.outputs == (TensorRef("output"),)
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


def test_several_groups_and_shards(
    tmp_path: Path,
    weights: Callable[..., dict[str, np.ndarray]],
    keras2: Any,
    write_tfjs: Callable[..., Path],
) -> None:
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
    config = keras2.functional(
        keras2.image, keras2.conv, keras2.layer("scale", "BatchNormalization", "conv")
    )
    path = write_tfjs(tmp_path, config, manifest, shards)
    model = read_keras_file(tmp_path)
    np.testing.assert_array_equal(weights(model, "conv")["kernel"], KERNEL)
    np.testing.assert_array_equal(weights(model, "conv")["bias"], BIAS)
    np.testing.assert_array_equal(weights(model, "scale")["gamma"], BIAS)
    assert model.left_out == ("Adam/m",)
    assert (model.path, model.keras_version) == (path, "2.7.0")
    assert model.sha256 == hashlib.sha256(path.read_bytes() + data + 2 * BIAS.tobytes()).hexdigest()


def test_quantised_entries(
    tmp_path: Path, weights: Callable[..., dict[str, np.ndarray]], write_tfjs: Callable[..., Path]
) -> None:
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


def test_tensor_goes_to_the_longest_layer_name(
    tmp_path: Path,
    weights: Callable[..., dict[str, np.ndarray]],
    keras2: Any,
    write_tfjs: Callable[..., Path],
) -> None:
    config = keras2.functional(
        keras2.image,
        keras2.layer("block", "Dense", "image"),
        keras2.layer("block/conv", "Conv3D", "block"),
    )
    entries = [entry("block/conv/kernel", KERNEL), entry("model/block/bias", BIAS)]
    write_tfjs(tmp_path, config, [{"paths": ["a.bin"], "weights": entries}])
    model = read_keras_file(tmp_path)
    np.testing.assert_array_equal(weights(model, "block/conv")["kernel"], KERNEL)
    np.testing.assert_array_equal(weights(model, "block")["bias"], BIAS)


def test_topology_written_by_tfjs_itself(
    tmp_path: Path, keras2: Any, write_tfjs: Callable[..., Path]
) -> None:
    """TensorFlow.js saves the configuration without the model_config around it."""
    write_tfjs(tmp_path, modelTopology=keras2.small | {"keras_version": "tfjs-layers 4.0.0"})
    assert read_keras_file(tmp_path).keras_version == "tfjs-layers 4.0.0"


def changed(**changes: Any) -> list[dict[str, Any]]:
    """The small manifest, its second entry changed."""
    kernel, bias = SMALL_MANIFEST[0]["weights"]
    assert isinstance(bias, dict)
    return [{"paths": ["a.bin"], "weights": [kernel, bias | changes]}]


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
def test_bad_manifest(
    tmp_path: Path,
    manifest: Any,
    words: tuple[str, ...],
    refused: Callable[..., str],
    write_tfjs: Callable[..., Path],
) -> None:
    (tmp_path / "secret.bin").write_bytes(SMALL_SHARDS["a.bin"])
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "link.bin").symlink_to(tmp_path / "secret.bin")
    refused(write_tfjs(tmp_path / "web", manifest=manifest), *words)


def test_shard_of_any_other_length(
    tmp_path: Path, refused: Callable[..., str], write_tfjs: Callable[..., Path]
) -> None:
    data = SMALL_SHARDS["a.bin"]
    for length in (*range(0, len(data), 6), len(data) - 1):
        refused(write_tfjs(tmp_path, shards={"a.bin": data[:length]}), f"{length} bytes")
    refused(write_tfjs(tmp_path, shards={"a.bin": data + b"\0"}), "bytes")


def test_json_cut_anywhere(
    tmp_path: Path, refused: Callable[..., str], write_tfjs: Callable[..., Path]
) -> None:
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
        pytest.param(None, ("without weights",), id="text6-words6"),  # the architecture alone
        ('{"modelTopology": {"model_config": {}}, "weightsManifest": [1]}', ("configuration",)),
    ],
)
def test_json_that_is_no_layers_model(
    tmp_path: Path,
    text: str | None,
    words: tuple[str, ...],
    refused: Callable[..., str],
    keras2: Any,
) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(keras2.small) if text is None else text)
    refused(path, *words)


def test_config_too_large(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    write_h5: Callable[..., Path],
    write_tfjs: Callable[..., Path],
) -> None:
    path = write_h5(tmp_path / "m.h5")
    folder = write_tfjs(tmp_path / "web")
    for module in ("keras_h5", "tfjs"):
        monkeypatch.setattr(f"voxtune.converters.{module}.MAX_CONFIG_BYTES", 100)
    refused(path, "model_config", "too large")
    refused(folder, "too large")
