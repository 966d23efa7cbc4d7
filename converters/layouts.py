"""Channels-first layers and operations → the same with channels last.

Each value knows whether it was moved. Layers that know their data format, those that work along an
axis and those that look at each element alone take moved values as they are, with their settings
rewritten; all others get the order of the file back, by a Permute.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from voxtune.converters.assembly import Assembly, Value, last_axis
from voxtune.converters.operations import Operation
from voxtune.models.graph import GraphLayer
from voxtune.models.kinds import KINDS

_SPATIAL = re.compile(
    r"((Separable|Depthwise)?Conv|(Global)?(Max|Average)Pooling|UpSampling|ZeroPadding|Cropping"
    r"|SpatialDropout)[123]D(Transpose|Flipout|Reparameterization)?"
)
_ELEMENTWISE = frozenset(
    {"Activation", "ReLU", "LeakyReLU", "ELU", "GaussianNoise", "GaussianDropout", "Identity"}
)
_ALONG = frozenset(
    {
        "BatchNormalization",
        "LayerNormalization",
        "InstanceNormalization",
        "UnitNormalization",
        "Normalization",
        "Softmax",
        "Concatenate",
    }
)
_MERGING = frozenset({"Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"})


def is_spatial(kind: str) -> bool:
    """Whether a kind of layer has a data format."""
    return _SPATIAL.fullmatch(kind) is not None


def place(
    assembly: Assembly,
    name: str,
    layer: GraphLayer,
    inputs: Sequence[Value],
    training: bool | None = None,
) -> Value:
    """Adds the call of a layer that is no operation.

    Args:
        assembly: receives it.
        name: of the call.
        layer: its settings as in the file, `data_format` among them.
        inputs: what it reads, in the file's order.
        training: as in `GraphCall`.

    Raises:
        ConversionError: the layer does not fit what it reads.
        ValueError: it has an axis that its input does not have.
    """
    if KINDS[layer.kind].summary == "registered":
        values = [assembly.first(each) for each in inputs]
        return assembly.call(name, layer, values, training=training)
    config = dict(layer.config)
    form = config.pop("data_format", "channels_last")
    if form not in ("channels_first", "channels_last"):
        raise ValueError(f"data_format={form!r} is not supported")
    kind, values = layer.kind, list(inputs)
    moved = any(each.moved for each in values)
    rank = values[0].rank if values else 0
    if is_spatial(kind) or kind == "Flatten":
        moved = form == "channels_first"
        values = [assembly.last(each) if moved else assembly.first(each) for each in values]
    elif kind in _MERGING or kind in _ELEMENTWISE:
        moved = moved and len({each.rank for each in values}) == 1
        values = [assembly.last(each) if moved else assembly.first(each) for each in values]
    elif kind in ("Dropout", "AlphaDropout"):
        shape = config.get("noise_shape")
        if moved and isinstance(shape, list) and len(shape) == rank:
            config["noise_shape"] = _permuted(shape)
    elif kind in ("GroupNormalization", "SlabGroupNormalization"):
        moved = rank > 2 and config.get("axis", -1) == 1
        values = [assembly.last(each) if moved else assembly.first(each) for each in values]
        config["axis"] = -1 if moved else _negative(config.get("axis", -1), rank)
    elif kind == "PReLU":
        axes = [_axis(each, rank, moved) for each in config.get("shared_axes") or ()]
        config["shared_axes"] = sorted(axes) or None
        if moved:
            assembly.axes[layer.name] = {"alpha": [*range(1, rank - 1), 0]}
    elif kind in _ALONG and (kind != "Normalization" or config.get("mean") is None):
        config.setdefault("axis", KINDS[kind].settings["axis"])
        values = [assembly.last(each) for each in values] if moved else values
        config["axis"] = _mapped(config["axis"], rank, moved)
        if moved and isinstance(config["axis"], list):
            order = _weight_axes(layer.config["axis"], rank)
            names = ("gamma", "beta", "mean", "variance")
            assembly.axes[layer.name] = dict.fromkeys(names, order)
    elif kind == "Permute" and moved:
        axes = [0, *config["dims"]]
        config["dims"] = [last_axis(each, rank) for each in axes][1:]
        moved = False
        if config["dims"] == list(range(1, rank)):
            return assembly.call(name, GraphLayer(layer.name, "Identity", {}), values)
    else:
        moved = False
        values = [assembly.first(each) for each in values]
    placed = GraphLayer(layer.name, kind, config)
    return assembly.call(name, placed, values, training=training, moved=moved)


def _axis(axis: int, rank: int, moved: bool) -> int:
    """An axis here, counted from the front."""
    if moved:
        return last_axis(axis, rank)
    if not isinstance(axis, int) or not -rank <= axis < rank:
        raise ValueError(f"axis={axis!r} does not exist in an array of {rank} axes")
    return axis % rank


def _negative(axis: int, rank: int) -> int:
    return -1 if axis == rank - 1 else axis


def _mapped(axis: Any, rank: int, moved: bool) -> Any:
    """An axis or axes here, -1 for the last one alone."""
    if axis is None or isinstance(axis, int):
        return axis if axis is None else _negative(_axis(axis, rank, moved), rank)
    axes = sorted(_axis(each, rank, moved) for each in axis)
    return -1 if axes == [rank - 1] else axes


def _weight_axes(axes: Sequence[int], rank: int) -> list[int]:
    """The order in which weights along several axes take the axes of the file's weights."""
    there = sorted(each % rank for each in axes)
    return sorted(range(len(there)), key=lambda position: last_axis(there[position], rank))


