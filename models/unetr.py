"""UNETR, a transformer with a U-Net's decoder, as Nobrainer builds it."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.family import Family
from voxtune.models.layers import GLOROT, ConvTranspose, ConvUnit, Head
from voxtune.models.norms import NormName
from voxtune.models.run import Run
from voxtune.models.transformer import Dense, TransformerBlock

Size = tuple[int, int, int]
_POSITION = nnx.initializers.uniform(0.1)  # Keras's for an Embedding, once 0.05 is taken off


class Patches(nnx.Module):
    """A convolution whose kernel equals its stride: Keras's `Conv3D`, padding "valid"."""

    def __init__(self, channels: int, filters: int, size: int, *, rngs: nnx.Rngs) -> None:
        shape = (size, size, size, channels, filters)
        self.kernel = nnx.Param(GLOROT(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(filters))

    def __call__(self, x: Array) -> Array:
        """`[B, D, H, W, C]` → `[B, D / size, H / size, W / size, O]`; one matrix product."""
        kernel = self.kernel[...].astype(x.dtype)
        size, batch, channels = kernel.shape[0], x.shape[0], x.shape[-1]
        places = tuple(n // size for n in x.shape[1:-1])
        blocks = x.reshape(batch, places[0], size, places[1], size, places[2], size, channels)
        y = jnp.einsum("bdxhywzi,xyzio->bdhwo", blocks, kernel)
        return y + self.bias[...].astype(x.dtype)


class Positions(nnx.Module):
    """What is added to each token, learned: a bias `[N, C]`."""

    def __init__(self, tokens: int, channels: int, *, rngs: nnx.Rngs) -> None:
        self.bias = nnx.Param(_POSITION(rngs.params(), (tokens, channels), jnp.float32) - 0.05)


class Embedding(nnx.Module):
    """A volume as tokens: patches, projected once more, each with its position added."""

    def __init__(
        self, channels: int, width: int, patch: int, tokens: int, *, rngs: nnx.Rngs
    ) -> None:
        self.patches = Patches(channels, width, patch, rngs=rngs)
        self.projection = Dense(width, width, rngs=rngs)
        self.position = Positions(tokens, width, rngs=rngs)

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, N, width]`."""
        x = self.patches(x)
        run.tap(f"{path}/patches", x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        run.tap(f"{path}/tokens", x)
        x = self.projection(x)
        run.tap(f"{path}/projection", x)
        position = jnp.broadcast_to(self.position.bias[...].astype(x.dtype), x.shape)
        run.tap(f"{path}/position", position)
        x = x + position
        run.tap(f"{path}/add", x)
        return x


class Blocks(nnx.Module):
    """Transformer blocks one after the other, `block1` and so on."""

    def __init__(
        self,
        count: int,
        width: int,
        heads: int,
        mlp: int,
        *,
        dropout: float,
        mlp_dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.count = count
        for number in range(1, count + 1):
            block = TransformerBlock(
                width, heads, mlp, dropout=dropout, mlp_dropout=mlp_dropout, rngs=rngs
            )
            setattr(self, f"block{number}", block)

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, N, width]` → `[B, N, width]`."""
        for number in range(1, self.count + 1):
            x = getattr(self, f"block{number}")(x, run, f"{path}/block{number}")
        return x


def tokens_as_volume(x: Array, places: Size, run: Run, path: str) -> Array:
    """`[B, N, C]` → `[B, *places, C]`, as Nobrainer has it.

    It reads the table of the tokens, channels first, as if it were a volume, channels last: what
    lies side by side in a channel of the volume was not side by side in the scan.
    """
    x = x.swapaxes(1, 2)
    run.tap(f"{path}/turned", x)
    x = x.reshape(x.shape[0], *places, -1)
    run.tap(f"{path}/volume", x)
    return x


class UpUnit(nnx.Module):
    """Doubles the resolution, then a convolution unit."""

    def __init__(
        self, channels: int, filters: int, *, norm: NormName | None, rngs: nnx.Rngs
    ) -> None:
        self.up = ConvTranspose(channels, filters, rngs=rngs)
        self.unit = ConvUnit(filters, filters, norm=norm, rngs=rngs)

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, 2D, 2H, 2W, filters]`."""
        x = self.up(x)
        run.tap(f"{path}/up", x)
        return self.unit(x, run, f"{path}/unit")


class Tower(nnx.Module):
    """Tokens as a skip connection: up to the resolution of its level."""

    def __init__(
        self,
        width: int,
        filters: Sequence[int],
        places: Size,
        *,
        norm: NormName | None,
        rngs: nnx.Rngs,
    ) -> None:
        self.places, self.height = places, len(filters)
        for number, (entering, leaving) in enumerate(
            zip((width, *filters), filters, strict=False), start=1
        ):
            setattr(self, f"up{number}", UpUnit(entering, leaving, norm=norm, rngs=rngs))

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, N, width]` → `[B, D, H, W, filters[-1]]`."""
        x = tokens_as_volume(x, self.places, run, path)
        for number in range(1, self.height + 1):
            x = getattr(self, f"up{number}")(x, run, f"{path}/up{number}")
        return x


class Bottom(nnx.Module):
    """The last tokens as a volume of twice their resolution."""

    def __init__(self, width: int, filters: int, places: Size, *, rngs: nnx.Rngs) -> None:
        self.places = places
        self.up = ConvTranspose(width, filters, rngs=rngs)

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, N, width]` → `[B, D, H, W, filters]`."""
        x = self.up(tokens_as_volume(x, self.places, run, path))
        run.tap(f"{path}/up", x)
        return x


class Units(nnx.Module):
    """Convolution units one after the other, `unit1` and so on."""

    def __init__(
        self, channels: int, filters: Sequence[int], *, norm: NormName | None, rngs: nnx.Rngs
    ) -> None:
        self.count = len(filters)
        for number, (entering, leaving) in enumerate(
            zip((channels, *filters), filters, strict=False), start=1
        ):
            setattr(self, f"unit{number}", ConvUnit(entering, leaving, norm=norm, rngs=rngs))

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, filters[-1]]`."""
        for number in range(1, self.count + 1):
            x = getattr(self, f"unit{number}")(x, run, f"{path}/unit{number}")
        return x


