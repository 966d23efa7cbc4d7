"""The networks that are measured: their weights as Keras has them, and their step."""

import jax
import numpy as np
import pytest

from voxtune.benchmarks.nets import NETS, batch_of, in_order, keras_weights
from voxtune.benchmarks.own_step import OwnStep
from voxtune.engine.step import split
from voxtune.models.families import build


def test_batch() -> None:
    image, label = batch_of((2, 4, 5, 6))
    assert image.shape == (2, 4, 5, 6, 1)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(label, image[..., 0] > 1)
    assert 0.05 < label.mean() < 0.3


@pytest.fixture(scope="module")
def weights() -> dict[str, list[np.ndarray]]:
    return {name: keras_weights(net) for name, net in NETS.items()}


@pytest.mark.parametrize("name", NETS)
def test_weights_are_in_the_order_of_the_layers(
    name: str, weights: dict[str, list[np.ndarray]]
) -> None:
    kernels, biases = weights[name][::2], weights[name][1::2]
    # Each layer's kernel, then its bias; kernels are 3D, and of what is transposed the outputs come
    # before the inputs.
    assert all(each.ndim == 5 for each in kernels)
    outputs = [
        kernel.shape[3] if kernel.shape[:3] == (2, 2, 2) else kernel.shape[4] for kernel in kernels
    ]
    assert [each.shape for each in biases] == [(size,) for size in outputs]
    assert kernels[0].shape[3] == 1
    assert outputs[-1] == NETS[name].arguments["outputs"]


def test_transposed_kernels(weights: dict[str, list[np.ndarray]]) -> None:
    net = NETS["unet"]
    _, params, _ = split(build(net.family, dict(net.arguments)))
    order = in_order(net, params)
    ups = [number for number, (_, transposed) in enumerate(order) if transposed]
    assert [order[number][0][-2:] for number in ups] == [("up", "kernel")] * 3
    assert [weights["unet"][number].shape for number in ups] == [
        (2, 2, 2, channels, channels) for channels in (256, 128, 64)
    ]
    for number, (path, transposed) in enumerate(order):
        value = params
        for each in path:
            value = value[each]
        found = weights["unet"][number]
        np.testing.assert_array_equal(found.swapaxes(3, 4) if transposed else found, value)


def test_a_step_over_all_devices_is_as_many_times_the_work() -> None:
    net, devices = NETS["meshnet"], jax.local_device_count()
    one = OwnStep.of(net, (1, 8, 8, 8), mesh="data=1")
    every = OwnStep.of(net, (devices, 8, 8, 8), map="pmap", mesh=f"data={devices}", remat=True)
    assert every.flops == devices * one.flops > 0
    assert "all_reduce" in every.lower().as_text()
