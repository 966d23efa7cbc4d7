"""Times a conversion and weighs its memory: `python -m voxtune.benchmarks.convert KERAS_FILE`.

Imports are not counted. Memory is the most that the process grew by, beyond what converting a
network of a few bytes takes: what JAX and Orbax need once, whatever the file.
"""

import io
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import h5py
import jax
import numpy as np
from rich.console import Console

from voxtune.engine.config import Convert
from voxtune.engine.convert import convert_file

_TINY = """{"class_name": "Functional", "config": {"name": "tiny", "layers": [
{"class_name": "InputLayer", "name": "x", "inbound_nodes": [],
 "config": {"name": "x", "batch_input_shape": [null, 8, 8, 8, 1]}},
{"class_name": "Conv3D", "name": "c", "inbound_nodes": [[["x", 0, 0, {}]]],
 "config": {"name": "c", "filters": 1, "kernel_size": [1, 1, 1], "use_bias": false}}],
"input_layers": [["x", 0, 0]], "output_layers": [["c", 0, 0]]}}"""


def write_tiny(path: Path) -> Path:
    """A Keras file of one weight."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["model_config"] = "2.14.0", _TINY
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [b"c"]
        layer = weights.create_group("c")
        layer.attrs["weight_names"] = [b"c/kernel:0"]
        layer["c/kernel:0"] = np.ones((1, 1, 1, 1, 1), "<f4")
    return path


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.is_file():  # without the peak of the process that started it
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main(path: Path) -> tuple[float, float, float]:
    """Converts a file; seconds, megabytes of memory, megabytes of the file."""
    quiet = Console(file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        convert_file(Convert(write_tiny(Path(folder) / "tiny.h5"), Path(folder) / "tiny"), quiet)
        before, began = peak_megabytes(), time.perf_counter()
        convert_file(Convert(path, Path(folder) / "model"), quiet)
        seconds = time.perf_counter() - began
    return seconds, peak_megabytes() - before, path.stat().st_size / 1e6


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m voxtune.benchmarks.convert KERAS_FILE")
    seconds, memory, size = main(Path(sys.argv[1]))
    print(
        f"{seconds:.2f} s, {memory:.0f} MB of memory = {memory / size:.1f} times the file of "
        f"{size:.1f} MB; {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}"
    )
