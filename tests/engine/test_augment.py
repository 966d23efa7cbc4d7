"""What training blocks may become: each change within its range, as often as is stated."""

import itertools
from dataclasses import fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from voxtune.engine.augment import NEVER, PROFILES, Augmentation, Change, augment, draw
from voxtune.engine.losses import IGNORE
from voxtune.engine.mesh import make_mesh, over_data
from voxtune.engine.separable import blur, lower_resolution, smooth_field
from voxtune.engine.warp import affine

BLOCKS, SHAPE, CHANNELS = 4, (9, 10, 8), 2
RNG = np.random.default_rng(0)
IMAGE = (5 + 2 * RNG.normal(size=(BLOCKS, *SHAPE, CHANNELS))).astype(np.float32)
LABEL = RNG.choice(np.array([0, 1, 2, 3, IGNORE], np.uint8), (BLOCKS, *SHAPE))
KEY = jax.random.key(2)
KEYS = jax.random.split(KEY, BLOCKS)
CHANGES = [each.name for each in fields(Augmentation) if each.type is Change]
NEUTRAL = dict.fromkeys(CHANGES, 0.0) | dict.fromkeys(
    ("scaling", "contrast", "brightness", "resolution", "gamma_inverted", "gamma"), 1.0
)
ALWAYS = {
    "rotation": Change(1.0, -90, 90),
    "scaling": Change(1.0, 0.7, 1.4),
    "shear": Change(1.0, -0.2, 0.2),
    "translation": Change(1.0, -0.2, 0.2),
    "elastic": Change(1.0, 0, 0.1),
    "bias_field": Change(1.0, 0.1, 0.5),
    "contrast": Change(1.0, 0.5, 1.5),
    "brightness": Change(1.0, 0.5, 1.5),
    "shift": Change(1.0, -1, 1),
    "noise": Change(1.0, 0.1, 0.5),
    "blur": Change(1.0, 0.5, 1.5),
    "resolution": Change(1.0, 0.3, 1),
    "gamma_inverted": Change(1.0, 0.5, 2),
    "gamma": Change(1.0, 0.5, 2),
}


def run(augmentation: Augmentation, image=IMAGE, label=LABEL, **options: Any):
    """Image and label, changed."""
    change = partial(augment, augmentation=augmentation, **options)
    found = jax.jit(change)(KEYS, image, label)
    assert [(each.shape, each.dtype) for each in found] == [
        (each.shape, each.dtype) for each in (image, label)
    ]
    return [np.asarray(each) for each in found]


def drawn_for(augmentation: Augmentation) -> list[dict[str, Any]]:
    """What is drawn for each block; strengths as float64."""
    found = []
    for key in KEYS:
        drawn = draw(key, augmentation, CHANNELS)
        found.append({k: v if k.endswith("_key") else np.float64(v) for k, v in drawn.items()})
    return found


# What is drawn


@pytest.fixture(scope="module", params=PROFILES)
def draws(request) -> tuple[Augmentation, dict[str, np.ndarray]]:
    """A profile, and 10,000 draws of it."""
    profile = PROFILES[request.param]
    many = jax.vmap(partial(draw, augmentation=profile, channels=CHANNELS))
    found = jax.jit(many)(jax.random.split(KEY, 10_000))
    return profile, {k: np.asarray(v) for k, v in found.items() if not k.endswith("_key")}


def test_changes_are_as_frequent_as_stated(draws):
    profile, found = draws
    assert set(found) - {"flip"} == {name for name in CHANGES if getattr(profile, name) != NEVER}
    for name in set(found) - {"flip"}:
        change = getattr(profile, name)
        wanted = change.probability
        if name in ("rotation", "scaling", "shear", "translation", "elastic"):
            wanted *= profile.moved
        altered = found[name] != np.float32(NEUTRAL[name])
        altered = altered.reshape(10_000, -1)
        check_share(altered[:, 0], wanted * change.channels)
        one_of_two = 1 - (1 - change.channels) ** CHANNELS
        per_channel = name in ("blur", "resolution")
        check_share(altered.any(axis=1), wanted * (one_of_two if per_channel else 1))
    if profile.flip:
        for axis in range(3):
            check_share(found["flip"][:, axis], 0.5)
        for one, other in itertools.combinations(range(3), 2):
            check_share(found["flip"][:, one] == found["flip"][:, other], 0.5)


