"""Tensors made to fit: what a layer gives before and after, on numbers."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from voxtune.engine.surgery import (
    Extension,
    channel_places,
    class_bias,
    grown_axis,
    is_bias,
    with_input,
    with_places,
)
from voxtune.models.errors import InputError
from voxtune.models.families import FAMILIES
from voxtune.models.graph import Graph, GraphCall, GraphLayer
from voxtune.models.posterior import weight_norm

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 3, 2, 5)).astype(np.float32)


def response(kernel: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """What a convolution gives at one voxel: `[k, k, k, C, O]` and `[k, k, k, C]` → `[O]`."""
    return np.tensordot(patch, kernel, axes=4)


# Channels


def widened(tensors: dict[str, Any], channels: int, how: str = "copy") -> Any:
    """Kernels for more channels, the old ones in their places."""
    axes = {path: 3 for path in tensors if not path.endswith("/g")}
    old = tensors[next(iter(axes))].shape[3]
    return with_places(tensors, axes, channel_places(None, old, None, channels), how)


def test_channels_go_where_their_names_are() -> None:
    """A name that is new takes a place that is free, as when the model itself is given it."""
    assert channel_places(("a", "b"), 2, ("b", "a"), 2) == (1, 0)
    assert channel_places(("b",), 1, ("a", "b"), 2) == (None, 0)
    assert channel_places(("a", "b"), 2, ("c", "d", "a"), 3) == (1, None, 0)
    assert channel_places(("a", "b"), 2, ("a",), 1) == (0,)
    for before, after in ((None, ("b", "a", "c")), (("a", "b"), None)):
        assert channel_places(before, 2, after, 3) == (0, 1, None)


@pytest.mark.parametrize("how", ["copy", "zero"])
def test_channels_in_another_order_give_the_response_they_gave(how: str) -> None:
    found, text = with_places({"a/kernel": KERNEL}, {"a/kernel": 3}, (1, 0), how)["a/kernel"]
    np.testing.assert_array_equal(found, KERNEL[..., ::-1, :])
    assert text == "2 channels in another order"
    # One more comes first; a copy shares its place with the first that it had.
    more, _ = with_places({"a/kernel": KERNEL}, {"a/kernel": 3}, (None, 1, 0), how)["a/kernel"]
    first, second = KERNEL[..., 0, :], KERNEL[..., 1, :]
    wanted = (first / 2, second, first / 2) if how == "copy" else (0 * first, second, first)
    np.testing.assert_array_equal(more, np.stack(wanted, axis=3))


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 3), (2, 3), (2, 4), (2, 5)])
def test_equal_channels_give_the_response_of_the_old_ones(old: int, new: int) -> None:
    kernel = KERNEL[..., :old, :]
    found, text = widened({"a/kernel": kernel}, new)["a/kernel"]
    assert found.shape == (3, 3, 3, new, 5)
    assert text.startswith(f"{old} channel{'s' * (old > 1)} copied to {new}, divided by ")
    patch = RNG.normal(size=(3, 3, 3, old))
    repeated = patch[..., np.arange(new) % old]
    np.testing.assert_allclose(response(found, repeated), response(kernel, patch), rtol=1e-5)


def test_how_channels_are_copied() -> None:
    found, text = widened({"a/kernel": KERNEL}, 3)["a/kernel"]
    first, second = KERNEL[..., 0, :], KERNEL[..., 1, :]
    for channel, wanted in enumerate((first / 2, second, first / 2)):
        np.testing.assert_array_equal(found[..., channel, :], wanted)
    assert text == "2 channels copied to 3, divided by 1 or 2"


def test_channels_of_zeros_have_no_say() -> None:
    found, text = widened({"a/kernel": KERNEL}, 3, "zero")["a/kernel"]
    np.testing.assert_array_equal(found[..., :2, :], KERNEL)
    assert not found[..., 2, :].any()
    assert text == "2 channels kept, 1 of zeros added"


def test_the_spread_of_random_weights_is_not_divided() -> None:
    for name in ("kernel_posterior_untransformed_scale", "kernel_a"):
        for how in ("copy", "zero"):
            path = f"a/{name}"
            found, _ = widened({path: KERNEL}, 4, how)[path]
            np.testing.assert_array_equal(found, KERNEL[..., [0, 1, 0, 1], :])


@pytest.mark.parametrize(("how", "new"), [("copy", 3), ("copy", 4), ("zero", 4)])
def test_a_normalised_kernel_is_adapted_as_a_plain_one(how: str, new: int) -> None:
    """Of kwyk's layers: the kernel is g v / |v|, so g changes with v."""
    length = RNG.uniform(1, 2, (1, 1, 1, 1, 5)).astype(np.float32)
    plain = np.asarray(weight_norm(jnp.asarray(KERNEL), length))
    wanted, _ = widened({"a/kernel": plain}, new, how)["a/kernel"]
    found = widened({"a/v": KERNEL, "a/g": length}, new, how)
    direction, length = (jnp.asarray(found[f"a/{name}"][0]) for name in "vg")
    np.testing.assert_allclose(weight_norm(direction, length), wanted, rtol=1e-5)


