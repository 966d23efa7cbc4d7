"""Which training steps are measured, and what is made of what programs say.

voxtune's own is measured for once, of a block of 8³. Peers are scripts that say what they are told.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.benchmarks import train
from voxtune.benchmarks.measurement import Measurement, ratio
from voxtune.benchmarks.nets import MAIN, NETS
from voxtune.benchmarks.peer import RATE
from voxtune.benchmarks.program import Program
from voxtune.engine.config import Benchmark
from voxtune.engine.machine import Device
from voxtune.models.families import abstract

# A peer that computes something else, one that breaks in its first step, one that is not there,
# and one that nobody compares.
PEER = f"""#!{sys.executable}
import json, sys

def say(**values):
    print(json.dumps(values), flush=True)

name = sys.argv[3]
if name == "Keras-TensorFlow":
    say(missing="No module named 'tensorflow'")
    sys.exit()
say(version=f"{{name}} 1.0", platform="cpu")
for turn in sys.stdin:
    if name == "PyTorch compiled":
        say(problem="torch.compile fails: no compiler")
        sys.exit()
    say(seconds=2.0, loss=7.0, memory=5)
"""


def titles(**options: Any) -> list[str]:
    given = Benchmark(networks=("unet",), **options)
    return [case.title for case, _ in train.cases(given, "cpu")]


def test_cases_on_a_cpu() -> None:
    base = "Nobrainer U-Net, 32³, batch 1"
    assert titles() == [
        f"{base}, float32",
        f"{base}, bfloat16",
        f"{base}, float32, remat",
        f"{base}, float32, pmap",
        "Nobrainer U-Net, 32³, batch 2, float32",
    ]
    assert titles(quick=True) == [
        f"{base}, float32",
        "Nobrainer U-Net, 16³, batch 1, float32, pmap",
    ]
    (meshnet, beside), *_ = train.cases(Benchmark(networks=("meshnet",)), "cpu")
    assert meshnet.title == "brainchop MeshNet, 40x56x40, batch 2, float32"
    assert beside


def test_cases_on_a_gpu_and_which_have_peers() -> None:
    found = train.cases(Benchmark(networks=("meshnet",)), "gpu")
    base = "brainchop MeshNet, 128³, batch 2"
    assert [case.title for case, beside in found if beside] == [f"{base}, bfloat16"]
    assert {case.title for case, beside in found if not beside} == {
        "brainchop MeshNet, 64³, batch 2, bfloat16",
        "brainchop MeshNet, 96³, batch 2, bfloat16",
        f"{base}, float32",
        f"{base}, bfloat16, remat",
        f"{base}, bfloat16, pmap",
    }


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_each_family_has_a_case_and_two_of_them_others(platform: str) -> None:
    found = [case for case, _ in train.cases(Benchmark(), platform)]
    assert {case.network for case in found} == {*NETS}
    others = [case for case in found if case.network not in MAIN]
    assert len(others) == len(NETS) - len(MAIN)
    for case in found:
        net = NETS[case.network].at(case.block)
        network = abstract(net.family, dict(net.arguments))
        assert not any(edge % network.min_multiple for edge in case.block)
    assert {case.network for case, _ in train.cases(Benchmark(quick=True), platform)} == {*MAIN}
    (only,) = train.cases(Benchmark(networks=("vnet",), quick=True), platform)
    assert only[0].network == "vnet"


def test_batches_are_varied_of_the_unet() -> None:
    found = train.cases(Benchmark(networks=MAIN), "gpu")
    assert {(case.network, case.batch) for case, _ in found} == {
        ("unet", 2),
        ("unet", 4),
        ("meshnet", 2),
    }


def test_who_has_which_network() -> None:
    assert train.peers_of("unet", "cpu") == tuple(train.PEERS)
    assert train.peers_of("unetr", "cpu") == ("Keras-TensorFlow",)
    assert train.peers_of("unetr", "gpu") == ("Keras-TensorFlow", "Keras-JAX")
    assert train.peers_of("vnet", "cpu") == train.peers_of("vnet", "gpu") == ()


def test_every_combination_of_what_is_given() -> None:
    given = Benchmark(blocks=(8, 16), dtypes=("bfloat16", "float32"), quick=True)
    found = train.cases(given, "cpu")
    assert len(found) == 2 * 2 * 2
    assert {(case.network, case.block, case.batch) for case, _ in found} == {
        *(("unet", (edge,) * 3, 1) for edge in (8, 16)),
        *(("meshnet", (edge,) * 3, 2) for edge in (8, 16)),
    }
    assert all(beside == (case.dtype == "float32") for case, beside in found)
    remats = train.cases(Benchmark(networks=("unet",), remats=("yes", "no")), "cpu")
    assert [(case.remat, beside) for case, beside in remats] == [(True, False), (False, True)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measurement]:
    python = tmp_path_factory.mktemp("peers") / "python"
    python.write_text(PEER)
    python.chmod(0o755)
    given = Benchmark(networks=("meshnet",), blocks=(8,), batches=(1,), turns=2)
    true = train.difference

    def difference(own: Program, peer: Program, dtype: str, folder: Path) -> str:
        return "" if peer.name == "Keras-JAX" else true(own, peer, dtype, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "difference", difference)
        measured = list(train.measure(given, {"torch": python, "keras": python}))
    return {each.program: each for each in measured}


def test_what_is_measured_of_voxtune(found: dict[str, Measurement]) -> None:
    own = found["voxtune"]
    assert own.suite == "train"
    assert own.case == "brainchop MeshNet, 8³, batch 1, float32"
    assert not own.problem
    assert "jax" in own.version
    assert len(own.seconds) == len(own.floors) == 2
    assert own.first is not None
    assert own.first > max(own.seconds)
    assert (own.work.blocks, own.work.voxels) == (1, 512)
    # Forward, input gradient and kernel gradient, but for the image's: 9 convolutions and the head.
    forward = 2 * 512 * (27 * (1 * 21 + 8 * 21 * 21) + 21 * 3)
    assert own.work.flops == 3 * forward - 2 * 512 * 27 * 21
    assert own.peak_share is not None
    assert 0 < own.peak_share.median < 1
    assert own.memory is not None
    assert own.memory > 2**26
    assert 0.5 < own.values["loss"] < 3


def test_what_is_measured_of_peers(found: dict[str, Measurement]) -> None:
    assert list(found) == ["voxtune", *train.PEERS]
    own, peer = found["voxtune"], found["Keras-JAX"]
    assert peer.seconds == (2.0, 2.0)
    assert (peer.memory, peer.version, peer.work) == (5, "Keras-JAX 1.0", own.work)
    gain = ratio(own, peer)
    assert gain is not None
    assert gain.median == pytest.approx(sum(2 / each for each in own.seconds) / 2)


def test_why_others_are_not(found: dict[str, Measurement]) -> None:
    assert found["PyTorch"].problem.startswith("does not compute what voxtune does: losses 7.0")
    assert found["PyTorch compiled"].problem == "torch.compile fails: no compiler"
    assert found["Keras-TensorFlow"].problem == "No module named 'tensorflow'"
    assert not any(found[name].seconds for name in list(train.PEERS)[:3])


def program(platform: str, *losses: float, name: str = "peer") -> Program:
    none: Any = None
    turns = [{"loss": loss} for loss in losses]
    return Program(name, none, {"platform": platform}, turns)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where voxtune, a peer and one that never steps have saved what a step made of two layers.

    And where voxtune has saved what they were before.
    """
    before = [np.zeros(1000, np.float32), np.zeros(20, np.float32)]
    after = [np.where(np.arange(each.size) % 2, RATE, -RATE) for each in before]
    rounded = [each.copy() for each in after]
    rounded[0][:9] *= -1
    rounded[1][:1] *= -1
    programs = {train.OWN: after, "peer": rounded, "never": before}
    for name, arrays in programs.items():
        np.savez(tmp_path / f"{name}.npz", *arrays, allow_pickle=False)
    named = {f"weight/arr_{number}": array for number, array in enumerate(before)}
    np.savez(tmp_path / "arrays.npz", allow_pickle=False, **named)
    return tmp_path


