"""Suite `scaling`: a training step on one device and on more, and what they send each other.

Weak: each device has as much to do on any number of devices. Strong: all together have. Meshes
split the batch (`data`), or depth as well (`spatial`, over at most four devices). A mesh and one
device take turns, each in a process of its own (`own_scaling.py`).

Where there is no GPU, devices are simulated: they share the cores, so no figure here says how fast
several are. What counts there is what they send each other. How well real ones would do is
predicted, see `voxtune.benchmarks.scaling_prediction`.
"""

import dataclasses
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voxtune.benchmarks.device import device, environment
from voxtune.benchmarks.measurement import Measurement, Spread, Work
from voxtune.benchmarks.nets import NETS
from voxtune.benchmarks.program import Program, running, take_turns
from voxtune.benchmarks.scaling_prediction import BATCH, EDGE, RATE, of_halos, of_sums
from voxtune.engine import config

SIMULATED = 8  # devices
SIMULATED_TURNS = 2
# Their code is compiled with less effort, in less time: its speed has no meaning.
_FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="
MOST_SPATIAL = 4  # devices that depth is split over
# Edge of a device's part of a block, voxels, its blocks, and in what it computes.
BASES = {"cpu": (16, 1, "float32"), "gpu": (EDGE, BATCH, "bfloat16")}
QUICK = "unet", 8  # the network that is simulated, and the least edge that 8 devices can have of it


@dataclass(frozen=True)
class Series:
    """A step on more and more devices.

    Attributes:
        network: a key of `NETS`.
        edge: of a device's part of a block, voxels.
        batch: blocks that each row of a mesh takes.
        dtype: that is computed in.
        map: how the step is mapped.
        split: the axis of the mesh that grows.
        grows: whether the work grows with the devices (weak), or is that of the most (strong).
        most: devices.
    """

    network: str
    edge: int
    batch: int
    dtype: str
    map: str = "jit"
    split: Literal["data", "spatial"] = "data"
    grows: bool = True
    most: int = SIMULATED

    def sizes(self, devices: int) -> tuple[int, int]:
        """Of the axes `data` and `spatial` of a mesh."""
        spatial = math.gcd(devices, MOST_SPATIAL) if self.split == "spatial" else 1
        return devices // spatial, spatial

    def shape(self, devices: int) -> tuple[int, int, int, int]:
        """`[B, D, H, W]` of the whole batch on so many devices."""
        data, spatial = self.sizes(devices if self.grows else self.most)
        return self.batch * data, self.edge * spatial, self.edge, self.edge

    def mesh(self, devices: int) -> str:
        """As `--mesh` takes it."""
        data, spatial = self.sizes(devices)
        return f"data={data},spatial={spatial}" if self.split == "spatial" else f"data={data}"

    def title(self, devices: int) -> str:
        """In words."""
        batch, *block = self.shape(devices)
        size = "x".join(map(str, block)) if len(set(block)) > 1 else f"{block[0]}³"
        parts = [NETS[self.network].title, size, f"batch {batch}", self.dtype, self.map]
        return ", ".join([*parts, "weak" if self.grows else "strong", self.mesh(devices)])


def series_of(given: config.Benchmark, platform: str, most: int) -> list[Series]:
    """What is to be measured.

    Args:
        given: options; a batch is a device's.
        platform: of the devices, `cpu` or as JAX names it.
        most: devices there are.
    """
    edge, batch, dtype = BASES["cpu" if platform == "cpu" else "gpu"]
    networks = given.networks[:1] if given.quick else given.networks
    if given.quick and platform == "cpu" and networks == QUICK[:1]:
        edge = QUICK[1]
    edge, batch = (*given.blocks, edge)[0], (*given.batches, batch)[0]
    dtype = (*given.dtypes, dtype)[0]
    found = []
    for network in networks:
        base = Series(network, edge, batch, dtype, most=most)
        maps = given.maps or ("jit", "pmap")[: 1 if given.quick else 2]
        weak = [dataclasses.replace(base, map=how) for how in maps]
        deep = dataclasses.replace(base, split="spatial")
        if "jit" in maps and most > 1:  # pmap gives each device whole blocks
            weak.append(deep)
        found += weak
        if "jit" in maps and most > 1 and not given.quick:
            found += [dataclasses.replace(each, grows=False) for each in (base, deep)]
    return found


def counts(most: int, quick: bool = False) -> list[int]:
    """How many devices are more than one: doubled until there are no more."""
    doubled = [2**power for power in range(1, most.bit_length()) if 2**power < most]
    return ([] if quick else doubled) + [most] * (most > 1)


