"""A Keras file of weights alone, as the weights of a family that the person names."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from voxtune.converters.canonical import CanonicalModel, Origin
from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.families import as_graph
from voxtune.converters.keras_model import KerasWeights
from voxtune.converters.synthseg import synthseg_graph
from voxtune.converters.tensors import as_float32
from voxtune.converters.to_flax import Conversion, from_canonical
from voxtune.models.errors import InputError
from voxtune.models.families import abstract
from voxtune.models.graph import Graph, GraphCall, GraphLayer, weight_shapes

FAMILIES = ("meshnet", "unet", "synthseg")
_UNTOLD = {"meshnet": ("dilations", "activation")}  # what weights do not tell
_SHOWN = 3  # tensors that differ


class _Held(NamedTuple):
    """A layer of the file that has weights."""

    name: str
    arrays: Mapping[str, np.ndarray]

    @property
    def kernel(self) -> tuple[int, ...]:
        """The shape of its kernel, () for a norm."""
        return next((each.shape for each in self.arrays.values() if each.ndim == 5), ())

    @property
    def transposed(self) -> bool:
        """Whether its class, which Keras names layers after, is a transposed convolution."""
        return "transpose" in self.name.lower() or "deconv" in self.name.lower()


def fit(weights: KerasWeights, family: str, given: Mapping[str, Any]) -> Conversion:
    """The family's network with the weights of the file.

    Args:
        weights: the file.
        family: one of `FAMILIES`.
        given: arguments of the family; those left out are taken from the shapes of the weights.

    Raises:
        ConversionError: the tensors are not those of such a network; the sentence shows the first
            that differ, and which arguments would fit.
    """
    if family not in FAMILIES:
        raise InputError(f"--model {family} is not known; give one of {', '.join(FAMILIES)}.")
    if weights.backend == "theano":
        raise ConversionError(
            f"{weights.path} holds weights of Theano, which mirrors kernels and pads in a way of "
            "its own; give the file of the whole model, which says how."
        )
    held = [_Held(name, arrays) for name, arrays in weights.layers.items() if arrays]
    kernels = [each.kernel for each in held if each.kernel]
    if len(kernels) < 2:
        raise ConversionError(
            f"{weights.path} holds {len(kernels)} kernels of 3D convolutions, too few for a "
            f"{family}; give the file of such a network."
        )
    guessed = _guess(family, held)
    untold = [name for name in _UNTOLD.get(family, ()) if name not in given]
    if untold:
        raise ConversionError(
            f"{weights.path}: the weights of a {family} do not tell its {' and '.join(untold)}; "
            f"pass --arguments, for example {_spelled(guessed)}."
        )
    graph = _graph(weights, family, {**guessed, **given})
    pairs = _best(held, graph)
    differences = list(_differences(pairs, graph))
    if differences:
        raise ConversionError(
            f"{weights.path} does not hold the weights of this {family}: "
            f"{'; '.join(differences[:_SHOWN])}"
            f"{f'; and {len(differences) - _SHOWN} more' if len(differences) > _SHOWN else ''}. "
            + _advice(weights, family, held, {**given, **guessed})
        )
    canonical = _canonical(graph, pairs, weights.path)
    return from_canonical(canonical, weights.path, weights.left_out)


def candidates(weights: KerasWeights) -> list[str]:
    """The options with which a file would fit, examples where its weights do not tell."""
    held = [_Held(name, arrays) for name, arrays in weights.layers.items() if arrays]
    fitting = []
    for family in FAMILIES:
        try:
            guessed = _guess(family, held)
            fit(weights, family, guessed)
        except (InputError, IndexError):
            continue
        untold = {name: guessed[name] for name in _UNTOLD.get(family, ())}
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
        try:
            arguments[name] = json.loads(f"[{value}]" if "," in value else value.lower())
        except ValueError:
            arguments[name] = value
    return arguments


def _guess(family: str, held: Sequence[_Held]) -> dict[str, Any]:
    """The arguments of the family that the shapes of the weights tell, with examples of others."""
    kernels = [each.kernel for each in held if each.kernel]
    batchnorm = len(kernels) != len(held)
    heads = [each for each in kernels if each[:3] == (1, 1, 1)] or kernels
    arguments = {
        "channels": kernels[0][3],
        "outputs": heads[-1][4],
        "filters": kernels[0][4],
        "batchnorm": batchnorm,
    }
    if family == "synthseg":
        levels = (len(kernels) + 1) // 4  # two down, two up a level but for the lowest, a head
        return {name: arguments[name] for name in ("channels", "outputs", "filters")} | {
            "levels": levels
        }
    if family == "unet":
        return arguments | {"depth": sum(each[:3] == (2, 2, 2) for each in kernels)}
    blocks = len(kernels) - 1
    usual = {7: [1, 1, 2, 4, 8, 16, 1], 9: [1, 2, 4, 8, 16, 8, 4, 2, 1]}
    return arguments | {"dilations": usual.get(blocks, [1] * blocks), "activation": "relu"}


def _spelled(arguments: Mapping[str, Any]) -> str:
    def value(each: Any) -> str:
        return ",".join(map(str, each)) if isinstance(each, list) else str(each).lower()

    return " ".join(f"{name}={value(each)}" for name, each in arguments.items())


def _graph(weights: KerasWeights, family: str, arguments: Mapping[str, Any]) -> Graph:
    """The family's graph, with the output activation that Nobrainer and others put on it."""
    try:
        if family == "synthseg":
            return synthseg_graph(**arguments)
        abstract(family, arguments)
        graph = as_graph(family, arguments)
        weight_shapes(graph)
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise ConversionError(
            f"{weights.path}: no {family} has the arguments {_spelled(arguments)} "
            f"({quoted(error)}); give others with --arguments."
        ) from error
    function = "sigmoid" if arguments["outputs"] == 1 else "softmax"
    layer = GraphLayer("output", "Activation", {"activation": function})
    call = GraphCall("output", "output", graph.outputs)
    return Graph((*graph.layers, layer), (*graph.calls, call), graph.inputs, ("output",))


