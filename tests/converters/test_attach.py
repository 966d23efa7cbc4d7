"""Arrays find their layers under every name that Keras gives them, and none is guessed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.converters.attach import attach, by_name, by_place, short_name
from voxtune.converters.errors import ConversionError
from voxtune.converters.keras_config import ParsedGraph
from voxtune.converters.keras_model import KerasLayer, Tensor

PATH = Path("m.h5")


def graph(*names: str, frozen: str = "") -> ParsedGraph:
    layers = tuple(KerasLayer(name, "Conv3D", {"trainable": name != frozen}, {}) for name in names)
    return ParsedGraph("net", layers, (), (), ())


def found(layers: ParsedGraph, *tensors: tuple[str, str]) -> list[str]:
    """`layer:name` of each tensor, given as (layer, name) in the file."""
    arrays = [Tensor(layer, name, np.zeros(1)) for layer, name in tensors]
    return [f"{tensor.layer}:{tensor.name}" for tensor in by_name(arrays, layers, PATH)]


@pytest.mark.parametrize(
    ("tensor", "layer", "short"),
    [
        ("conv/kernel:0", "conv", "kernel"),
        ("conv_3/kernel:0", "conv", "kernel"),
        ("net/conv/kernel", "conv", "kernel"),
        ("block1/conv/kernel:0", "block1/conv", "kernel"),
        ("att/query/kernel", "att", "query/kernel"),
        ("att/query/kernel:0", "encoder/att", "query/kernel"),
        ("conv_1_W:0", "conv_1", "W"),
        ("conv_1_W_6:0", "conv_1", "W"),
        ("batchnormalization_1_running_std", "batchnormalization_1", "running_std"),
        ("kernel", "conv", "kernel"),
    ],
)
def test_short_names(tensor: str, layer: str, short: str) -> None:
    assert short_name(tensor, layer, "net") == short


def test_a_layer_of_its_own_group() -> None:
    assert found(graph("conv"), ("conv", "conv_1/kernel:0"), ("conv", "conv_1/bias:0")) == [
        "conv:kernel",
        "conv:bias",
    ]


def test_a_layer_that_is_a_whole_network_keeps_its_long_names() -> None:
    names = ("unetr/dense/kernel:0", "unetr/dense_1/kernel:0")
    assert found(graph("unetr"), *(("unetr", name) for name in names)) == [
        "unetr:dense/kernel",
        "unetr:dense_1/kernel",
    ]
    other = ("a/kernel:0", "b/kernel:0")
    assert found(graph("net"), *(("net", name) for name in other)) == [
        "net:a/kernel",
        "net:b/kernel",
    ]


def test_models_inside_models_share_the_outer_group() -> None:
    """Trainable tensors first, then the others: the order is not the layers'."""
    layers = graph("inner/conv", "inner/deep/conv_1", "inner/deep/norm")
    assert found(
        layers,
        ("inner", "conv/kernel:0"),
        ("inner", "conv_1/kernel:0"),
        ("inner", "norm/gamma:0"),
        ("inner", "inner/deep/norm/beta"),
        ("inner", "norm/moving_mean:0"),
    ) == [
        "inner/conv:kernel",
        "inner/deep/conv_1:kernel",
        "inner/deep/norm:gamma",
        "inner/deep/norm:beta",
        "inner/deep/norm:moving_mean",
    ]


def test_keras1_names_inside_a_model() -> None:
    assert found(
        graph("enc/conv_1", "enc/conv_1_1"), ("enc", "conv_1_W:0"), ("enc", "conv_1_1_W_2")
    ) == [
        "enc/conv_1:W",
        "enc/conv_1_1:W",
    ]


def test_a_flat_group_of_a_layer_inside_a_model() -> None:
    """Keras 1 saved the layers of Sequential models inside Sequential models one by one."""
    assert found(graph("outer/conv"), ("conv", "conv_W")) == ["outer/conv:W"]


def test_numbers_that_tensorflow_changed_go_by_order() -> None:
    layers = graph("inner/conv", "inner/conv_1", "inner/dense")
    tensors = (
        ("inner", "conv_1/kernel:0"),
        ("inner", "conv_1/bias:0"),
        ("inner", "conv_2/kernel:0"),
        ("inner", "dense_7/kernel:0"),
    )
    assert found(layers, *tensors) == [
        "inner/conv:kernel",
        "inner/conv:bias",
        "inner/conv_1:kernel",
        "inner/dense:kernel",
    ]
    with pytest.raises(ConversionError, match="belongs to no layer"):  # its tensors come last
        found(graph("inner/conv", "inner/conv_1", "inner/dense", frozen="inner/conv"), *tensors)
    with pytest.raises(ConversionError, match="belongs to no layer"):  # three for two
        found(layers, *tensors, ("inner", "conv_9/kernel:0"))


