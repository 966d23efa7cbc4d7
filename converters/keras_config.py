"""A Keras model's configuration (JSON) → its layers and their calls.

Functional and sequential models of Keras 1, 2 and 3, models inside them dissolved. Nothing here
imports Keras: the configuration is data, and stays data.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_code import settle_lambdas
from voxtune.converters.keras_entries import MAX_CALLS, MAX_VALUES, Model, Reader, is_model, twice
from voxtune.converters.keras_model import KerasCall, KerasLayer, TensorRef
from voxtune.converters.keras_nodes import Node, Reference, found, replaced

MAX_CONFIG_BYTES = 64 * 2**20
_MAX_DEPTH = 200  # of the JSON; the deepest real ones have some 30 levels
_MAX_ITEMS = 2_000_000  # of the JSON; 64 MB of `[],[],...` would fill 2 GB


@dataclass(frozen=True)
class ParsedGraph:
    """A model's layers, their weights still empty, and calls; as in `KerasModel`.

    Attributes:
        name: the model's name.
        layers: in file order.
        calls: each after those that it reads, in an order that the order of the file does not
            change. An input layer of a model inside the model is called with what that model
            is called with.
        inputs: names of the input layers.
        outputs: in the model's order.
    """

    name: str
    layers: tuple[KerasLayer, ...]
    calls: tuple[KerasCall, ...]
    inputs: tuple[str, ...]
    outputs: tuple[TensorRef, ...]


def parse_json(text: str | bytes, path: Path) -> Any:
    """The JSON value in `text`.

    Raises:
        ConversionError: broken JSON, or JSON nested too deep or of too many values to be a model.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        if sum(map(text.count, ",[{")) > _MAX_ITEMS:
            raise ConversionError(
                f"{path}: its JSON has more than {_MAX_ITEMS:,} values, too many for a Keras "
                "model; check where the file comes from"
            )
        return json.loads(text)
    except RecursionError:
        _too_deep(path)
    except ValueError as error:
        raise ConversionError(
            f"{path}: its JSON is broken or cut short ({quoted(error)}); get the file again"
        ) from None


def parse_graph(
    config: Any, path: Path, lambdas: Mapping[str, str] = MappingProxyType({})
) -> ParsedGraph:
    """The layers and calls of a whole model's configuration.

    Args:
        config: `{"class_name": ..., "config": ...}`.
        path: for the messages.
        lambdas: layer that holds code → what takes its place: "identity" or an activation's name.

    Raises:
        ConversionError: not a model's configuration; it holds code; names that repeat or lead
            nowhere.
    """
    _check_depth(config, path)
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict | list):
        raise ConversionError(
            f"{path}: its configuration is not that of a Keras model; save the model again"
        )
    body, class_name = config["config"], config.get("class_name")
    if not is_model(class_name, body):
        raise ConversionError(
            f"{path}: the model's class {quoted(class_name)} is neither functional nor "
            "sequential; rebuild it as a functional Keras model and save it again"
        )
    reader = Reader(path, lambdas)
    model = reader.model(str(class_name), body, config.get("build_config"), "")
    expansion = _Expansion(path)
    expansion.add_layers(model, "")
    expansion.add_calls(model, "", 0, None, None)
    calls = _sorted(expansion.calls, tuple(model.inputs.values()), path)
    layers = settle_lambdas(expansion.layers, calls, path)
    for name in lambdas.keys() - reader.replaced:
        raise ConversionError(
            f"{path}: --lambda names {quoted(name)}, but the model has no layer of that name that "
            "holds Python code; take the name from the refusal or from voxtune inspect"
        )
    own = body.get("name") if isinstance(body, dict) else None
    return ParsedGraph(
        name=own if isinstance(own, str) else str(class_name).lower(),
        layers=tuple(layers.values()),
        calls=calls,
        inputs=tuple(model.inputs.values()),
        outputs=tuple(expansion.resolved(model, "", 0, each) for each in model.outputs),
    )