class Decoder(nnx.Module):
    """Joins skip and coarser level, convolves, and doubles the resolution if it is not full."""

    def __init__(
        self,
        filters: int,
        count: int,
        up: int | None,
        *,
        norm: NormName | None,
        rngs: nnx.Rngs,
    ) -> None:
        self.convs = Units(2 * filters, (filters,) * count, norm=norm, rngs=rngs)
        self.up = ConvTranspose(filters, up, rngs=rngs) if up else None

    def __call__(self, skip: Array, x: Array, run: Run, path: str) -> Array:
        """Two `[B, D, H, W, filters]` → `[B, 2D, 2H, 2W, up]`, or as they were without `up`."""
        x = jnp.concatenate([skip, x], axis=-1)
        run.tap(f"{path}/concat", x)
        x = self.convs(x, run, f"{path}/convs")
        if self.up is not None:
            x = self.up(x)
            run.tap(f"{path}/up", x)
        return x


class UNETR(Family):
    """Nobrainer's `unetr` (after Hatamizadeh et al. 2022, doi 10.1109/WACV51458.2022.00181).

    Patches of 16³ voxels become tokens that attend to each other in twelve transformer blocks.
    Those after the third, sixth and ninth block are the skip connections of levels 1, 2 and 3
    (scale 1/2, 1/4, 1/8), each brought up by transposed convolutions; those after the twelfth are
    the bottom; two convolutions of the scan itself are the skip of level 0. Level i of the decoder
    joins [skip, up] and convolves with f 2^i filters.

    Nobrainer departs from the paper, and this network follows it: a patch's convolution is followed
    by a second projection; the perceptrons have 2048 channels and ReLU, not 3072 and GELU; the
    decoder has plain convolutions with batch normalisation, not residual blocks with instance
    normalisation; and tokens are put into volumes scrambled, see `tokens_as_volume`. Its layer also
    has 512 x 768 values that nothing reads, which are left out: of its 147,359,234 parameters
    (96³, two classes) 146,966,018 are here.

    The table of positions fixes the shape of the blocks. Attention is over a whole block, so depth
    cannot be split over devices without gathering the tokens; batches can.

    Args:
        channels: input channels.
        outputs: logits for each voxel.
        size: shape of the blocks, voxels, multiples of `patch`.
        width: channels of a token.
        blocks: transformer blocks, as many for each level of the patch (four levels of 16 voxels).
        heads: of the attention; they divide `width`.
        patch: edge of a patch, voxels, a power of two.
        mlp: hidden channels of the transformer's perceptrons.
        filters: f, the filters of the decoder at full resolution.
        dropout: share dropped in training of attention weights and of what attention gives.
        mlp_dropout: share dropped in training of the perceptrons' hidden channels, 0.1 in Nobrainer
            whatever `dropout` is.
        norm: normalisation after each 3x3x3 convolution: "batch" (Nobrainer's), "group",
            "instance" or none.
        rngs: source of the initial values.

    Raises:
        ValueError: sizes that do not divide as they must.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        outputs: int,
        size: Sequence[int] = (96, 96, 96),
        width: int = 768,
        blocks: int = 12,
        heads: int = 12,
        patch: int = 16,
        mlp: int = 2048,
        filters: int = 64,
        dropout: float = 0.1,
        mlp_dropout: float = 0.1,
        norm: NormName | None = "batch",
        rngs: nnx.Rngs,
    ) -> None:
        depth = levels_of(patch)
        if len(size) != 3 or any(n % patch for n in size):
            raise ValueError(f"its size is three multiples of its patch {patch}, not {list(size)}")
        if blocks % depth or width % heads:
            raise ValueError(
                f"its patch {patch} needs a multiple of {depth} blocks, not {blocks}, and its "
                f"width {width} a multiple of its heads {heads}"
            )
        if filters % 2:
            raise ValueError(f"its filters are even, not {filters}")
        self.size: Size = (size[0], size[1], size[2])
        self.patch, self.depth = patch, depth
        places: Size = (size[0] // patch, size[1] // patch, size[2] // patch)
        wide = [filters * 2**level for level in range(depth)]
        self.embedding = Embedding(channels, width, patch, math.prod(places), rngs=rngs)
        rates = {"dropout": dropout, "mlp_dropout": mlp_dropout}
        for number in range(1, depth + 1):
            group = Blocks(blocks // depth, width, heads, mlp, **rates, rngs=rngs)
            setattr(self, f"encoder{number}", group)
        self.skip0 = Units(channels, (filters // 2, filters), norm=norm, rngs=rngs)
        for level in range(1, depth):
            tower = Tower(width, wide[: level - 1 : -1], places, norm=norm, rngs=rngs)
            setattr(self, f"skip{level}", tower)
        self.bottom = Bottom(width, wide[-1], places, rngs=rngs)
        for level in range(depth):
            up = wide[level - 1] if level else None
            decoder = Decoder(wide[level], decoder_units(level, depth), up, norm=norm, rngs=rngs)
            setattr(self, f"decoder{level}", decoder)
        self.head = Head(filters, outputs, rngs=rngs)

    @property
    def min_multiple(self) -> int:
        """Spatial shapes must be multiples of this, voxels; of all, `size` alone fits."""
        return self.patch

    @property
    def receptive_field(self) -> None:
        """None: an output voxel depends on the whole block."""
        return

    def levels(self) -> tuple[str, ...]:
        """Names of the stages, from input to output; `encoder1` to `encoder4` are blocks."""
        names = ["embedding", "skip0"]
        for number in range(1, self.depth + 1):
            names += [f"encoder{number}", f"skip{number}" if number < self.depth else "bottom"]
        return (*names, *(f"decoder{level}" for level in reversed(range(self.depth))), "head")

    @property
    def fixed_block(self) -> tuple[int, int, int]:
        """That of its positions."""
        return self.size

    def forward(self, x: Array, run: Run) -> Array:
        """As in `Family`.

        Raises:
            ValueError: the block is of another size.
        """
        if x.shape[1:4] != self.size:
            raise ValueError(f"it takes blocks of {self.size} voxels, not {x.shape[1:4]}")
        skips = [self.level("skip0", run, x)]
        x = self.level("embedding", run, x)
        for number in range(1, self.depth + 1):
            name = f"encoder{number}"
            x = self.level(name, run, x)
            if number < self.depth:
                name = f"skip{number}"
                skips.append(self.level(name, run, x))
        x = self.level("bottom", run, x)
        for level in reversed(range(self.depth)):
            name = f"decoder{level}"
            x = self.level(name, run, skips.pop(), x)
        return self.level("head", run, x)


def levels_of(patch: int) -> int:
    """How often a patch is halved on the way to a voxel.

    Raises:
        ValueError: it does not end in one.
    """
    depth = patch.bit_length() - 1
    if depth < 1 or patch != 2**depth:
        raise ValueError(f"its patch is a power of two, at least 2, not {patch}")
    return depth


def decoder_units(level: int, depth: int) -> int:
    """Convolutions of a level of the decoder: one more at the coarsest one that has a tower."""
    return 3 if level == depth - 1 > 0 else 2
