"""Families as graphs and back: recognised where every operation is the same, and else not."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from voxtune.converters.families import as_graph, recognise
from voxtune.converters.from_flax import to_graph
from voxtune.models.families import build
from voxtune.models.graph import Graph, GraphCall, GraphLayer, weight_shapes
from voxtune.models.parameters import assemble, by_path, shapes

RNG = np.random.default_rng(0)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("unet", {"channels": 2, "outputs": 3, "filters": 2, "depth": 2, "batchnorm": True}),
    ("unet", {"channels": 1, "outputs": 1, "filters": 2, "depth": 1, "batchnorm": False}),
    (
        "meshnet",
        {
            "channels": 1,
            "outputs": 3,
            "filters": 2,
            "dilations": [1, 2, 1],
            "activation": "gelu",
            "batchnorm": True,
            "dropout": 0.25,
        },
    ),
]


@pytest.mark.parametrize(("family", "arguments"), CASES)
def test_a_family_written_as_a_graph_is_recognised(family: str, arguments: dict) -> None:
    found, unlike = recognise(as_graph(family, arguments))
    assert found is not None
    assert not unlike
    assert (found.family, found.arguments) == (family, arguments)


@pytest.mark.parametrize(("family", "arguments"), CASES)
def test_a_family_and_its_graph_compute_the_same(family: str, arguments: dict) -> None:
    values = {
        path: RNG.uniform(0.3, 0.6, shape).astype(np.float32)
        for path, shape in shapes(family, arguments).items()
    }
    network = assemble(family, arguments, values)
    graph, weights = to_graph(family, arguments, "linear", by_path(network))
    same = build("graph", {"graph": graph.to_json()})
    flat = {
        f"{layer}/{name}": value
        for layer, arrays in weights.items()
        for name, value in arrays.items()
    }
    assert {path: value.shape for path, value in flat.items()} == shapes(
        "graph", {"graph": graph.to_json()}
    )
    same = assemble("graph", {"graph": graph.to_json()}, flat)
    x = RNG.normal(size=(1, 8, 8, 8, arguments["channels"])).astype(np.float32)
    wanted = np.asarray(network(x))
    np.testing.assert_allclose(same(x), wanted, atol=1e-5 * abs(wanted).max())
    assert (same.min_multiple, same.receptive_field) == (
        network.min_multiple,
        network.receptive_field,
    )


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_output_activation_is_put_back(activation: str) -> None:
    family, arguments = CASES[1]
    values = {path: np.ones(shape, np.float32) for path, shape in shapes(family, arguments).items()}
    graph, _ = to_graph(family, arguments, activation, values)
    assert graph.by_name[graph.outputs[0]].config == {"activation": activation}
    assert len(graph.calls) == len(as_graph(family, arguments).calls) + 1


def replaced(graph: Graph, name: str, **settings: Any) -> Graph:
    layers = tuple(
        dataclasses.replace(each, config={**each.config, **settings}) if each.name == name else each
        for each in graph.layers
    )
    return dataclasses.replace(graph, layers=layers)


@pytest.mark.parametrize(
    ("layer", "settings", "says"),
    [
        ("encoder1/unit1/conv", {"dilation_rate": [2, 2, 2]}, "dilation"),
        ("encoder1/unit2/conv", {"filters": 5}, "filters 5"),
        ("encoder1/unit1/norm", {"epsilon": 1e-5}, "epsilon"),
        ("encoder1/unit1/norm", {"momentum": 0.9}, "momentum"),
        ("decoder1/up", {"strides": [1, 1, 1], "padding": "same"}, "strides"),
        ("decoder1/concat", {"axis": 1}, "axis"),
        ("head", {"use_bias": False}, "bias"),
        ("encoder1/pool", {"padding": "same"}, "padding"),
    ],
)
def test_a_setting_apart_makes_it_another_network(layer: str, settings: dict, says: str) -> None:
    found, unlike = recognise(replaced(as_graph(*CASES[0]), layer, **settings))
    assert found is None
    assert says in unlike
    assert layer in unlike


def test_structures_apart_are_other_networks() -> None:
    graph = as_graph(*CASES[2])
    noise = GraphLayer("noise", "GaussianNoise", {"stddev": 1.0})
    noisy = dataclasses.replace(
        graph,
        layers=(*graph.layers, noise),
        calls=(*graph.calls, GraphCall("noise", "noise", graph.outputs)),
        outputs=("noise",),
    )
    assert recognise(noisy) == (None, "layer 'noise' is a GaussianNoise")
    last = graph.calls[-1]
    shared = dataclasses.replace(
        graph,
        calls=(*graph.calls[:-1], dataclasses.replace(last, layer="block3/conv")),
    )
    assert recognise(shared)[0] is None
    always = dataclasses.replace(
        graph, calls=tuple(dataclasses.replace(each, training=True) for each in graph.calls)
    )
    assert "training=True" in recognise(always)[1]
    two = dataclasses.replace(graph, outputs=("head", "block1/conv"))
    assert recognise(two) == (None, "it has 1 inputs and 2 outputs")


def test_the_order_of_a_file_has_no_say() -> None:
    graph = as_graph(*CASES[0])
    turned = dataclasses.replace(graph, layers=graph.layers[::-1])
    found, _ = recognise(turned)
    assert found is not None
    assert weight_shapes(turned).keys() == weight_shapes(graph).keys()
