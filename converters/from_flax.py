"""A voxtune network as the graph and weights that Keras has for it: the way back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from voxtune.converters.families import as_graph
from voxtune.converters.to_flax import KERAS_NORM_NAMES
from voxtune.models.graph import Graph, GraphCall, GraphLayer, weight_shapes
from voxtune.models.graph_net import attribute


def to_graph(
    family: str,
    arguments: Mapping[str, Any],
    output_activation: str,
    parameters: Mapping[str, np.ndarray | jax.Array],
) -> tuple[Graph, dict[str, dict[str, np.ndarray]]]:
    """A network as Keras would have it, its output activation put back.

    Args:
        family: a key of `voxtune.models.families.FAMILIES`.
        arguments: what builds it.
        output_activation: "linear", "sigmoid" or "softmax".
        parameters: path → array.

    Returns:
        The graph, and layer → weight → array in Keras's layout; the bits are the same.
    """
    graph = as_graph(family, arguments)
    weights: dict[str, dict[str, np.ndarray]] = {}
    for layer, shapes in weight_shapes(graph).items():
        kind, weights[layer] = graph.by_name[layer].kind, {}
        for name in shapes:
            if family == "graph":
                value = np.asarray(parameters[f"{attribute(layer)}/{name}"])
            else:
                value = np.asarray(parameters[f"{layer}/{KERAS_NORM_NAMES.get(name, name)}"])
                if kind == "Conv3DTranspose" and name == "kernel":
                    value = value.swapaxes(-1, -2)
            weights[layer][name] = value
    if output_activation == "linear":
        return graph, weights
    name = output_activation
    while name in graph.by_name or name in graph.inputs:
        name += "_"
    last = GraphLayer(name, "Activation", {"activation": output_activation})
    call = GraphCall(name, name, graph.outputs)
    layers, calls = (*graph.layers, last), (*graph.calls, call)
    return dataclasses.replace(graph, layers=layers, calls=calls, outputs=(name,)), weights
