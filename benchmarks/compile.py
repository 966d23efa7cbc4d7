"""The suite `compile`: from the start of a process to its first training step.

Each network is measured with an empty cache of compiled programs, and with the one that this has
filled, in which the step has to be found; each time in a fresh process. Its parts are told too, and
add up to all but Python's own start.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from voxtune.benchmarks.device import device, environment
from voxtune.benchmarks.first_step import PARTS
from voxtune.benchmarks.measurement import Measurement
from voxtune.benchmarks.nets import MAIN, NETS
from voxtune.benchmarks.program import Program, running
from voxtune.engine import config

# Edge of a block, voxels, how many a step takes, and in what it computes; and of a quick one.
SHAPES = {
    "cpu": (("32", "1", "float32"), ("16", "1", "float32")),
    "gpu": (("128", "2", "bfloat16"), ("32", "1", "bfloat16")),
}
CACHES = ("cold", "warm")
QUICK_TURNS = 1
_OTHERS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")  # not the user's folder


def measure(given: config.Benchmark, peers: Mapping[str, Path]) -> Iterator[Measurement]:
    """Measures each network with a cold cache and with a warm one.

    Raises:
        InputError: JAX finds no device.
    """
    platform = device().platform
    turns = min(given.turns, QUICK_TURNS) if given.quick else given.turns
    shape = SHAPES["cpu" if platform == "cpu" else "gpu"][given.quick]
    for network in given.networks or MAIN:
        told = [turn(network, shape, platform) for _ in range(turns)]
        for cache in CACHES:
            yield measurement(network, shape, cache, [each[cache] for each in told])


def turn(network: str, shape: Sequence[str], platform: str) -> dict[str, dict[str, Any]]:
    """What processes tell with a new cache and with the same again: cache → their line.

    Args:
        network: a key of `NETS`.
        shape: one of `SHAPES`.
        platform: as JAX names it.
    """
    variables = {
        name: value for name, value in environment(platform).items() if name not in _OTHERS
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        variables["XDG_CACHE_HOME"] = folder
        for cache in CACHES:
            arguments = ("voxtune", sys.executable, "first_step.py", network, *shape)
            began = time.perf_counter()
            with running([Program.start(*arguments, environment=variables)]) as programs:
                programs[0].load()
                seconds = time.perf_counter() - began
            problem = programs[0].problem
            found[cache] = {**programs[0].hello, "seconds": seconds, "problem": problem}
    return found


def measurement(
    network: str, shape: Sequence[str], cache: str, told: Sequence[Mapping[str, Any]]
) -> Measurement:
    """Of what the processes of all turns told."""
    edge, batch, dtype = shape
    case = f"{NETS[network].title}, {edge}³, batch {batch}, {dtype}, {cache} cache"
    settings: dict[str, str | int] = {
        "network": network,
        "block": int(edge),
        "batch": int(batch),
        "dtype": dtype,
    }
    problems = [problem_of(each, cache) for each in told]
    if any(problems):
        problem = next(filter(None, problems))
        return Measurement("compile", case, "voxtune", settings, problem=problem)
    return Measurement(
        "compile",
        case,
        "voxtune",
        settings,
        seconds=tuple(each["seconds"] for each in told),
        memory=max(each["memory"] for each in told),
        values={
            **{f"{part}_seconds": median(each["parts"][part] for each in told) for part in PARTS},
            "found_in_cache": median(each["found"] for each in told),
        },
        version=told[0]["version"],
    )


def problem_of(told: Mapping[str, Any], cache: str) -> str:
    """Why what a process told is no figure; empty where it is one."""
    problem: str = told["problem"] or told["unkept"]
    if not problem and cache == "warm" and not told["found"]:
        return "the step is not found in the cache, which keeps what takes a second to compile"
    return problem
