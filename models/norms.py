"""Normalisations; statistics are float32 whatever the type of the values.

Each takes `[B, D, H, W, C]` and gives the same shape and type. Parameters are `scale` and `bias`,
statistics `mean` and `var`.
"""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from voxtune.models.freezing import thawed
from voxtune.models.run import Run

# The fast variance, E[x²] - E[x]², loses digits where the mean is large: nowhere is it used.


class BatchNorm(nnx.BatchNorm):
    """Keras's `BatchNormalization`: epsilon 1e-3, momentum 0.99.

    Attributes:
        until: the training step until which it is frozen, see `voxtune.models.freezing`.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        settings: dict[str, Any] = {"epsilon": 1e-3, "momentum": 0.99, "use_fast_variance": False}
        super().__init__(channels, **settings, rngs=rngs)
        self.until = 0.0

    def __call__(self, x: Array, run: Run) -> Array:  # type: ignore[override]  # not nnx's options
        """Normalises by the batch in training unless frozen, by the running statistics else.

        Of a batch that is split over a mapped axis by the moments of the whole.
        """
        if self.axis_name != run.axis:  # a module that was not made in this trace cannot be set
            self.axis_name = run.axis
        normalise = super().__call__
        if not run.train or self.until == math.inf:
            return normalise(x, use_running_average=True).astype(x.dtype)
        if not self.until:
            return normalise(x, use_running_average=False).astype(x.dtype)
        moves, statistics = thawed(self.until, run), (self.mean, self.var)
        frozen, before = normalise(x, use_running_average=True), [each[...] for each in statistics]
        moving = normalise(x, use_running_average=False)
        for each, old in zip(statistics, before, strict=True):
            each.set_value(jnp.where(moves, each[...], old))
        return jnp.where(moves, moving, frozen).astype(x.dtype)


def group_count(channels: int) -> int:
    """Groups of `GroupNorm`: eight, or the most that divide both eight and the channels."""
    return math.gcd(8, channels)


class GroupNorm(nnx.GroupNorm):
    """Group normalisation (Wu and He 2018, doi 10.1007/978-3-030-01261-8_1), epsilon 1e-5."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        settings: dict[str, Any] = {"epsilon": 1e-5, "use_fast_variance": False}
        super().__init__(channels, num_groups=group_count(channels), **settings, rngs=rngs)

    def __call__(self, x: Array, run: Run) -> Array:  # type: ignore[override]  # not nnx's options
        """Normalises each group of channels of each scan."""
        return super().__call__(x).astype(x.dtype)


class InstanceNorm(nnx.InstanceNorm):
    """Instance normalisation with scale and bias, epsilon 1e-5, as nnU-Net has it."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(channels, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Array, run: Run) -> Array:  # type: ignore[override]  # not nnx's options
        """Normalises each channel of each scan."""
        return super().__call__(x).astype(x.dtype)


class SlabGroupNorm(nnx.Module):
    """Nobrainer's `GroupNormalization`: four groups that are slabs of depth, epsilon 1e-5.

    Nobrainer reads `[B, D, H, W, C]` as `[B, 4, D, H, W, C / 4]` without moving the channels to
    the front. So a group is a run of a quarter of the values, as a rule a slab of depth slices
    with all their channels, and scale and bias vary within it with a period of C / 4 channels.

    Args:
        channels: a multiple of four.
        rngs: unused: nothing is random at the start.

    Raises:
        ValueError: the channels are no multiple of four.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        del rngs
        if channels % SLABS:
            raise ValueError(f"{channels} channels are not {SLABS} groups of the same size")
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array, run: Run) -> Array:
        """Normalises each slab of each scan."""
        del run
        return normalise_slabs(x, self.scale[...], self.bias[...])


SLABS = 4
_AXES = "dhwp"  # depth, height, width, part of a voxel


def normalise_slabs(x: Array, scale: Array, bias: Array) -> Array:
    """What `SlabGroupNorm` computes, without reading the values in another shape.

    Places (depth slices, or rows, voxels and parts of voxels where a slab ends inside a slice) are
    summed each on its own, and then by slab: a product with a matrix of zeros and ones. Where
    depth is split over devices that is one all-reduce of a few numbers; reading the values as
    `[B, 4, ...]` would gather them all.

    Args:
        x: `[B, D, H, W, C]`.
        scale: `[C]`.
        bias: `[C]`.

    Returns:
        `[B, D, H, W, C]`, of the type of `x`.
    """
    voxels, period = math.prod(x.shape[1:4]), x.shape[4] // SLABS
    parts = SLABS if voxels % SLABS else 1  # a slab ends inside a voxel
    values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    values = values.reshape(*x.shape[:4], parts, x.shape[4] // parts)
    # The leading axes whose places lie in one slab each, as few as will do.
    kept = next(n for n in range(1, 5) if math.prod(values.shape[1 : 1 + n]) % SLABS == 0)
    shape, rest = values.shape[1 : 1 + kept], (1,) * (4 - kept)
    places, axes = math.prod(shape), _AXES[:kept]
    slab = jnp.arange(places).reshape(shape) * SLABS // places
    belongs = jax.nn.one_hot(slab, SLABS, dtype=values.dtype)
    # A TPU rounds products to bfloat16 unless told not to.
    einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)

    def slab_means(values: Array) -> Array:
        """Of each place the mean of its slab, `[B, *shape, 1, ...]`."""
        sums = values.sum(range(1 + kept, 6))
        means = einsum(f"b{axes},{axes}s->bs", sums, belongs) / (voxels * period)
        spread = einsum(f"bs,{axes}s->b{axes}", means, belongs)
        return spread.reshape(*spread.shape, *rest, 1)

    def of_places(parameter: Array) -> Array:
        """Of each place the values of its slab, which repeat along the channels."""
        repeated = jnp.tile(parameter.reshape(SLABS, period), SLABS // parts)
        spread = einsum(f"sc,{axes}s->{axes}c", repeated.astype(values.dtype), belongs)
        return spread.reshape(*shape, *rest, spread.shape[-1])

    centred = values - slab_means(values)
    spread = lax.rsqrt(slab_means(centred**2) + 1e-5)
    result = centred * spread * of_places(scale) + of_places(bias)
    return result.reshape(x.shape).astype(x.dtype)


Norm = BatchNorm | GroupNorm | InstanceNorm
NormName = Literal["batch", "group", "instance"]
WIDE_NORMS = ("group", "instance")  # a value depends on the whole input in prediction too
NORMS: dict[str, type[Norm]] = {
    "batch": BatchNorm,
    "group": GroupNorm,
    "instance": InstanceNorm,
}


def make_norm(name: str | None, channels: int, *, rngs: nnx.Rngs) -> Norm | None:
    """The normalisation of a name in `NORMS`, None for none.

    Raises:
        ValueError: there is none of that name.
    """
    if name is not None and name not in NORMS:
        raise ValueError(f"norm {name!r} is none of {', '.join(NORMS)}")
    return NORMS[name](channels, rngs=rngs) if name else None
