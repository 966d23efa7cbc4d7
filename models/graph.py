"""Any functional Keras graph: its layers and their calls.

A graph here is already canonical: Keras 3's class names and settings, channels last, one output a
call. `voxtune.converters` writes older spellings into this one. What each kind of layer computes
stands in `voxtune.models.kinds`.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from voxtune.models import geometry
from voxtune.models.kinds import KINDS, Mode

_UNKNOWN = 128  # stands for a size that the graph leaves open: a multiple of 2 seven times over
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class GraphLayer:
    """A layer: what computes, and the owner of its weights.

    Attributes:
        name: unique; those of a model inside the model begin with its name and a slash.
        kind: a key of `voxtune.models.kinds.KINDS`.
        config: Keras 3's settings that the kind reads, JSON values.
    """

    name: str
    kind: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class GraphCall:
    """One use of a layer; a shared layer has several.

    Attributes:
        name: unique: the layer's name, for further uses with `:1`, `:2`, ...
        layer: name of the layer.
        inputs: names of the calls whose results it reads, in order.
        training: True or False where the call itself says so, whatever the network does.
    """

    name: str
    layer: str
    inputs: tuple[str, ...]
    training: bool | None = None


@dataclass(frozen=True)
class Graph:
    """Layers and their calls.

    Attributes:
        layers: those with and without weights.
        calls: in an order in which each comes after those that it reads.
        inputs: name → shape without the batch, channels last; None where any size will do.
        outputs: names of calls or inputs.
    """

    layers: tuple[GraphLayer, ...]
    calls: tuple[GraphCall, ...]
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]

    @functools.cached_property
    def source(self) -> str:
        """As a text, which tells equal graphs."""
        return json.dumps(self.to_json())

    @functools.cached_property
    def by_name(self) -> dict[str, GraphLayer]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "layers": [
                {"name": each.name, "kind": each.kind, "config": dict(each.config)}
                for each in self.layers
            ],
            "calls": [
                {"name": each.name, "layer": each.layer, "inputs": list(each.inputs)}
                | ({} if each.training is None else {"training": each.training})
                for each in self.calls
            ],
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "outputs": list(self.outputs),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Graph":
        """The reverse of `to_json`.

        Raises:
            ValueError: the document is no graph.
        """
        try:
            graph = Graph(
                tuple(GraphLayer(**each) for each in document["layers"]),
                tuple(
                    GraphCall(**{**each, "inputs": tuple(each["inputs"])})
                    for each in document["calls"]
                ),
                {name: tuple(shape) for name, shape in document["inputs"].items()},
                tuple(document["outputs"]),
            )
            _check(graph)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no graph ({error!r})") from error
        return graph


def _check(graph: Graph) -> None:
    """Every name is unique and leads to something that comes before it."""
    layers = {each.name for each in graph.layers}
    for kind in {each.kind for each in graph.layers} - KINDS.keys():
        raise ValueError(
            f"no layer is called '{kind}'; if it is your own, run the file that registers it"
        )
    known = set(graph.inputs)
    if len(layers) != len(graph.layers) or not graph.inputs or not graph.outputs:
        raise ValueError("a graph needs inputs, outputs, and layers with different names")
    for call in graph.calls:
        if call.layer not in layers or call.name in known or not known.issuperset(call.inputs):
            raise ValueError(f"the call '{call.name}' does not fit into the graph")
        known.add(call.name)
    for shape in graph.inputs.values():
        if not shape or not all(n is None or (type(n) is int and n > 0) for n in shape):
            raise ValueError(f"an input has the shape {list(shape)}")
    if not known.issuperset(graph.outputs):
        raise ValueError("an output of the graph is computed nowhere")


def drops(kind: str) -> bool:
    """Whether layers of a kind drop values, or add noise, in training."""
    return "Dropout" in kind or "Noise" in kind


def scales_only(kind: str) -> bool:
    """Whether the weights of a kind of layer do no more than scale what another computed."""
    return "Normalization" in kind or kind in ("PReLU", "ConcreteDropout")


@functools.lru_cache(maxsize=32)
def graph_of(source: str) -> Graph:
    """The graph that `Graph.source` is the text of."""
    return Graph.from_json(json.loads(source))


@functools.lru_cache(maxsize=32)
def steps_of(source: str) -> tuple[dict[str, geometry.Step], dict[str, tuple[int, ...]]]:
    """What `voxtune.models.geometry` asks for: steps and shapes by name."""
    graph = graph_of(source)
    layers, shapes = graph.by_name, results(graph)
    steps = {}
    for call in graph.calls:
        layer = layers[call.layer]
        given = tuple(shapes[name] for name in call.inputs)
        windows = KINDS[layer.kind].windows(layer.config, given, shapes[call.name])
        ranks = {len(shape) for shape in (*given, shapes[call.name])}
        keeps = given[:1] == (shapes[call.name],)
        steps[call.name] = geometry.Step(call.inputs, windows if len(ranks) == 1 else None, keeps)
    return steps, shapes


def min_multiple(graph: Graph) -> int:
    """What the spatial sizes of a graph's inputs must be multiples of, voxels."""
    return geometry.min_multiple(steps_of(graph.source)[0], graph.outputs)


