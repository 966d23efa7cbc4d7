"""Suite `train`: a training step of each network, beside other frameworks'.

A step is forward, backward, clipping and AdamW on one random batch that is on the device, without
augmentation. Each program has a process of its own (`own_training.py`, `peer.py`) with the same
network, weights, batch, loss and optimiser. That they compute the same is checked by the losses
before the first step and after it, and by what that makes of each parameter, of kernels alone where
norms or attention undo biases (`voxtune.benchmarks.nets.compared`); then their turns count. Where
float32 is not exact, as on a GPU that multiplies in TF32, they first show that on a small batch, in
processes that compute exactly: what is computed in bfloat16 differs as much by rounding as by a
mistake.
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

import numpy as np

from voxtune.benchmarks.device import device, environment
from voxtune.benchmarks.environments import peer_environment
from voxtune.benchmarks.measurement import Measurement, Work
from voxtune.benchmarks.nets import MAIN, NETS
from voxtune.benchmarks.peer import EXACT, RATE, stepped
from voxtune.benchmarks.program import Program, running, take_turns
from voxtune.benchmarks.turns import OUT_OF_MEMORY
from voxtune.engine import config
from voxtune.models.errors import InputError

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
# Largest difference of losses, as a share, where float32 is exact; and where it is multiplied in
# TF32, or frameworks round to bfloat16 at different places.
_CLOSE = 1e-4
_ROUGHLY = 2e-2
# Largest share of an array of parameters that a step may move otherwise where float32 is exact.
# AdamW's first moves all alike, by the signs of gradients, of which rounding turns few; what is
# missing, or in another place, turns about half of those that it touches.
_TURNED = 0.1


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Attributes:
        network: a key of `NETS`.
        block: shape, voxels.
        batch: blocks that each device takes a step.
        dtype: that is computed in, `float32`, `bfloat16` or, to compare programs, `exact`.
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


# A case of each network, of which others of `MAIN` differ in one thing each. Those two are as they
# were measured before there was a history, the others such that a step takes seconds at most; of
# the one that halves a block five times, the norms need some voxels there.
_BASE = {
    "cpu": {
        **{name: Case(name, (32,) * 3, 1) for name in NETS},
        "meshnet": Case("meshnet", (40, 56, 40), 2),
        "bayesian_meshnet": Case("bayesian_meshnet", (24,) * 3, 1),
        "resenc_unet": Case("resenc_unet", (64, 64, 32), 1),
    },
    "gpu": {
        **{name: Case(name, (128,) * 3, 2, "bfloat16") for name in NETS},
        "unetr": Case("unetr", (96,) * 3, 2, "bfloat16"),
    },
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
_BATCH = {"cpu": {"batch": 2}, "gpu": {"batch": 4}}  # varied of the U-Net besides
_TINY = {"cpu": (16,) * 3, "gpu": (32,) * 3}
_TINY_VARIED = {"unet": {"map": "pmap"}, "meshnet": {"dtype": "bfloat16"}}


def cases(given: config.Benchmark, platform: str) -> list[tuple[Case, bool]]:
    """What is to be measured, each with whether beside peers.

    Args:
        given: options.
        platform: of the device, `cpu` or as JAX names it.
    """
    kind = "cpu" if platform == "cpu" else "gpu"
    varied = any((given.blocks, given.batches, given.dtypes, given.remats, given.maps))
    networks: Sequence[str] = given.networks or (MAIN if given.quick or varied else [*NETS])
    bases = [_BASE[kind][network] for network in networks]
    if varied:
        chosen = [case for base in bases for case in _combined(base, given)]
        return [(case, _has_peers(case, kind)) for case in chosen]
    found = []
    for base in bases:
        found.append((base, True))
        others = _varied(base.network, kind, given.quick) if base.network in MAIN else ()
        found += [(dataclasses.replace(base, **each), False) for each in others]
    return found


def _varied(network: str, kind: str, quick: bool) -> tuple[dict[str, Any], ...]:
    """In what the other cases of a network of `MAIN` differ from its base."""
    if quick:
        return ({"block": _TINY[kind], "batch": 1, **_TINY_VARIED[network]},)
    return (*_VARIED[kind], *[_BATCH[kind]] * (network == "unet"))


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


def peers_of(network: str, platform: str) -> tuple[str, ...]:
    """The peers that have a network.

    On CPUs Keras on JAX has those of `MAIN` alone: it is several times slower there.
    """
    if network in MAIN:
        return tuple(PEERS)
    if not NETS[network].keras:
        return ()
    return ("Keras-TensorFlow",) if platform == "cpu" else ("Keras-TensorFlow", "Keras-JAX")


def measure(given: config.Benchmark, peers: Mapping[str, Path]) -> Iterator[Measurement]:
    """Measures all cases.

    Args:
        given: options.
        peers: kind of environment → its interpreter.

    Raises:
        InputError: JAX finds no device, or a busy one.
    """
    turns = min(given.turns, QUICK) if given.quick else given.turns
    platform = device().platform
    refused: dict[str, dict[str, Program]] = {}
    for case, beside in cases(given, platform):
        names = peers_of(case.network, platform) if beside else ()
        pythons = {name: peers[PEERS[name]] for name in names if PEERS[name] in peers}
        if pythons and platform != "cpu" and case.network not in refused:
            refused[case.network] = _refused(case.network, pythons)
        yield from _measured(case, pythons, turns, refused.get(case.network, {}))


def _refused(network: str, pythons: Mapping[str, Path]) -> dict[str, Program]:
    """Peers that do not compute what voxtune does, with the problem; by their names.

    All of them where voxtune's breaks: nobody knows.

    Raises:
        InputError: voxtune finds no room even for this.
    """
    case = Case(network, _BASE["cpu"][network].block, 2, EXACT)  # a small one
    with _folder() as folder:
        found = _run(case, {OWN: Path(sys.executable), **pythons}, Path(folder), 0)
    own = found[OWN]
    if own.problem == OUT_OF_MEMORY:
        raise InputError(
            f"Not even {case.title} can be trained: {own.problem}; end what else uses the device."
        )
    if own.problem:
        lost = f"nothing to compare with: {own.problem}"
        none = dataclasses.replace(own, hello={}, turns=[], problem=lost)
        return {name: dataclasses.replace(none, name=name) for name in pythons}
    return {name: each for name, each in found.items() if each.problem}


def _measured(
    case: Case, pythons: Mapping[str, Path], turns: int, refused: Mapping[str, Program]
) -> list[Measurement]:
    """Of one case; the first is voxtune's, whose problem is everyone's.

    Programs that find too little memory on a GPU, which all of them share, try again alone. Where
    voxtune does, all do, as all are compared with it.
    """
    sharing = {OWN: Path(sys.executable)}
    sharing |= {name: each for name, each in pythons.items() if name not in refused}
    with _folder() as folder:
        found = _run(case, sharing, Path(folder), turns)
        alone: list[str] = []
        if device().platform != "cpu" and len(found) > 1:
            alone = [name for name, each in found.items() if each.problem == OUT_OF_MEMORY]
            alone = [*found] if OWN in alone else alone
        for name in alone:
            own = None if name == OWN else found[OWN]
            found |= _run(case, {name: sharing[name]}, Path(folder), turns, own)
    found |= refused
    return [
        _measurement(case, found[OWN], found[name], name not in alone)
        for name in (OWN, *pythons)
        if name in found
    ]


def _folder() -> tempfile.TemporaryDirectory[str]:
    """For what programs share.

    Compilers that PyTorch has started may write there until they see that it has ended.
    """
    return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def _run(
    case: Case, pythons: Mapping[str, Path], folder: Path, turns: int, own: Program | None = None
) -> dict[str, Program]:
    """Programs by name, each of which has had its turns or has a problem, and has ended.

    Args:
        case: what they train.
        pythons: program → its interpreter; those after voxtune start if that has no problem.
        folder: that they share; peers find there what voxtune wrote.
        turns: that count.
        own: voxtune, if that had its turns before.
    """
    with running() as programs:
        for name, python in pythons.items():
            if own is not None and own.problem:
                break
            programs.append(_start(case, name, python, folder))
            programs[-1].load()
            own = own or programs[0]
        assert own is not None
        take_turns(programs, 0, warm=_FIRST - 1)
        for peer in programs:
            if peer is not own and not peer.problem:
                peer.problem = difference(own, peer, case.dtype, folder)
                if peer.problem:
                    peer.end()
        take_turns(programs, turns - 1, warm=0)
        return {each.name: each for each in programs}


def _start(case: Case, name: str, python: Path, folder: Path) -> Program:
    """A program, which has to load."""
    platform, file = device().platform, str(folder / "arrays.npz")
    if name == OWN:
        variables = environment(platform)
        script = ("own_training.py", case.network, file, *case.arguments)
    else:
        variables = peer_environment(platform, folder)
        script = ("peer.py", name, case.network, file, case.dtype)
    return Program.start(name, python, *script, environment=variables)


def difference(own: Program, peer: Program, dtype: str, folder: Path) -> str:
    """Why a peer is not measured, after the turns that do not count; empty where it is.

    Args:
        own: voxtune.
        peer: another program.
        dtype: of the case.
        folder: where they saved their parameters after the first step.
    """
    if own.problem:
        return f"nothing to compare with: {own.problem}"
    where, here = peer.hello["platform"], own.hello["platform"]
    if where != here:
        return f"it computes on the {where}, voxtune on the {here}"
    exact = dtype == EXACT or (dtype, here) == ("float32", "cpu")
    close = _CLOSE if exact else _ROUGHLY
    for mine, other in zip(own.turns[:_FIRST], peer.turns, strict=True):
        if not abs(other["loss"] - mine["loss"]) <= close * abs(mine["loss"]):
            losses = f"{other['loss']:.6f} and {mine['loss']:.6f}"
            return f"does not compute what voxtune does: losses {losses}"
    if exact and (share := turned(folder, own.name, peer.name)) > _TURNED:
        return f"does not compute what voxtune does: a layer's step differs in {share:.0%}"
    if exact and (still := unmoved(folder)):
        return f"cannot be compared: voxtune's first step moves nothing of {still}"
    return ""


def turned(folder: Path, first: str, second: str) -> float:
    """Largest share of an array of parameters that the first steps of two programs moved otherwise.

    Args:
        folder: where they saved them.
        first: name of a program.
        second: of the other.
    """
    files = [stepped(str(folder / "arrays.npz"), name) for name in (first, second)]
    with np.load(files[0]) as one, np.load(files[1]) as other:
        near = [np.abs(one[name] - other[name]) <= RATE / 10 for name in one.files]
    return max(1 - float(each.mean()) for each in near)


def unmoved(folder: Path) -> str:
    """An array of parameters that voxtune's first step left as it was; empty where there is none.

    Of what lies before it a step tells nothing. Of AdamW's, which moves whatever has a gradient by
    the same, hardly less of a tiny one, that is an array whose gradient is zero throughout.

    Args:
        folder: where voxtune saved them before the step, and after it.
    """
    file = folder / "arrays.npz"
    with np.load(file) as before, np.load(stepped(str(file), OWN)) as after:
        for name in after.files:
            if (np.abs(after[name] - before[f"weight/{name}"]) <= RATE / 10).all():
                return name
    return ""


def _measurement(case: Case, own: Program, program: Program, interleaved: bool) -> Measurement:
    """Of one program that has had its turns, between those of others or alone."""
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
            "interleaved": interleaved,
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
        # Later ones of voxtune's hold the floor's matrices.
        memory=max(each["memory"] for each in program.turns[: _FIRST + 1]),
        values={"loss": program.turns[0]["loss"]},
    )
