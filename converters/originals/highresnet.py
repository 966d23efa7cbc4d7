"""Nobrainer's HighResNet as Keras has it."""

from collections.abc import Mapping, Sequence
from typing import Any

from voxtune.converters.originals.original import (
    Builder,
    HeldLayer,
    Operation,
    Original,
    of_kind,
)
from voxtune.models.graph import Graph
from voxtune.models.highresnet import STAGES


def _graph(arguments: Mapping[str, Any]) -> Graph:
    build = Builder(arguments["channels"])
    filters, blocks, activation = (arguments[key] for key in ("filters", "blocks", "activation"))

    def unit(path: str, source: str, width: int, dilation: int) -> str:
        x = build.norm(f"{path}/norm", source, "batch", width)
        x = build.add("Activation", f"{path}/activation", x, activation=activation)
        return build.conv(f"{path}/conv", x, width, dilation_rate=[dilation] * 3)

    x = build.conv("stem", build.input, filters)
    for number in range(1, STAGES * blocks + 1):
        path, scale = f"block{number}", 2 ** ((number - 1) // blocks)
        width = filters * scale
        if scale > 1 and (number - 1) % blocks == 0:
            x = build.add("ZeroPadding3DChannels", f"{path}/pad", x, padding=width // 4)
        y = unit(f"{path}/unit1", x, width, scale)
        y = unit(f"{path}/unit2", y, width, scale)
        x = build.add("Add", f"{path}/add", y, x)
    return build.graph(build.conv("head", x, arguments["outputs"], size=1))


def _from_operations(operations: Sequence[Operation]) -> dict[str, Any]:
    convs = of_kind(operations, "Conv3D")
    return {
        "outputs": convs[-1]["filters"],
        "filters": convs[0]["filters"],
        "blocks": len(of_kind(operations, "Add")) // STAGES,
        "activation": of_kind(operations, "Activation")[0]["activation"],
    }


def _from_weights(held: Sequence[HeldLayer]) -> dict[str, Any]:
    kernels = [each.kernel for each in held if each.kernel]
    heads = [each for each in kernels if each[:3] == (1, 1, 1)] or kernels
    return {
        "channels": kernels[0][3],
        "outputs": heads[-1][4],
        "filters": kernels[0][4],
        "blocks": max(1, (len(kernels) - 2) // (2 * STAGES)),
        "activation": "relu",
    }


HIGHRESNET = Original(_graph, _from_operations, _from_weights, ("activation",))
