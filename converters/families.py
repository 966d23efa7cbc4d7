"""Which named architecture a Keras graph is: both are written as operations and compared.

Each family says which operations its Keras original consists of. A file is of that family when its
own operations, put in the same order, are the same ones; so a net that merely resembles a family is
never taken for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_file import KerasLayer, KerasModel
from voxtune.models.layers import ACTIVATIONS

# Activations that end a network and are remembered in model.json; networks here emit logits.
OUTPUT_ACTIVATIONS = ("sigmoid", "softmax")


@dataclass(frozen=True)
class Operation:
    """One operation of a network.

    Attributes:
        kind: "input", "conv", "up", "norm", "activation", "dropout", "pool" or "concat".
        attributes: what tells it from others of its kind, by name.
        inputs: positions of the operations that it reads, in order.
        name: the Keras layer's name in a file, the path in a family.
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
    """A Keras graph that is a family.

    Attributes:
        family: a name in `voxtune.models.families.FAMILIES`.
        arguments: what builds it.
        output_activation: "linear", "sigmoid" or "softmax", taken off the network.
        paths: Keras layer name → path of the operation whose result the layer emits.
        weighted: Keras layer name → path of the operation that holds its weights.
    """

    family: str
    arguments: Mapping[str, Any]
    output_activation: str
    paths: Mapping[str, str]
    weighted: Mapping[str, str]


class _Graph:
    """Collects operations and gives their positions."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def add(self, kind: str, name: str, inputs: Sequence[int], **attributes: Any) -> int:
        self.operations.append(Operation(kind, attributes, tuple(inputs), name))
        return len(self.operations) - 1


# --- a Keras file as operations --------------------------------------------------------------


def _positive(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is no whole number above zero")
    return value


def _triple(value: Any) -> tuple[int, int, int]:
    first, second, third = (value,) * 3 if isinstance(value, int) else value
    return _positive(first), _positive(second), _positive(third)


def _name(value: Any) -> str:
    """The name of an activation; functions of a person's own are written as something else."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no activation's name")
    return value


def _conv(layer: KerasLayer) -> dict[str, Any]:
    config = layer.config
    size = _triple(config["kernel_size"])
    padding = "same" if size == (1, 1, 1) else config.get("padding", "valid")
    return {
        "filters": _positive(config["filters"]),
        "size": size,
        "dilation": _triple(config.get("dilation_rate", 1)),
        "strides": _triple(config.get("strides", 1)),
        "padding": padding,
        "bias": config.get("use_bias", True),
        "groups": config.get("groups", 1),
    }


def _up(layer: KerasLayer) -> dict[str, Any]:
    config = layer.config
    size, strides = _triple(config["kernel_size"]), _triple(config.get("strides", 1))
    # Where the kernel equals the stride, blocks do not touch and both paddings are the same.
    padding = "same" if size == strides else config.get("padding", "valid")
    return {
        "filters": _positive(config["filters"]),
        "size": size,
        "strides": strides,
        "padding": padding,
        "bias": config.get("use_bias", True),
    }


def _norm(layer: KerasLayer) -> dict[str, Any]:
    config = layer.config
    axis = config.get("axis", -1)
    (axis,) = axis if isinstance(axis, list | tuple) else (axis,)
    return {
        "axis": -1 if axis in (-1, 4) else axis,
        "epsilon": config.get("epsilon", 1e-3),
        "scale": config.get("scale", True),
        "center": config.get("center", True),
    }


def _pool(layer: KerasLayer) -> dict[str, Any]:
    size = _triple(layer.config.get("pool_size", 2))
    strides = layer.config.get("strides")
    return {
        "size": size,
        "strides": size if strides is None else _triple(strides),
        "padding": layer.config.get("padding", "valid"),
    }


def _concat(layer: KerasLayer) -> dict[str, Any]:
    axis = layer.config.get("axis", -1)
    return {"axis": -1 if axis in (-1, 4) else axis}