def test_losses_before_the_first_step_and_after_it_are_compared(folder: Path) -> None:
    def found(*losses: float) -> str:
        own = program("cpu", 2.0, 1.9, name=train.OWN)
        return train.difference(own, program("cpu", *losses), "float32", folder)

    assert found(2.0001, 1.9001) == ""
    assert "2.000500" in found(2.0005, 1.9)
    assert "1.900500" in found(2.0, 1.9005)
    assert "nan" in found(2.0, float("nan"))


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", "float32"), ("gpu", "exact")])
def test_what_a_step_makes_of_parameters_is_compared(
    folder: Path, platform: str, dtype: str
) -> None:
    """Losses of random networks tell little of their deepest levels."""
    own = program(platform, 2.0, 1.9, name=train.OWN)
    assert train.difference(own, program(platform, 2.0, 1.9), dtype, folder) == ""
    assert train.turned(folder, train.OWN, "peer") == pytest.approx(0.05)
    never = program(platform, 2.0, 1.9, name="never")
    assert "a layer's step differs in 100%" in train.difference(own, never, dtype, folder)
    # One layer's values in another order.
    with np.load(folder / f"{train.OWN}.npz") as arrays:
        large, small = arrays["arr_0"], arrays["arr_1"]
    np.savez(folder / "peer.npz", large, small[::-1], allow_pickle=False)
    assert train.difference(own, program(platform, 2.0, 1.9), dtype, folder)


