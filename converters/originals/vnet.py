"""Nobrainer's VNet as Keras has it."""

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
    filters, depth, activation = (arguments[key] for key in ("filters", "depth", "activation"))
    slabs, rate = arguments["norm"] == "slab", arguments["dropout"]

    def norm(name: str, source: str, width: int) -> str:
        if not slabs:
            return build.norm(name, source, "group", width)
        return build.add("SlabGroupNormalization", name, source, groups=4, epsilon=1e-5)

    def activated(path: str, source: str, width: int, size: int = 3) -> str:
        x = build.conv(f"{path}/conv", source, width, size)
        if activation == "linear":
            return x
        return build.add("Activation", f"{path}/activation", x, activation=activation)

    def unit(path: str, source: str, width: int, size: int = 3) -> str:
        return norm(f"{path}/norm", activated(path, source, width, size), width)

    def stage(path: str, source: str, width: int) -> str:
        return unit(f"{path}/unit2", unit(f"{path}/unit1", source, width), width)

    def dropped(path: str, source: str) -> str:
        if not rate:
            return source
        # Nobrainer's is on in prediction too; the net with a proper group norm is nobody's, and
        # one whose prediction repeats itself is of more use in Keras.
        training = True if slabs else None
        name = f"{path}/dropout"
        return build.add("SpatialDropout3D", name, source, training=training, rate=rate)

    x, skips = build.input, []
    for level in range(1, depth + 1):
        x = stage(f"encoder{level}", x, filters * 2 ** (level - 1))
        skips.append(x)
        x = build.add("MaxPooling3D", f"encoder{level}/pool", x, pool_size=[2, 2, 2])
    x = dropped("bottom", stage("bottom", x, filters * 2**depth))
    for level in range(depth, 0, -1):
        path, width = f"decoder{level}", filters * 2 ** (level - 1)
        x = build.add("UpSampling3D", f"{path}/repeat", x, size=[2, 2, 2])
        x = unit(f"{path}/up", x, width, size=2)
        x = build.add("Concatenate", f"{path}/concat", skips.pop(), x, axis=-1)
        x = stage(f"{path}/convs", norm(f"{path}/norm", x, 2 * width), width)
        x = dropped(f"{path}/convs", x)
    x = activated("head", x, arguments["outputs"])
    return build.graph(build.conv("head", x, arguments["outputs"], size=1))


def _from_operations(operations: Sequence[Operation]) -> dict[str, Any]:
    convs = of_kind(operations, "Conv3D")
    rates = [each["rate"] for each in of_kind(operations, "SpatialDropout3D")]
    functions = [each["activation"] for each in of_kind(operations, "Activation")]
    return {
        "outputs": convs[-1]["filters"],
        "filters": convs[0]["filters"],
        "depth": len(of_kind(operations, "MaxPooling3D")),
        "activation": functions[0] if functions else "linear",
        "norm": "slab" if of_kind(operations, "SlabGroupNormalization") else "group",
        "dropout": rates[0] if rates else 0.0,
    }


def _from_weights(held: Sequence[HeldLayer]) -> dict[str, Any]:
    kernels = [each.kernel for each in held if each.kernel]
    heads = [each for each in kernels if each[:3] == (1, 1, 1)] or kernels
    return {
        "channels": kernels[0][3],
        "outputs": heads[-1][4],
        "filters": kernels[0][4],
        "depth": sum(each[:3] == (2, 2, 2) for each in kernels),
        "activation": "relu",
        "norm": "slab",
    }


VNET = Original(_graph, _from_operations, _from_weights, ("activation", "norm"))
