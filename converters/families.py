"""Which named architecture a graph is: both are written as operations and compared.

Each family says which operations its Keras original consists of. A graph is of that family when its
own operations, put in the same order, are the same ones; so a net that merely resembles a family is
never taken for it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxtune.converters.errors import quoted
from voxtune.models.activations import ACROSS_CHANNELS
from voxtune.models.families import FAMILIES
from voxtune.models.graph import Graph, GraphCall, GraphLayer, with_outputs


@dataclass(frozen=True)
class Operation:
    """One operation of a network.

    Attributes:
        kind: "input", "conv", "up", "norm", "activation", "dropout", "pool" or "concat".
        attributes: what tells it from others of its kind, by name.
        inputs: positions of the operations that it reads, in order.
        name: the call's name in a graph, the path in a family.
    """

    kind: str
    attributes: Mapping[str, Any]
    inputs: tuple[int, ...]
    name: str

    def same_as(self, other: "Operation") -> bool:
        """Whether both do the same with the results of the same operations."""
        return (self.kind, dict(self.attributes), self.inputs) == (
            other.kind,
            dict(other.attributes),
            other.inputs,
        )

    def __str__(self) -> str:
        details = ", ".join(f"{key} {value}" for key, value in self.attributes.items())
        return f"{self.kind} ({details})" if details else self.kind


@dataclass(frozen=True)
class Recognised:
    """A graph that is a family.

    Attributes:
        family: a name in `voxtune.models.families.FAMILIES`.
        arguments: what builds it.
        paths: call → path of the operation that gives its result.
        weighted: layer → path of the operation that holds its weights.
    """

    family: str
    arguments: Mapping[str, Any]
    paths: Mapping[str, str]
    weighted: Mapping[str, str]


class _UnlikeError(Exception):
    """A graph is of no family; says why."""


class _Operations:
    """Collects operations and gives their positions."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def add(self, kind: str, name: str, inputs: Sequence[int], **attributes: Any) -> int:
        self.operations.append(Operation(kind, attributes, tuple(inputs), name))
        return len(self.operations) - 1


# --- a canonical graph as operations ----------------------------------------------------------


def _triple(value: Any) -> tuple[int, int, int]:
    first, second, third = (value,) * 3 if isinstance(value, int) else value
    return first, second, third


def _conv(config: Mapping[str, Any]) -> dict[str, Any]:
    size = _triple(config["kernel_size"])
    return {
        "filters": config["filters"],
        "size": size,
        "dilation": _triple(config.get("dilation_rate", 1)),
        "strides": _triple(config.get("strides", 1)),
        "padding": "same" if size == (1, 1, 1) else config.get("padding", "valid"),
        "bias": config.get("use_bias", True),
        "groups": config.get("groups", 1),
    }


def _up(config: Mapping[str, Any]) -> dict[str, Any]:
    size, strides = _triple(config["kernel_size"]), _triple(config.get("strides", 1))
    # Where the kernel equals the stride, blocks do not touch and both paddings are the same.
    padding = "same" if size == strides else config.get("padding", "valid")
    return {
        "filters": config["filters"],
        "size": size,
        "strides": strides,
        "padding": padding,
        "bias": config.get("use_bias", True),
        **_unless(config, "dilation_rate", (1, 1, 1)),
        **_unless(config, "output_padding", None),
    }


def _norm(config: Mapping[str, Any]) -> dict[str, Any]:
    axis = config.get("axis", -1)
    return {
        "axis": -1 if axis in (-1, 4) else axis,
        "epsilon": config.get("epsilon", 1e-3),
        "scale": config.get("scale", True),
        "center": config.get("center", True),
        **_unless(config, "momentum", 0.99),
    }


def _pool(config: Mapping[str, Any]) -> dict[str, Any]:
    size = _triple(config.get("pool_size", 2))
    strides = config.get("strides")
    return {
        "size": size,
        "strides": size if strides is None else _triple(strides),
        "padding": config.get("padding", "valid"),
    }


