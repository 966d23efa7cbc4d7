"""What a converted model directory says: contract, classes, and where each tensor came from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from rich.console import Console

from voxtune.engine.cli import main
from voxtune.engine.config import Convert
from voxtune.engine.contract import Contract
from voxtune.engine.convert import classes_of, convert_file
from voxtune.engine.model_dir import ModelSpec, read_model
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)
NET = {
    "conv1/kernel": RNG.normal(size=(3, 3, 3, 1, 2)).astype("<f4"),
    "conv1/bias": RNG.normal(size=2).astype("<f4"),
    "conv2/kernel": RNG.normal(size=(3, 3, 3, 2, 2)).astype("<f4"),
    "conv2/bias": RNG.normal(size=2).astype("<f4"),
    "head/kernel": RNG.normal(size=(1, 1, 1, 2, 3)).astype("<f4"),
    "head/bias": RNG.normal(size=3).astype("<f4"),
}


def layer(name: str, class_name: str, *inputs: str, **config: Any) -> dict[str, Any]:
    """A layer as Keras 2 writes it."""
    return {
        "class_name": class_name,
        "config": {"name": name, **config},
        "name": name,
        "inbound_nodes": [[[source, 0, 0, {}] for source in inputs]] if inputs else [],
    }


def conv(name: str, source: str, filters: int, size: int, **config: Any) -> dict[str, Any]:
    kernel = {"filters": filters, "kernel_size": [size] * 3, "padding": "same"}
    return layer(name, "Conv3D", source, **kernel, **config)


def meshnet(last: str = "softmax") -> dict[str, Any]:
    """A MeshNet of two blocks, dilated by 1 and 2, and three outputs."""
    layers = [
        layer("image", "InputLayer", batch_input_shape=[None, 8, 8, 8, 1]),
        conv("conv1", "image", 2, 3, activation="relu"),
        conv("conv2", "conv1", 2, 3, activation="relu", dilation_rate=[2, 2, 2]),
        conv("head", "conv2", 3, 1, activation=last),
    ]
    ends = {"input_layers": [["image", 0, 0]], "output_layers": [["head", 0, 0]]}
    return {"class_name": "Functional", "config": {"name": "net", "layers": layers, **ends}}


def write_tfjs(folder: Path) -> Path:
    weights = [
        {"name": name, "shape": list(value.shape), "dtype": "float32"}
        for name, value in NET.items()
    ]
    document = {
        "format": "layers-model",
        "modelTopology": {"keras_version": "2.7.0", "model_config": meshnet()},
        "weightsManifest": [{"paths": ["model.bin"], "weights": weights}],
    }
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(document))
    (folder / "model.bin").write_bytes(b"".join(value.tobytes() for value in NET.values()))
    return folder


def write_h5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.14.0"
        file.attrs["model_config"] = json.dumps(meshnet())
        group = file.create_group("model_weights")
        names = ["conv1", "conv2", "head"]
        group.attrs["layer_names"] = names
        for name in names:
            held = group.create_group(name)
            held.attrs["weight_names"] = [f"{name}/kernel:0", f"{name}/bias:0"]
            for weight in ("kernel", "bias"):
                held[f"{name}/{weight}:0"] = NET[f"{name}/{weight}"]
    return path


@pytest.fixture
def tfjs(tmp_path: Path) -> Path:
    """A TF.js layers model, three classes."""
    return write_tfjs(tmp_path / "tfjs")


def convert(source: Path, **options: Any) -> Path:
    """Converts beside the source; the model directory."""
    model_dir = source.parent / "model"
    assert convert_file(Convert(source, model_dir, **options), Console(quiet=True))
    return model_dir


def test_the_contract_of_a_tfjs_network_is_brainchops(tfjs: Path):
    """FreeSurfer's conformed grid: LIA at 1 mm, scaled to [0, 1], the whole of it."""
    spec, _ = read_model(convert(tfjs))
    assert spec.contract == Contract("LIA", (1, 1, 1), "minmax", (128, 128, 128), 0.5)
    assert (spec.family, spec.output_activation) == ("meshnet", "softmax")
    assert spec.names == {0: "background", 1: "class 1", 2: "class 2"}


def test_the_contract_of_another_network_is_nobrainers(tmp_path: Path):
    """RAS at 1 mm, z-scored, blocks of 128, above 0.3."""
    spec, _ = read_model(convert(write_h5(tmp_path / "net.h5")))
    assert spec.contract == Contract("RAS", (1, 1, 1), "zscore", (128, 128, 128), 0.3)


@pytest.mark.parametrize("write", [write_tfjs, lambda folder: write_h5(folder)])
def test_every_tensor_is_accounted_for(tmp_path: Path, write: Callable[[Path], Path]):
    model_dir = convert(write(tmp_path / "net"))
    record = json.loads((model_dir / "conversion.json").read_text())
    spec, parameters = read_model(model_dir)
    assert spec.arguments["dilations"] == [1, 2]
    found = {each["keras"]: each for each in record["tensors"]}
    assert found.keys() == NET.keys()
    assert {each["path"] for each in record["tensors"]} == parameters.keys()
    for name, value in NET.items():
        each = found[name]
        assert each["done"] == "loaded"
        assert each["keras_shape"] == each["shape"] == list(value.shape)
        np.testing.assert_array_equal(parameters[each["path"]], value)
    assert found["conv2/kernel"]["path"] == "block2/conv/kernel"
    assert found["head/bias"]["path"] == "head/bias"


