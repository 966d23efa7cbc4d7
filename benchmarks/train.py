"""Suite `train`: a training step of each network, beside other frameworks'.

A step is forward, backward, clipping and AdamW on one random batch that is on the device, without
augmentation. Each program has a process of its own (`own_training.py`, `peer.py`) with the same
network, weights, batch, loss and optimiser. That they compute the same is checked by the losses
before the first step and after it; then their turns count.
"""

import dataclasses
import itertools
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtune.benchmarks.device import device, environment
from voxtune.benchmarks.measurement import Measurement, Work
from voxtune.benchmarks.nets import NETS
from voxtune.benchmarks.program import Program, running, take_turns
from voxtune.engine import config

OWN = "voxtune"
# Program → kind of environment that it runs in.
PEERS = {
    "PyTorch": "torch",
    "PyTorch compiled": "torch",
    "Keras-TensorFlow": "keras",
    "Keras-JAX": "keras",
}
QUICK = 3  # turns
_FIRST = 2  # turns that do not count: the first compiles, the second warms up
# Largest difference of losses, as a share. Of float32 on a GPU, that multiplies in TF32; in
# bfloat16 frameworks round at different places.
_CLOSE = {("float32", "cpu"): 1e-4, ("float32", "gpu"): 1e-3}
_ROUGHLY = 2e-2


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Attributes:
        network: a key of `NETS`.
        block: shape, voxels.
        batch: blocks that each device takes a step.
        dtype: that is computed in.
        remat: whether levels are computed again instead of kept.
        map: `jit` for one device, `pmap` over all.
    """

    network: str
    block: tuple[int, int, int]
    batch: int
    dtype: str = "float32"
    remat: bool = False
    map: str = "jit"

    @property
    def title(self) -> str:
        """In words."""
        edges = "x".join(map(str, self.block))
        size = f"{self.block[0]}³" if len(set(self.block)) == 1 else edges
        parts = [NETS[self.network].title, size, f"batch {self.batch}", self.dtype]
        parts += ["remat"] * self.remat
        parts += ["pmap"] * (self.map == "pmap")
        return ", ".join(parts)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of `own_training.py`, after the file."""
        shape = map(str, (self.batch, *self.block))
        remat = ["--remat"] * self.remat
        return (self.dtype, "--shape", *shape, "--map", self.map, *remat)


# A case of each network, of which others differ in one thing each. The former are those that were
# measured before there was a history.
_BASE = {
    "cpu": {
        "unet": Case("unet", (32, 32, 32), 1),
        "meshnet": Case("meshnet", (40, 56, 40), 2),
    },
    "gpu": {name: Case(name, (128,) * 3, 2, "bfloat16") for name in NETS},
}
_VARIED: dict[str, tuple[dict[str, Any], ...]] = {
    "cpu": ({"dtype": "bfloat16"}, {"remat": True}, {"map": "pmap"}),
    "gpu": (
        {"block": (64,) * 3},
        {"block": (96,) * 3},
        {"dtype": "float32"},
        {"remat": True},
        {"map": "pmap"},
    ),
}
_TINY = {"cpu": (16,) * 3, "gpu": (32,) * 3}
_TINY_VARIED = {"unet": {"map": "pmap"}, "meshnet": {"dtype": "bfloat16"}}


def cases(given: config.Benchmark, platform: str) -> list[tuple[Case, bool]]:
    """What is to be measured, each with whether beside peers.

    Args:
        given: options.
        platform: of the device, `cpu` or as JAX names it.
    """
    kind = "cpu" if platform == "cpu" else "gpu"
    bases = [_BASE[kind][network] for network in given.networks]
    lists = (given.blocks, given.batches, given.dtypes, given.remats, given.maps)
    if any(lists):
        chosen = [case for base in bases for case in _combined(base, given)]
        return [(case, _has_peers(case, kind)) for case in chosen]
    found = []
    for base in bases:
        found.append((base, True))
        varied = _VARIED[kind]
        if given.quick:
            varied = ({"block": _TINY[kind], "batch": 1, **_TINY_VARIED[base.network]},)
        found += [(dataclasses.replace(base, **each), False) for each in varied]
    return found