def test_only_an_axis_that_grew_from_the_old_number_to_the_new_can_be_adapted() -> None:
    assert grown_axis((3, 3, 3, 1, 8), (3, 3, 3, 2, 8), 1, 2) == 3
    assert grown_axis((2, 8, 1), (2, 8, 3), 1, 3) == 2
    assert grown_axis((3, 5), (4, 5), 1, 2) is None  # another axis: a join of image and features
    assert grown_axis((1, 1), (2, 2), 1, 2) is None
    assert grown_axis((2, 5), (1, 5), 2, 1) is None
    assert grown_axis((1, 5), (1, 2, 5), 1, 2) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_say_the_channels(family: str) -> None:
    layer = GraphLayer("a", "Conv3D", {"filters": 1, "kernel_size": 1})
    graph = Graph((layer,), (GraphCall("a", "a", ("x",)),), {"x": (None, None, None, 1)}, ("a",))
    given = {"graph": graph.to_json()} if family == "graph" else {"outputs": 2}
    found = with_input(family, given, 3)
    assert found["channels"] == 3
    if family == "graph":
        assert found["graph"]["inputs"] == {"x": [None, None, None, 3]}


def test_a_graph_that_cannot_take_more_channels_is_a_sentence() -> None:
    layer = GraphLayer("norm", "BatchNormalization", {})
    graph = Graph((layer,), (GraphCall("n", "norm", ("x",)),), {"x": (8, 8, 8, 1)}, ("n",))
    with pytest.raises(InputError, match=r"cannot be given 2 channels: the gamma .*'norm'"):
        with_input("graph", {"graph": graph.to_json()}, 2)


# Classes


@pytest.mark.parametrize("prevalence", [[0.5, 0.5], [0.9, 0.07, 0.03]])
def test_the_bias_alone_gives_the_prevalence(prevalence: list[float]) -> None:
    share = np.array(prevalence)
    np.testing.assert_allclose(softmax(class_bias(share, len(share))), share, rtol=1e-5)


def test_the_bias_of_one_output_gives_the_prevalence() -> None:
    np.testing.assert_allclose(expit(class_bias(np.array([0.98, 0.02]), 1)), [0.02], rtol=1e-5)


@pytest.mark.parametrize("prevalence", [[1.0, 0.0], [0.0, 1.0]])
@pytest.mark.parametrize("outputs", [1, 2])
def test_the_bias_is_finite_for_classes_that_are_nowhere_or_everywhere(
    prevalence: list[float], outputs: int
) -> None:
    assert np.abs(class_bias(np.array(prevalence), outputs)).max() < 14