_KINDS: Mapping[str, tuple[str, Callable[[KerasLayer], dict[str, Any]]]] = {
    "Conv3D": ("conv", _conv),
    "Convolution3D": ("conv", _conv),
    "Conv3DTranspose": ("up", _up),
    "Convolution3DTranspose": ("up", _up),
    "BatchNormalization": ("norm", _norm),
    "MaxPooling3D": ("pool", _pool),
    "Concatenate": ("concat", _concat),
    "Dropout": ("dropout", lambda layer: {"rate": layer.config["rate"]}),
    "Activation": ("activation", lambda layer: {"function": _name(layer.config["activation"])}),
    "ELU": (
        "activation",
        lambda layer: {"function": "elu", **_unless(layer, "alpha", 1.0)},
    ),
    "ReLU": (
        "activation",
        lambda layer: {
            "function": "relu",
            **_unless(layer, "max_value", None),
            **_unless(layer, "negative_slope", 0.0),
            **_unless(layer, "threshold", 0.0),
        },
    ),
    "Softmax": (
        "activation",
        lambda layer: {"function": "softmax", **_unless(layer, "axis", -1)},
    ),
}


def _unless(layer: KerasLayer, key: str, usual: Any) -> dict[str, Any]:
    """A setting as an attribute where it is not the usual one."""
    value = layer.config.get(key, usual)
    return {} if value == usual else {key: value}


def _operations(model: KerasModel) -> list[Operation]:
    """A file's operations. A layer with an activation of its own gives two, of the same name."""
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ConversionError(
            f"{model.path} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; "
            "voxtune converts networks with one of each for now."
        )
    graph, position = _Graph(), dict[str, int]()
    layers = {layer.name: layer for layer in model.layers}
    for name in _in_order(model, layers):
        layer = layers[name]
        if layer.config.get("data_format") == "channels_first":
            raise ConversionError(
                f"{model.path}: layer {quoted(name)} is channels-first, which voxtune does not "
                "convert yet; save the network with data_format='channels_last'."
            )
        inputs = [position[source] for source in layer.inputs]
        if layer.class_name == "InputLayer":
            position[name] = graph.add("input", name, ())
            continue
        if layer.class_name not in _KINDS:
            raise ConversionError(
                f"{model.path}: layer {quoted(name)} is a {quoted(layer.class_name)}, which "
                f"voxtune does not convert yet; it knows {', '.join(_KINDS)}."
            )
        kind, attributes = _KINDS[layer.class_name]
        try:
            position[name] = graph.add(kind, name, inputs, **attributes(layer))
            function = _name(layer.config.get("activation") or "linear")
        except (KeyError, TypeError, ValueError) as error:
            raise ConversionError(
                f"{model.path}: the settings of layer {quoted(name)} ({layer.class_name}) cannot "
                f"be converted ({quoted(error)})."
            ) from error
        if kind in ("conv", "up") and function != "linear":
            position[name] = graph.add("activation", name, [position[name]], function=function)
    return graph.operations


def _in_order(model: KerasModel, layers: Mapping[str, KerasLayer]) -> list[str]:
    """Layer names such that each comes after those that it reads, walked from the output.

    The same graph gives the same order, however its file lists the layers.
    """
    order: list[str] = []
    done: set[str] = set()
    stack = [(model.outputs[0], False)]
    while stack:
        name, ready = stack.pop()
        if name in done:
            continue
        if ready:
            done.add(name)
            order.append(name)
            continue
        stack.append((name, True))
        stack.extend((source, False) for source in reversed(layers[name].inputs))
    return order


# --- the families as operations --------------------------------------------------------------


def _family_conv(graph: _Graph, path: str, source: int, filters: int, **other: Any) -> int:
    settings = {"size": (3, 3, 3), "dilation": (1, 1, 1), "strides": (1, 1, 1), "padding": "same"}
    settings |= {"bias": True, "groups": 1} | other
    return graph.add("conv", path, [source], filters=filters, **settings)


