"""One framework's training step, timed when asked: the child process of `voxtune.benchmarks.peers`.

It needs nothing but the framework, for it runs in an environment that has no voxtune. Networks,
loss and optimiser are the same in each: weights come from a file, the loss is cross-entropy plus
soft Dice of every class but the first of each scan, the optimiser AdamW after clipping the gradient
to norm 1.

    peer.py FRAMEWORK NETWORK FILE

writes a line of JSON with what it loaded, then, for each line on standard input, one with the
seconds that a step took and the loss before it.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RATE, DECAY, CLIP = 1e-4, 1e-5, 1.0
DILATIONS = (1, 2, 4, 8, 16, 8, 4, 2, 1)  # brainchop's
FILTERS = 21
Arrays = Sequence[np.ndarray]
Step = Callable[[], float]  # does one step, waits for it, gives the loss before it


def torch_network(network: str, weights: Arrays) -> Any:
    """The network in PyTorch, channels-last; `[B, 1, D, H, W]` → logits `[B, outputs, D, H, W]`."""
    import torch
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    class UNet(nn.Module):
        def __init__(self, outputs: int) -> None:
            super().__init__()
            self.down, self.ups = nn.ModuleList(), nn.ModuleList()
            channels = 1
            for first, second in ((16, 32), (32, 64), (64, 128), (128, 256)):
                self.down.append(self.double(channels, first, second))
                channels = second
            for filters in (128, 64, 32):
                up = nn.ConvTranspose3d(channels, channels, 2, stride=2)
                self.ups.append(
                    nn.ModuleList([up, self.double(channels + filters, filters, filters)])
                )
                channels = filters
            self.head = nn.Conv3d(channels, outputs, 1)

        @staticmethod
        def double(channels: int, first: int, second: int) -> nn.Module:
            convs = nn.Conv3d(channels, first, 3, padding=1), nn.Conv3d(first, second, 3, padding=1)
            return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skips = []
            for block in self.down[:-1]:
                skips.append(block(x))
                x = nn.functional.max_pool3d(skips[-1], 2)
            x = self.down[-1](x)
            for up, block in self.ups:
                x = block(torch.cat([skips.pop(), up(x)], 1))
            return self.head(x)

    def mesh(outputs: int) -> nn.Module:
        parts: list[nn.Module] = []
        for number, gap in enumerate(DILATIONS):
            channels = FILTERS if number else 1
            parts += [nn.Conv3d(channels, FILTERS, 3, padding=gap, dilation=gap), nn.ELU()]
        return nn.Sequential(*parts, nn.Conv3d(FILTERS, outputs, 1))

    outputs = weights[-1].size
    net = (UNet if network == "unet" else mesh)(outputs).to(memory_format=torch.channels_last_3d)
    layers = [each for each in net.modules() if isinstance(each, nn.Conv3d | nn.ConvTranspose3d)]
    with torch.no_grad():
        for layer, kernel, bias in zip(layers, weights[::2], weights[1::2], strict=True):
            layer.weight.copy_(torch.from_numpy(kernel).permute(4, 3, 0, 1, 2))
            layer.bias.copy_(torch.from_numpy(bias))
    return net


def torch_step(network: str, weights: Arrays, image: np.ndarray, label: np.ndarray) -> Step:
    """PyTorch, eager, channels-last."""
    import torch
    from torch import nn

    net, outputs = torch_network(network, weights), weights[-1].size
    x = torch.from_numpy(image).permute(0, 4, 1, 2, 3).to(memory_format=torch.channels_last_3d)
    y = torch.from_numpy(label).long()
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)

    def step() -> float:
        optimizer.zero_grad()
        logits = net(x)
        truth = nn.functional.one_hot(y, outputs).permute(0, 4, 1, 2, 3)
        p, space = logits.softmax(1), (2, 3, 4)
        dice = (2 * (p * truth).sum(space) + 1) / (p.sum(space) + truth.sum(space) + 1)
        loss = nn.functional.cross_entropy(logits, y) + 1 - dice[:, 1:].mean()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


def keras_network(
    network: str, weights: Arrays, shape: tuple[int, ...], activation: str | None = None
) -> Any:
    """The network in Keras 3; `[B, *shape]`, channels last → logits, or what `activation` gives."""
    import keras
    from keras import layers

    x = inputs = layers.Input(shape)
    if network == "unet":
        skips = []
        for first, second in ((16, 32), (32, 64), (64, 128), (128, 256)):
            for filters in (first, second):
                x = layers.Conv3D(filters, 3, padding="same", activation="relu")(x)
            if second < 256:
                skips.append(x)
                x = layers.MaxPooling3D(2)(x)
        for filters in (128, 64, 32):
            x = layers.Conv3DTranspose(2 * filters, 2, strides=2)(x)
            x = layers.Concatenate()([skips.pop(), x])
            for _ in range(2):
                x = layers.Conv3D(filters, 3, padding="same", activation="relu")(x)
    else:
        for gap in DILATIONS:
            settings = {"padding": "same", "dilation_rate": gap, "activation": "elu"}
            x = layers.Conv3D(FILTERS, 3, **settings)(x)
    model = keras.Model(inputs, layers.Conv3D(weights[-1].size, 1, activation=activation)(x))
    model.set_weights(weights)
    return model


def keras_step(network: str, weights: Arrays, image: np.ndarray, label: np.ndarray) -> Step:
    """Keras 3 on the backend that `KERAS_BACKEND` names, by `train_on_batch`."""
    import keras
    from keras import ops

    model, outputs = keras_network(network, weights, image.shape[1:]), weights[-1].size

    def loss(truth: object, logits: object) -> object:
        truth, logs = ops.one_hot(truth, outputs), ops.log_softmax(logits)
        p, space = ops.exp(logs), (1, 2, 3)
        dice = 2 * ops.sum(p * truth, space) + 1
        dice /= ops.sum(p, space) + ops.sum(truth, space) + 1
        return 1 - ops.mean(dice[:, 1:]) - ops.mean(ops.sum(truth * logs, -1))

    optimizer = keras.optimizers.AdamW(RATE, weight_decay=DECAY, global_clipnorm=CLIP)
    # TensorFlow's own kernels are faster on CPUs than its XLA, Keras's default.
    model.compile(optimizer, loss, jit_compile=keras.backend.backend() == "jax")
    target = label.astype(np.int32)
    return lambda: float(model.train_on_batch(image, target))


def voxtune_step(network: str, weights: Arrays, image: np.ndarray, label: np.ndarray) -> Step:
    """voxtune's own step, whose augmentation and metrics come on top."""
    from voxtune.benchmarks.step import CASES, own_step

    return own_step(CASES[network], weights, image, label)


FRAMEWORKS: dict[str, tuple[Callable[..., Step], tuple[str, ...]]] = {
    "voxtune": (voxtune_step, ("voxtune", "jax")),
    "PyTorch": (torch_step, ("torch",)),
    "Keras-TensorFlow": (keras_step, ("keras", "tensorflow")),
    "Keras-JAX": (keras_step, ("keras", "jax")),
}


def main() -> None:
    """Takes turns with its parent."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    framework, network, file = sys.argv[1:]
    make, needed = FRAMEWORKS[framework]
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": needed[-1], "JAX_PLATFORMS": "cpu"}

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        modules = [importlib.import_module(name) for name in needed]
    except ImportError as error:
        answer(missing=str(error))
        return
    with np.load(file) as arrays:
        weights = [arrays[f"weight{number}"] for number in range(len(arrays.files) - 2)]
        step = make(network, weights, arrays["image"], arrays["label"])
    versions = [
        f"{each.__name__} {each.__version__}" for each in modules if hasattr(each, "__version__")
    ]
    answer(version=", ".join(versions), parameters=sum(each.size for each in weights))
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = step()
        answer(seconds=time.perf_counter() - began, loss=loss)


if __name__ == "__main__":
    main()
