"""The families with the settings that their authors published, as a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from voxtune.models.families import Network, abstract
from voxtune.models.flops import flops
from voxtune.models.meshnet import NOBRAINER_DILATIONS
from voxtune.models.parameters import count


@dataclass(frozen=True)
class Entry:
    """A family with the settings of one published network, for one output.

    Attributes:
        name: of the network.
        family: a key of `voxtune.models.families.FAMILIES`.
        source: who published the architecture.
        arguments: what builds it, but for `outputs`.
        edge: of the cube that it is given, voxels.
    """

    name: str
    family: str
    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    edge: int = 128

    def network(self) -> Network:
        """The network, shapes in the place of arrays."""
        return abstract(self.family, {"outputs": 1, **self.arguments})


def flops_of(network: Network, edge: int) -> int:
    """Operations of a forward pass over one block of one channel, see `voxtune.models.flops`."""
    graph, state = nnx.split(network)
    block = jax.ShapeDtypeStruct((1, edge, edge, edge, 1), jnp.float32)
    return flops(lambda state, x: nnx.merge(graph, state)(x), state, block)


CATALOG = (
    Entry("U-Net", "unet", "Çiçek et al. 2016; Nobrainer `unet`"),
    Entry(
        "MeshNet, 71 filters",
        "meshnet",
        "Fedorov et al. 2017; Nobrainer `meshnet`",
        {"filters": 71, "dilations": NOBRAINER_DILATIONS[67]},
    ),
    Entry(
        "MeshNet, 21 filters",
        "meshnet",
        "brainchop `model18cls`",
        {"filters": 21, "dilations": (1, 2, 4, 8, 16, 8, 4, 2, 1), "norm": None},
    ),
    Entry("HighResNet", "highresnet", "Li et al. 2017; Nobrainer `highresnet`"),
    Entry("VNet", "vnet", "Milletari et al. 2016; Nobrainer `vnet`"),
    Entry("UNETR", "unetr", "Hatamizadeh et al. 2022; Nobrainer `unetr`", edge=96),
    Entry(
        "Bayesian MeshNet",
        "bayesian_meshnet",
        "McClure et al. 2019; Nobrainer `variational_meshnet`",
        {"dilations": NOBRAINER_DILATIONS[67]},
    ),
    Entry("SynthSeg's U-Net", "synthseg_unet", "Billot et al. 2023; SynthSeg, SynthSR"),
    Entry("ResEnc U-Net", "resenc_unet", "Isensee et al. 2024; nnU-Net ResEnc"),
)


def families_table() -> str:
    """The table as Markdown: parameters, receptive field, operations and source of each."""
    rows = ["| network | family | parameters | receptive field | GFLOP a block | after |"]
    rows.append("|---|---|---:|---:|---:|---|")
    for each in CATALOG:
        network = each.network()
        seen = network.receptive_field
        rows.append(
            f"| {each.name} | `{each.family}` | {count(network):,} | "
            f"{f'{seen}³' if seen else 'whole block'} | "
            f"{flops_of(network, each.edge) / 1e9:,.0f} ({each.edge}³) | {each.source} |"
        )
    return "\n".join(rows)
