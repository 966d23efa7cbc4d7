"""A Keras network as the parameters of a Flax network, every tensor accounted for."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.converters.canonical import CanonicalModel, canonical
from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.families import Recognised, recognise
from voxtune.converters.keras_model import KerasModel
from voxtune.models.families import Network
from voxtune.models.graph import Graph, GraphLayer, results
from voxtune.models.graph_net import attribute
from voxtune.models.parameters import assemble, shapes

# Keras weight name → parameter name in a family, for those that differ.
KERAS_NORM_NAMES = {
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}

# The path of what the Keras network emits, its output activation included. No layer is called so.
EMITTED = "(output)"

# Activations that end a network and are remembered in model.json; networks here emit logits.
OUTPUT_ACTIVATIONS = ("sigmoid", "softmax")


@dataclass(frozen=True)
class Tensor:
    """What became of one tensor.

    Attributes:
        keras: `layer/weight` in the file.
        path: parameter in the Flax network, "" where it was left out.
        keras_shape: shape in the file.
        shape: shape in the network.
        done: "loaded", "loaded, channels swapped" or "left out: ...".
    """

    keras: str
    path: str
    keras_shape: tuple[int, ...]
    shape: tuple[int, ...]
    done: str


@dataclass(frozen=True)
class Conversion:
    """A Keras network as a Flax one.

    Attributes:
        family: a name in `voxtune.models.families.FAMILIES`; "graph" where no other fits.
        arguments: what builds it.
        output_activation: "linear", "sigmoid" or "softmax", taken off the network.
        parameters: path → float32 array, statistics included.
        tensors: what became of each tensor.
        paths: the file's call (the layer's name, for further uses with `:1`) → path under which
            the network computes its result, `EMITTED` for what the Keras network emits.
        canonical: the same network in Keras 3's words, its output activation in place.
        unlike: why it is of no named family, "" where it is.
    """

    family: str
    arguments: Mapping[str, Any]
    output_activation: str
    parameters: Mapping[str, np.ndarray]
    tensors: tuple[Tensor, ...]
    paths: Mapping[str, str]
    canonical: CanonicalModel
    unlike: str

    def network(self) -> Network:
        """The Flax network with the converted parameters."""
        return assemble(self.family, self.arguments, self.parameters)


def convert(model: KerasModel) -> Conversion:
    """Converts a Keras network to a family's, or to a graph where it is of none.

    Raises:
        ConversionError: a layer is not known, the layers do not fit each other, a tensor is left
            over on either side or has another shape than its layer says.
    """
    return from_canonical(canonical(model), model.path, model.left_out)


def from_canonical(
    original: CanonicalModel, path: Path, left_out: Sequence[str] = ()
) -> Conversion:
    """Converts a network that stands in Keras 3's words; `path` is its file, for messages.

    Raises:
        ConversionError: as `convert`.
    """
    arguments: Mapping[str, Any]
    graph, output_activation, stripped = without_output_activation(original.graph)
    recognised, unlike = recognise(graph)
    if recognised is None:
        family, arguments = "graph", _graph_arguments(graph)
        paths = {call.name: call.name for call in graph.calls} | {n: n for n in graph.inputs}
    else:
        family, arguments, paths = recognised.family, recognised.arguments, {**recognised.paths}
    paths |= dict.fromkeys(stripped, EMITTED)
    wanted = shapes(family, arguments)
    if not wanted:
        raise ConversionError(f"{path} holds a network without weights: there is nothing to keep.")
    parameters, tensors = {}, []
    for layer, weights in original.weights.items():
        kind = original.graph.by_name[layer].kind
        for name, value in weights.items():
            origin = original.origins[layer][name]
            place, array, done = _placed(recognised, kind, layer, name, value)
            if wanted.get(place) != array.shape or place in parameters:
                raise ConversionError(
                    f"{path}: tensor {quoted(origin.keras)} {value.shape} has no place in "
                    f"the network; this is a fault of voxtune, please report it."
                )
            parameters[place] = np.ascontiguousarray(array)
            steps = ", ".join(filter(None, ("loaded", origin.done, done)))
            tensors.append(Tensor(origin.keras, place, origin.shape, array.shape, steps))
    missing = sorted(wanted.keys() - parameters.keys())
    if missing:
        raise ConversionError(
            f"{path} has no tensor for {', '.join(missing[:5])}"
            f"{' and others' if len(missing) > 5 else ''}; nothing was converted."
        )
    reasons = dict.fromkeys(left_out, "not of the network") | {**original.left_out}
    tensors += [Tensor(name, "", (), (), f"left out: {reason}") for name, reason in reasons.items()]
    return Conversion(
        family,
        arguments,
        output_activation,
        parameters,
        tuple(tensors),
        {call: paths[here] for call, here in original.calls.items() if here in paths},
        original,
        unlike,
    )


def _placed(
    recognised: Recognised | None, kind: str, layer: str, name: str, value: np.ndarray
) -> tuple[str, np.ndarray, str]:
    """Path and array of a weight in the network, and what was done to it."""
    if recognised is None:
        return f"{attribute(layer)}/{name}", value, ""
    path = f"{recognised.weighted[layer]}/{KERAS_NORM_NAMES.get(name, name)}"
    if kind == "Conv3DTranspose" and name == "kernel":
        # Keras: [kD, kH, kW, out, in]. In a family, as in every other kernel: [..., in, out].
        return path, value.swapaxes(-1, -2), "channels swapped"
    return path, value, ""


def _graph_arguments(graph: Graph) -> dict[str, Any]:
    """What builds a graph; channels and outputs are said where there is one of each."""
    single = len(graph.inputs) == len(graph.outputs) == 1
    channels = next(iter(graph.inputs.values()))[-1] if single else None
    outputs = results(graph)[graph.outputs[0]][-1] if single else None
    return {"graph": graph.to_json(), "channels": channels, "outputs": outputs}


def without_output_activation(graph: Graph) -> tuple[Graph, str, tuple[str, ...]]:
    """A graph that emits logits, the activation taken off, and the calls that emitted it.

    A graph of several inputs or outputs, or without such an activation, stays as it is.
    """
    (output, *others), calls = graph.outputs, {call.name: call for call in graph.calls}
    if others or len(graph.inputs) > 1 or output not in calls:
        return graph, "linear", ()
    call, readers = calls[output], {name for each in graph.calls for name in each.inputs}
    layer = graph.by_name[call.layer]
    uses = sum(each.layer == layer.name for each in graph.calls)
    function = _activation(layer)
    nothing = layer.kind == "Identity" or (layer.kind == "Activation" and function == "linear")
    if not (nothing or function in OUTPUT_ACTIVATIONS) or output in readers or uses > 1:
        return graph, "linear", (output,)
    if layer.kind in ("Activation", "Softmax", "Identity"):
        shorter = dataclasses.replace(
            graph,
            layers=tuple(each for each in graph.layers if each.name != layer.name),
            calls=tuple(each for each in graph.calls if each.name != output),
            outputs=call.inputs,
        )
        return shorter, function or "linear", (output,)
    linear = GraphLayer(layer.name, layer.kind, {**layer.config, "activation": "linear"})
    layers = tuple(linear if each.name == layer.name else each for each in graph.layers)
    return dataclasses.replace(graph, layers=layers), function, (output,)


def _activation(layer: GraphLayer) -> str:
    """The activation that a layer ends with, "" if it is no plain one over the last axis."""
    if layer.kind == "Softmax":
        return "softmax" if layer.config.get("axis", -1) in (-1, [-1]) else ""
    function = layer.config.get("activation")
    return function if isinstance(function, str) else ""
