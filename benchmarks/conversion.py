"""One conversion of a Keras file, timed and weighed: a child of `voxtune.benchmarks.convert`.

    conversion.py KERAS_FILE

writes one line of JSON: `seconds`, without imports; `memory`, the most bytes that the process grew
by, beyond what converting a network of one weight takes: what JAX and Orbax need once, whatever the
file; and `version`.
"""

import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import h5py
import jax
import numpy as np
from rich.console import Console

from voxtune.benchmarks.turns import process_peak
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


def converted(path: Path) -> tuple[float, int]:
    """Seconds and bytes that converting a file takes."""
    quiet = Console(file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        convert_file(Convert(write_tiny(Path(folder) / "tiny.h5"), Path(folder) / "tiny"), quiet)
        before, began = process_peak(), time.perf_counter()
        convert_file(Convert(path, Path(folder) / "model"), quiet)
        return time.perf_counter() - began, process_peak() - before


def main() -> None:
    """Converts the file."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    seconds, memory = converted(Path(sys.argv[1]))
    told = {"version": f"jax {jax.__version__}", "seconds": seconds, "memory": memory}
    print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
