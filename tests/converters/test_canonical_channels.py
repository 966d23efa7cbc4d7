"""Channels-first nets compute the same with channels last; Keras on JAX computes both."""

from collections.abc import Callable
from typing import Any

import numpy as np

from voxtune.converters.canonical import CanonicalModel

Check = Callable[..., CanonicalModel]
FIRST = {"data_format": "channels_first"}


def test_a_network(keras: Any, same_as_keras: Check) -> None:
    layers = keras.layers
    x = keras.Input((2, 8, 6, 4), name="x")
    h = layers.Conv3D(4, 3, padding="same", name="conv", **FIRST)(x)
    h = layers.BatchNormalization(axis=1, name="bn")(h)
    skip = h = layers.PReLU(name="prelu")(h)
    h = layers.MaxPooling3D(2, **FIRST)(layers.ZeroPadding3D(((1, 1), (0, 2), (2, 0)), **FIRST)(h))
    h = layers.SpatialDropout3D(0.5, **FIRST)(layers.GroupNormalization(2, axis=1)(h))
    h = layers.Conv3DTranspose(3, 2, strides=2, **FIRST)(h)
    h = layers.Cropping3D(((1, 1), (0, 2), (2, 0)), **FIRST)(h)
    h = layers.Concatenate(axis=1)([skip, layers.ELU()(h)])
    h = layers.LayerNormalization(axis=[1, 2, 3, 4], name="ln")(h)
    seg = layers.Softmax(axis=1, name="seg")(layers.Conv3D(3, 1, **FIRST)(h))
    odd = layers.Conv3D(2, 1, activation="softmax", name="odd", **FIRST)(h)  # along the last axis
    pooled = layers.Dense(2)(layers.GlobalAveragePooling3D(**FIRST)(h))
    wide = layers.GlobalMaxPooling3D(keepdims=True, name="wide", **FIRST)(h)
    gate = layers.Multiply(name="gate")([h, wide])
    converted = same_as_keras(keras.Model(x, [seg, odd, pooled, gate]))
    assert converted.graph.inputs == {"x": (8, 6, 4, 2)}
    assert {"x", "seg", "odd", "gate", "prelu"} <= converted.moved
    assert converted.weights["prelu"]["alpha"].shape == (8, 6, 4, 4)
    assert converted.origins["prelu"]["alpha"].shape == (4, 8, 6, 4)
    assert converted.origins["ln"]["gamma"].done == "axes moved"
    kinds = {layer.name: layer for layer in converted.graph.layers}
    assert kinds["bn"].config["axis"] == -1
    assert kinds["odd:activation"].config == {"axis": 3}
    assert not any("data_format" in layer.config for layer in converted.graph.layers)
    assert not any(layer.kind == "Permute" for layer in converted.graph.layers)


def test_what_depends_on_the_order_of_axes(keras: Any, same_as_keras: Check) -> None:
    layers = keras.layers
    x = keras.Input((2, 4, 6), name="x")
    h = layers.Conv2D(3, 3, padding="same", name="conv", **FIRST)(x)
    raw = layers.Dense(2)(layers.Flatten(name="raw")(h))
    aware = layers.Dense(2)(layers.Flatten(name="aware", **FIRST)(h))
    shaped = layers.Reshape((6, 12), name="shaped")(h)
    dense = layers.Dense(5, name="dense")(h)  # along the last axis, which is none of channels
    last = layers.Permute((2, 3, 1), name="last")(h)
    mixed = layers.Conv2D(3, 1, name="mixed", data_format="channels_last")(h)
    back = layers.Conv2D(3, 1, name="back", **FIRST)(layers.Permute((3, 1, 2))(last))
    norm = layers.BatchNormalization(name="rows", axis=-1)(h)
    model = keras.Model(x, [raw, aware, shaped, dense, last, mixed, back, norm])
    converted = same_as_keras(model)
    assert {"x", "conv", "back", "rows"} == converted.moved
    assert {layer.name: layer.kind for layer in converted.graph.layers}["last"] == "Identity"
    permutes = [call for call in converted.graph.calls if call.name == "conv:channels_first"]
    assert len(permutes) == 1  # one for all that want it
    reads = {call.name: call.inputs for call in converted.graph.calls}
    assert reads["raw"] == ("conv:channels_first",)
    assert reads["aware"] == ("conv",)


def test_operations(keras: Any, same_as_keras: Check) -> None:
    ops = keras.ops
    x = keras.Input((3, 4, 6), name="x")
    h = keras.layers.Conv2D(4, 3, padding="same", **FIRST)(x)
    scale = np.arange(1.0, 5.0).reshape(4, 1, 1)
    outputs = [
        h * scale,
        2 / (ops.exp(h) + 1),
        h - ops.mean(h, axis=[2, 3], keepdims=True),
        ops.max(h, axis=1),
        ops.sum(h, axis=(2, 3)),
        ops.mean(h, axis=-1),
        ops.softmax(h, axis=1),
        ops.concatenate([h, h[:, ::-1]], axis=1),
        h[:, 1:3, ::2, -3:],
        h[:, 0],
        h[..., 1],
        ops.transpose(h, (0, 3, 1, 2)),
        ops.reshape(h, (-1, 6, 16)),
        ops.expand_dims(h, 1),
        ops.squeeze(ops.expand_dims(h, 3), 3),
        ops.pad(h, ((0, 0), (1, 0), (0, 2), (0, 0))),
        ops.flip(h, axis=2),
        ops.matmul(h, ops.transpose(h, (0, 1, 3, 2))),
        ops.split(h, 2, axis=1)[0],
    ]
    same_as_keras(keras.Model(x, outputs))


def test_a_layer_of_other_inputs_each(keras: Any, same_as_keras: Check) -> None:
    layers = keras.layers
    a, b = keras.Input((2, 4, 6), name="a"), keras.Input((4, 6, 3), name="b")
    first = layers.Conv2D(3, 1, **FIRST)(a)
    last = layers.Conv2D(6, 1)(b)  # channels last in the same net
    both = layers.Add(name="both")([first, layers.Reshape((3, 4, 6))(layers.Conv2D(3, 1)(b))])
    converted = same_as_keras(keras.Model([a, b], [both, last]))
    assert converted.graph.inputs == {"a": (4, 6, 2), "b": (4, 6, 3)}
