"""One framework's prediction of a scan, timed when asked: a child of `voxtune.benchmarks.predict`.

It needs nothing but the framework, NumPy and nibabel, for it runs in an environment that has no
voxtune. Networks come from a file, as those of `peer.py` do.

    predict_peer.py PROGRAM NETWORK FOLDER [WINDOW]

predicts by windows of that edge, or without one in one pass. It writes a line of JSON with what it
loaded, and saves as PROGRAM.npy what the network makes of check.npy, where that is there, in
float32 throughout. Then, for each line on standard input, it predicts scan.nii.gz, writes its
labels as PROGRAM.nii.gz, and answers with `seconds` end to end, those of the computation alone,
`compute`, and the most `memory` that the device has held so far, or on a CPU the process, bytes.

The computation starts with the scaled image in the host's memory, and has ended when the
probabilities are computed, wherever they lie. What follows belongs to the end to end: classes are
chosen on the device, and labels copied to the host.

What computes is what JAX finds, or the GPU where a framework has one. There PyTorch is compiled and
computes in bfloat16 where its autocast does, JAX and TensorFlow in TF32 as they do unless told
otherwise.
"""

import importlib
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

OVERLAP = 0.25
FILE = "weights.npz"
CHECK = 32  # edge of what is predicted first, voxels
PEER, TURNS = (
    runpy.run_path(str(Path(__file__).with_name(name))) for name in ("peer.py", "turns.py")
)
process_peak, jax_peak = TURNS["process_peak"], TURNS["jax_peak"]

# `[D, H, W]` → probabilities `[D, H, W, K]`, of which there is one for a sigmoid; computed when it
# returns.
Network = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Framework:
    """A framework that holds a network.

    Attributes:
        check: the network, of a cube whose edge is `CHECK`.
        predict: predicts the scan, gives the seconds of the computation alone.
        platform: what computes, `cpu` or as JAX names it.
        memory: the most that was held so far, bytes.
        exact: within it float32 is float32.
        floor: FLOP/s of the device in a product of float32 matrices, measured now; of voxtune's.
        room: bytes that the device has; None where it does not say.
        notes: what belongs to the version.
    """

    check: Network
    predict: Callable[[], float]
    platform: str = "cpu"
    memory: Callable[[], int] = process_peak
    exact: Callable[[], AbstractContextManager[None]] = nullcontext
    floor: Callable[[], float] | None = None
    room: int | None = None
    notes: tuple[str, ...] = ()


def of_network(
    network: Network, argmax: Callable[[Any, int], Any], folder: Path, name: str
) -> Callable[[], float]:
    """Reads, scales to [0, 1], predicts and writes a scan as one does with NumPy and nibabel.

    Args:
        network: that predicts.
        argmax: of its framework, along an axis.
        folder: see the module.
        name: of the program.
    """
    import nibabel as nib

    def predict() -> float:
        scan: Any = nib.load(folder / "scan.nii.gz")
        image = scan.get_fdata(dtype=np.float32)
        image = (image - image.min()) / (image.max() - image.min())
        began = time.perf_counter()
        probabilities = network(image)
        seconds = time.perf_counter() - began
        if probabilities.shape[-1] == 1:
            labels = probabilities[..., 0] > 0.5
        else:
            labels = argmax(probabilities, -1)
        if hasattr(labels, "byte"):  # PyTorch's, which NumPy does not fetch from a GPU
            labels = labels.byte().cpu()
        labels = np.asarray(labels).astype(np.uint8)
        nib.save(nib.Nifti1Image(labels, scan.affine), folder / f"{name}.nii.gz")
        return seconds

    return predict


def keras(network: str, weights: Any, folder: Path, name: str, window: int) -> Framework:
    """Keras 3, the whole volume at once."""
    import nibabel as nib
    from keras import ops

    def made(shape: tuple[int, ...]) -> Network:
        model = PEER["keras_network"](*PEER["network_in"](folder / FILE), (*shape, 1))
        return on_jax_of(model) if on_jax else on_tensorflow_of(model, xla=platform != "cpu")

    on_jax = name == "Keras-JAX"
    platform, memory = PEER["keras_device"]()
    exact = jax_exact if on_jax else tensorflow_exact
    scan: Any = nib.load(folder / "scan.nii.gz")
    argmax = on_host if platform == "cpu" else ops.argmax
    predict = of_network(made(scan.shape), argmax, folder, name)
    return Framework(made((CHECK,) * 3), predict, platform, memory, exact)


