"""SynthSeg's U-Net as Keras has it."""

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


def _graph(arguments: Mapping[str, Any]) -> Graph:
    build = Builder(arguments["channels"])
    filters, depth = arguments["filters"], arguments["depth"]

    def convs(path: str, source: str, width: int) -> str:
        x = build.unit(f"{path}/unit1", source, width, activation="elu")
        return build.unit(f"{path}/unit2", x, width, activation="elu")

    def norm(path: str, source: str, width: int) -> str:
        return build.norm(f"{path}/norm", source, "batch", width)

    x, skips = build.input, []
    pool: dict[str, Any] = {"pool_size": [2, 2, 2], "padding": "same"}
    for level in range(1, depth + 1):
        path, width = f"encoder{level}", filters * 2 ** (level - 1)
        skips.append(convs(path, x, width))
        x = build.add("MaxPooling3D", f"{path}/pool", norm(path, skips[-1], width), **pool)
    wide = filters * 2**depth
    x = norm("bottom", convs("bottom", x, wide), wide)
    for level in range(depth, 0, -1):
        path, width = f"decoder{level}", filters * 2 ** (level - 1)
        x = build.add("UpSampling3D", f"{path}/repeat", x, size=[2, 2, 2])
        x = build.add("Concatenate", f"{path}/concat", skips.pop(), x, axis=-1)
        x = norm(path, convs(path, x, width), width)
    return build.graph(build.conv("head", x, arguments["outputs"], size=1))


def _from_operations(operations: Sequence[Operation]) -> dict[str, Any]:
    convs = of_kind(operations, "Conv3D")
    return {
        "outputs": convs[-1]["filters"],
        "filters": convs[0]["filters"],
        "depth": len(of_kind(operations, "MaxPooling3D")),
    }


def _from_weights(held: Sequence[HeldLayer]) -> dict[str, Any]:
    kernels = [each.kernel for each in held if each.kernel]
    heads = [each for each in kernels if each[:3] == (1, 1, 1)] or kernels
    return {
        "channels": kernels[0][3],
        "outputs": heads[-1][4],
        "filters": kernels[0][4],
        "depth": (len(kernels) - 3) // 4,  # a pair for each level down and up, one at the bottom
    }


SYNTHSEG_UNET = Original(_graph, _from_operations, _from_weights, single="linear")
