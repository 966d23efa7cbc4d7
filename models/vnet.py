"""VNet: a U-shaped network with group normalisation and spatial dropout."""

from functools import partial
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.activations import ACTIVATIONS, check_activation
from voxtune.models.family import UShape
from voxtune.models.layers import Conv, Head
from voxtune.models.norms import GroupNorm, SlabGroupNorm
from voxtune.models.run import Run
from voxtune.models.upsampling import RepeatConv, repeat_voxels

GroupNormName = Literal["slab", "group"]


def _norm(name: GroupNormName, channels: int, rngs: nnx.Rngs) -> SlabGroupNorm | GroupNorm:
    return (SlabGroupNorm if name == "slab" else GroupNorm)(channels, rngs=rngs)


class NormedConv(nnx.Module):
    """Convolution, activation, and then the normalisation.

    Where `repeat`, each voxel is repeated along each axis first, and the kernel is 2x2x2.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        *,
        repeat: bool = False,
        activation: str,
        norm: GroupNormName,
        rngs: nnx.Rngs,
    ) -> None:
        check_activation(activation)
        if repeat:
            self.conv: Conv = RepeatConv(channels, filters, 2, rngs=rngs)
        else:
            self.conv = Conv(channels, filters, rngs=rngs)
        self.norm = _norm(norm, filters, rngs)
        self.activation = activation

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, O]`, or twice D, H and W where `repeat`.

        Taps `conv`, `activation` and `norm`.
        """
        x = self.conv(x)
        run.tap(f"{path}/conv", x)
        x = ACTIVATIONS[self.activation](x)
        run.tap(f"{path}/activation", x)
        x = self.norm(x, run)
        run.tap(f"{path}/norm", x)
        return x


class Stage(nnx.Module):
    """Two normed convolutions, `unit1` and `unit2`, then spatial dropout if asked for."""

    def __init__(
        self,
        channels: int,
        filters: int,
        *,
        activation: str,
        norm: GroupNormName,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.unit1 = NormedConv(channels, filters, activation=activation, norm=norm, rngs=rngs)
        self.unit2 = NormedConv(filters, filters, activation=activation, norm=norm, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, broadcast_dims=(1, 2, 3)) if dropout else None

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, O]`; taps `dropout` too."""
        x = self.unit1(x, run, f"{path}/unit1")
        x = self.unit2(x, run, f"{path}/unit2")
        if self.dropout is not None:
            x = self.dropout(x, deterministic=not run.draws, rngs=run.rngs)
            run.tap(f"{path}/dropout", x)
        return x


class UpStage(nnx.Module):
    """Doubles the resolution, joins the skip connection and normalises both, then a stage."""

    def __init__(
        self,
        channels: int,
        filters: int,
        *,
        activation: str,
        norm: GroupNormName,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.up = NormedConv(
            channels, filters, repeat=True, activation=activation, norm=norm, rngs=rngs
        )
        self.norm = _norm(norm, 2 * filters, rngs)
        self.convs = Stage(
            2 * filters, filters, activation=activation, norm=norm, dropout=dropout, rngs=rngs
        )

    def __call__(self, x: Array, skip: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` and the skip `[B, 2D, 2H, 2W, O]` → `[B, 2D, 2H, 2W, O]`."""
        run.tap(f"{path}/repeat", repeat_voxels(x))  # the convolution does without
        x = self.up(x, run, f"{path}/up")
        x = jnp.concatenate([skip, x], axis=-1)
        run.tap(f"{path}/concat", x)
        x = self.norm(x, run)
        run.tap(f"{path}/norm", x)
        return self.convs(x, run, f"{path}/convs")


class WideHead(Head):
    """A 3x3x3 convolution and an activation before the head, of as many filters as outputs."""

    def __init__(self, channels: int, outputs: int, *, activation: str, rngs: nnx.Rngs) -> None:
        super().__init__(outputs, outputs, rngs=rngs)
        self.conv = Conv(channels, outputs, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, outputs]`; taps `conv`, `activation` and itself."""
        x = self.conv(x)
        run.tap(f"{path}/conv", x)
        x = ACTIVATIONS[self.activation](x)
        run.tap(f"{path}/activation", x)
        return super().__call__(x, run, path)


class VNet(UShape):
    """Nobrainer's `vnet` (after Milletari et al. 2016, doi 10.1109/3DV.2016.79).

    Level i of the encoder has two 3x3x3 convolutions with f 2^(i-1) filters, each followed by
    activation and normalisation, then a max-pool of 2; the bottom has the same pair without the
    pool. Level i of the decoder repeats each voxel, convolves with a 2x2x2 kernel and f 2^(i-1)
    filters, joins [skip, up], normalises and convolves twice. The head is a 3x3x3 convolution
    with activation to one channel an output, then a 1x1x1 convolution to logits. With f = 16 and
    three levels this is Nobrainer's network, to the last of its 1,403,059 parameters (one class).
    Unlike the paper's network it has no residual connections, and kernels of 3 instead of 5.

    After the bottom and each level of the decoder whole channels are dropped. Nobrainer drops them
    in prediction too, which makes that random. Here they are dropped in training, and in prediction
    where `rngs` are given; without, prediction repeats itself.

    Args:
        channels: input channels.
        outputs: logits for each voxel.
        filters: f, the filters of the first convolution, a multiple of four with slabs.
        depth: how often the resolution is halved.
        activation: a Keras name, "relu" in Nobrainer.
        norm: "slab" for Nobrainer's, whose groups are slabs of depth slices, or "group" for one
            whose groups are of channels, as Wu and He 2018 have it.
        dropout: share of channels dropped.
        rngs: source of the initial values.

    Raises:
        ValueError: `filters` are no multiple of four where `norm` is "slab", or there is no such
            activation.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        outputs: int,
        filters: int = 16,
        depth: int = 3,
        activation: str = "relu",
        norm: GroupNormName = "slab",
        dropout: float = 0.5,
        rngs: nnx.Rngs,
    ) -> None:
        self.depth = depth
        stage = partial(Stage, activation=activation, norm=norm, rngs=rngs)
        up = partial(UpStage, activation=activation, norm=norm, dropout=dropout, rngs=rngs)
        width = filters
        for level in range(1, depth + 1):
            entering = channels if level == 1 else width // 2
            setattr(self, f"encoder{level}", stage(entering, width, dropout=0.0))
            width *= 2
        self.bottom = stage(width // 2, width, dropout=dropout)
        for level in range(depth, 0, -1):
            width //= 2
            setattr(self, f"decoder{level}", up(2 * width, width))
        self.head = WideHead(filters, outputs, activation=activation, rngs=rngs)

    @property
    def receptive_field(self) -> None:
        """None: the norms take their statistics from the whole input."""
        return None