def test_names_of_two_layers_are_not_guessed() -> None:
    layers = graph("inner/a/conv", "inner/b/conv")
    with pytest.raises(ConversionError, match=r"m\.h5.*'conv/kernel:0'"):
        found(layers, ("inner", "conv/kernel:0"), ("inner", "conv/bias:0"))
    assert found(layers, ("inner", "a/conv/kernel"), ("inner", "b/conv/kernel")) == [
        "inner/a/conv:kernel",
        "inner/b/conv:kernel",
    ]


def test_every_tensor_has_one_place() -> None:
    layers = graph("conv").layers
    arrays = [Tensor("conv", "kernel", np.zeros(1)), Tensor("conv", "kernel", np.zeros(1))]
    with pytest.raises(ConversionError, match="two tensors named 'kernel'"):
        attach(layers, arrays, PATH)
    with pytest.raises(ConversionError, match="belongs to no layer"):
        attach(layers, [Tensor("dense", "kernel", np.zeros(1))], PATH)


# By place


def model(*layers: tuple[str, Any]) -> dict[str, Any]:
    """A configuration of (name, class or list of inner layers)."""
    entries = [
        {"class_name": what, "config": {"name": name}, "name": name}
        if isinstance(what, str)
        else model(*what) | {"name": name}
        for name, what in layers
    ]
    return {"class_name": "Functional", "config": {"name": "model", "layers": entries}}


def placed(config: Any, *places: str, **names: str) -> dict[str, tuple[str, str]]:
    called = {f"layers/{key}/vars": name for key, name in names.items()}
    return by_place(places, called, config, PATH)


def test_class_and_number_follow_the_model_s_order() -> None:
    config = model(("b", "Conv3D"), ("n", "BatchNormalization"), ("a", "Custom>Conv3D"))
    assert placed(
        config,
        "layers/conv3d/vars/0",
        "layers/conv3d_1/vars/0",
        "layers/batch_normalization/vars/3",
    ) == {
        "layers/conv3d/vars/0": ("b", "0"),
        "layers/conv3d_1/vars/0": ("a", "0"),
        "layers/batch_normalization/vars/3": ("n", "3"),
    }


def test_numbers_that_keras_2_12_left_out() -> None:
    config = model(("b", "Conv3D"), ("a", "Conv3D"))
    assert placed(config, "layers/conv3d/vars/0", "layers/conv3d_2/vars/0") == {
        "layers/conv3d/vars/0": ("b", "0"),
        "layers/conv3d_2/vars/0": ("a", "0"),
    }


def test_names_in_the_file_come_first() -> None:
    config = model(("b", "Conv3D"), ("a", "Conv3D"))
    places = ("layers/conv3d/vars/0", "layers/conv3d_1/vars/0")
    assert placed(config, *places, conv3d="a", conv3d_1="b") == {
        "layers/conv3d/vars/0": ("a", "0"),
        "layers/conv3d_1/vars/0": ("b", "0"),
    }
    # Names of another model are those of its layers, not of these.
    assert placed(config, *places, conv3d="x", conv3d_1="y")[places[0]] == ("b", "0")


def test_inner_models_and_parts_of_layers() -> None:
    config = model(("inner", (("conv", "Conv3D"),)), ("att", "MultiHeadAttention"))
    assert placed(
        config,
        "layers/functional/layers/conv3d/vars/0",
        "layers/multi_head_attention/query_dense/vars/1",
    ) == {
        "layers/functional/layers/conv3d/vars/0": ("inner/conv", "0"),
        "layers/multi_head_attention/query_dense/vars/1": ("att", "query_dense/1"),
    }


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("layers/dense/vars/0", "belongs to no layer"),
        ("vars/0", "belongs to no layer"),
        ("layers/conv3d/vars/x", "belongs to no layer"),
        ("layers/conv3d/kernel", "belongs to no layer"),
        ("layers/functional/vars/0", "belongs to no layer"),
        ("layers/conv3d_1/vars/0", "has 2 layers called 'conv3d' where the model has 1|has 1"),
    ],
)
def test_places_of_no_layer(place: str, words: str) -> None:
    config = model(("conv", "Conv3D"), ("inner", (("conv", "Conv3D"),)))
    places = ("layers/conv3d/vars/0", place)
    with pytest.raises(ConversionError, match=words):
        placed(config, *places)
