"""Which named architecture a graph is: both are written as operations and compared.

The graph of a family's original (`voxtune.converters.originals`) and that of a file are brought
into one form and compared operation by operation; so a net that merely resembles a family is never
taken for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxtune.converters.errors import quoted
from voxtune.converters.originals.bayesian_meshnet import BAYESIAN_MESHNET
from voxtune.converters.originals.highresnet import HIGHRESNET
from voxtune.converters.originals.meshnet import MESHNET
from voxtune.converters.originals.original import Operation, Original
from voxtune.converters.originals.resenc_unet import RESENC_UNET
from voxtune.converters.originals.synthseg_unet import SYNTHSEG_UNET
from voxtune.converters.originals.unet import UNET
from voxtune.converters.originals.unetr import UNETR
from voxtune.converters.originals.vnet import VNET
from voxtune.models.activations import ACROSS_CHANNELS
from voxtune.models.arguments import check_arguments
from voxtune.models.families import FAMILIES, complete
from voxtune.models.graph import Graph, GraphCall, with_outputs
from voxtune.models.kinds import KINDS

ORIGINALS: Mapping[str, Original] = {
    "bayesian_meshnet": BAYESIAN_MESHNET,
    "highresnet": HIGHRESNET,
    "meshnet": MESHNET,
    "resenc_unet": RESENC_UNET,
    "synthseg_unet": SYNTHSEG_UNET,
    "unet": UNET,
    "unetr": UNETR,
    "vnet": VNET,
}


@dataclass(frozen=True)
class Recognised:
    """A graph that is a family.

    Attributes:
        family: a name in `voxtune.models.families.FAMILIES`.
        arguments: what builds it.
        paths: call → path of the operation that gives its result.
        weighted: layer → path of the layer that holds its weights.
    """

    family: str
    arguments: Mapping[str, Any]
    paths: Mapping[str, str]
    weighted: Mapping[str, str]


class _UnlikeError(Exception):
    """A graph is of no family; says why."""


# --- operations in one form --------------------------------------------------------------------

_SIZES = ("kernel_size", "strides", "dilation_rate", "pool_size", "size")


def _form(kind: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Kind and settings such that what computes the same is written the same.

    An activation inside a layer is left to the caller.
    """
    known = KINDS[kind]
    whole = known.complete(config)
    settings = {name: whole[name] for name in known.settings}
    for name, value in settings.items():
        if name in _SIZES and isinstance(value, int):
            settings[name] = (value,) * 3
        elif isinstance(value, list):
            settings[name] = tuple(value)
    if settings.get("axis") == 4:
        settings["axis"] = -1
    match kind:
        case "MaxPooling3D" | "AveragePooling3D" if settings["strides"] is None:
            settings["strides"] = settings["pool_size"]
        case "Conv3D" if settings["kernel_size"] == settings["strides"] == (1, 1, 1):
            settings["padding"] = "same"  # there is nothing to pad
        case "Conv3DTranspose" if settings["kernel_size"] == settings["strides"]:
            settings["padding"] = "same"  # blocks do not touch: both paddings are the same
        case "MultiHeadAttention":  # over all axes: there is no other
            settings["attention_axes"] = None
            settings["value_dim"] = settings["value_dim"] or settings["key_dim"]
        case "ELU" if settings == {"alpha": 1.0}:
            return "Activation", {"activation": "elu"}
        case "ReLU" if settings == known.settings:
            return "Activation", {"activation": "relu"}
    return kind, settings


