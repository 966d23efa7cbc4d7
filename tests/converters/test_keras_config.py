"""A configuration becomes layers and calls, in each spelling of Keras; no code gets in."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voxtune.converters.errors import ConversionError
from voxtune.converters.keras_config import ParsedGraph, parse_graph, parse_json
from voxtune.converters.keras_model import TensorRef

PATH = Path("net.h5")


def reads(graph: ParsedGraph) -> dict[str, tuple[Any, ...]]:
    return {call.name: call.args for call in graph.calls}


def keras3_node(*arguments: Any, **kwargs: Any) -> list[dict[str, Any]]:
    return [{"args": list(arguments), "kwargs": kwargs}]


def keras3_tensor(name: str, node: int = 0) -> dict[str, Any]:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, node, 0]}}


def test_functional(keras2: Any) -> None:
    graph = parse_graph(
        keras2.functional(
            keras2.image,
            keras2.conv,
            keras2.layer("a", "ReLU", "conv"),
            keras2.layer("b", "Dropout", "conv", call={"training": None}),
            keras2.layer("join", "Concatenate", "b", "a", "b", axis=-1),
            output_layers=[["join", 0, 0], ["a", 0, 0]],
        ),
        PATH,
    )
    assert reads(graph) == {
        "image": (),
        "conv": (TensorRef("image"),),
        "a": (TensorRef("conv"),),
        "b": (TensorRef("conv"),),
        "join": ([TensorRef("b"), TensorRef("a"), TensorRef("b")],),
    }
    assert graph.inputs == ("image",)
    assert graph.outputs == (TensorRef("join"), TensorRef("a"))
    assert next(layer for layer in graph.layers if layer.name == "join").config["axis"] == -1


def test_calls_do_not_depend_on_the_order_of_the_file(keras2: Any) -> None:
    layers = [keras2.image, keras2.conv, *(keras2.layer(f"r{n}", "ReLU", "conv") for n in range(6))]
    layers.append(keras2.layer("add", "Add", *(f"r{n}" for n in (3, 1, 4, 0, 5, 2))))
    ends = {"output_layers": [["add", 0, 0]]}
    calls = parse_graph(keras2.functional(*layers, **ends), PATH).calls
    for seed in range(5):
        shuffled = random.Random(seed).sample(layers, len(layers))
        graph = parse_graph(keras2.functional(*shuffled, **ends), PATH)
        assert graph.calls == calls
        assert [layer.name for layer in graph.layers] == [layer["name"] for layer in shuffled]


@pytest.mark.parametrize("as_list", [False, True])
def test_sequential_without_input_layer(as_list: bool) -> None:
    conv = {
        "class_name": "Conv3D",
        "config": {"name": "conv", "batch_input_shape": [None, 8, 8, 8, 1]},
    }
    relu = {"class_name": "ReLU", "config": {"name": "relu"}}
    config: Any = [conv, relu] if as_list else {"name": "chain", "layers": [conv, relu]}
    graph = parse_graph({"class_name": "Sequential", "config": config}, PATH)
    assert graph.name == ("sequential" if as_list else "chain")
    assert reads(graph) == {
        "conv_input": (),
        "conv": (TensorRef("conv_input"),),
        "relu": (TensorRef("conv"),),
    }
    assert graph.layers[0].class_name == "InputLayer"
    assert graph.layers[0].config["batch_input_shape"] == [None, 8, 8, 8, 1]
    assert (graph.inputs, graph.outputs) == (("conv_input",), (TensorRef("relu"),))


def test_spellings_of_arguments(keras2: Any) -> None:
    def one(node: Any) -> tuple[tuple[Any, ...], Any]:
        layer = {"class_name": "Own", "name": "f", "config": {"dtype": "float32"}}
        config = keras2.functional(keras2.image, keras2.conv, layer | {"inbound_nodes": [node]})
        call = parse_graph(config, PATH).calls[-1]
        return call.args, call.kwargs

    image, conv = TensorRef("image"), TensorRef("conv")
    named = {"y": ["conv", 0, 0], "z": None, "k": [1, 2]}
    assert one(["image", 0, 0, named]) == ((image,), {"y": conv, "k": [1, 2]})
    assert one([["image", 0, 0, {}], ["conv", 0, 0, {"a": 1}]]) == (([image, conv],), {"a": 1})
    assert one(["_CONSTANT_VALUE", -1, 1.0, {"y": ["image", 0, 0]}]) == ((1.0,), {"y": image})
    assert one({"u": ["image", 0, 0, {}], "v": ["conv", 0, 0, {}]}) == (
        ({"u": image, "v": conv},),
        {},
    )
    (node,) = keras3_node(keras3_tensor("image"), 2.0, y=[keras3_tensor("conv")], z=None)
    assert one(node) == ((image, 2.0), {"y": [conv]})


def inner(keras2: Any, name: str = "block", **changes: Any) -> dict[str, Any]:
    """A model of one input and two outputs inside another, used twice."""
    model = keras2.functional(
        keras2.layer("image", "InputLayer"),
        keras2.layer("relu", "ReLU", "image"),
        keras2.layer("pool", "MaxPooling3D", "relu"),
        output_layers=[["relu", 0, 0], ["pool", 0, 0]],
        name=name,
    )
    uses = {"name": name, "inbound_nodes": [[["image", 0, 0, {}]], [["conv", 0, 0, {}]]]}
    return model | uses | changes


@pytest.mark.parametrize("first", [0, 1])  # versions count the uses of a model from 0 or from 1
def test_models_inside_the_model(keras2: Any, first: int) -> None:
    add = keras2.layer("add", "Add")
    add["inbound_nodes"] = [[["block", first, 0, {}], ["block", first + 1, 1, {}]]]
    graph = parse_graph(
        keras2.functional(
            keras2.image, keras2.conv, inner(keras2), add, output_layers=[["add", 0, 0]]
        ),
        PATH,
    )
    assert reads(graph) == {
        "image": (),
        "conv": (TensorRef("image"),),
        "block/image": (TensorRef("image"),),
        "block/relu": (TensorRef("block/image"),),
        "block/pool": (TensorRef("block/relu"),),
        "block/image:1": (TensorRef("conv"),),
        "block/relu:1": (TensorRef("block/image:1"),),
        "block/pool:1": (TensorRef("block/relu:1"),),
        "add": ([TensorRef("block/relu"), TensorRef("block/pool:1")],),
    }


def test_training_reaches_into_models(keras2: Any) -> None:
    block = inner(keras2, inbound_nodes=[[["image", 0, 0, {"training": True}]]])
    graph = parse_graph(
        keras2.functional(keras2.image, block, output_layers=[["block", 0, 0]]), PATH
    )
    assert graph.outputs == (TensorRef("block/relu"),)
    told = {call.name: call.kwargs for call in graph.calls}
    assert told["block/relu"] == {"training": True}


def test_operations_are_no_layers(keras2: Any) -> None:
    node = {"inbound_nodes": keras3_node(keras3_tensor("image"), 1.0)}

    def class_name(**entry: Any) -> str:
        layer = {"class_name": "Add", "name": "add", "config": {"name": "add"}} | node | entry
        return parse_graph(keras2.functional(keras2.image, layer), PATH).layers[-1].class_name

    assert class_name(module="keras.src.ops.numpy") == "keras.ops>Add"
    assert class_name(module="keras.layers") == "Add"
    assert class_name() == "keras.ops>Add"  # HDF5 files name no module
    assert class_name(config={"name": "add", "dtype": "float32"}) == "Add"
    assert class_name(module="mine.layers", registered_name="Mine>Add") == "Mine>Add"


# Each is made with the fixture keras2.
def test_branches_of_keras1(keras2: Any) -> None:
    """A Sequential model that begins with others; each has an input of its own."""

    def branch(number: int) -> dict[str, Any]:
        shape = [None, 4, 4, 4, number]
        first = keras2.layer(f"c{number}", "Convolution3D", batch_input_shape=shape)
        return {"class_name": "Sequential", "config": [first]}

    merge = keras2.layer("m", "Merge", mode="concat", layers=[branch(1), branch(2)])
    graph = parse_graph({"class_name": "Sequential", "config": [merge, keras2.conv]}, PATH)
    calls = {call.name: call for call in graph.calls}
    configs = {layer.name: layer.config for layer in graph.layers}
    assert [configs[name]["batch_input_shape"][-1] for name in graph.inputs] == [1, 2]
    first, second = (each.call for each in calls["m"].args[0])
    assert [calls[first].layer, calls[second].layer] == ["sequential_1/c1", "sequential_2/c2"]
    (source,) = calls[second].args
    assert calls[source.call].args == (TensorRef(graph.inputs[1]),)
    assert (configs["m"]["mode"], "layers" in configs["m"]) == ("concat", False)
    assert [each.call for each in graph.outputs] == ["conv"]


BAD_GRAPHS: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "a list": (lambda k: [], ("not that of a Keras model",)),
    "no layers": (lambda k: k.functional(k.image, layers=[]), ("no layers",)),
    "layers no list": (lambda k: k.functional(k.image, layers={"a": 1}), ("no layers",)),
    "entry no layer": (lambda k: k.functional(k.image, layers=[k.image, 3]), ("entry 1",)),
    "no name": (
        lambda k: k.functional(k.image, {"class_name": "ReLU", "config": {}}),
        ("no name",),
    ),
    "duplicate": (lambda k: k.functional(k.image, k.conv, k.conv), ("two layers", "'conv'")),
    "other class": (lambda k: {"class_name": "Mine", "config": {"layers": [k.image]}}, ("'Mine'",)),
    "lambda": (
        lambda k: k.functional(k.image, k.layer("f", "Lambda", "image")),
        ("'f'", "Lambda", "refused"),
    ),
    "wrapped lambda": (
        lambda k: k.functional(
            k.image, k.layer("f", "TimeDistributed", "image", layer=k.layer("inner", "Lambda"))
        ),
        ("'f'", "refused"),
    ),
    "nested lambda": (
        lambda k: k.functional(
            k.image, k.layer("f", "Functional", "image", layers=[k.layer("inner", "Lambda")])
        ),
        ("'f'", "refused"),
    ),
    "lambda as activation": (
        lambda k: k.functional(
            k.image, k.layer("f", "Dense", "image", activation={"class_name": "__lambda__"})
        ),
        ("'f'", "refused"),
    ),
    "second node, Keras 3": (
        lambda k: k.functional(
            k.image, k.conv | {"inbound_nodes": keras3_node(keras3_tensor("image", 1))}
        ),
        ("'conv'", "use 1", "'image'", "does not exist"),
    ),
    "no history, Keras 3": (
        lambda k: k.functional(
            k.image,
            k.conv
            | {"inbound_nodes": keras3_node({"class_name": "__keras_tensor__", "config": 3})},
        ),
        ("'conv'", "connections"),
    ),
    "unknown source": (
        lambda k: k.functional(k.image, k.layer("f", "ReLU", "nowhere")),
        ("'f'", "'nowhere'"),
    ),
    "unknown output": (
        lambda k: k.functional(k.image, k.conv, output_layers=[["x", 0, 0]]),
        ("'x'", "outputs"),
    ),
    "outputs by name": (
        lambda k: k.functional(k.image, k.conv, output_layers={"a": 1}),
        ("outputs",),
    ),
    "no outputs": (lambda k: k.functional(k.image, k.conv, output_layers=[]), ("outputs",)),
    "input is a layer": (
        lambda k: k.functional(k.image, k.conv, input_layers=[["conv", 0, 0]]),
        ("inputs",),
    ),
    "reads nothing": (
        lambda k: k.functional(k.image, k.conv, k.layer("f", "ReLU")),
        ("'f'", "reads nothing"),
    ),
    "input reads": (
        lambda k: k.functional(k.image, k.layer("f", "InputLayer", "image")),
        ("'f'", "reads"),
    ),
    "cycle": (
        lambda k: k.functional(
            k.image, k.layer("f", "Add", "image", "g"), k.layer("g", "ReLU", "f")
        ),
        ("its own output",),
    ),
    "nodes no list": (
        lambda k: k.functional(k.image, k.conv | {"inbound_nodes": 3}),
        ("'conv'", "connections"),
    ),
    "node no list": (
        lambda k: k.functional(k.image, k.conv | {"inbound_nodes": [3]}),
        ("'conv'", "connections"),
    ),
    "reference no list": (
        lambda k: k.functional(k.image, k.conv | {"inbound_nodes": [[3]]}),
        ("'conv'", "connections"),
    ),
    "no shape": (
        lambda k: {"class_name": "Sequential", "config": {"layers": [k.layer("r", "ReLU")]}},
        ("input shape",),
    ),
}


@pytest.mark.parametrize(("config", "words"), BAD_GRAPHS.values(), ids=BAD_GRAPHS.keys())
def test_bad_graph(config: Callable[[Any], Any], words: tuple[str, ...], keras2: Any) -> None:
    with pytest.raises(ConversionError) as caught:
        parse_graph(config(keras2), PATH)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert all(word in sentence for word in ("net.h5", *words)), sentence


def exploding(keras2: Any) -> Any:
    """Thirty models, each using the one inside it twice: 2**30 calls."""
    model = inner(keras2, "m0")
    for n in range(1, 31):
        name = model["name"]
        model["inbound_nodes"] = [[["image", 0, 0, {}]], [[name, 0, 0, {}]]]
        model = keras2.functional(
            keras2.layer("image", "InputLayer"), model, output_layers=[[name, 1, 0]], name=f"m{n}"
        ) | {"name": f"m{n}"}
    return model


def long_chain(keras2: Any) -> Any:
    layers = [keras2.image]
    for n in range(30_000):
        layers.append(keras2.layer(f"r{n}", "ReLU", layers[-1]["name"]))
    return keras2.functional(*layers)


def deep(keras2: Any) -> Any:
    value: Any = []
    for _ in range(900):
        value = [value]
    return keras2.functional(keras2.image, keras2.layer("f", "ReLU", "image", more=value))


def many_values(keras2: Any) -> Any:
    block = inner(keras2, inbound_nodes=[[["image", 0, 0, {}]]] * 5_000)
    block["config"]["layers"][1]["inbound_nodes"][0][0][3]["y"] = list(range(10_000))
    return keras2.functional(keras2.image, block, output_layers=[["block", 0, 0]])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (exploding, "20,000 times"),
        (long_chain, "20,000 layers"),
        (deep, "too deep"),
        (many_values, "200,000 values"),
    ],
)
def test_hostile_sizes_are_refused_at_once(
    config: Callable[[Any], Any], words: str, keras2: Any
) -> None:
    document = config(keras2)
    start = time.monotonic()
    with pytest.raises(ConversionError, match=words):
        parse_graph(document, PATH)
    assert time.monotonic() - start < 5  # a second where nothing else runs


def test_a_long_chain_is_read(keras2: Any) -> None:
    layers = [keras2.image]
    for n in range(3_000):  # deeper than Python recurses
        layers.append(keras2.layer(f"r{n}", "ReLU", layers[-1]["name"]))
    assert (
        len(
            parse_graph(
                keras2.functional(*reversed(layers), output_layers=[["r2999", 0, 0]]), PATH
            ).calls
        )
        == 3_001
    )


@pytest.mark.parametrize("text", ["[" * 10_000 + "]" * 10_000, '{"a": ' * 10_000, "{", b"\xff"])
def test_json_that_is_none(text: str | bytes) -> None:
    with pytest.raises(ConversionError, match=r"net\.h5"):
        parse_graph(parse_json(text, PATH), PATH)


def test_keras3_writes_what_is_read(keras: Any) -> None:
    layers = keras.layers
    i = keras.Input((4,), name="i")
    block = keras.Model(i, [layers.Dense(4, name="d")(i), layers.ReLU(name="r")(i)], name="block")
    x = keras.Input((4,), name="x")
    first, _ = block(x)
    _, second = block(first)
    graph = parse_graph(json.loads(keras.Model(x, [second, first]).to_json()), PATH)
    assert graph.outputs == (TensorRef("block/r:1"), TensorRef("block/d"))
    assert reads(graph)["block/i:1"] == (TensorRef("block/d"),)
