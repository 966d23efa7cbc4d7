"""nnU-Net's residual-encoder U-Net as Keras would have it; nnU-Net itself has it in PyTorch."""

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
from voxtune.models.resenc_unet import SLOPE


def _graph(arguments: Mapping[str, Any]) -> Graph:
    build = Builder(arguments["channels"])
    features, strides = arguments["features"], arguments["strides"]

    def activated(path: str, source: str) -> str:
        return build.add("LeakyReLU", f"{path}/activation", source, negative_slope=SLOPE)

    def unit(path: str, source: str, width: int, stride: int = 1) -> str:
        """Without the activation."""
        if stride == 1:
            x = build.conv(f"{path}/conv", source, width)
        else:  # Keras's "same" would put the zeros behind alone
            x = build.add("ZeroPadding3D", f"{path}/pad", source, padding=[[1, 1]] * 3)
            x = build.conv(f"{path}/conv", x, width, padding="valid", strides=[stride] * 3)
        return build.norm(f"{path}/norm", x, "instance", width)

    def block(path: str, source: str, channels: int, width: int, stride: int) -> str:
        y = activated(f"{path}/unit1", unit(f"{path}/unit1", source, width, stride))
        y = unit(f"{path}/unit2", y, width)
        x = source
        if stride > 1:
            x = build.add("AveragePooling3D", f"{path}/pool", x, pool_size=[stride] * 3)
        if channels != width:
            x = build.conv(f"{path}/skip/conv", x, width, size=1, use_bias=False)
            x = build.norm(f"{path}/skip/norm", x, "instance", width)
        return activated(path, build.add("Add", f"{path}/add", y, x))

    x = activated("stem", unit("stem", build.input, features[0]))
    channels, skips = features[0], []
    stages = zip(features, arguments["blocks"], strides, strict=True)
    for number, (width, blocks, stride) in enumerate(stages, start=1):
        for place in range(1, blocks + 1):
            step = stride if place == 1 else 1
            x = block(f"encoder{number}/block{place}", x, channels, width, step)
            channels = width
        skips.append(x)
    skips.pop()
    for number in range(len(features) - 1, 0, -1):
        path, width, size = f"decoder{number}", features[number - 1], [strides[number]] * 3
        up = {"filters": width, "kernel_size": size, "strides": size, "padding": "same"}
        x = build.add("Conv3DTranspose", f"{path}/up", x, **up)
        x = build.add("Concatenate", f"{path}/concat", x, skips.pop(), axis=-1)
        for place in range(1, arguments["convs"] + 1):
            x = activated(f"{path}/unit{place}", unit(f"{path}/unit{place}", x, width))
    return build.graph(build.conv("head", x, arguments["outputs"], size=1))


def _from_operations(operations: Sequence[Operation]) -> dict[str, Any]:
    convs = of_kind(operations, "Conv3D")
    features, blocks, strides = [convs[0]["filters"]], [0], [1]
    for each in operations:
        if each.kind == "Conv3D" and each.settings["strides"][0] > 1:
            features.append(each.settings["filters"])
            blocks.append(0)
            strides.append(each.settings["strides"][0])
        elif each.kind == "Add":
            blocks[-1] += 1
    kinds = [each.kind for each in operations]
    last_up = len(kinds) - kinds[::-1].index("Conv3DTranspose")
    return {
        "outputs": convs[-1]["filters"],
        "features": features,
        "blocks": blocks,
        "strides": strides,
        "convs": kinds[last_up:].count("Conv3D") - 1,  # and the head
    }


def _from_weights(held: Sequence[HeldLayer]) -> dict[str, Any]:
    kernels = [each.kernel for each in held if each.kernel]
    heads = [each for each in kernels if each[:3] == (1, 1, 1)] or kernels
    # Keras stores [kD, kH, kW, out, in], from the lowest resolution to the highest.
    ups = [each for each in kernels if each[0] not in (1, 3)]
    blocks = [1, 3, 4, *[6] * len(ups)]
    return {
        "channels": kernels[0][3],
        "outputs": heads[-1][4],
        "features": [*(each[3] for each in ups[::-1]), ups[0][4]],
        "blocks": blocks[: len(ups) + 1],
        "strides": [1, *(each[0] for each in ups[::-1])],
        "convs": 1,
    }


RESENC_UNET = Original(_graph, _from_operations, _from_weights, ("blocks", "convs"))