def test_the_record_says_which_file_it_was(tfjs: Path):
    record = json.loads((convert(tfjs) / "conversion.json").read_text())
    assert (record["file"], record["format"]) == ("model.json", "TF.js layers model")
    assert record["keras_version"] == "2.7.0"
    assert len(record["sha256"]) == 64
    assert record["golden"] == []


def test_options_come_before_the_defaults(tfjs: Path):
    options = {
        "orientation": "PSR",
        "spacing": (2.0, 1.0, 0.5),
        "intensity": "quantile",
        "block": (8, 16, 24),
        "threshold": 0.7,
        "classes": ("air", "grey", "white"),
    }
    spec, _ = read_model(convert(tfjs, **options))
    assert spec.contract == Contract("PSR", (2.0, 1.0, 0.5), "quantile", (8, 16, 24), 0.7)
    assert list(spec.names.values()) == ["air", "grey", "white"]


def test_grid_interpolation_and_window_are_the_contracts(tfjs: Path):
    console = Console(width=200)
    options = {"grid": (160, 192, 160), "interpolation": "cubic", "intensity": "window"}
    config = Convert(tfjs, tfjs.parent / "model", window=(-100.0, 240.0), **options)
    with console.capture() as capture:
        convert_file(config, console)
    spec, _ = read_model(tfjs.parent / "model")
    assert spec.contract == Contract(
        *("LIA", (1, 1, 1), "window", (128, 128, 128)),
        grid=(160, 192, 160),
        interpolation="cubic",
        window=(-100, 240),
    )
    words = "1 x 1 x 1 mm, cubic, grid of 160 x 192 x 160 voxels, window -100 to 240, blocks"
    assert words in capture.get()


def test_classes_are_called_as_colormap_json_says(tfjs: Path):
    labels = ["background", "Grey Matter", "White Matter"]
    (tfjs / "colormap.json").write_text(json.dumps({"labels": labels}))
    spec, _ = read_model(convert(tfjs))
    assert spec.names == dict(enumerate(labels))
    spec, _ = read_model(convert(tfjs, classes=("a", "b", "c"), overwrite=True))
    assert spec.names == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize("content", ["", "[]", '{"labels": 3}', '{"names": []}'])
def test_a_colormap_json_that_is_none_is_passed_over(tfjs: Path, content: str):
    (tfjs / "colormap.json").write_text(content)
    assert read_model(convert(tfjs))[0].names[2] == "class 2"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"classes": ("a", "b")}, "names 2 classes, but .* tells 3 apart"),
        ({"classes": ("a", "b", "c", "d")}, "names 4 classes, but .* tells 3 apart"),
        ({"orientation": "XYZ"}, "'XYZ' is no orientation"),
        ({"orientation": "RRA"}, "'RRA' is no orientation"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "spacing"),
        ({"block": (8, 0, 8)}, "--block 8 0 8"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"grid": (127, 128, 128)}, "--grid 127 128 128 is smaller than the block"),
        ({"window": (0.0, 1.0)}, "--window 0 1"),
        ({"intensity": "window"}, "--window LOW HIGH"),
    ],
)
def test_options_that_make_no_sense(tfjs: Path, options: dict[str, Any], sentence: str):
    with pytest.raises(InputError, match=sentence):
        convert_file(Convert(tfjs, tfjs.parent / "model", **options), Console(quiet=True))
    assert [path.name for path in tfjs.parent.iterdir()] == ["tfjs"]


def test_the_tensors_are_shown(tfjs: Path):
    console = Console(width=120)
    with console.capture() as capture:
        convert_file(Convert(tfjs, tfjs.parent / "model"), console)
    text = capture.get()
    assert all(name in text for name in NET)
    assert "6 tensors" in text
    assert "LIA" in text


@pytest.mark.parametrize("name", ["model5_gw_ae", "model11_gw_ae", "model18cls", "model20chan3cls"])
def test_the_published_meshnets_convert(name: str, shared_data: Path, tmp_path: Path):
    source = shared_data / "keras" / "brainchop" / name
    assert main(["convert", str(source), str(tmp_path / "model")]) == 0


class TestImages:
    """A network of one linear output gives an image where a person says so."""

    def spec(self, outputs: int, activation: str) -> ModelSpec:
        contract = Contract("RAS", None, "zscore", (8, 8, 8))
        return ModelSpec("meshnet", {"outputs": outputs}, activation, (), contract)

    def test_it_has_no_classes(self) -> None:
        assert classes_of(self.spec(1, "linear"), Path("net.h5"), None, None, image=True) == ()
        assert len(classes_of(self.spec(1, "linear"), Path("net.h5"), None, None)) == 2

    @pytest.mark.parametrize(("outputs", "activation"), [(2, "linear"), (1, "sigmoid")])
    def test_other_networks_give_none(self, outputs: int, activation: str) -> None:
        with pytest.raises(InputError, match=r"--image .* net\.h5 has"):
            classes_of(self.spec(outputs, activation), Path("net.h5"), None, None, image=True)