def _unless(config: Mapping[str, Any], key: str, usual: Any) -> dict[str, Any]:
    """A setting as an attribute where it is not the usual one."""
    value = config.get(key, usual)
    if isinstance(usual, tuple) and not isinstance(value, str):
        value = _triple(value)
    return {} if value == usual else {key: value}


_KINDS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "Conv3D": ("conv", _conv),
    "Conv3DTranspose": ("up", _up),
    "BatchNormalization": ("norm", _norm),
    "MaxPooling3D": ("pool", _pool),
    "Concatenate": (
        "concat",
        lambda config: {"axis": -1 if config.get("axis", -1) in (-1, 4) else config["axis"]},
    ),
    "Dropout": ("dropout", lambda config: {"rate": config["rate"]}),
    "Activation": ("activation", lambda config: {"function": config["activation"]}),
    "ELU": ("activation", lambda config: {"function": "elu", **_unless(config, "alpha", 1.0)}),
    "ReLU": (
        "activation",
        lambda config: {
            "function": "relu",
            **_unless(config, "max_value", None),
            **_unless(config, "negative_slope", 0.0),
            **_unless(config, "threshold", 0.0),
        },
    ),
}


def _operations(graph: Graph) -> list[Operation]:
    """A graph's operations, walked from the output: a file's order of layers has no say.

    A layer with an activation of its own gives two, of the same name.

    Raises:
        _UnlikeError: it holds what no family has.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise _UnlikeError(f"it has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs")
    found, position = _Operations(), dict[str, int]()
    layers, calls = graph.by_name, {call.name: call for call in graph.calls}
    used = set[str]()
    for name in _in_order(graph, calls):
        if name in graph.inputs:
            position[name] = found.add("input", name, ())
            continue
        call = calls[name]
        layer = layers[call.layer]
        if layer.kind not in _KINDS:
            raise _UnlikeError(f"layer {quoted(layer.name)} is a {layer.kind}")
        if layer.name in used or call.training is not None:
            how = "shared" if layer.name in used else f"called with training={call.training}"
            raise _UnlikeError(f"layer {quoted(layer.name)} is {how}")
        used.add(layer.name)
        kind, attributes = _KINDS[layer.kind]
        inputs = [position[source] for source in call.inputs]
        position[name] = found.add(kind, name, inputs, **attributes(layer.config))
        function = layer.config.get("activation") or "linear"
        if kind in ("conv", "up") and function != "linear":
            position[name] = found.add("activation", name, [position[name]], function=function)
    return found.operations


def _in_order(graph: Graph, calls: Mapping[str, GraphCall]) -> list[str]:
    """Call names such that each comes after those that it reads, walked from the output."""
    order: list[str] = []
    done: set[str] = set()
    stack = [(graph.outputs[0], False)]
    while stack:
        name, ready = stack.pop()
        if name in done:
            continue
        if ready or name in graph.inputs:
            done.add(name)
            order.append(name)
            continue
        stack.append((name, True))
        stack.extend((source, False) for source in reversed(calls[name].inputs))
    return order


# --- the families as operations --------------------------------------------------------------


def _family_conv(graph: _Operations, path: str, source: int, filters: int, **other: Any) -> int:
    settings = {"size": (3, 3, 3), "dilation": (1, 1, 1), "strides": (1, 1, 1), "padding": "same"}
    settings |= {"bias": True, "groups": 1} | other
    return graph.add("conv", path, [source], filters=filters, **settings)


def _family_unit(
    graph: _Operations,
    path: str,
    source: int,
    filters: int,
    *,
    activation: str,
    batchnorm: bool,
    dilation: int = 1,
    dropout: float = 0.0,
) -> int:
    """The operations of `voxtune.models.layers.ConvUnit`."""
    x = _family_conv(graph, f"{path}/conv", source, filters, dilation=(dilation,) * 3)
    if batchnorm:
        settings = {"axis": -1, "epsilon": 1e-3, "scale": True, "center": True}
        x = graph.add("norm", f"{path}/norm", [x], **settings)
    if activation != "linear":
        x = graph.add("activation", f"{path}/activation", [x], function=activation)
    if dropout:
        x = graph.add("dropout", f"{path}/dropout", [x], rate=dropout)
    return x


def _meshnet(arguments: Mapping[str, Any]) -> list[Operation]:
    graph = _Operations()
    x = graph.add("input", "input", ())
    unit = {key: arguments[key] for key in ("activation", "batchnorm", "dropout")}
    for number, dilation in enumerate(arguments["dilations"], start=1):
        path = f"block{number}"
        x = _family_unit(graph, path, x, arguments["filters"], dilation=dilation, **unit)
    _family_conv(graph, "head", x, arguments["outputs"], size=(1, 1, 1))
    return graph.operations


def _unet(arguments: Mapping[str, Any]) -> list[Operation]:
    graph = _Operations()
    filters, depth = arguments["filters"], arguments["depth"]
    unit: dict[str, Any] = {"activation": "relu", "batchnorm": arguments["batchnorm"]}

    def double(path: str, source: int, first: int, second: int) -> int:
        x = _family_unit(graph, f"{path}/unit1", source, first, **unit)
        return _family_unit(graph, f"{path}/unit2", x, second, **unit)

    x = graph.add("input", "input", ())
    skips = []
    pool = {"size": (2, 2, 2), "strides": (2, 2, 2), "padding": "valid"}
    for level in range(1, depth + 1):
        x = double(f"encoder{level}", x, filters * 2 ** (level - 1), filters * 2**level)
        skips.append(x)
        x = graph.add("pool", f"encoder{level}/pool", [x], **pool)
    x = double("bottom", x, filters * 2**depth, 2 * filters * 2**depth)
    up = {"size": (2, 2, 2), "strides": (2, 2, 2), "padding": "same", "bias": True}
    for level in range(depth, 0, -1):
        path, width = f"decoder{level}", filters * 2**level
        x = graph.add("up", f"{path}/up", [x], filters=2 * width, **up)
        x = graph.add("concat", f"{path}/concat", [skips.pop(), x], axis=-1)
        x = double(f"{path}/convs", x, width, width)
    _family_conv(graph, "head", x, arguments["outputs"], size=(1, 1, 1))
    return graph.operations


def _guess_meshnet(operations: Sequence[Operation]) -> dict[str, Any]:
    """The arguments that a MeshNet with the first block and the dilations of this net has."""
    convs = [each for each in operations if each.kind == "conv"]
    rates = [each.attributes["rate"] for each in operations if each.kind == "dropout"]
    functions = [each.attributes["function"] for each in operations if each.kind == "activation"]
    return {
        "outputs": convs[-1].attributes["filters"],
        "filters": convs[0].attributes["filters"],
        "dilations": [each.attributes["dilation"][0] for each in convs[:-1]],
        "activation": functions[0] if functions else "linear",
        "batchnorm": any(each.kind == "norm" for each in operations),
        "dropout": rates[0] if rates else 0.0,
    }


def _guess_unet(operations: Sequence[Operation]) -> dict[str, Any]:
    """The arguments that a U-Net with the first convolution and the pools of this net has."""
    convs = [each for each in operations if each.kind == "conv"]
    return {
        "outputs": convs[-1].attributes["filters"],
        "filters": convs[0].attributes["filters"],
        "depth": sum(each.kind == "pool" for each in operations),
        "batchnorm": any(each.kind == "norm" for each in operations),
    }


_FAMILIES: Mapping[str, tuple[Callable, Callable]] = {
    "meshnet": (_guess_meshnet, _meshnet),
    "unet": (_guess_unet, _unet),
}


def recognise(graph: Graph) -> tuple[Recognised | None, str]:
    """The family that a graph without its output activation is, with the arguments that build it.

    Returns:
        The family, or None; and what makes the graph unlike each family, "" where it is one.
    """
    try:
        operations = _operations(graph)
    except _UnlikeError as error:
        return None, str(error)
    convs = [each for each in operations if each.kind == "conv"]
    if len(convs) < 2:
        return None, f"it has {len(convs)} Conv3D layers"
    channels = next(iter(graph.inputs.values()))[-1]
    differences = []
    for family, (guess, expected) in _FAMILIES.items():
        arguments = {"channels": channels, **guess(operations)}
        if arguments.get("activation", "relu") in ACROSS_CHANNELS:
            differences.append(f"a {family} has no {quoted(arguments['activation'])} inside")
            continue
        wanted = expected(arguments)
        difference = _first_difference(operations, wanted)
        if difference is None:
            return _recognised(family, arguments, operations, wanted), ""
        differences.append(f"as a {family}, {difference}")
    return None, "; ".join(differences)


def _first_difference(found: Sequence[Operation], wanted: Sequence[Operation]) -> str | None:
    for here, there in zip(found, wanted, strict=False):
        if not here.same_as(there):
            return f"layer {quoted(here.name)} is {here} where {there} is expected"
    if len(found) != len(wanted):
        return f"it has {len(found)} operations where {len(wanted)} are expected"
    return None


def _recognised(
    family: str,
    arguments: dict[str, Any],
    operations: Sequence[Operation],
    wanted: Sequence[Operation],
) -> Recognised:
    paths: dict[str, str] = {}
    weighted: dict[str, str] = {}
    for here, there in zip(operations, wanted, strict=True):
        paths[here.name] = there.name
        weighted.setdefault(here.name, there.name)
    return Recognised(family, arguments, paths, weighted)


# --- a family as a graph -----------------------------------------------------------------------

_LAYERS: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]] = {
    "conv": lambda a: (
        "Conv3D",
        {
            "filters": a["filters"],
            "kernel_size": list(a["size"]),
            "dilation_rate": list(a["dilation"]),
            "padding": a["padding"],
        },
    ),
    "up": lambda a: (
        "Conv3DTranspose",
        {
            "filters": a["filters"],
            "kernel_size": list(a["size"]),
            "strides": list(a["strides"]),
            "padding": a["padding"],
        },
    ),
    "norm": lambda a: ("BatchNormalization", {"epsilon": a["epsilon"], "momentum": 0.99}),
    "activation": lambda a: ("Activation", {"activation": a["function"]}),
    "dropout": lambda a: ("Dropout", {"rate": a["rate"]}),
    "pool": lambda a: ("MaxPooling3D", {"pool_size": list(a["size"]), "padding": a["padding"]}),
    "concat": lambda a: ("Concatenate", {"axis": a["axis"]}),
}


def as_graph(family: str, arguments: Mapping[str, Any]) -> Graph:
    """A family's network as a graph of Keras layers, named by their paths.

    Args:
        family: a key of `voxtune.models.families.FAMILIES`, "graph" too.
        arguments: what builds it, those with defaults too.
    """
    if family == "graph":
        return with_outputs(Graph.from_json(arguments["graph"]), arguments["outputs"])
    usual = inspect.signature(vars(FAMILIES[family])["__init__"]).parameters.items()
    defaults = {name: each.default for name, each in usual if each.default is not each.empty}
    arguments = {**defaults, **arguments}
    operations = _FAMILIES[family][1](arguments)
    layers, calls = [], []
    for each in operations[1:]:
        kind, config = _LAYERS[each.kind](each.attributes)
        layers.append(GraphLayer(each.name, kind, config))
        sources = tuple(operations[source].name for source in each.inputs)
        calls.append(GraphCall(each.name, each.name, sources))
    inputs = {operations[0].name: (None, None, None, arguments["channels"])}
    return Graph(tuple(layers), tuple(calls), inputs, (operations[-1].name,))
