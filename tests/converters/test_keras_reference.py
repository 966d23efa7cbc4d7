"""The original run in Keras beside the converted network: equal, and not equal where it is not."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from voxtune.converters.canonical import CanonicalModel
from voxtune.converters.keras_file import read_keras_file
from voxtune.converters.keras_model import KerasModel
from voxtune.converters.keras_reference import small_sizes, verify
from voxtune.converters.to_flax import Conversion, convert
from voxtune.models.graph import Graph, GraphCall, GraphLayer

RNG = np.random.default_rng(0)


def randomised(model: Any) -> Any:
    for weight in model.weights:
        low = 0.5 if "variance" in weight.name or weight.name == "gamma" else -0.4
        weight.assign(RNG.uniform(low, low + 0.9, weight.shape))
    return model


def everything() -> Any:
    """A model inside the model called twice, a shared layer, two inputs, two outputs."""
    inside = keras.Input((8, 8, 8, 2), name="inside")
    x = layers.Conv3D(3, 3, padding="same", name="conv")(inside)
    x = layers.BatchNormalization(name="norm")(x)
    encoder = keras.Model(inside, layers.Activation("relu", name="act")(x), name="encoder")
    one, two = keras.Input((8, 8, 8, 2), name="one"), keras.Input((8, 8, 8, 2), name="two")
    shared = layers.Conv3D(2, 1, name="shared")
    x, y = shared(encoder(one)), shared(encoder(two))
    joined = layers.Concatenate(name="join")([x, y])
    pooled = layers.GlobalAveragePooling3D(name="pool")(joined)
    outputs = [layers.Conv3D(3, 3, padding="same", name="seg")(joined), pooled * 2.0 + 1.0]
    return randomised(keras.Model([one, two], outputs))


def simple(*extra: Any, activation: str = "relu") -> Any:
    x = inputs = keras.Input((8, 8, 8, 1), name="image")
    x = layers.Conv3D(2, 3, padding="same", name="first", activation=activation)(x)
    for layer in extra:
        x = layer(x)
    return randomised(keras.Model(inputs, layers.Conv3D(2, 1, name="last")(x)))


def converted(model: Any, path: Path) -> tuple[KerasModel, Conversion]:
    model.save(path)
    found = read_keras_file(path)
    assert isinstance(found, KerasModel)
    return found, convert(found)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_every_layer_is_compared_inside_models_too(suffix: str, tmp_path: Path) -> None:
    if suffix == ".h5":
        model = simple(layers.BatchNormalization(name="norm"), layers.ELU(name="elu"))
        wanted = {"first", "norm", "elu", "last"}
    else:
        model = everything()
        wanted = {"encoder/conv", "encoder/conv:1", "encoder/act", "shared", "shared:1", "seg"}
    source, conversion = converted(model, tmp_path / f"net{suffix}")
    found = verify(conversion, source)
    assert found.original == f"loaded by Keras {keras.__version__}"
    assert (found.met, dict(found.unverified)) == (True, {})
    assert wanted <= {each.name for each in found.comparisons}
    assert 0 < max(each.relative for each in found.comparisons) <= 1e-5


def altered(conversion: Conversion, path: str, by: float) -> Conversion:
    """The conversion with a parameter that is not the file's."""
    values = {**conversion.parameters}
    values[path] = values[path] * (1 + np.float32(by))
    return dataclasses.replace(conversion, parameters=values)


def test_a_wrong_parameter_is_found_where_it_is(tmp_path: Path) -> None:
    source, conversion = converted(simple(layers.ELU(name="elu")), tmp_path / "net.keras")
    found = verify(altered(conversion, "last/kernel", 1e-3), source)
    assert not found.met
    assert [each.name for each in found.comparisons if not each.met] == ["last"]
    found = verify(altered(conversion, "first/bias", 1e-3), source)
    assert next(each.name for each in found.comparisons if not each.met) == "first"


def test_a_network_that_keras_does_not_load_is_rebuilt(tmp_path: Path) -> None:
    """hard_sigmoid, for one, was another function in Keras 2."""
    source, conversion = converted(simple(activation="hard_sigmoid"), tmp_path / "net.h5")
    as_keras2 = dataclasses.replace(source, keras_version="2.14.0")
    old = convert(as_keras2)
    assert any("hard_sigmoid_keras2" in str(each) for each in old.canonical.graph.layers)
    found = verify(old, as_keras2)
    assert found.original.startswith("rebuilt with the layers of Keras")
    assert "hard_sigmoid" in found.original
    assert (found.met, dict(found.unverified)) == (True, {})
    assert verify(conversion, source).original.startswith("loaded")
    assert verify(conversion, None).met