def _family_unit(
    graph: _Graph,
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
    graph = _Graph()
    x = graph.add("input", "input", ())
    unit = {key: arguments[key] for key in ("activation", "batchnorm", "dropout")}
    for number, dilation in enumerate(arguments["dilations"], start=1):
        path = f"block{number}"
        x = _family_unit(graph, path, x, arguments["filters"], dilation=dilation, **unit)
    _family_conv(graph, "head", x, arguments["outputs"], size=(1, 1, 1))
    return graph.operations


def _unet(arguments: Mapping[str, Any]) -> list[Operation]:
    graph = _Graph()
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


def recognise(model: KerasModel) -> Recognised:
    """The family that a Keras network is, with the arguments that build it.

    Raises:
        ConversionError: the network has a layer that is not known, or is of no known family; the
            sentence names where it first differs from each.
    """
    operations = _operations(model)
    kept, output_activation = _without_output_activation(operations)
    convs = [each for each in kept if each.kind == "conv"]
    outputs = convs[-1].attributes["filters"] if convs else 0
    if (output_activation, outputs == 1) in (("sigmoid", False), ("softmax", True)):
        raise ConversionError(
            f"{model.path} ends in a {output_activation} over {outputs} outputs; voxtune converts "
            "a sigmoid of one output, or a softmax of several."
        )
    if len(convs) < 2:
        raise ConversionError(
            f"{model.path} holds a network with {len(convs)} Conv3D layers; voxtune converts "
            f"networks of the families {', '.join(_FAMILIES)} for now."
        )
    differences = []
    for family, (guess, expected) in _FAMILIES.items():
        arguments = guess(kept)
        if arguments.get("activation", "relu") not in ACTIVATIONS:
            differences.append(f"a {family} has no activation '{arguments['activation']}'")
            continue
        wanted = expected(arguments)
        difference = _first_difference(kept, wanted)
        if difference is None:
            return _recognised(model, family, arguments, output_activation, operations, wanted)
        differences.append(f"as a {family}, {difference}")
    raise ConversionError(
        f"{model.path} holds a network of no family that voxtune converts yet: "
        f"{'; '.join(differences)}."
    )


def _without_output_activation(operations: list[Operation]) -> tuple[list[Operation], str]:
    last = operations[-1]
    function = last.attributes.get("function")
    if last.kind == "activation" and len(last.attributes) == 1 and function in OUTPUT_ACTIVATIONS:
        return operations[:-1], function
    return operations, "linear"


def _first_difference(found: Sequence[Operation], wanted: Sequence[Operation]) -> str | None:
    for here, there in zip(found, wanted, strict=False):
        if not here.same_as(there):
            return f"layer {quoted(here.name)} is {here} where {there} is expected"
    if len(found) != len(wanted):
        return f"it has {len(found)} operations where {len(wanted)} are expected"
    return None


def _recognised(
    model: KerasModel,
    family: str,
    arguments: dict[str, Any],
    output_activation: str,
    operations: Sequence[Operation],
    wanted: Sequence[Operation],
) -> Recognised:
    paths: dict[str, str] = {}
    weighted: dict[str, str] = {}
    for here, there in zip(operations, wanted, strict=False):
        paths[here.name] = there.name
        weighted.setdefault(here.name, there.name)
    if output_activation != "linear":
        paths[operations[-1].name] = "output"
    first = next(each.name for each in operations if each.kind == "conv")
    kernel = next(layer for layer in model.layers if layer.name == first).weights.get("kernel")
    if kernel is None or kernel.ndim != 5:
        raise ConversionError(f"{model.path}: layer '{first}' has no kernel of five dimensions.")
    arguments = {"channels": int(kernel.shape[3]), **arguments}
    return Recognised(family, arguments, output_activation, paths, weighted)