def measure(given: config.Benchmark, peers: Mapping[str, Path]) -> Iterator[Measurement]:
    """Measures each series: one device first, then more.

    Args:
        given: options.
        peers: none has this suite.

    Raises:
        InputError: JAX finds no device.
        RuntimeError: a program broke.
    """
    del peers
    platform = device().platform
    simulated = platform == "cpu"
    most = SIMULATED if simulated else _device_count()
    turns = given.turns
    if simulated:
        turns = 1 if given.quick else min(turns, SIMULATED_TURNS)
    every = series_of(given, platform, most)
    predicted: set[str] = set()
    for _, group in itertools.groupby(every, lambda each: (each.network, each.shape(1))):
        first, *others = group
        with running([started(first, 1, platform)]) as programs:
            (one,) = programs
            one.load()
            take_turns([one], turns, warm=0 if simulated else 1)
            yield measurement(first, 1, simulated, one, [])
            if first.network not in predicted and not one.problem:
                predicted.add(first.network)
                yield prediction(first, one)
            for series, devices in itertools.product((first, *others), counts(most, given.quick)):
                if series.shape(devices)[0] % series.sizes(devices)[0]:
                    continue  # so many devices do not share the blocks evenly
                more = started(series, devices, platform)
                programs.append(more)
                more.load()
                before = len(one.turns)
                take_turns([one, more], turns, warm=0)
                yield measurement(series, devices, simulated, more, one.turns[before + 1 :])
                more.end()


def _device_count() -> int:
    """Of this machine's GPUs, asked in another process, as in `voxtune.benchmarks.device`."""
    command = [sys.executable, "-c", "import jax; print(jax.local_device_count())"]
    done = subprocess.run(
        command, env=environment("gpu"), capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def started(series: Series, devices: int, platform: str) -> Program:
    """The process of a mesh, which begins to load."""
    variables = environment(platform)
    if platform == "cpu":
        flags = f"{variables.get('XLA_FLAGS', '')} {_FLAGS}{devices}"
        variables["XLA_FLAGS"] = flags.strip()
    shape = map(str, series.shape(devices))
    return Program.start(
        *("voxtune", sys.executable, "own_scaling.py", series.network, series.dtype),
        *("--mesh", series.mesh(devices), "--map", series.map, "--shape", *shape),
        environment=variables,
    )


def measurement(
    series: Series,
    devices: int,
    simulated: bool,
    program: Program,
    beside: Sequence[Mapping[str, Any]],
) -> Measurement:
    """Of a mesh that has had its turns.

    Args:
        series: of the mesh.
        devices: how many.
        simulated: whether they share cores.
        program: that has had its turns; the first does not count.
        beside: what one device said of each turn that counts; empty where this is the one.
    """
    shape, hello = series.shape(devices), program.hello
    turns = program.turns[-len(beside) :] if beside else program.turns[1:]
    work = Work(shape[0], math.prod(shape), hello.get("flops", 0))
    values = {name: value for name, value in hello.get("collectives", {}).items() if value}
    if beside and not program.problem:
        share = math.prod(shape) / math.prod(series.shape(1))  # of the work
        pairs = zip(beside, turns, strict=True)
        times = Spread.of([share * one["seconds"] / more["seconds"] for one, more in pairs]).median
        values |= {"rate_on_same_cores": times} if simulated else {"efficiency": times / devices}
        if series.mesh(devices).endswith(f"spatial={MOST_SPATIAL}"):
            flops = work.flops / work.voxels
            values |= of_halos(hello["collectives"], flops, series.edge, series.batch)
    return Measurement(
        "scaling",
        series.title(devices) + " (simulated)" * simulated,
        "voxtune",
        settings={
            "network": series.network,
            "block": "x".join(map(str, shape[1:])),
            "batch": shape[0],
            "dtype": series.dtype,
            "map": series.map,
            "mesh": series.mesh(devices),
            "devices": devices,
            "grows": series.grows,
            "simulated": simulated,
        },
        seconds=() if program.problem else tuple(each["seconds"] for each in turns),
        work=work,
        first=hello["compiled"] + program.turns[0]["seconds"] if program.turns else None,
        floors=tuple(each["floor"] for each in turns if "floor" in each and not program.problem),
        memory=max((each["memory"] for each in program.turns), default=None),
        values=values,
        version=hello.get("version", ""),
        problem=program.problem,
    )


def prediction(series: Series, one: Program) -> Measurement:
    """What several devices would keep of the speed of one, computed.

    Where that one is simulated, its step is that of `RATE` on blocks of 128³, two a device: FLOPs
    grow with voxels.

    Args:
        series: of the device.
        one: its program, that has had turns.
    """
    hello, shape = one.hello, series.shape(1)
    simulated = hello["platform"] == "cpu"
    if simulated:
        flops = hello["flops"] * BATCH * EDGE**3 / math.prod(shape)
        step, edge, batch = flops / RATE, EDGE, BATCH
    else:
        step, edge, batch = Spread.of([t["seconds"] for t in one.turns[1:]]).median, *shape[1::-1]
        flops = hello["flops"]
    values = {"gradient_bytes": hello["gradient"], "predicted_step_flops": flops}
    values |= {"predicted_step_seconds": step} if simulated else {}
    for devices in counts(SIMULATED):
        values |= of_sums(step, hello["gradient"], devices)
    title = f"{NETS[series.network].title}, {edge}³, batch {batch} a device"
    return Measurement(
        "scaling",
        f"{title}, {'217 TFLOP/s' if simulated else series.dtype} (predicted)",
        "voxtune",
        settings={"network": series.network, "block": edge, "batch": batch, "computed": True},
        values=values,
        version=hello.get("version", ""),
    )