def on_host(values: Any, axis: int) -> np.ndarray:
    """NumPy's argmax, which is faster on CPUs than TensorFlow's."""
    return np.asarray(values).argmax(axis)


def on_jax_of(model: Any) -> Network:
    """A network of Keras's on JAX, jitted as its `predict` does; that copies to the host as well.

    Args:
        model: `[1, D, H, W, 1]` → `[1, D, H, W, K]`.
    """
    import jax

    state = model.trainable_variables, model.non_trainable_variables
    values = [[each.value for each in variables] for variables in state]

    @jax.jit
    def call(values: Any, x: Any) -> Any:
        return model.stateless_call(*values, x, training=False)[0][0]

    return lambda image: jax.block_until_ready(call(values, image[None, ..., None]))


def on_tensorflow_of(model: Any, xla: bool) -> Network:
    """The same on TensorFlow; its own kernels are faster on CPUs than its XLA, Keras's default."""
    import tensorflow as tf

    call = tf.function(lambda x: model(x, training=False)[0], jit_compile=xla)

    def network(image: np.ndarray) -> Any:
        found = call(tf.convert_to_tensor(image[None, ..., None]))
        tf.test.experimental.sync_devices()
        return found

    return network


def jax_exact() -> AbstractContextManager[None]:
    """Within it JAX's float32 is float32."""
    import jax

    return jax.default_matmul_precision("highest")


