"""The suite `predict`: whole scans, beside Keras in one pass and MONAI by windows.

Each framework has a process of its own (`predict_peer.py`) with the same network, weights and scan:
brainchop's MeshNet of 18 classes and Nobrainer's U-Net of one, with random weights. Two ways of
running them are measured:

- in one pass over the whole scan: `voxtune predict --block full`, and a Keras model, compiled;
- by windows that overlap by a quarter, weighted by a Gaussian: `voxtune predict`, and
  `sliding_window_inference` of MONAI.

"compute" is from the scaled image in the host's memory to the probabilities on the device, which
has finished them: they are not copied to the host. "end to end" is from one NIfTI file to another:
reading, scaling, computing, choosing classes on the device, copying labels and writing. That
programs compute the same is checked on a small cube first, and on the labels of the first turn.

Where not all programs have room beside one another, each has its turns alone. That is a case of its
own, which has no ratio: its times are minutes apart. So it is with a program that ran out of memory
beside others, which is measured once more. A peer that takes far longer than voxtune (`LATE`) is
stopped; what its turns until then say of its ratio is a lower bound, see `least_ratio`.
"""

import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import nibabel as nib
import numpy as np
from scipy import ndimage

from voxtune.benchmarks.comparisons import LEAST_RATIO
from voxtune.benchmarks.device import device, environment, keep_to_cpu
from voxtune.benchmarks.environments import peer_environment
from voxtune.benchmarks.measurement import Measurement, Work
from voxtune.benchmarks.nets import MAIN, NETS, Net, for_peers
from voxtune.benchmarks.predict_peer import CHECK, FILE, OVERLAP
from voxtune.benchmarks.program import PAUSE, SOONEST, STARTING, Program, running, take_turns
from voxtune.benchmarks.turns import OUT_OF_MEMORY
from voxtune.engine import config
from voxtune.engine.contract import Contract
from voxtune.engine.memory import available_memory
from voxtune.engine.model_dir import LabelClass, ModelSpec, write_model
from voxtune.engine.step import split
from voxtune.engine.tiling import tiles
from voxtune.models.errors import InputError
from voxtune.models.families import abstract, build
from voxtune.models.flops import flops
from voxtune.models.parameters import by_path

OWN = "voxtune"
NETWORKS = {
    "meshnet": dataclasses.replace(
        NETS["meshnet"],
        title="brainchop MeshNet, 18 classes",
        arguments={**NETS["meshnet"].arguments, "outputs": 18},
    ),
    "unet": dataclasses.replace(NETS["unet"], arguments={**NETS["unet"].arguments, "outputs": 1}),
}
# Way → program → kind of its environment.
PEERS: dict[str, dict[str, str]] = {
    "one pass": {"Keras-TensorFlow": "keras", "Keras-JAX": "keras"},
    "windows": {"MONAI": "torch"},
}
PARTS = {"compute": "compute", "end to end": "seconds"}  # of a turn → what programs call it
EDGES = {"cpu": (96, 48), "gpu": (256, 128)}  # of the scan, voxels; and of a quick one
MULTIPLE = 16  # of which edges are, so that no program has to pad
LEAST = 48  # edge of a scan, voxels, that is larger than its windows
QUICK_TURNS = 3
LATE = 5.0  # a peer is stopped that takes so many times as long as voxtune at its fastest
CLOSE = 1e-3  # of probabilities
AGREED = 0.99  # of labels, at least
AGREED_ROUGHLY = 0.95  # on a GPU, where MONAI's are of bfloat16


def measure(given: config.Benchmark, peers: Mapping[str, Path]) -> Iterator[Measurement]:
    """Measures each network in both ways.

    Raises:
        InputError: JAX finds no device.
    """
    keep_to_cpu()
    platform = device().platform
    edge = given.scan or EDGES.get(platform, EDGES["gpu"])[given.quick]
    turns = min(given.turns, QUICK_TURNS) if given.quick else given.turns
    for network in given.networks or MAIN:
        with tempfile.TemporaryDirectory() as place:
            prepare(NETWORKS[network], edge, Path(place), bool(peers))
            for way in PEERS:
                yield from Case(network, way, edge, platform, Path(place), turns).measured(peers)


def check_scan(edge: int) -> None:
    """Makes sure that all programs take a scan.

    Args:
        edge: of the scan, voxels.

    Raises:
        InputError: they do not.
    """
    if edge % MULTIPLE or edge < LEAST:
        raise InputError(
            f"--scan {edge} is not a multiple of {MULTIPLE} voxels, {LEAST} or more, as all "
            "networks and programs take it; give such an edge."
        )