def _best(held: Sequence[_Held], graph: Graph) -> list[tuple[GraphLayer, _Held | None]]:
    """Each layer of the graph that has weights, with the layer of the file that it takes.

    Old files list layers as the network has them. Others name them by class and number, and so
    list each class apart: the way with fewer differences is the right one.
    """
    shapes = weight_shapes(graph)
    wanted = [layer for layer in graph.layers if shapes[layer.name]]
    norms = [each for each in held if not each.kernel]
    ups = [each for each in held if each.kernel and each.transposed]
    convs = [each for each in held if each.kernel and not each.transposed]
    by_class = {"BatchNormalization": norms, "Conv3DTranspose": ups, "Conv3D": convs}
    queues = {kind: iter(layers) for kind, layers in by_class.items()}
    apart = [(layer, next(queues[layer.kind], None)) for layer in wanted]
    apart += [(GraphLayer("", "", {}), each) for queue in queues.values() for each in queue]
    padded = [*held, *[None] * (len(wanted) - len(held))]
    as_listed = list(zip(wanted, padded, strict=False))
    as_listed += [(GraphLayer("", "", {}), each) for each in held[len(wanted) :]]
    return min(as_listed, apart, key=lambda pairs: len(list(_differences(pairs, graph))))


def _differences(pairs: Sequence[tuple[GraphLayer, _Held | None]], graph: Graph) -> Iterator[str]:
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


def _in_order(held: _Held | None, wanted: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    """The arrays of a layer in Keras's order; TensorFlow lists them by the alphabet."""
    if held is None:
        return []
    if wanted.keys() == held.arrays.keys():
        return [(name, held.arrays[name]) for name in wanted]
    return list(held.arrays.items())


def _advice(
    weights: KerasWeights, family: str, held: Sequence[_Held], fitting: Mapping[str, Any]
) -> str:
    graph = _graph(weights, family, fitting)
    if any(_differences(_best(held, graph), graph)):
        return f"No arguments of a {family} would fit."
    return f"These arguments would fit: --arguments {_spelled(fitting)}."


def _canonical(
    graph: Graph, pairs: Sequence[tuple[GraphLayer, _Held | None]], path: Path
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
