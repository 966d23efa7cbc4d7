"""Families as graphs and back: recognised where every operation is the same, and else not."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from voxtune.converters.families import ORIGINALS, as_graph, recognise
from voxtune.converters.from_flax import to_graph
from voxtune.models.graph import Graph, GraphCall, GraphLayer, weight_shapes
from voxtune.models.lowering import plain_lowerings
from voxtune.models.parameters import assemble, by_path, shapes

RNG = np.random.default_rng(0)
UNETR = {
    "channels": 2,
    "outputs": 3,
    "size": [8, 8, 8],
    "width": 6,
    "blocks": 4,
    "heads": 2,
    "patch": 4,
    "mlp": 5,
    "filters": 2,
    "dropout": 0.2,
    "mlp_dropout": 0.3,
    "norm": "batch",
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("unet", {"channels": 2, "outputs": 3, "filters": 2, "depth": 2, "norm": "batch"}),
    ("unet", {"channels": 1, "outputs": 1, "filters": 2, "depth": 1, "norm": None}),
    (
        "meshnet",
        {
            "channels": 1,
            "outputs": 3,
            "filters": 2,
            "dilations": [1, 2, 1],
            "activation": "gelu",
            "norm": "batch",
            "dropout": 0.25,
        },
    ),
    (
        "highresnet",
        {"channels": 2, "outputs": 3, "filters": 2, "blocks": 1, "activation": "elu"},
    ),
    *(
        (
            "vnet",
            {
                "channels": 2,
                "outputs": 3,
                "filters": 4,
                "depth": depth,
                "activation": "elu",
                "norm": norm,
                "dropout": dropout,
            },
        )
        for depth, norm, dropout in ((2, "slab", 0.5), (1, "group", 0.25), (1, "slab", 0.0))
    ),
    # Norms of 8 channels, whose groups are of one each, and of 16.
    ("unet", {"channels": 1, "outputs": 1, "filters": 8, "depth": 1, "norm": "group"}),
    ("synthseg_unet", {"channels": 2, "outputs": 3, "filters": 2, "depth": 2}),
    (
        "resenc_unet",
        {
            "channels": 2,
            "outputs": 3,
            "features": [2, 4, 4],
            "blocks": [2, 1, 2],
            "strides": [1, 2, 2],
            "convs": 2,
        },
    ),
    *(
        (
            "bayesian_meshnet",
            {
                "channels": 2,
                "outputs": 3,
                "filters": 2,
                "dilations": [1, 2],
                "activation": "elu",
                "convolution": convolution,
                "prior": prior,
                "dropout": dropout,
            },
        )
        for convolution, prior, dropout in (
            ("flipout", "learned", 0.5),
            ("reparameterization", "normal", 0.0),
            ("weight_norm", "normal", "concrete"),
        )
    ),
    ("unetr", UNETR),
    ("unetr", {**UNETR, "dropout": 0.0, "mlp_dropout": 0.0, "norm": None}),
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
    with plain_lowerings():
        wanted, found = (np.asarray(jax.jit(each)(x)) for each in (network, same))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * abs(wanted).max())
    assert (same.min_multiple, same.receptive_field, same.min_local_depth) == (
        network.min_multiple,
        network.receptive_field,
        network.min_local_depth,
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
    assert recognise(noisy) == (
        None,
        "as a meshnet, layer 'noise', GaussianNoise, is one too many",
    )
    last = graph.calls[-1]
    shared = dataclasses.replace(
        graph,
        calls=(*graph.calls[:-1], dataclasses.replace(last, layer="block3/conv")),
    )
    assert recognise(shared)[0] is None
    always = dataclasses.replace(
        graph, calls=tuple(dataclasses.replace(each, training=True) for each in graph.calls)
    )
    assert "has training True" in recognise(always)[1]
    two = dataclasses.replace(graph, outputs=("head", "block1/conv"))
    assert recognise(two) == (None, "it has 1 inputs and 2 outputs")


def test_arguments_that_a_family_does_not_take_make_it_another_network() -> None:
    """Two convolutions of which one has twice the filters are like a U-Net of no levels."""
    graph = ORIGINALS["unet"].graph({**CASES[1][1], "depth": 0})
    assert [each.kind for each in graph.layers].count("Conv3D") == 3
    found, unlike = recognise(graph)
    assert found is None
    assert unlike.startswith("as a meshnet")


def test_the_order_of_a_file_has_no_say() -> None:
    graph = as_graph(*CASES[0])
    turned = dataclasses.replace(graph, layers=graph.layers[::-1])
    found, _ = recognise(turned)
    assert found is not None
    assert weight_shapes(turned).keys() == weight_shapes(graph).keys()
