"""The U-Net of SynthSeg and SynthSR."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.layers import ConvUnit, Head
from voxtune.models.lowering import max_pool
from voxtune.models.norms import BatchNorm
from voxtune.models.run import Run, Tap, ignore
from voxtune.models.unet import edge_of_u
from voxtune.models.upsampling import repeat_voxels


class ConvLevel(nnx.Module):
    """Two convolutions with ELU, `unit1` and `unit2`, and a normalisation after both."""

    def __init__(self, channels: int, filters: int, *, rngs: nnx.Rngs) -> None:
        self.unit1 = ConvUnit(channels, filters, activation="elu", rngs=rngs)
        self.unit2 = ConvUnit(filters, filters, activation="elu", rngs=rngs)
        self.norm = BatchNorm(filters, rngs=rngs)

    def convolved(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, filters]`, not normalised."""
        x = self.unit1(x, run, f"{path}/unit1")
        return self.unit2(x, run, f"{path}/unit2")

    def normalised(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, filters]` → the same shape; taps `norm`."""
        x = self.norm(x, run)
        run.tap(f"{path}/norm", x)
        return x


class DownLevel(ConvLevel):
    """A level of the encoder: its skip connection leaves before the normalisation."""

    def __call__(self, x: Array, run: Run, path: str) -> tuple[Array, Array]:
        """`[B, D, H, W, C]` → `[B, D/2, H/2, W/2, filters]` and skip `[B, D, H, W, filters]`."""
        skip = self.convolved(x, run, path)
        x = max_pool(self.normalised(skip, run, path))
        run.tap(f"{path}/pool", x)
        return x, skip


class BottomLevel(ConvLevel):
    """The level of the lowest resolution."""

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, filters]`."""
        return self.normalised(self.convolved(x, run, path), run, path)


class UpLevel(ConvLevel):
    """A level of the decoder: repeats each voxel and joins the skip connection first."""

    def __call__(self, x: Array, skip: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` and the skip `[B, 2D, 2H, 2W, S]` → `[B, 2D, 2H, 2W, filters]`."""
        x = repeat_voxels(x)
        run.tap(f"{path}/repeat", x)
        x = jnp.concatenate([skip, x], axis=-1)
        run.tap(f"{path}/concat", x)
        return self.normalised(self.convolved(x, run, path), run, path)


class SynthSegUNet(nnx.Module):
    """The U-Net of SynthSeg (Billot et al. 2023, doi 10.1016/j.media.2023.102789).

    Level i of the encoder has two 3x3x3 convolutions with f 2^(i-1) filters and ELU, one batch
    normalisation, and a max-pool of 2; the skip connection leaves before that normalisation. The
    bottom has the same without the pool. Level i of the decoder repeats each voxel, joins
    [skip, up], convolves twice with f 2^(i-1) filters and normalises. The head is a 1x1x1
    convolution to logits. With f = 24 and four halvings this is SynthSeg's network, to the last
    of its 13,242,824 parameters and statistics (32 labels). SynthSR's (Iglesias et al. 2021,
    doi 10.1016/j.neuroimage.2021.118206) is the same with one output, an image. Kernels start as
    Keras has them, Glorot uniform.

    Args:
        channels: input channels.
        outputs: logits for each voxel.
        filters: f, the filters of the first two convolutions.
        depth: how often the resolution is halved.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        outputs: int,
        filters: int = 24,
        depth: int = 4,
        rngs: nnx.Rngs,
    ) -> None:
        self.depth = depth
        for level in range(1, depth + 1):
            width = filters * 2 ** (level - 1)
            entering = channels if level == 1 else width // 2
            setattr(self, f"encoder{level}", DownLevel(entering, width, rngs=rngs))
        wide = filters * 2**depth
        self.bottom = BottomLevel(wide // 2, wide, rngs=rngs)
        for level in range(depth, 0, -1):
            width = filters * 2 ** (level - 1)
            setattr(self, f"decoder{level}", UpLevel(width + 2 * width, width, rngs=rngs))
        self.head = Head(filters, outputs, rngs=rngs)

    @property
    def min_multiple(self) -> int:
        """Spatial shapes must be multiples of this, voxels."""
        return 2**self.depth

    @property
    def receptive_field(self) -> int:
        """Edge of the cube of input voxels that one output voxel depends on, voxels."""
        return edge_of_u(self.depth)

    @property
    def head_path(self) -> str:
        """Path of the layer that gives the outputs."""
        return "head"

    def levels(self) -> tuple[str, ...]:
        """Names of the stages, from input to output."""
        down = (f"encoder{level}" for level in range(1, self.depth + 1))
        up = (f"decoder{level}" for level in range(self.depth, 0, -1))
        return (*down, "bottom", *up, "head")

    @property
    def min_local_depth(self) -> int:
        """Fewest depth slices that a device can hold where depth is split, voxels."""
        return self.min_multiple  # one of the bottom's, whose neighbours are one slice away

    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        tap: Tap = ignore,
        remat: bool = False,
    ) -> Array:
        """Logits of each voxel.

        Args:
            x: `[B, D, H, W, C]`, D, H and W multiples of `min_multiple`.
            train: whether statistics are taken from the batch.
            rngs: unused: the network drops nothing.
            tap: receives each intermediate result under its path.
            remat: whether the backward pass computes each level again, to save memory.

        Returns:
            `[B, D, H, W, outputs]`, float32.
        """
        run, skips = Run(train, rngs, tap, remat), []
        for level in range(1, self.depth + 1):
            name = f"encoder{level}"
            x, skip = run.level(getattr(self, name), x, path=name)
            skips.append(skip)
        x = run.level(self.bottom, x, path="bottom")
        for level in range(self.depth, 0, -1):
            name = f"decoder{level}"
            x = run.level(getattr(self, name), x, skips.pop(), path=name)
        return run.level(self.head, x, path="head")
