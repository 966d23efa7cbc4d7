"""Which training steps are measured, and what is made of what programs say.

voxtune's own is measured for once, of a block of 8³. Peers are scripts that say what they are told.
"""

import sys
from typing import Any

import pytest

from voxtune.benchmarks import train
from voxtune.benchmarks.measurement import Measurement, ratio
from voxtune.benchmarks.program import Program
from voxtune.engine.config import Benchmark

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

    def difference(own: Program, peer: Program, dtype: str) -> str:
        return "" if peer.name == "Keras-JAX" else true(own, peer, dtype)

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


def program(platform: str, *losses: float) -> Program:
    none: Any = None
    turns = [{"loss": loss} for loss in losses]
    return Program("some", none, {"platform": platform}, turns)


def test_losses_before_the_first_step_and_after_it_are_compared() -> None:
    own = program("cpu", 2.0, 1.9)
    assert train.difference(own, program("cpu", 2.0001, 1.9001), "float32") == ""
    assert "2.000500" in train.difference(own, program("cpu", 2.0005, 1.9), "float32")
    assert "1.900500" in train.difference(own, program("cpu", 2.0, 1.9005), "float32")
    assert "nan" in train.difference(own, program("cpu", 2.0, float("nan")), "float32")


def test_how_close_losses_have_to_be() -> None:
    own, other = program("gpu", 2.0, 1.9), program("gpu", 2.001, 1.9)
    assert train.difference(own, other, "float32") == ""
    assert train.difference(own, program("gpu", 2.01, 1.9), "float32")
    assert train.difference(own, program("gpu", 2.01, 1.9), "bfloat16") == ""
    assert train.difference(own, program("gpu", 2.1, 1.9), "bfloat16")


def test_a_peer_on_another_device_is_no_peer() -> None:
    problem = train.difference(program("gpu", 2.0), program("cpu", 2.0), "float32")
    assert problem == "it computes on the cpu, voxtune on the gpu"
