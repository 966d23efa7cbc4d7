"""The networks that are measured: their weights as Keras has them, and their step."""

from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest

from voxtune.benchmarks.nets import MAIN, NETS, Net, batch_of, compared, for_peers
from voxtune.benchmarks.own_step import OwnStep
from voxtune.engine.config import Benchmark
from voxtune.engine.step import split
from voxtune.models.families import FAMILIES, Network, abstract, build
from voxtune.models.parameters import by_path


def test_batch() -> None:
    image, label = batch_of((2, 4, 5, 6))
    assert image.shape == (2, 4, 5, 6, 1)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(label, image[..., 0] > 1)
    assert 0.05 < label.mean() < 0.3


Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def weights() -> dict[str, tuple[Arrays, Arrays]]:
    """Of the networks that PyTorch has too: parameters by path, and what peers are given."""
    found = {}
    for name in MAIN:
        net = NETS[name]
        network = build(net.family, dict(net.arguments))
        _, params, statistics = split(network)
        given = for_peers(net, params, statistics)
        parameters = {path: np.asarray(value) for path, value in by_path(network).items()}
        found[name] = parameters, {k: v for k, v in given.items() if k != "graph"}
    return found


@pytest.mark.parametrize("name", MAIN)
def test_weights_are_in_the_order_of_the_layers(
    name: str, weights: dict[str, tuple[Arrays, Arrays]]
) -> None:
    given = [*weights[name][1].values()]
    kernels, biases = given[::2], given[1::2]
    # Each layer's kernel, then its bias; kernels are 3D, and of what is transposed the outputs come
    # before the inputs.
    assert all(each.ndim == 5 for each in kernels)
    outputs = [
        kernel.shape[3] if kernel.shape[:3] == (2, 2, 2) else kernel.shape[4] for kernel in kernels
    ]
    assert [each.shape for each in biases] == [(size,) for size in outputs]
    assert kernels[0].shape[3] == 1
    assert outputs[-1] == NETS[name].arguments["outputs"]


def test_transposed_kernels(weights: dict[str, tuple[Arrays, Arrays]]) -> None:
    parameters, given = weights["unet"]
    ups = [name for name in given if name.endswith("up:kernel")]
    assert [given[name].shape for name in ups] == [
        (2, 2, 2, channels, channels) for channels in (256, 128, 64)
    ]
    assert len(given) == len(parameters)
    for name, found in given.items():
        path = name.removeprefix("weight/").replace(":", "/").replace(".", "/")
        expected = parameters[path].swapaxes(3, 4) if name in ups else parameters[path]
        np.testing.assert_array_equal(found, expected)


def test_every_family_is_measured() -> None:
    assert {net.family for net in NETS.values()} == {*FAMILIES} == {*NETS}
    named = get_args(get_args(get_type_hints(Benchmark)["networks"])[0])
    assert [*named] == [*NETS]


def test_biases_that_norms_undo_are_not_compared() -> None:
    for arguments, wanted in (({"norm": "batch"}, {"kernel"}), ({}, {"kernel", "bias"})):
        net = Net("small", "meshnet", {"outputs": 2, "filters": 2, "norm": None, **arguments})
        _, params, statistics = split(build(net.family, dict(net.arguments)))
        found = compared(net, params, statistics)
        assert {name.rpartition(":")[2] for name in found} == wanted
        assert len(found) == 10 * len(wanted)


def test_no_norm_starts_with_a_scale_of_zero() -> None:
    settings = {"outputs": 2, "features": (2, 4), "blocks": (1, 1), "strides": (1, 2)}
    net = Net("small", "resenc_unet", settings)

    def zeros(network: Network) -> int:
        scales = [each for path, each in by_path(network).items() if path.endswith("/scale")]
        assert len(scales) == 7
        assert {float(value) for each in scales for value in each} <= {0, 1}
        return sum(not each.any() for each in scales)

    assert zeros(build(net.family, settings)) == 2
    assert zeros(net.built()) == 0


def test_positions_are_of_the_block() -> None:
    block = (32, 48, 64)
    network = abstract("unetr", dict(NETS["unetr"].at(block).arguments))
    assert network.fixed_block == block
    assert NETS["unet"].at(block) is NETS["unet"]


def test_a_step_over_all_devices_is_as_many_times_the_work() -> None:
    net, devices = NETS["meshnet"], jax.local_device_count()
    one = OwnStep.of(net, (1, 8, 8, 8), mesh="data=1")
    every = OwnStep.of(net, (devices, 8, 8, 8), map="pmap", mesh=f"data={devices}", remat=True)
    assert every.flops == devices * one.flops > 0
    assert "all_reduce" in every.lower().as_text()