def operations_of(graph: Graph) -> list[Operation]:
    """A graph's operations, walked from the output: a file's order of layers has no say.

    A layer with an activation of its own gives two, of the same name.

    Raises:
        _UnlikeError: it holds what no family has.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise _UnlikeError(f"it has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs")
    found: list[Operation] = []
    position, widths = dict[str, int](), list[int]()
    layers, calls = graph.by_name, {call.name: call for call in graph.calls}
    used = set[str]()

    def add(kind: str, settings: Mapping[str, Any], inputs: Sequence[int], call: str) -> None:
        layer = calls[call].layer if call in calls else call
        position[call] = len(found)
        found.append(Operation(kind, settings, tuple(inputs), call, layer))
        widths.append(_width(kind, settings, [widths[each] for each in inputs]))

    for name in _in_order(graph, calls):
        if name in graph.inputs:
            add("input", {}, (), name)
            continue
        call = calls[name]
        layer = layers[call.layer]
        if layer.name in used:
            raise _UnlikeError(f"layer {quoted(layer.name)} is shared")
        used.add(layer.name)
        kind, settings = _form(layer.kind, layer.config)
        inside = (
            settings.pop("activation")
            if kind != "Activation" and "activation" in settings
            else None
        )
        if kind == "GroupNormalization" and settings["groups"] == widths[position[call.inputs[0]]]:
            settings["groups"] = -1  # which Keras writes as the number of channels that it means
        if call.training is not None:
            settings["training"] = call.training
        add(kind, settings, [position[source] for source in call.inputs], name)
        if inside not in (None, "linear"):
            add("Activation", {"activation": inside}, [position[name]], name)
    return found


def _width(kind: str, settings: Mapping[str, Any], inputs: Sequence[int]) -> int:
    """Channels of what an operation gives, one that a family has; 0 for the network's input."""
    if "filters" in settings:
        return settings["filters"]
    return sum(inputs) if kind == "Concatenate" else next(iter(inputs), 0)


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


# --- comparing -----------------------------------------------------------------------------------


def recognise(graph: Graph) -> tuple[Recognised | None, str]:
    """The family that a graph without its output activation is, with the arguments that build it.

    Returns:
        The family, or None; and what makes the graph unlike the family that it is most like, ""
        where it is one.
    """
    try:
        operations = operations_of(graph)
    except _UnlikeError as error:
        return None, str(error)
    convs = sum("Conv3D" in each.kind for each in operations)
    if convs < 2:
        return None, f"it has {convs} Conv3D layers"
    channels = next(iter(graph.inputs.values()))[-1]
    nearest, unlike = -1, ""
    for family, original in ORIGINALS.items():
        try:
            arguments = {"channels": channels, **original.from_operations(operations)}
            check_arguments(FAMILIES[family], arguments)  # a U-Net of no levels is none
            if arguments.get("activation") in ACROSS_CHANNELS:
                continue
            wanted = operations_of(original.graph(complete(family, arguments)))
        except (LookupError, ValueError, TypeError):
            continue
        same, difference = _compared(operations, wanted)
        if not difference:
            return _recognised(family, arguments, operations, wanted), ""
        if same > nearest:
            nearest, unlike = same, f"as a {family}, {difference}"
    return None, unlike or "it is like none of the families"


def _compared(found: Sequence[Operation], wanted: Sequence[Operation]) -> tuple[int, str]:
    """How many operations are the same, and the first difference, "" if there is none."""
    differences = [_difference(*pair) for pair in zip(found, wanted, strict=False)]
    for more in found[len(wanted) :]:
        differences.append(f"layer {quoted(more.name)}, {more.kind}, is one too many")
    for less in wanted[len(found) :]:
        differences.append(f"it has no {less.kind} for {less.name}")
    return differences.count(""), next(filter(None, differences), "")


def _difference(here: Operation, there: Operation) -> str:
    layer = f"layer {quoted(here.name)}"
    if here.kind != there.kind:
        return f"{layer} is {here.kind} where {there.kind} is expected"
    for name in sorted(here.settings.keys() | there.settings.keys()):
        one, other = here.settings.get(name), there.settings.get(name)
        if one != other:
            return f"{layer} has {name} {_shown(one)} where {_shown(other)} is expected"
    if here.inputs != there.inputs:
        return f"{layer} reads other layers than expected"
    return ""


def _shown(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else quoted(value).strip("'\"")


def _recognised(
    family: str,
    arguments: dict[str, Any],
    operations: Sequence[Operation],
    wanted: Sequence[Operation],
) -> Recognised:
    pairs = list(zip(operations, wanted, strict=True))
    return Recognised(
        family,
        arguments,
        {here.name: there.name for here, there in pairs},
        {here.layer: there.layer for here, there in reversed(pairs)},
    )


# --- a family as a graph -----------------------------------------------------------------------


def as_graph(family: str, arguments: Mapping[str, Any]) -> Graph:
    """A family's network as a graph of Keras layers, named by their paths.

    Args:
        family: a key of `voxtune.models.families.FAMILIES`, "graph" too.
        arguments: what builds it.
    """
    if family == "graph":
        return with_outputs(Graph.from_json(arguments["graph"]), arguments["outputs"])
    return ORIGINALS[family].graph(complete(family, arguments))