def weight_shapes(graph: Graph) -> dict[str, dict[str, tuple[int, ...]]]:
    """Layer → name → shape of its weights, in Keras's order.

    Raises:
        ValueError: the layers do not fit each other.
    """
    return _traced(graph.source, None)[0]


def results(
    graph: Graph, sizes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Call or input → shape of its result, with a batch of 1.

    Args:
        graph: the graph.
        sizes: shape of each input without the batch; what the graph says unless given.

    Raises:
        ValueError: the layers do not fit each other, or the sizes.
    """
    return _traced(graph.source, None if sizes is None else tuple(sizes.items()))[1]


def fits(graph: Graph, sizes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a graph takes inputs of these shapes (without the batch) with the weights it has."""
    try:
        return _traced(graph.source, tuple(sizes.items()))[0] == weight_shapes(graph)
    except ValueError:
        return False


@functools.lru_cache(maxsize=32)
def _traced(
    source: str, sizes: tuple[tuple[str, tuple[int, ...]], ...] | None
) -> tuple[dict[str, dict[str, tuple[int, ...]]], dict[str, tuple[int, ...]]]:
    """Shapes of all weights and of all results, without computing anything."""
    graph = graph_of(source)
    layers, given_sizes = graph.by_name, dict(sizes or ())
    found: dict[str, jax.ShapeDtypeStruct] = {}
    for name, shape in graph.inputs.items():
        known = given_sizes.get(name, tuple(n or _UNKNOWN for n in shape))
        found[name] = jax.ShapeDtypeStruct((1, *known), jnp.float32)
    weights: dict[str, dict[str, tuple[int, ...]]] = {}
    for call in graph.calls:
        layer = layers[call.layer]
        given = tuple(found[name] for name in call.inputs)
        wanted, found[call.name] = traced(layer, given)
        if weights.setdefault(layer.name, wanted) != wanted:
            raise ValueError(f"the uses of '{layer.name}' need weights of different shapes")
    return weights, {name: each.shape for name, each in found.items()}


def traced(
    layer: GraphLayer, inputs: tuple[jax.ShapeDtypeStruct, ...]
) -> tuple[dict[str, tuple[int, ...]], jax.ShapeDtypeStruct]:
    """Shapes of a layer's weights and of its result, without computing anything.

    Raises:
        ValueError: the layer does not fit what it reads.
    """
    try:
        wanted = KINDS[layer.kind].weights(layer.config, tuple(each.shape for each in inputs))
        arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in wanted.items()}
        return wanted, jax.eval_shape(functools.partial(_predict, layer), arrays, inputs)
    except (TypeError, ValueError, LookupError, ArithmeticError, AssertionError) as error:
        shapes = ", ".join(str(list(each.shape[1:])) for each in inputs)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the layer '{layer.name}' ({layer.kind}) does not fit what it reads, {shapes}: "
            f"{reason}"
        ) from error


def _predict(layer: GraphLayer, weights: dict[str, Array], inputs: tuple[Array, ...]) -> Array:
    return KINDS[layer.kind].apply(layer.config, weights, inputs, Mode(train=False))


# --- input and head --------------------------------------------------------------------------

