"""SynthSeg's U-Net: its parameters, and weights alone that fit it."""

from pathlib import Path

import numpy as np
import pytest

from voxtune.converters.keras_model import KerasWeights
from voxtune.converters.synthseg import synthseg_graph
from voxtune.converters.weights_only import candidates, fit
from voxtune.models.graph import GraphNet, min_multiple, weight_shapes

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("outputs", "parameters"), [(32, 13_242_824), (33, 13_242_849)])
def test_parameters_are_those_of_the_published_network(outputs: int, parameters: int) -> None:
    """25 more for a label more: a weight for each of 24 channels, and a bias."""
    graph = synthseg_graph(outputs=outputs)
    shapes = [shape for each in weight_shapes(graph).values() for shape in each.values()]
    assert sum(int(np.prod(shape)) for shape in shapes) == parameters
    assert min_multiple(graph) == 16


@pytest.mark.parametrize(("outputs", "activation"), [(3, "softmax"), (1, "linear")])
def test_weights_alone_tell_all_of_it(outputs: int, activation: str) -> None:
    graph = synthseg_graph(outputs=outputs, filters=2, levels=3, channels=2)
    layers = {
        layer: {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for layer, shapes in weight_shapes(graph).items()
    }
    file = KerasWeights(Path("s.h5"), "Keras HDF5 weights", "2.3.1", "tensorflow", layers, "", ())
    assert candidates(file) == ["--model synthseg"]
    found = fit(file, "synthseg", {})
    assert (found.family, found.output_activation) == ("graph", activation)
    assert isinstance(found.network(), GraphNet)
    for layer, arrays in layers.items():
        for name, value in arrays.items():
            assert found.parameters[f"{layer}/{name}"].tobytes() == value.tobytes()


def test_arguments_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="whole numbers above zero"):
        synthseg_graph(outputs=0)