def check_share(happened: np.ndarray, probability: float) -> None:
    four_sigma = 4 * np.sqrt(probability * (1 - probability) / happened.size)
    assert abs(happened.mean() - probability) <= four_sigma + 1e-3  # draws may hit the neutral one


def test_strengths_fill_their_ranges_and_no_more(draws):
    profile, found = draws
    for name in set(found) - {"flip"}:
        change = getattr(profile, name)
        altered = found[name][found[name] != np.float32(NEUTRAL[name])]
        edge = (change.high - change.low) / 50
        assert change.low <= altered.min() + 1e-6 < change.low + edge
        assert change.high - edge < altered.max() - 1e-6 <= change.high


def test_half_of_the_gammas_lie_below_one(draws):
    _, found = draws
    for name in {"gamma", "gamma_inverted"} & set(found):
        altered = found[name][found[name] != 1]
        assert abs((altered < 1).mean() - 0.5) < 4 * 0.5 / np.sqrt(altered.size)


def test_nobrainer_turns_and_shifts_the_same_half_of_the_blocks():
    many = jax.vmap(partial(draw, augmentation=PROFILES["nobrainer"], channels=1))
    found = many(jax.random.split(KEY, 100))
    turned, shifted = ((np.asarray(found[k]) != 0).all(1) for k in ("rotation", "translation"))
    np.testing.assert_array_equal(turned, shifted)


# What is done


def test_light_makes_the_changes_that_it_always_made():
    """The same keys give the same numbers as they gave before there were profiles."""
    image, label = run(PROFILES["light"], flip_axes=(0, 2))
    for i, key in enumerate(KEYS):
        flip, contrast, shift, size, noise = jax.random.split(key, 5)
        axes = [axis for axis in (0, 2) if jax.random.bernoulli(flip, shape=(3,))[axis]]
        given = np.flip(IMAGE[i], axes).astype(np.float64)
        mean, spread = given.mean((0, 1, 2)), given.std((0, 1, 2))
        wanted = (given - mean) * jax.random.uniform(contrast, (2,), minval=0.75, maxval=1.25)
        wanted += mean + spread * jax.random.uniform(shift, (2,), minval=-0.1, maxval=0.1)
        size = spread * jax.random.uniform(size, (2,), maxval=0.1)
        wanted += size * jax.random.normal(noise, given.shape)
        np.testing.assert_allclose(image[i], wanted, atol=1e-5)
        np.testing.assert_array_equal(label[i], np.flip(LABEL[i], axes))


def test_none_changes_nothing():
    image, label = run(PROFILES["none"], flip_axes=(0, 1, 2))
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(label, LABEL)


def test_at_zero_strength_nothing_changes():
    still = {name: Change(1.0, value, value) for name, value in NEUTRAL.items()}
    image, label = run(Augmentation(**still))
    np.testing.assert_allclose(image, IMAGE, rtol=1e-6, atol=5e-6)  # values up to 12
    np.testing.assert_array_equal(label, LABEL)


def test_moves_are_one_transform_of_image_and_label_in_millimetres():
    spacing = (1.5, 1.0, 0.8)
    moves = {name: ALWAYS[name] for name in ("rotation", "scaling", "shear", "translation")}
    augmentation = Augmentation(**moves)
    image, label = run(augmentation, spacing=spacing)
    centre = (np.array(SHAPE) - 1) / 2
    for i, drawn in enumerate(drawn_for(augmentation)):
        assert np.ptp(drawn["translation"]) > 0
        matrix = affine(
            jnp.asarray(np.deg2rad(drawn["rotation"])),
            jnp.full(3, drawn["scaling"]),
            jnp.asarray(drawn["shear"]),
            jnp.asarray(drawn["translation"] * SHAPE),
            spacing,
        )
        turned, shift = np.float64(matrix[:, :3]), np.float64(matrix[:, 3])
        given = {"matrix": turned, "offset": centre + shift - turned @ centre, "mode": "mirror"}
        for channel in range(CHANNELS):
            wanted = ndimage.affine_transform(IMAGE[i, ..., channel], order=1, **given)
            np.testing.assert_allclose(image[i, ..., channel], wanted, atol=1e-4)
        wanted = ndimage.affine_transform(LABEL[i], order=0, **given)
        assert (label[i] == wanted).mean() > 0.995  # of the rest rounding may go either way


