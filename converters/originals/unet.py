"""Nobrainer's U-Net as Keras has it."""

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
    filters, depth, norm = arguments["filters"], arguments["depth"], arguments["norm"]

    def double(path: str, source: str, first: int, second: int) -> str:
        x = build.unit(f"{path}/unit1", source, first, norm=norm)
        return build.unit(f"{path}/unit2", x, second, norm=norm)

    x, skips = build.input, []
    for level in range(1, depth + 1):
        x = double(f"encoder{level}", x, filters * 2 ** (level - 1), filters * 2**level)
        skips.append(x)
        x = build.add("MaxPooling3D", f"encoder{level}/pool", x, pool_size=[2, 2, 2])
    x = double("bottom", x, filters * 2**depth, 2 * filters * 2**depth)
    up: dict[str, Any] = {"kernel_size": [2, 2, 2], "strides": [2, 2, 2], "padding": "same"}
    for level in range(depth, 0, -1):
        path, width = f"decoder{level}", filters * 2**level
        x = build.add("Conv3DTranspose", f"{path}/up", x, filters=2 * width, **up)
        x = build.add("Concatenate", f"{path}/concat", skips.pop(), x, axis=-1)
        x = double(f"{path}/convs", x, width, width)
    return build.graph(build.conv("head", x, arguments["outputs"], size=1))


def _from_operations(operations: Sequence[Operation]) -> dict[str, Any]:
    convs = of_kind(operations, "Conv3D")
    return {
        "outputs": convs[-1]["filters"],
        "filters": convs[0]["filters"],
        "depth": len(of_kind(operations, "MaxPooling3D")),
        "norm": norm_of(operations),
    }


def _from_weights(held: Sequence[HeldLayer]) -> dict[str, Any]:
    kernels = [each.kernel for each in held if each.kernel]
    heads = [each for each in kernels if each[:3] == (1, 1, 1)] or kernels
    return {
        "channels": kernels[0][3],
        "outputs": heads[-1][4],
        "filters": kernels[0][4],
        "depth": sum(each[:3] == (2, 2, 2) for each in kernels),
        "norm": "batch" if len(kernels) != len(held) else None,
    }


UNET = Original(_graph, _from_operations, _from_weights)