def _permuted(items: Sequence[Any]) -> list[Any]:
    """One item for each axis of a channels-first array, for the channels-last one."""
    return [items[0], *items[2:], items[1]]


# --- operations ------------------------------------------------------------------------------

_REDUCTIONS = frozenset({"mean", "sum", "max", "min", "prod", "var", "std"})
_ALONG_AXIS = frozenset({"softmax", "log_softmax", "concatenate", "flip", "repeat"})
_DEFAULT_AXIS = {"softmax": -1, "log_softmax": -1, "concatenate": -1}
_SHAPES = frozenset(
    {"stack", "squeeze", "expand_dims", "transpose", "reshape", "getitem", "pad", "tile", "matmul"}
)


def place_operation(
    assembly: Assembly, name: str, operation: Operation, operands: Sequence[Any]
) -> Value:
    """Adds an operation.

    Args:
        assembly: receives it.
        name: of the call and of its layer.
        operation: what is done.
        operands: as in the operation, each tensor as its `Value`.

    Raises:
        ConversionError: the operation does not fit what it reads.
        ValueError: it has an axis that its input does not have.
    """
    parameters, given = dict(operation.parameters), list(operands)
    values = [each for each in given if isinstance(each, Value)]
    function, moved = operation.function, any(each.moved for each in values)
    rank = max((each.rank for each in values), default=0)
    if moved:
        fits = _rewritten(function, parameters, values, rank)
        if fits is False:
            parameters = dict(operation.parameters)
            given = [assembly.first(each) if isinstance(each, Value) else each for each in given]
        else:
            given = [_last(assembly, each, rank) for each in given]
        moved = bool(fits)
    inputs: list[Value] = []
    written: list[dict[str, Any]] = []
    for each in given:
        if isinstance(each, Value):
            if each not in inputs:
                inputs.append(each)
            written.append({"tensor": inputs.index(each)})
        else:
            written.append({"value": each})
    config = {"function": function, "operands": written, **parameters}
    layer = GraphLayer(name, "Operation", config)
    return assembly.call(name, layer, inputs, moved=moved)


def _last(assembly: Assembly, operand: Any, rank: int) -> Any:
    """An operand with channels last; constants have as many axes as the tensors then."""
    if isinstance(operand, Value):
        return assembly.last(operand)
    if not isinstance(operand, list):
        return operand
    array = np.asarray(operand)
    return np.moveaxis(array.reshape((1,) * (rank - array.ndim) + array.shape), 1, -1).tolist()


