"""Layers that Keras 3 lacks, against their definitions written in NumPy."""

from typing import Any

import numpy as np
import pytest

Config = dict[str, Any]


def _affine(x: np.ndarray, weights: Any, shape: list[int]) -> np.ndarray:
    gamma, beta = (np.float64(weights.get(name, default)) for name, default in _DEFAULTS)
    return x * (gamma.reshape(shape) if gamma.ndim else gamma) + (
        beta.reshape(shape) if beta.ndim else beta
    )


_DEFAULTS = (("gamma", 1), ("beta", 0))


def instance_norm(config: Config, weights: Any, x: np.ndarray) -> np.ndarray:
    """keras_contrib/layers/normalization/instancenormalization.py, `call`."""
    axis = config.get("axis")
    axes = list(range(x.ndim))
    if axis is not None:
        del axes[axis]
    del axes[0]
    shape = [1] * x.ndim
    if axis is not None:
        shape[axis] = x.shape[axis]
    spread = x.std(tuple(axes), keepdims=True) + config.get("epsilon", 1e-3)
    return _affine((x - x.mean(tuple(axes), keepdims=True)) / spread, weights, shape)


def slab_norm(config: Config, weights: Any, x: np.ndarray) -> np.ndarray:
    """nobrainer/layers/groupnorm.py, `call`."""
    groups = config.get("groups", 4)
    shape = [1] * x.ndim
    shape[-1] = x.shape[-1] // groups
    shape.insert(1, groups)
    sizes = list(x.shape)
    sizes[-1] = x.shape[-1] // groups
    sizes.insert(1, groups)
    grouped = x.reshape(sizes)
    axes = tuple(range(2, len(sizes)))
    mean, variance = grouped.mean(axes, keepdims=True), grouped.var(axes, keepdims=True)
    grouped = (grouped - mean) / np.sqrt(variance + config.get("epsilon", 1e-5))
    return _affine(grouped, weights, shape).reshape(x.shape)


def pad_channels(config: Config, weights: Any, x: np.ndarray) -> np.ndarray:
    """nobrainer/layers/padding.py, `call`."""
    return np.pad(x, [(0, 0)] * 4 + [(config["padding"],) * 2])


_VOLUME = (2, 3, 4, 5, 8)
CASES = [
    ("InstanceNormalization", {}, _VOLUME, instance_norm),
    ("InstanceNormalization", {"axis": -1, "epsilon": 0.5}, _VOLUME, instance_norm),
    ("InstanceNormalization", {"axis": 1, "center": False}, (2, 3, 4), instance_norm),
    ("InstanceNormalization", {"axis": -1, "scale": False}, (2, 3, 4, 5), instance_norm),
    ("SlabGroupNormalization", {}, _VOLUME, slab_norm),
    ("SlabGroupNormalization", {"groups": 2, "epsilon": 0.5}, _VOLUME, slab_norm),
    ("SlabGroupNormalization", {"scale": False, "center": False}, (2, 3, 4, 8), slab_norm),
    ("ZeroPadding3DChannels", {"padding": 2}, _VOLUME, pad_channels),
]


@pytest.mark.parametrize(("kind", "config", "shape", "definition"), CASES)
def test_result_is_as_defined(
    kind: str, config: Config, shape: tuple[int, ...], definition: Any, one_layer: Any, close: Any
) -> None:
    one = one_layer(kind, config, shape)
    affine = ("scale", "gamma"), ("center", "beta")
    expected = [name for setting, name in affine if config.get(setting, kind[0] in "IS")]
    assert list(one.weights) == expected
    close(one(), definition(config, one.weights, np.asarray(one.inputs[0], np.float64)))


VARIATIONAL = [
    (f"Conv{axes}D{estimate}", {"filters": 4, "kernel_size": 3, **more}, (2, *shape))
    for estimate in ("Flipout", "Reparameterization")
    for axes, shape, more in (
        (1, (9, 3), {"strides": 2}),
        (2, (7, 6, 3), {"dilation_rate": 2, "use_bias": False, "activation": "relu"}),
        (3, (5, 6, 7, 3), {"padding": "same"}),
    )
] + [
    ("DenseFlipout", {"units": 4, "activation": "tanh"}, (2, 5, 3)),
    ("DenseReparameterization", {"units": 4, "use_bias": False}, (2, 3)),
]
TESTED = {name for name, *_ in [*CASES, *VARIATIONAL]}


@pytest.mark.parametrize(("kind", "config", "shape"), VARIATIONAL)
def test_variational_layer_predicts_with_its_means(
    kind: str, config: Config, shape: tuple[int, ...], one_layer: Any
) -> None:
    """The plain layer, which is compared with Keras elsewhere, gives the same with the means."""
    one = one_layer(kind, config, shape)
    names = ["kernel_posterior_loc", "kernel_posterior_untransformed_scale"]
    bias = ["bias_posterior_loc"] if config.get("use_bias", True) else []
    assert list(one.weights) == names + bias
    plain = one_layer(
        kind.removesuffix("Flipout").removesuffix("Reparameterization"), config, shape
    )
    means = {name.removesuffix("_posterior_loc"): one.weights[name] for name in [names[0], *bias]}
    assert {k: v.shape for k, v in means.items()} == {k: v.shape for k, v in plain.weights.items()}
    np.testing.assert_array_equal(one(), plain(means, one.inputs))


def test_bias_has_a_distribution_where_it_is_told_to(one_layer: Any) -> None:
    config = {"filters": 4, "kernel_size": 3, "random_bias": True}
    one = one_layer("Conv3DFlipout", config, (1, 3, 3, 3, 2))
    assert list(one.weights)[2:] == ["bias_posterior_loc", "bias_posterior_untransformed_scale"]
    assert one.weights["bias_posterior_untransformed_scale"].shape == (4,)