_HEADS = ("Conv1D", "Conv2D", "Conv3D", "Dense")
_READERS = (*_HEADS, "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")


def with_channels(graph: Graph, channels: int) -> Graph:
    """The graph whose input has so many channels.

    Only the kernels of convolutions and dense layers may have another shape then, and only what
    they read may have more channels.

    Raises:
        ValueError: it has several inputs, its layers do not fit each other any more, another
            weight has as many values as the input has channels, channels are joined with what has
            another number of them, or the outputs have another shape.
    """
    if len(graph.inputs) != 1:
        raise ValueError("it has several inputs")
    ((name, shape),) = graph.inputs.items()
    changed = dataclasses.replace(graph, inputs={name: (*shape[:-1], channels)})
    before, after = weight_shapes(graph), weight_shapes(changed)
    for layer in graph.layers:
        own, other = before.get(layer.name, {}), after.get(layer.name, {})
        for weight in other:
            if own.get(weight) == other[weight]:
                continue
            if weight != "kernel" or layer.kind not in _READERS:
                raise ValueError(
                    f"the {weight} of its layer '{layer.name}' ({layer.kind}) depends on the "
                    "number of channels"
                )
    _check_results(graph, changed)
    return changed


def _check_results(graph: Graph, changed: Graph) -> None:
    """Makes sure that another number of channels reaches no further than the kernels.

    Raises:
        ValueError: it does.
    """
    old, new = results(graph), results(changed)
    for call in graph.calls:
        layer = graph.by_name[call.layer]
        differ = {old[name] != new[name] for name in call.inputs}
        if len(differ) > 1 and layer.kind != "Concatenate":
            raise ValueError(
                f"its layer '{layer.name}' ({layer.kind}) takes the image's channels together with "
                "something that has its own number of them"
            )
        if old[call.name][:-1] != new[call.name][:-1]:
            raise ValueError(
                f"the shape of what its layer '{layer.name}' ({layer.kind}) gives depends on the "
                "number of channels"
            )
    if any(old[name] != new[name] for name in graph.outputs):
        raise ValueError("the number of its outputs depends on the number of channels")


def head_of(graph: Graph) -> str | None:
    """The layer that gives the outputs: the last one, but for activations that do nothing.

    None where a graph has several outputs, or its last layer is of another kind or shared.
    """
    if len(graph.outputs) != 1:
        return None
    calls = {call.name: call for call in graph.calls}
    last = calls.get(graph.outputs[0])
    while last is not None and _passes_on(graph.by_name[last.layer]):
        last = calls.get(last.inputs[0])
    if last is None or graph.by_name[last.layer].kind not in _HEADS:
        return None
    uses = sum(call.layer == last.layer for call in graph.calls)
    return last.layer if uses == 1 else None


def _passes_on(layer: GraphLayer) -> bool:
    return layer.kind == "Identity" or (
        layer.kind == "Activation" and layer.config.get("activation") == "linear"
    )


def head_activation(graph: Graph) -> str:
    """What its head applies to its results: "linear" where that is nothing, or there is no head."""
    head = head_of(graph)
    return str((head and graph.by_name[head].config.get("activation")) or "linear")


def with_linear_head(graph: Graph) -> Graph:
    """The graph whose head, if it has one, applies nothing to its results."""
    return _with_head(graph, activation="linear")


def _with_head(graph: Graph, **settings: Any) -> Graph:
    """The graph whose head has other settings."""
    head = head_of(graph)
    layers = tuple(
        dataclasses.replace(each, config={**each.config, **settings}) if each.name == head else each
        for each in graph.layers
    )
    return dataclasses.replace(graph, layers=layers)


def with_outputs(graph: Graph, outputs: int | None) -> Graph:
    """The graph whose head gives so many outputs; itself where None are asked for.

    Raises:
        ValueError: it gives another number and has no head.
    """
    if outputs is None:
        return graph
    head = head_of(graph)
    if head is None:
        if len(graph.outputs) == 1 and results(graph)[graph.outputs[0]][-1] == outputs:
            return graph
        raise ValueError("its outputs come from no single convolution that could be replaced")
    size = "units" if graph.by_name[head].kind == "Dense" else "filters"
    return _with_head(graph, **{size: outputs})
