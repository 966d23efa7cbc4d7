"""One framework's training step, timed when asked: a child of the suite `train`.

It needs nothing but the framework, for it runs in an environment that has no voxtune. Networks,
loss and optimiser are the same in each: weights come from a file, which describes the network to
Keras too, the loss is cross-entropy plus soft Dice of every class but the first of each scan, the
optimiser AdamW after clipping the gradient to norm 1. The batch is on the device before the first
step.

    peer.py PROGRAM NETWORK FILE DTYPE

writes a line of JSON with what it loaded. Then, for each line on standard input, it does a step, or
from the third on as many as a second has room for but no more than a thousand, and answers with the
`seconds` that each took, the `loss` before the last, and the most `memory` that the device has held
so far, or on a CPU the process, bytes. After the first step it saves the parameters beside FILE, as
PROGRAM.npz.

What computes is the GPU where the framework sees one. There convolutions of float32 multiply in
TF32, the default of each, unless DTYPE is `exact`, by which frameworks are compared. PyTorch and
Keras have their usual mixed precision where it is bfloat16: autocast, and the policy
`mixed_bfloat16`.
"""

import itertools
import json
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from voxtune.benchmarks.turns import Training, jax_peak, process_peak, take_turns
else:  # by its path: this runs where there is no voxtune
    TURNS = runpy.run_path(str(Path(__file__).with_name("turns.py")))
    Training, take_turns = TURNS["Training"], TURNS["take_turns"]
    process_peak, jax_peak = TURNS["process_peak"], TURNS["jax_peak"]

RATE, DECAY, CLIP = 1e-4, 1e-5, 1.0
DILATIONS = (1, 2, 4, 8, 16, 8, 4, 2, 1)  # brainchop's
FILTERS = 21
MERGES = ("Add", "Concatenate")  # Keras's layers that take what they join as a list
EXACT = "exact"  # float32 that multiplies in nothing less
Arrays = Sequence[np.ndarray]


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Given:
    """What peers train.

    Attributes:
        network: `unet`, `meshnet`, or for Keras another.
        graph: its layers and calls, as `voxtune.models.graph.Graph` has them in JSON.
        weights: LAYER:NAME → array as Keras stores it, from input to output.
        image: float32 `[B, D, H, W, 1]`.
        label: uint8 `[B, D, H, W]`.
        dtype: `float32`, `bfloat16` for mixed precision, or `exact`.
    """

    network: str
    graph: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    image: np.ndarray
    label: np.ndarray
    dtype: str

    @staticmethod
    def read(network: str, file: str, dtype: str) -> "Given":
        """As voxtune's child wrote it."""
        graph, weights = network_in(file)
        with np.load(file) as arrays:
            return Given(network, graph, weights, arrays["image"], arrays["label"], dtype)

    @property
    def outputs(self) -> int:
        """Logits for each voxel."""
        return [*self.weights.values()][-1].size


