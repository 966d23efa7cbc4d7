"""Nested dicts of arrays, and their leaves by path: `{"a": {"b": x}}` and `a/b`.

A name may hold a slash itself, as those of a Keras model inside a model do: a path does not tell
where it was split. So trees that belong to a network keep their form (`select`, `mapped`,
`joined`); `nested` makes one of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/b": x}` → `{"a": {"b": x}}`, split at every slash."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value
    return tree


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": x}}` → `{"a/b": x}`."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        found |= flat(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return found


def mapped(
    function: Callable[[str, Any], Any], tree: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """The tree with what a function makes of the path and value of each leaf."""
    return {
        name: mapped(function, value, f"{prefix}{name}/")
        if isinstance(value, Mapping)
        else function(f"{prefix}{name}", value)
        for name, value in tree.items()
    }


def select(
    wanted: Callable[[str], bool], tree: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """The tree with those leaves alone whose path is wanted, and no empty branches."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if branch := select(wanted, value, f"{path}/"):
                found[name] = branch
        elif wanted(path):
            found[name] = value
    return found


def joined(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one; the second's leaf where both have one."""
    found = dict(first)
    for name, value in second.items():
        mine = found.get(name)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            value = joined(mine, value)
        found[name] = value
    return found
