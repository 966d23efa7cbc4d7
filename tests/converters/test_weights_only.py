"""Files of weights alone: fitted to a family by shape, or refused with what would fit."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.converters.errors import ConversionError
from voxtune.converters.families import as_graph
from voxtune.converters.keras_model import KerasWeights
from voxtune.converters.weights_only import fit, parse_arguments
from voxtune.models.errors import InputError
from voxtune.models.graph import weight_shapes

RNG = np.random.default_rng(0)
UNET = {"channels": 2, "outputs": 3, "filters": 2, "depth": 2, "norm": "batch"}
HIGHRESNET = {"channels": 2, "outputs": 3, "filters": 4, "blocks": 2}
VNET = {"channels": 2, "outputs": 3, "filters": 4, "depth": 2, "norm": "slab"}
RESENC = {
    "channels": 2,
    "outputs": 3,
    "features": [2, 4, 4],
    "blocks": [2, 1, 2],
    "strides": [1, 2, 2],
    "convs": 2,
}
MESHNET = {"filters": 3, "outputs": 4, "dilations": [1, 2, 4], "activation": "gelu"}


def weights(family: str, arguments: dict[str, Any], naming: str = "own") -> KerasWeights:
    """A file as Keras writes one: layers in the network's order, or each class apart."""
    graph = as_graph(family, {"norm": None, **arguments})
    layers: dict[str, dict[str, np.ndarray]] = {}
    counts: dict[str, int] = {}
    for layer, shapes in weight_shapes(graph).items():
        if not shapes:
            continue
        kind = graph.by_name[layer].kind
        base = {"Conv3D": "conv3d", "Conv3DTranspose": "conv3d_transpose"}.get(kind, "batch_norm")
        number = counts[base] = counts.get(base, -1) + 1
        name = layer if naming == "own" else f"{base}_{number}" if number else base
        values = [RNG.normal(size=shape).astype(np.float32) for shape in shapes.values()]
        names = shapes if naming == "own" else map(str, range(len(values)))
        layers[name] = dict(zip(names, values, strict=True))
    if naming == "classes":
        layers = dict(sorted(layers.items(), key=lambda item: (item[0].rstrip("_0123456789"), 0)))
    return KerasWeights(Path("net.weights.h5"), "weights", "3.15.1", "", layers, "", ())


@pytest.mark.parametrize("naming", ["own", "classes"])
@pytest.mark.parametrize(
    ("family", "arguments", "given"),
    [
        ("unet", UNET, {}),
        ("unet", UNET, {"depth": 2, "filters": 2}),
        ("meshnet", MESHNET, {"dilations": [1, 2, 4], "activation": "gelu"}),
        ("highresnet", HIGHRESNET, {"activation": "relu"}),
        ("vnet", VNET, {"activation": "relu", "norm": "slab"}),
        ("resenc_unet", RESENC, {"blocks": [2, 1, 2], "convs": 2}),
        ("meshnet", {**MESHNET, "norm": "batch"}, {"dilations": [1, 2, 4], "activation": "elu"}),
    ],
)
def test_shapes_tell_the_arguments(family: str, arguments: Any, given: Any, naming: str) -> None:
    file = weights(family, arguments, naming)
    conversion = fit(file, family, given)
    assert conversion.family == family
    wanted = {**arguments, **given}
    assert {name: conversion.arguments[name] for name in wanted} == wanted
    assert conversion.output_activation == "softmax"
    stored = [value for arrays in file.layers.values() for value in arrays.values()]
    loaded = {value.tobytes() for value in conversion.parameters.values()}
    same = sum(value.tobytes() in loaded for value in stored)
    ups = sum(path.endswith("/up/kernel") for path in conversion.parameters)
    assert same == len(stored) - ups  # kernels of transposed convolutions change their order


def test_what_weights_do_not_tell_is_asked_for() -> None:
    with pytest.raises(ConversionError, match="do not tell its dilations and activation") as caught:
        fit(weights("meshnet", MESHNET), "meshnet", {})
    assert "--arguments" in str(caught.value)
    assert "filters=3" in str(caught.value)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_layers_of_ones_own_names_with_each_class_apart(norm: str) -> None:
    listed = weights("unet", {**UNET, "norm": norm})
    ups = {name: each for name, each in listed.layers.items() if name.endswith("/up")}
    rest = {name: each for name, each in listed.layers.items() if name not in ups}
    conversion = fit(dataclasses.replace(listed, layers={**rest, **ups}), "unet", {"norm": norm})
    for name, arrays in listed.layers.items():
        kernel = conversion.parameters.get(f"{name}/kernel")
        if name in ups:
            np.testing.assert_array_equal(kernel, arrays["kernel"].swapaxes(-1, -2))
        elif kernel is not None:
            np.testing.assert_array_equal(kernel, arrays["kernel"])
    assert len(ups) == 2


def test_what_does_not_fit_is_shown_with_what_would() -> None:
    with pytest.raises(ConversionError) as caught:
        fit(weights("unet", UNET), "unet", {"filters": 4, "norm": "batch"})
    sentence = str(caught.value)
    assert "'encoder1/unit1/conv' has (3, 3, 3, 2, 2) and (2,)" in sentence
    assert "needs (3, 3, 3, 2, 4) and (4,)" in sentence
    assert "would fit: --arguments filters=2 norm=batch channels=2 outputs=3 depth=2" in sentence
    assert "\n" not in sentence


def test_another_network_fits_no_arguments() -> None:
    with pytest.raises(ConversionError, match="No arguments of a unet would fit"):
        fit(weights("meshnet", MESHNET), "unet", {})
    with pytest.raises(ConversionError, match="No arguments of a unet that its weights suggest"):
        fit(weights("unet", {**UNET, "norm": "group"}), "unet", {})
    with pytest.raises(ConversionError, match=r"net\.weights\.h5"):
        fit(weights("unet", UNET), "meshnet", {"dilations": [1, 2], "activation": "relu"})
    empty = KerasWeights(Path("net.weights.h5"), "weights", "", "", {"a": {}}, "", ())
    with pytest.raises(ConversionError, match="holds 0 kernels"):
        fit(empty, "unet", {})


def test_what_would_give_other_numbers_is_refused() -> None:
    file = weights("unet", UNET)
    with pytest.raises(ConversionError, match="of Theano"):
        fit(dataclasses.replace(file, backend="theano"), "unet", {})
    name, held = next(iter(file.layers.items()))
    for dtype, value in ((np.float64, 1e300), (np.float32, np.nan)):
        broken = {key: np.full(array.shape, value, dtype) for key, array in held.items()}
        layers = {**file.layers, name: broken}
        with pytest.raises(ConversionError, match="not finite"):
            fit(dataclasses.replace(file, layers=layers), "unet", {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=true", True),
        ("a=False", False),
        ("a=1,2,4", [1, 2, 4]),
        ("a=elu", "elu"),
        ("a=0.25", 0.25),
    ],
)
def test_arguments_are_read(text: str, value: Any) -> None:
    assert parse_arguments([text]) == {"a": value}


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["a="], ["a=1", "a=2"]])
def test_arguments_that_are_none_are_refused(texts: list[str]) -> None:
    with pytest.raises(InputError, match="NAME=VALUE"):
        parse_arguments(texts)


@pytest.mark.parametrize("given", [{"depth": -1}, {"filters": "many"}, {"colour": 3}])
def test_arguments_that_cannot_be_are_a_sentence(given: dict[str, Any]) -> None:
    with pytest.raises(ConversionError, match=r"net\.weights\.h5"):
        fit(weights("unet", UNET), "unet", given)
