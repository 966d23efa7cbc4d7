"""Images painted from label maps, of random contrast and resolution: SynthSeg's generator.

Billot et al., "SynthSeg: Segmentation of brain MRI scans of any contrast and resolution without
retraining", Medical Image Analysis 86:102789, 2023. Steps, ranges and probabilities are those of
its authors' code (github.com/BBillot/SynthSeg, the defaults of `BrainGenerator`,
`labels_to_image_model`, `build_model_inputs` and of lab2im's layers). It works in voxels of 1 mm;
here what is a length is in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.random import bernoulli, normal, uniform

from voxtune.engine.case import IGNORE
from voxtune.engine.contract import Contract
from voxtune.engine.intensity import IntensityKind
from voxtune.engine.separable import acquire, resize, smooth_field
from voxtune.engine.warp import affine, warp
from voxtune.models.errors import InputError

Triple = tuple[float, float, float]
Range = tuple[float, float]

# Left and right of one structure in FreeSurfer's numbering (FreeSurferColorLUT.txt), as SynthSeg's
# label maps have it: aseg, then the cortical parcels of aparc+aseg.
FREESURFER_PAIRS = (
    *((2, 41), (3, 42), (4, 43), (5, 44), (7, 46), (8, 47), (10, 49), (11, 50), (12, 51)),
    *((13, 52), (17, 53), (18, 54), (25, 57), (26, 58), (27, 59), (28, 60)),
    *((29, 61), (30, 62), (31, 63), (136, 163), (137, 164)),
    *((1000 + parcel, 2000 + parcel) for parcel in range(36)),
)

# Distances between the random points of a field: SynthSeg draws one point in 1 / 0.04 voxels for
# the velocities, one in 1 / 0.025 for the bias field.
_ELASTIC_MM, _BIAS_MM = 25.0, 40.0
# SynthSeg interpolates linearly between its points, which keeps 2/3 of their variance an axis on
# average over the voxels; `smooth_field` keeps all.
_BETWEEN_POINTS = (2 / 3) ** 1.5
_COARSE_VOXELS = 4  # the velocities are integrated on every fourth voxel of a field that smooth
_SQUARINGS = 5

_BIAS_SHARE = 0.95
_BLACK_SHARE, _DARK_SHARE = 0.05, 0.25  # of images whose background is 0, or nearly
_DARK_MEAN, _DARK_STD = 15.0, 5.0
_FULL_RESOLUTION_SHARE = 0.05
_ALL_AXES_SHARE = 0.1
_BRIGHTEST = 300.0
_SIGMA_OF_THICKNESS = 0.75  # of a Gaussian as wide as a slice is thick
_EPSILON = 1e-6  # least spread to divide by: a block of one value becomes 0
_SIGMA_SPREAD = 1.03  # standard deviations of blurs are multiplied by 1/1.03 to 1.03


class Appearance(NamedTuple):
    """What is drawn for the channels of one example, but their fields and their noise.

    Attributes:
        mean: `[C, tissues]`, of the Gaussians.
        std: likewise.
        bias: `[C]`, standard deviation of the control points of the bias field's logarithm.
        gamma: `[C]`, the exponent's logarithm.
        resolution_mm: `[C, 3]`, distance of the slices along each axis.
        blur_voxels: `[C, 3]`, standard deviation of the blur that makes them thick.
    """

    mean: Array
    std: Array
    bias: Array
    gamma: Array
    resolution_mm: Array
    blur_voxels: Array


class Geometry(NamedTuple):
    """What is drawn for the shape of one example, but its field.

    Attributes:
        rotation: `[3]`, radians.
        scaling: `[3]`.
        shear: `[3]`.
        elastic_mm: standard deviation of the velocities' control points.
        flipped: whether left and right change places.
    """

    rotation: Array
    scaling: Array
    shear: Array
    elastic_mm: Array
    flipped: Array


@dataclass(frozen=True)
class Generator:
    """Makes training examples out of label maps alone; `Generator.of` fills it from a contract.

    A caller needs label maps, no images: conformed to the contract, their values replaced by
    indices. They should name all that a scan shows: where everything but the brain is one
    background, the network learns skull-stripped scans alone (SynthSeg's maps also name skull, eyes
    and soft tissue, which need not be classes).

    Attributes:
        values: label values that are drawn. A label array holds indices into them. The first is
            the background, air, which 5 % of images have black and 25 % dark. An index beyond
            them, 255 say, is painted as background and is to be ignored.
        classes: for each value the class index that is learned, or 255 to ignore it.
        same_tissue: for each value a number, equal for values that share one Gaussian.
        spacing_mm: voxel sizes.
        flip_axis: spatial axis from left to right, along which half of the blocks are flipped;
            None for no flips.
        swap: pairs of indices into `values` that change places when a block is flipped.
        intensity: of the contract. Statistics are the block's own, not the whole scan's. "minmax",
            "percentile", "window" and "quantile" bring images to [0, 1] by the same quantiles as
            of scans, estimated from every second voxel; "zscore_nonzero" has the background at 0;
            "none" gives 0 to 255.
        channels: how many images of one head are painted, each with its own contrast.
        rotation_degrees: about each axis, to both sides.
        scaling: of each axis, 1 - scaling to 1 + scaling.
        shear: to both sides.
        elastic_mm: greatest standard deviation of the deformation's control points.
        mean: range of the Gaussians' means.
        std: range of their standard deviations.
        bias: greatest standard deviation of the logarithm of the bias field's control points.
        gamma: standard deviation of the logarithm of the exponent.
        resolution_mm: greatest distance of slices, where one axis of a scan is coarse; the others
            are as fine as the label map.
        all_axes_mm: likewise, in the tenth of images in which all three are coarse.
        finest_blur: standard deviation of the blur along axes that are not coarse, voxels.
    """

    values: tuple[int, ...]
    classes: tuple[int, ...]
    same_tissue: tuple[int, ...]
    spacing_mm: Triple
    flip_axis: int | None
    swap: tuple[tuple[int, int], ...]
    intensity: IntensityKind
    channels: int = 1
    rotation_degrees: float = 15.0
    scaling: float = 0.2
    shear: float = 0.012
    elastic_mm: float = 4.0
    mean: Range = (0.0, 250.0)
    std: Range = (0.0, 30.0)
    bias: float = 0.7
    gamma: float = 0.5
    resolution_mm: float = 8.0
    all_axes_mm: float = 4.0
    finest_blur: float = 0.5

    @classmethod
    def of(
        cls,
        contract: Contract,
        values: Sequence[int],
        classes: Sequence[int],
        *,
        pairs: Sequence[tuple[int, int]] = (),
        flip: bool = True,
    ) -> Generator:
        """The generator of what a network with this contract is given.

        Args:
            contract: of the network; its spacing is the label maps'.
            values: label values of the label maps, the background first.
            classes: for each the class index that is learned, or 255.
            pairs: left and right value of structures that have a side, and share a Gaussian:
                `FREESURFER_PAIRS` for FreeSurfer's numbering; pairs that the label maps lack are
                passed over.
            flip: whether left and right change places in half of the blocks.

        Raises:
            InputError: the contract has no spacing; or heads are to be flipped, and one of a pair
                is missing.
        """
        if contract.spacing_mm is None:
            raise InputError(
                "images can be painted from label maps at a known voxel size only, and this model "
                "takes scans at their own: give --spacing"
            )
        index = {value: place for place, value in enumerate(values)}
        swap = []
        for left, right in pairs:
            if left in index and right in index:
                swap.append((index[left], index[right]))
            elif flip and (left in index or right in index):
                there, missing = (left, right) if left in index else (right, left)
                raise InputError(
                    f"the label maps have value {there} but nowhere {missing}, its other side, so "
                    "they cannot be flipped: give --flip none"
                )
        tissue = list(range(len(values)))
        for one, other in swap:
            tissue[other] = tissue[one]
        sideways = next(axis for axis, to in enumerate(contract.orientation) if to in "LR")
        return cls(
            values=tuple(values),
            classes=tuple(classes),
            same_tissue=tuple(tissue),
            spacing_mm=contract.spacing_mm,
            flip_axis=sideways if flip else None,
            swap=tuple(swap),
            intensity=contract.intensity,
            channels=len(contract.channels or ("image",)),
        )

    def __call__(self, keys: Array, label: Array) -> tuple[Array, Array]:
        """Deforms label maps and paints them.

        Blocks are deformed by themselves, mirrored beyond their borders.

        Args:
            keys: a JAX key for each block, `[B]`.
            label: indices into `values`, uint8 or uint16 `[B, D, H, W]`.

        Returns:
            image: float32 `[B, D, H, W, C]`, scaled as the contract says.
            label: class indices, uint8 `[B, D, H, W]`.
        """
        return jax.vmap(self._example)(keys, label)

    def draw(self, key: Array) -> tuple[Geometry, Appearance]:
        """Draws what one example is to be, within the ranges."""
        geometry, contrast, resolution, bias, biased, gamma = jax.random.split(key, 6)
        mean, std = self._contrast(contrast)
        resolution_mm, blur_voxels = self._resolution(resolution)
        each = (self.channels,)
        appearance = Appearance(
            mean=mean,
            std=std,
            bias=bernoulli(biased, _BIAS_SHARE, each) * uniform(bias, each, maxval=self.bias),
            gamma=self.gamma * normal(gamma, each),
            resolution_mm=resolution_mm,
            blur_voxels=blur_voxels,
        )
        affine, elastic, flip = jax.random.split(geometry, 3)
        rotation, scaling, shear = uniform(affine, (3, 3), minval=-1)
        return Geometry(
            rotation=jnp.deg2rad(self.rotation_degrees) * rotation,
            scaling=1 + self.scaling * scaling,
            shear=self.shear * shear,
            elastic_mm=uniform(elastic, maxval=self.elastic_mm),
            flipped=bernoulli(flip) & (self.flip_axis is not None),
        ), appearance

    def _contrast(self, key: Array) -> tuple[Array, Array]:
        """Means and standard deviations of the Gaussians, [C, tissues] each."""
        means, stds, share, dark_means, dark_stds = jax.random.split(key, 5)
        tissues, each = (self.channels, int(self._tissue.max()) + 1), (self.channels,)
        mean = uniform(means, tissues, minval=self.mean[0], maxval=self.mean[1])
        std = uniform(stds, tissues, minval=self.std[0], maxval=self.std[1])
        share, air = uniform(share, each), self._tissue[0]
        dark, lit = share < _BLACK_SHARE + _DARK_SHARE, share >= _BLACK_SHARE
        dark_mean = lit * uniform(dark_means, each, maxval=_DARK_MEAN)
        dark_std = lit * uniform(dark_stds, each, maxval=jnp.minimum(_DARK_STD, self.std[1]))
        mean = mean.at[:, air].set(jnp.where(dark, dark_mean, mean[:, air]))
        return mean, std.at[:, air].set(jnp.where(dark, dark_std, std[:, air]))

    def _resolution(self, key: Array) -> tuple[Array, Array]:
        """Distance of slices, mm, and blur, voxels, [C, 3] each."""
        full, every, axis, slices, thickness, spread = jax.random.split(key, 6)
        one, three = (self.channels, 1), (self.channels, 3)
        every = bernoulli(every, _ALL_AXES_SHARE, one)
        coarse = every | (jax.random.randint(axis, one, 0, 3) == np.arange(3))
        coarse = coarse & ~bernoulli(full, _FULL_RESOLUTION_SHARE, one)
        finest = jnp.asarray(self.spacing_mm)
        greatest = jnp.maximum(finest, jnp.where(every, self.all_axes_mm, self.resolution_mm))
        drawn = uniform(slices, three, minval=finest, maxval=greatest)
        resolution = jnp.where(coarse, drawn, finest)
        # Slices may have gaps between them, as clinical scans have.
        thick = uniform(thickness, three, minval=finest, maxval=resolution)
        sigma = _SIGMA_OF_THICKNESS * thick / finest
        sigma = jnp.where(resolution > finest, sigma, self.finest_blur)
        spread = uniform(spread, three, minval=1 / _SIGMA_SPREAD, maxval=_SIGMA_SPREAD)
        return resolution, sigma * spread

    @cached_property
    def _tissue(self) -> np.ndarray:
        """For each value the number of its Gaussian, without gaps."""
        return np.unique(self.same_tissue, return_inverse=True)[1]

    @cached_property
    def _mirrored(self) -> np.ndarray:
        """For each value the index of the one it becomes when left and right change places."""
        places = np.arange(len(self.values))
        for one, other in self.swap:
            places[[one, other]] = other, one
        return places

    def _example(self, key: Array, label: Array) -> tuple[Array, Array]:
        draws, velocities, paint = jax.random.split(key, 3)
        geometry, appearance = self.draw(draws)
        label = self._deformed(velocities, label, geometry)
        # Structures change places in the tables, which are shorter than a label map.
        places = jnp.where(geometry.flipped, self._mirrored, np.arange(len(self.values)))
        classes = jnp.append(jnp.asarray(self.classes, jnp.uint8)[places], jnp.uint8(IGNORE))
        tissues = jnp.append(jnp.asarray(self._tissue)[places], self._tissue[0])
        label = jnp.minimum(label, len(self.values)).astype(jnp.int32)
        keys = jax.random.split(paint, self.channels)
        painted = jax.vmap(self._painted, (0, 0, None), -1)(keys, appearance, tissues[label])
        return painted, classes[label]

    def _deformed(self, key: Array, label: Array, geometry: Geometry) -> Array:
        depth, height, width = shape = label.shape
        spacing, nowhere = jnp.asarray(self.spacing_mm), jnp.zeros(3)
        matrix = affine(
            geometry.rotation, geometry.scaling, geometry.shear, nowhere, self.spacing_mm
        )
        points = _points(shape, self.spacing_mm, _ELASTIC_MM)
        coarse = tuple(-(-n // _COARSE_VOXELS) for n in shape)
        strength = _BETWEEN_POINTS * geometry.elastic_mm / spacing
        velocity = strength * smooth_field(key, coarse, points, 3)
        ratio = jnp.asarray([n / m for n, m in zip(shape, coarse, strict=True)])
        displacement = resize(integrated(velocity / ratio), (depth, height, width)) * ratio
        _, label = warp(jnp.zeros((*shape, 1)), label, matrix, displacement)
        if self.flip_axis is None:
            return label
        return jnp.where(geometry.flipped, jnp.flip(label, self.flip_axis), label)

    def _painted(self, key: Array, channel: Appearance, tissue: Array) -> Array:
        """One channel, [D, H, W]."""
        noise, field = jax.random.split(key)
        image = channel.mean[tissue] + channel.std[tissue] * normal(noise, tissue.shape)
        points = _points(tissue.shape, self.spacing_mm, _BIAS_MM)
        bias = smooth_field(field, tissue.shape, points, 1)[..., 0]
        image = image * jnp.exp(_BETWEEN_POINTS * channel.bias * bias)
        image = _to_unit(jnp.clip(image, 0, _BRIGHTEST)) ** jnp.exp(channel.gamma)
        factor = channel.resolution_mm / jnp.asarray(self.spacing_mm)
        image = acquire(image[..., None], channel.blur_voxels, factor)[..., 0]
        return scaled(image, self.intensity, tissue == self._tissue[0])


def integrated(velocity: Array) -> Array:
    """Follows a constant velocity for one unit of time, by scaling and squaring.

    Arsigny et al., MICCAI 2006. What is smooth stays without folds, whatever its strength.

    Args:
        velocity: float `[D, H, W, 3]`, voxels; beyond the border as if mirrored.

    Returns:
        The displacement, shape and unit unchanged.
    """
    nothing, identity = jnp.zeros(velocity.shape[:3], jnp.uint8), jnp.eye(3, 4)

    def doubled(_: int, displacement: Array) -> Array:
        return displacement + warp(displacement, nothing, identity, displacement)[0]

    return jax.lax.fori_loop(0, _SQUARINGS, doubled, velocity / 2**_SQUARINGS)


def _points(shape: Sequence[int], spacing_mm: Triple, distance_mm: float) -> tuple[int, int, int]:
    """Control points of a field over a block, three more an axis than it has intervals."""
    depth, height, width = (
        max(1, round(n * mm / distance_mm)) + 3 for n, mm in zip(shape, spacing_mm, strict=True)
    )
    return depth, height, width


def scaled(image: Array, kind: IntensityKind, background: Array) -> Array:
    """What `voxtune.engine.intensity` does to a scan, by the statistics of a block.

    Args:
        image: float `[D, H, W]`, within [0, 1].
        kind: of the contract.
        background: bool `[D, H, W]`, what would be 0 in a scan whose zeros do not count.

    Returns:
        Finite numbers of the image's shape: a block of one value becomes 0.
    """
    if kind == "none":
        return 255 * image
    if kind == "zscore":
        return _standardised(image, jnp.ones_like(background))
    if kind == "zscore_nonzero":
        return jnp.where(background, 0, _standardised(image, ~background))
    if kind in ("minmax", "window"):
        return _to_unit(image)
    outside = 0.05 if kind == "quantile" else 0.005
    low, high = jnp.quantile(image[::2, ::2, ::2], jnp.asarray((outside, 1 - outside)))
    image = image if kind == "quantile" else jnp.clip(image, low, high)
    return (image - low) / jnp.maximum(high - low, _EPSILON)


def _to_unit(image: Array) -> Array:
    low = image.min()
    return (image - low) / jnp.maximum(image.max() - low, _EPSILON)


def _standardised(image: Array, there: Array) -> Array:
    count = jnp.maximum(there.sum(), 1)
    centred = image - (there * image).sum() / count
    return centred / jnp.maximum(jnp.sqrt((there * centred**2).sum() / count), _EPSILON)
