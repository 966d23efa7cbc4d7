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
from voxtune.converters.keras_file import read_keras_file
from voxtune.converters.keras_model import KerasModel, KerasWeights
from voxtune.converters.to_flax import EMITTED, convert
from voxtune.converters.verify import compare_golden, intermediate
from voxtune.converters.weights_only import fit
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
    model = saved(original, tmp_path)
    conversion = convert(model)
    x = RNG.normal(size=(2, *original.input_shape[1:])).astype(np.float32)
    ours, _ = intermediate(conversion, {model.inputs[0]: x})
    computing = [each for each in original.layers if not isinstance(each, layers.InputLayer)]
    theirs = keras.Model(original.inputs, [each.output for each in computing]).predict(x, verbose=0)
    compared = 0
    for layer, wanted in zip(computing, theirs, strict=True):
        found = ours[layer.name]
        tolerance = 1e-5 * abs(wanted).max()
        np.testing.assert_allclose(found, wanted, atol=tolerance, err_msg=layer.name)
        compared += 1
    assert compared == len(computing)
    assert conversion.family == make.__name__.removeprefix("keras_")
    assert conversion.paths[computing[-1].name] == EMITTED


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
    assert {each.done for each in left_out} == {"left out: not of the network"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: keras_meshnet(epsilon=1e-4), "epsilon 0.0001"),
        (lambda: keras_unet(skip_first=False), "'concatenate"),
    ],
)
def test_a_net_that_merely_resembles_a_family_becomes_a_graph(
    make: Callable[[], Any], says: str, tmp_path: Path
) -> None:
    original = make()
    model = saved(original, tmp_path)
    conversion = convert(model)
    assert conversion.family == "graph"
    assert says in conversion.unlike
    x = RNG.normal(size=(1, *original.input_shape[1:])).astype(np.float32)
    ours, _ = intermediate(conversion, {model.inputs[0]: x})
    wanted = np.asarray(original(x))
    found = ours[original.layers[-1].name]
    np.testing.assert_allclose(found, wanted, atol=1e-5 * abs(wanted).max())


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


@pytest.mark.parametrize(
    ("head", "filters", "taken_off"),
    [
        ("sigmoid", 1, "sigmoid"),
        ("sigmoid", 4, "sigmoid"),
        ("softmax", 3, "softmax"),
        ("tanh", 2, "linear"),
        ("linear", 2, "linear"),
    ],
)
@pytest.mark.parametrize("apart", [True, False])
def test_the_output_activation_is_taken_off_and_remembered(
    head: str, filters: int, taken_off: str, apart: bool, tmp_path: Path
) -> None:
    inputs = layers.Input((8, 8, 8, 1))
    x = layers.Conv3D(2, 3, padding="valid")(inputs)
    if apart:
        x = layers.Activation(head)(layers.Conv3D(filters, 1)(x))
    else:
        x = layers.Conv3D(filters, 1, activation=head)(x)
    original = randomised(keras.Model(inputs, x))
    model = saved(original, tmp_path)
    conversion = convert(model)
    assert conversion.output_activation == taken_off
    x = RNG.normal(size=(1, 8, 8, 8, 1)).astype(np.float32)
    ours, largest = intermediate(conversion, {model.inputs[0]: x})
    np.testing.assert_allclose(ours[original.layers[-1].name], original(x), atol=1e-5)
    logits = np.asarray(conversion.network()(x))
    assert abs(logits).max() == pytest.approx(largest, rel=1e-4)
    if taken_off == "linear":
        np.testing.assert_allclose(logits, original(x), atol=1e-5)
    elif taken_off == "sigmoid":
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), original(x), atol=1e-5)
    else:
        assert not np.allclose(logits.sum(-1), 1, atol=0.1)


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
    with pytest.raises(ConversionError, match=f"tensor 'mask' .* of the layer '{conv.name}'"):
        convert(changed(model, conv.name, mask=np.zeros(3, np.float32)))
    with pytest.raises(ConversionError, match=f"'{conv.name}'.*bias|bias.*'{conv.name}'"):
        convert(changed(model, conv.name, bias=None))
    with pytest.raises(ConversionError, match="has the shape"):
        convert(changed(model, conv.name, kernel=kernel[:, :, :, :, :2]))
    with pytest.raises(ConversionError, match="not finite"):
        convert(changed(model, conv.name, bias=np.float32([0, np.nan, 0])))


# file or folder under shared/data/keras, its golden file, entries compared, family
GOLDENS = [
    *(
        (f"brainchop/{name}", f"brainchop/{name}/golden.npz", 1, "meshnet")
        for name in ("model5_gw_ae", "model11_gw_ae", "model18cls", "model20chan3cls")
    ),
    ("nobrainer/unet.h5", "nobrainer/unet.golden.npz", 11, "unet"),
    ("nobrainer/meshnet.h5", "nobrainer/meshnet.golden.npz", 7, "meshnet"),
    ("nobrainer/highresnet.h5", "nobrainer/highresnet.golden.npz", 9, "highresnet"),
    ("nobrainer/autoencoder.h5", "nobrainer/autoencoder.golden.npz", 1, "graph"),
    (
        "nobrainer/variational_meshnet.h5",
        "nobrainer/variational_meshnet.golden.npz",
        1,
        "bayesian_meshnet",
    ),
    *(
        (f"keras3/{name}{suffix}", f"keras3/{name}.golden.npz", entries, "graph")
        for name, entries in (("small", 7), ("sequential", 1))
        for suffix in (".keras", ".h5")
    ),
]


@pytest.mark.parametrize(("source", "golden", "entries", "family"), GOLDENS)
def test_golden_files_are_met(
    source: str, golden: str, entries: int, family: str, shared_data: Path
) -> None:
    conversion = convert(read_keras_file(shared_data / "keras" / source))
    assert conversion.family == family
    comparisons = compare_golden(conversion, shared_data / "keras" / golden)
    assert len(comparisons) == entries
    assert max(each.relative for each in comparisons) <= 1e-4
    with np.load(shared_data / "keras" / golden) as stored:
        assert entries == sum(name.startswith(("y", "act")) for name in stored.files)


@pytest.mark.parametrize(
    ("name", "family", "arguments"),
    [
        ("unet", "unet", {}),
        ("meshnet", "meshnet", {"dilations": [1, 1, 2, 4, 8, 16, 1], "activation": "relu"}),
    ],
)
def test_weights_alone_meet_the_golden_file_of_their_network(
    name: str, family: str, arguments: dict[str, Any], shared_data: Path
) -> None:
    folder = shared_data / "keras" / "nobrainer"
    weights = read_keras_file(folder / f"{name}.weights.h5")
    assert isinstance(weights, KerasWeights)
    conversion = fit(weights, family, arguments)
    whole = convert(read_keras_file(folder / f"{name}.h5"))
    for path, value in whole.parameters.items():
        assert conversion.parameters[path].tobytes() == value.tobytes()
    assert conversion.output_activation == whole.output_activation
