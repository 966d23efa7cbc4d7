"""SynthSeg's generator: regions look as was drawn, and the label goes where the image goes."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from voxtune.engine.case import IGNORE
from voxtune.engine.contract import Contract
from voxtune.engine.intensity import scaling_of
from voxtune.engine.mesh import make_mesh, over_data
from voxtune.engine.synthetic import FREESURFER_PAIRS, Generator, integrated, scaled
from voxtune.models.errors import InputError

EDGE, BATCH = 20, 8
CONTRACT = Contract("LIA", (1.0, 1.0, 1.0), "minmax", (EDGE, EDGE, EDGE), channels=("t1", "t2"))
VALUES, CLASSES = (0, 2, 24, 41, 99), (0, 1, 3, 2, IGNORE)
TISSUES = np.array([0, 1, 2, 1, 3])
GENERATOR = Generator.of(CONTRACT, VALUES, CLASSES, pairs=FREESURFER_PAIRS)
FULL = {
    name: getattr(GENERATOR, name)
    for name in (
        *("rotation_degrees", "scaling", "shear", "elastic_mm", "mean", "std", "bias", "gamma"),
        *("resolution_mm", "all_axes_mm", "finest_blur"),
    )
}
STILL = {name: jax.tree.map(lambda _: 0.0, strength) for name, strength in FULL.items()}
STILL["mean"] = FULL["mean"]
KEY = jax.random.key(0)


def head() -> np.ndarray:
    """Indices of values: layers of a crooked egg, halved along the first axis."""
    grid = np.moveaxis(np.indices((EDGE, EDGE, EDGE)), 0, -1) - (EDGE - 1) / 2 + (1, 0, 2)
    radius = np.linalg.norm(grid / (1, 0.8, 1.1), axis=-1)
    inside = np.where(grid[..., 0] < 0.4 * grid[..., 1], 1, 3)
    return np.select([radius < 2.5, radius < 6, radius < 9], [4, inside, 2], 0).astype(np.uint8)


LABEL = np.repeat(head()[None], BATCH, axis=0)


@jax.jit
def run(strengths: dict[str, Any], label: jax.Array) -> tuple:
    """Image, classes, and what was drawn. Strengths are traced, so that all compile once."""
    generator = replace(GENERATOR, **strengths)
    keys = jax.random.split(KEY, BATCH)
    draws = jax.vmap(lambda key: jax.random.split(key, 3)[0])(keys)
    return *generator(keys, label), *jax.vmap(generator.draw)(draws)


def made(strengths: dict[str, Any], label: np.ndarray = LABEL) -> tuple:
    return jax.tree.map(np.asarray, run(strengths, label))


def to_unit(colours: np.ndarray) -> np.ndarray:
    return (colours - colours.min()) / np.ptp(colours)


def test_left_and_right_share_a_gaussian_and_are_flipped_sideways():
    assert GENERATOR.same_tissue == (0, 1, 2, 1, 4)
    assert (GENERATOR.flip_axis, GENERATOR.swap, GENERATOR.channels) == (0, ((1, 3),), 2)
    turned = Contract("ASR", (1.0, 1.0, 2.0), "zscore", (8, 8, 8))
    other = Generator.of(turned, (0, 5), (0, 1))
    assert (other.flip_axis, other.swap, other.channels) == (2, (), 1)
    assert (other.same_tissue, other.intensity) == ((0, 1), "zscore")
    assert Generator.of(turned, (0, 5), (0, 1), flip=False).flip_axis is None


def test_a_lonely_side_and_an_unknown_voxel_size_are_refused():
    with pytest.raises(InputError, match=r"value 41 but nowhere 2.*--flip none"):
        Generator.of(CONTRACT, (0, 41), (0, 1), pairs=FREESURFER_PAIRS)
    still = Generator.of(CONTRACT, (0, 41), (0, 1), pairs=FREESURFER_PAIRS, flip=False)
    assert (still.swap, still.flip_axis) == ((), None)
    with pytest.raises(InputError, match="--spacing"):
        Generator.of(replace(CONTRACT, spacing_mm=None), VALUES, CLASSES)


def test_draws_keep_to_their_ranges_and_shares():
    generator, count = replace(GENERATOR, spacing_mm=(1.0, 1.5, 1.0)), 4000
    keys = jax.random.split(jax.random.key(0), count)
    geometry, appearance = jax.tree.map(np.asarray, jax.jit(jax.vmap(generator.draw))(keys))

    def fills(values: np.ndarray, low: float, high: float) -> bool:
        room = 0.02 * (high - low)
        return low <= values.min() < low + room and high - room < values.max() < high + 1e-5

    def happens(what: np.ndarray, share: float) -> bool:
        return abs(what.mean() - share) < 4 * np.sqrt(share * (1 - share) / what.size)

    assert fills(np.rad2deg(geometry.rotation), -15, 15)
    assert fills(geometry.scaling, 0.8, 1.2)
    assert fills(geometry.shear, -0.012, 0.012)
    assert fills(geometry.elastic_mm, 0, 4)
    assert happens(geometry.flipped, 0.5)
    assert fills(appearance.mean[..., 1:], 0, 250)
    assert fills(appearance.std[..., 1:], 0, 30)
    air, noise = appearance.mean[..., 0], appearance.std[..., 0]
    assert happens((air == 0) & (noise == 0), 0.05)
    # One of any brightness happens to be that dark, too.
    assert happens((air > 0) & (air < 15) & (noise < 5), 0.25 + 0.7 * 15 / 250 * 5 / 30)
    assert fills(appearance.bias, 0, 0.7)
    assert happens(appearance.bias == 0, 0.05)
    assert abs(appearance.gamma.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * appearance.gamma.size)

    finest, resolution = np.array(generator.spacing_mm), appearance.resolution_mm
    coarse = resolution > finest
    axes = coarse.sum(-1, keepdims=True)
    assert set(np.unique(axes)) == {0, 1, 3}
    assert happens(axes == 0, 0.05)
    assert happens(axes == 3, 0.95 * 0.1)
    assert fills(resolution[coarse & (axes == 1)], 1, 8)
    assert fills(resolution[coarse & (axes == 3)], 1, 4)
    assert fills(appearance.blur_voxels[~coarse], 0.5 / 1.03, 0.5 * 1.03)
    thickness = (appearance.blur_voxels * finest / resolution)[coarse] / 0.75
    assert 0 < thickness.min() < 0.2 < 0.97 < thickness.max() < 1.03


def test_without_strength_regions_have_the_colours_drawn_and_a_flip_swaps_left_and_right():
    images, labels, geometry, appearance = made(STILL)
    assert set(geometry.flipped) == {True, False}
    swapped = np.array([0, 3, 2, 1, 4])[LABEL[0, ::-1]]
    for example, flipped in enumerate(geometry.flipped):
        indices = swapped if flipped else LABEL[0]
        np.testing.assert_array_equal(labels[example], np.array(CLASSES)[indices])
        for channel in range(2):
            colours = appearance.mean[example, channel][TISSUES[indices]]
            np.testing.assert_allclose(images[example, ..., channel], to_unit(colours), atol=1e-5)


def test_each_region_has_the_mean_and_spread_that_were_drawn():
    """Up to the straight line that scales the block to [0, 1], found by regression."""
    images, _, geometry, appearance = made(STILL | {"mean": (100.0, 200.0), "std": (1.0, 10.0)})
    for example, channel in np.ndindex(BATCH, 2):
        mean, std = appearance.mean[example, channel], appearance.std[example, channel]
        tissue = TISSUES[LABEL[0, ::-1] if geometry.flipped[example] else LABEL[0]]
        clipped = mean < 4 * std  # a dark background
        image = images[example, ..., channel].astype(np.float64)
        regions = [image[tissue == number] for number in range(4)]
        found = np.array([(region.mean(), region.std(), region.size) for region in regions])
        size = found[:, 2]
        weights = np.where(clipped, 0, np.sqrt(size) / np.maximum(std, 1))
        slope, offset = np.polyfit(mean, found[:, 0], 1, w=weights)
        error = (found[:, 0] - offset) / slope - mean
        assert (np.abs(error) < 4 * std / np.sqrt(size) + 1e-3)[~clipped].all()
        ratio = found[:, 1] / slope / np.maximum(std, 1)
        # The slope is known from the means to a few hundredths only.
        assert (np.abs(ratio - 1) < 4 / np.sqrt(2 * size) + 0.1)[~clipped].all()


def test_gamma_and_blur_are_those_that_were_drawn():
    still, labels, *_ = made(STILL)
    powered, same, _, appearance = made(STILL | {"gamma": 0.5})
    np.testing.assert_array_equal(same, labels)
    exponent = np.exp(appearance.gamma)[:, None, None, None]
    np.testing.assert_allclose(powered, still**exponent, atol=1e-5)
    blurred, same, _, appearance = made(STILL | {"resolution_mm": 0.0, "finest_blur": 1.5})
    np.testing.assert_array_equal(same, labels)
    for example, channel in np.ndindex(BATCH, 2):
        sigma = appearance.blur_voxels[example, channel]
        wanted = to_unit(gaussian_filter(still[example, ..., channel], sigma))
        np.testing.assert_allclose(blurred[example, ..., channel], wanted, atol=1e-4)


def test_where_all_tissues_look_alike_the_bias_field_is_seen_and_it_is_smooth():
    images, labels, _, appearance = made(STILL | {"bias": 0.7, "mean": (50.0, 50.0)})
    np.testing.assert_array_equal(labels, made(STILL)[1])
    seen = (appearance.mean[..., 0] == 50) & (appearance.bias > 0.01)  # no dark background
    assert seen.sum() > 5
    for example, channel in np.argwhere(seen):
        image = images[example, ..., channel]
        assert image.std() > 0.1
        for axis in range(3):
            assert np.abs(np.diff(image, 1, axis)).max() < 0.2
            assert np.abs(np.diff(image, 2, axis)).max() < 0.03


def test_between_coarse_slices_there_are_straight_lines():
    images, labels, _, appearance = made(STILL | {"resolution_mm": 8.0})
    np.testing.assert_array_equal(labels, made(STILL)[1])
    few = 0
    for example, channel, axis in np.ndindex(BATCH, 2, 3):
        bent = np.abs(np.diff(images[example, ..., channel], 2, axis)) > 1e-4
        bends = bent.any(tuple({0, 1, 2} - {axis})).sum()
        slices = np.round(EDGE / appearance.resolution_mm[example, channel, axis])
        assert bends <= 2 * slices  # a slice lies between two voxels, and both may bend
        few += slices < EDGE / 3
    assert few > 5


def test_image_and_label_are_deformed_together():
    moving = {name: FULL[name] for name in ("rotation_degrees", "scaling", "shear", "elastic_mm")}
    images, labels, geometry, appearance = made(STILL | moving)
    assert len({label.tobytes() for label in labels}) == BATCH
    for example, flipped in enumerate(geometry.flipped):
        still = np.array([0, 2, 3, 1, IGNORE])[LABEL[0, ::-1]] if flipped else None
        still = np.array(CLASSES)[LABEL[0]] if still is None else still
        assert 0.02 < (labels[example] != still).mean() < 0.5
        tissue = np.select([labels[example] == kind for kind in (0, 1, 2, 3)], [0, 1, 1, 2], 3)
        for channel in range(2):
            colours = appearance.mean[example, channel][tissue]
            np.testing.assert_allclose(images[example, ..., channel], to_unit(colours), atol=1e-5)


def test_voxels_move_as_far_as_the_points_of_the_velocity_field_say():
    """Classes are coordinates along one axis: they tell where a voxel comes from."""
    count, numbers = 128, tuple(range(EDGE))
    drawn = {"values": numbers, "classes": numbers, "same_tissue": numbers, "swap": ()}
    still = replace(GENERATOR, spacing_mm=(2.0, 1.0, 1.0), flip_axis=None, **STILL, **drawn)
    bending = replace(still, elastic_mm=4.0)
    keys = jax.random.split(KEY, count)
    draws = jax.vmap(lambda key: jax.random.split(key, 3)[0])(keys)
    most = np.asarray(jax.vmap(bending.draw)(draws)[0].elastic_mm)
    moved = jax.jit(lambda label: bending(keys, label)[1])
    for axis, spacing in enumerate(bending.spacing_mm[:2]):
        where = np.broadcast_to(np.arange(EDGE), (EDGE,) * 3).swapaxes(axis, 2)
        label = np.repeat(where[None].astype(np.uint8), count, 0)
        shift = (np.asarray(moved(label)).astype(float) - where)[:, 8:12, 8:12, 8:12]
        # SynthSeg's linear interpolation keeps (2/3)^3 of the points' variance on average.
        wanted = np.sqrt((most**2).mean() * (2 / 3) ** 3 / spacing**2 + 1 / 12)  # and rounding
        assert abs(np.sqrt((shift**2).mean()) / wanted - 1) < 4 / np.sqrt(2 * count)


def test_voxels_beyond_the_values_are_air_and_ignored():
    label = LABEL.copy()
    label[:, :, :3] = 255
    images, labels, *_ = made(STILL, label)
    assert (labels[:, :, :3] == IGNORE).all()
    assert (labels[:, :, 3:] == 0).any()
    air = np.broadcast_to(images[:, :1, 3:4, :1], images[:, :, :3].shape)
    np.testing.assert_array_equal(images[:, :, :3], air)


def test_the_key_alone_decides_and_examples_do_not_touch():
    images, *_ = made(FULL)
    assert np.isfinite(images).all()
    np.testing.assert_array_equal(images.min((1, 2, 3)), 0)
    np.testing.assert_allclose(images.max((1, 2, 3)), 1, atol=1e-6)
    assert len({image.tobytes() for image in images}) == BATCH
    changed = LABEL.copy()
    changed[3:] = 0
    again, *_ = made(FULL, changed)
    np.testing.assert_array_equal(again[:3], images[:3])
    assert np.isfinite(again).all()
    assert (again[3:] != images[3:]).any()


def test_a_batch_over_devices_is_the_same_and_nothing_is_gathered():
    sharding = over_data(make_mesh("data=4"))
    keys, label = jax.random.split(KEY, BATCH), jax.device_put(LABEL, sharding)
    compiled = jax.jit(GENERATOR).lower(keys, label).compile()
    for words in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert words not in compiled.as_text()
    for found, wanted in zip(compiled(keys, label), made(FULL)[:2], strict=True):
        assert len(found.sharding.device_set) == 4
        assert (np.abs(np.asarray(found) - wanted.astype(np.float32)) < 1e-4).mean() > 0.999


@pytest.mark.parametrize(
    "kind", ["zscore", "zscore_nonzero", "minmax", "quantile", "percentile", "none"]
)
def test_blocks_are_scaled_as_scans_are(kind):
    image = np.random.default_rng(0).beta(2, 5, (40, 40, 40)).astype(np.float32)
    background = LABEL[0].repeat(2, 0).repeat(2, 1).repeat(2, 2) == 0
    if kind == "zscore_nonzero":
        image[background] = 0
    wanted = 255 * image if kind == "none" else scaling_of(image, kind)(image)
    found = scaled(image, kind, background)
    # Quantiles are estimated from an eighth of the voxels.
    np.testing.assert_allclose(found, wanted, atol=0.1 if "tile" in kind else 1e-5)
    if kind != "none":
        np.testing.assert_array_equal(scaled(np.full_like(image, 0.5), kind, background | True), 0)


def test_velocities_are_followed():
    """As by many small steps, where these do not leave the block."""
    grid = np.indices((18, 19, 20)).astype(np.float64)
    velocity = np.stack([2 * np.sin(grid[1] / 5), np.cos(grid[2] / 6), np.sin(grid[0] / 5)], -1)
    where, steps = grid.copy(), 200
    sample = partial(map_coordinates, order=1, mode="mirror")
    for _ in range(steps):
        where += np.stack([sample(velocity[..., axis], where) for axis in range(3)]) / steps
    found = np.asarray(jax.jit(integrated)(jnp.asarray(velocity, jnp.float32)))
    within = (slice(3, -3),) * 3
    wanted = np.moveaxis(where - grid, 0, -1)
    assert np.abs(wanted - velocity)[within].max() > 0.15
    np.testing.assert_allclose(found[within], wanted[within], atol=0.01)