def test_elastic_moves_by_a_smooth_field_of_the_stated_size():
    augmentation = Augmentation(elastic=ALWAYS["elastic"])
    image, _ = run(augmentation)
    for i, drawn in enumerate(drawn_for(augmentation)):
        field = np.float64(smooth_field(drawn["elastic_key"], SHAPE, (7, 7, 7), 3))
        displacement = np.moveaxis(field * drawn["elastic"] * SHAPE, -1, 0)
        coordinates = np.indices(SHAPE) + displacement
        wanted = ndimage.map_coordinates(IMAGE[i, ..., 0], coordinates, order=1, mode="mirror")
        np.testing.assert_allclose(image[i, ..., 0], wanted, atol=1e-4)


def test_strong_does_not_fold_blocks():
    size, edge = PROFILES["strong"].elastic.high, 16
    fields = jax.vmap(lambda key: smooth_field(key, (edge,) * 3, (7, 7, 7), 3))
    for field in np.asarray(fields(jax.random.split(KEY, 200))):
        slopes = np.stack(np.gradient(size * edge * field, axis=(0, 1, 2)), axis=-1)
        assert np.linalg.det(np.eye(3) + slopes).min() > 0


BY_HAND = {
    "contrast": lambda x, s: x.mean() + (x - x.mean()) * s,
    "brightness": lambda x, s: x * s,
    "shift": lambda x, s: x + x.std() * s,
    "blur": lambda x, s: np.float64(blur(np.float32(x)[..., None], s)[..., 0]),
    "resolution": lambda x, s: np.float64(
        lower_resolution(np.float32(x)[..., None], np.full(3, 1 / s))[..., 0]
    ),
    "gamma": lambda x, s: gamma(x, s),
    "gamma_inverted": lambda x, s: -gamma(-x, s),
}


def gamma(x: np.ndarray, exponent: float) -> np.ndarray:
    """With the mean and standard deviation that x has."""
    powers = ((x - x.min()) / (x.max() - x.min())) ** exponent
    return (powers - powers.mean()) / powers.std() * x.std() + x.mean()


@pytest.mark.parametrize("name", BY_HAND)
def test_each_channel_is_changed_by_its_own_strength(name):
    augmentation = Augmentation(**{name: ALWAYS[name]})
    image, label = run(augmentation)
    np.testing.assert_array_equal(label, LABEL)
    for i, drawn in enumerate(drawn_for(augmentation)):
        for channel, strength in enumerate(drawn[name]):
            wanted = BY_HAND[name](IMAGE[i, ..., channel].astype(np.float64), strength)
            np.testing.assert_allclose(image[i, ..., channel], wanted, rtol=1e-4, atol=1e-4)


