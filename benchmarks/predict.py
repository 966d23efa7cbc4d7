"""Times voxtune's prediction beside other frameworks': `python -m voxtune.benchmarks.predict`.

Peers live in environments of their own, or in one:

    python3 -m venv keras
    keras/bin/pip install tensorflow-cpu 'keras>=3.10' jax nibabel
    python3 -m venv torch
    torch/bin/pip install torch monai nibabel
    python -m voxtune.benchmarks.predict --keras-python keras/bin/python --torch-python \
        torch/bin/python

Each framework has a process of its own (`predict_peer.py`) with the same network, weights and scan,
on the CPU: brainchop's MeshNet of 18 classes and Nobrainer's U-Net of one, with random weights.
Two ways of running them are measured:

- in one pass over the whole volume: `voxtune predict --block full`, and `model.predict` of Keras;
- by windows of 128³ that overlap by a quarter, weighted by a Gaussian: `voxtune predict`, and
  `sliding_window_inference` of MONAI. Up to 128³ that is one window.

"compute" is from the scaled image in memory to the probabilities in memory; "end to end" is from
one NIfTI file to another: reading, scaling, computing, choosing classes and writing. Programs take
turns, so that a busy machine slows all of them; the table holds medians, without each program's
first turn where there are several. That they compute the same is checked on a small cube first.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from voxtune.benchmarks.child import Child, LateError, start
from voxtune.benchmarks.predict_peer import CHECK
from voxtune.benchmarks.step import Case, keras_weights, machine
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec, write_model
from voxtune.models.families import build
from voxtune.models.parameters import by_path

OWN, BY_WINDOWS = "voxtune", "voxtune-windows"
PAUSE = 0.3  # seconds between turns, for threads that wait for work to fall asleep
STARTING = 600  # seconds that a program may take to load
MESHNET = {"outputs": 18, "activation": "elu", "norm": None}
CASES = {
    "meshnet": Case("brainchop MeshNet, 18 classes", "meshnet", MESHNET, (1, 32, 32, 32)),
    "unet": Case("Nobrainer U-Net", "unet", {"outputs": 1}, (1, 32, 32, 32)),
}
WAYS = {
    "whole": (OWN, "Keras-TensorFlow", "Keras-JAX"),
    "windows": (BY_WINDOWS, "MONAI"),
}


@dataclass
class Program(Child):
    """A framework that predicts in its process, see `predict_peer.py`.

    Attributes:
        compute: seconds of each turn's computation.
        whole: seconds of each turn, end to end.
        peak: the most memory that it held, GiB.
        problem: why it took no further turns.
    """

    compute: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    peak: float = 0.0
    problem: str = ""

    def load(self) -> None:
        """Waits until it is ready."""
        self.hello = self.listen(STARTING)
        if "missing" in self.hello:
            self.problem = self.hello["missing"]

    def turn(self, limit: float | None) -> None:
        """Has it predict the scan; where that fails, it takes no further turns."""
        try:
            found = self.ask("predict", limit)
        except LateError:
            self.problem = f"stopped after {limit:.0f} s"
            return
        except RuntimeError:
            status = self.process.wait()
            if status >= 0:
                raise
            # Linux ends what takes too much memory with 9; some end themselves, with 6.
            self.problem = "out of memory" if status == -9 else f"ended by signal {-status}"
            return
        if "problem" in found:
            self.problem = found["problem"]
            self.end()
            return
        self.compute.append(found["compute"])
        self.whole.append(found["whole"])
        self.peak = found["peak"]
        time.sleep(PAUSE)

    def medians(self) -> tuple[float, float]:
        """Of compute and of whole, seconds; without the first turn, if there are several."""
        first = len(self.whole) > 1
        return median(self.compute[first:]), median(self.whole[first:])


def scan_of(edge: int) -> np.ndarray:
    """Smooth structures with noise, int16 `[edge, edge, edge]`."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(max(2, edge // 16),) * 3)
    smooth = ndimage.zoom(coarse, edge / coarse.shape[0], order=1)
    noisy = 400 + 150 * smooth + rng.normal(scale=10, size=smooth.shape)
    return noisy.clip(0, 1000).astype(np.int16)


def prepare(case: Case, edge: int, folder: Path) -> None:
    """Writes what programs need: weights, model directory, scan, and a cube to check."""
    weights = keras_weights(case)
    np.savez(
        folder / "weights.npz",
        allow_pickle=False,
        **{f"weight{n}": each for n, each in enumerate(weights)},
    )
    network = build(case.family, case.arguments)  # of the same seed as the weights
    outputs = case.arguments["outputs"]
    classes = tuple(LabelClass(value, f"class {value}") for value in range(max(2, outputs)))
    activation = "sigmoid" if outputs == 1 else "softmax"
    contract = Contract("RAS", (1.0, 1.0, 1.0), "minmax", (32, 32, 32))
    spec = ModelSpec(case.family, case.arguments, activation, classes, contract)
    write_model(folder / "model", spec, by_path(network), history={})
    nib.save(nib.Nifti1Image(scan_of(edge), np.eye(4)), folder / "scan.nii.gz")
    np.save(folder / "check.npy", scan_of(CHECK).astype(np.float32) / 1000)


