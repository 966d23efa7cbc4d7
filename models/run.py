"""How a network is run: what its levels hand on to each other beside the arrays."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flax import nnx
from jax import Array

Result = TypeVar("Result", Array, tuple[Array, Array])

# A part of a network: arrays, `run` (how the network is run) and `path` (its own) → array or two.
Level = Callable[..., Result]


class Tap(Protocol):
    """Receives each intermediate result under its path, to compare a network layer by layer."""

    def __call__(self, path: str, value: Array, /) -> None: ...


def ignore(path: str, value: Array) -> None:
    """The tap of everyday calls."""


@dataclass(frozen=True)
class Run:
    """How a network is run.

    Attributes:
        train: whether statistics are taken from the batch.
        rngs: source of dropout and of random weights: where there is one, values are dropped and
            weights drawn; a network that does either must have one where `train`.
        tap: receives each intermediate result under its path.
        remat: whether the backward pass computes the inside of each level again, instead of
            keeping it from the forward pass: less memory for a third more work. Taps inside levels
            are not called then.
        step: number of the training step, int32, for norms that are frozen until one.
        axis: name of the mapped axis (`jax.pmap`) that the batch is split over, for norms that
            take statistics from the whole of it; None where the batch is here.
    """

    train: bool = False
    rngs: nnx.Rngs | None = None
    tap: Tap = ignore
    remat: bool = False
    step: Array | None = None
    axis: str | None = None

    @property
    def draws(self) -> bool:
        """Whether values are dropped and weights drawn."""
        return self.train or self.rngs is not None

    def level(self, module: Level[Result], *inputs: Array, path: str) -> Result:
        """What a level gives, by `jax.checkpoint` where `remat`."""
        if not self.remat:
            return module(*inputs, run=self, path=path)

        def again(module: Level[Result], rngs: nnx.Rngs | None, *inputs: Array) -> Result:
            run = dataclasses.replace(self, rngs=rngs, tap=ignore)
            return module(*inputs, run=run, path=path)

        return nnx.remat(again)(module, self.rngs, *inputs)
