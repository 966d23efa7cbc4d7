"""Networks of a class of their own, which a file holds as one layer: the graphs that they are.

Keras saves a subclassed model inside a functional one as a layer of that class, with all weights in
one list: those that are trained in the order in which the class makes its attributes, and the
moving statistics in the same order.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxtune.converters.errors import quoted
from voxtune.converters.keras_code import class_of
from voxtune.converters.keras_model import KerasLayer
from voxtune.converters.originals.original import HeldLayer
from voxtune.converters.originals.unetr import graph_of, stored_arguments, stored_order
from voxtune.models.arguments import check_arguments
from voxtune.models.graph import Graph, weight_shapes
from voxtune.models.kinds import KINDS
from voxtune.models.unetr import UNETR

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A weight as a file has it.

    Attributes:
        name: in the file.
        shape: in the file.
        value: in the shape that the graph needs.
    """

    name: str
    shape: Shape
    value: np.ndarray


@dataclass(frozen=True)
class Subclassed:
    """What such a layer computes.

    Attributes:
        graph: of one input and one output.
        weights: layer of the graph → weight → what the file has for it.
        unread: weights of the file that the class makes and never reads.
    """

    graph: Graph
    weights: Mapping[str, Mapping[str, Stored]]
    unread: tuple[str, ...]


def is_subclassed(layer: KerasLayer) -> bool:
    """Whether a layer is a network of a known class; a class that was registered is not."""
    name = class_of(layer.class_name)
    return name in _CLASSES and name not in KINDS


def opened(layer: KerasLayer) -> Subclassed:
    """The network that a layer is.

    Raises:
        ValueError: its settings or weights are not those of such a network.
    """
    try:
        return _CLASSES[class_of(layer.class_name)](layer)
    except (LookupError, TypeError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"its settings and weights are not its class's ({error!r})") from error


def one_layer(
    family: str, held: Sequence[HeldLayer], arguments: Mapping[str, Any]
) -> KerasLayer | None:
    """The one layer of a file of weights alone as the class that saves a family so, if it is one.

    Args:
        family: whose weights the file holds.
        held: what the file holds.
        arguments: of the family.
    """
    if family != "unetr" or len(held) != 1:
        return None
    config = {
        "img_shape": arguments["size"],
        "num_heads": arguments["heads"],
        "dropout": arguments.get("dropout", 0.1),
    }
    return KerasLayer(held[0].name, "UNETR", config, held[0].arrays)


_MLP_DROPOUT = 0.1  # of Nobrainer's class, whatever its setting `dropout` is


def _unetr(layer: KerasLayer) -> Subclassed:
    """`UNETR` of Nobrainer 1.2.1; the weight that it lists first, a class token, is not read."""
    arguments = {
        **stored_arguments(layer.weights),
        "size": list(layer.config["img_shape"]),
        "heads": layer.config["num_heads"],
        "dropout": layer.config["dropout"],
        "mlp_dropout": _MLP_DROPOUT,
    }
    check_arguments(UNETR, arguments)
    graph = graph_of(arguments)
    wanted = weight_shapes(graph)
    token, *names = sorted(layer.weights, key=_moves)
    order = sorted(stored_order(arguments), key=lambda place: _moves(place[1]))
    if len(names) != len(order):
        raise ValueError(f"it has {len(names) + 1} weights where {len(order) + 1} are expected")
    weights: dict[str, dict[str, Stored]] = {name: {} for name, each in wanted.items() if each}
    for name, (place, weight) in zip(names, order, strict=True):
        value, shape = layer.weights[name], wanted[place][weight]
        usual = "embeddings" if place == "embedding/position" else _last(weight)
        if _last(name) != usual or value.shape != _together(weight, shape):
            raise ValueError(
                f"its weight {quoted(name)} {value.shape} stands where {quoted(usual)} "
                f"{_together(weight, shape)} is expected"
            )
        weights[place][weight] = Stored(name, value.shape, value.reshape(shape))
    return Subclassed(graph, weights, (token,))


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _moves(name: str) -> bool:
    return _last(name).startswith("moving_")


def _together(weight: str, shape: Shape) -> Shape:
    """The shape of a weight of attention with its heads on one axis, as a plain layer has it."""
    if weight == "attention_output/kernel":
        return (math.prod(shape[:2]), shape[2])
    if weight.startswith(("query/", "key/", "value/")):
        return (*shape[:-2], math.prod(shape[-2:]))
    return shape


_CLASSES: Mapping[str, Callable[[KerasLayer], Subclassed]] = {"UNETR": _unetr}