def _rewritten(
    function: str, parameters: dict[str, Any], values: Sequence[Value], rank: int
) -> bool | None:
    """Changes the parameters to what they are with channels last.

    Returns:
        Whether the result is moved then; None where its order is that of the file all the same;
        False where the operation needs the order of the file.
    """
    if len({each.rank for each in values}) > 1:
        return False
    if function in _REDUCTIONS:
        return _reduced(parameters, rank)
    if function in _ALONG_AXIS:
        axis = parameters.get("axis", _DEFAULT_AXIS.get(function))
        if axis is None:
            return function == "flip"
        parameters["axis"] = _mapped(axis, rank, moved=True)
        return True
    if function not in _SHAPES:
        return True  # element by element
    axis = parameters.get("axis")
    if function == "expand_dims" and isinstance(axis, int):
        axis = axis % (rank + 1)
        parameters["axis"] = axis - 1
        return axis > 1
    if function == "squeeze" and axis is not None:
        axes = [each % rank for each in ([axis] if isinstance(axis, int) else axis)]
        parameters["axis"] = [each - 1 for each in axes]
        return min(axes) > 1
    if function == "transpose" and parameters.get("axes"):
        parameters["axes"] = [last_axis(each, rank) for each in parameters["axes"]]
        return None
    if function == "pad" and isinstance(parameters.get("pad_width"), list):
        if len(parameters["pad_width"]) != rank:
            return False
        parameters["pad_width"] = _permuted(parameters["pad_width"])
        return True
    if function == "getitem":
        return _indexed(parameters, rank)
    return False


def _reduced(parameters: dict[str, Any], rank: int) -> bool | None:
    axis, kept = parameters.get("axis"), parameters.get("keepdims", False)
    if axis is None:
        return bool(kept)
    axes = [last_axis(each, rank) for each in ([axis] if isinstance(axis, int) else axis)]
    parameters["axis"] = _negative(axes[0], rank) if isinstance(axis, int) else axes
    return True if kept or rank - 1 not in axes else None


def _indexed(parameters: dict[str, Any], rank: int) -> bool | None:
    whole = {"start": None, "stop": None, "step": None}
    key = list(parameters["key"])
    if "newaxis" in key or key.count("ellipsis") > 1:
        return False
    at = key.index("ellipsis") if "ellipsis" in key else len(key)
    key[at : at + 1] = [whole] * (rank - len([each for each in key if each != "ellipsis"]))
    if len(key) != rank:
        return False
    parameters["key"] = _permuted(key)
    return None if isinstance(key[1], int) else True


def sections(operation: Operation, value: Value) -> list[Operation]:
    """A split as one slice for each of its results, in the order of the file's axes.

    Raises:
        ValueError: the parts do not fit.
    """
    axis = operation.parameters.get("axis", 0)
    shape = [value.shape[0], value.shape[-1], *value.shape[1:-1]] if value.moved else value.shape
    size = shape[_axis(axis, len(shape), moved=False)]
    parts = operation.parameters["sections"]
    if isinstance(parts, int):
        if parts < 1 or size % parts or parts > 1000:
            raise ValueError(f"{size} places are not {parts} parts of the same size")
        ends = [size // parts * (n + 1) for n in range(parts)]
    else:
        ends = list(np.cumsum(parts)) if operation.function == "split_sizes" else [*parts, size]
    starts = [0, *ends[:-1]]
    whole: Mapping[str, Any] = {"start": None, "stop": None, "step": None}
    keys = []
    for start, end in zip(starts, ends, strict=True):
        key: list[Any] = [whole] * len(shape)
        key[axis % len(shape)] = {"start": int(start), "stop": int(end), "step": None}
        keys.append(key)
    return [Operation("getitem", operation.operands, {"key": key}) for key in keys]
