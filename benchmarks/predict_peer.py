"""One framework's prediction of a scan, timed when asked: a child of `voxtune.benchmarks.predict`.

It needs nothing but the framework, NumPy and nibabel, for it runs in an environment that has no
voxtune. Weights come from a file, networks are those of `peer.py`.

    predict_peer.py PROGRAM NETWORK FOLDER

writes a line of JSON with what it loaded, and saves as PROGRAM.npy what the network makes of
check.npy. Then, for each line on standard input, it predicts scan.nii.gz, writes its labels as
PROGRAM.nii.gz, and answers with seconds end to end, those of the computation alone, and the most
memory that the process has held so far.
"""

import importlib
import json
import os
import resource
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WINDOW, OVERLAP = 128, 0.25
CHECK = 32  # edge of what is predicted first, voxels
PEER = runpy.run_path(str(Path(__file__).with_name("peer.py")))
GIB = 2**30

# `[D, H, W]` → probabilities `[D, H, W, K]`, of which there is one for a sigmoid; in the memory of
# the process when it returns.
Network = Callable[[np.ndarray], Any]
Prediction = Callable[[], float]  # predicts the scan, gives the seconds of the computation alone


def of_network(network: Network, folder: Path, name: str) -> Prediction:
    """Reads, scales to [0, 1], predicts and writes a scan as one does with NumPy and nibabel."""
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
            labels = probabilities.argmax(-1)
        labels = np.asarray(labels).astype(np.uint8)
        nib.save(nib.Nifti1Image(labels, scan.affine), folder / f"{name}.nii.gz")
        return seconds

    return predict


def keras(network: str, weights: Any, folder: Path, name: str) -> tuple[Network, Prediction]:
    """Keras 3 by `predict`, the whole volume at once."""

    def made(shape: tuple[int, ...]) -> Network:
        activation = "sigmoid" if weights[-1].size == 1 else "softmax"
        model = PEER["keras_network"](network, weights, (*shape, 1), activation)
        # TensorFlow's own kernels are faster on CPUs than its XLA, Keras's default.
        model.compile(jit_compile=os.environ["KERAS_BACKEND"] == "jax")
        return lambda image: model.predict(image[None, ..., None], verbose=0)[0]

    import nibabel as nib

    shape: Any = nib.load(folder / "scan.nii.gz")
    return made((CHECK,) * 3), of_network(made(shape.shape), folder, name)


def monai(network: str, weights: Any, folder: Path, name: str) -> tuple[Network, Prediction]:
    """PyTorch, eager, channels-last, by MONAI's `sliding_window_inference`."""
    import torch
    from monai.inferers import sliding_window_inference

    layers = PEER["torch_network"](network, weights).eval()
    last = torch.sigmoid if weights[-1].size == 1 else lambda logits: logits.softmax(1)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return last(layers(x.contiguous(memory_format=torch.channels_last_3d)))

    def whole(image: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return forward(torch.from_numpy(image)[None, None])[0].movedim(0, -1)

    def windows(image: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            found: Any = sliding_window_inference(
                torch.from_numpy(image)[None, None], WINDOW, 1, forward, OVERLAP, "gaussian"
            )
        return found[0].movedim(0, -1)

    return whole, of_network(windows, folder, name)


def voxtune(network: str, weights: Any, folder: Path, name: str) -> tuple[Network, Prediction]:
    """voxtune, the whole volume at once or by windows."""
    import dataclasses

    import jax
    import nibabel as nib

    from voxtune.engine.options import Segmenting
    from voxtune.engine.predict import load_model

    whole = load_model(folder / "model", options=Segmenting(block="full"))
    model = whole
    if name == "voxtune-windows":
        options = Segmenting(block=(WINDOW,) * 3, overlap=OVERLAP)
        model = load_model(folder / "model", options=options)
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
        found = whole.predictor(whole.members, image[..., None])
        classes = range(found.held.shape[-1])[-weights[-1].size :]  # of a sigmoid the second
        return np.stack([found.channel(index) for index in classes], -1)

    def predict() -> float:
        scan: Any = nib.load(folder / "scan.nii.gz")
        nib.save(watched.predict(scan), folder / f"{name}.nii.gz")
        return spent[-1]

    return check, predict


PROGRAMS: dict[str, tuple[Callable[..., tuple[Network, Prediction]], tuple[str, ...]]] = {
    "voxtune": (voxtune, ("voxtune", "jax")),
    "Keras-TensorFlow": (keras, ("keras", "tensorflow")),
    "Keras-JAX": (keras, ("keras", "jax")),
    "voxtune-windows": (voxtune, ("voxtune", "jax")),
    "MONAI": (monai, ("monai", "torch")),
}


def peak() -> float:
    """The most memory that this process has held, GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def first_to_end() -> None:
    """Where memory runs out, Linux ends this process rather than another."""
    if sys.platform == "linux":
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    """Takes turns with its parent."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    name, network, place = sys.argv[1:]
    folder = Path(place)
    make, needed = PROGRAMS[name]
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": needed[-1], "JAX_PLATFORMS": "cpu"}
    first_to_end()

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        modules = [importlib.import_module(each) for each in (*needed, "nibabel")]
    except ImportError as error:
        answer(missing=str(error))
        return
    before = peak()
    with np.load(folder / "weights.npz") as arrays:
        weights = [arrays[f"weight{number}"] for number in range(len(arrays.files))]
    check, predict = make(network, weights, folder, name)
    np.save(folder / f"{name}.npy", np.asarray(check(np.load(folder / "check.npy"))))
    versions = [
        f"{each.__name__} {each.__version__}"
        for each in modules[:-1]
        if hasattr(each, "__version__")
    ]
    answer(version=", ".join(versions), before=before)
    for _ in sys.stdin:
        began = time.perf_counter()
        try:
            seconds = predict()
        except Exception as error:  # each framework has its own for memory; others are raised
            if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
                raise
            answer(problem="out of memory")
            continue
        answer(whole=time.perf_counter() - began, compute=seconds, peak=peak())


if __name__ == "__main__":
    main()
