"""The 3D U-Net as Nobrainer builds it."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.layers import Conv, ConvTranspose, ConvUnit, Tap, ignore, max_pool


class DoubleConv(nnx.Module):
    """Two convolution units, `unit1` and `unit2`."""

    def __init__(
        self, channels: int, first: int, second: int, *, batchnorm: bool, rngs: nnx.Rngs
    ) -> None:
        self.unit1 = ConvUnit(channels, first, batchnorm=batchnorm, rngs=rngs)
        self.unit2 = ConvUnit(first, second, batchnorm=batchnorm, rngs=rngs)

    def __call__(self, x: Array, *, train: bool, tap: Tap, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, second]`."""
        x = self.unit1(x, train=train, tap=tap, path=f"{path}/unit1")
        return self.unit2(x, train=train, tap=tap, path=f"{path}/unit2")


class UpLevel(nnx.Module):
    """Doubles the resolution, joins the skip connection, then two convolution units."""

    def __init__(
        self,
        channels: int,
        up: int,
        skip: int,
        filters: int,
        *,
        batchnorm: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.up = ConvTranspose(channels, up, rngs=rngs)
        self.convs = DoubleConv(skip + up, filters, filters, batchnorm=batchnorm, rngs=rngs)

    def __call__(self, x: Array, skip: Array, *, train: bool, tap: Tap, path: str) -> Array:
        """`[B, D, H, W, C]` and the skip `[B, 2D, 2H, 2W, S]` → `[B, 2D, 2H, 2W, filters]`."""
        x = self.up(x)
        tap(f"{path}/up", x)
        x = jnp.concatenate([skip, x], axis=-1)
        tap(f"{path}/concat", x)
        return self.convs(x, train=train, tap=tap, path=f"{path}/convs")


class UNet(nnx.Module):
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
        batchnorm: whether each 3x3x3 convolution is followed by batch normalisation.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        outputs: int,
        filters: int = 16,
        depth: int = 3,
        batchnorm: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.depth = depth
        for level in range(1, depth + 1):
            first, second = filters * 2 ** (level - 1), filters * 2**level
            entering = channels if level == 1 else first
            block = DoubleConv(entering, first, second, batchnorm=batchnorm, rngs=rngs)
            setattr(self, f"encoder{level}", block)
        wide = filters * 2**depth
        entering = wide if depth else channels
        self.bottom = DoubleConv(entering, wide, 2 * wide, batchnorm=batchnorm, rngs=rngs)
        for level in range(depth, 0, -1):
            width = filters * 2**level
            below = 2 * width
            block_up = UpLevel(below, below, width, width, batchnorm=batchnorm, rngs=rngs)
            setattr(self, f"decoder{level}", block_up)
        self.head = Conv(2 * filters, outputs, size=1, rngs=rngs)

    @property
    def min_multiple(self) -> int:
        """Spatial shapes must be multiples of this, voxels."""
        return 2**self.depth

    @property
    def receptive_field(self) -> int:
        """Edge of the cube of input voxels that one output voxel depends on, voxels.

        It depends on where the output voxel lies in its coarse voxel; this is the largest.
        """
        return max(self._reach(offset) for offset in range(self.min_multiple))

    def _reach(self, offset: int) -> int:
        """Edge of what an output voxel sees, going back level by level to the input."""
        low = high = offset
        for _ in range(self.depth):  # down: two convolutions, then the coarse voxels that hold it
            low, high = (low - 2) // 2, (high + 2) // 2
        low, high = low - 2, high + 2
        for _ in range(self.depth):  # up: the fine voxels of a coarse one, then two convolutions
            low, high = 2 * low - 2, 2 * high + 1 + 2
        return high - low + 1

    @property
    def head_path(self) -> str:
        """Path of the layer that gives the outputs."""
        return "head"

    def levels(self) -> tuple[str, ...]:
        """Names of the stages, from input to output."""
        down = (f"encoder{level}" for level in range(1, self.depth + 1))
        up = (f"decoder{level}" for level in range(self.depth, 0, -1))
        return (*down, "bottom", *up, "head")

    def __call__(
        self, x: Array, *, train: bool = False, rngs: nnx.Rngs | None = None, tap: Tap = ignore
    ) -> Array:
        """Logits of each voxel.

        Args:
            x: `[B, D, H, W, C]`, D, H and W multiples of `min_multiple`.
            train: whether statistics are taken from the batch.
            rngs: unused: the network drops nothing.
            tap: receives each intermediate result under its path.

        Returns:
            `[B, D, H, W, outputs]`.
        """
        skips = []
        for level in range(1, self.depth + 1):
            name = f"encoder{level}"
            x = getattr(self, name)(x, train=train, tap=tap, path=name)
            skips.append(x)
            x = max_pool(x)
            tap(f"{name}/pool", x)
        x = self.bottom(x, train=train, tap=tap, path="bottom")
        for level in range(self.depth, 0, -1):
            name = f"decoder{level}"
            x = getattr(self, name)(x, skips.pop(), train=train, tap=tap, path=name)
        x = self.head(x)
        tap("head", x)
        return x
