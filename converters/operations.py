"""Operations that stand in a Keras graph without a layer of their own → the kind `Operation`.

tf.keras writes them as TFOpLambda and SlicingOpLambda, earlier as TensorFlowOpLayer, and Keras 3 as
classes of keras.ops.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxtune.converters.keras_code import class_of
from voxtune.converters.keras_model import KerasCall, KerasLayer, TensorRef


@dataclass(frozen=True)
class Operation:
    """An operation.

    Attributes:
        function: as in `voxtune.models.operations.FUNCTIONS`, or "split".
        operands: tensors as `TensorRef`, and constants: numbers, or lists of them.
        parameters: by name.
    """

    function: str
    operands: tuple[Any, ...]
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class _Signature:
    """How a function is called.

    Attributes:
        function: canonical name.
        operands: their names in calls, each with its alternatives; `*` for a list of tensors.
        parameters: name in calls → canonical name, in the order of positional arguments.
        fixed: parameters that the calls do not name.
    """

    function: str
    operands: tuple[str, ...] = ("x",)
    parameters: Mapping[str, str] | None = None
    fixed: Mapping[str, Any] | None = None


_UNARY = (
    "absolute",
    "negative",
    "sign",
    "exp",
    "expm1",
    "log",
    "log1p",
    "sqrt",
    "rsqrt",
    "square",
    "reciprocal",
    "sin",
    "cos",
    "tanh",
    "sigmoid",
    "relu",
    "relu6",
    "selu",
    "silu",
    "softplus",
    "softsign",
    "floor",
    "ceil",
    "logical_not",
    "identity",
)
_BINARY = (
    "add",
    "subtract",
    "multiply",
    "divide",
    "floor_divide",
    "mod",
    "power",
    "maximum",
    "minimum",
    "equal",
    "not_equal",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "logical_and",
    "logical_or",
    "matmul",
)
_REDUCTIONS = ("mean", "sum", "max", "min", "prod", "var", "std")
_AXIS = {"axis": "axis"}
_BOTH = {
    **{name: _Signature(name) for name in _UNARY},
    **{name: _Signature(name, ("x1", "x2")) for name in _BINARY},
    "stop_gradient": _Signature("identity"),
    "softmax": _Signature("softmax", parameters=_AXIS),
    "log_softmax": _Signature("log_softmax", parameters=_AXIS),
    "stack": _Signature("stack", ("*",), _AXIS),
    "squeeze": _Signature("squeeze", parameters=_AXIS),
    "expand_dims": _Signature("expand_dims", parameters=_AXIS),
    "cast": _Signature("cast", parameters={"dtype": "dtype"}),
    "where": _Signature("where", ("condition", "x1", "x2")),
    "repeat": _Signature("repeat", parameters={"repeats": "repeats", "axis": "axis"}),
}
_KERAS3: Mapping[str, _Signature] = {
    **_BOTH,
    **{
        name: _Signature(name, parameters={"axis": "axis", "keepdims": "keepdims"})
        for name in _REDUCTIONS
    },
    "amax": _Signature("max", parameters={"axis": "axis", "keepdims": "keepdims"}),
    "amin": _Signature("min", parameters={"axis": "axis", "keepdims": "keepdims"}),
    "true_divide": _Signature("divide", ("x1", "x2")),
    "abs": _Signature("absolute"),
    "swish": _Signature("silu"),
    "round": _Signature("round", parameters={"decimals": "decimals"}),
    "concatenate": _Signature("concatenate", ("*",), _AXIS),
    "get_item": _Signature("getitem", parameters={"key": "key"}),
    "transpose": _Signature("transpose", parameters={"axes": "axes"}),
    "reshape": _Signature("reshape", parameters={"newshape": "newshape"}),
    "clip": _Signature("clip", parameters={"x_min": "x_min", "x_max": "x_max"}),
    "flip": _Signature("flip", parameters=_AXIS),
    "tile": _Signature("tile", parameters={"repeats": "repeats"}),
    "leaky_relu": _Signature("leaky_relu", parameters={"negative_slope": "negative_slope"}),
    "elu": _Signature("elu", parameters={"alpha": "alpha"}),
    "gelu": _Signature("gelu", parameters={"approximate": "approximate"}),
    "hard_sigmoid": _Signature("hard_sigmoid"),
    "pad": _Signature(
        "pad",
        parameters={"pad_width": "pad_width", "mode": "mode", "constant_values": "constant_values"},
    ),
    "split": _Signature("split", parameters={"indices_or_sections": "sections", "axis": "axis"}),
}
_TENSORFLOW: Mapping[str, _Signature] = {
    **_BOTH,
    "neg": _Signature("negative"),
    "abs": _Signature("absolute"),
    "swish": _Signature("silu"),
    "elu": _Signature("elu"),
    "round": _Signature("round"),
    "sub": _Signature("subtract", ("x1", "x2")),
    "mul": _Signature("multiply", ("x1", "x2")),
    "pow": _Signature("power", ("x1", "x2")),
    "eq": _Signature("equal", ("x1", "x2")),
    "ne": _Signature("not_equal", ("x1", "x2")),
    "truediv": _Signature("divide", ("x1", "x2")),
    "realdiv": _Signature("divide", ("x1", "x2")),
    "floordiv": _Signature("floor_divide", ("x1", "x2")),
    "floormod": _Signature("mod", ("x1", "x2")),
    "add_n": _Signature("add", ("*",)),
    **{
        f"reduce_{old}": _Signature(name, parameters={"axis": "axis", "keepdims": "keepdims"})
        for old, name in zip(
            ("mean", "sum", "max", "min", "prod", "variance", "std"), _REDUCTIONS, strict=True
        )
    },
    "concat": _Signature("concatenate", ("*",), _AXIS),
    "getitem": _Signature("getitem", parameters={"slice_spec": "key"}),
    "transpose": _Signature("transpose", parameters={"perm": "axes", "conjugate": "conjugate"}),
    "reshape": _Signature("reshape", parameters={"shape": "newshape"}),
    "clip_by_value": _Signature(
        "clip", parameters={"clip_value_min": "x_min", "clip_value_max": "x_max"}
    ),
    "reverse": _Signature("flip", parameters=_AXIS),
    "tile": _Signature("tile", parameters={"multiples": "repeats"}),
    "leaky_relu": _Signature("leaky_relu", parameters={"alpha": "negative_slope"}),
    "gelu": _Signature(
        "gelu", parameters={"approximate": "approximate"}, fixed={"approximate": False}
    ),
    "pad": _Signature(
        "pad",
        parameters={"paddings": "pad_width", "mode": "mode", "constant_values": "constant_values"},
    ),
    "split": _Signature("split", parameters={"num_or_size_splits": "sections", "axis": "axis"}),
}
# Names of operands in the calls of TensorFlow and Keras, and of what changes no result.
_OPERAND_NAMES = {
    "x": (
        "x",
        "input",
        "inputs",
        "input_tensor",
        "features",
        "logits",
        "tensor",
        "t",
        "a",
        "value",
    ),
    "x1": ("x1", "x", "a"),
    "x2": ("x2", "y", "b"),
    "condition": ("condition",),
    "*": ("xs", "values", "inputs", "arrays"),
}
_UNSET = {"name", "training", "validate_indices", "dtype"}
_DEFAULTS = {"mode": ("constant", "CONSTANT"), "conjugate": (False,), "decimals": (0,)}


def is_operation(layer: KerasLayer) -> bool:
    """Whether a layer is an operation in the place of one."""
    return layer.class_name.startswith("keras.ops>") or class_of(layer.class_name) in (
        "TFOpLambda",
        "SlicingOpLambda",
        "TensorFlowOpLayer",
    )


def operation_of(layer: KerasLayer, call: KerasCall) -> Operation:
    """An operation as it is called.

    Raises:
        ValueError: none that voxtune knows, or called in a way that it does not know.
    """
    if class_of(layer.class_name) == "TensorFlowOpLayer":
        return _node_def(layer, call)
    if layer.class_name.startswith("keras.ops>"):
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_of(layer.class_name)).lower()
        settings = {key: value for key, value in layer.config.items() if key != "name"}
        return _bound(name, _KERAS3.get(name), call.args, {**settings, **call.kwargs})
    name = str(layer.config.get("function"))
    return _bound(name, _TENSORFLOW.get(name.rsplit(".", 1)[-1]), call.args, call.kwargs)


def _bound(
    name: str, signature: _Signature | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Operation:
    """Arguments by their names and positions."""
    if signature is None:
        raise ValueError(f"voxtune knows no operation {name!r}")
    parameters = signature.parameters or {}
    left = {key: value for key, value in kwargs.items() if value is not None}
    operands: list[Any] = list(args[: len(signature.operands)])
    found = dict(signature.fixed or {})
    for key, value in zip(parameters, args[len(signature.operands) :], strict=False):
        found[parameters[key]] = value
    if len(args) > len(signature.operands) + len(parameters):
        raise ValueError(f"{name} is called with {len(args)} arguments")
    for operand in signature.operands[len(operands) :]:
        given = [key for key in _OPERAND_NAMES[operand] if key in left]
        if not given:
            raise ValueError(f"{name} is called without {operand}")
        operands.append(left.pop(given[0]))
    for key, value in left.items():
        if key in parameters:
            found[parameters[key]] = value
        elif not (key in _UNSET or value is False):
            raise ValueError(f"{name} is called with {key}={value!r}, which voxtune does not read")
    for key, usual in _DEFAULTS.items():
        if found.pop(key, usual[0]) not in usual:
            raise ValueError(f"{name} is called with another {key} than voxtune reads")
    if signature.operands == ("*",):
        (tensors,) = operands
        operands = tensors if isinstance(tensors, list) else [tensors]
    if "key" in found:
        found["key"] = _key(found["key"])
    found = {key: _constant(value) if key != "key" else value for key, value in found.items()}
    return Operation(
        signature.function,
        tuple(each if isinstance(each, TensorRef) else _constant(each) for each in operands),
        {key: value for key, value in found.items() if value is not None},
    )


def _constant(value: Any) -> Any:
    """A number, a text or lists of them; Keras 3 wraps arrays."""
    if isinstance(value, dict) and value.get("class_name") in ("__numpy__", "__tensor__"):
        config = value.get("config")
        value = config.get("value") if isinstance(config, dict) else None
    queue = [value]
    while queue:
        item = queue.pop()
        if isinstance(item, list):
            queue.extend(item)
        elif not isinstance(item, int | float | str | None):
            raise ValueError("it takes a value that is neither a tensor nor a number")
    return value


def _key(key: Any) -> list[Any]:
    """The key of an index: for each axis a slice, a number, "ellipsis" or "newaxis"."""
    parts = key if isinstance(key, list) else [key]
    found: list[Any] = []
    for part in parts:
        class_name = part.get("class_name") if isinstance(part, dict) else None
        if class_name == "__slice__":
            part, class_name = part.get("config"), None
        if class_name == "__ellipsis__" or part == "...":
            found.append("ellipsis")
        elif part is None:
            found.append("newaxis")
        elif isinstance(part, int):
            found.append(part)
        elif isinstance(part, dict) and class_name is None:
            limits = {name: part.get(name) for name in ("start", "stop", "step")}
            if not all(isinstance(each, int | None) for each in limits.values()):
                raise ValueError("its slices do not have fixed limits")
            found.append(limits)
        else:
            raise ValueError(f"it is indexed with {part!r}, which voxtune does not read")
    return found


_NODES = {"AddV2": "add", "RealDiv": "divide", "FloorDiv": "floor_divide", "FloorMod": "mod"}


def _node_def(layer: KerasLayer, call: KerasCall) -> Operation:
    """TensorFlow 2.1 to 2.3: a node of TensorFlow's graph, constants by their position.

    Those whose operands are all there is to them; of the others the parameters are constants.
    """
    try:
        node = json.loads(layer.config["node_def"])
        constants = {int(key): value for key, value in layer.config["constants"].items()}
        op, count = node["op"], len(node["input"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise ValueError(
            "it is a node of TensorFlow in a form that voxtune does not read"
        ) from None
    tensors = call.args[0] if call.args and isinstance(call.args[0], list) else list(call.args)
    rest = iter(tensors)
    args = [constants[at] if at in constants else next(rest, None) for at in range(count)]
    name = _NODES.get(op, re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(op)).lower())
    if op == "ConcatV2":
        return _bound("ConcatV2", _TENSORFLOW["concat"], [args[:-1], args[-1]], {})
    signature = _TENSORFLOW.get(name)
    if signature is None or (op not in _NODES and name not in (*_UNARY, *_BINARY, *_SHORT)):
        raise ValueError(f"voxtune knows no operation {op!r} of TensorFlow's graphs")
    return _bound(op, signature, args, {})


_SHORT = ("neg", "abs", "sub", "mul", "pow")
