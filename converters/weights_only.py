"""A Keras file of weights alone, as the weights of a family that the person names."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.converters.canonical import CanonicalModel, Origin, canonical
from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.families import ORIGINALS, as_graph
from voxtune.converters.keras_model import (
    KerasCall,
    KerasLayer,
    KerasModel,
    KerasWeights,
    TensorRef,
)
from voxtune.converters.originals.original import HeldLayer
from voxtune.converters.subclassed import one_layer
from voxtune.converters.tensors import as_float32
from voxtune.converters.to_flax import Conversion, from_canonical
from voxtune.models.errors import InputError
from voxtune.models.families import abstract
from voxtune.models.graph import Graph, GraphCall, GraphLayer, weight_shapes

_SHOWN = 3  # tensors that differ


def fit(weights: KerasWeights, family: str, given: Mapping[str, Any]) -> Conversion:
    """The family's network with the weights of the file.

    Args:
        weights: the file.
        family: a key of `ORIGINALS`.
        given: arguments of the family; those left out are taken from the shapes of the weights.

    Raises:
        ConversionError: the tensors are not those of such a network; the sentence shows the first
            that differ, and which arguments would fit.
    """
    if family not in ORIGINALS:
        raise InputError(f"--model {family} is not known; give one of {', '.join(ORIGINALS)}.")
    if weights.backend == "theano":
        raise ConversionError(
            f"{weights.path} holds weights of Theano, which mirrors kernels and pads in a way of "
            "its own; give the file of the whole model, which says how."
        )
    held = [HeldLayer(name, arrays) for name, arrays in weights.layers.items() if arrays]
    kernels = sum(value.ndim == 5 for each in held for value in each.arrays.values())
    if kernels < 2:
        raise ConversionError(
            f"{weights.path} holds {kernels} kernels of 3D convolutions, too few for a "
            f"{family}; give the file of such a network."
        )
    try:
        guessed = ORIGINALS[family].from_weights(held)
        abstract(family, guessed)
    except (InputError, LookupError, ValueError) as error:
        raise ConversionError(
            f"{weights.path} does not hold the weights of a {family}. No arguments of a {family} "
            "would fit; name another with --model."
        ) from error
    untold = [name for name in ORIGINALS[family].untold if name not in given]
    if untold:
        raise ConversionError(
            f"{weights.path}: the weights of a {family} do not tell its {' and '.join(untold)}; "
            f"pass --arguments, for example {_spelled(guessed)}."
        )
    graph = _graph(weights, family, {**guessed, **given})
    whole = one_layer(family, held, {**guessed, **given})
    if whole is not None:
        return _of_one_layer(weights, whole, {**guessed, **given})
    pairs = _best(held, graph)
    differences = list(_differences(pairs, graph))
    if differences:
        raise ConversionError(
            f"{weights.path} does not hold the weights of this {family}: "
            f"{'; '.join(differences[:_SHOWN])}"
            f"{f'; and {len(differences) - _SHOWN} more' if len(differences) > _SHOWN else ''}. "
            + _advice(weights, family, held, {**given, **guessed})
        )
    return from_canonical(_canonical(graph, pairs, weights.path), weights.path, weights.left_out)


def _of_one_layer(
    weights: KerasWeights, layer: KerasLayer, arguments: Mapping[str, Any]
) -> Conversion:
    """The network that is one layer, between the input and the output activation of its makers."""
    size, channels, outputs = (arguments[name] for name in ("size", "channels", "outputs"))
    function = "sigmoid" if outputs == 1 else "softmax"
    shape = {"batch_input_shape": [None, *size, channels]}
    ends = (
        KerasLayer("input", "InputLayer", shape, {}),
        KerasLayer("output", "Activation", {"activation": function}, {}),
    )
    calls = [KerasCall("input", "input", (), {})]
    for each, source in ((layer, "input"), (ends[1], layer.name)):
        calls.append(KerasCall(each.name, each.name, (TensorRef(source),), {}))
    model = KerasModel(
        path=weights.path,
        format=weights.format,
        keras_version=weights.keras_version,
        backend=weights.backend,
        name=layer.name,
        layers=(ends[0], layer, ends[1]),
        calls=tuple(calls),
        inputs=("input",),
        outputs=(TensorRef("output"),),
        sha256=weights.sha256,
        left_out=weights.left_out,
    )
    conversion = from_canonical(canonical(model), weights.path, weights.left_out)
    for name, value in arguments.items():
        if conversion.arguments[name] != value:
            raise ConversionError(
                f"{weights.path} holds a network with {name}={conversion.arguments[name]}, not "
                f"{value}; leave that argument out."
            )
    return conversion


def candidates(weights: KerasWeights) -> list[str]:
    """The options with which a file would fit, examples where its weights do not tell."""
    held = [HeldLayer(name, arrays) for name, arrays in weights.layers.items() if arrays]
    fitting = []
    for family, original in ORIGINALS.items():
        try:
            guessed = original.from_weights(held)
            fit(weights, family, guessed)
        except (InputError, LookupError, ValueError):
            continue
        untold = {name: guessed[name] for name in original.untold}
        spelled = f" --arguments {_spelled(untold)}" if untold else ""
        fitting.append(f"--model {family}{spelled}")
    return fitting


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """`["filters=16", "dilations=1,2,4", "activation=elu"]` as a family's arguments.

    Raises:
        InputError: a text is not NAME=VALUE.
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value or name in arguments:
            raise InputError(
                f"--arguments takes NAME=VALUE, each name once, such as filters=16; '{text}' is "
                "not that."
            )
        spelled = "null" if value.lower() == "none" else value.lower()
        try:
            arguments[name] = json.loads(f"[{value.rstrip(',')}]" if "," in value else spelled)
        except ValueError:
            arguments[name] = value
    return arguments


