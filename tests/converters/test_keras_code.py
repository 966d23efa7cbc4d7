"""Python code in a configuration is refused by name or left out, and never runs."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from voxtune.converters.errors import ConversionError
from voxtune.converters.keras_config import ParsedGraph, parse_graph

PATH = Path("net.h5")


def test_lambdas_by_name(keras2: Any) -> None:
    config = keras2.functional(
        keras2.image,
        keras2.layer("f", "Lambda", "image", function=["4wIAAAA=", None, None]),
        keras2.layer("g", "Dense", "f", activation={"class_name": "__lambda__"}),
        keras2.layer("h", "Dense", "g", kernel_initializer={"class_name": "__lambda__"}),
    )
    graph = parse_graph(config, PATH, {"f": "identity", "g": "tanh"})
    configs = {layer.name: layer.config for layer in graph.layers}
    assert configs["f"] == {"name": "f", "activation": "identity"}
    assert configs["g"]["activation"] == "tanh"
    assert configs["h"]["kernel_initializer"] is None
    config["config"]["layers"][3]["config"]["activation"] = "relu"
    for other in ("x", "h"):  # not there; without code that a result depends on
        with pytest.raises(ConversionError, match=f"'{other}'"):
            parse_graph(config, PATH, {"f": "identity", "g": "tanh", other: "tanh"})


def test_lambdas_of_attention_gates(keras2: Any) -> None:
    # Nobrainer's attention_unet_with_inception repeats the channel of an attention map.
    def gate(**arguments: Any) -> ParsedGraph:
        layers = [
            keras2.image,
            keras2.layer("psi", "Conv3D", "image", filters=1),
            keras2.layer("sigmoid", "Activation", "psi", activation="sigmoid"),
            keras2.layer("up", "UpSampling3D", "sigmoid"),
            keras2.layer("f", "Lambda", "up", function=["4wI=", None, None], arguments=arguments),
            keras2.layer("mul", "Multiply", "f", "image"),
            keras2.layer("out", "Conv3D", "mul", filters=4),
        ]
        return parse_graph(keras2.functional(*layers), PATH)

    layer = next(each for each in gate(repnum=4).layers if each.name == "f")
    assert layer.config == {"name": "f", "repeats": 4}
    for other in ({"repnum": 5}, {"repnum": 4, "more": 1}, {}):
        with pytest.raises(ConversionError, match="Lambda"):
            gate(**other)


def test_many_gates_are_read_at_once(keras2: Any) -> None:
    layers, last = [keras2.image], "image"
    for n in range(1000):
        layers += [
            keras2.layer(f"psi{n}", "Conv3D", last, filters=1),
            keras2.layer(f"sigmoid{n}", "Activation", f"psi{n}", activation="sigmoid"),
            keras2.layer(f"up{n}", "UpSampling3D", f"sigmoid{n}"),
            keras2.layer(f"f{n}", "Lambda", f"up{n}", arguments={"repnum": 1}),
            keras2.layer(f"mul{n}", "Multiply", f"f{n}", last),
            keras2.layer(f"out{n}", "Conv3D", f"mul{n}", filters=1),
        ]
        last = f"out{n}"
    start = time.process_time()
    assert len(parse_graph(keras2.functional(*layers), PATH).layers) == 6001
    assert time.process_time() - start < 5  # a second where nothing else runs


def test_functions_of_variational_layers_stay_unread(keras2: Any) -> None:
    code = ["4wUAAAA=", None, ["_fn"]]
    settings = {"kernel_posterior_fn": code, "bias_prior_fn": None}
    layer = keras2.layer("f", "Conv3DFlipout", "image", **settings)
    config = parse_graph(keras2.functional(keras2.image, layer), PATH).layers[-1].config
    assert (config["kernel_posterior_fn"], config["bias_prior_fn"]) == (True, None)


def test_words_of_the_file_cannot_break_the_sentence(keras2: Any) -> None:
    name = "\x1b[31m\n" + "x" * 10_000
    with pytest.raises(ConversionError) as caught:
        parse_graph(keras2.functional(keras2.image, keras2.layer(name, "Lambda", "image")), PATH)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_keras3_lambda_never_runs(keras: Any, tmp_path: Path) -> None:
    image = keras.Input((4,))
    marker = str(tmp_path / "ran")
    # What a stranger might write, in one expression.
    out = keras.layers.Lambda(lambda x: (open(marker, "w"), x)[1], name="mine")(image)  # noqa: SIM115, PTH123
    Path(marker).unlink(missing_ok=True)
    with pytest.raises(ConversionError, match="'mine'"):
        parse_graph(json.loads(keras.Model(image, out).to_json()), PATH)
    assert not Path(marker).exists()
