"""The 3D U-Net as Nobrainer builds it."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.family import UShape
from voxtune.models.folded import conv_of_up_and_skip, pays
from voxtune.models.layers import ConvTranspose, ConvUnit, Head
from voxtune.models.norms import WIDE_NORMS, NormName
from voxtune.models.run import Run, ignore


class DoubleConv(nnx.Module):
    """Two convolution units, `unit1` and `unit2`."""

    def __init__(
        self, channels: int, first: int, second: int, *, norm: str | None, rngs: nnx.Rngs
    ) -> None:
        self.unit1 = ConvUnit(channels, first, norm=norm, rngs=rngs)
        self.unit2 = ConvUnit(first, second, norm=norm, rngs=rngs)

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, second]`."""
        x = self.unit1(x, run, f"{path}/unit1")
        return self.unit2(x, run, f"{path}/unit2")


class UpLevel(nnx.Module):
    """Doubles the resolution, joins the skip connection, then two convolution units.

    Where it is to `fold`, all up to the first unit's convolution is one operation, and there is
    nothing to tap for `up` and `concat`; likewise where that is the faster way, and nobody taps.
    """

    def __init__(
        self,
        channels: int,
        up: int,
        skip: int,
        filters: int,
        *,
        norm: str | None,
        fold: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.up = ConvTranspose(channels, up, rngs=rngs)
        self.convs = DoubleConv(skip + up, filters, filters, norm=norm, rngs=rngs)
        self.fold = fold

    def __call__(self, x: Array, skip: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` and the skip `[B, 2D, 2H, 2W, S]` → `[B, 2D, 2H, 2W, filters]`."""
        unit = self.convs.unit1
        untapped = run.tap is ignore
        if self.fold or (untapped and pays(x, self.up.kernel[...], unit.conv.kernel[...])):
            path = f"{path}/convs"
            assert self.up.bias is not None
            assert unit.conv.bias is not None
            arrays = self.up.kernel, self.up.bias, unit.conv.kernel, unit.conv.bias
            x = conv_of_up_and_skip(x, skip, *(each[...] for each in arrays))
            x = unit.finish(x, run, f"{path}/unit1")
            return self.convs.unit2(x, run, f"{path}/unit2")
        x = self.up(x)
        run.tap(f"{path}/up", x)
        x = jnp.concatenate([skip, x], axis=-1)
        run.tap(f"{path}/concat", x)
        return self.convs(x, run, f"{path}/convs")


def edge_of_u(depth: int) -> int:
    """Edge of the cube of input voxels that an output voxel of a U-Net depends on, voxels.

    It depends on where the output voxel lies in its coarse voxel; this is the largest.

    Args:
        depth: how often the resolution is halved; each level has two 3x3x3 convolutions.
    """
    return max(_reach(depth, offset) for offset in range(2**depth))


def _reach(depth: int, offset: int) -> int:
    """Edge of what an output voxel sees, going back level by level to the input."""
    low = high = offset
    for _ in range(depth):  # down: two convolutions, then the coarse voxels that hold it
        low, high = (low - 2) // 2, (high + 2) // 2
    low, high = low - 2, high + 2
    for _ in range(depth):  # up: the fine voxels of a coarse one, then two convolutions
        low, high = 2 * low - 2, 2 * high + 1 + 2
    return high - low + 1


class UNet(UShape):
    """Nobrainer's `unet` (after Çiçek et al. 2016, doi 10.1007/978-3-319-46723-8_49).

    Level i of the encoder has two 3x3x3 convolutions with f 2^(i-1) and f 2^i filters, then a
    max-pool of 2; the bottom has the same pair without the pool. Level i of the decoder doubles
    the resolution by a transposed convolution of f 2^(i+1) filters without activation, joins
    [skip, up] and convolves twice with f 2^i filters. With f = 16 and three levels this is
    Nobrainer's network, to the last of its 4,768,289 parameters (one class).

    Args:
        channels: input channels.
        outputs: logits for each voxel.
        filters: f, the filters of the first convolution.
        depth: how often the resolution is halved.
        norm: normalisation after each 3x3x3 convolution: "batch" (Nobrainer's `batchnorm`),
            "group", "instance" or none.
        fold: whether each decoder level's transposed convolution, join and first convolution are
            computed as one on every device, see `voxtune.models.folded`: the same to rounding. On
            CPUs that is done anyway, where the level is large enough for it to be faster.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        outputs: int,
        filters: int = 16,
        depth: int = 3,
        norm: NormName | None = None,
        fold: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.depth, self.norm = depth, norm
        for level in range(1, depth + 1):
            first, second = filters * 2 ** (level - 1), filters * 2**level
            entering = channels if level == 1 else first
            block = DoubleConv(entering, first, second, norm=norm, rngs=rngs)
            setattr(self, f"encoder{level}", block)
        wide = filters * 2**depth
        self.bottom = DoubleConv(wide, wide, 2 * wide, norm=norm, rngs=rngs)
        for level in range(depth, 0, -1):
            width = filters * 2**level
            below = 2 * width
            block_up = UpLevel(below, below, width, width, norm=norm, fold=fold, rngs=rngs)
            setattr(self, f"decoder{level}", block_up)
        self.head = Head(2 * filters, outputs, rngs=rngs)

    @property
    def receptive_field(self) -> int | None:
        """Edge of the cube of input voxels that one output voxel depends on, voxels.

        None where the norms take their statistics from the whole input.
        """
        return None if self.norm in WIDE_NORMS else edge_of_u(self.depth)
