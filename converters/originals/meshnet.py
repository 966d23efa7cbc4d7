"""MeshNet as Keras has it."""

from collections.abc import Mapping, Sequence
from typing import Any

from voxtune.converters.originals.original import (
    Builder,
    HeldLayer,
    Operation,
    Original,
    norm_of,
    of_kind,
)
from voxtune.models.graph import Graph


def _graph(arguments: Mapping[str, Any]) -> Graph:
    build = Builder(arguments["channels"])
    unit = {key: arguments[key] for key in ("activation", "norm", "dropout")}
    x = build.input
    for number, dilation in enumerate(arguments["dilations"], start=1):
        x = build.unit(f"block{number}", x, arguments["filters"], dilation=dilation, **unit)
    return build.graph(build.conv("head", x, arguments["outputs"], size=1))


def _from_operations(operations: Sequence[Operation]) -> dict[str, Any]:
    convs = of_kind(operations, "Conv3D")
    rates = [each["rate"] for each in of_kind(operations, "Dropout")]
    functions = [each["activation"] for each in of_kind(operations, "Activation")]
    return {
        "outputs": convs[-1]["filters"],
        "filters": convs[0]["filters"],
        "dilations": [each["dilation_rate"][0] for each in convs[:-1]],
        "activation": functions[0] if functions else "linear",
        "norm": norm_of(operations),
        "dropout": rates[0] if rates else 0.0,
    }


def _from_weights(held: Sequence[HeldLayer]) -> dict[str, Any]:
    kernels = [each.kernel for each in held if each.kernel]
    heads = [each for each in kernels if each[:3] == (1, 1, 1)] or kernels
    usual = {7: [1, 1, 2, 4, 8, 16, 1], 9: [1, 2, 4, 8, 16, 8, 4, 2, 1]}
    blocks = len(kernels) - 1
    return {
        "channels": kernels[0][3],
        "outputs": heads[-1][4],
        "filters": kernels[0][4],
        "norm": "batch" if len(kernels) != len(held) else None,
        "dilations": usual.get(blocks, [1] * blocks),
        "activation": "relu",
    }


MESHNET = Original(_graph, _from_operations, _from_weights, ("dilations", "activation"))