def with_calls(conversion: Conversion, change: Callable[[Graph], Graph]) -> Conversion:
    canonical: CanonicalModel = conversion.canonical
    graph = change(canonical.graph)
    arguments = {**conversion.arguments, "graph": graph.to_json()}
    calls = {**canonical.calls, **{call.name: call.name for call in graph.calls}}
    changed = dataclasses.replace(canonical, graph=graph, calls=calls)
    return dataclasses.replace(
        conversion,
        arguments=arguments,
        canonical=changed,
        paths={**{name: name for name in calls}, **conversion.paths},
    )


def test_a_layer_that_keras_lacks_is_named_and_the_rest_is_verified(tmp_path: Path) -> None:
    _, conversion = converted(simple(layers.ReLU(name="relu")), tmp_path / "net.keras")

    def lacking(graph: Graph) -> Graph:
        slab = GraphLayer(
            "relu", "SlabGroupNormalization", {"groups": 2, "scale": False, "center": False}
        )
        made = tuple(slab if each.name == "relu" else each for each in graph.layers)
        return dataclasses.replace(graph, layers=made)

    found = verify(with_calls(conversion, lacking), None)
    assert found.met
    assert dict(found.unverified) == {"relu": "Keras 3 has no SlabGroupNormalization"}
    assert {each.name for each in found.comparisons} == {"first", "last"}


def test_a_shared_layer_that_keras_lacks_is_named_at_each_use(tmp_path: Path) -> None:
    relu = layers.ReLU(name="relu")
    _, conversion = converted(simple(relu, relu), tmp_path / "net.keras")

    def lacking(graph: Graph) -> Graph:
        norm = GraphLayer("relu", "InstanceNormalization", {"scale": False, "center": False})
        made = tuple(norm if each.name == "relu" else each for each in graph.layers)
        return dataclasses.replace(graph, layers=made)

    found = verify(with_calls(conversion, lacking), None)
    assert set(found.unverified) == {"relu", "relu:1"}
    assert {each.name for each in found.comparisons} == {"first", "last"}
    assert found.met


def test_a_model_inside_with_several_outputs_is_compared_too(tmp_path: Path) -> None:
    inside = keras.Input((8, 8, 8, 1), name="inside")
    x = layers.Conv3D(2, 3, padding="same", name="conv")(inside)
    encoder = keras.Model(inside, [x, layers.ReLU(name="act")(x)], name="encoder")
    image = keras.Input((8, 8, 8, 1), name="image")
    joined = layers.Concatenate(name="join")([*encoder(image), *encoder(image * 2.0)])
    model = randomised(keras.Model(image, layers.Conv3D(2, 1, name="last")(joined)))
    source, conversion = converted(model, tmp_path / "net.keras")
    found = verify(conversion, source)
    assert (found.met, dict(found.unverified)) == (True, {})
    assert {"encoder/conv", "encoder/act:1"} <= {each.name for each in found.comparisons}


def test_what_is_the_same_everywhere_proves_nothing(tmp_path: Path) -> None:
    """A ReLU after a large negative bias gives zeros, whatever came before it."""
    model = simple(layers.Conv3D(2, 1, activation="relu", name="dead"))
    kernel, bias = model.get_layer("dead").get_weights()
    model.get_layer("dead").set_weights([kernel * 0, bias * 0 - 1])
    source, conversion = converted(model, tmp_path / "net.keras")
    found = verify(conversion, source)
    assert found.met
    assert set(found.unverified) == {"dead"}


def test_a_norm_that_always_trains_is_not_verified(tmp_path: Path) -> None:
    norm = layers.BatchNormalization(name="norm")
    source, conversion = converted(simple(norm), tmp_path / "net.keras")

    def always(graph: Graph) -> Graph:
        calls = tuple(
            GraphCall(each.name, each.layer, each.inputs, each.layer == "norm" or None)
            for each in graph.calls
        )
        return dataclasses.replace(graph, calls=calls)

    for model in (source, None):  # Keras loads the file, and would predict without training
        found = verify(with_calls(conversion, always), model)
        assert found.original.startswith("rebuilt")
    assert dict(found.unverified) == {"norm": "Keras 3 does not train in prediction"}
    assert found.met


def sizes(*convs: dict[str, Any], shape: tuple[int | None, ...] = (None, None, None, 1)) -> Any:
    size = {"filters": 1, "kernel_size": [3, 3, 3], "padding": "same"}
    made = tuple(GraphLayer(f"c{n}", "Conv3D", size | each) for n, each in enumerate(convs))
    names = ["image", *(each.name for each in made)]
    calls = tuple(GraphCall(b, b, (a,)) for a, b in pairwise(names))
    return small_sizes(Graph(made, calls, {"image": shape}, (names[-1],)))["image"]


def test_the_input_is_small_and_reaches_every_tap() -> None:
    assert sizes({}) == (16, 16, 16, 1)
    assert sizes({"dilation_rate": [16, 16, 16]}) == (40, 40, 40, 1)
    assert sizes(*[{"strides": [2, 2, 2]}] * 4) == (32, 32, 32, 1)
    assert sizes({}, shape=(256, 256, 8, 1)) == (16, 16, 8, 1)
