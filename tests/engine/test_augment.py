"""What training blocks may become: flips, contrast, brightness and noise within stated ranges."""

import itertools
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from voxtune.engine.augment import augment

DRAWS, EDGE = 200, 8
RNG = np.random.default_rng(0)
IMAGE = (5 + 2 * RNG.normal(size=(EDGE, EDGE, EDGE, 1))).astype(np.float32)
LABEL = np.arange(EDGE**3, dtype=np.uint16).reshape(EDGE, EDGE, EDGE)  # each voxel has its own
FLIPS = [axes for count in range(4) for axes in itertools.combinations(range(3), count)]


def draws(flip_axes: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The one block, changed in many ways: images and labels."""
    image, label = (np.repeat(each[None], DRAWS, axis=0) for each in (IMAGE, LABEL))
    # Run once each, so compiled without LLVM's optimisations: in a fifth of the time.
    quick = {"xla_backend_optimization_level": 0}
    compiled = jax.jit(augment, static_argnums=3, compiler_options=quick)
    changed = compiled(jax.random.key(seed), image, label, tuple(flip_axes))
    images, labels = map(np.asarray, changed)
    assert (images.shape, images.dtype) == (image.shape, image.dtype)
    assert (labels.shape, labels.dtype) == (label.shape, label.dtype)
    return images, labels


@pytest.fixture(scope="module")
def changed() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, flipped along any axis."""
    return draws((0, 1, 2))


def flip_of(label: np.ndarray) -> tuple[int, ...]:
    """The axes along which the label was flipped; it is a flip of the original and nothing else."""
    (axes,) = [axes for axes in FLIPS if (np.flip(LABEL, axes) == label).all()]
    return axes


def test_image_and_label_are_flipped_alike(changed):
    for image, label in zip(*changed, strict=True):
        wanted = np.flip(IMAGE, flip_of(label))
        assert np.corrcoef(image.ravel(), wanted.ravel())[0, 1] > 0.98  # noise of a tenth at most


def test_each_axis_is_flipped_half_of_the_time_by_itself(changed):
    flips = np.array([[axis in flip_of(label) for axis in range(3)] for label in changed[1]])
    four_sigma = 4 * np.sqrt(DRAWS) / 2
    assert (np.abs(flips.sum(axis=0) - DRAWS / 2) < four_sigma).all()
    for one, other in itertools.combinations(range(3), 2):
        together = (flips[:, one] == flips[:, other]).sum()
        assert abs(together - DRAWS / 2) < four_sigma


def test_contrast_brightness_and_noise_stay_within_their_ranges(changed):
    """Each is estimated by regression over 512 voxels: noise of 0.1 blurs it by 0.1/√512."""
    slopes, shifts, noises = [], [], []
    for image, label in zip(*changed, strict=True):
        before = np.flip(IMAGE, flip_of(label)).astype(np.float64)
        x = (before - before.mean()).ravel()
        slope = x @ image.ravel() / (x @ x)
        shift = image.mean() - before.mean()
        noise = (image.ravel() - slope * x - before.mean() - shift).std() / before.std()
        slopes.append(slope)
        shifts.append(shift / before.std())
        noises.append(noise)
    blur = 4 * 0.1 / np.sqrt(EDGE**3)
    assert 0.75 - blur < min(slopes) < 0.8 < 1.2 < max(slopes) < 1.25 + blur
    assert -0.1 - blur < min(shifts) < -0.08 < 0.08 < max(shifts) < 0.1 + blur
    assert 0 <= min(noises) < 0.01 < 0.09 < max(noises) < 0.1 + blur


def test_no_axis_leaves_the_label_alone():
    images, labels = draws(())
    np.testing.assert_array_equal(labels, np.broadcast_to(LABEL, labels.shape))
    assert all(np.corrcoef(image.ravel(), IMAGE.ravel())[0, 1] > 0.98 for image in images)


def test_only_the_given_axes_are_flipped():
    assert {flip_of(label) for label in draws((1,))[1]} == {(), (1,)}


def test_the_key_alone_decides(changed):
    for again, before in zip(draws((0, 1, 2)), changed, strict=True):
        np.testing.assert_array_equal(again, before)
    assert not np.allclose(draws((0, 1, 2), seed=1)[0], changed[0])


def test_blocks_of_one_batch_differ(changed):
    assert len({image.tobytes() for image in changed[0]}) == DRAWS


def test_each_channel_is_changed_by_its_own_spread():
    """The second is the first a thousand times over: so are its contrast, shift and noise."""
    image = np.concatenate([IMAGE, 1000 * IMAGE[::-1]], axis=-1)
    given = np.repeat(image[None], DRAWS, axis=0)
    label = np.repeat(LABEL[None], DRAWS, axis=0)
    found, _ = jax.jit(augment, static_argnums=3)(jax.random.key(0), given, label, ())
    shifts = (np.asarray(found) - image).mean((1, 2, 3)) / image.std((0, 1, 2))
    for channel in range(2):
        assert 0.08 < abs(shifts[:, channel]).max() < 0.1 + 4 * 0.1 / np.sqrt(EDGE**3)
        for one in found:
            assert np.corrcoef(one[..., channel].ravel(), image[..., channel].ravel())[0, 1] > 0.98
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.3