@dataclasses.dataclass(frozen=True)
class Case:
    """A network that predicts a scan in one way.

    Attributes:
        network: a key of `NETWORKS`.
        way: a key of `PEERS`.
        edge: of the scan, voxels.
        platform: what computes, as JAX names it.
        folder: see `prepare`.
        turns: of each program that count.
    """

    network: str
    way: str
    edge: int
    platform: str
    folder: Path
    turns: int

    @property
    def window(self) -> int:
        """Edge of the windows, voxels; 0 for one pass."""
        return 0 if self.way == "one pass" else window_of(self.edge)

    @property
    def title(self) -> str:
        """In words."""
        way = f"by windows of {self.window}³" if self.window else "in one pass"
        return f"{NETWORKS[self.network].title}, {self.edge}³ {way}"

    def measured(self, peers: Mapping[str, Path]) -> Iterator[Measurement]:
        """All programs' measurements, of the computation and from end to end."""
        kinds = PEERS[self.way].items()
        pythons = {name: str(peers[kind]) for name, kind in kinds if kind in peers}
        free = available_memory()
        with running() as programs:
            own = self._added(programs, OWN, sys.executable)
            together = fit_together(own, 1 + len(pythons), own.hello.get("room") or free)
            if together:
                for name, python in pythons.items():
                    self._added(programs, name, python)
                take_turns(programs, self.turns - 1, warm=0, late=LATE)
                lost = lost_beside(programs)
                for each in programs:
                    each.end()
            else:
                alone(own, self.turns)
                lost = list(pythons)
            for name in lost:
                again = self._added(programs, name, {OWN: sys.executable, **pythons}[name])
                alone(again, self.turns, own)
        last = {each.name: each for each in programs}
        yield from self._found(list(last.values()), pythons if OWN in lost else lost)

    def _added(self, programs: list[Program], name: str, python: str) -> Program:
        """One more program, which does what voxtune does and has had a turn, or has a problem.

        That turn may compile, and does not count.
        """
        arguments = (name, self.network, str(self.folder), str(self.window))
        variables = environment(self.platform)
        if name != OWN:
            variables = peer_environment(self.platform, self.folder)
        program = Program.start(
            *(name, python, "predict_peer.py", *arguments), environment=variables
        )
        programs.append(program)
        program.load()
        if name != OWN and not program.problem:
            program.problem = difference(program, self.platform, self.folder)
        if not program.problem:
            program.turn(STARTING)
        if name != OWN and not program.problem:
            program.problem = mislabelled(self.folder, name, self.platform)
        if program.problem:
            program.end()
        return program

    def _found(self, programs: Sequence[Program], apart: Collection[str]) -> Iterator[Measurement]:
        """What was measured of programs, of which voxtune is the first.

        Args:
            programs: that have had their turns.
            apart: names of peers that have had them when voxtune had none.
        """
        own, *others = programs
        settings = {
            "network": self.network,
            "scan": self.edge,
            **({"window": self.window} if self.window else {}),
        }
        work = work_of(NETWORKS[self.network], self.edge, self.window)
        values = {
            peer.name: {"agreement": agreement(self.folder, own.name, peer.name)}
            for peer in others
            if not own.problem and not peer.problem
        }
        for part, key in PARTS.items():
            for program in programs:
                beside = program.name not in apart
                about: dict[str, Any] = {
                    "suite": "predict",
                    "case": f"{self.title}, {part}{'' if beside else ', not beside voxtune'}",
                    "program": program.name,
                    "settings": {**settings, "part": part, "interleaved": beside},
                    "work": work,
                    "version": program.hello.get("version", ""),
                }
                if program.problem:
                    least = least_ratio(own, program, key) if beside else {}
                    yield Measurement(**about, values=least, problem=program.problem)
                    continue
                last = program.turns[-self.turns :]
                yield Measurement(
                    **about,
                    seconds=tuple(each[key] for each in last),
                    first=program.turns[0][key],
                    floors=tuple(each["floor"] for each in last if "floor" in each),
                    memory=max(each["memory"] for each in program.turns),
                    values=values.get(program.name, {}),
                )


def least_ratio(own: Program, peer: Program, key: str) -> dict[str, float]:
    """How many times as fast voxtune is at least as a peer that was stopped; empty where it is not.

    It is the least of all rounds that count: of those that the peer finished its ratio, of the one
    in which it was stopped what it had at least taken until then.

    Args:
        own: voxtune, whose turn was first in each round.
        peer: that was stopped in a turn, after one that it had finished.
        key: of `PARTS`. What else belonged to the turn that was stopped is taken to have lasted as
            in the turn in which it lasted longest: an assumption.
    """
    if own.problem or peer.stopped is None or not peer.turns:
        return {}
    rest = max(each["seconds"] - each[key] for each in peer.turns)
    rounds = zip(own.turns[1:], peer.turns[1:], strict=False)  # voxtune has had more
    ratios = [theirs[key] / mine[key] for mine, theirs in rounds]
    least = min([*ratios, (peer.stopped - rest) / own.turns[len(peer.turns)][key]])
    return {LEAST_RATIO: least} if least > 1 else {}


