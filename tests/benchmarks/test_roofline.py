"""The floor: FLOPs and bytes of layers against values worked out by hand, and the whole count."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.nets import NETS, Net
from voxtune.benchmarks.roofline import Layer, forward_floor, layers_of, reaches, step_floor
from voxtune.engine.step import split
from voxtune.models.families import abstract
from voxtune.models.flops import flops

Make = Callable[..., Entry]
UNET = NETS["unet"]
SMALL = Net("MeshNet", "meshnet", {"outputs": 3, "filters": 5, "dilations": [1, 2]})


@pytest.fixture(scope="module")
def unet() -> dict[str, Layer]:
    """Layers of the U-Net for two blocks of 16³ in bfloat16, by name."""
    return {each.name: each for each in layers_of(UNET, (16, 16, 16), 2, "bfloat16")}


def test_a_convolution_by_hand(unet: dict[str, Layer]) -> None:
    """Encoder 2 works on 8³ voxels: 32 channels in, 32 out, then 64; two bytes a value."""
    voxels = 2 * 8**3
    assert unet["encoder2/unit2/conv/kernel"] == Layer(
        "encoder2/unit2/conv/kernel",
        flops=2 * 27 * 32 * 64 * voxels,
        bytes=2 * (voxels * 32 + voxels * 64 + 27 * 32 * 64),
        passes=3,
    )


def test_a_transposed_convolution_by_hand(unet: dict[str, Layer]) -> None:
    """Decoder 1 makes 16³ voxels of 8³, with 64 channels: each voxel is made of one."""
    fine, coarse = 2 * 16**3, 2 * 8**3
    assert unet["decoder1/up/kernel"] == Layer(
        "decoder1/up/kernel",
        flops=2 * 64 * 64 * fine,
        bytes=2 * (64 * coarse + 64 * fine + 8 * 64 * 64),
        passes=3,
    )


def test_the_head_by_hand(unet: dict[str, Layer]) -> None:
    """Its logits are float32."""
    voxels = 2 * 16**3
    assert unet["head/kernel"] == Layer(
        "head/kernel", 2 * 32 * 2 * voxels, 2 * (32 * voxels + 32 * 2) + 4 * 2 * voxels, 3
    )


def test_layers_are_in_order_and_named(unet: dict[str, Layer]) -> None:
    names = list(unet)
    assert names[0] == "encoder1/unit1/conv/kernel"
    assert names[-1] == "head/kernel"
    assert len(names) == 8 + 3 * 3 + 1
    assert names.index("decoder3/up/kernel") < names.index("decoder1/up/kernel")


@pytest.mark.parametrize("net", [UNET, SMALL])
def test_forward_and_step_have_the_flops_that_are_counted(net: Net) -> None:
    """Of the gradient too: the image has none, and all else is computed three times."""
    layers = layers_of(net, (8, 8, 8), 1, "float32")
    apply, params, statistics = split(abstract(net.family, dict(net.arguments)))
    image = jax.ShapeDtypeStruct((1, 8, 8, 8, 1), jnp.float32)

    def loss(params: object, statistics: object, image: jax.Array) -> jax.Array:
        return apply(params, statistics, image)[0].sum()

    arrays = params, statistics, image
    assert sum(each.flops for each in layers) == flops(apply, *arrays)
    assert sum(each.passes * each.flops for each in layers) == flops(jax.grad(loss), *arrays)


def test_precision_halves_the_bytes() -> None:
    """Of all but the head's logits."""
    wide, narrow = (layers_of(SMALL, (8, 8, 8), 1, each) for each in ("float32", "bfloat16"))
    assert [each.bytes for each in wide[:-1]] == [2 * each.bytes for each in narrow[:-1]]


def test_the_image_has_no_gradient() -> None:
    assert [each.passes for each in layers_of(SMALL, (8, 8, 8), 1, "float32")] == [2, 3, 3]


def test_floors_are_the_longer_of_two_times() -> None:
    layers = [Layer("computes", 100, 10, 2), Layer("copies", 10, 100, 3)]
    assert forward_floor(layers, product=10, copy=5) == 100 / 10 + 100 / 5
    assert step_floor(layers, product=10, copy=5) == 2 * 100 / 10 + 3 * 100 / 5


def test_no_device_is_opened() -> None:
    """The benchmark leaves a GPU to the programs that it starts."""
    program = """
from jax._src import xla_bridge
from voxtune.benchmarks.nets import Net
from voxtune.benchmarks.roofline import layers_of
net = Net("MeshNet", "meshnet", {"outputs": 3, "filters": 5, "dilations": [1, 2]})
assert layers_of(net, (8, 8, 8), 1, "float32")
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True)  # where no test opened one before


def test_steps_are_compared_with_their_floors(entry: Make) -> None:
    (found,) = reaches([entry(seconds=(0.5, 0.5, 0.6), copy=1e9)])
    by_hand = step_floor(layers_of(NETS["meshnet"], (16, 16, 16), 1, "float32"), 1e11, 1e9)
    assert found.floor == by_hand
    assert found.times.median == pytest.approx(0.5 / by_hand)
    block2 = found.layers[1]
    assert found.pass_floor(block2) == max(block2.flops / 1e11, block2.bytes / 1e9)
    assert not found.is_copied(block2)
    assert found.is_copied(dataclasses.replace(block2, flops=1))


def test_of_several_ways_the_fastest_is_compared(entry: Make) -> None:
    settings = dict(entry().measurement.settings)
    slow = entry(case="remat", settings={**settings, "remat": True}, seconds=(2.0,))
    (found,) = reaches([slow, entry(seconds=(1.0,)), slow])
    assert found.entry.measurement.seconds == (1.0,)


def test_rates_are_those_of_the_turns_else_of_the_machine(entry: Make) -> None:
    (found,) = reaches([entry(floors=(2e11, 3e11, 4e11))])
    assert found.product == 3e11
    (found,) = reaches([entry(floors=(), products={"float32": 7e10})])
    assert found.product == 7e10


@pytest.mark.parametrize(
    "changes",
    [
        {"suite": "predict"},
        {"program": "PyTorch"},
        {"seconds": (), "problem": "out of memory"},
        {"copy": None},
        {"floors": (), "products": {}},
        {"settings": {"network": "another"}},
        *(
            {"settings": {"network": "meshnet", "dtype": "float32", "batch": 1, **each}}
            for each in (
                {"devices": 8, "block": "16x16x16"},
                {"block": "16"},
                {"block": 16},
                {"block": "0x16x16"},
                {"block": "16x16x00"},
                {"block": "16x16x16", "batch": 0},
                {"block": "16x16x16", "batch": 10**9},
                {"block": "16x16x16", "dtype": "complex"},
                {"block": "20x20x20", "network": "unetr"},
            )
        ),
    ],
)
def test_what_has_no_floor_is_left_out(entry: Make, changes: dict) -> None:
    assert reaches([entry(**changes)]) == []
