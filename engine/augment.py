"""Random changes of training blocks, on the device, the same for image and label."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from voxtune.engine.options import AugmentName
from voxtune.engine.separable import blur, lower_resolution, smooth_field
from voxtune.engine.warp import affine, warp

Drawn = dict[str, Array]  # change → how strong it is; "..._key" → the key of its random field

_ELASTIC_POINTS = 7  # of a spline along each axis, three of them for the borders: four cells
_BIAS_POINTS = 5
_SPACE = (0, 1, 2)
_TINY = float(np.finfo(np.float32).tiny)  # to divide by where a block has one value


@dataclass(frozen=True)
class Change:
    """How often blocks are changed, and how strongly: evenly between `low` and `high`.

    Attributes:
        probability: that a block is changed; of 0, nothing is computed.
        low: least strength.
        high: greatest strength.
        channels: probability that a channel of such a block is changed, for changes that each
            channel has by itself.
    """

    probability: float = 0.0
    low: float = 0.0
    high: float = 0.0
    channels: float = 1.0


NEVER = Change()


@dataclass(frozen=True)
class Augmentation:
    """What training blocks may become. Without arguments they stay what they are.

    The changes are made in the order in which they stand here, flips after elastic. From bias field
    to gamma each channel has its own strength.

    Attributes:
        moved: probability that a block is rotated, scaled, sheared, translated or bent at all; the
            probability of each of these is that for such a block.
        rotation: degrees about each of the three axes.
        scaling: of all axes alike; above 1 for a smaller head.
        shear: mm a mm, along each pair of axes.
        translation: along each axis, share of the block's edge.
        elastic: standard deviation of the displacement along each axis, share of the block's edge.
            Its field is smooth over a quarter of the edge: of 300 such fields none folded at 0.03,
            one at 0.04, a quarter at 0.05.
        flip: probability of a flip along each axis that may be flipped.
        bias_field: standard deviation of the logarithm of a smooth factor, by which the image above
            its minimum is multiplied.
        contrast: factor of the distance from the block's mean.
        keep_range: whether contrast clips at the block's minimum and maximum.
        brightness: factor of the values; a z-scored image turns round the whole volume's mean.
        shift: added, standard deviations of the block.
        noise: standard deviation of Gaussian noise, standard deviations of the block.
        blur: standard deviation of a Gaussian along each axis, voxels.
        resolution: as a share of the voxels along each axis, which are taken by nearest neighbour
            and interpolated linearly; 1 or below.
        gamma_inverted: as `gamma`, of the negative image.
        gamma: exponent of the values between the block's minimum and maximum, whose mean and
            standard deviation stay. Half of the exponents lie below 1.
    """

    moved: float = 1.0
    rotation: Change = NEVER
    scaling: Change = NEVER
    shear: Change = NEVER
    translation: Change = NEVER
    elastic: Change = NEVER
    flip: float = 0.0
    bias_field: Change = NEVER
    contrast: Change = NEVER
    keep_range: bool = False
    brightness: Change = NEVER
    shift: Change = NEVER
    noise: Change = NEVER
    blur: Change = NEVER
    resolution: Change = NEVER
    gamma_inverted: Change = NEVER
    gamma: Change = NEVER


PROFILES: Mapping[AugmentName, Augmentation] = {
    "none": Augmentation(),
    # The ranges of nnU-Net's contrast and noise (Isensee et al. 2021), rounded, on every block.
    "light": Augmentation(
        flip=0.5,
        contrast=Change(1.0, 0.75, 1.25),
        shift=Change(1.0, -0.1, 0.1),
        noise=Change(1.0, 0.0, 0.1),
    ),
    # Nobrainer 1.2.1: `apply_random_transform` turns by any angle about each axis and shifts by at
    # most 5 % of the first edge along each (transform.py), and `Dataset.augment` does so to half of
    # the blocks (dataset.py). Beyond the border it repeats the image's last voxel and makes the
    # label background; here both are mirrored.
    "nobrainer": Augmentation(
        moved=0.5,
        rotation=Change(1.0, -180.0, 180.0),
        translation=Change(1.0, -0.05, 0.05),
    ),
    # nnU-Net 2.8.1, `nnUNetTrainer.get_training_transforms` for isotropic 3D patches, by
    # batchgeneratorsv2 0.3.6. Differences: noise and blur come before brightness and contrast
    # there, all channels have noise of one strength, in units of the whole z-scored volume, and
    # beyond the border is a larger patch, then zeros.
    "nnunet": Augmentation(
        rotation=Change(0.2, -30.0, 30.0),
        scaling=Change(0.2, 0.7, 1.4),
        flip=0.5,
        contrast=Change(0.15, 0.75, 1.25),
        keep_range=True,
        brightness=Change(0.15, 0.75, 1.25),
        noise=Change(0.1, 0.0, 0.1),
        blur=Change(0.2, 0.5, 1.0, channels=0.5),
        resolution=Change(0.25, 0.5, 1.0, channels=0.5),
        gamma_inverted=Change(0.1, 0.7, 1.5),
        gamma=Change(0.3, 0.7, 1.5),
    ),
    # voxtune's choice: nnU-Net's changes, oftener and wider, and those that it leaves out. Shear,
    # elastic and bias field are of the kind in SynthSeg's generator (Billot et al. 2023).
    "strong": Augmentation(
        moved=0.8,
        rotation=Change(0.5, -45.0, 45.0),
        scaling=Change(0.5, 0.6, 1.5),
        shear=Change(0.5, -0.1, 0.1),
        translation=Change(0.5, -0.1, 0.1),
        elastic=Change(0.5, 0.0, 0.03),
        flip=0.5,
        bias_field=Change(0.5, 0.0, 0.4),
        contrast=Change(0.3, 0.6, 1.5),
        keep_range=True,
        brightness=Change(0.3, 0.6, 1.5),
        shift=Change(0.3, -0.3, 0.3),
        noise=Change(0.3, 0.0, 0.2),
        blur=Change(0.3, 0.5, 1.5, channels=0.5),
        resolution=Change(0.3, 0.3, 1.0, channels=0.5),
        gamma_inverted=Change(0.2, 0.6, 1.7),
        gamma=Change(0.3, 0.6, 1.7),
    ),
}


@dataclass(frozen=True)
class _Strength:
    """What is drawn for a change of a block.

    Attributes:
        neutral: the strength that changes nothing.
        axes: what has a strength of its own.
        halves: whether half of the strengths lie below 1, wherever the range ends.
    """

    neutral: float
    axes: tuple[Literal["space", "channel"], ...] = ()
    halves: bool = False


_STRENGTHS = {
    "contrast": _Strength(1.0, ("channel",)),
    "shift": _Strength(0.0, ("channel",)),
    "noise": _Strength(0.0, ("channel",)),
    "rotation": _Strength(0.0, ("space",)),
    "scaling": _Strength(1.0),
    "shear": _Strength(0.0, ("space",)),
    "translation": _Strength(0.0, ("space",)),
    "elastic": _Strength(0.0),
    "bias_field": _Strength(0.0, ("channel",)),
    "brightness": _Strength(1.0, ("channel",)),
    "blur": _Strength(0.0, ("channel", "space")),
    "resolution": _Strength(1.0, ("channel",)),
    "gamma_inverted": _Strength(1.0, ("channel",), halves=True),
    "gamma": _Strength(1.0, ("channel",), halves=True),
}
_MOVES = ("rotation", "scaling", "shear", "translation", "elastic")
# Keys that are made of a block's, whose numbers follow from their place: the first five are those
# of the runs before there were profiles, and so are what they draw.
_KEYS = (
    "flip", "contrast", "shift", "noise", "noise_key",
    "chances", "strengths", "elastic_key", "bias_field_key",
)  # fmt: skip


def augment(
    keys: Array,
    image: Array,
    label: Array,
    augmentation: Augmentation,
    *,
    flip_axes: Sequence[int] = (),
    left_right: int | None = None,
    swap: Sequence[tuple[int, int]] = (),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[Array, Array]:
    """Changes each block of a batch at random, by itself.

    Args:
        keys: a JAX key for each block, `[B]`; the same key makes the same changes.
        image: float32 `[B, D, H, W, C]`.
        label: class indices `[B, D, H, W]`; or the values of a target, float, which are moved as
            the image is but keep their intensities.
        augmentation: what blocks may become, of `PROFILES` for example.
        flip_axes: spatial axes, 0 to 2, along which a flipped head is still a plausible head.
        left_right: the axis that runs from one side of the head to the other.
        swap: pairs of class indices, the same structure on the left and on the right, which change
            places where a block is flipped along that axis. Other values stay, `IGNORE` too.
        spacing: voxel sizes along the three axes, mm.

    Returns:
        Image and label, shapes and types unchanged.

    Raises:
        ValueError: there are pairs to swap, but no axis or no classes.
    """
    if swap and (left_right is None or jnp.issubdtype(label.dtype, jnp.floating)):
        raise ValueError("classes are swapped along a left-right axis, and targets have none")

    def one(key: Array, image: Array, label: Array) -> tuple[Array, Array]:
        drawn = draw(key, augmentation, image.shape[-1])
        image, label = _moved(drawn, image, label, spacing)
        image, label = _flipped(drawn, image, label, flip_axes, left_right, swap)
        return _recoloured(drawn, image, augmentation.keep_range), label

    return jax.vmap(one)(keys, image, label)


def draw(key: Array, augmentation: Augmentation, channels: int) -> Drawn:
    """How strongly one block is changed.

    Args:
        key: a JAX key.
        augmentation: what it may become.
        channels: how many the block has.

    Returns:
        For each change with any probability its strength in the units of `Augmentation`, the one
        that changes nothing where chance left it out: `[3]` along axes, `[C]` of channels,
        `[C, 3]`, or `[]`. `flip` is bool `[3]`. Keys of random fields stand beside theirs.
    """
    keys = dict(zip(_KEYS, jax.random.split(key, len(_KEYS)), strict=True))
    # For all changes at once: each call of the generator takes 0.15 s to compile on a CPU.
    chances = jax.random.uniform(keys["chances"], (1 + len(_STRENGTHS), 1 + channels))
    strengths = jax.random.uniform(keys["strengths"], (len(_STRENGTHS), channels, 3))
    moved = chances[0, 0] < augmentation.moved
    drawn = {}
    if augmentation.flip:
        drawn["flip"] = jax.random.bernoulli(keys["flip"], augmentation.flip, (3,))
    for i, (name, strength) in enumerate(_STRENGTHS.items()):
        change: Change = getattr(augmentation, name)
        if change.probability == 0:
            continue
        chance, share = chances[1 + i], strengths[i]
        share = share if "space" in strength.axes else share[:, 0]
        share = share if "channel" in strength.axes else share[0]
        if name in keys:
            share = jax.random.uniform(keys[name], share.shape)
        happens = chance[0] < change.probability
        if name in _MOVES:
            happens &= moved
        if change.channels < 1:
            each = (channels,) + (1,) * (share.ndim - 1)
            happens &= (chance[1:] < change.channels).reshape(each)
        value = _within(share, change, strength.halves)
        drawn[name] = jnp.where(happens, value, strength.neutral)
        if f"{name}_key" in keys:
            drawn[f"{name}_key"] = keys[f"{name}_key"]
    return drawn


def _within(share: Array, change: Change, halves: bool) -> Array:
    """The strength that lies at a share of the range, 0 to 1."""
    if not halves:
        return share * (change.high - change.low) + change.low
    side = 2 * share - 1
    return 1 + side * jnp.where(side < 0, 1 - change.low, change.high - 1)


def _moved(
    drawn: Drawn, image: Array, label: Array, spacing: Sequence[float]
) -> tuple[Array, Array]:
    if not drawn.keys() & set(_MOVES):
        return image, label
    edges = jnp.array(label.shape, jnp.float32)
    none = jnp.zeros(3)
    matrix = affine(
        jnp.radians(drawn.get("rotation", none)),
        jnp.broadcast_to(drawn.get("scaling", jnp.ones(())), (3,)),
        drawn.get("shear", none),
        drawn.get("translation", none) * edges,
        spacing,
    )
    displacement = None
    if "elastic" in drawn:
        points = (_ELASTIC_POINTS,) * 3
        field = smooth_field(drawn["elastic_key"], label.shape, points, 3)
        displacement = drawn["elastic"] * edges * field
    return warp(image, label, matrix, displacement)


def _flipped(
    drawn: Drawn,
    image: Array,
    label: Array,
    axes: Sequence[int],
    left_right: int | None,
    swap: Sequence[tuple[int, int]],
) -> tuple[Array, Array]:
    if "flip" not in drawn:
        return image, label
    for axis in axes:
        flipped = drawn["flip"][axis]
        image = jnp.where(flipped, jnp.flip(image, axis), image)
        label = jnp.where(flipped, jnp.flip(label, axis), label)
        if axis == left_right:
            label = jnp.where(flipped, _swapped(label, swap), label)
    return image, label


def _swapped(label: Array, swap: Sequence[tuple[int, int]]) -> Array:
    found = label
    for one, other in swap:
        found = jnp.where(label == one, other, jnp.where(label == other, one, found))
    return found


def _recoloured(drawn: Drawn, image: Array, keep_range: bool) -> Array:
    if "bias_field" in drawn:
        image = _biased(image, drawn["bias_field"], drawn["bias_field_key"])
    # Of the block as it is before all that follows, so that no strength depends on another.
    mean, spread = image.mean(_SPACE), image.std(_SPACE)
    if "contrast" in drawn:
        lowest, highest = image.min(_SPACE), image.max(_SPACE)
        image = (image - mean) * drawn["contrast"] + mean
        if keep_range:
            image = jnp.clip(image, lowest, highest)
    if "brightness" in drawn:
        image = image * drawn["brightness"]
    if "shift" in drawn:
        image = image + spread * drawn["shift"]
    if "noise" in drawn:
        noise = jax.random.normal(drawn["noise_key"], image.shape, image.dtype)
        image = image + spread * drawn["noise"] * noise
    if "blur" in drawn:
        image = _by_channel(blur, image, drawn["blur"])
    if "resolution" in drawn:
        factor = jnp.broadcast_to(1 / drawn["resolution"][:, None], (image.shape[-1], 3))
        image = _by_channel(lower_resolution, image, factor)
    if "gamma_inverted" in drawn:
        image = -_gamma(-image, drawn["gamma_inverted"])
    if "gamma" in drawn:
        image = _gamma(image, drawn["gamma"])
    return image


def _biased(image: Array, size: Array, key: Array) -> Array:
    field = smooth_field(key, image.shape[:3], (_BIAS_POINTS,) * 3, image.shape[-1])
    lowest = image.min(_SPACE)
    return lowest + (image - lowest) * jnp.exp(size * field)


def _by_channel(change: Callable[[Array, Array], Array], image: Array, strength: Array) -> Array:
    """Changes each channel of `[D, H, W, C]` by its own strength `[C, 3]`."""

    def one(channel: Array, strength: Array) -> Array:
        return change(channel[..., None], strength)[..., 0]

    return jax.vmap(one, in_axes=(-1, 0), out_axes=-1)(image, strength)


def _gamma(image: Array, exponent: Array) -> Array:
    mean, spread, lowest = image.mean(_SPACE), image.std(_SPACE), image.min(_SPACE)
    # Where a compiler computes the image twice, it may lie a hair outside its own range.
    share = jnp.clip((image - lowest) / jnp.maximum(image.max(_SPACE) - lowest, _TINY), 0, 1)
    shaped = share**exponent
    scale = spread / jnp.maximum(shaped.std(_SPACE), _TINY)
    return (shaped - shaped.mean(_SPACE)) * scale + mean
