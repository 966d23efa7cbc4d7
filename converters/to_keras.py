"""A graph as a Keras 3 model: to export a network, and to check one against Keras's own layers.

Keras is the `keras` extra, on its JAX backend: TensorFlow is not needed.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

from voxtune.converters.errors import ConversionError, quoted
from voxtune.models.errors import InputError
from voxtune.models.graph import Graph, GraphLayer, drops

_MERGE = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate")
WITHOUT_LAYER = ("Operation", "ZeroPadding3DChannels")  # operations of Keras, which has no layer
_KERAS2_HARD_SIGMOID = "hard_sigmoid_keras2"


def import_keras() -> Any:
    """The module `keras`, on the JAX backend.

    Raises:
        InputError: it is not installed.
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "jax"
    try:
        import keras
    except ImportError as error:
        raise InputError(
            "This needs Keras 3, which is not installed: pip install keras."
        ) from error
    if keras.backend.backend() != "jax":
        raise InputError("This needs Keras on its JAX backend: set KERAS_BACKEND=jax.")
    return keras


@contextmanager
def without_random_weights(keras: Any) -> Iterator[None]:
    """Keras layers built inside begin with zeros, since all their weights are set afterwards.

    Keras's initialisers compile a program for each shape: 40 s for the U-Net, 0.5 s without.
    """

    def zeros(self: Any, shape: Any, dtype: Any = None, **rest: Any) -> np.ndarray:
        del self, rest
        return np.zeros(shape, dtype or "float32")

    random = ("VarianceScaling", "RandomNormal", "RandomUniform", "TruncatedNormal")
    with ExitStack() as stack:
        for name in random:
            stack.enter_context(
                mock.patch.object(getattr(keras.initializers, name), "__call__", zeros)
            )
        yield


def to_keras(
    graph: Graph,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    sizes: Mapping[str, tuple[int | None, ...]],
    name: str,
) -> tuple[Any, dict[str, Any]]:
    """Builds a Keras model.

    Args:
        graph: what it computes.
        weights: layer → weight → array, in Keras's layout and order.
        sizes: shape of each input without the batch; calls named here become inputs too.
        name: the model's name.

    Returns:
        The model, and call → the symbolic tensor of its result.

    Raises:
        ConversionError: Keras 3 has no layer for one of the graph's.
    """
    keras = import_keras()
    with without_random_weights(keras):
        return _built(keras, graph, weights, sizes, name)


def _built(
    keras: Any,
    graph: Graph,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    sizes: Mapping[str, tuple[int | None, ...]],
    name: str,
) -> tuple[Any, dict[str, Any]]:
    layers, made = graph.by_name, dict[str, Any]()
    unique = _keras_names([*sizes, *layers, *(call.name for call in graph.calls)])
    found = {
        key: keras.Input(shape, name=name)
        for (key, shape), name in zip(sizes.items(), unique, strict=False)
    }
    names = dict(zip(layers, unique[len(sizes) :], strict=False))
    for call, own in zip(graph.calls, unique[len(sizes) + len(layers) :], strict=True):
        if call.name in found:
            continue
        layer, inputs = layers[call.layer], [found[source] for source in call.inputs]
        if layer.kind == "Operation":
            found[call.name] = _named(_operation(keras.ops, layer.config, inputs), inputs, own)
            continue
        if layer.kind == "ZeroPadding3DChannels":
            width = layer.config["padding"]
            ranks = [(0, 0)] * (len(inputs[0].shape) - 1)
            padded = keras.ops.pad(inputs[0], [*ranks, (width, width)])
            found[call.name] = _named(padded, inputs, own)
            continue
        config, after = _without_keras2_activation(layer.config)
        if layer.kind == "Normalization":  # its statistics are settings in Keras, and never learned
            config = {**config, **weights[layer.name]}
        if layer.name not in made:
            made[layer.name] = _made(keras, layer, config, names[layer.name])
        if call.training and not drops(layer.kind):
            raise ConversionError(
                f"the layer {quoted(layer.name)} takes the statistics of the batch in prediction "
                "too, which Keras 3 does not; a network with it cannot be written as a Keras file"
            )
        training = {} if call.training is None else {"training": call.training}
        given = [inputs] if layer.kind in _MERGE else inputs
        x = made[layer.name](*given, **training)
        # Keras 3's hard_sigmoid has another slope than that of Keras 2.
        found[call.name] = _named(keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0), [x], own) if after else x
    outputs = [found[output] for output in graph.outputs]
    model = keras.Model([found[key] for key in sizes], outputs, name=_legal(name))
    for layer_name, arrays in weights.items():
        if arrays and layer_name in made and layers[layer_name].kind != "Normalization":
            made[layer_name].set_weights(list(arrays.values()))
    return model, found


def _made(keras: Any, layer: GraphLayer, config: Mapping[str, Any], name: str) -> Any:
    """The Keras layer, not built yet."""
    kind = getattr(keras.layers, layer.kind, None)
    if kind is None:
        raise ConversionError(
            f"the layer {quoted(layer.name)} is a {layer.kind}, which Keras 3 does not have; a "
            "network with it cannot be written as a Keras file"
        )
    return kind(**config, name=name)


def _without_keras2_activation(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    if config.get("activation") != _KERAS2_HARD_SIGMOID:
        return config, False
    return {**config, "activation": "linear"}, True


def _operation(ops: Any, config: Mapping[str, Any], inputs: list[Any]) -> Any:
    """An operation of a graph as one of `keras.ops`."""
    settings = {key: value for key, value in config.items() if key not in ("function", "operands")}
    operands = [
        inputs[each["tensor"]] if "tensor" in each else each["value"] for each in config["operands"]
    ]
    function = config["function"]
    if function == "getitem":
        return operands[0][_key(settings["key"])]
    if function == "hard_sigmoid" and settings:
        return ops.clip(settings["slope"] * operands[0] + settings["offset"], 0.0, 1.0)
    if function == "identity":
        return operands[0]
    if function in ("concatenate", "stack"):
        operands = [operands]
    return getattr(ops, function)(*operands, **settings)


def _key(key: list[Any]) -> tuple[Any, ...]:
    """What stands between the brackets."""
    words = {"ellipsis": Ellipsis, "newaxis": None}
    return tuple(
        slice(each.get("start"), each.get("stop"), each.get("step"))
        if isinstance(each, dict)
        else words.get(each, each)
        for each in key
    )


def _legal(name: str) -> str:
    """A name that Keras 3 takes: without slashes, and not empty."""
    return re.sub(r"[^\w.-]", "_", name) or "model"


def _named(result: Any, given: list[Any], name: str) -> Any:
    """The result of operations, which Keras would call `add` though a layer may be called so."""
    stop, pending, number = {id(each) for each in given}, [result], 0
    while pending:
        tensor = pending.pop()
        if id(tensor) not in stop:
            operation = tensor._keras_history.operation
            operation.name = f"{name}.{number}" if number else name
            number += 1
            pending += operation._inbound_nodes[0].input_tensors
    return result


def _keras_names(wanted: Iterable[str]) -> list[str]:
    """A name in Keras for each, in order, unique there."""
    names: dict[str, None] = {}
    for each in wanted:
        name = _legal(each)
        while name in names:
            name += "_"
        names[name] = None
    return list(names)
