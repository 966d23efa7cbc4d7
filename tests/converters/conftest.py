"""What the tests of the converters share: small models, their files, refusals, comparisons."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from flax import nnx

from voxtune.converters.canonical import CanonicalModel, canonical
from voxtune.converters.keras_config import parse_graph
from voxtune.converters.keras_file import ConversionError, KerasModel, read_keras_file
from voxtune.models.graph import weight_shapes
from voxtune.models.graph_net import GraphNet, attribute


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


@pytest.fixture
def in_memory() -> Callable[..., KerasModel]:
    """A Keras 3 model as if it had been read from a file."""

    def held(model: Any, prefix: str = "") -> dict[str, dict[str, np.ndarray]]:
        found = {}
        for layer in model.layers:
            if hasattr(layer, "layers"):
                found |= held(layer, f"{prefix}{layer.name}/")
            else:
                found[f"{prefix}{layer.name}"] = {
                    weight.path.split(f"{layer.name}/")[-1]: np.asarray(weight)
                    for weight in layer.weights
                    if "seed_generator" not in weight.path
                }
        return found

    def read(model: Any, **changes: Any) -> KerasModel:
        graph = parse_graph(json.loads(model.to_json()), Path("net.keras"))
        weights = held(model)
        layers = tuple(
            dataclasses.replace(each, weights=weights.get(each.name, {})) for each in graph.layers
        )
        ends = {"inputs": graph.inputs, "outputs": graph.outputs}
        says = {"keras_version": "3.10.0", "backend": "jax"} | changes
        return KerasModel(
            Path("net.keras"), "Keras 3 .keras", name=graph.name, layers=layers, calls=graph.calls,
            sha256="", left_out=(), **ends, **says,
        )  # fmt: skip

    return read


@pytest.fixture
def computed() -> Callable[..., dict[str, np.ndarray]]:
    """What a canonical model computes: call of the file → result, in the file's order of axes."""

    def run(model: CanonicalModel, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        net = GraphNet(graph=model.graph.to_json(), rngs=nnx.Rngs(0))
        wanted = {name: set(each) for name, each in weight_shapes(model.graph).items() if each}
        assert wanted == {name: set(each) for name, each in model.weights.items()}
        for layer, arrays in model.weights.items():
            for name, value in arrays.items():
                getattr(getattr(net, attribute(layer)), name).set_value(value)
        found: dict[str, np.ndarray] = {}
        given = {
            name: np.moveaxis(x, 1, -1) if name in model.moved else x
            for name, x in zip(model.graph.inputs, inputs, strict=True)
        }
        net.run(given, tap=lambda name, value: found.update({name: np.asarray(value)}))
        return found | {
            name: np.moveaxis(found[here], -1, 1) if name in model.moved else found[here]
            for name, here in model.calls.items()
        }

    return run


@pytest.fixture
def same_as_keras(
    in_memory: Callable[..., KerasModel], computed: Callable[..., dict[str, np.ndarray]]
) -> Callable[..., CanonicalModel]:
    """Checks that a Keras 3 model and its canonical form give the same outputs, 1e-5."""

    def check(model: Any, seed: int = 0) -> CanonicalModel:
        random = np.random.default_rng(seed)
        for weight in model.weights:
            if "seed_generator" not in weight.path:
                low = 0.5 if "variance" in weight.path else -0.5
                weight.assign(random.uniform(low, 1, weight.shape))
        inputs = [random.normal(size=(2, *each.shape[1:])).astype("f") for each in model.inputs]
        read = in_memory(model)
        converted = canonical(read)
        results = computed(converted, *inputs)
        wanted = model(inputs if len(inputs) > 1 else inputs[0])
        wanted = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
        assert len(wanted) == len(read.outputs)
        for reference, here, value in zip(
            read.outputs, converted.graph.outputs, wanted, strict=True
        ):
            value = np.asarray(value)
            name = here if reference.index else reference.call
            np.testing.assert_allclose(
                results[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max()
            )
        return converted

    return check
