"""Nobrainer's UNETR as Keras has it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from voxtune.converters.originals.original import (
    Builder,
    HeldLayer,
    Operation,
    Original,
    norm_of,
    of_kind,
)
from voxtune.models.graph import Graph
from voxtune.models.unetr import decoder_units, levels_of

_UP: dict[str, Any] = {"kernel_size": [2, 2, 2], "strides": [2, 2, 2], "padding": "same"}


def graph_of(arguments: Mapping[str, Any]) -> Graph:
    """The graph of `voxtune.models.unetr.UNETR`, of Keras's own layers.

    Keras has no layer that adds a table to its input. A `LayerNormalization` of zeros gives its
    beta, so that the positions are one of shape `[N, width]` whose input was multiplied by 0.
    """
    size, patch, width = tuple(arguments["size"]), arguments["patch"], arguments["width"]
    depth, filters, norm = levels_of(patch), arguments["filters"], arguments["norm"]
    places = [n // patch for n in size]
    wide = [filters * 2**level for level in range(depth)]
    build = Builder(arguments["channels"], (size[0], size[1], size[2]))

    def volume(path: str, source: str) -> str:
        x = build.add("Permute", f"{path}/turned", source, dims=[2, 1])
        return build.add("Reshape", f"{path}/volume", x, target_shape=[*places, width])

    def up(path: str, source: str, filters: int) -> str:
        return build.add("Conv3DTranspose", f"{path}/up", source, filters=filters, **_UP)

    def units(path: str, source: str, filters: Sequence[int]) -> str:
        for number, each in enumerate(filters, start=1):
            source = build.unit(f"{path}/unit{number}", source, each, norm=norm)
        return source

    skips = [units("skip0", build.input, (filters // 2, filters))]
    x = _embedding(build, width, patch, places)
    for number in range(1, depth + 1):
        for block in range(1, arguments["blocks"] // depth + 1):
            x = _block(build, f"encoder{number}/block{block}", x, arguments)
        if number < depth:
            skip = volume(f"skip{number}", x)
            for step, each in enumerate(wide[: number - 1 : -1], start=1):
                path = f"skip{number}/up{step}"
                skip = build.unit(f"{path}/unit", up(path, skip, each), each, norm=norm)
            skips.append(skip)
    x = up("bottom", volume("bottom", x), wide[-1])
    for level in reversed(range(depth)):
        path = f"decoder{level}"
        x = build.add("Concatenate", f"{path}/concat", skips.pop(), x, axis=-1)
        x = units(f"{path}/convs", x, [wide[level]] * decoder_units(level, depth))
        x = up(path, x, wide[level - 1]) if level else x
    return build.graph(build.conv("head", x, arguments["outputs"], size=1))


def _embedding(build: Builder, width: int, patch: int, places: Sequence[int]) -> str:
    count = places[0] * places[1] * places[2]
    kernel: dict[str, Any] = {
        "kernel_size": [patch] * 3,
        "strides": [patch] * 3,
        "padding": "valid",
    }
    x = build.add("Conv3D", "embedding/patches", build.input, filters=width, **kernel)
    x = build.add("Reshape", "embedding/tokens", x, target_shape=[count, width])
    x = build.add("Dense", "embedding/projection", x, units=width)
    zeros = build.add("Rescaling", "embedding/zeros", x, scale=0.0)
    settings: dict[str, Any] = {"axis": [1, 2], "scale": False}
    position = build.add("LayerNormalization", "embedding/position", zeros, **settings)
    return build.add("Add", "embedding/add", x, position)


def _block(build: Builder, path: str, source: str, arguments: Mapping[str, Any]) -> str:
    """The layers of `voxtune.models.transformer.TransformerBlock`."""
    width, heads, rate = arguments["width"], arguments["heads"], arguments["dropout"]

    def add(kind: str, name: str, *inputs: str, **config: Any) -> str:
        return build.add(kind, f"{path}/{name}", *inputs, **config)

    def dropped(name: str, source: str, rate: float) -> str:
        return add("Dropout", name, source, rate=rate) if rate else source

    x = add("LayerNormalization", "attention_norm", source, epsilon=1e-6)
    settings = {"num_heads": heads, "key_dim": width // heads, "dropout": rate}
    x = add("MultiHeadAttention", "attention", x, x, **settings)
    source = add("Add", "attention_add", dropped("attention_dropout", x, rate), source)
    x = add("LayerNormalization", "mlp_norm", source, epsilon=1e-6)
    x = add("Dense", "mlp_in", x, units=arguments["mlp"])
    x = add("Activation", "mlp_activation", x, activation="relu")
    x = add("Dense", "mlp_out", dropped("mlp_dropout", x, arguments["mlp_dropout"]), units=width)
    return add("Add", "add", x, source)


def _from_operations(operations: Sequence[Operation]) -> dict[str, Any]:
    convs, dense = of_kind(operations, "Conv3D"), of_kind(operations, "Dense")
    attention = of_kind(operations, "MultiHeadAttention")
    strided = [each for each in convs if each["strides"] != (1, 1, 1)]
    volumes = [each["target_shape"] for each in of_kind(operations, "Reshape")]
    patches, places = strided[0], volumes[-1][:3]
    kinds = [each.kind for each in operations]
    patch = patches["kernel_size"][0]
    rates = [
        each.settings["rate"]
        for each in operations
        if each.kind == "Dropout" and kinds[each.inputs[0]] == "Activation"
    ]
    return {
        "outputs": convs[-1]["filters"],
        "size": [n * patch for n in places],
        "width": patches["filters"],
        "blocks": len(attention),
        "heads": attention[0]["num_heads"],
        "patch": patch,
        "mlp": dense[1]["units"],
        "filters": convs[-2]["filters"],
        "dropout": attention[0]["dropout"],
        "mlp_dropout": rates[0] if rates else 0.0,
        "norm": norm_of(operations),
    }


# --- as Nobrainer's class saves it -------------------------------------------------------------

# Weights of the embedding and of a transformer block, as the class makes them. Before them it makes
# one that it never reads.
_EMBEDDING = (
    ("projection", "kernel"), ("projection", "bias"), ("position", "beta"),
    ("patches", "kernel"), ("patches", "bias"),
)  # fmt: skip
_BLOCK = (
    *((layer, weight) for layer in ("attention_norm", "mlp_norm") for weight in ("gamma", "beta")),
    *((layer, weight) for layer in ("mlp_in", "mlp_out") for weight in ("kernel", "bias")),
    *(
        ("attention", f"{part}/{weight}")
        for part in ("query", "key", "value", "attention_output")
        for weight in ("kernel", "bias")
    ),
)


def stored_arguments(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the weights of Nobrainer's class tell of the arguments: all but `size` and `heads`.

    Args:
        arrays: name → array, those that are trained in the order of the class.

    Raises:
        LookupError: they are not those of the class.
    """
    ends = [name.rpartition("/")[2] for name in arrays]
    shapes = [each.shape for name, each in arrays.items() if "moving_" not in name][1:]
    blocks = (ends.count("gamma") - ends.count("moving_mean")) // 2
    kernel = shapes[_EMBEDDING.index(("patches", "kernel"))]
    return {
        "channels": kernel[3],
        "outputs": shapes[-1][0],
        "width": kernel[4],
        "blocks": blocks,
        "patch": kernel[0],
        "mlp": shapes[len(_EMBEDDING) + _BLOCK.index(("mlp_in", "kernel"))][1],
        "filters": 2 * shapes[len(_EMBEDDING) + blocks * len(_BLOCK)][-1],
        "norm": "batch",
    }