def window_of(edge: int) -> int:
    """Edge of the windows over a scan, voxels: two thirds of it, or a little more.

    Two lie along each axis then, one at either end, in all programs: where there are more, voxtune
    spaces them evenly, MONAI all but the last.
    """
    return math.ceil(edge * 2 / 3 / MULTIPLE) * MULTIPLE


def fit_together(own: Program, programs: int, free: int | None) -> bool:
    """Whether so many programs can lie in memory beside one another, if all take as much as one.

    Args:
        own: that one, which has had a turn.
        programs: how many, with that.
        free: bytes that the device has, or on a CPU the machine; None where nobody knows.
    """
    if programs == 1 or free is None:
        return True
    return bool(own.turns) and programs * own.turns[-1]["memory"] <= free


def alone(program: Program, turns: int, own: Program | None = None) -> None:
    """Has a program take its turns without others, and ends it.

    Args:
        program: one that has had its first turn.
        turns: of it that count.
        own: the one that has had its turns, and that it is stopped after, if far too late.
    """
    fastest = min((each["seconds"] for each in own.turns), default=None) if own else None
    for _ in range(turns):
        if not program.problem:
            time.sleep(PAUSE)
            program.turn(max(LATE * fastest, SOONEST) if fastest else STARTING)
    program.end()


def lost_beside(programs: Sequence[Program]) -> list[str]:
    """Names of those for which others may have left too little memory.

    Args:
        programs: that were there together, after voxtune, the first, had had a turn alone.
    """
    own, *peers = programs
    tried = [own, *peers] if own.turns else peers
    return [each.name for each in tried if peers and each.problem == OUT_OF_MEMORY]


def difference(peer: Program, platform: str, folder: Path) -> str:
    """Why a peer is not measured: it does not do what voxtune does. Empty where it does."""
    if peer.hello["platform"] != platform:
        return f"it computes on the {peer.hello['platform']}, voxtune on the {platform}"
    if not (folder / f"{OWN}.npy").exists():
        return "nothing to compare with"
    expected, found = (np.load(folder / f"{name}.npy") for name in (OWN, peer.name))
    furthest = float(np.abs(found - expected).max())
    if furthest < CLOSE:
        return ""
    return f"does not compute what voxtune does: probabilities differ by {furthest:.1e}"


def mislabelled(folder: Path, name: str, platform: str) -> str:
    """Why a peer that has had a turn takes no more: its labels. Empty where they are voxtune's."""
    if not (folder / f"{OWN}.nii.gz").exists():
        return ""
    agreed = agreement(folder, OWN, name)
    if agreed >= (AGREED if platform == "cpu" else AGREED_ROUGHLY):
        return ""
    return f"does not compute what voxtune does: {100 * agreed:.1f} % of labels agree"


def agreement(folder: Path, first: str, second: str) -> float:
    """Share of voxels that two programs gave the same label."""
    one, other = (
        np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj)  # type: ignore[attr-defined]  # load is typed too widely
        for name in (first, second)
    )
    return float((one == other).mean())


def work_of(net: Net, edge: int, window: int) -> Work:
    """Of predicting one scan."""
    apply, params, statistics = split(abstract(net.family, dict(net.arguments)))
    image = jax.ShapeDtypeStruct((1, *(window or edge,) * 3, 1), np.float32)
    each = flops(lambda *given: apply(*given)[0], params, statistics, image)
    windows = len(tiles((edge,) * 3, (window,) * 3, OVERLAP)) if window else 1
    return Work(blocks=1, voxels=edge**3, flops=windows * each)


def prepare(net: Net, edge: int, folder: Path, checked: bool) -> None:
    """Writes what programs need: weights, model directory, scan, and if wanted a cube to check."""
    network = build(net.family, dict(net.arguments))
    outputs = net.arguments["outputs"]
    classes = tuple(LabelClass(value, f"class {value}") for value in range(max(2, outputs)))
    activation = "sigmoid" if outputs == 1 else "softmax"
    _, params, statistics = split(network)
    arrays = for_peers(net, params, statistics, activation)
    np.savez(folder / FILE, allow_pickle=False, **arrays)
    contract = Contract("RAS", (1.0, 1.0, 1.0), "minmax", (32, 32, 32))
    spec = ModelSpec(net.family, dict(net.arguments), activation, classes, contract)
    write_model(folder / "model", spec, by_path(network), history={})
    nib.save(nib.Nifti1Image(scan_of(edge), np.eye(4)), folder / "scan.nii.gz")
    if checked:
        np.save(folder / "check.npy", scan_of(CHECK).astype(np.float32) / 1000)


def scan_of(edge: int) -> np.ndarray:
    """Smooth structures with noise, int16 `[edge, edge, edge]`."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(max(2, edge // 16),) * 3)
    smooth = ndimage.zoom(coarse, edge / coarse.shape[0], order=1)
    noisy = 400 + 150 * smooth + rng.normal(scale=10, size=smooth.shape)
    return noisy.clip(0, 1000).astype(np.int16)