def _spelled(arguments: Mapping[str, Any]) -> str:
    def value(each: Any) -> str:
        return ",".join(map(str, each)) if isinstance(each, list) else str(each).lower()

    return " ".join(f"{name}={value(each)}" for name, each in arguments.items())


def _graph(weights: KerasWeights, family: str, arguments: Mapping[str, Any]) -> Graph:
    """The family's graph, with the output activation that the family's makers put on it."""
    try:
        abstract(family, arguments)
        graph = as_graph(family, arguments)
        weight_shapes(graph)
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise ConversionError(
            f"{weights.path}: no {family} has the arguments {_spelled(arguments)} "
            f"({quoted(error)}); give others with --arguments."
        ) from error
    function = ORIGINALS[family].single if arguments["outputs"] == 1 else "softmax"
    layer = GraphLayer("output", "Activation", {"activation": function})
    call = GraphCall("output", "output", graph.outputs)
    return Graph((*graph.layers, layer), (*graph.calls, call), graph.inputs, ("output",))


def _best(held: Sequence[HeldLayer], graph: Graph) -> list[tuple[GraphLayer, HeldLayer | None]]:
    """Each layer of the graph that has weights, with the layer of the file that it takes.

    Old files list layers as the network has them. Others name them by class and number, and so
    list each class apart: the way with fewer differences is the right one.
    """
    shapes = weight_shapes(graph)
    wanted = [layer for layer in graph.layers if shapes[layer.name]]
    norms = [each for each in held if not each.kernel]
    transposed = {each.name for each in held if each.kernel and each.transposed}
    if not transposed:  # names of a person's own: a kernel tells whose shape no convolution has
        kernels: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}
        for layer in wanted:
            kernels[layer.kind == "Conv3DTranspose"] |= set(shapes[layer.name].values())
        alone = kernels[True] - kernels[False]
        transposed = {each.name for each in held if each.kernel in alone}
    ups = [each for each in held if each.kernel and each.name in transposed]
    convs = [each for each in held if each.kernel and each.name not in transposed]
    queues = {"norm": iter(norms), "up": iter(ups), "conv": iter(convs)}

    def queue(layer: GraphLayer) -> Iterator[HeldLayer]:
        if all(len(shape) != 5 for shape in shapes[layer.name].values()):
            return queues["norm"]
        return queues["up" if layer.kind == "Conv3DTranspose" else "conv"]

    apart = [(layer, next(queue(layer), None)) for layer in wanted]
    apart += [(GraphLayer("", "", {}), each) for rest in queues.values() for each in rest]
    padded = [*held, *[None] * (len(wanted) - len(held))]
    as_listed = list(zip(wanted, padded, strict=False))
    as_listed += [(GraphLayer("", "", {}), each) for each in held[len(wanted) :]]
    return min(as_listed, apart, key=lambda pairs: len(list(_differences(pairs, graph))))


def _differences(
    pairs: Sequence[tuple[GraphLayer, HeldLayer | None]], graph: Graph
) -> Iterator[str]:
    """What each layer of the file has and should have, where that differs."""
    shapes = weight_shapes(graph)
    for layer, held in pairs:
        wanted = list(shapes[layer.name].values()) if layer.name else []
        found = [value.shape for _, value in _in_order(held, shapes.get(layer.name, {}))]
        if found == wanted:
            continue
        name = f"{quoted(held.name)} has " if held else "no layer has "
        have = " and ".join(map(str, found)) or "the weights"
        need = " and ".join(map(str, wanted))
        yield f"{name}{have} where {layer.name} needs {need}" if need else f"{name}{have} too many"


def _in_order(held: HeldLayer | None, wanted: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    """The arrays of a layer in Keras's order; TensorFlow lists them by the alphabet."""
    if held is None:
        return []
    if wanted.keys() == held.arrays.keys():
        return [(name, held.arrays[name]) for name in wanted]
    return list(held.arrays.items())


def _advice(
    weights: KerasWeights, family: str, held: Sequence[HeldLayer], fitting: Mapping[str, Any]
) -> str:
    graph = _graph(weights, family, fitting)
    if any(_differences(_best(held, graph), graph)):
        return f"No arguments of a {family} that its weights suggest would fit."
    return f"These arguments would fit: --arguments {_spelled(fitting)}."


def _canonical(
    graph: Graph, pairs: Sequence[tuple[GraphLayer, HeldLayer | None]], path: Path
) -> CanonicalModel:
    shapes = weight_shapes(graph)
    arrays: dict[str, dict[str, np.ndarray]] = {}
    origins: dict[str, dict[str, Origin]] = {}
    for layer, held in pairs:
        assert held is not None
        arrays[layer.name], origins[layer.name] = {}, {}
        found = _in_order(held, shapes[layer.name])
        for name, (weight, value) in zip(shapes[layer.name], found, strict=True):
            done = "" if value.dtype == np.float32 else f"{value.dtype} to float32"
            arrays[layer.name][name] = as_float32(value, f"{held.name}/{weight}", path)
            origins[layer.name][name] = Origin(f"{held.name}/{weight}", value.shape, done)
    names = {name: name for name in (*graph.inputs, *(call.name for call in graph.calls))}
    return CanonicalModel(graph, arrays, origins, names, frozenset())
