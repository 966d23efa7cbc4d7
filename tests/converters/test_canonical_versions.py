"""Older words for layers, settings and weights: the same network as in Keras 3's words."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.converters.canonical import CanonicalModel, canonical
from voxtune.converters.errors import ConversionError
from voxtune.converters.keras_config import parse_graph
from voxtune.converters.keras_model import KerasModel

RANDOM = np.random.default_rng(0)


def arrays(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: RANDOM.uniform(0.2, 1, shape).astype("f") for name, shape in shapes.items()}


@pytest.fixture
def model(keras2: Any) -> Callable[..., KerasModel]:
    """One layer on an image, as a version of Keras writes it."""

    def build(
        class_name: str,
        weights: dict[str, np.ndarray] | None = None,
        shape: tuple[int, ...] = (6, 6, 2),
        version: str = "2.9.0",
        backend: str = "tensorflow",
        **config: Any,
    ) -> KerasModel:
        image = keras2.layer("image", "InputLayer", batch_input_shape=[None, *shape])
        layer = keras2.layer("it", class_name, "image", **config)
        graph = parse_graph(keras2.functional(image, layer), Path("net.h5"))
        layers = tuple(
            dataclasses.replace(each, weights=weights or {}) if each.name == "it" else each
            for each in graph.layers
        )
        return KerasModel(
            Path("net.h5"), "Keras HDF5", version, backend, graph.name, layers, graph.calls,
            graph.inputs, graph.outputs, "", (),
        )  # fmt: skip

    return build


def it(converted: CanonicalModel) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    layer = converted.graph.by_name["it"]
    return layer.kind, dict(layer.config), dict(converted.weights.get("it", {}))


CONV1 = {"nb_filter": 4, "nb_row": 3, "nb_col": 2, "subsample": [1, 1], "init": "he_normal"}
# Class and settings of old → kind and settings of Keras 3 that they must become.
WORDS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "pooling": (
        "MaxPooling2D",
        {"border_mode": "same", "dim_ordering": "tf", "pool_size": [2, 2], "strides": [1, 1]},
        "MaxPooling2D",
        {"padding": "same", "pool_size": [2, 2], "strides": [1, 1]},
    ),
    "short pooling": ("AvgPool2D", {"pool_size": 2}, "AveragePooling2D", {"pool_size": 2}),
    "short global pooling": ("GlobalMaxPool2D", {}, "GlobalMaxPooling2D", {}),
    "dropout": ("Dropout", {"p": 0.3}, "Dropout", {"rate": 0.3}),
    "noise": ("GaussianNoise", {"sigma": 0.3}, "GaussianNoise", {"stddev": 0.3}),
    "alpha": ("LeakyReLU", {"alpha": 0.1}, "LeakyReLU", {"negative_slope": 0.1}),
    "array": (
        "LeakyReLU",
        {"alpha": {"type": "ndarray", "value": 0.1}},
        "LeakyReLU",
        {"negative_slope": 0.1},
    ),
    "no alpha": ("LeakyReLU", {}, "LeakyReLU", {"negative_slope": 0.3}),
    "threshold": ("ThresholdedReLU", {"theta": 0.4}, "ReLU", {"threshold": 0.4}),
    "four pads": (
        "ZeroPadding2D",
        {"padding": [1, 2, 3, 4]},
        "ZeroPadding2D",
        {"padding": [[1, 2], [3, 4]]},
    ),
    "hard sigmoid": (
        "Activation",
        {"activation": "hard_sigmoid"},
        "Activation",
        {"activation": "hard_sigmoid_keras2"},
    ),
    "function": (
        "Activation",
        {"activation": {"class_name": "function", "config": "relu", "module": "keras.activations"}},
        "Activation",
        {"activation": "relu"},
    ),
    "merge": ("Merge", {"mode": "mul", "concat_axis": -1, "mode_type": "raw"}, "Multiply", {}),
    "no change": ("ActivityRegularization", {"l1": 0.1}, "Identity", {}),
}


@pytest.mark.parametrize(("class_name", "old", "kind", "new"), WORDS.values(), ids=WORDS)
def test_words(
    model: Callable[..., KerasModel], class_name: str, old: dict, kind: str, new: dict
) -> None:
    found, config, _ = it(canonical(model(class_name, **old)))
    assert (found, config) == (kind, new)


def test_hard_sigmoid_follows_the_version(model: Callable[..., KerasModel]) -> None:
    new = canonical(model("Activation", version="3.4.1", activation="hard_sigmoid"))
    assert it(new)[1] == {"activation": "hard_sigmoid"}


def test_a_convolution_of_keras1(model: Callable[..., KerasModel]) -> None:
    weights = arrays(W=(3, 2, 2, 4), b=(4,))
    old = model("Convolution2D", weights, version="1.2.2", border_mode="same", bias=True, **CONV1)
    kind, config, found = it(canonical(old))
    assert kind == "Conv2D"
    assert (config["filters"], config["kernel_size"]) == (4, [3, 2])
    assert (config["padding"], config["use_bias"]) == ("same", True)
    np.testing.assert_equal(found, {"kernel": weights["W"], "bias": weights["b"]})


def test_kernels_of_keras1_with_channels_first(model: Callable[..., KerasModel]) -> None:
    weights = arrays(W=(4, 2, 3, 2), b=(4,))
    settings = {"dim_ordering": "th", "border_mode": "valid", **CONV1}
    old = model("Convolution2D", weights, (2, 6, 6), "1.2.2", **settings)
    converted = canonical(old)
    np.testing.assert_array_equal(
        converted.weights["it"]["kernel"], weights["W"].transpose(2, 3, 1, 0)
    )
    assert converted.graph.inputs == {"image": (6, 6, 2)}
    assert converted.origins["it"]["kernel"].done == "axes moved"


@pytest.mark.parametrize("version", ["1.2.2", "2.0.6"])
def test_kernels_of_theano_are_flipped(model: Callable[..., KerasModel], version: str) -> None:
    weights = arrays(kernel=(3, 3, 2, 4), bias=(4,))
    old = model("Conv2D", weights, version=version, backend="theano", filters=4, kernel_size=[3, 3])
    converted = canonical(old)
    np.testing.assert_array_equal(converted.weights["it"]["kernel"], weights["kernel"][::-1, ::-1])
    assert converted.origins["it"]["kernel"].done == "flipped"


def test_padding_of_theano(
    model: Callable[..., KerasModel], computed: Callable[..., dict[str, np.ndarray]]
) -> None:
    # Theano pads by half the kernel: with stride 2, output i is centred on place 2 i.
    x = RANDOM.normal(size=(1, 6, 1)).astype("f")
    weights = {"kernel": np.array([1, 10, 100], "f").reshape(3, 1, 1)}
    settings = {"filters": 1, "kernel_size": [3], "strides": [2], "padding": "same"}
    old = model("Conv1D", weights, (6, 1), "2.0.6", "theano", use_bias=False, **settings)
    padded = np.pad(x[0, :, 0], 1)
    expected = [np.dot(padded[at : at + 3], [100, 10, 1]) for at in (0, 2, 4)]
    np.testing.assert_allclose(computed(canonical(old), x)["it"][0, :, 0], expected, rtol=1e-5)


def test_batch_normalization_of_keras1(
    model: Callable[..., KerasModel], computed: Callable[..., dict[str, np.ndarray]]
) -> None:
    weights = arrays(gamma=(2,), beta=(2,), running_mean=(2,), running_std=(2,))
    x = RANDOM.normal(size=(2, 6, 6, 2)).astype("f")
    gamma, beta, mean, variance = weights.values()
    settings = {"epsilon": 1e-5, "axis": -1, "momentum": 0.99}
    old = model("BatchNormalization", weights, version="1.2.2", mode=0, **settings)
    expected = gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta
    np.testing.assert_allclose(computed(canonical(old), x)["it"], expected, rtol=1e-4, atol=1e-5)
    old = model("BatchNormalization", weights, version="1.2.2", mode=2, **settings)
    own = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = gamma * (x - own[0]) / np.sqrt(own[1] + 1e-5) + beta
    np.testing.assert_allclose(computed(canonical(old), x)["it"], expected, rtol=1e-4, atol=1e-5)


def test_shared_axes_that_keras1_does_not_write(model: Callable[..., KerasModel]) -> None:
    weights = arrays(alphas=(1, 6, 2))
    _, config, found = it(canonical(model("PReLU", weights, version="1.2.2")))
    assert config == {"shared_axes": [1]}
    np.testing.assert_array_equal(found["alpha"], weights["alphas"])


NORMS = arrays(gamma=(4,), beta=(4,))
GROUPS = {"groups": 4, "axis": -1, "epsilon": 1e-5}


@pytest.mark.parametrize(
    ("class_name", "version", "config", "kind", "groups"),
    [
        ("GroupNormalization", "2.12.0", GROUPS, "GroupNormalization", 4),
        ("GroupNormalization", "2.4.0", GROUPS, "SlabGroupNormalization", 4),  # before Keras's own
        ("Addons>GroupNormalization", "2.4.0", GROUPS, "GroupNormalization", 4),
        ("Addons>InstanceNormalization", "2.4.0", GROUPS, "GroupNormalization", -1),
        ("InstanceNormalization", "2.2.4", {"axis": -1}, "InstanceNormalization", None),
    ],
)
def test_whose_normalization_it_is(
    model: Callable[..., KerasModel],
    class_name: str,
    version: str,
    config: dict[str, Any],
    kind: str,
    groups: int | None,
) -> None:
    found, settings, _ = it(canonical(model(class_name, NORMS, (8, 8, 4), version, **config)))
    assert (found, settings.get("groups")) == (kind, groups)


def test_interpolation_of_the_keras_in_tensorflow(model: Callable[..., KerasModel]) -> None:
    config = {"interpolation": "bilinear"}
    assert canonical(model("UpSampling2D", version="2.2.4-tf", **config)).graph.calls
    with pytest.raises(ConversionError, match=r"TensorFlow 1\.13"):
        canonical(model("UpSampling2D", version="2.1.6-tf", **config))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "statistics of a sample": ("BatchNormalization", {"mode": 1}, "mode=1"),
    "of several axes": ("BatchNormalization", {"axis": [1, 3]}, "axis=[1, 3]"),
    "virtual batches": ("BatchNormalization", {"virtual_batch_size": 4}, "virtual_batch_size=4"),
    "renormalised": ("BatchNormalization", {"renorm": True}, "renorm"),
    "a dot product": ("Merge", {"mode": "dot"}, "dot"),
    "another activation": ("Activation", {"activation": "Mine>relu"}, "Mine>relu"),
    "old interpolation": ("UpSampling2D", {"interpolation": "bilinear"}, "2.3"),
    "of a person's own": ("Mine>Conv2D", {"filters": 1, "kernel_size": 1}, "Mine>Conv2D"),
    "of a module of one's own": ("mine.a>InstanceNormalization", {"axis": -1}, "register_layer"),
    "beyond float32": ("LeakyReLU", {"alpha": 1e308}, "too large for float32"),
    "another size": (
        "Deconvolution2D",
        {**CONV1, "subsample": [2, 2], "output_shape": [None, 14, 12, 4]},
        "output_shape=[None, 14, 12, 4]",
    ),
    "transposed by Theano": ("Conv3DTranspose", {"padding": "valid"}, "Theano"),
    "a wrapper": ("TimeDistributed", {"layer": {}}, "TimeDistributed"),
    "padding of Theano": ("MaxPooling2D", {"padding": "same"}, "Theano"),
}


@pytest.mark.parametrize(("class_name", "config", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(
    model: Callable[..., KerasModel], class_name: str, config: dict[str, Any], words: str
) -> None:
    backend = "theano" if "Theano" in words else "tensorflow"
    with pytest.raises(ConversionError) as caught:
        canonical(model(class_name, version="2.2.4", backend=backend, **config))
    assert all(word in str(caught.value) for word in ("net.h5", "'it'", words)), caught.value


@pytest.mark.parametrize(
    ("priors", "learned"),
    [
        ({}, False),
        ({"kernel_prior_untransformed_scale": (1,), "kernel_prior_loc": (3, 3, 3, 2, 4)}, True),
        # Somebody's own, of one standard deviation a weight: training alone reads it.
        (
            {
                "kernel_prior_untransformed_scale": (3, 3, 3, 2, 4),
                "kernel_prior_loc": (3, 3, 3, 2, 4),
            },
            False,
        ),
        ({"kernel_prior_loc": (3, 3, 3, 2, 4)}, False),
    ],
)
def test_the_prior_that_nobrainer_learns_is_kept(
    model: Any, priors: dict[str, tuple[int, ...]], learned: bool
) -> None:
    kernel = (3, 3, 3, 2, 4)
    posterior = {"kernel_posterior_loc": kernel, "kernel_posterior_untransformed_scale": kernel}
    held = arrays(**posterior, **priors, bias_posterior_loc=(4,))
    settings = {"filters": 4, "kernel_size": [3, 3, 3]}
    converted = canonical(model("Conv3DFlipout", held, (5, 5, 5, 2), **settings))
    _, config, kept = it(converted)
    assert config["learned_prior"] == learned
    assert kept.keys() == {*posterior, "bias_posterior_loc", *(priors if learned else ())}
    assert [name.rsplit("/", 1)[-1] for name in converted.left_out] == [
        *(() if learned else priors)
    ]


def test_concrete_dropout_whose_shares_nobrainer_did_not_write_is_refused(model: Any) -> None:
    settings = {"is_monte_carlo": True, "temperature": 0.02, "use_expectation": True}
    with pytest.raises(ConversionError, match="the shares that it keeps are not in the file"):
        canonical(model("ConcreteDropout", arrays(pr=(2,)), **settings))
