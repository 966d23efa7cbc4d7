"""The U-Net of SynthSeg and SynthSR."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.family import UShape
from voxtune.models.folded import conv_of_repeated_and_skip, repeated_pays
from voxtune.models.layers import ConvUnit, Head
from voxtune.models.lowering import max_pool
from voxtune.models.norms import BatchNorm
from voxtune.models.run import Run, ignore
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
    """A level of the decoder: repeats each voxel and joins the skip connection first.

    On CPUs both and the first convolution are one operation where that is faster, unless somebody
    taps.
    """

    def __call__(self, x: Array, skip: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` and the skip `[B, 2D, 2H, 2W, S]` → `[B, 2D, 2H, 2W, filters]`."""
        conv = self.unit1.conv
        if run.tap is ignore and repeated_pays(x, conv.kernel[...]):
            assert conv.bias is not None
            x = conv_of_repeated_and_skip(x, skip, conv.kernel[...], conv.bias[...])
            x = self.unit1.finish(x, run, f"{path}/unit1")
            return self.normalised(self.unit2(x, run, f"{path}/unit2"), run, path)
        x = repeat_voxels(x)
        run.tap(f"{path}/repeat", x)
        x = jnp.concatenate([skip, x], axis=-1)
        run.tap(f"{path}/concat", x)
        return self.normalised(self.convolved(x, run, path), run, path)


class SynthSegUNet(UShape):
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
    def receptive_field(self) -> int:
        """Edge of the cube of input voxels that one output voxel depends on, voxels."""
        return edge_of_u(self.depth)

    def down(self, x: Array, run: Run, path: str) -> tuple[Array, Array]:
        """The level halves what goes down itself, since the skip connection leaves before that."""
        return self.level(path, run, x)
