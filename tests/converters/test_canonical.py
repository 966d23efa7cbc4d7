"""The canonical graph computes what Keras 3 computes, and every tensor is accounted for."""

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
from voxtune.models.kinds import KINDS, register_layer

Check = Callable[..., CanonicalModel]


def test_layers_of_several_kinds(keras: Any, same_as_keras: Check) -> None:
    layers = keras.layers
    x = keras.Input((8, 6, 3), name="image")
    h = layers.SeparableConv2D(6, 3, padding="same", depth_multiplier=2, activation="gelu")(x)
    h = layers.BatchNormalization(name="bn", scale=False)(h)
    h = layers.PReLU(shared_axes=[1, 2])(layers.DepthwiseConv2D(3, padding="same")(h))
    h = layers.LayerNormalization(axis=[1, 2, 3])(layers.GroupNormalization(3)(h))
    s = layers.Conv2D(4, 1, activation=layers.LeakyReLU(negative_slope=0.1), name="own")(h)
    h = layers.Concatenate()([s, layers.Activation("hard_sigmoid")(h)])
    a = layers.MultiHeadAttention(2, 3, value_dim=4)(h, s)
    h = layers.Softmax(axis=1)(layers.Add()([h, a]))
    f = layers.Dense(3, activation="softmax")(layers.Flatten()(layers.AveragePooling2D(2)(h)))
    converted = same_as_keras(keras.Model(x, [h, f]))
    assert not converted.moved
    assert "own:linear" in {call.name for call in converted.graph.calls}
    assert converted.origins["bn"]["moving_mean"].keras == "bn/moving_mean"
    assert list(converted.weights["bn"]) == ["beta", "moving_mean", "moving_variance"]


def test_nested_and_shared_models(keras: Any, same_as_keras: Check) -> None:
    layers = keras.layers
    i = keras.Input((8, 2), name="i")
    low = layers.Conv1D(4, 3, padding="same", name="conv")(i)
    encoder = keras.Model(i, [low, layers.MaxPooling1D(2, name="pool")(low)], name="encoder")
    chain = keras.Sequential([layers.Conv1D(4, 1, name="conv"), layers.ELU()], name="chain")
    a, b = keras.Input((8, 2), name="a"), keras.Input((8, 2), name="b")
    (a1, a2), (b1, b2) = encoder(a), encoder(b)
    shared = layers.Dense(3, name="shared")
    top = layers.Concatenate()([shared(chain(a1)), shared(chain(b1))])
    both = layers.Subtract()([a2, b2])
    converted = same_as_keras(keras.Model([a, b], [both, shared(chain(b1)), top], name="outer"))
    assert {"encoder/conv", "encoder/conv:1", "shared:2", "chain/conv:2"} <= {
        call.name for call in converted.graph.calls
    }
    assert converted.calls["encoder/i:1"] == "b"  # what the inner model is called with
    assert set(converted.weights) == {"encoder/conv", "chain/conv", "shared"}


def test_keras3_training_of_a_call_is_a_default(keras: Any, same_as_keras: Check) -> None:
    # In Keras 3, fit and predict overrule what a layer was called with, and Keras writes
    # training=False for each dropout.
    x = keras.Input((4,), name="x")
    h = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(x), training=False)
    converted = same_as_keras(keras.Model(x, h))
    assert [call.training for call in converted.graph.calls] == [None, None]


def test_keras2_training_of_a_call(keras2: Any) -> None:
    config = keras2.functional(
        keras2.image,
        keras2.layer("always", "Dropout", "image", call={"training": True}, rate=0.5),
        keras2.layer("never", "SpatialDropout3D", "always", call={"training": False}, rate=0.5),
        keras2.layer("usual", "GaussianNoise", "never", call={"training": None}, stddev=0.5),
        keras2.layer("relu", "ReLU", "usual", call={"training": True}),
    )
    graph = parse_graph(config, Path("net.h5"))
    model = KerasModel(
        Path("net.h5"), "Keras HDF5", "2.9.0", "tensorflow", graph.name, graph.layers, graph.calls,
        graph.inputs, graph.outputs, "", (),
    )  # fmt: skip
    assert [call.training for call in canonical(model).graph.calls] == [True, False, None, None]


@pytest.fixture
def small(keras: Any, in_memory: Callable[..., KerasModel]) -> KerasModel:
    """A convolution and its normalisation."""
    x = keras.Input((4, 4, 1), name="x")
    h = keras.layers.Conv2D(2, 3, name="conv")(x)
    return in_memory(keras.Model(x, keras.layers.BatchNormalization(name="bn")(h)))


def altered(model: KerasModel, layer: str, **changes: Any) -> KerasModel:
    return dataclasses.replace(
        model,
        layers=tuple(
            dataclasses.replace(each, **changes) if each.name == layer else each
            for each in model.layers
        ),
    )


