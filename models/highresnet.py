"""HighResNet: residual blocks of dilated convolutions at full resolution."""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.activations import ACTIVATIONS, check_activation
from voxtune.models.family import Chain
from voxtune.models.layers import Conv, Head, Kernel
from voxtune.models.norms import BatchNorm
from voxtune.models.run import Run

STAGES = 3  # each with twice the filters and twice the dilation of the one before


class Stem(Kernel):
    """The convolution that the image enters by."""

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, O]`; taps itself."""
        x = self.convolved(x)
        run.tap(path, x)
        return x


class PreActivated(nnx.Module):
    """Batch normalisation and activation, and then the convolution."""

    def __init__(
        self, channels: int, filters: int, *, dilation: int, activation: str, rngs: nnx.Rngs
    ) -> None:
        check_activation(activation)
        self.norm = BatchNorm(channels, rngs=rngs)
        self.conv = Conv(channels, filters, dilation=dilation, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, O]`; taps `norm`, `activation` and `conv`."""
        x = self.norm(x, run)
        run.tap(f"{path}/norm", x)
        x = ACTIVATIONS[self.activation](x)
        run.tap(f"{path}/activation", x)
        x = self.conv(x)
        run.tap(f"{path}/conv", x)
        return x


class ResidualBlock(nnx.Module):
    """Two pre-activated convolutions, `unit1` and `unit2`, added to what they were given.

    Where there are fewer channels than filters, channels of zeros are put before and behind them,
    as many on either side: Nobrainer's `ZeroPadding3DChannels`.
    """

    def __init__(
        self, channels: int, filters: int, *, dilation: int, activation: str, rngs: nnx.Rngs
    ) -> None:
        self.missing = filters - channels
        unit = partial(PreActivated, dilation=dilation, activation=activation, rngs=rngs)
        self.unit1, self.unit2 = unit(filters, filters), unit(filters, filters)

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, filters]`; taps `pad` and `add` too."""
        if self.missing:
            x = jnp.pad(x, [(0, 0)] * 4 + [(self.missing // 2,) * 2])
            run.tap(f"{path}/pad", x)
        y = self.unit2(self.unit1(x, run, f"{path}/unit1"), run, f"{path}/unit2")
        y = y + x
        run.tap(f"{path}/add", y)
        return y


class HighResNet(Chain):
    """Nobrainer's `highresnet` (after Li et al. 2017, doi 10.1007/978-3-319-59050-9_28).

    A 3x3x3 convolution, then three stages of residual blocks with f, 2f and 4f filters and
    dilations of 1, 2 and 4, then a 1x1x1 convolution to logits. Each block has two pre-activated
    3x3x3 convolutions; between stages the channels are padded with zeros. With f = 16 and three
    blocks a stage this is Nobrainer's network, to the last of its 874,785 parameters and
    statistics (one class). Unlike the paper's network, Nobrainer's has no 1x1x1 convolution of 80
    filters and no dropout before the last layer; it takes a dropout rate, but uses it nowhere.
    Kernels start as Keras has them, Glorot uniform.

    Args:
        channels: input channels.
        outputs: logits for each voxel.
        filters: f, the filters of the first convolution, an even number.
        blocks: residual blocks of each stage.
        activation: a Keras name, "relu" in the paper.
        rngs: source of the initial values.

    Raises:
        ValueError: `filters` is odd: zeros cannot be put on both sides alike; or there is no such
            activation.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        outputs: int,
        filters: int = 16,
        blocks: int = 3,
        activation: str = "relu",
        rngs: nnx.Rngs,
    ) -> None:
        if filters % 2:
            raise ValueError(f"its argument 'filters' is an even number, not {filters}")
        self.blocks = blocks
        self.stem = Stem(channels, filters, rngs=rngs)
        width = filters
        for number in range(1, STAGES * blocks + 1):
            scale = 2 ** ((number - 1) // blocks)
            block = ResidualBlock(
                width, filters * scale, dilation=scale, activation=activation, rngs=rngs
            )
            setattr(self, f"block{number}", block)
            width = filters * scale
        self.head = Head(width, outputs, rngs=rngs)

    @property
    def receptive_field(self) -> int:
        """Edge of the cube of input voxels that one output voxel depends on, voxels."""
        dilations = sum(2**stage for stage in range(STAGES))
        return 1 + 2 * (1 + 2 * self.blocks * dilations)

    def levels(self) -> tuple[str, ...]:
        """Names of the stages, from input to output."""
        blocks = (f"block{number}" for number in range(1, STAGES * self.blocks + 1))
        return ("stem", *blocks, "head")

    @property
    def min_local_depth(self) -> int:
        """Fewest depth slices that a device can hold where depth is split, voxels."""
        return 2 ** (STAGES - 1)  # the largest dilation
