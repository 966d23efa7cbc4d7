"""Each kind of layer gives what Keras 3 gives, forward, backward and in training."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from voxtune.models.graph import Graph, GraphCall, GraphLayer
from voxtune.models.graph_net import GraphNet
from voxtune.models.kinds import Mode

# Class, settings, shapes of the inputs without the batch. Shapes are uneven and odd where that
# can show which side a padding goes to.
Case = tuple[str, dict[str, Any], tuple[int, ...] | list[tuple[int, ...]]]
_LINE, _PLANE, _VOLUME = (9, 3), (7, 6, 3), (5, 6, 7, 3)


def _conv(name: str, shape: tuple[int, ...], *settings: dict[str, Any]) -> list[Case]:
    return [(name, {"filters": 4, "kernel_size": 3, **each}, shape) for each in settings]


CONVOLUTIONS: list[Case] = [
    *_conv(
        "Conv1D",
        _LINE,
        {},
        {"padding": "causal", "dilation_rate": 2, "activation": "relu"},
        {"padding": "causal", "strides": 2, "kernel_size": 4},
        {"padding": "same", "kernel_size": 4},
        {"kernel_size": 1},
    ),
    *_conv(
        "Conv2D",
        _PLANE,
        {"padding": "same", "strides": (2, 3)},
        {"padding": "same", "strides": 2, "kernel_size": (2, 4)},
        {"padding": "same", "dilation_rate": (1, 2), "use_bias": False},
        {"groups": 3, "filters": 6, "activation": "gelu"},
    ),
    *_conv(
        "Conv3D",
        _VOLUME,
        {"padding": "same"},
        {"padding": "same", "dilation_rate": 2, "activation": "elu"},
        {"padding": "same", "dilation_rate": (1, 2, 1)},
        {"padding": "same", "strides": 2},
        {"padding": "same", "kernel_size": (1, 2, 3)},
        {"kernel_size": 1, "padding": "same", "strides": (1, 2, 1)},
        {"kernel_size": 1, "activation": "softmax"},
        {"padding": "valid", "strides": (1, 2, 3)},
        {"padding": "same", "groups": 3, "filters": 3},
    ),
    *_conv(
        "Conv1DTranspose",
        _LINE,
        {"strides": 2},
        {"strides": 2, "padding": "same"},
        {"kernel_size": 2, "strides": 3},
        {"kernel_size": 4, "strides": 2, "padding": "same", "output_padding": 1},
    ),
    *_conv(
        "Conv2DTranspose",
        _PLANE,
        {"kernel_size": (2, 3), "strides": (2, 3), "padding": "same", "use_bias": False},
        {"kernel_size": 2, "strides": (3, 1), "padding": "same"},
        {"strides": 2, "output_padding": (1, 0), "padding": "valid"},
        {"dilation_rate": 2, "padding": "same"},
    ),
    *_conv(
        "Conv3DTranspose",
        _VOLUME,
        {"kernel_size": 2, "strides": 2, "activation": "relu"},
        {"kernel_size": (1, 2, 3), "strides": (1, 2, 3), "padding": "same"},
        {"strides": 2, "padding": "same"},
        {"kernel_size": 4, "strides": 2, "padding": "same"},
        {"strides": 2, "padding": "same", "output_padding": 0},
    ),
    ("DepthwiseConv1D", {"kernel_size": 3, "depth_multiplier": 2}, _LINE),
    ("DepthwiseConv1D", {"kernel_size": 4, "strides": 2, "padding": "same"}, _LINE),
    ("DepthwiseConv2D", {"kernel_size": (3, 2), "depth_multiplier": 2}, _PLANE),
    ("DepthwiseConv2D", {"kernel_size": 3, "padding": "same", "dilation_rate": 2}, _PLANE),
    ("DepthwiseConv2D", {"kernel_size": 1, "use_bias": False}, (4, 4, 1)),
    *_conv(
        "SeparableConv1D",
        _LINE,
        {"depth_multiplier": 2, "activation": "tanh"},
        {"padding": "same", "dilation_rate": 2, "use_bias": False},
    ),
    *_conv(
        "SeparableConv2D",
        _PLANE,
        {"depth_multiplier": 2, "padding": "same", "strides": 2},
        {"use_bias": False},
    ),
    ("Dense", {"units": 5, "activation": "selu"}, (3,)),
    ("Dense", {"units": 5, "use_bias": False}, _VOLUME),
]

POOLS: list[Case] = [
    *(
        (f"{which}Pooling{axes}D", settings, shape)
        for which in ("Max", "Average")
        for axes, shape in ((1, _LINE), (2, _PLANE), (3, _VOLUME))
        for settings in (
            *([{"pool_size": 2}, {"pool_size": 2, "padding": "same"}] if axes == 3 else []),
            {"pool_size": 3, "strides": 2, "padding": "same"},
            {"pool_size": (3, 2, 1)[:axes], "strides": 1},
        )
    ),
    *(
        (f"Global{which}Pooling{axes}D", {"keepdims": axes != 2}, shape)
        for which in ("Max", "Average")
        for axes, shape in ((1, _LINE), (2, _PLANE), (3, _VOLUME))
    ),
    ("UpSampling1D", {"size": 3}, _LINE),
    ("UpSampling2D", {"size": (2, 3)}, _PLANE),
    ("UpSampling2D", {"interpolation": "bilinear"}, _PLANE),
    ("UpSampling2D", {"size": (3, 4), "interpolation": "bilinear"}, _PLANE),
    ("UpSampling3D", {}, _VOLUME),
    ("UpSampling3D", {"size": (1, 2, 3)}, _VOLUME),
]

NORMS: list[Case] = [
    ("BatchNormalization", {}, _VOLUME),
    ("BatchNormalization", {"scale": False, "epsilon": 0.1, "momentum": 0.6}, _LINE),
    ("BatchNormalization", {"center": False, "axis": 1}, _PLANE),
    ("LayerNormalization", {}, _VOLUME),
    ("LayerNormalization", {"axis": [3, 1], "epsilon": 0.1}, _PLANE),
    ("LayerNormalization", {"axis": 1, "scale": False}, _LINE),
    ("LayerNormalization", {"axis": -1, "center": False}, _LINE),
    ("GroupNormalization", {"groups": 3}, (4, 5, 6)),
    ("GroupNormalization", {"groups": -1, "epsilon": 1e-5}, _VOLUME),
    ("GroupNormalization", {"groups": 1, "scale": False, "center": False}, _VOLUME),
    ("UnitNormalization", {}, _VOLUME),
    ("UnitNormalization", {"axis": [1, 2]}, _PLANE),
]

OTHERS: list[Case] = [
    ("Normalization", {}, _VOLUME),
    ("Normalization", {"axis": None, "invert": True}, _LINE),
    ("Normalization", {"axis": [1, -1]}, _PLANE),
    ("Normalization", {"mean": 0.5, "variance": 4.0}, _VOLUME),
    ("Normalization", {"mean": [0.5, 1.0, 2.0], "variance": [4.0, 0.0, 1.0]}, _LINE),
    ("Rescaling", {"scale": 0.5}, _VOLUME),
    ("Rescaling", {"scale": [1.0, 2.0, 3.0], "offset": [0.0, 1.0, -1.0]}, _PLANE),
    *(("Activation", {"activation": name}, (4,)) for name in ("relu", "linear", "softmax")),
    ("ReLU", {}, _LINE),
    ("ReLU", {"max_value": 0.7, "negative_slope": 0.2, "threshold": 0.3}, _LINE),
    ("ReLU", {"max_value": 6, "negative_slope": 0.1}, _LINE),
    ("ReLU", {"max_value": 0.4}, _LINE),
    ("ReLU", {"threshold": 0.5}, _LINE),
    ("LeakyReLU", {}, _LINE),
    ("LeakyReLU", {"negative_slope": 0.01}, _LINE),
    ("PReLU", {}, _PLANE),
    ("PReLU", {"shared_axes": [1, 2]}, _PLANE),
    ("ELU", {}, _LINE),
    ("ELU", {"alpha": 0.3}, _LINE),
    ("Softmax", {}, _LINE),
    ("Softmax", {"axis": 1}, _LINE),
    ("Softmax", {"axis": [1, 2]}, _PLANE),
    *(
        (f"{name}{axes}D", {setting: value}, shape)
        for name, setting in (("ZeroPadding", "padding"), ("Cropping", "cropping"))
        for axes, value, shape in (
            (1, 2, _LINE),
            (1, (0, 3), _LINE),
            (2, 1, _PLANE),
            (2, (0, 2), _PLANE),
            (2, ((1, 0), (2, 1)), _PLANE),
            (3, 1, _VOLUME),
            (3, (2, 1, 0), _VOLUME),
            (3, ((1, 0), (2, 1), (0, 3)), _VOLUME),
        )
    ),
    ("Flatten", {}, _PLANE),
    ("Flatten", {}, (3,)),
    ("Reshape", {"target_shape": (9, -1)}, _PLANE),
    ("Reshape", {"target_shape": (3, 1, 3, 3)}, _LINE),
    ("Permute", {"dims": (3, 1, 2)}, _PLANE),
    ("RepeatVector", {"n": 3}, (4,)),
    ("Identity", {}, _LINE),
    ("Concatenate", {}, [_PLANE, (7, 6, 1), _PLANE]),
    ("Concatenate", {"axis": 1}, [_PLANE, (2, 6, 3)]),
    *(
        (name, {}, [_PLANE, (1, 6, 1), _PLANE])
        for name in ("Add", "Multiply", "Average", "Maximum", "Minimum")
    ),
    *((name, {}, [_PLANE, (6, 3)]) for name in ("Add", "Subtract", "Average")),
    ("MultiHeadAttention", {"num_heads": 2, "key_dim": 3}, [(5, 4), (6, 4)]),
    (
        "MultiHeadAttention",
        {"num_heads": 2, "key_dim": 3, "value_dim": 5, "use_bias": False, "output_shape": 7}
        | {"dropout": 0.5},  # Keras computes it another way
        [(5, 4), (6, 3), (6, 2)],
    ),
    (
        "MultiHeadAttention",
        {"num_heads": 1, "key_dim": 3, "attention_axes": [1, 2], "output_shape": [2, 3]},
        [(2, 3, 4), (2, 2, 4)],
    ),
]

CASES = [*CONVOLUTIONS, *POOLS, *NORMS, *OTHERS]
TESTED = {name for name, *_ in CASES}
BACKWARD = {name for name, *_ in [*CONVOLUTIONS, *POOLS, *NORMS]} | {"PReLU", "ReLU"}


class Keras:
    """The same layer in Keras 3, as a pure function of weights and inputs."""

    def __init__(self, one: Any) -> None:
        import keras

        make = getattr(keras.layers, one.kind)
        # Drawing initial values takes longer than all else here.
        names = [n for n in inspect.signature(make.__init__).parameters if "initializer" in n]
        self.layer = make(**one.config, **dict.fromkeys(names, "zeros"))
        self.attention = one.kind == "MultiHeadAttention"
        shapes = [x.shape for x in one.inputs]
        if self.attention:
            self.layer.build(*shapes)
        elif not self.layer.built:
            self.layer.build(shapes if len(shapes) > 1 else shapes[0])
        assert [each.shape for each in self.layer.weights[: len(one.weights)]] == [
            each.shape for each in one.weights.values()
        ]
        names = [each.path.rsplit("/", 1)[-1] for each in self.layer.weights]
        assert [each.rsplit("/", 1)[-1] for each in one.weights] == names[: len(one.weights)]
        self.order = tuple(one.weights)
        if one.kind == "Normalization":  # keeps arrays made of its weights
            for variable, value in zip(self.layer.weights, one.weights.values(), strict=False):
                variable.assign(value)
            self.layer.finalize_state()

    def __call__(
        self, weights: Mapping[str, Array], inputs: Sequence[Array], training: bool = False
    ) -> tuple[Array, list[Array]]:
        """The result, and the weights that are not trained after it."""
        values = [weights[name] for name in self.order]
        trained = len(self.layer.trainable_variables)
        others = [each.value for each in self.layer.non_trainable_variables]
        others[: len(values) - trained] = values[trained:]
        given = inputs if self.attention or len(inputs) == 1 else [list(inputs)]
        more = {"training": training} if training else {}
        return self.layer.stateless_call(values[:trained], others, *given, **more)


@pytest.mark.parametrize("start", sorted({name[:4] for name in TESTED}))
def test_result_and_gradients_are_as_in_keras(start: str, one_layer: Any, close: Any) -> None:
    ones, pairs = [], []
    for kind, config, shapes in (case for case in CASES if case[0].startswith(start)):
        shapes = shapes if isinstance(shapes, list) else [shapes]
        one = one_layer(kind, config, *((2, *shape) for shape in shapes))
        ones.append(one)
        pairs.append((one, Keras(one)))

    def pulled(function: Callable[..., Array], one: Any, *given: Any) -> Any:
        """The result, and what a random gradient of it becomes at the weights and inputs."""
        if one.kind not in BACKWARD:
            return (function(*given),)
        result, pull = jax.vjp(function, *given)
        noise = np.random.default_rng(1).normal(size=result.shape)
        return result, pull(jnp.asarray(noise, result.dtype))

    # All settings of all layers whose names begin so in one program: compiling is most of the time.
    @jax.jit
    def both(given: Any) -> Any:
        return [
            (
                pulled(ours, one, *each),
                pulled(lambda w, x, theirs=theirs: theirs(w, x)[0], one, *each),
            )
            for (ours, theirs), one, each in zip(pairs, ones, given, strict=True)
        ]

    found = both([(dict(one.weights), one.inputs) for one in ones])
    for one, (ours, theirs) in zip(ones, found, strict=True):
        assert ours[0].shape[1:] == one.shape[1:], one.config
        for mine, other in zip(ours, theirs, strict=True):  # result, gradients
            close(mine, other)


@dataclass
class Kept:
    """Statistics, as a layer of a network keeps them."""

    arrays: dict[str, Array]

    def update(self, name: str, value: Array) -> None:
        self.arrays[name] = value


def test_batch_normalization_trains_as_in_keras(one_layer: Any, close: Any) -> None:
    settings = [(config, shape) for name, config, shape in NORMS if name == "BatchNormalization"]
    ones = [one_layer("BatchNormalization", each, (2, *shape)) for each, shape in settings]
    theirs = [Keras(one) for one in ones]

    def cubed(function: Callable[[Array], tuple[Array, Any]], x: Array) -> Any:
        """Result and statistics, and a gradient, which goes through those of the batch."""
        return function(x), jax.grad(lambda x: (function(x)[0] ** 3).sum())(x)

    def ours(one: Any, x: Array) -> tuple[Array, list[Array]]:
        kept = Kept({})
        result = one(inputs=(x,), mode=Mode(True, statistics=kept))
        return result, [kept.arrays["moving_mean"], kept.arrays["moving_variance"]]

    @jax.jit
    def both(xs: Any) -> Any:
        return [
            (
                cubed(lambda x, one=one: ours(one, x), x),
                cubed(lambda x, one=one, keras=keras: keras(one.weights, (x,), training=True), x),
            )
            for one, keras, x in zip(ones, theirs, xs, strict=True)
        ]

    for mine, other in both([one.inputs[0] for one in ones]):
        for part, expected in zip(mine, other, strict=True):
            close(part, expected)


def test_statistics_of_a_network_move_in_training_alone() -> None:
    layer = GraphLayer("norm", "BatchNormalization", {"momentum": 0.75})
    graph = Graph((layer,), (GraphCall("norm", "norm", ("x",)),), {"x": (4, 2)}, ("norm",))
    net = GraphNet(graph=graph.to_json(), rngs=nnx.Rngs(0))
    x = jnp.asarray([[[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]])
    net(x)
    np.testing.assert_array_equal(net.norm.moving_mean[...], [0, 0])
    net(x, train=True)
    np.testing.assert_allclose(net.norm.moving_mean[...], [0.5, 0.75])  # of 2 and 3
    np.testing.assert_allclose(net.norm.moving_variance[...], [1.0, 1.0])  # of 1 and 1
    statistics = {name for name in net.norm.names if type(getattr(net.norm, name)) is nnx.BatchStat}
    assert statistics == {"moving_mean", "moving_variance"}