def test_a_layer_that_no_program_moves_tells_nothing(folder: Path) -> None:
    """As one whose norm has a scale of zero."""
    for name in (train.OWN, "peer"):
        with np.load(folder / f"{name}.npz") as arrays:
            np.savez(folder / f"{name}.npz", arrays["arr_0"], np.zeros(20), allow_pickle=False)
    own, peer = program("cpu", 2.0, 1.9, name=train.OWN), program("cpu", 2.0, 1.9)
    problem = "cannot be compared: voxtune's first step moves nothing of arr_1"
    assert train.difference(own, peer, "float32", folder) == problem


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_timed_on_a_gpu_is_compared_roughly(dtype: str) -> None:
    own = program("gpu", 2.0, 1.9)
    nowhere = Path("nowhere")
    assert train.difference(own, program("gpu", 2.01, 1.9), dtype, nowhere) == ""
    assert train.difference(own, program("gpu", 2.1, 1.9), dtype, nowhere)


def test_programs_that_have_had_their_turns_are_compared_by_the_first() -> None:
    own = program("gpu", 2.0, 1.9, 1.5, 1.4)
    assert train.difference(own, program("gpu", 2.0, 1.9), "bfloat16", Path("nowhere")) == ""


def test_a_peer_on_another_device_is_no_peer() -> None:
    programs = program("gpu", 2.0), program("cpu", 2.0)
    problem = train.difference(*programs, "float32", Path("nowhere"))
    assert problem == "it computes on the cpu, voxtune on the gpu"


# On a GPU that is none, all programs. Those that LATER names find too little memory at first,
# those that NEVER names always, those that BREAKS names break, and PyTorch compiled is none that
# computes the same.
ON_GPU = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
import numpy as np

def say(**values):
    print(json.dumps(values), flush=True)

own = sys.argv[2].endswith("own_training.py")
name = "voxtune" if own else sys.argv[3]
file, dtype = sys.argv[4:6] if own else sys.argv[5:7]
with Path(os.environ["LOG"]).open("a") as log:
    log.write(f"{{name}} {{dtype}}\\n")
if name in os.environ.get("BREAKS", ""):
    sys.exit("a mistake")