def test_positions_are_names_too(small: KerasModel) -> None:
    bn = small.by_name["bn"]
    numbered = {str(at): value for at, value in enumerate(bn.weights.values())}
    np.testing.assert_equal(
        canonical(altered(small, "bn", weights=numbered)).weights, canonical(small).weights
    )


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats_become_float32(small: KerasModel, dtype: str) -> None:
    weights = {name: value.astype(dtype) for name, value in small.by_name["conv"].weights.items()}
    converted = canonical(altered(small, "conv", weights=weights))
    assert converted.weights["conv"]["kernel"].dtype == np.float32
    assert converted.origins["conv"]["kernel"].done == f"{dtype} to float32"
    np.testing.assert_array_equal(
        converted.weights["conv"]["kernel"], weights["kernel"].astype(np.float32)
    )


BAD_WEIGHTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "missing": ({"kernel": np.ones((3, 3, 1, 2))}, ("'conv'", "no tensor", "'bias'", "(2,)")),
    "left over": (
        {"kernel": np.ones((3, 3, 1, 2)), "bias": np.ones(2), "more": np.ones(7)},
        ("'more'", "(7,)", "no place"),
    ),
    "of another shape": (
        {"kernel": np.ones((3, 3, 1, 9)), "bias": np.ones(2)},
        ("conv/kernel", "(3, 3, 1, 9)", "(3, 3, 1, 2)"),
    ),
    "not finite": (
        {"kernel": np.full((3, 3, 1, 2), np.nan), "bias": np.ones(2)},
        ("conv/kernel", "18 values", "not finite"),
    ),
    "no numbers": (
        {"kernel": np.ones((3, 3, 1, 2), int), "bias": np.ones(2)},
        ("conv/kernel", "int64"),
    ),
}


@pytest.mark.parametrize(("weights", "words"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_tensors_that_do_not_fit(
    small: KerasModel, weights: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConversionError) as caught:
        canonical(altered(small, "conv", weights=weights))
    assert all(word in str(caught.value) for word in ("net.keras", *words)), caught.value


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"class_name": "LSTM"}, ("'conv'", "LSTM", "register_layer")),
        ({"config": {"filters": 2}}, ("'conv'", "kernel_size")),
        ({"config": {"filters": 2, "kernel_size": 9}}, ("'conv'", "[4, 4, 1]")),
        (
            {"config": {"filters": 2, "kernel_size": 3, "activation": "my_own"}},
            ("'conv'", "my_own"),
        ),
        ({"config": {"filters": 2, "kernel_size": 3, "novelty": 7}}, ("'conv'", "novelty")),
    ],
    ids=lambda value: "-".join(map(str, value))[:20] if isinstance(value, tuple) else "",
)
def test_layers_that_are_refused(
    small: KerasModel, layer: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConversionError) as caught:
        canonical(altered(small, "conv", **layer))
    assert all(word in str(caught.value) for word in ("net.keras", *words)), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("registered", "class_name"),
    [("Shift", "Custom>Shift"), ("Custom>Conv3D", "Custom>Conv3D")],
    ids=["by its class", "of the name of one of Keras's"],
)
def test_a_registered_layer(
    small: KerasModel,
    computed: Callable[..., dict[str, np.ndarray]],
    registered: str,
    class_name: str,
) -> None:
    register_layer(
        registered,
        lambda config, weights, inputs, mode: inputs[0] * config["by"] + weights["much"],
        lambda config, shapes: {"much": shapes[0][-1:]},
    )
    try:
        own = altered(
            small,
            "bn",
            class_name=class_name,
            config={"name": "bn", "by": 3, "axis": 1},
            weights={"w": np.array([5, 7], "f")},
        )
        results = computed(canonical(own), np.ones((1, 4, 4, 1), "f"))
    finally:
        KINDS.pop(registered)
    np.testing.assert_allclose(results["bn"], results["conv"] * 3 + np.array([5, 7]), rtol=1e-6)


def test_real_files_of_nobrainer(
    shared_data: Path, computed: Callable[..., dict[str, np.ndarray]]
) -> None:
    from voxtune.converters.keras_file import read_keras_file

    path = shared_data / "keras/nobrainer/variational_meshnet.h5"
    read = read_keras_file(path)
    assert isinstance(read, KerasModel)
    converted = canonical(read)
    golden = np.load(path.with_suffix(".golden.npz"))
    found = computed(converted, golden["x"])[read.outputs[0].call]
    np.testing.assert_allclose(found, golden["y"], atol=1e-4 * np.abs(golden["y"]).max())
    assert converted.weights["layer1/vwnconv3d"]["kernel_prior_loc"].shape == (3, 3, 3, 1, 21)
