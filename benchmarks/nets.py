"""The networks that are measured, with what they are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from voxtune.engine.step import split
from voxtune.models.families import abstract, build


@dataclass(frozen=True)
class Net:
    """A network.

    Attributes:
        title: for people.
        family: a key of `voxtune.models.families.FAMILIES`.
        arguments: of the family.
    """

    title: str
    family: str
    arguments: Mapping[str, Any]


NETS = {
    "unet": Net("Nobrainer U-Net", "unet", {"outputs": 2}),
    "meshnet": Net(
        "brainchop MeshNet", "meshnet", {"outputs": 3, "activation": "elu", "norm": None}
    ),
}


def batch_of(shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """A random image `[B, D, H, W, 1]`, and as its label `[B, D, H, W]` where it is above 1.

    Args:
        shape: `[B, D, H, W]`.
    """
    image = np.random.default_rng(0).normal(size=(*shape, 1)).astype(np.float32)
    return image, (image[..., 0] > 1).astype(np.uint8)


def in_order(net: Net, params: Any) -> list[tuple[tuple[str, ...], bool]]:
    """Paths of the parameters from input to output as Keras orders them; whether transposed."""
    levels = abstract(net.family, dict(net.arguments)).levels()
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = [tuple(key.key for key in path) for path, _ in flat]
    paths.sort(key=lambda p: (levels.index(p[0]), p[1] != "up", p[1:-1], p[-1] == "bias"))
    return [(path, path[-2:] == ("up", "kernel")) for path in paths]


def keras_weights(net: Net) -> list[np.ndarray]:
    """Random parameters as Keras stores them, from input to output."""
    _, params, _ = split(build(net.family, dict(net.arguments)))
    return as_keras(net, params)


def as_keras(net: Net, params: Any) -> list[np.ndarray]:
    """Parameters as Keras stores them, from input to output.

    Args:
        net: the network.
        params: its parameters, a nested dict.
    """
    arrays = []
    for path, transposed in in_order(net, params):
        value: Any = params
        for name in path:
            value = value[name]
        arrays.append(np.asarray(value.swapaxes(-1, -2) if transposed else value))
    return arrays
