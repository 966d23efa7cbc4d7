"""Graphs as modules: what they compute and learn, their names, their head, what does not fit."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from keras import layers

from voxtune.models.errors import InputError
from voxtune.models.families import abstract, build
from voxtune.models.graph import (
    Graph,
    GraphCall,
    GraphLayer,
    fits,
    head_activation,
    head_of,
    results,
    weight_shapes,
    with_channels,
    with_linear_head,
    with_outputs,
)
from voxtune.models.graph_net import GraphNet, attribute
from voxtune.models.parameters import assemble, by_path

RNG = np.random.default_rng(0)


def graph(head: str = "Conv3D") -> Graph:
    """Two inputs' worth of structure in one: a shared convolution, a norm, dropout, a head."""
    size = {"kernel_size": [3, 3, 3], "padding": "same"}
    top = {"units": 3} if head == "Dense" else {"filters": 3, "kernel_size": [1, 1, 1]}
    made = (
        GraphLayer("first", "Conv3D", {"filters": 4, **size}),
        GraphLayer("shared", "Conv3D", {"filters": 4, **size, "activation": "elu"}),
        GraphLayer("norm", "BatchNormalization", {"momentum": 0.9, "epsilon": 0.01}),
        GraphLayer("drop", "Dropout", {"rate": 0.5}),
        GraphLayer("add", "Add", {}),
        GraphLayer("levels", head, top),
    )
    calls = (
        GraphCall("first", "first", ("image",)),
        GraphCall("shared", "shared", ("first",)),
        GraphCall("norm", "norm", ("shared",)),
        GraphCall("shared:1", "shared", ("norm",)),
        GraphCall("drop", "drop", ("shared:1",)),
        GraphCall("add", "add", ("drop", "first")),
        GraphCall("levels", "levels", ("add",)),
    )
    return Graph(made, calls, {"image": (None, None, None, 2)}, ("levels",))


@pytest.fixture(scope="module")
def network() -> GraphNet:
    """With weights of which none is zero or one."""
    arguments = {"graph": graph().to_json()}
    values = {
        path: RNG.uniform(0.2, 0.8, value.shape).astype(np.float32)
        for path, value in by_path(build("graph", arguments)).items()
    }
    found = assemble("graph", arguments, values)
    assert isinstance(found, GraphNet)
    return found


@pytest.fixture(scope="module")
def original(network: GraphNet) -> Any:
    """The same in Keras, and its weights in Keras's order."""
    inputs = keras.Input((8, 8, 8, 2))
    first = layers.Conv3D(4, 3, padding="same")(inputs)
    shared = layers.Conv3D(4, 3, padding="same", activation="elu")
    norm = layers.BatchNormalization(momentum=0.9, epsilon=0.01)
    x = shared(norm(shared(first)))
    x = layers.Add()([layers.Dropout(0.5)(x), first])
    model = keras.Model(inputs, layers.Conv3D(3, 1)(x))
    values = by_path(network)
    model.set_weights(
        [
            np.asarray(values[f"{attribute(layer)}/{name}"])
            for layer, names in weight_shapes(network.graph).items()
            for name in names
        ]
    )
    return model


def test_it_computes_what_keras_computes_with_a_shared_layer(
    network: GraphNet, original: Any
) -> None:
    x = RNG.normal(size=(2, 8, 8, 8, 2)).astype(np.float32)
    wanted = np.asarray(original(x, training=False))
    np.testing.assert_allclose(network(x), wanted, atol=1e-5 * abs(wanted).max())


def test_statistics_move_in_training_as_in_keras(network: GraphNet, original: Any) -> None:
    x = RNG.normal(size=(2, 8, 8, 8, 2)).astype(np.float32)
    state = original.trainable_variables, original.non_trainable_variables
    _, new = original.stateless_call(*state, x, training=True)
    moved = {variable.name: value for variable, value in zip(state[1], new, strict=True)}
    trained = nnx.clone(network)
    trained(x, train=True, rngs=nnx.Rngs(dropout=0))
    for name in ("moving_mean", "moving_variance"):
        found = by_path(trained)[f"norm/{name}"]
        np.testing.assert_allclose(found, moved[name], rtol=1e-5)
        assert not np.allclose(found, by_path(network)[f"norm/{name}"], rtol=1e-3)


