"""The architectures that voxtune knows by name."""

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import jax
from flax import nnx
from jax import Array

from voxtune.models.arguments import check_arguments
from voxtune.models.bayesian_meshnet import BayesianMeshNet
from voxtune.models.errors import InputError
from voxtune.models.graph_net import GraphNet
from voxtune.models.highresnet import HighResNet
from voxtune.models.meshnet import MeshNet
from voxtune.models.resenc_unet import ResEncUNet
from voxtune.models.run import Tap
from voxtune.models.synthseg_unet import SynthSegUNet
from voxtune.models.unet import UNet
from voxtune.models.unetr import UNETR
from voxtune.models.vnet import VNet


class Network(Protocol):
    """What every family offers.

    A network of several inputs or outputs (a `GraphNet`) is called through `run` instead.
    """

    @property
    def min_multiple(self) -> int: ...
    @property
    def receptive_field(self) -> int | None: ...
    @property
    def min_local_depth(self) -> int: ...
    @property
    def fixed_block(self) -> tuple[int, int, int] | None: ...
    @property
    def head_paths(self) -> tuple[str, ...]: ...
    def levels(self) -> tuple[str, ...]: ...
    def level_of(self, path: str) -> str: ...
    def __call__(
        self,
        x: Array,
        *,
        train: bool = ...,
        rngs: nnx.Rngs | None = ...,
        tap: Tap = ...,
        remat: bool = ...,
        step: Array | None = ...,
        axis: str | None = ...,
    ) -> Array: ...


FAMILIES: Mapping[str, type] = {
    "bayesian_meshnet": BayesianMeshNet,
    "graph": GraphNet,
    "highresnet": HighResNet,
    "meshnet": MeshNet,
    "resenc_unet": ResEncUNet,
    "synthseg_unet": SynthSegUNet,
    "unet": UNet,
    "unetr": UNETR,
    "vnet": VNet,
}


def complete(family: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A family's arguments, with defaults for those that are not given."""
    usual = inspect.signature(vars(FAMILIES[family])["__init__"]).parameters.items()
    defaults = {name: each.default for name, each in usual if each.default is not each.empty}
    return {**defaults, **arguments}


def abstract(family: str, arguments: Mapping[str, Any]) -> Network:
    """A network with shapes in the place of arrays: no memory is taken.

    Args:
        family: a key of `FAMILIES`.
        arguments: keyword arguments of the family.

    Raises:
        InputError: the family is unknown, or does not take these arguments.
    """
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"The architecture '{family}' is not known; voxtune knows {known}.")
    try:
        check_arguments(FAMILIES[family], arguments)
        return nnx.eval_shape(lambda: FAMILIES[family](**arguments, rngs=nnx.Rngs(params=0)))
    except (TypeError, ValueError) as error:
        raise InputError(f"The architecture '{family}' cannot be built: {error}.") from error


def build(family: str, arguments: Mapping[str, Any], seed: int = 0) -> Network:
    """A network with freshly initialised parameters; arguments and errors as `abstract`."""
    graph = nnx.graphdef(abstract(family, arguments))

    @jax.jit
    def initialise(key: Array) -> nnx.State:
        return nnx.state(FAMILIES[family](**arguments, rngs=nnx.Rngs(params=key)))

    # One program, and XLA's own generator: the U-Net takes 3 s, one kernel at a time and JAX's
    # default generator 22 s, nearly all of it compiling (two CPU cores).
    return nnx.merge(graph, initialise(jax.random.key(seed, impl="rbg")))
