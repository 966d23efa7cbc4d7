"""How a layer is called, in each spelling of Keras: inbound nodes → arguments with references."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_KERAS_TENSOR = "__keras_tensor__"
_MANY = (dict, list, tuple)
_CONSTANT = "_CONSTANT_VALUE"  # a first argument of tf.keras that is no tensor


@dataclass(frozen=True)
class Reference:
    """Output number `index` of use number `node` of a layer of the same model."""

    layer: str
    node: int
    index: int


@dataclass(frozen=True)
class Node:
    """One use of a layer.

    Attributes:
        args: positional arguments, JSON values in which each tensor is a `Reference`.
        kwargs: named arguments, likewise, without those that are None.
        keras3: whether it is in the spelling of Keras 3.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    keras3: bool = False

    @property
    def size(self) -> int:
        """The number of JSON values in it."""
        count = 0
        queue: list[Any] = [self.args, self.kwargs]
        while queue:
            item = queue.pop()
            count += 1
            if isinstance(item, _MANY):
                queue.extend(item.values() if isinstance(item, dict) else item)
        return count


def parse_node(node: Any, layers: Mapping[str, Any]) -> Node:
    """One entry of `inbound_nodes`.

    Args:
        node: `[["a", 0, 0, {...}], ["b", 0, 0, {...}]]`; `["a", 0, 0, {...}]`, as operations of
            tf.keras have it; lists and dictionaries of those; or Keras 3's
            `{"args": [...], "kwargs": {...}}`.
        layers: those of the model, by name: tells a reference in named arguments of tf.keras from
            a list of constants.

    Raises:
        ValueError: no spelling of Keras.
    """
    if isinstance(node, dict) and "args" in node:
        args, kwargs = node["args"], node.get("kwargs") or {}
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ValueError("not arguments")
        args, kwargs = _keras3(args), _keras3(kwargs)
        kwargs.pop("training", None)  # a default: what the model is called with overrules it there
        return Node(tuple(args), _without_none(kwargs), keras3=True)
    if not isinstance(node, list | dict) or not node:
        raise ValueError("not a node")
    arguments: dict[str, Any] = {}
    first = _keras2(node, arguments)
    if isinstance(first, list) and len(first) == 1:  # Keras writes one tensor as a list of one
        first = first[0]
    named = {key: _named(value, layers) for key, value in arguments.items()}
    return Node((first,), _without_none(named))


def _keras2(value: Any, arguments: dict[str, Any]) -> Any:
    """The first argument of Keras 2; each of its tensors carries all named ones."""
    if isinstance(value, dict):
        return {key: _keras2(item, arguments) for key, item in value.items()}
    if not isinstance(value, list) or not value:
        raise ValueError("not a list of tensors")
    if not isinstance(value[0], str):
        return [_keras2(item, arguments) for item in value]
    if len(value) == 4:
        if not isinstance(value[3], dict):
            raise ValueError("not named arguments")
        arguments.update(value[3])
    if value[0] == _CONSTANT and 3 <= len(value) <= 4:
        return value[2]
    return _reference(value[:3] if len(value) == 4 else value)


def _named(value: Any, layers: Mapping[str, Any]) -> Any:
    """A named argument of tf.keras, in which tensors look like lists: `["a", 0, 0]`."""
    if isinstance(value, dict):
        return {key: _named(item, layers) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) == 3 and isinstance(value[0], str) and value[0] in layers:
        return _reference(value)
    return [_named(item, layers) for item in value]


def _keras3(value: Any) -> Any:
    if isinstance(value, list):
        return [_keras3(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") != _KERAS_TENSOR:
        return {key: _keras3(item) for key, item in value.items()}
    config = value.get("config")
    return _reference(config.get("keras_history") if isinstance(config, dict) else None)


def _reference(value: Any) -> Reference:
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[0], str):
        raise ValueError("not a reference")
    if not all(isinstance(number, int) and 0 <= number < 2**31 for number in value[1:]):
        raise ValueError("not a reference")
    return Reference(*value)


def _without_none(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if value is not None}


def parse_ends(ends: Any) -> dict[str, Reference]:
    """A model's `input_layers` or `output_layers`.

    Args:
        ends: `[["a", 0, 0], ...]`; `["a", 0, 0]` as Keras 3 writes a single one; or lists and
            dictionaries of those, which Keras flattens in the order of their keys.

    Returns:
        Key or position → reference, in order.

    Raises:
        ValueError: no spelling of Keras.
    """
    if isinstance(ends, list) and ends and isinstance(ends[0], str):
        ends = [ends]
    if not isinstance(ends, list | dict) or not ends:
        raise ValueError("no ends")
    found: dict[str, Reference] = {}
    for key, value in sorted(ends.items()) if isinstance(ends, dict) else enumerate(ends):
        if isinstance(value, list) and value and isinstance(value[0], str):
            found[str(key)] = _reference(value)
        else:
            inner = parse_ends(value)
            found |= {f"{key}/{name}": reference for name, reference in inner.items()}
    return found


def replaced(value: Any, kind: type, by: Callable[[Any], Any]) -> Any:
    """A JSON value in which each object of class `kind` has another in its place."""
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, dict):
        return {key: replaced(item, kind, by) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(replaced(item, kind, by) for item in value)
    return value


def found(value: Any, kind: type) -> Iterator[Any]:
    """The objects of class `kind` in a JSON value, in order."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, _MANY):
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, kind):
                yield item
            elif isinstance(item, _MANY):
                yield from found(item, kind)