def test_dropout_needs_a_key_and_drops_in_training_alone(network: GraphNet) -> None:
    x = jnp.ones((1, 8, 8, 8, 2))
    one, other = (nnx.clone(network)(x, train=True, rngs=nnx.Rngs(dropout=seed)) for seed in (0, 1))
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(network(x), network(x))
    with pytest.raises(ValueError, match="needs `rngs`"):
        nnx.clone(network)(x, train=True)


def test_a_call_may_say_itself_whether_it_trains() -> None:
    """`layer(x, training=True)` in Keras: predictions here stay the same from call to call."""
    base = graph()
    always = Graph(
        base.layers,
        tuple(
            GraphCall(each.name, each.layer, each.inputs, training=each.layer == "drop")
            for each in base.calls
        ),
        base.inputs,
        base.outputs,
    )
    found = build("graph", {"graph": always.to_json()})
    x = jnp.asarray(RNG.normal(size=(1, 8, 8, 8, 2)), jnp.float32)
    np.testing.assert_array_equal(found(x), found(x))
    before = by_path(found)
    found(x, train=True, rngs=nnx.Rngs(dropout=0))
    after = by_path(found)
    # The norm was called with training=False, as a frozen one is.
    np.testing.assert_array_equal(before["norm/moving_mean"], after["norm/moving_mean"])
    assert not np.allclose(
        found(x, rngs=nnx.Rngs(dropout=0)), found(x)
    )  # with a key it is random in prediction too


def test_as_json_and_back() -> None:
    document = json.loads(json.dumps(graph().to_json()))
    assert Graph.from_json(document) == graph()


def test_names_are_the_layers_own_but_for_those_taken() -> None:
    found = build("graph", {"graph": graph().to_json()})
    assert attribute("levels") == "levels_"
    assert {path.split("/")[0] for path in by_path(found)} == {"first", "shared", "norm", "levels_"}
    assert found.levels() == ("first", "shared", "levels_")
    assert found.level_of("norm/gamma") == "shared"  # a norm only scales
    assert found.head_paths == ("levels_",)


def test_no_two_names_become_one() -> None:
    names = ["levels", "levels_", "levels__", "_levels", "__class__", "_source", "levels 1", "head"]
    assert len({attribute(name) for name in names}) == len(names)
    layers = tuple(GraphLayer(name, "Conv1D", {"filters": 1, "kernel_size": 1}) for name in names)
    calls = tuple(GraphCall(b, b, (a,)) for a, b in zip(["image", *names], names, strict=False))
    chain = Graph(layers, calls, {"image": (8, 1)}, (names[-1],))
    assert len(by_path(build("graph", {"graph": chain.to_json()}))) == 2 * len(names)


def test_a_norm_that_always_takes_the_batch_learns_nothing_in_prediction() -> None:
    norm, call = GraphLayer("n", "BatchNormalization", {}), GraphCall("n", "n", ("image",), True)
    found = build("graph", {"graph": Graph((norm,), (call,), {"image": (8, 1)}, ("n",)).to_json()})
    before = by_path(found)
    found(jnp.full((1, 8, 1), 3.0))
    np.testing.assert_array_equal(by_path(found)["n/moving_mean"], before["n/moving_mean"])


@pytest.mark.parametrize("head", ["Conv3D", "Dense"])
def test_the_head_takes_another_number_of_outputs(head: str) -> None:
    found = build("graph", {"graph": graph(head).to_json(), "outputs": 5})
    assert found(jnp.zeros((1, 4, 4, 4, 2))).shape == (1, 4, 4, 4, 5)
    assert by_path(found)["levels_/bias"].shape == (5,)


def test_a_graph_without_a_head_keeps_its_outputs() -> None:
    base = graph()
    headless = Graph(base.layers, base.calls[:-1], base.inputs, ("add",))
    assert head_of(headless) is None
    abstract("graph", {"graph": headless.to_json(), "outputs": 4})
    with pytest.raises(InputError, match="no single convolution"):
        abstract("graph", {"graph": headless.to_json(), "outputs": 5})


def test_a_head_can_be_made_linear() -> None:
    base = graph()
    config = {"filters": 3, "kernel_size": 1, "activation": "relu"}
    ends = Graph(
        (*base.layers[:-1], GraphLayer("levels", "Conv3D", config)),
        base.calls,
        base.inputs,
        base.outputs,
    )
    assert (head_activation(ends), head_activation(base)) == ("relu", "linear")
    linear = with_linear_head(ends)
    assert head_activation(linear) == "linear"
    assert linear.layers[:-1] == ends.layers[:-1]
    assert head_activation(with_outputs(ends, 5)) == "relu"  # nothing else changes
    headless = Graph(base.layers, base.calls[:-1], base.inputs, ("add",))
    assert (with_linear_head(headless), head_activation(headless)) == (headless, "linear")


