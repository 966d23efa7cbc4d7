"""The networks that are measured, with what they are given."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from voxtune.converters.families import as_graph
from voxtune.converters.from_flax import to_graph
from voxtune.models.families import Network, build


@dataclass(frozen=True)
class Net:
    """A network.

    Attributes:
        title: for people.
        family: a key of `voxtune.models.families.FAMILIES`.
        arguments: of the family.
        keras: whether it can be built of Keras's layers, and of its operations.
    """

    title: str
    family: str
    arguments: Mapping[str, Any]
    keras: bool = True

    def at(self, block: Sequence[int]) -> "Net":
        """The network for blocks of that shape, voxels: another one where positions are learned."""
        if "size" not in self.arguments:
            return self
        return dataclasses.replace(self, arguments={**self.arguments, "size": list(block)})

    def built(self) -> Network:
        """The network with random weights; norms' scales that start at zero are one.

        Those keep their branches out of the output, and gradients of all that lies in them at zero:
        a first step would show nothing of what programs compute there.
        """
        network = build(self.family, dict(self.arguments))
        state = nnx.state(network, nnx.Param)
        for path, variable in nnx.to_flat_state(state):
            if path[-1] == "scale" and not variable[...].any():
                variable.set_value(jnp.ones_like(variable[...]))
        nnx.update(network, state)
        return network


_UNET = {"outputs": 2}
# As their makers trained them, with two classes where they had one; where a peer computes the same,
# without dropout, which is random.
NETS = {
    "unet": Net("Nobrainer U-Net", "unet", _UNET),
    "meshnet": Net(
        "brainchop MeshNet", "meshnet", {"outputs": 3, "activation": "elu", "norm": None}
    ),
    "bayesian_meshnet": Net(
        "Nobrainer variational MeshNet", "bayesian_meshnet", {"outputs": 2}, keras=False
    ),
    "graph": Net(
        "Nobrainer U-Net as a graph",
        "graph",
        {"graph": as_graph("unet", _UNET).to_json(), "channels": 1, **_UNET},
    ),
    "highresnet": Net("Nobrainer HighResNet", "highresnet", {"outputs": 2}),
    "resenc_unet": Net("nnU-Net ResEnc", "resenc_unet", {"outputs": 2}),
    "synthseg_unet": Net("SynthSeg U-Net", "synthseg_unet", {"outputs": 33}),
    "unetr": Net(
        "Nobrainer UNETR",
        "unetr",
        {"outputs": 2, "size": [96, 96, 96], "dropout": 0.0, "mlp_dropout": 0.0},
    ),
    "vnet": Net("Nobrainer VNet", "vnet", {"outputs": 2}, keras=False),
}
MAIN: tuple[str, ...] = ("unet", "meshnet")  # that all suites measure, and PyTorch has too


def batch_of(shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """A random image `[B, D, H, W, 1]`, and as its label `[B, D, H, W]` where it is above 1.

    Args:
        shape: `[B, D, H, W]`.
    """
    image = np.random.default_rng(0).normal(size=(*shape, 1)).astype(np.float32)
    return image, (image[..., 0] > 1).astype(np.uint8)


def for_peers(
    net: Net, params: Any, statistics: Any, activation: str = "linear"
) -> dict[str, np.ndarray]:
    """What peers read: the network's `graph` as JSON, and each `weight/LAYER:NAME`.

    Layers are called as in Keras, which takes no slashes: `encoder1.unit1.conv`.

    Args:
        net: the network.
        params: its parameters, a nested dict.
        statistics: its running means and variances, likewise.
        activation: of its outputs: `linear`, `sigmoid` or `softmax`.
    """
    graph, weights = to_graph(net.family, net.arguments, activation, _by_path(params, statistics))
    named = {
        f"weight/{layer.replace('/', '.')}:{name}": array
        for layer, arrays in weights.items()
        for name, array in arrays.items()
    }
    return {"graph": np.array(json.dumps(graph.to_json()).replace("/", ".")), **named}


def compared(net: Net, params: Any, statistics: Any) -> dict[str, np.ndarray]:
    """The parameters by which a step is compared with a peer's: LAYER:NAME → array as Keras's.

    Kernels alone where there are norms or attention: those undo a bias of what they read, whose
    gradient is nothing but rounding.
    """
    kinds = {each.kind for each in as_graph(net.family, net.arguments).layers}
    undone = any("Normalization" in each or "Attention" in each for each in kinds)
    return {
        name.removeprefix("weight/"): array
        for name, array in for_peers(net, params, statistics).items()
        if name.startswith("weight/") and (name.endswith("kernel") or not undone)
    }


def _by_path(*trees: Any) -> dict[str, jax.Array]:
    flat, _ = jax.tree_util.tree_flatten_with_path(trees)
    return {"/".join(str(key.key) for key in path[1:]): value for path, value in flat}