@contextmanager
def tensorflow_exact() -> Iterator[None]:
    """Within it TensorFlow's is."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(True)


def monai(network: str, weights: Any, folder: Path, name: str, window: int) -> Framework:
    """PyTorch, channels-last, by MONAI's `sliding_window_inference`; eager on a CPU."""
    import torch
    from monai.inferers import sliding_window_inference

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # while float32 is compared
    torch.backends.cudnn.benchmark = True
    layers = PEER["torch_network"](network, weights).eval().to(device)
    fast = compiled(layers, window) if cuda else layers
    notes = ("bfloat16 autocast", "eager" if fast is layers else "compiled") if cuda else ()
    weighting = gaussian(window).to(device)
    last = torch.sigmoid if weights[-1].size == 1 else lambda logits: logits.softmax(1)

    def on_device(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image)[None, None].to(device)

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            logits = fast(x.contiguous(memory_format=torch.channels_last_3d))
        return last(logits.float())

    def check(image: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            x = on_device(image).contiguous(memory_format=torch.channels_last_3d)
            return last(layers(x))[0].movedim(0, -1).cpu()

    def windows(image: np.ndarray) -> torch.Tensor:
        torch.backends.cudnn.allow_tf32 = True
        with torch.inference_mode():
            found: Any = sliding_window_inference(
                on_device(image), window, 1, forward, OVERLAP, roi_weight_map=weighting
            )
        if cuda:
            torch.cuda.synchronize()
        return found[0].movedim(0, -1)

    memory = torch.cuda.max_memory_allocated if cuda else process_peak
    predict = of_network(windows, torch.argmax, folder, name)
    return Framework(check, predict, "gpu" if cuda else "cpu", memory, notes=notes)


def gaussian(window: int) -> Any:
    """Weights of a window's voxels `[1, 1, W, W, W]`, a Gaussian an eighth of it wide as voxtune's.

    MONAI's own is the same, but nowhere below 1e-3, which changes a random network's labels.
    """
    import torch

    bell = torch.exp(-32 * ((torch.arange(window) - (window - 1) / 2) / window) ** 2)
    return bell[:, None, None] * bell[:, None] * bell[None, None, None]


def compiled(layers: Any, window: int) -> Any:
    """A network of PyTorch's, compiled for a window; itself where this machine cannot do that."""
    import torch

    fast = torch.compile(layers)
    x = torch.zeros(1, 1, *(window,) * 3, device="cuda")
    try:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            fast(x.contiguous(memory_format=torch.channels_last_3d))
    except Exception:  # no compiler, no Triton: each has its own
        return layers
    return fast


def voxtune(network: str, weights: Any, folder: Path, name: str, window: int) -> Framework:
    """voxtune, the whole volume at once or by windows, on one device."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import nibabel as nib

    from voxtune.engine.options import Segmenting
    from voxtune.engine.predict import load_model
    from voxtune.engine.speed import product_speed_now

    one_pass = Segmenting(block="full", mesh="data=1")
    windows = Segmenting(block=(window,) * 3, mesh="data=1", overlap=OVERLAP)
    outputs = weights[-1].size
    model = load_model(folder / "model", options=windows if window else one_pass)
    spent: list[float] = []

    def timed(*given: Any) -> Any:
        began = time.perf_counter()
        found = model.predictor(*given)
        jax.block_until_ready(found.held)
        spent.append(time.perf_counter() - began)
        if found.notes:
            raise MemoryError(found.notes[0])
        return found

    watched = dataclasses.replace(model, predictor=timed)

    def check(image: np.ndarray) -> np.ndarray:
        whole = load_model(folder / "model", options=one_pass)
        found = whole.predictor(whole.members, image[..., None])
        classes = range(found.held.shape[-1])[-outputs:]  # of a sigmoid the second
        return np.stack([found.channel(index) for index in classes], -1)

    def predict() -> float:
        scan: Any = nib.load(folder / "scan.nii.gz")
        nib.save(watched.predict(scan), folder / f"{name}.nii.gz")
        return spent[-1]

    first = jax.local_devices()[0]
    return Framework(
        check,
        predict,
        first.platform,
        jax_peak,
        jax_exact,
        lambda: product_speed_now(first, jnp.dtype("float32")),
        (first.memory_stats() or {}).get("bytes_limit"),
    )


PROGRAMS: dict[str, tuple[Callable[..., Framework], tuple[str, ...]]] = {
    "voxtune": (voxtune, ("voxtune", "jax")),
    "Keras-TensorFlow": (keras, ("keras", "tensorflow")),
    "Keras-JAX": (keras, ("keras", "jax")),
    "MONAI": (monai, ("monai", "torch")),
}


def first_to_end() -> None:
    """Where memory runs out, Linux ends this process rather than another."""
    if sys.platform == "linux":
        with suppress(OSError):  # in a container that may not be written
            Path("/proc/self/oom_score_adj").write_text("1000")


def loaded(
    make: Callable[..., Framework], network: str, folder: Path, name: str, window: int
) -> Framework:
    """A program that holds its network, and has shown what that gives.

    Args:
        make: of `PROGRAMS`.
        network: its name.
        folder: see the module.
        name: of the program.
        window: edge of the windows, voxels; 0 for one pass.
    """
    importlib.import_module("nibabel")
    weights = [*PEER["network_in"](folder / FILE)[1].values()]
    held = make(network, weights, folder, name, window)
    if (folder / "check.npy").exists():
        with held.exact():
            found = held.check(np.load(folder / "check.npy"))
        np.save(folder / f"{name}.npy", np.asarray(found))
    return held


def turn(held: Framework) -> dict[str, float]:
    """Predicts, and tells what the module says."""
    began = time.perf_counter()
    compute = held.predict()
    seconds = time.perf_counter() - began
    found = {"seconds": seconds, "compute": compute, "memory": held.memory()}
    if held.floor is not None:  # which takes memory as well
        found["floor"] = held.floor()
    return found


def main() -> None:
    """Takes turns with its parent."""
    name, network, place, *given = sys.argv[1:]
    folder, window = Path(place), int(given[0]) if given else 0
    make, needed = PROGRAMS[name]
    variables = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": needed[-1],
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    first_to_end()

    def ready() -> Any:
        held = loaded(make, network, folder, name, window)
        about = {"platform": held.platform, "room": held.room}
        return TURNS["Ready"](lambda _: turn(held), about, held.notes)

    TURNS["serve"](needed, ready, variables)


if __name__ == "__main__":
    main()
