"""nnU-Net's residual-encoder U-Net."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.family import Family
from voxtune.models.layers import Conv, ConvTranspose, Head
from voxtune.models.lowering import conv_strided
from voxtune.models.norms import InstanceNorm
from voxtune.models.run import Run

SLOPE = 0.01  # of PyTorch's LeakyReLU; Keras's are steeper

# PyTorch's `kaiming_normal_(a=SLOPE)`. It takes the second axis of a kernel for its inputs, which
# are the outputs where the convolution is transposed.
_HE = nnx.initializers.variance_scaling(2 / (1 + SLOPE**2), "fan_in", "normal")
_HE_TRANSPOSED = nnx.initializers.variance_scaling(2 / (1 + SLOPE**2), "fan_out", "normal")


def average_pool(x: Array, size: int) -> Array:
    """Mean of each block of `size`³ voxels: `[B, D, H, W, C]` → `[B, D/s, H/s, W/s, C]`."""
    batch, depth, height, width, channels = x.shape
    blocks = x.reshape(
        batch, depth // size, size, height // size, size, width // size, size, channels
    )
    return blocks.mean((2, 4, 6))


class StridedConv(Conv):
    """3D convolution that keeps every `stride`-th place, padded alike on both sides."""

    def __init__(self, channels: int, filters: int, stride: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(channels, filters, initialise=_HE, rngs=rngs)
        self.stride = stride

    def linear(self, x: Array) -> Array:
        """`[B, D, H, W, C]` → `[B, D / stride, H / stride, W / stride, O]`, without bias."""
        return conv_strided(x, self.kernel[...].astype(x.dtype), self.stride)


class NormedConv(nnx.Module):
    """Convolution and instance normalisation, then a leaky ReLU if it is `active`."""

    def __init__(
        self,
        channels: int,
        filters: int,
        size: int = 3,
        *,
        stride: int = 1,
        use_bias: bool = True,
        active: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        if stride > 1:
            self.conv: Conv = StridedConv(channels, filters, stride, rngs=rngs)
        else:
            self.conv = Conv(channels, filters, size, use_bias=use_bias, initialise=_HE, rngs=rngs)
        self.norm = InstanceNorm(filters, rngs=rngs)
        self.active = active

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D', H', W', O]`; taps `conv`, `norm` and `activation`."""
        x = self.conv(x)
        run.tap(f"{path}/conv", x)
        x = self.norm(x, run)
        run.tap(f"{path}/norm", x)
        if self.active:
            x = jax.nn.leaky_relu(x, SLOPE)
            run.tap(f"{path}/activation", x)
        return x


class ResidualBlock(nnx.Module):
    """Two normed convolutions, `unit1` and `unit2`, added to a shortcut, then a leaky ReLU.

    As in ResNet-D (He et al. 2019, doi 10.1109/CVPR.2019.00065) the shortcut is an average pool
    where there is a stride, and a 1x1x1 convolution without bias, normalised, where the channels
    change. The scale of the last norm before the sum starts at zero.
    """

    def __init__(self, channels: int, filters: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.unit1 = NormedConv(channels, filters, stride=stride, rngs=rngs)
        self.unit2 = NormedConv(filters, filters, active=False, rngs=rngs)
        self.unit2.norm.scale = nnx.Param(jnp.zeros(filters))
        self.skip = (
            NormedConv(channels, filters, 1, use_bias=False, active=False, rngs=rngs)
            if channels != filters
            else None
        )
        self.stride = stride

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D / stride, H / stride, W / stride, filters]`."""
        y = self.unit2(self.unit1(x, run, f"{path}/unit1"), run, f"{path}/unit2")
        if self.stride > 1:
            x = average_pool(x, self.stride)
            run.tap(f"{path}/pool", x)
        if self.skip is not None:
            x = self.skip(x, run, f"{path}/skip")
        x = y + x
        run.tap(f"{path}/add", x)
        x = jax.nn.leaky_relu(x, SLOPE)
        run.tap(f"{path}/activation", x)
        return x


class Stage(nnx.Module):
    """Residual blocks one after the other, `block1` and so on; the first has the stride."""

    def __init__(
        self, channels: int, filters: int, blocks: int, stride: int, *, rngs: nnx.Rngs
    ) -> None:
        self.blocks = blocks
        for number in range(1, blocks + 1):
            entering, step = (channels, stride) if number == 1 else (filters, 1)
            setattr(self, f"block{number}", ResidualBlock(entering, filters, step, rngs=rngs))

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D / stride, H / stride, W / stride, filters]`."""
        for number in range(1, self.blocks + 1):
            x = getattr(self, f"block{number}")(x, run, f"{path}/block{number}")
        return x


class UpStage(nnx.Module):
    """Raises the resolution, joins the skip connection, then normed convolutions."""

    def __init__(
        self, channels: int, filters: int, convs: int, stride: int, *, rngs: nnx.Rngs
    ) -> None:
        self.up = ConvTranspose(channels, filters, stride, initialise=_HE_TRANSPOSED, rngs=rngs)
        self.convs = convs
        for number in range(1, convs + 1):
            entering = 2 * filters if number == 1 else filters
            setattr(self, f"unit{number}", NormedConv(entering, filters, rngs=rngs))

    def __call__(self, x: Array, skip: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` and the skip `[B, sD, sH, sW, O]` → `[B, sD, sH, sW, O]`."""
        x = self.up(x)
        run.tap(f"{path}/up", x)
        x = jnp.concatenate([x, skip], axis=-1)
        run.tap(f"{path}/concat", x)
        for number in range(1, self.convs + 1):
            x = getattr(self, f"unit{number}")(x, run, f"{path}/unit{number}")
        return x


