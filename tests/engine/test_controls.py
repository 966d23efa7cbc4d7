"""Weights that keep the scale of pretrained ones alone."""

import numpy as np

from voxtune.engine.controls import matched, shuffled

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 3, 2, 4)).astype(np.float32)


def test_a_shuffled_kernel_has_the_same_values_over_taps_and_channels() -> None:
    found = shuffled("block1/conv/kernel", KERNEL, 0)
    assert found.shape == KERNEL.shape
    assert found.dtype == KERNEL.dtype
    np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(KERNEL, axis=None))
    # Of 216 values in random order, some 23 % of a channel's stay in that channel.
    stayed = np.isin(found[..., 0], KERNEL[..., 0]).mean()
    assert 0.1 < stayed < 0.45


def test_it_depends_on_the_seed_and_on_the_layer_alone() -> None:
    one = shuffled("a/kernel", KERNEL, 1)
    np.testing.assert_array_equal(one, shuffled("a/kernel", KERNEL, 1))
    assert (one != shuffled("a/kernel", KERNEL, 2)).mean() > 0.9
    assert (one != shuffled("b/kernel", KERNEL, 1)).mean() > 0.9


def test_vectors_of_a_layer_stay_together() -> None:
    scale = np.arange(9, dtype=np.float32)
    names = ("scale", "bias", "mean", "var")
    moved = [shuffled(f"block1/norm/{name}", 10 * n + scale, 3) for n, name in enumerate(names)]
    assert (moved[0] != scale).any()
    for number, each in enumerate(moved):
        np.testing.assert_array_equal(each - 10 * number, moved[0])
    assert (shuffled("block2/norm/scale", scale, 3) != moved[0]).any()


def test_a_matched_kernel_has_the_pretrained_mean_and_spread() -> None:
    pretrained = np.array([[1.0, 3.0], [5.0, 7.0]], np.float32)  # mean 4, SD sqrt(5)
    drawn = np.array([[0.0, 0.0], [0.0, 4.0]], np.float32)  # mean 1, SD sqrt(3)
    found = matched(drawn, pretrained)
    step = np.sqrt(5 / 3)
    np.testing.assert_allclose(found, [[4 - step] * 2, [4 - step, 4 + 3 * step]], rtol=1e-6)
    assert found.dtype == np.float32


def test_a_kernel_of_one_value_is_that_value() -> None:
    one = np.full((1, 1), 3.0, np.float32)
    np.testing.assert_array_equal(matched(np.zeros((1, 1), np.float32), one), one)
