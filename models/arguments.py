"""Whether arguments are such as a family takes, by the type hints of its constructor."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_arguments(family: type, arguments: Mapping[str, Any]) -> None:
    """Makes sure that a family can be built: numbers of the right kind, above zero, and so on.

    Args:
        family: an `nnx.Module` whose constructor has type hints and a last argument `rngs`.
        arguments: by name, as from JSON.

    Raises:
        ValueError: an argument is missing, not known, or not of its kind; the text says which.
    """
    constructor: Callable[..., None] = vars(family)["__init__"]
    parameters = dict(inspect.signature(constructor).parameters)
    for name in ("self", "rngs"):
        del parameters[name]
    for name in arguments:
        if name not in parameters:
            raise ValueError(f"it has no argument '{name}'; its arguments: {', '.join(parameters)}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ValueError(f"its argument '{name}' is missing")
    hints = get_type_hints(constructor)
    for name, value in arguments.items():
        kinds = _kinds(hints[name])
        if not any(_fits(value, kind) for kind in kinds):
            said = " or ".join(map(_said, kinds))
            raise ValueError(f"its argument '{name}' is {said}, not {value!r:.80}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, kind: Any) -> bool:
    if kind is int:
        return type(value) is int and value > 0
    if kind is float:  # all that the families have are shares
        return type(value) in (int, float) and math.isfinite(value) and 0 <= value < 1
    if get_origin(kind) is Literal:
        return type(value) is str and value in get_args(kind)
    if get_origin(kind) is Sequence:
        (each,) = get_args(kind)
        return (
            isinstance(value, list | tuple) and bool(value) and all(_fits(v, each) for v in value)
        )
    return isinstance(value, get_origin(kind) or kind)


def _said(kind: Any) -> str:
    if kind is int:
        return "a whole number above zero"
    if kind is float:
        return "a number from 0 up to 1"
    if get_origin(kind) is Literal:
        return " or ".join(f"'{each}'" for each in get_args(kind))
    if get_origin(kind) is Sequence:
        return f"a list, each {_said(get_args(kind)[0])}"
    return "none" if kind is NoneType else {bool: "true or false"}.get(kind, kind.__name__)