class ResEncUNet(Family):
    """nnU-Net's residual-encoder U-Net (Isensee et al. 2024, doi 10.1007/978-3-031-72114-4_47).

    A 3x3x3 convolution (the stem), then stages of residual blocks, each from the second on at a
    lower resolution; the decoder raises the resolution by transposed convolutions whose kernels
    equal their strides, joins [up, skip] and convolves. Every convolution but the head is followed
    by instance normalisation and, where no shortcut is added first, a leaky ReLU. It equals
    `ResidualEncoderUNet` of the package dynamic-network-architectures.

    The default arguments are what nnU-Net plans for cubes of 128 isotropic voxels, with its
    presets M, L and XL alike: those differ in the memory that is aimed at, and so in block shape
    and batch. With larger blocks they have one stage more: 320 features, 6 blocks, stride 2. With
    one channel and two outputs it has 102,348,226 parameters.

    With deep supervision each stage of the decoder has a head, and in training the network gives
    a tuple of logits, from the full resolution downwards; prediction leaves the others out, and so
    does an export to Keras. nnU-Net counts them whether used or not, 1,544 parameters more.

    Kernels are cubes and strides the same along each axis, where nnU-Net plans flat ones for
    anisotropic voxels. Values start as in nnU-Net: kernels He normal, biases zero, and zero for
    the scale of the last norm of each residual block.

    Args:
        channels: input channels.
        outputs: logits for each voxel.
        features: channels of each stage, from the highest resolution to the lowest.
        blocks: residual blocks of each stage.
        strides: of each stage; 1 for the first and at least 2 for the others.
        convs: convolutions of each stage of the decoder.
        deep_supervision: whether there are heads at the lower resolutions, for training.
        rngs: source of the initial values.

    Raises:
        ValueError: the lists are of different lengths, there is one stage alone, or a stride
            cannot be.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        outputs: int,
        features: Sequence[int] = (32, 64, 128, 256, 320, 320),
        blocks: Sequence[int] = (1, 3, 4, 6, 6, 6),
        strides: Sequence[int] = (1, 2, 2, 2, 2, 2),
        convs: int = 1,
        deep_supervision: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.stages, self.strides = len(features), tuple(strides)
        self.supervised = range(2, self.stages) if deep_supervision else range(0)
        if not len(features) == len(blocks) == len(strides) > 1:
            raise ValueError(
                "its arguments 'features', 'blocks' and 'strides' are lists of the same length, "
                "two at least"
            )
        if strides[0] != 1 or min(strides[1:]) < 2:
            raise ValueError("its argument 'strides' is 1 for the first stage, then 2 or more")
        self.stem = NormedConv(channels, features[0], rngs=rngs)
        entering = features[0]
        for number, (width, count, stride) in enumerate(
            zip(features, blocks, strides, strict=True), start=1
        ):
            setattr(self, f"encoder{number}", Stage(entering, width, count, stride, rngs=rngs))
            entering = width
        for number in range(self.stages - 1, 0, -1):
            below, width, stride = features[number], features[number - 1], strides[number]
            setattr(self, f"decoder{number}", UpStage(below, width, convs, stride, rngs=rngs))
        for number in self.supervised:
            head = Head(features[number - 1], outputs, initialise=_HE, rngs=rngs)
            setattr(self, f"head{number}", head)
        self.head = Head(features[0], outputs, initialise=_HE, rngs=rngs)

    @property
    def min_multiple(self) -> int:
        """Spatial shapes must be multiples of this, voxels."""
        return math.prod(self.strides)

    @property
    def receptive_field(self) -> None:
        """None: the norms take their statistics from the whole input."""
        return None

    @property
    def head_paths(self) -> tuple[str, ...]:
        """Paths of the layers that give the outputs, from the full resolution downwards."""
        return ("head", *(f"head{number}" for number in self.supervised))

    def levels(self) -> tuple[str, ...]:
        """Names of the stages, from input to output."""
        down = (f"encoder{number}" for number in range(1, self.stages + 1))
        up = (f"decoder{number}" for number in range(self.stages - 1, 0, -1))
        return ("stem", *down, *up, "head")

    def forward(self, x: Array, run: Run) -> Any:
        """As in `Family`; with deep supervision in training, logits of each resolution."""
        skips = []
        x = self.level("stem", run, x)
        for number in range(1, self.stages + 1):
            name = f"encoder{number}"
            x = self.level(name, run, x)
            skips.append(x)
        skips.pop()  # the lowest stage's
        lower: list[Array] = []
        for number in range(self.stages - 1, 0, -1):
            name = f"decoder{number}"
            x = self.level(name, run, x, skips.pop())
            if run.train and number in self.supervised:
                lower.insert(0, self.level(f"head{number}", run, x))
        logits = self.level("head", run, x)
        return (logits, *lower) if lower else logits