def _check_depth(value: Any, path: Path) -> None:
    """Refuses what nests too deep, so that what follows may recurse."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            _too_deep(path)
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]


def _too_deep(path: Path) -> NoReturn:
    raise ConversionError(
        f"{path}: its JSON nests too deep to be a Keras model; check where the file comes from"
    )


# --- models inside the model, dissolved ------------------------------------------------------


@dataclass
class _Expansion:
    """Layers and calls of all models, under their paths.

    Use number `use` of a model calls a layer that the model has `n` nodes of `n` times; these are
    the layer's uses number `use * n` and following.
    """

    path: Path
    layers: dict[str, KerasLayer] = field(default_factory=dict)
    calls: dict[str, KerasCall] = field(default_factory=dict)
    size: int = 0  # JSON values written so far

    def add_layers(self, model: Model, prefix: str) -> None:
        """The layers of a model and of those inside it, in file order."""
        for entry in model.entries.values():
            name = f"{prefix}{entry.name}"
            if entry.model is not None:
                self.add_layers(entry.model, f"{name}/")
            elif name in self.layers:
                raise twice(name, self.path)
            else:
                self.layers[name] = KerasLayer(name, entry.class_name, entry.config, {})

    def resolved(self, model: Model, prefix: str, use: int, reference: Reference) -> TensorRef:
        """The call of a layer that a reference leads to, through the models between."""
        entry = model.entries[reference.layer]
        inner = use * max(len(entry.nodes), 1) + reference.node
        if entry.model is None:
            return TensorRef(_call_name(f"{prefix}{entry.name}", inner), reference.index)
        output = entry.model.outputs[reference.index]
        return self.resolved(entry.model, f"{prefix}{entry.name}/", inner, output)

    def add_calls(
        self, model: Model, prefix: str, use: int, given: Node | None, training: bool | None
    ) -> None:
        """The calls that a use of a model consists of.

        Args:
            model: the model.
            prefix: the path to it.
            use: the number of this use of it.
            given: what it is called with, tensors as `TensorRef`; None for the whole model.
            training: what it is called with, which holds for its layers too.
        """
        arguments = self._arguments(model, prefix, given) if given is not None else {}
        for entry in model.entries.values():
            name = f"{prefix}{entry.name}"
            if not entry.nodes:
                read = (arguments[entry.name],) if given is not None else ()
                self._add(KerasCall(_call_name(name, use), name, read, {}))
            for position, node in enumerate(entry.nodes):
                self.size += node.size
                if self.size > MAX_VALUES:
                    raise ConversionError(
                        f"{self.path}: the model calls its layers with more than {MAX_VALUES:,} "
                        "values; voxtune reads no larger ones"
                    )

                def here(reference: Reference) -> TensorRef:
                    return self.resolved(model, prefix, use, reference)

                number = use * len(entry.nodes) + position
                args = replaced(node.args, Reference, here)
                kwargs = replaced(node.kwargs, Reference, here)
                if training is not None:
                    kwargs = {"training": training} | kwargs
                if entry.model is None:
                    self._add(KerasCall(_call_name(name, number), name, args, kwargs))
                    continue
                told = kwargs.pop("training", None)
                if not (told is None or isinstance(told, bool)):
                    _refuse_argument(name, "training", self.path)
                self.add_calls(entry.model, f"{name}/", number, Node(args, kwargs), told)

    def _add(self, call: KerasCall) -> None:
        if call.name in self.calls:
            raise twice(call.name, self.path)
        if len(self.calls) >= MAX_CALLS:
            raise ConversionError(
                f"{self.path}: the model calls its layers more than {MAX_CALLS:,} times; "
                "voxtune reads no larger ones"
            )
        self.calls[call.name] = call

    def _arguments(self, model: Model, prefix: str, given: Node) -> dict[str, TensorRef]:
        """Input layer → what a use of the model puts there."""
        name = prefix.rstrip("/")
        for key in given.kwargs:
            _refuse_argument(name, key, self.path)
        first = given.args[0] if len(given.args) == 1 else given.args
        if isinstance(first, dict):
            names = {**{layer: layer for layer in model.inputs.values()}, **model.inputs}
            found_here = {names.get(key): value for key, value in first.items()}
        else:
            values = found(first, TensorRef)
            found_here = dict(zip(model.inputs.values(), values, strict=False))
            if sum(1 for _ in found(first, TensorRef)) != len(model.inputs):
                found_here = {}
        if found_here.keys() != set(model.inputs.values()) or not all(
            isinstance(value, TensorRef) for value in found_here.values()
        ):
            raise ConversionError(
                f"{self.path}: the model {quoted(name)} inside the model has {len(model.inputs)} "
                "inputs and is called with something else; save the model again"
            )
        return {key: value for key, value in found_here.items() if key is not None}


def _call_name(layer: str, number: int) -> str:
    return f"{layer}:{number}" if number else layer


def _refuse_argument(layer: str, argument: str, path: Path) -> NoReturn:
    raise ConversionError(
        f"{path}: the layer {quoted(layer)} is called with the argument {quoted(argument)}, which "
        "voxtune does not read; use a layer that needs none and save the model again"
    )


def _sorted(
    calls: Mapping[str, KerasCall], inputs: tuple[str, ...], path: Path
) -> tuple[KerasCall, ...]:
    """The calls, each after those that it reads; among those as the graph alone demands.

    From the ends of the graph, each call's arguments come before it in their order. A loop instead
    of recursion: the depth is the stranger's choice.
    """
    reads = {
        name: [each.call for each in found([call.args, call.kwargs], TensorRef)]
        for name, call in calls.items()
    }
    read = {source for sources in reads.values() for source in sources}
    ends = sorted(name for name in calls if name not in read)
    order: dict[str, None] = dict.fromkeys(inputs)
    open_: set[str] = set()
    stack = [iter([*ends, *sorted(calls)])]
    names: list[str] = [""]
    while stack:
        name = next(stack[-1], None)
        if name is None:
            stack.pop()
            done = names.pop()
            open_.discard(done)
            if done:
                order[done] = None
        elif name in open_:
            raise ConversionError(
                f"{path}: the layer {quoted(name)} depends on its own output; save the model again"
            )
        elif name not in order:
            open_.add(name)
            names.append(name)
            stack.append(iter(reads[name]))
    return tuple(calls[name] for name in order)