def _combined(base: Case, given: config.Benchmark) -> Iterator[Case]:
    """Every combination of what is given; what is not is the base's."""
    values = itertools.product(
        [(edge,) * 3 for edge in given.blocks] or [base.block],
        given.batches or [base.batch],
        given.dtypes or [base.dtype],
        [each == "yes" for each in given.remats] or [base.remat],
        given.maps or [base.map],
    )
    yield from (Case(base.network, *each) for each in values)


def _has_peers(case: Case, kind: str) -> bool:
    """Whether frameworks have that too: on CPUs they have nothing to gain from bfloat16."""
    return not case.remat and case.map == "jit" and (kind == "gpu" or case.dtype == "float32")


def measure(given: config.Benchmark, peers: Mapping[str, Path]) -> Iterator[Measurement]:
    """Measures all cases.

    Args:
        given: options.
        peers: kind of environment → its interpreter.

    Raises:
        InputError: JAX finds no device.
        RuntimeError: a program broke.
    """
    turns = min(given.turns, QUICK) if given.quick else given.turns
    for case, beside in cases(given, device().platform):
        yield from _measured(case, peers if beside else {}, turns)


def _measured(case: Case, peers: Mapping[str, Path], turns: int) -> list[Measurement]:
    """Of one case; the first is voxtune's, whose problem is everyone's."""
    # Compilers that PyTorch has started may write there until they see that it has ended.
    place = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with place as folder, running() as programs:
        file = str(Path(folder) / "arrays.npz")
        own = Program.start(
            *(OWN, sys.executable, "own_training.py", case.network, file, *case.arguments),
            environment=environment(device().platform),
        )
        programs.append(own)
        own.load()
        for name, kind in PEERS.items():
            if kind in peers and not own.problem:
                peer = Program.start(
                    *(name, peers[kind], "peer.py", name, case.network, file, case.dtype),
                    environment=environment(own.hello["platform"]),
                )
                programs.append(peer)
                peer.load()
        take_turns(programs, 0, warm=_FIRST - 1)
        for peer in programs[1:]:
            if not peer.problem and (problem := difference(own, peer, case.dtype)):
                peer.problem = problem
                peer.end()
        take_turns(programs, turns - 1, warm=0)
        return [_measurement(case, own, each) for each in programs]


def difference(own: Program, peer: Program, dtype: str) -> str:
    """Why a peer is not measured, after the turns that do not count; empty where it is.

    Args:
        own: voxtune.
        peer: another program.
        dtype: of the case.
    """
    if own.problem:
        return f"nothing to compare with: {own.problem}"
    where, here = peer.hello["platform"], own.hello["platform"]
    if where != here:
        return f"it computes on the {where}, voxtune on the {here}"
    close = _CLOSE.get((dtype, here), _ROUGHLY)
    for mine, other in zip(own.turns, peer.turns, strict=True):
        if not abs(other["loss"] - mine["loss"]) <= close * abs(mine["loss"]):
            losses = f"{other['loss']:.6f} and {mine['loss']:.6f}"
            return f"does not compute what voxtune does: losses {losses}"
    return ""


def _measurement(case: Case, own: Program, program: Program) -> Measurement:
    """Of one program that has had its turns."""
    counted: Sequence[dict[str, Any]] = [] if program.problem else program.turns[_FIRST:]
    devices = own.hello.get("devices", 1)
    blocks = case.batch * devices
    made = Measurement(
        "train",
        case.title,
        program.name,
        settings={
            "network": case.network,
            "block": "x".join(map(str, case.block)),
            "batch": case.batch,
            "dtype": case.dtype,
            "remat": case.remat,
            "map": case.map,
            "devices": devices,
        },
        work=Work(blocks, blocks * math.prod(case.block), own.hello.get("flops", 0)),
        version=program.hello.get("version", ""),
        problem=program.problem,
    )
    if not counted:
        return made
    return dataclasses.replace(
        made,
        seconds=tuple(each["seconds"] for each in counted),
        first=program.turns[0]["seconds"],
        floors=tuple(each["floor"] for each in own.turns[_FIRST:]) if not own.problem else (),
        memory=max(each["memory"] for each in program.turns),
        values={"loss": program.turns[0]["loss"]},
    )
