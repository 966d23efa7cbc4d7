"""The arrays of a file find their layers.

Files name tensors in two ways: by the names that the weights had when they were made
(`conv3d/kernel:0`), which may differ from the layers', or by the place in the model's Python
objects (`layers/conv3d_1/vars/0`). Where a name could mean two layers, nothing is guessed.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_config import ParsedGraph
from voxtune.converters.keras_model import KerasLayer, Tensor

# Groups of a `.weights.h5` file that hold the layers of a model: Keras 3's, and Keras 2.12's.
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_MAX_PARTS = 16  # of a name that are looked at; a hostile one may have thousands


def attach(
    layers: Iterable[KerasLayer], tensors: Iterable[Tensor], path: Path
) -> tuple[KerasLayer, ...]:
    """Gives each layer its tensors, whose names are short already; the arrays become read-only.

    Raises:
        ConversionError: a tensor belongs to no layer, or a layer has two of the same name.
    """
    weights: dict[str, dict[str, np.ndarray]] = {layer.name: {} for layer in layers}
    for tensor in tensors:
        if tensor.layer not in weights:
            raise _stray(tensor.name, path)
        if tensor.name in weights[tensor.layer]:
            raise ConversionError(
                f"{path}: the layer {quoted(tensor.layer)} has two tensors named "
                f"{quoted(tensor.name)}; save the model again from Keras"
            )
        tensor.value.flags.writeable = False
        weights[tensor.layer][tensor.name] = tensor.value
    return tuple(replace(layer, weights=weights[layer.name]) for layer in layers)


def short_name(tensor: str, layer: str, model: str = "") -> str:
    """`conv3d/kernel:0` → `kernel`, `attention/query/kernel` → `query/kernel`, `conv_W_6` → `W`.

    Keras 3 puts a Sequential model's name before the layer's. Keras 2 may name a weight after
    another scope than its layer (`conv3d_1/kernel:0` in layer `conv3d`): then the last part counts.
    Keras 1 joins names by underscores, and adds a number where TensorFlow had the name already.
    """
    name, own = _bare(tensor), layer
    for _ in range(_MAX_PARTS):
        for prefix in (f"{model}/{own}/", f"{own}/"):
            if name.startswith(prefix) and len(name) > len(prefix):
                return name.removeprefix(prefix)
        own = own.partition("/")[2] or own  # the layer of a model inside the model
    if "/" not in name and name.startswith(f"{own}_"):
        return re.sub(r"(?<=.)_\d+$", "", name.removeprefix(f"{own}_"))
    return name.rpartition("/")[2]


def _bare(tensor: str) -> str:
    return re.sub(r":\d+$", "", tensor)


def by_name(tensors: Iterable[Tensor], graph: ParsedGraph, path: Path) -> list[Tensor]:
    """Finds the layer of tensors that bear the names of their making, and their short names.

    A tensor's `layer` is what the file says: a layer, a model inside the model whose layers share
    it, or "" where the file does not say.

    Raises:
        ConversionError: a tensor belongs to no layer, or it could belong to several.
    """
    layers = _Layers(layer.name for layer in graph.layers)
    frozen = {layer.name for layer in graph.layers if layer.config.get("trainable") is False}
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.layer].append(tensor)
    found: list[Tensor] = []
    for name, group in groups.items():
        layer = layers.called(name)
        if layer is not None:
            short = [short_name(tensor.name, name, graph.name) for tensor in group]
            if len(set(short)) < len(short):  # a layer that is a whole network, such as Nobrainer's
                short = [_bare(tensor.name) for tensor in group]  # unetr
            found += [
                replace(tensor, layer=layer, name=own)
                for tensor, own in zip(group, short, strict=True)
            ]
            continue
        inside = _Layers(layers.models[name]) if name else layers
        named = [_named(tensor, inside, graph.name) for tensor in group]
        sure = [tensor for tensor in named if tensor is not None]
        if len({(tensor.layer, tensor.name) for tensor in sure}) < len(group):
            unknown = named.index(None) if None in named else 0
            if not frozen.isdisjoint(inside.names):
                raise _stray(group[unknown].name, path)
            sure = _in_order(group, inside.names, group[unknown].name, path)
        found += sure
    return found


class _Layers:
    """Layers under every name that a file may use: `a/b/conv` is also `b/conv` and `conv`.

    Attributes:
        names: in the model's order.
        models: name of a model inside the model → its layers.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.exact = set(self.names)
        self.endings: dict[str, list[str]] = defaultdict(list)
        self.models: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            parts = name.split("/")
            for start in range(1, min(len(parts), _MAX_PARTS)):
                self.endings["/".join(parts[start:])].append(name)
                self.models["/".join(parts[:start])].append(name)

    def called(self, name: str) -> str | None:
        """The one layer of that name, or whose name ends so."""
        if name in self.exact:
            return name
        ending = self.endings.get(name, [])
        return ending[0] if len(ending) == 1 else None


def _named(tensor: Tensor, layers: _Layers, model: str) -> Tensor | None:
    """The tensor with the layer whose name begins the tensor's, the longest one."""
    name = _bare(tensor.name)
    for full in (name, name.removeprefix(f"{model}/")):
        scope, separator = full, "/" if "/" in full else "_"
        for _ in range(_MAX_PARTS):
            scope = scope.rpartition(separator)[0]
            layer = layers.called(scope)
            if layer is not None:
                return replace(tensor, layer=layer, name=short_name(full, scope))
    return None


