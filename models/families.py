"""The architectures that voxtune knows by name."""

from collections.abc import Mapping
from typing import Any, Protocol

from flax import nnx
from jax import Array

from voxtune.models.errors import InputError
from voxtune.models.layers import Tap
from voxtune.models.meshnet import MeshNet
from voxtune.models.unet import UNet


class Network(Protocol):
    """What every family offers."""

    @property
    def min_multiple(self) -> int: ...
    @property
    def receptive_field(self) -> int: ...
    def levels(self) -> tuple[str, ...]: ...
    def __call__(
        self, x: Array, *, train: bool = ..., rngs: nnx.Rngs | None = ..., tap: Tap = ...
    ) -> Array: ...


FAMILIES: Mapping[str, type] = {"meshnet": MeshNet, "unet": UNet}


def build(family: str, arguments: Mapping[str, Any], seed: int = 0) -> Network:
    """A network of a family with freshly initialised parameters.

    Args:
        family: a key of `FAMILIES`.
        arguments: keyword arguments of the family.
        seed: of the initial values.

    Raises:
        InputError: the family is unknown, or does not take these arguments.
    """
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"The architecture '{family}' is not known; voxtune knows {known}.")
    try:
        return FAMILIES[family](**arguments, rngs=nnx.Rngs(params=seed))
    except TypeError as error:
        raise InputError(f"The architecture '{family}' cannot be built: {error}.") from error
