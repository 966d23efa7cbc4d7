"""A canonical graph that grows call by call, its shapes known at every step."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_nodes import found
from voxtune.models.graph import GraphCall, GraphLayer, traced

Shape = tuple[int, ...]
_MAX_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Value:
    """The result of a call.

    Attributes:
        name: of the call.
        shape: batch included.
        moved: whether it is channels-first in the file, channels being axis 1 there, the last here.
    """

    name: str
    shape: Shape
    moved: bool = False

    @property
    def rank(self) -> int:
        """The number of axes, batch included."""
        return len(self.shape)


def last_axis(axis: int, rank: int) -> int:
    """Where an axis of a channels-first array is in the channels-last one, counted from the front.

    Raises:
        ValueError: the array has no such axis.
    """
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise ValueError(f"axis={axis!r} does not exist in an array of {rank} axes")
    axis %= rank
    return axis if axis == 0 or rank < 3 else (rank - 1 if axis == 1 else axis - 1)


def _check_numbers(layer: GraphLayer) -> None:
    """Refuses what would be infinite in float32, in which every layer computes.

    Raises:
        ValueError: a setting is, or holds, such a number.
    """
    for name, value in layer.config.items():
        for each in found(value, float):
            if math.isfinite(each) and abs(each) > _MAX_FLOAT:
                raise ValueError(
                    f"the layer '{layer.name}' ({layer.kind}) has the setting {name}={each}, too "
                    "large for float32"
                )


@dataclass
class Assembly:
    """The graph so far.

    Attributes:
        path: for the messages.
        layers: by name.
        calls: in order.
        weights: layer → name → shape of its weights.
        axes: layer → weight → order in which the axes of the file's array are taken.
    """

    path: Path
    layers: dict[str, GraphLayer] = field(default_factory=dict)
    calls: list[GraphCall] = field(default_factory=list)
    weights: dict[str, dict[str, Shape]] = field(default_factory=dict)
    axes: dict[str, dict[str, Sequence[int]]] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _others: dict[str, Value] = field(default_factory=dict)
    _traced: dict[str, tuple[dict[str, Shape], Shape]] = field(default_factory=dict)

    def input(self, name: str, shape: Shape, moved: bool) -> Value:
        """An input of the graph."""
        self._names.add(name)
        return Value(name, shape, moved)

    def call(
        self,
        name: str,
        layer: GraphLayer,
        inputs: Sequence[Value],
        *,
        training: bool | None = None,
        moved: bool = False,
    ) -> Value:
        """Adds a call and, unless it is there, its layer.

        Args:
            name: of the call.
            layer: what is called.
            inputs: what it reads.
            training: as in `GraphCall`.
            moved: as in `Value`; holds for results of three axes or more.

        Raises:
            ConversionError: the layer does not fit what it reads or its own other uses.
        """
        if self.layers.setdefault(layer.name, layer) != layer:
            raise ConversionError(
                f"{self.path}: the uses of the layer {quoted(layer.name)} differ in the order of "
                "their axes, so that they cannot share it; give each use its own layer"
            )
        if name in self._names:
            raise ConversionError(f"{self.path}: two calls are named {quoted(name)}; rename one")
        self._names.add(name)
        weights, shape = self._trace(layer, tuple(each.shape for each in inputs))
        if self.weights.setdefault(layer.name, weights) != weights:
            raise ConversionError(
                f"{self.path}: the uses of the layer {quoted(layer.name)} need weights of "
                "different shapes; give each use its own layer"
            )
        names = tuple(each.name for each in inputs)
        self.calls.append(GraphCall(name, layer.name, names, training))
        return Value(name, shape, moved and len(shape) > 2)

    def _trace(
        self, layer: GraphLayer, inputs: tuple[Shape, ...]
    ) -> tuple[dict[str, Shape], Shape]:
        """Shapes of the weights and of the result, without computing anything."""
        key = json.dumps([layer.kind, dict(layer.config), inputs], sort_keys=True, default=str)
        if key in self._traced:
            return self._traced[key]
        try:
            _check_numbers(layer)
            wanted, result = traced(
                layer, tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs)
            )
        except ValueError as error:
            raise ConversionError(f"{self.path}: {quoted(error, 400)[1:-1]}") from error
        self._traced[key] = (wanted, result.shape)
        return self._traced[key]

    def first(self, value: Value) -> Value:
        """The value in the order of axes that it has in the file."""
        return self._permuted(value, "channels_first") if value.moved else value

    def last(self, value: Value) -> Value:
        """The value, whose channels are axis 1 in the file, with channels last."""
        if value.moved or value.rank < 3:
            return value
        return self._permuted(value, "channels_last")

    def _permuted(self, value: Value, to: str) -> Value:
        name = f"{value.name}:{to}"
        if name not in self._others:
            rank = value.rank
            dims = [rank - 1, *range(1, rank - 1)] if value.moved else [*range(2, rank), 1]
            layer = GraphLayer(name, "Permute", {"dims": dims})
            other = self.call(name, layer, [value], moved=not value.moved)
            self._others[name] = other
            self._others[f"{name}:{'channels_last' if value.moved else 'channels_first'}"] = value
        return self._others[name]