def _in_order(group: list[Tensor], layers: Sequence[str], unknown: str, path: Path) -> list[Tensor]:
    """Tensors of several layers whose names differ from the layers' by their numbers.

    TensorFlow numbers a name that it had already: the tensors of the layers conv and conv_1 are
    called conv_2 and conv_3 if the program had built the model before. Their order stays, as long
    as no layer is frozen.
    """
    scopes: dict[str, dict[str, None]] = defaultdict(dict)
    for tensor in group:
        scope = _bare(tensor.name).rpartition("/")[0]
        scopes[_unnumbered(scope)][scope] = None
    stems: dict[str, list[str]] = defaultdict(list)
    for layer in layers:
        stems[_unnumbered(layer)].append(layer)
    owners: dict[str, str] = {}
    for stem, numbered in scopes.items():
        if len(stems[stem]) != len(numbered):
            raise _stray(unknown, path)
        owners |= dict(zip(numbered, stems[stem], strict=True))
    found = []
    for tensor in group:
        scope, _, last = _bare(tensor.name).rpartition("/")
        found.append(replace(tensor, layer=owners[scope], name=last))
    return found


def _unnumbered(name: str) -> str:
    return re.sub(r"(_\d+)+$", "", name.rpartition("/")[2])


def _stray(tensor: str, path: Path) -> ConversionError:
    return ConversionError(
        f"{path}: the tensor {quoted(tensor)} belongs to no layer of the model's configuration, or "
        "not to one alone; save the model again from Keras, its layers under different names"
    )


# By place


@dataclass(frozen=True)
class _Member:
    """A layer of a configuration: its name there, and its layers if it is a model."""

    name: str
    class_name: str
    members: tuple["_Member", ...] | None


def by_place(
    places: Collection[str], names: Mapping[str, str], config: Any, path: Path
) -> dict[str, tuple[str, str]]:
    """Full name of each tensor in a `.weights.h5` file → its layer and its position in the layer.

    Args:
        places: full names, `layers/conv3d_1/vars/0`.
        names: full name of a `vars` group → name of its layer, as newer files say.
        config: the model's configuration.
        path: the file, for messages.

    Raises:
        ConversionError: a tensor belongs to no layer.
    """
    groups: dict[str, Any] = {}
    for place in [*places, *names]:
        group = groups
        for part in place.split("/"):
            group = group.setdefault(part, {})
    owners = dict(_owners(groups, "", "", _members(config) or (), names, path))
    found: dict[str, tuple[str, str]] = {}
    for place in places:
        holder, _, number = place.rpartition("/vars/")
        inner = ""
        while holder and holder not in owners:
            holder, _, last = holder.rpartition("/")
            inner = f"{last}/{inner}"
        if not holder or not number.isdigit():
            raise _stray(place, path)
        found[place] = (owners[holder], inner + number)
    return found


def _members(config: Any) -> tuple[_Member, ...] | None:
    """The layers of a model's configuration, which was parsed before."""
    body = config.get("config") if isinstance(config, dict) else None
    entries = body.get("layers") if isinstance(body, dict) else body
    if not isinstance(entries, list):
        return None
    return tuple(
        _Member(
            str(entry.get("name") or entry["config"].get("name")),
            str(entry.get("class_name")).rpartition(">")[2],
            _members(entry),
        )
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("config"), dict)
    )


def _owners(
    groups: Mapping[str, Any],
    place: str,
    prefix: str,
    members: Sequence[_Member],
    names: Mapping[str, str],
    path: Path,
) -> Iterator[tuple[str, str]]:
    """(group, layer) of every layer in one model of the file and in the models inside it."""
    for container in CONTAINERS:
        inside, here = groups.get(container, {}), f"{place}{container}/"
        for key, member in _matched(here, inside, members, names, path).items():
            if member.members is None:
                yield f"{here}{key}", f"{prefix}{member.name}"
            else:
                deeper = f"{here}{key}/", f"{prefix}{member.name}/"
                yield from _owners(inside[key], *deeper, member.members, names, path)


def _matched(
    place: str,
    groups: Mapping[str, Any],
    members: Sequence[_Member],
    names: Mapping[str, str],
    path: Path,
) -> dict[str, _Member]:
    """Which layer each group is: by the name that it bears, else by class and number.

    The numbers count the layers of a class in the model's order. Keras 2.12 leaves some out, so
    their order counts and not their values.
    """
    known = {member.name: member for member in members}
    called = {key: names.get(f"{place}{key}/vars", "") for key in groups}
    own = set(called.values())
    if own <= known.keys() and len(own) == len(groups):
        return {key: known[name] for key, name in called.items()}
    classes: dict[str, list[_Member]] = defaultdict(list)
    for member in members:
        classes[_snake_case(member.class_name)].append(member)
    keys: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for key in groups:
        stem, _, number = key.rpartition("_")
        if key in classes or not re.fullmatch(r"\d{1,9}", number):
            keys[key].append((0, key))
        else:
            keys[stem].append((int(number), key))
    matched: dict[str, _Member] = {}
    for snake, same in classes.items():
        numbered = [key for _, key in sorted(keys[snake])]
        if len(numbered) == len(same):
            matched |= dict(zip(numbered, same, strict=True))
        elif any(_holds_tensors(groups[key]) for key in numbered):
            raise ConversionError(
                f"{path}: its weights have {len(numbered)} layers called {quoted(snake)} where the "
                f"model has {len(same)}; save the model as a .h5 file, which names them"
            )
    return matched


def _holds_tensors(group: Mapping[str, Any]) -> bool:
    return any(group.get("vars", {})) or any(
        _holds_tensors(inner) for key, inner in group.items() if key != "vars"
    )


def _snake_case(class_name: str) -> str:
    """Keras's own rule: Conv3D → conv3d, BatchNormalization → batch_normalization."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
