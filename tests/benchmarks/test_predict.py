"""The suite `predict`: what is measured of programs, who takes turns, whether they agree."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from voxtune.benchmarks import predict
from voxtune.benchmarks.measurement import Measurement, Work, ratio
from voxtune.benchmarks.nets import Net
from voxtune.benchmarks.predict import (
    NETWORKS,
    Case,
    agreement,
    alone,
    difference,
    fit_together,
    measure,
    prepare,
    scan_of,
    window_of,
    work_of,
)
from voxtune.benchmarks.program import Program
from voxtune.engine.config import Benchmark
from voxtune.engine.machine import Device
from voxtune.models.errors import InputError


class Scripted(Program):
    """A program whose turns take what it is told, or have a problem."""

    def __init__(self, name: str, *seconds: float | str, platform: str = "cpu") -> None:
        hello = {"version": f"{name} 1", "platform": platform}
        super().__init__(name, None, hello)  # type: ignore[arg-type]  # it has no process
        self.script, self.limits, self.ended = list(seconds), list[float | None](), False

    def turn(self, limit: float | None = None) -> None:
        self.limits.append(limit)
        said = self.script[len(self.turns)]
        if isinstance(said, str):
            self.problem = said
        else:
            told = {"seconds": said, "compute": said / 2, "memory": 100 + len(self.turns)}
            self.turns.append(told | ({"floor": 10 * said} if self.name == "voxtune" else {}))

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def case(tmp_path: Path) -> Case:
    for name in ("voxtune", "MONAI"):
        labels = np.zeros((4, 4, 4), np.uint8)
        labels[0, 0, 0] = name == "MONAI"
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / f"{name}.nii.gz")
    return Case("meshnet", "windows", 48, "cpu", tmp_path, turns=2)


def found(case: Case, *programs: Scripted) -> dict[tuple[str, str], Measurement]:
    """Part and program → what was measured of programs that have had all their turns."""
    for each in programs:
        while not each.problem and len(each.turns) < len(each.script):
            each.turn()
    measured = list(case._found(programs, together=True))
    assert [each.program for each in measured] == [each.name for each in programs] * 2
    return {(str(each.settings["part"]), each.program): each for each in measured}


def test_both_parts_have_the_seconds_of_the_turns_that_count(case: Case) -> None:
    measured = found(case, Scripted("voxtune", 99, 9, 2, 4), Scripted("MONAI", 50, 6, 8))
    own, other = measured["end to end", "voxtune"], measured["end to end", "MONAI"]
    assert (own.seconds, own.first, own.floors, own.memory) == ((2, 4), 99, (20, 40), 103)
    assert (other.seconds, other.first, other.floors) == ((6, 8), 50, ())
    assert measured["compute", "voxtune"].seconds == (1, 2)
    assert measured["compute", "MONAI"].first == 25
    assert (
        own.case == other.case == "brainchop MeshNet, 18 classes, 48³ by windows of 32³, end to end"
    )
    assert measured["compute", "MONAI"].case.endswith("32³, compute")
    between = ratio(own, other)
    assert between is not None
    assert between.median == pytest.approx(2.5)
    assert other.values == {"agreement": pytest.approx(63 / 64)}
    assert other.version == "MONAI 1"
    assert own.peak_share is not None


def test_a_program_with_a_problem_has_no_figures(case: Case) -> None:
    measured = found(case, Scripted("voxtune", 9, 2, 4), Scripted("MONAI", 50, "out of memory"))
    for part in ("compute", "end to end"):
        other = measured[part, "MONAI"]
        assert (other.problem, other.seconds, dict(other.values)) == ("out of memory", (), {})
        assert measured[part, "voxtune"].seconds
    alone = found(case, Scripted("voxtune", "out of memory"), Scripted("MONAI", 50, 6, 8))
    assert alone["compute", "MONAI"].seconds == (3, 4)
    assert not alone["compute", "MONAI"].values


def test_what_a_peer_computes_is_compared_first(tmp_path: Path) -> None:
    other = Scripted("other")
    assert difference(other, "cpu", tmp_path) == "nothing to compare with"
    np.save(tmp_path / "voxtune.npy", np.zeros((2, 2, 2, 1)))
    np.save(tmp_path / "other.npy", np.full((2, 2, 2, 1), 5e-4))
    assert difference(other, "cpu", tmp_path) == ""
    assert "on the cpu, voxtune on the gpu" in difference(other, "gpu", tmp_path)
    for value in (2e-3, np.nan):
        np.save(tmp_path / "other.npy", np.full((2, 2, 2, 1), value))
        assert difference(other, "cpu", tmp_path).startswith("does not compute what voxtune does")


def test_programs_take_turns_where_all_fit_into_memory() -> None:
    own = Scripted("voxtune", 1.0)
    own.turn()  # with 100 bytes
    assert fit_together(own, 3, free=300)
    assert not fit_together(own, 3, free=299)
    assert fit_together(own, 3, free=None)
    lost = Scripted("voxtune", "out of memory")
    lost.turn()
    assert not fit_together(lost, 2, free=300)
    assert fit_together(lost, 1, free=300)


def test_alone_a_late_peer_is_stopped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "PAUSE", 0)
    own, peer = Scripted("voxtune", 60.0, 2.0, 3.0), Scripted("other", 60.0, 2.0, "stopped", 2.0)
    alone(own, 2)
    assert own.ended
    assert set(own.limits) == {predict.STARTING}
    alone(peer, 5, own)
    assert peer.limits == [predict.STARTING, 2 * predict.LATE, 2 * predict.LATE]
    assert peer.ended


def test_work_is_counted_by_hand() -> None:
    layers = 27 * 21 + 8 * 27 * 21 * 21 + 21 * 18  # multiplications a voxel
    assert work_of(NETWORKS["meshnet"], 96, 0) == Work(1, 96**3, 2 * layers * 96**3)
    assert work_of(NETWORKS["meshnet"], 96, 64) == Work(1, 96**3, 8 * 2 * layers * 64**3)


def test_windows_are_smaller_than_the_scan_and_suit_the_networks() -> None:
    assert [window_of(edge) for edge in (32, 48, 96, 128, 256)] == [16, 32, 64, 80, 128]


def test_a_scan_that_programs_would_pad_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "device", lambda: Device("cpu", "cpu"))
    for edge in (16, 100):
        with pytest.raises(InputError, match=f"--scan {edge} "):
            next(measure(Benchmark(scan=edge), {}))


def test_the_scan_has_structures_of_all_intensities() -> None:
    scan = scan_of(40)
    assert scan.shape == (40, 40, 40)
    assert scan.dtype == np.int16
    assert 20 < scan.std() < 200


def test_voxtune_predicts_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"filters": 2, "dilations": (1, 2), "outputs": 1, "norm": None}
    monkeypatch.setitem(NETWORKS, "meshnet", Net("small", "meshnet", small))
    prepare(NETWORKS["meshnet"], 32, tmp_path, checked=True)
    case = Case("meshnet", "windows", 32, "cpu", tmp_path, turns=1)
    compute, whole = case.measured({})
    for each in (compute, whole):
        assert each.problem == ""
        assert len(each.seconds) == len(each.floors) == 1
        assert each.memory is not None
        assert each.settings["interleaved"]
    assert 0 < compute.seconds[0] < whole.seconds[0]
    assert agreement(tmp_path, "voxtune", "voxtune") == 1
    found: Any = nib.load(tmp_path / "voxtune.nii.gz")
    assert found.shape == (32, 32, 32)
    probabilities = np.load(tmp_path / "voxtune.npy")
    assert probabilities.shape == (32, 32, 32, 1)
    assert 0 < probabilities.min() < probabilities.max() < 1