def test_more_channels_change_the_kernels_that_read_them_alone() -> None:
    base = graph()
    wider = with_channels(base, 5)
    assert wider.inputs == {"image": (None, None, None, 5)}
    before, after = weight_shapes(base), weight_shapes(wider)
    assert before["first"]["kernel"] == (3, 3, 3, 2, 4)
    assert after == {**before, "first": {"kernel": (3, 3, 3, 5, 4), "bias": (4,)}}
    network = build("graph", {"graph": wider.to_json(), "channels": 5})
    assert network(jnp.zeros((1, 4, 4, 4, 5))).shape == (1, 4, 4, 4, 3)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (GraphLayer("a", "BatchNormalization", {}), r"the gamma of its layer 'a'"),
        (GraphLayer("a", "PReLU", {"shared_axes": [1, 2, 3]}), r"the alpha of its layer 'a'"),
        (GraphLayer("a", "Conv3DFlipout", {"filters": 1, "kernel_size": 1}), "kernel_posterior"),
        (GraphLayer("a", "GroupNormalization", {"groups": 1}), "the gamma"),
        (GraphLayer("a", "Reshape", {"target_shape": [8, 8, 8, 1]}), "does not fit"),
    ],
)
def test_a_graph_of_which_other_weights_read_channels_is_refused(
    layer: GraphLayer, words: str
) -> None:
    chain = Graph((layer,), (GraphCall("a", "a", ("x",)),), {"x": (8, 8, 8, 1)}, ("a",))
    with pytest.raises(ValueError, match=words):
        with_channels(chain, 3)


def test_a_graph_of_several_inputs_keeps_its_channels() -> None:
    base = graph()
    several = Graph(base.layers, base.calls, {**base.inputs, "other": (8, 2)}, base.outputs)
    with pytest.raises(ValueError, match="several inputs"):
        with_channels(several, 3)


def test_what_does_not_fit_is_a_sentence_with_the_layer() -> None:
    base = graph()
    other = GraphLayer("add", "Concatenate", {"axis": 1})
    changed = Graph((*base.layers[:4], other, base.layers[5]), base.calls, base.inputs, ("levels",))
    fewer = Graph(base.layers, base.calls, {"image": (None, None, 2)}, base.outputs)
    with pytest.raises(InputError, match="layer 'first'"):
        abstract("graph", {"graph": fewer.to_json()})
    abstract("graph", {"graph": changed.to_json()})  # joins in depth: odd, but it can be
    with pytest.raises(InputError, match="has 2 channels, not 3"):
        abstract("graph", {"graph": base.to_json(), "channels": 3})


@pytest.mark.parametrize(
    "alter",
    [
        lambda document: document["calls"].reverse(),
        lambda document: document["layers"].append(document["layers"][0]),
        lambda document: document["outputs"].append("nothing"),
        lambda document: document["layers"][0].update(kind="Lambda"),
        lambda document: document["calls"][0].update(layer="nothing"),
        lambda document: document.pop("inputs"),
        lambda document: document["inputs"].clear(),
        lambda document: document["inputs"].update(image=[]),
        lambda document: document["layers"][0]["config"].update(groups=0),
    ],
)
def test_a_broken_document_is_refused(alter: Any) -> None:
    document = graph().to_json()
    alter(document)
    with pytest.raises(InputError):
        abstract("graph", {"graph": document})


def test_shapes_are_known_without_computing() -> None:
    assert results(graph())["levels"] == (1, 128, 128, 128, 3)
    assert results(graph(), {"image": (4, 5, 6, 2)})["add"] == (1, 4, 5, 6, 4)
    assert fits(graph(), {"image": (4, 5, 6, 2)})
    assert not fits(graph(), {"image": (4, 5, 6, 3)})
    assert weight_shapes(graph())["norm"] == {
        "gamma": (4,),
        "beta": (4,),
        "moving_mean": (4,),
        "moving_variance": (4,),
    }


def test_gradients_reach_every_parameter(network: GraphNet) -> None:
    x = jnp.asarray(RNG.normal(size=(1, 8, 8, 8, 2)), jnp.float32)
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    gradients = jax.grad(lambda p: (nnx.merge(graphdef, p, rest, copy=True)(x) ** 2).sum())(params)
    for path, value in nnx.to_flat_state(gradients):
        assert np.abs(value[...]).max() > 0, path
