"""Converted networks against Keras itself, layer by layer, and against golden files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from voxtune.converters.errors import ConversionError
from voxtune.converters.keras_file import KerasModel, read_keras_file
from voxtune.converters.to_flax import convert
from voxtune.converters.verify import compare_golden, intermediate
from voxtune.models.parameters import by_path

RNG = np.random.default_rng(0)


def randomised(model: keras.Model) -> keras.Model:
    """Weights of which none is zero or one, so that nothing cancels."""
    for weight in model.weights:
        low = 0.5 if "variance" in weight.name or weight.name == "gamma" else -0.4
        weight.assign(RNG.uniform(low, low + 0.9, weight.shape))
    return model


def keras_meshnet(activation: str = "elu", epsilon: float = 1e-3, head: Any = "softmax") -> Any:
    x = inputs = layers.Input((8, 8, 8, 2))
    for dilation in (1, 2, 3):
        x = layers.Conv3D(3, 3, dilation_rate=dilation, padding="same")(x)
        x = layers.BatchNormalization(epsilon=epsilon)(x)
        x = layers.Activation(activation)(x)
        x = layers.Dropout(0.25)(x)
    return randomised(keras.Model(inputs, layers.Conv3D(4, 1, activation=head)(x)))


def keras_unet(skip_first: bool = True, batchnorm: bool = True) -> keras.Model:
    def double(x: Any, first: int, second: int) -> Any:
        for filters in (first, second):
            x = layers.Conv3D(filters, 3, padding="same")(x)
            x = layers.BatchNormalization()(x) if batchnorm else x
            x = layers.Activation("relu")(x)
        return x

    x = inputs = layers.Input((8, 8, 8, 1))
    skip1 = x = double(x, 2, 4)
    skip2 = x = double(layers.MaxPooling3D(2)(x), 4, 8)
    x = double(layers.MaxPooling3D(2)(x), 8, 16)
    for skip, width in ((skip2, 8), (skip1, 4)):
        up = layers.Conv3DTranspose(2 * width, 2, strides=2, padding="same")(x)
        pair = [skip, up] if skip_first else [up, skip]
        x = double(layers.Concatenate()(pair), width, width)
    x = layers.Conv3D(1, 1)(x)
    return randomised(keras.Model(inputs, layers.Activation("sigmoid")(x)))


def saved(model: keras.Model, folder: Path) -> KerasModel:
    path = folder / "model.h5"
    model.save(path)
    return read_keras_file(path)


@pytest.fixture(scope="module")
def meshnet(tmp_path_factory: pytest.TempPathFactory) -> KerasModel:
    return saved(keras_meshnet(), tmp_path_factory.mktemp("meshnet"))


@pytest.mark.parametrize("make", [keras_meshnet, keras_unet])
def test_every_layer_equals_keras(make: Callable[[], Any], tmp_path: Path) -> None:
    original = make()
    conversion = convert(saved(original, tmp_path))
    x = RNG.normal(size=(2, *original.input_shape[1:])).astype(np.float32)
    ours = intermediate(conversion, x)
    computing = [each for each in original.layers if not isinstance(each, layers.InputLayer)]
    theirs = keras.Model(original.inputs, [each.output for each in computing]).predict(x, verbose=0)
    compared = 0
    for layer, wanted in zip(computing, theirs, strict=True):
        path = conversion.recognised.paths[layer.name]
        if path not in ours:
            assert isinstance(layer, layers.Dropout)
            continue
        np.testing.assert_allclose(ours[path], wanted, atol=1e-5 * abs(wanted).max(), err_msg=path)
        compared += 1
    assert compared >= len(computing) - 3
    assert conversion.recognised.paths[computing[-1].name] == "output"


def test_every_tensor_is_accounted_for(tmp_path: Path) -> None:
    original = keras_unet()
    original.compile("adam", "mse")
    original.fit(np.zeros((1, 8, 8, 8, 1)), np.zeros((1, 8, 8, 8, 1)), verbose=0)
    conversion = convert(saved(original, tmp_path))
    loaded = [each for each in conversion.tensors if each.done.startswith("loaded")]
    assert {each.path for each in loaded} == set(by_path(conversion.network()))
    assert len(loaded) == len(original.weights)
    swapped = [each for each in loaded if each.done == "loaded, channels swapped"]
    assert len(swapped) == 2  # the two transposed convolutions
    assert swapped[0].shape == (*swapped[0].keras_shape[:3], *swapped[0].keras_shape[:2:-1])
    left_out = [each for each in conversion.tensors if each.path == ""]
    assert left_out  # Adam's moments
    assert {each.done for each in left_out} == {"left out: optimizer state"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: keras_meshnet(epsilon=1e-4), "epsilon 0.0001"),
        (lambda: keras_meshnet(activation="tanh"), "no activation 'tanh'"),
        (lambda: keras_unet(skip_first=False), "'concatenate"),
    ],
)
def test_a_net_that_merely_resembles_a_family_is_refused(
    make: Callable[[], Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConversionError, match=says):
        convert(saved(make(), tmp_path))


def reconfigured(model: KerasModel, class_name: str, **settings: Any) -> KerasModel:
    """The model with settings of its first layer of a class replaced."""
    first = next(each for each in model.layers if each.class_name == class_name)
    new = dataclasses.replace(first, config={**first.config, **settings})
    return dataclasses.replace(
        model, layers=tuple(new if each is first else each for each in model.layers)
    )


@pytest.mark.parametrize(
    ("class_name", "settings"),
    [
        ("Activation", {"activation": {"class_name": "function", "config": "swoosh"}}),
        ("Conv3D", {"activation": {"class_name": "function", "config": "swoosh"}}),
        ("Conv3D", {"dilation_rate": []}),
        ("Conv3D", {"dilation_rate": 0}),
        ("Conv3D", {"dilation_rate": [[1], [1], [1]]}),
        ("Conv3D", {"filters": {}}),
        ("Conv3D", {"filters": None}),
        ("Conv3D", {"kernel_size": "three"}),
        ("BatchNormalization", {"axis": []}),
        ("Dropout", {"rate": [0.5]}),
    ],
)
def test_settings_that_cannot_be_are_a_sentence(
    class_name: str, settings: dict[str, Any], meshnet: KerasModel
) -> None:
    with pytest.raises(ConversionError, match=r"model\.h5"):
        convert(reconfigured(meshnet, class_name, **settings))


@pytest.mark.parametrize(("head", "filters"), [("sigmoid", 4), ("softmax", 1)])
def test_an_output_activation_that_does_not_suit_the_outputs_is_refused(
    head: str, filters: int, tmp_path: Path
) -> None:
    inputs = layers.Input((8, 8, 8, 1))
    x = layers.Activation("relu")(layers.Conv3D(2, 3, padding="same")(inputs))
    x = layers.Activation(head)(layers.Conv3D(filters, 1)(x))
    with pytest.raises(ConversionError, match=f"ends in a {head} over {filters} outputs"):
        convert(saved(keras.Model(inputs, x), tmp_path))


def test_an_unknown_layer_is_named(tmp_path: Path) -> None:
    x = inputs = layers.Input((8, 8, 8, 1))
    x = layers.Conv3D(2, 3)(x)
    x = layers.GaussianNoise(0.1, name="hiss")(x)
    with pytest.raises(ConversionError, match="layer 'hiss' is a 'GaussianNoise'"):
        convert(saved(keras.Model(inputs, layers.Conv3D(2, 1)(x)), tmp_path))


def changed(model: KerasModel, layer: str, **weights: np.ndarray | None) -> KerasModel:
    """The model with some weights of a layer replaced, or taken away where None."""

    def change(each: Any) -> Any:
        if each.name != layer:
            return each
        merged = {**each.weights, **weights}
        kept = {name: value for name, value in merged.items() if value is not None}
        return dataclasses.replace(each, weights=kept)

    return dataclasses.replace(model, layers=tuple(map(change, model.layers)))


def test_a_tensor_left_over_on_either_side_fails(meshnet: KerasModel) -> None:
    model = meshnet
    conv = next(each for each in model.layers if each.class_name == "Conv3D")
    kernel = conv.weights["kernel"]
    with pytest.raises(ConversionError, match=f"'{conv.name}/mask' .* has no place"):
        convert(changed(model, conv.name, mask=np.zeros(3, np.float32)))
    with pytest.raises(ConversionError, match="no tensor for block1/conv/bias"):
        convert(changed(model, conv.name, bias=None))
    with pytest.raises(ConversionError, match="has shape"):
        convert(changed(model, conv.name, kernel=kernel[:, :, :, :, :2]))
    with pytest.raises(ConversionError, match="1 values that are not finite"):
        convert(changed(model, conv.name, bias=np.float32([0, np.nan, 0])))


BRAINCHOP = ("model5_gw_ae", "model11_gw_ae", "model18cls", "model20chan3cls")


@pytest.mark.parametrize("name", [*(f"brainchop/{each}" for each in BRAINCHOP), "nobrainer/unet"])
def test_published_networks_meet_their_golden_files(name: str, shared_data: Path) -> None:
    path = shared_data / "keras" / name
    if path.is_dir():
        comparisons = compare_golden(convert(read_keras_file(path)), path / "golden.npz")
    else:
        conversion = convert(read_keras_file(path.with_suffix(".h5")))
        comparisons = compare_golden(conversion, path.with_suffix(".golden.npz"))
        assert len(comparisons) == 11
    assert max(each.relative for each in comparisons) <= 1e-4


def test_nobrainers_meshnet_meets_its_golden_file(shared_data: Path) -> None:
    folder = shared_data / "keras" / "nobrainer"
    conversion = convert(read_keras_file(folder / "meshnet.h5"))
    assert conversion.recognised.arguments["dropout"] == 0.25
    comparisons = compare_golden(conversion, folder / "meshnet.golden.npz")
    assert len(comparisons) == 7
    assert all(each.met for each in comparisons)
