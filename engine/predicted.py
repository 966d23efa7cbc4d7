"""What networks make of a whole volume, on the devices, and what leaves them."""

from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import entr

Inside = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Predicted:
    """What the passes over one volume `[D, H, W]` gave, on the devices.

    Volumes are held in larger ones, of few shapes, so that one program serves many scans; what is
    larger is cut away on the host.

    Attributes:
        held: mean over passes, of probabilities, or of a network's values, float32
            `[D', H', W', K]`.
        inside: where the volume lies in that.
        spread: variance over passes, divided by their number and summed over classes, float32
            `[D', H', W']`; None where it was not asked for.
        notes: what a person should know of how it came about, a sentence each.
    """

    held: Array
    inside: Inside
    spread: Array | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, mean: np.ndarray | Array) -> Self:
        """Probabilities, or values, `[D, H, W, K]`, in no larger volume."""
        depth, height, width = (slice(0, size) for size in mean.shape[:3])
        return cls(jnp.asarray(mean, jnp.float32), (depth, height, width))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the volume, voxels."""
        depth, height, width = (part.stop - part.start for part in self.inside)
        return depth, height, width

    @property
    def mean(self) -> Array:
        """Of probabilities, or of values, float32 `[D, H, W, K]`: a copy."""
        return self.held[self.inside]

    def winners(self, threshold: float | None = None) -> np.ndarray:
        """The class of each voxel, uint8 `[D, H, W]` (uint16 beyond 256 classes).

        See `most_probable`.
        """
        return np.asarray(_winners(self.held, threshold))[self.inside]

    def channel(self, index: int) -> np.ndarray:
        """The mean of one class, or output, float32 `[D, H, W]`."""
        return np.asarray(_channel(self.held, index))[self.inside]

    def entropy(self) -> np.ndarray:
        """Of the mean, in nats, float32 `[D, H, W]`: `voxtune.models.sampling.Sampled.entropy`."""
        return np.asarray(_entropy(self.held))[self.inside]

    def variance(self) -> np.ndarray:
        """Over passes, divided by their number and summed over classes, float32 `[D, H, W]`."""
        assert self.spread is not None
        return np.asarray(self.spread)[self.inside]

    def highest(self) -> np.ndarray:
        """The highest mean of each class in any voxel, float32 `[K]`."""
        ends = np.array([(part.start, part.stop) for part in self.inside], np.int32)
        return np.asarray(_highest(self.held, ends))


def most_probable(probabilities: Array, threshold: float | None = None) -> Array:
    """The class that wins, int32 `[...]` of `[..., K]`, of equals the first.

    With a threshold, of two classes the second wins above it.
    """
    if threshold is not None:
        return (probabilities[..., 1] > threshold).astype(jnp.int32)
    return probabilities.argmax(-1)


def class_dtype(classes: int) -> type[np.unsignedinteger]:
    """The type that so many classes, counted from 0, are held in."""
    return np.uint8 if classes <= 256 else np.uint16


@jax.jit
def _winners(held: Array, threshold: float | None) -> Array:
    return most_probable(held, threshold).astype(class_dtype(held.shape[-1]))


@jax.jit
def _channel(held: Array, index: int) -> Array:
    return held[..., index]


@jax.jit
def _entropy(held: Array) -> Array:
    return entr(held).sum(-1)


@jax.jit
def _highest(held: Array, ends: Array) -> Array:
    counted = jnp.ones((1, 1, 1, 1), bool)
    for axis in range(3):
        index = jnp.arange(held.shape[axis]).reshape([-1 if n == axis else 1 for n in range(4)])
        counted &= (ends[axis, 0] <= index) & (index < ends[axis, 1])
    return jnp.where(counted, held, -jnp.inf).max((0, 1, 2))
