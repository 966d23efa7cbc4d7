"""Receptive fields and multiples: equal to those of the named families, and to what JAX sees."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxtune.models.graph import Graph, GraphCall, GraphLayer
from voxtune.models.graph_net import GraphNet
from voxtune.models.kind import Window
from voxtune.models.meshnet import MeshNet
from voxtune.models.unet import UNet

Layer = tuple[str, str, dict[str, Any], list[str]]  # name, kind, settings, inputs


def net(layers: list[Layer], shape: tuple[int | None, ...]) -> GraphNet:
    graph = Graph(
        tuple(GraphLayer(name, kind, config) for name, kind, config, _ in layers),
        tuple(GraphCall(name, name, tuple(inputs)) for name, _, _, inputs in layers),
        {"x": shape},
        (layers[-1][0],),
    )
    # Without drawing initial values, which takes longer than all else here.
    return nnx.eval_shape(lambda: GraphNet(graph=graph.to_json(), rngs=nnx.Rngs(0)))


def chain(*layers: tuple[str, dict[str, Any]], shape: tuple[int | None, ...]) -> GraphNet:
    """A network without branches."""
    names = ["x", *(f"layer{number}" for number in range(len(layers)))]
    return net(
        [
            (name, kind, config, [before])
            for before, name, (kind, config) in zip(names, names[1:], layers, strict=False)
        ],
        shape,
    )


CONV = {"filters": 1, "kernel_size": 3, "padding": "same"}
VOLUME = (None, None, None, 1)


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4, 8, 4), (1, 2, 4, 8, 16, 1)])
def test_meshnet(dilations: tuple[int, ...]) -> None:
    family = nnx.eval_shape(
        lambda: MeshNet(outputs=2, filters=1, dilations=dilations, rngs=nnx.Rngs(0))
    )
    layers = [("Conv3D", {**CONV, "dilation_rate": dilation}) for dilation in dilations]
    graph = chain(*layers, ("Dropout", {"rate": 0.5}), shape=VOLUME)
    assert graph.receptive_field == family.receptive_field
    assert graph.min_multiple == family.min_multiple


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_unet(depth: int) -> None:
    family = nnx.eval_shape(lambda: UNet(outputs=2, filters=1, depth=depth, rngs=nnx.Rngs(0)))
    layers: list[Layer] = []

    def add(name: str, kind: str, config: Mapping[str, Any], *inputs: str) -> str:
        layers.append((name, kind, dict(config), list(inputs)))
        return name

    x, skips = "x", []
    for level in range(depth):
        x = add(f"down{level}a", "Conv3D", CONV, x)
        skips.append(x := add(f"down{level}b", "Conv3D", CONV, x))
        x = add(f"pool{level}", "MaxPooling3D", {}, x)
    x = add("bottom", "Conv3D", CONV, add("bottom0", "Conv3D", CONV, x))
    for level in reversed(range(depth)):
        up = {"filters": 1, "kernel_size": 2, "strides": 2}
        x = add(f"up{level}", "Conv3DTranspose", up, x)
        x = add(f"join{level}", "Concatenate", {}, skips[level], x)
        x = add(f"up{level}b", "Conv3D", CONV, add(f"up{level}a", "Conv3D", CONV, x))
    graph = net(layers, VOLUME)
    assert graph.receptive_field == family.receptive_field
    assert graph.min_multiple == family.min_multiple


# Of a size at which the middle is far from the border; each with the multiple worked out by hand.
LINE = (96, 1)
CHAINS: list[tuple[list[tuple[str, dict[str, Any]]], int]] = [
    ([("Conv1D", {**CONV, "kernel_size": 4})], 1),
    ([("Conv1D", {**CONV, "padding": "valid", "dilation_rate": 3})], 1),
    ([("Conv1D", {**CONV, "padding": "causal", "dilation_rate": 2})], 1),
    ([("Conv1D", {**CONV, "strides": 2}), ("Conv1D", CONV)], 2),
    ([("Conv1D", {**CONV, "kernel_size": 5, "strides": 3}), ("UpSampling1D", {"size": 3})], 3),
    ([("DepthwiseConv1D", {"kernel_size": 4, "strides": 2, "padding": "same"})], 2),
    ([("SeparableConv1D", {**CONV, "dilation_rate": 2})], 1),
    (
        [
            ("MaxPooling1D", {"pool_size": 3, "strides": 2, "padding": "same"}),
            ("Conv1D", CONV),
            ("UpSampling1D", {}),
            ("Conv1D", CONV),
        ],
        2,
    ),
    (
        [
            ("AveragePooling1D", {"pool_size": 2}),
            ("AveragePooling1D", {"pool_size": 3}),
            ("Conv1DTranspose", {**CONV, "strides": 3}),
            ("Conv1DTranspose", {**CONV, "kernel_size": 4, "strides": 2}),
        ],
        6,
    ),
    ([("Conv1DTranspose", {**CONV, "padding": "valid", "strides": 2}), ("Conv1D", CONV)], 1),
    ([("Conv1DTranspose", {**CONV, "kernel_size": 5, "strides": 2, "output_padding": 1})], 1),
    ([("Conv1DTranspose", {**CONV, "kernel_size": 1, "strides": 2}), ("Conv1D", CONV)], 1),
    ([("ZeroPadding1D", {"padding": (3, 0)}), ("Conv1D", {**CONV, "strides": 2})], 2),
    ([("Cropping1D", {"cropping": (1, 2)}), ("MaxPooling1D", {}), ("UpSampling1D", {})], 2),
    ([("UpSampling1D", {}), ("Conv1D", CONV), ("MaxPooling1D", {})], 1),
]


def seen(graph: GraphNet, shape: tuple[int, ...]) -> int:
    """The largest edge of the boxes of inputs for which the gradient of an output is not zero."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, *shape)), jnp.float32)
    axes = len(shape) - 1
    for name in graph.levels():  # no weight is zero or cancels another
        weights = getattr(graph, name)
        for key in weights.names:
            old = getattr(weights, key)
            values = np.random.default_rng(1).uniform(0.5, 1.5, old.get_value().shape)
            old.set_value(jnp.asarray(values, jnp.float32))
    y, pull = jax.vjp(graph, x)
    middle = [slice(n // 3, n // 3 * 2) for n in y.shape[1:-1]]
    places = np.stack(np.meshgrid(*(np.arange(n) for n in y.shape[1:-1]), indexing="ij"), -1)
    places = places[tuple(middle)].reshape(-1, axes)
    one = jnp.zeros((len(places), *y.shape)).at[(np.arange(len(places)), 0, *places.T)].set(1.0)
    gradients = np.asarray(jax.jit(jax.vmap(pull))(one)[0])[:, 0, ..., 0] != 0
    edges = []
    for axis in range(axes):
        others = tuple(1 + each for each in range(axes) if each != axis)
        touched = gradients.any(others)
        first, last = touched.argmax(1), touched.shape[1] - touched[:, ::-1].argmax(1)
        edges.append(int((last - first)[touched.any(1)].max()))
    return max(edges)


@pytest.mark.parametrize(("layers", "multiple"), CHAINS)
def test_chain_sees_what_its_gradient_touches(
    layers: list[tuple[str, dict[str, Any]]], multiple: int
) -> None:
    # Pooling by average, since the gradient of the largest value touches one voxel alone.
    averaged = [
        (kind.replace("Max", "Average"), {"pool_size": 2} | config) for kind, config in layers
    ]
    smooth = [
        new if "Pooling" in old[0] else old for old, new in zip(layers, averaged, strict=True)
    ]
    graph = chain(*smooth, shape=LINE)
    assert graph.receptive_field == seen(graph, LINE)
    assert graph.min_multiple == multiple
    assert chain(*layers, shape=LINE).receptive_field == graph.receptive_field


def test_largest_axis_counts() -> None:
    anisotropic = {"filters": 1, "kernel_size": (3, 5), "padding": "same", "strides": (2, 3)}
    shape = (24, 36, 1)
    graph = chain(
        ("Conv2D", anisotropic),
        ("UpSampling2D", {"size": (2, 3), "interpolation": "bilinear"}),
        ("Conv2D", {**CONV, "kernel_size": (1, 2)}),
        shape=shape,
    )
    assert graph.receptive_field == seen(graph, shape)
    assert graph.min_multiple == 6


@pytest.mark.parametrize("size", [2, 3, 4])
def test_linear_up_sampling_sees_two_places(size: int) -> None:
    up = {"size": size, "interpolation": "bilinear"}
    graph = chain(("UpSampling2D", up), ("Conv2D", CONV), shape=(12, 12, 1))
    assert graph.receptive_field == seen(graph, (12, 12, 1))


def test_branches_are_joined() -> None:
    layers: list[Layer] = [
        ("near", "Conv1D", {**CONV, "kernel_size": 1}, ["x"]),
        ("left", "Cropping1D", {"cropping": (4, 0)}, ["x"]),
        ("moved", "ZeroPadding1D", {"padding": (0, 4)}, ["left"]),
        ("both", "Add", {}, ["near", "moved"]),
    ]
    graph = net(layers, LINE)
    assert graph.receptive_field == seen(graph, LINE) == 5  # a voxel and the fourth to its right


def test_slices_and_paddings_of_operations() -> None:
    def operation(name: str, **more: Any) -> tuple[str, dict[str, Any]]:
        return "Operation", {"function": name, "operands": [{"tensor": 0}], **more}

    graph = chain(
        operation("pad", pad_width=[[0, 0], [2, 0], [0, 0]]),
        operation("getitem", key=[{}, {"start": 1, "stop": None, "step": 2}]),
        operation("relu"),
        operation("mean", axis=-1, keepdims=True),
        ("Conv1D", CONV),
        shape=LINE,
    )
    assert graph.receptive_field == seen(graph, LINE) == 5
    assert graph.min_multiple == 2


@pytest.mark.parametrize(
    "layers",
    [
        [("Flatten", {}), ("Dense", {"units": 2})],
        [("GlobalAveragePooling1D", {"keepdims": True})],
        [("GroupNormalization", {"groups": 1})],
        [("InstanceNormalization", {})],
        [("LayerNormalization", {"axis": [1, 2]})],
        [("Softmax", {"axis": 1})],
        [("Permute", {"dims": [2, 1]})],
        [("Reshape", {"target_shape": [48, 2]})],
        [("Operation", {"function": "flip", "axis": 1, "operands": [{"tensor": 0}]})],
        [("Operation", {"function": "mean", "axis": 1, "operands": [{"tensor": 0}]})],
        [("Operation", {"function": "getitem", "key": [{}, 1], "operands": [{"tensor": 0}]})],
    ],
)
def test_what_depends_on_everything_has_no_field(layers: list[tuple[str, dict[str, Any]]]) -> None:
    assert chain(("Conv1D", CONV), *layers, shape=LINE).receptive_field is None


def test_gates_by_the_whole_volume_leave_the_multiple() -> None:
    layers: list[Layer] = [
        ("down", "Conv1D", {**CONV, "strides": 2}, ["x"]),
        ("all", "GlobalAveragePooling1D", {"keepdims": True}, ["down"]),
        ("gate", "Dense", {"units": 1}, ["all"]),
        ("gated", "Multiply", {}, ["gate", "down"]),
        ("pool", "MaxPooling1D", {}, ["gated"]),
        ("up", "UpSampling1D", {"size": 4}, ["pool"]),
    ]
    graph = net(layers, LINE)
    assert graph.receptive_field is None
    assert graph.min_multiple == 4


@pytest.mark.parametrize("norm", ["GroupNormalization", "SlabGroupNormalization"])
def test_norms_by_the_whole_volume_leave_the_multiple(norm: str) -> None:
    """A size that is no multiple would fail: the skips would not fit."""
    down = {"filters": 4, "kernel_size": 2, "strides": 2}
    layers = [("Conv1D", down), (norm, {"groups": 4})] * 2 + [("UpSampling1D", {"size": 4})]
    graph = chain(*layers, shape=(16, 4))
    assert graph.receptive_field is None
    assert graph.min_multiple == 4


def test_network_that_ignores_a_branch() -> None:
    graph = net([("unused", "Flatten", {}, ["x"]), ("used", "Conv1D", CONV, ["x"])], LINE)
    assert graph.receptive_field == 3


def test_window_without_a_place() -> None:
    first, last = Window(size=1, up=2, offset=0).reach(1, 1)
    assert first > last


def test_enormous_settings_take_no_time() -> None:
    """They may stand in a stranger's file; each place of the output would be looked at."""
    graph = chain(("UpSampling3D", {"size": 10**12}), shape=(8, 8, 8, 1))
    assert graph.receptive_field == 1
