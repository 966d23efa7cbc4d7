"""Blur, low resolution and smooth fields: equal to scipy, whatever the axis, under jit and vmap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter

from voxtune.engine.separable import acquire, blur, lower_resolution, resize, smooth_field

SHAPE = (12, 9, 17)
IMAGE = np.random.default_rng(0).normal(3, 2, (*SHAPE, 2)).astype(np.float32)
blurred = jax.jit(blur)
lowered = jax.jit(lower_resolution)


@pytest.mark.parametrize("sigma", [(0.6, 1.3, 2.9), (0, 0.1, 4.4), (3, 0, 0), (0.124, 0.126, 4.5)])
def test_blur_is_scipys(sigma):
    wanted = [gaussian_filter(IMAGE[..., c].astype(np.float64), sigma) for c in range(2)]
    found = blurred(IMAGE, jnp.asarray(sigma, jnp.float32))
    np.testing.assert_allclose(found, np.stack(wanted, -1), atol=1e-5)


def test_no_blur_and_full_resolution_are_the_identity_to_the_bit():
    np.testing.assert_array_equal(blurred(IMAGE, jnp.zeros(3)), IMAGE)
    np.testing.assert_array_equal(lowered(IMAGE, jnp.ones(3)), IMAGE)


def lowered_by_hand(line: np.ndarray, factor: float) -> np.ndarray:
    """Along the first axis."""
    n = len(line)
    count = round(n / factor)
    centres = (np.arange(count) + 0.5) * n / count
    samples = line[np.floor(centres).astype(int)]
    voxels = np.arange(n) + 0.5
    # It carries the outer samples on.
    return np.apply_along_axis(partial(np.interp, voxels, centres), 0, samples)


@pytest.mark.parametrize("factor", [(1, 1.5, 2), (2.3, 9, 1), (1.04, 1.9, 8.5), (30, 1, 1)])
def test_low_resolution_is_nearest_then_linear(factor):
    wanted = IMAGE.astype(np.float64)
    for axis in range(3):
        least = min(factor[axis], SHAPE[axis])  # one sample at least
        line = np.moveaxis(wanted, axis, 0)
        wanted = np.moveaxis(lowered_by_hand(line, least), 0, axis)
    found = lowered(IMAGE, jnp.asarray(factor, jnp.float32))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_acquisition_is_blur_and_then_low_resolution():
    sigma, factor = jnp.asarray((0.5, 1.3, 0)), jnp.asarray((1, 4.2, 1.5))
    wanted = lowered(blurred(IMAGE, sigma), factor)
    np.testing.assert_allclose(jax.jit(acquire)(IMAGE, sigma, factor), wanted, atol=1e-5)


def test_each_block_of_a_batch_has_its_own_parameters():
    batch = np.stack([IMAGE, IMAGE[::-1]])
    sigmas = jnp.asarray([(0, 0, 0), (2, 1, 0)], jnp.float32)
    found = jax.jit(jax.vmap(blur))(batch, sigmas)
    for one, image, sigma in zip(found, batch, sigmas, strict=True):
        np.testing.assert_allclose(one, blurred(image, sigma), atol=1e-5)


def test_type_of_the_image_is_kept():
    assert blur(jnp.asarray(IMAGE, jnp.bfloat16), jnp.ones(3)).dtype == jnp.bfloat16


def test_resize_is_linear_between_the_centres_of_voxels():
    shape, wanted = (30, 9, 40), IMAGE.astype(np.float64)
    for axis, (n, m) in enumerate(zip(shape, SHAPE, strict=True)):
        centres, voxels = (np.arange(m) + 0.5) * n / m, np.arange(n) + 0.5
        wanted = np.apply_along_axis(partial(np.interp, voxels, centres), axis, wanted)
    np.testing.assert_allclose(resize(IMAGE, shape), wanted, atol=1e-5)


def test_field_is_scipys_spline_over_the_control_points():
    key, points = jax.random.key(3), (6, 4, 5)
    control = np.asarray(jax.random.normal(key, (*points, 2)), np.float64)
    wanted = control
    for axis, (n, p) in enumerate(zip(SHAPE, points, strict=True)):
        where = (np.arange(n) + 0.5) / n * (p - 3)
        weights = BSpline(np.arange(-3, p + 1), np.eye(p), 3)(where)
        weights /= np.sqrt((weights**2).sum(1, keepdims=True))
        wanted = np.moveaxis(np.tensordot(weights, wanted, (1, axis)), 0, axis)
    found = smooth_field(key, SHAPE, points, 2)
    assert found.shape == (*SHAPE, 2)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_field_is_standard_normal_at_each_voxel_and_smooth():
    draws = 4000
    field = jax.jit(lambda key: smooth_field(key, (6, 5, 4), (5, 4, 4), 1)[..., 0])
    fields = np.asarray(jax.vmap(field)(jax.random.split(jax.random.key(0), draws)))
    # Five standard errors of a mean and of a standard deviation, over 120 voxels.
    assert abs(fields.mean(0)).max() < 5 / np.sqrt(draws)
    assert abs(fields.std(0) - 1).max() < 5 / np.sqrt(2 * draws)
    flat = fields.reshape(draws, -1)
    correlation = np.corrcoef(flat.T).reshape(6, 5, 4, 6, 5, 4)
    assert correlation[0, 0, 0, 1, 0, 0] > 0.9 > 0.5 > correlation[0, 0, 0, 5, 0, 0]


def test_a_spline_of_fewer_than_four_points_is_refused():
    with pytest.raises(ValueError, match="4 control points"):
        smooth_field(jax.random.key(0), SHAPE, (4, 3, 4), 1)