def test_contrast_may_keep_the_blocks_range():
    augmentation = Augmentation(contrast=Change(1.0, 1.5, 2.0), keep_range=True)
    image, _ = run(augmentation)
    free, _ = run(replace(augmentation, keep_range=False))
    lowest, highest = (f(IMAGE, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    np.testing.assert_allclose(image, np.clip(free, lowest, highest), atol=1e-5)
    assert (image != free).any()


def test_a_bias_field_multiplies_what_is_above_the_minimum():
    augmentation = Augmentation(bias_field=ALWAYS["bias_field"])
    image, _ = run(augmentation)
    for i, drawn in enumerate(drawn_for(augmentation)):
        field = np.float64(smooth_field(drawn["bias_field_key"], SHAPE, (5, 5, 5), CHANNELS))
        lowest = IMAGE[i].min((0, 1, 2))
        wanted = lowest + (IMAGE[i] - lowest) * np.exp(drawn["bias_field"] * field)
        np.testing.assert_allclose(image[i], wanted, atol=1e-5)


def test_noise_is_gaussian_and_as_strong_as_drawn():
    augmentation = Augmentation(noise=ALWAYS["noise"])
    image, _ = run(augmentation)
    strengths = np.stack([drawn["noise"] for drawn in drawn_for(augmentation)])
    noise = (image - IMAGE) / (IMAGE.std((1, 2, 3)) * strengths)[:, None, None, None]
    voxels = noise[0, ..., 0].size
    assert (np.abs(noise.mean((1, 2, 3))) < 4 / np.sqrt(voxels)).all()
    assert (np.abs(noise.std((1, 2, 3)) - 1) < 4 / np.sqrt(2 * voxels)).all()
    assert abs(np.corrcoef(noise.reshape(BLOCKS, voxels, 2)[0].T)[0, 1]) < 4 / np.sqrt(voxels)


# Labels


def test_a_flip_swaps_the_classes_of_the_two_sides():
    swapped = np.arange(256, dtype=np.uint8)
    swapped[[1, 2]] = [2, 1]
    sides = {"left_right": 2, "swap": ((1, 2),)}
    _, label = run(Augmentation(flip=0.5), flip_axes=(0, 2), **sides)
    seen = set()
    for i, drawn in enumerate(drawn_for(Augmentation(flip=0.5))):
        axes = tuple(axis for axis in (0, 2) if drawn["flip"][axis])
        wanted = np.flip(LABEL[i], axes)
        np.testing.assert_array_equal(label[i], swapped[wanted] if 2 in axes else wanted)
        seen.add(axes)
    assert {2 in axes for axes in seen} == {True, False}


def test_swapping_needs_an_axis_and_classes():
    for label, axis in ((LABEL, None), (IMAGE[..., 0], 0)):
        with pytest.raises(ValueError, match="left-right"):
            augment(KEYS, IMAGE, label, Augmentation(flip=0.5), left_right=axis, swap=((1, 2),))


def test_a_target_is_moved_but_keeps_its_intensities():
    target = (LABEL > 1).astype(np.float32)
    recoloured = Augmentation(flip=0.5, contrast=ALWAYS["contrast"], gamma=ALWAYS["gamma"])
    _, found = run(recoloured, label=target, flip_axes=(0,))
    for i, drawn in enumerate(drawn_for(recoloured)):
        np.testing.assert_array_equal(
            found[i], np.flip(target[i], 0) if drawn["flip"][0] else target[i]
        )
    _, found = run(Augmentation(rotation=ALWAYS["rotation"]), label=target)
    assert ((found >= 0) & (found <= 1)).all()
    assert ((found > 0) & (found < 1)).any()


# A batch


@pytest.fixture(scope="module")
def strong() -> Any:
    """The strongest profile, jitted."""
    return jax.jit(partial(augment, augmentation=PROFILES["strong"], flip_axes=(0,)))


def test_a_label_never_gains_a_value(strong):
    values = np.array([0, 7, 200], np.uint8)
    for seed in range(10):
        label = values[RNG.integers(3, size=LABEL.shape)]
        keys = jax.random.split(jax.random.key(seed), BLOCKS)
        image, found = strong(keys, IMAGE, label)
        assert np.isfinite(image).all()
        assert set(np.unique(found)) <= set(values)


def test_a_block_of_one_value_stays_finite(strong):
    assert np.isfinite(strong(KEYS, np.full_like(IMAGE, 3.0), LABEL)[0]).all()


def test_the_key_alone_decides(strong):
    others = jax.random.split(jax.random.key(1), BLOCKS)
    first, again, other = (strong(keys, IMAGE, LABEL)[0] for keys in (KEYS, KEYS, others))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_a_block_is_changed_by_itself(strong):
    """By the key and its place in the batch, whatever the others are."""
    changed = IMAGE.copy()
    changed[0] = RNG.normal(size=IMAGE[0].shape)
    for before, after in zip(strong(KEYS, IMAGE, LABEL), strong(KEYS, changed, LABEL), strict=True):
        np.testing.assert_array_equal(before[1:], after[1:])
    same = np.stack([IMAGE[0]] * BLOCKS)
    assert len({each.tobytes() for each in np.asarray(strong(KEYS, same, LABEL)[0])}) == BLOCKS


def test_blocks_that_are_split_over_devices_become_the_same(strong):
    sharding = over_data(make_mesh("data=4"))
    image, label = jax.device_put((IMAGE, LABEL), sharding)
    compiled = strong.lower(KEYS, image, label).compile()
    assert "all-gather" not in compiled.as_text()
    assert "all-to-all" not in compiled.as_text()
    for one, split in zip(strong(KEYS, IMAGE, LABEL), compiled(KEYS, image, label), strict=True):
        assert len(split.sharding.device_set) == 4
        np.testing.assert_allclose(split, one, rtol=1e-4, atol=1e-4)