def check(folder: Path, programs: Sequence[Program]) -> None:
    """Makes sure that programs make the same of a cube.

    Raises:
        RuntimeError: one does not.
    """
    expected, *others = (np.load(folder / f"{each.name}.npy") for each in programs)
    for program, found in zip(programs[1:], others, strict=True):
        difference = float(np.abs(found - expected).max())
        if not difference < 1e-3:
            raise RuntimeError(
                f"{program.name} does not compute what {programs[0].name} does: probabilities "
                f"differ by {difference:.1e}"
            )


def agreement(folder: Path, first: str, second: str) -> float:
    """Share of voxels that two programs gave the same label."""
    one, other = (
        np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj)  # type: ignore[attr-defined]  # load is typed too widely
        for name in (first, second)
    )
    return float((one == other).mean())


def measure(
    names: Sequence[str],
    pythons: dict[str, str],
    network: str,
    folder: Path,
    turns: int,
    late: float,
) -> list[Program]:
    """Has programs of one way take turns; the first is voxtune.

    Args:
        names: of the programs.
        pythons: interpreter of each peer.
        network: a key of `CASES`.
        folder: see `prepare`.
        turns: of each program.
        late: a peer is stopped that takes so many times as long as voxtune.
    """
    programs: list[Program] = []
    try:
        for name in names:
            interpreter = pythons.get(name, sys.executable)
            process = start(interpreter, "predict_peer.py", name, network, str(folder))
            programs.append(Program(name, process))
            programs[-1].load()
        check(folder, [each for each in programs if not each.problem])
        for _ in range(turns):
            for program in programs:
                own = programs[0].whole
                if not program.problem:
                    limit = None if program.name == names[0] or not own else late * min(own)
                    program.turn(limit)
    finally:
        for program in programs:
            program.end()
    return programs


def rows(programs: Sequence[Program], folder: Path) -> list[tuple[str, ...]]:
    """Of the table: program, compute, end to end, voxtune's gain in both, memory, agreement."""
    own = programs[0].medians() if programs[0].whole else None
    found: list[tuple[str, ...]] = []
    for program in programs:
        if not program.whole:
            found.append((program.name, program.problem, "", "", "", ""))
            continue
        seconds = program.medians()
        gains = [each / mine for each, mine in zip(seconds, own or (np.nan, np.nan), strict=True)]
        same = agreement(folder, programs[0].name, program.name) if own else np.nan
        found.append(
            (
                program.name,
                f"{seconds[0]:.2f} s",
                f"{seconds[1]:.2f} s",
                f"{gains[0]:.2f} / {gains[1]:.2f}",
                f"{program.peak:.1f} ({program.hello['before']:.1f}) GiB",
                f"{same:.2%}",
            )
        )
    return found


def parser() -> argparse.ArgumentParser:
    """Of the options."""
    made = argparse.ArgumentParser(
        prog="voxtune.benchmarks.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--python", help="of an environment with all peers")
    made.add_argument("--keras-python", help="of Keras's environment")
    made.add_argument("--torch-python", help="of PyTorch's and MONAI's environment")
    made.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    made.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    made.add_argument("--size", type=int, default=256, help="edge of the scan, voxels")
    made.add_argument("--turns", type=int, default=3, help="of each program that takes the whole")
    made.add_argument("--window-turns", type=int, default=1, help="of each that takes windows")
    made.add_argument(
        "--late", type=float, default=2.5, help="stop a peer after so many times voxtune's time"
    )
    return made


def main() -> None:
    """Prints the table."""
    options = parser()
    given = options.parse_args()
    anywhere = given.python or sys.executable
    keras, torch = given.keras_python or anywhere, given.torch_python or anywhere
    for python in (keras, torch):
        if shutil.which(python) is None:
            options.error(
                f"there is no {python}; see `python -m voxtune.benchmarks.predict --help`"
            )
    pythons = {"Keras-TensorFlow": keras, "Keras-JAX": keras, "MONAI": torch}
    table = Table(title=f"Prediction of {given.size}³ voxels on the CPU, {machine()}")
    columns = ("network", "program", "compute", "end to end", "voxtune is faster by", "memory")
    for column in (*columns, "same labels"):
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    lines: dict[str, None] = {}
    for network in given.networks:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            prepare(CASES[network], given.size, folder)
            for way in given.ways:
                names = list(WAYS[way])
                turns = given.turns if way == "whole" else given.window_turns
                programs = measure(names, pythons, network, folder, turns, given.late)
                for number, row in enumerate(rows(programs, folder)):
                    print(*row, sep="  ", file=sys.stderr)  # which stays, whatever comes later
                    table.add_row("" if number else f"{CASES[network].title}, {way}", *row)
                for each in programs:
                    lines |= {f"{each.name}: {each.hello.get('version', each.problem)}": None}
                table.add_section()
                print(f"{CASES[network].title}, {way}: done", file=sys.stderr)
    table.caption = "memory: the most, and in brackets that of the program before it began"
    console = Console(width=130)
    console.print(table)
    console.print("\n".join(lines))


if __name__ == "__main__":
    main()