def test_a_new_class_is_to_the_background_as_their_voxels_are_everywhere() -> None:
    share = np.array([0.6, 0.2, 0.1, 0.08, 0.02])
    extend = Extension(3, share, ("head",))
    kernel, bias = (RNG.normal(size=size).astype(np.float32) for size in ((1, 1, 1, 4, 3), (3,)))
    new_kernel = extend("head/kernel", kernel, (1, 1, 1, 4, 5), None)
    new_bias = extend("head/bias", bias, (5,), None)
    features = 5 * RNG.normal(size=(100, 4))
    old = log_softmax(features @ kernel[0, 0, 0] + bias, axis=-1)
    new = log_softmax(features @ new_kernel[0, 0, 0] + new_bias, axis=-1)
    np.testing.assert_allclose(np.diff(new[:, :3]), np.diff(old), atol=1e-4)
    ratios = np.exp(new[:, 3:] - new[:, :1])
    np.testing.assert_allclose(ratios, np.tile(share[3:] / share[0], (100, 1)), rtol=1e-5)
    np.testing.assert_array_equal(new.argmax(axis=-1), old.argmax(axis=-1))
    assert not extend.draws("head/kernel")
    assert not extend.draws("head/bias")


def test_all_that_random_weights_have_is_the_backgrounds() -> None:
    extend = Extension(2, np.array([0.5, 0.4, 0.1]), ("head",))
    for name, shape in (("v", (1, 1, 1, 4, 2)), ("g", (1, 1, 1, 1, 2)), ("bias_a", (2,))):
        old = RNG.normal(size=shape).astype(np.float32)
        found = extend(f"head/{name}", old, (*shape[:-1], 3), None)
        np.testing.assert_array_equal(found, old[..., [0, 1, 0]])
    prior = np.ones(1, np.float32)
    np.testing.assert_array_equal(extend("head/prior_scale", prior, (1,), None), prior)


def test_a_sigmoid_becomes_a_softmax_whose_first_logit_is_zero() -> None:
    extend = Extension(1, np.array([0.5, 0.4, 0.1]), ("head",))
    kernel, bias = (RNG.normal(size=size).astype(np.float32) for size in ((1, 1, 1, 4, 1), (1,)))
    new_kernel = extend("head/kernel", kernel, (1, 1, 1, 4, 3), None)[0, 0, 0]
    new_bias = extend("head/bias", bias, (3,), None)
    zeros = np.zeros((4, 1))
    np.testing.assert_array_equal(new_kernel, np.hstack([zeros, kernel[0, 0, 0], zeros]))
    np.testing.assert_array_equal(new_bias[:2], [0, bias[0]])
    np.testing.assert_allclose(new_bias[2], np.log(0.1 / 0.5), rtol=1e-5)
    assert extend.draws("head/v")
    assert not extend.draws("head/g")


def test_what_comes_before_the_last_layer_is_fresh_for_new_classes() -> None:
    """VNet's head has a convolution of as many filters as outputs before its last one."""
    extend = Extension(2, np.array([0.5, 0.4, 0.1]), ("head",))
    old, fresh = np.ones((3, 3, 3, 4, 2), np.float32), np.full((3, 3, 3, 4, 3), 7, np.float32)
    assert extend.draws("head/conv/kernel")
    found = extend("head/conv/kernel", old, fresh.shape, fresh)
    np.testing.assert_array_equal(found, np.where(np.arange(3) < 2, 1, 7) * np.ones_like(fresh))
    kernel = np.array([[1, 2], [3, 4]], np.float32).reshape(1, 1, 1, 2, 2)
    last = extend("head/kernel", kernel, (1, 1, 1, 3, 3), None)[0, 0, 0]
    np.testing.assert_array_equal(last, [[1, 2, 1], [3, 4, 3], [0, 0, 0]])


def test_biases_are_those_of_the_layers_asked_for() -> None:
    assert is_bias("head/bias", ("head",))
    assert is_bias("head/bias_m", ("other", "head"))
    assert not is_bias("head/conv/bias", ("head",))
    assert not is_bias("head/bias_a", ("head",))
