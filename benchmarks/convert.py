"""The suite `convert`: what a conversion takes, in seconds and memory, each in a fresh process."""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from voxtune.benchmarks.device import environment
from voxtune.benchmarks.keras_unet import write_unet
from voxtune.benchmarks.measurement import Measurement, Work
from voxtune.benchmarks.program import Program, running
from voxtune.engine import config, demo

QUICK_TURNS = 1


def measure(given: config.Benchmark, peers: Mapping[str, Path]) -> Iterator[Measurement]:
    """Measures the file that the package carries, and one of the size of Nobrainer's U-Net."""
    turns = min(given.turns, QUICK_TURNS) if given.quick else given.turns
    with tempfile.TemporaryDirectory() as folder:
        yield measured("the packaged U-Net", demo.PRETRAINED, turns)
        yield measured("Nobrainer U-Net", write_unet(Path(folder) / "unet.h5"), turns)


def measured(case: str, path: Path, turns: int) -> Measurement:
    """Of a Keras file; memory is what that adds to what JAX and Orbax hold."""
    size = path.stat().st_size
    case = f"{case}, {size / 1e6:.1f} MB"
    told = [turn(path) for _ in range(turns)]
    if problem := next(filter(None, (each.get("problem") for each in told)), ""):
        return Measurement("convert", case, "voxtune", problem=problem)
    memory = max(each["memory"] for each in told)
    return Measurement(
        "convert",
        case,
        "voxtune",
        seconds=tuple(each["seconds"] for each in told),
        memory=memory,
        work=Work(blocks=1),
        values={"times_the_file": memory / size},
        version=told[0]["version"],
    )


def turn(path: Path) -> dict[str, Any]:
    """What a process of its own says of a conversion, or its `problem`."""
    arguments = ("voxtune", sys.executable, "conversion.py", str(path))
    with running([Program.start(*arguments, environment=environment("cpu"))]) as programs:
        programs[0].load()
    return programs[0].hello | {"problem": programs[0].problem}