if own:
    np.savez(file, **{{"weight/arr_0": np.ones(9)}})
np.savez(Path(file).with_name(f"{{name}}.npz"), np.full(9, 1.0 * (name == "PyTorch compiled")))
say(version="1.0", platform="gpu", devices=1, flops=1)
for turn in sys.stdin:
    tried = Path(f"{{file}}.{{name}}")
    short = name in os.environ["LATER"] and not tried.exists() or name in os.environ["NEVER"]
    if dtype != "exact" and short:
        tried.touch()
        say(problem="out of memory")
        sys.exit()
    say(seconds=1.0, loss=2.0, memory=5, floor=1.0)
"""


@pytest.fixture
def on_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], tuple[dict[str, Measurement], list[str]]]:
    """Measures a case; gives what was measured, and which programs were started in which dtype."""
    script, log = tmp_path / "python", tmp_path / "log"
    script.write_text(ON_GPU)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(train, "device", lambda: Device("some GPU", "gpu"))
    monkeypatch.setattr("voxtune.benchmarks.program.PAUSE", 0.0)
    monkeypatch.setenv("LOG", str(log))
    given = Benchmark(networks=("unet",), batches=(2,), turns=2)

    def measured(later: str, never: str) -> tuple[dict[str, Measurement], list[str]]:
        monkeypatch.setenv("LATER", later)
        monkeypatch.setenv("NEVER", never)
        found = list(train.measure(given, {"torch": script, "keras": script}))
        return {each.program: each for each in found}, log.read_text().splitlines()

    return measured


Measured = Callable[[str, str], tuple[dict[str, Measurement], list[str]]]


def test_on_a_gpu_programs_are_compared_exactly_before_they_are_timed(on_gpu: Measured) -> None:
    found, started = on_gpu("", "")
    everyone = [train.OWN, *train.PEERS]
    assert list(found) == everyone
    differs = "does not compute what voxtune does: a layer's step differs in 100%"
    assert found["PyTorch compiled"].problem == differs
    timed = [name for name in everyone if name != "PyTorch compiled"]
    assert started == [f"{name} exact" for name in everyone] + [
        f"{name} bfloat16" for name in timed
    ]
    for name in timed:
        assert len(found[name].seconds) == 2
        assert found[name].settings["interleaved"]


def test_programs_that_share_a_gpu_in_vain_are_alone_once(on_gpu: Measured) -> None:
    found, started = on_gpu("Keras-TensorFlow", "Keras-JAX")
    assert started[-2:] == ["Keras-TensorFlow bfloat16", "Keras-JAX bfloat16"]
    assert started.count("voxtune bfloat16") == started.count("PyTorch bfloat16") == 1
    assert len(found["Keras-TensorFlow"].seconds) == 2
    assert found["Keras-JAX"].problem == "out of memory"
    interleaved = {name: each.settings["interleaved"] for name, each in found.items()}
    assert interleaved["PyTorch"]
    assert not interleaved["Keras-TensorFlow"]


def test_where_voxtune_cannot_share_a_gpu_nobody_does(on_gpu: Measured) -> None:
    found, _ = on_gpu("voxtune", "")
    shared = [name for name in found if name != "PyTorch compiled"]
    assert len(shared) == 4
    for name in shared:
        assert len(found[name].seconds) == 2
        assert not found[name].settings["interleaved"]
    found, _ = on_gpu("", "voxtune")
    assert found["voxtune"].problem == "out of memory"
    assert found["PyTorch"].problem == "nothing to compare with: out of memory"


def test_where_voxtune_breaks_no_peer_is_timed(
    on_gpu: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREAKS", "voxtune")
    found, started = on_gpu("", "")
    assert started == ["voxtune exact", "voxtune bfloat16"]
    assert found.pop("voxtune").problem == "broke: a mistake"
    assert list(found) == list(train.PEERS)
    for each in found.values():
        assert (each.problem, each.version) == ("nothing to compare with: broke: a mistake", "")
