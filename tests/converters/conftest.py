"""What the tests of the converters share: a small model by hand, its .h5 file, and a refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from voxtune.converters.keras_file import ConversionError, KerasModel, read_keras_file


@pytest.fixture
def refused() -> Callable[..., str]:
    """Reads a file that must be refused; gives its sentence: one line that names the file."""

    def read(path: Path, *words: str) -> str:
        with pytest.raises(ConversionError) as caught:
            read_keras_file(path)
        sentence = str(caught.value)
        assert str(path) in sentence
        assert "\n" not in sentence
        for word in words:
            assert word in sentence, sentence
        return sentence

    return read


@pytest.fixture
def weights() -> Callable[[KerasModel, str], dict[str, np.ndarray]]:
    """The arrays of one layer of a model."""

    def of(model: KerasModel, layer: str) -> dict[str, np.ndarray]:
        return dict(next(found for found in model.layers if found.name == layer).weights)

    return of


@pytest.fixture(scope="module")
def keras() -> Any:
    return pytest.importorskip("keras")


class Keras2:
    """A model of one convolution by hand as Keras 2 writes it, and what makes others like it."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.kernel = random.normal(size=(3, 3, 3, 1, 2)).astype(np.float32)
        self.bias = random.normal(size=2).astype(np.float32)
        self.tensors = {"conv": {"conv/kernel:0": self.kernel, "conv/bias:0": self.bias}}
        self.image = self.layer("image", "InputLayer", batch_input_shape=[None, 8, 8, 8, 1])
        self.conv = self.layer("conv", "Conv3D", "image", filters=2, kernel_size=[3, 3, 3])
        self.small = self.functional(self.image, self.conv)

    @staticmethod
    def layer(
        name: str, class_name: str, *inputs: str, call: dict | None = None, **config: Any
    ) -> dict[str, Any]:
        """One entry of a configuration."""
        return {
            "class_name": class_name,
            "config": {"name": name, **config},
            "name": name,
            "inbound_nodes": [[[source, 0, 0, call or {}] for source in inputs]] if inputs else [],
        }

    @staticmethod
    def functional(*layers: dict[str, Any], **changes: Any) -> dict[str, Any]:
        config = {
            "name": "model",
            "layers": list(layers),
            "input_layers": [["image", 0, 0]],
            "output_layers": [[layers[-1].get("name"), 0, 0]],
        }
        return {"class_name": "Functional", "config": config | changes}


@pytest.fixture
def keras2() -> Keras2:
    return Keras2()


@pytest.fixture
def write_h5(keras2: Keras2) -> Callable[..., Path]:
    """Writes a whole model in the layout of Keras 2, then alters it."""

    def write(
        path: Path,
        config: Any = keras2.small,
        tensors: dict[str, dict[str, Any]] = keras2.tensors,
        alter: Callable[[h5py.File], object] = lambda file: None,
    ) -> Path:
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

    return write