def network_in(file: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The graph and the weights of `Given`, as voxtune wrote them."""
    with np.load(file) as arrays:
        names = [name for name in arrays.files if name.startswith("weight/")]
        weights = {name.removeprefix("weight/"): arrays[name] for name in names}
        return json.loads(str(arrays["graph"])), weights


def torch_network(network: str, weights: Arrays) -> Any:
    """The network in PyTorch, channels-last; `[B, 1, D, H, W]` → logits `[B, outputs, D, H, W]`."""
    import torch
    from torch import nn

    torch.set_num_threads(cores())

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
    with torch.no_grad():
        layers = torch_layers(net)
        for layer, kernel, bias in zip(layers, weights[::2], weights[1::2], strict=True):
            layer.weight.copy_(torch.from_numpy(kernel).permute(4, 3, 0, 1, 2))
            layer.bias.copy_(torch.from_numpy(bias))
    return net


def torch_layers(net: Any) -> list[Any]:
    """Layers with parameters, from input to output."""
    from torch import nn

    return [each for each in net.modules() if isinstance(each, nn.Conv3d | nn.ConvTranspose3d)]


def torch_training(given: Given, compiled: bool = False) -> Training:
    """PyTorch, channels-last; eager, or compiled by `torch.compile`."""
    import torch
    from torch import nn

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = given.dtype != EXACT
    # Functions below hold names of weights, not the weights: nobody else has them twice.
    outputs, names, mixed = given.outputs, [*given.weights], given.dtype == "bfloat16"
    net = torch_network(given.network, [*given.weights.values()]).to(device)
    x = torch.from_numpy(given.image).permute(0, 4, 1, 2, 3).to(device)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    y = torch.from_numpy(given.label).long().to(device)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY, fused=cuda)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            logits = net(x)
        logits = logits.float()
        truth = nn.functional.one_hot(y, outputs).permute(0, 4, 1, 2, 3)
        p, space = logits.softmax(1), (2, 3, 4)
        dice = (2 * (p * truth).sum(space) + 1) / (p.sum(space) + truth.sum(space) + 1)
        return nn.functional.cross_entropy(logits, y) + 1 - dice[:, 1:].mean()

    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = forward(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimizer.step()
        return loss.detach()

    def run(steps: int) -> float:
        for _ in range(steps):
            loss = step()
        if cuda:
            torch.cuda.synchronize()
        return loss.item()

    def parameters() -> Mapping[str, np.ndarray]:
        found = []
        for layer in torch_layers(net):
            kernel = layer.weight.detach().permute(2, 3, 4, 1, 0)
            found += [kernel.cpu().numpy(), layer.bias.detach().cpu().numpy()]
        return dict(zip(names, found, strict=True))

    memory = torch.cuda.max_memory_allocated if cuda else process_peak
    return Training(run, "gpu" if cuda else "cpu", memory, parameters=parameters)


def torch_compiled_training(given: Given) -> Training:
    """The same, compiled."""
    return torch_training(given, compiled=True)


def keras_network(
    graph: Mapping[str, Any], weights: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> Any:
    """The network in Keras 3; `[B, *shape]`, channels last → what the graph gives.

    Args:
        graph: see `Given`; its layers are Keras's, each called once, and have no dropout.
        weights: see `Given`.
        shape: of a scan, with its channels.
    """
    import keras

    layers, (entry,) = {each["name"]: each for each in graph["layers"]}, graph["inputs"]
    found = {entry: keras.Input(shape)}
    for call in graph["calls"]:
        layer, given = layers[call["layer"]], [found[name] for name in call["inputs"]]
        kind, settings = layer["kind"], layer["config"]
        if kind == "ZeroPadding3DChannels":  # Keras has no such layer
            widths = [(0, 0)] * 4 + [(settings["padding"],) * 2]
            found[call["name"]] = keras.ops.pad(given[0], widths)
            continue
        made = getattr(keras.layers, kind)(**settings, name=layer["name"])
        found[call["name"]] = made(given) if kind in MERGES else made(*given)
        own = [each for name, each in weights.items() if layer_of(name) == layer["name"]]
        made.set_weights(own)
    (output,) = graph["outputs"]
    return keras.Model(found[entry], found[output])


def layer_of(name: str) -> str:
    """The layer of a weight, LAYER:NAME."""
    return name.rpartition(":")[0]


def keras_training(given: Given) -> Training:
    """Keras 3 on the backend that `KERAS_BACKEND` names, by `train_on_batch`."""
    import keras
    from keras import ops

    if given.dtype == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    if given.dtype == EXACT:
        keras_exact()
    model = keras_network(given.graph, given.weights, given.image.shape[1:])
    outputs, names = given.outputs, [*given.weights]  # see `torch_training`

    def loss(truth: object, logits: object) -> object:
        logs = ops.log_softmax(ops.cast(logits, "float32"))
        truth = ops.one_hot(truth, outputs)
        p, space = ops.exp(logs), (1, 2, 3)
        dice = 2 * ops.sum(p * truth, space) + 1
        dice /= ops.sum(p, space) + ops.sum(truth, space) + 1
        return 1 - ops.mean(dice[:, 1:]) - ops.mean(ops.sum(truth * logs, -1))

    # Keras adds epsilon before the bias of the moments is corrected: as much as 1e-8 after it, in
    # the first step, where it weighs most.
    epsilon = 1e-8 * (1 - 0.999) ** 0.5
    optimizer = keras.optimizers.AdamW(
        RATE, weight_decay=DECAY, global_clipnorm=CLIP, epsilon=epsilon
    )
    platform, memory = keras_device()
    # TensorFlow's own kernels are faster on CPUs than its XLA, Keras's default.
    xla = platform != "cpu" or keras.backend.backend() == "jax"
    model.compile(optimizer, loss, jit_compile=xla)
    image, label = map(ops.convert_to_tensor, (given.image, given.label.astype(np.int32)))

    def run(steps: int) -> float:
        model.reset_metrics()  # or the loss is a mean over all steps so far
        for _ in range(steps):
            found = model.train_on_batch(image, label)
        return float(found)

    def parameters() -> Mapping[str, np.ndarray]:
        layers = dict.fromkeys(map(layer_of, names))
        found = [model.get_layer(each).get_weights() for each in layers]
        return dict(zip(names, itertools.chain(*found), strict=True))

    notes = ("by train_on_batch, which waits for each step",)
    return Training(run, platform, memory, notes=notes, parameters=parameters)


def keras_exact() -> None:
    """From now on float32 multiplies in nothing less on Keras's backend."""
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
        return
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)


def keras_device() -> tuple[str, Callable[[], int]]:
    """What Keras's backend computes on, and what tells the most memory that it held, bytes."""
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax

        return jax.default_backend(), jax_peak
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return "gpu", lambda: tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return "cpu", process_peak


# What makes a training, and the modules that it needs, of which the last is Keras's backend.
PEERS: dict[str, tuple[Callable[[Given], Training], tuple[str, ...]]] = {
    "PyTorch": (torch_training, ("torch",)),
    "PyTorch compiled": (torch_compiled_training, ("torch",)),
    "Keras-TensorFlow": (keras_training, ("keras", "tensorflow")),
    "Keras-JAX": (keras_training, ("keras", "jax")),
}


def stepped(file: str, program: str) -> Path:
    """Where a program saves its parameters after the first step, beside the file of the weights."""
    return Path(file).with_name(f"{program}.npz")


def main() -> None:
    """Takes turns with its parent."""
    program, network, file, dtype = sys.argv[1:]
    make, needed = PEERS[program]
    variables = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": needed[-1],
        "TORCHINDUCTOR_CACHE_DIR": f"{file}.inductor",
    }
    kept = stepped(file, program)
    take_turns(needed, lambda: make(Given.read(network, file, dtype)), variables, kept)


if __name__ == "__main__":
    main()
