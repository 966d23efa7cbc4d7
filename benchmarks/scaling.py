"""Suite `scaling`: a training step on one device and on more, and what they send each other.

Weak: each device has as much to do on any number of devices. Strong: all together have. Meshes
split the batch (`data`), or depth as well (`spatial`, over at most four devices). A mesh and one
device take turns, each in a process of its own (`own_scaling.py`).

Where there is no GPU, devices are simulated: they share the cores, so no figure here says how fast
several are, and at most two turns count, with `--quick` one. What counts there is what they send
each other. How well real ones would do is predicted, see `voxtune.benchmarks.scaling_prediction`.
With `--quick` three turns count on a GPU, and blocks are smaller.
"""

import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voxtune.benchmarks.device import devices as found_devices
from voxtune.benchmarks.device import environment
from voxtune.benchmarks.measurement import Measurement, Spread, Work
from voxtune.benchmarks.nets import MAIN, NETS
from voxtune.benchmarks.program import Program, running, take_turns
from voxtune.benchmarks.scaling_prediction import (
    BATCH,
    EDGE,
    PARTS,
    RATE,
    WHOLE,
    of_halos,
    of_sums,
)
from voxtune.engine import config

SIMULATED = 8  # devices
# Turns that count at most, by whether it is quick; more where neither is.
SIMULATED_TURNS = {False: 2, True: 1}
QUICK_TURNS = 3
# Their code is compiled with less effort, in less time: its speed has no meaning.
_FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="
# Edge of a device's part of a block, voxels, its blocks, and in what it computes.
BASES = {"cpu": (16, 1, "float32"), "gpu": (EDGE, BATCH, "bfloat16")}
# The same edge with --quick; for simulated ones the least that 8 devices can have of the network.
QUICK_EDGES = {("cpu", "unet"): 8, ("gpu", "unet"): 64, ("gpu", "meshnet"): 64}


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
        spatial = math.gcd(devices, PARTS) if self.split == "spatial" else 1
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
    kind = "cpu" if platform == "cpu" else "gpu"
    edge, batch, dtype = BASES[kind]
    networks: Sequence[str] = given.networks or MAIN
    networks = networks[:1] if given.quick else networks
    if given.quick:
        edge = QUICK_EDGES.get((kind, networks[0]), edge)
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