def stored_order(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Layer and weight, in the order of the class; statistics stand beside what is trained."""
    depth = levels_of(arguments["patch"])

    def conv(path: str) -> Iterator[tuple[str, str]]:
        yield from ((path, weight) for weight in ("kernel", "bias"))

    def unit(path: str) -> Iterator[tuple[str, str]]:
        yield from conv(f"{path}/conv")
        norm = ("gamma", "beta", "moving_mean", "moving_variance")
        yield from ((f"{path}/norm", weight) for weight in norm)

    yield from ((f"embedding/{layer}", weight) for layer, weight in _EMBEDDING)
    for number in range(1, depth + 1):
        for block in range(1, arguments["blocks"] // depth + 1):
            path = f"encoder{number}/block{block}"
            yield from ((f"{path}/{layer}", weight) for layer, weight in _BLOCK)
    for number in (1, 2):
        yield from unit(f"skip0/unit{number}")
    for level in range(1, depth):
        for step in range(1, depth - level + 1):
            yield from conv(f"skip{level}/up{step}/up")
            yield from unit(f"skip{level}/up{step}/unit")
    yield from conv("bottom/up")
    for level in reversed(range(depth)):
        for number in range(1, decoder_units(level, depth) + 1):
            yield from unit(f"decoder{level}/convs/unit{number}")
        yield from conv(f"decoder{level}/up" if level else "head")


def _from_weights(held: Sequence[HeldLayer]) -> dict[str, Any]:
    """Of a file that holds Nobrainer's class as one layer."""
    (layer,) = held
    told = stored_arguments(layer.arrays)
    (positions,) = (each for name, each in layer.arrays.items() if name.endswith("/embeddings"))
    count = positions.shape[0]
    edge = round(count ** (1 / 3))
    places = [edge] * 3 if edge**3 == count else [count, 1, 1]
    heads = max(1, told["width"] // 64)  # 64 channels a head, as nearly all transformers have
    return {**told, "size": [n * told["patch"] for n in places], "heads": heads}


UNETR = Original(graph_of, _from_operations, _from_weights, ("size", "heads"))
