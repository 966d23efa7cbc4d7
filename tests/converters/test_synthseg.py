"""SynthSeg's U-Net: weights alone that fit it, and its end in a file of one output."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.converters.families import as_graph
from voxtune.converters.keras_model import KerasWeights
from voxtune.converters.to_flax import without_output_activation
from voxtune.converters.weights_only import candidates, fit
from voxtune.models.graph import Graph, GraphCall, GraphLayer, weight_shapes

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("outputs", "activation"), [(3, "softmax"), (1, "linear")])
def test_weights_alone_tell_all_of_it(outputs: int, activation: str) -> None:
    arguments = {"channels": 2, "outputs": outputs, "filters": 2, "depth": 2}
    layers = {
        layer: {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for layer, shapes in weight_shapes(as_graph("synthseg_unet", arguments)).items()
        if shapes
    }
    file = KerasWeights(Path("s.h5"), "Keras HDF5 weights", "2.3.1", "tensorflow", layers, "", ())
    assert candidates(file) == ["--model synthseg_unet"]
    found = fit(file, "synthseg_unet", {})
    assert (found.family, found.arguments) == ("synthseg_unet", arguments)
    assert found.output_activation == activation
    assert len(found.parameters) == sum(map(len, layers.values()))
    kernel, gamma = "encoder2/unit1/conv", "bottom/norm"
    np.testing.assert_array_equal(found.parameters[f"{kernel}/kernel"], layers[kernel]["kernel"])
    np.testing.assert_array_equal(found.parameters[f"{gamma}/scale"], layers[gamma]["gamma"])


@pytest.mark.parametrize(
    ("kind", "config"), [("Activation", {"activation": "linear"}), ("Identity", {})]
)
def test_a_last_layer_that_does_nothing_is_taken_off(kind: str, config: dict[str, Any]) -> None:
    """SynthSR's files end in one."""
    graph = as_graph("synthseg_unet", {"outputs": 1, "filters": 2, "depth": 1})
    ended = Graph(
        (*graph.layers, GraphLayer("prediction", kind, config)),
        (*graph.calls, GraphCall("prediction", "prediction", graph.outputs)),
        graph.inputs,
        ("prediction",),
    )
    assert without_output_activation(ended) == (graph, "linear", ("prediction",))