def turns_of(given: config.Benchmark, simulated: bool) -> int:
    """How many turns of each program count."""
    if simulated:
        return min(given.turns, SIMULATED_TURNS[given.quick])
    return min(given.turns, QUICK_TURNS) if given.quick else given.turns


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
    """
    del peers
    found = found_devices()
    platform = found.first.platform
    simulated = platform == "cpu"
    most = SIMULATED if simulated else found.count
    turns, warm = turns_of(given, simulated), 0 if simulated else 1
    every = series_of(given, platform, most)
    predicted: set[tuple[str, str]] = set()
    for _, group in itertools.groupby(every, lambda each: (each.network, each.shape(1))):
        first, *others = group
        with running([started(first, 1, platform)]) as programs:
            (one,) = programs
            one.load()
            take_turns([one], turns, warm)
            yield measurement(first, 1, simulated, one, turns)
            if (first.network, "sums") not in predicted and not one.problem:
                predicted.add((first.network, "sums"))
                yield prediction(first, one, turns)
            for series, devices in itertools.product((first, *others), counts(most, given.quick)):
                if series.shape(devices)[0] % series.sizes(devices)[0]:
                    continue  # so many devices do not share the blocks evenly
                more = started(series, devices, platform)
                programs.append(more)
                more.load()
                take_turns([one, more], turns, warm)
                beside = [] if one.problem else one.turns[-turns:]
                yield measurement(series, devices, simulated, more, turns, beside)
                split = series.sizes(devices)[1] == PARTS and not (one.problem or more.problem)
                if split and (series.network, "halos") not in predicted:
                    predicted.add((series.network, "halos"))
                    yield halo_prediction(series, devices, one, more, turns)
                more.end()


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
    turns: int,
    beside: Sequence[Mapping[str, Any]] = (),
) -> Measurement:
    """Of a mesh that has had its turns.

    Args:
        series: of the mesh.
        devices: how many.
        simulated: whether they share cores.
        program: that has had its turns.
        turns: the last that count.
        beside: what one device said of each of them; empty where this is the one, or it failed.
    """
    shape, hello = series.shape(devices), program.hello
    counted = [] if program.problem else program.turns[-turns:]
    work = Work(shape[0], math.prod(shape), hello.get("flops", 0))
    values = {name: value for name, value in hello.get("collectives", {}).items() if value}
    if beside and not program.problem:
        share = math.prod(shape) / math.prod(series.shape(1))  # of the work
        pairs = zip(beside, counted, strict=True)
        times = Spread.of([share * one["seconds"] / more["seconds"] for one, more in pairs]).median
        values |= {"rate_on_same_cores": times} if simulated else {"efficiency": times / devices}
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
        seconds=tuple(each["seconds"] for each in counted),
        work=work,
        first=hello["compiled"] + program.turns[0]["seconds"] if program.turns else None,
        floors=tuple(each["floor"] for each in counted if "floor" in each),
        memory=max((each["memory"] for each in program.turns), default=None),
        values=values,
        version=hello.get("version", ""),
        problem=program.problem,
    )


def prediction(series: Series, one: Program, turns: int) -> Measurement:
    """What several devices would keep of the speed of one when gradients are summed, computed.

    Where that one is simulated, its step is that of `RATE` on blocks of 128³, two a device; else
    its own.

    Args:
        series: of the device.
        one: its program, that has had turns.
        turns: the last that count.
    """
    hello, shape = one.hello, series.shape(1)
    batch, edge = (BATCH, EDGE) if _is_simulated(one) else shape[:2]
    step = step_seconds(series, one, turns, batch * edge**3)
    sums = [of_sums(step, hello["gradient"], devices) for devices in counts(SIMULATED)]
    flops = hello["flops"] * batch * edge**3 / math.prod(shape)
    values = {"gradient_bytes": hello["gradient"], "predicted_step_flops": flops}
    for each in sums:
        values |= each
    return _predicted(series, one, f"{edge}³, batch {batch} a device", step, edge, batch, values)


def halo_prediction(
    series: Series, devices: int, one: Program, more: Program, turns: int
) -> Measurement:
    """The same when a scan of 256³ is split over four devices, which send each other planes.

    Args:
        series: of a mesh that splits depth over so many.
        devices: of that mesh.
        one: program of one device, that has had turns.
        more: program of the mesh.
        turns: the last of the former that count.
    """
    step = step_seconds(series, one, turns, WHOLE**3 // PARTS)
    rows = series.shape(devices)[0] // series.sizes(devices)[0]
    values = of_halos(step, more.hello["collectives"], series.edge, rows)
    return _predicted(series, one, f"{WHOLE}³ split over {PARTS}", step, WHOLE, 1, values)


def step_seconds(series: Series, one: Program, turns: int, voxels: int) -> float:
    """What a step on so many voxels takes one device: FLOPs, and time, grow with voxels.

    A simulated one is taken to reach `RATE`; of any other its own time counts.
    """
    per_step = (
        one.hello["flops"] / RATE
        if _is_simulated(one)
        else Spread.of([each["seconds"] for each in one.turns[-turns:]]).median
    )
    return per_step * voxels / math.prod(series.shape(1))


def _is_simulated(one: Program) -> bool:
    return bool(one.hello["platform"] == "cpu")


def _predicted(
    series: Series,
    one: Program,
    what: str,
    step: float,
    edge: int,
    batch: int,
    values: Mapping[str, float],
) -> Measurement:
    """What is computed of a step, whose case says where its time is from."""
    source = "217 TFLOP/s" if _is_simulated(one) else f"the measured {series.dtype} step"
    return Measurement(
        "scaling",
        f"{NETS[series.network].title}, {what}, {source} (predicted)",
        "voxtune",
        settings={"network": series.network, "block": edge, "batch": batch, "computed": True},
        values={"predicted_step_seconds": step, **values},
        version=one.hello.get("version", ""),
    )
