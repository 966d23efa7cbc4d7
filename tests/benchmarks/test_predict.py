"""The suite `predict`: what is measured of programs, who takes turns, whether they agree."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from voxtune.benchmarks import predict, program
from voxtune.benchmarks.comparisons import figures_of
from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.measurement import Measurement, Work, ratio
from voxtune.benchmarks.nets import Net
from voxtune.benchmarks.predict import (
    NETWORKS,
    Case,
    agreement,
    alone,
    check_scan,
    difference,
    fit_together,
    mislabelled,
    prepare,
    scan_of,
    window_of,
    work_of,
)
from voxtune.benchmarks.predict_peer import OVERLAP
from voxtune.benchmarks.program import Program
from voxtune.engine.tiling import block_starts
from voxtune.models.errors import InputError


class Scripted(Program):
    """A program whose turns take what it is told, or have a problem."""

    def __init__(self, name: str, *seconds: float | str, platform: str = "cpu") -> None:
        hello = {"version": f"{name} 1", "platform": platform}
        super().__init__(name, None, hello)  # type: ignore[arg-type]  # it has no process
        self.script, self.limits, self.ended = list(seconds), list[float | None](), False

    def load(self, limit: float = 0) -> None:
        pass

    def let_go(self) -> None:
        pass

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
        labels = np.zeros((8, 8, 8), np.uint8)
        labels[0, 0, 0] = name == "MONAI"
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / f"{name}.nii.gz")
        np.save(tmp_path / f"{name}.npy", np.zeros(8))
    return Case("meshnet", "windows", 48, "cpu", tmp_path, turns=2)


def found(case: Case, *programs: Scripted) -> dict[tuple[str, str], Measurement]:
    """Part and program → what was measured of programs that have had all their turns."""
    for each in programs:
        while not each.problem and len(each.turns) < len(each.script):
            each.turn()
    measured = list(case._found(programs, apart=()))
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
    assert other.values == {"agreement": pytest.approx(511 / 512)}
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


@pytest.mark.parametrize(
    ("own", "peer", "whole", "compute"),
    [
        ((9, 1, 1), (2,), 5.0, 8.0),  # of those 5 s one may be reading and writing
        ((9, 1, 1), (50,), 5.0, None),  # or 25, as in its first turn
        ((9, 1, 1, 1), (6, 4.4), 4.4, 4.0),  # or three, the longest
        ((9, 1, 1, 1, 1), (1.2, 1.2, 1.2, 1.2), 1.2, 1.2),  # it hangs once
        ((9, 1, 4), (50, 4.9), 1.25, None),  # voxtune was slow in that round
        ((9, 6, 1), (50,), None, None),
    ],
)
def test_of_a_peer_that_was_stopped_a_bound_is_known(
    case: Case,
    own: tuple[float, ...],
    peer: tuple[float, ...],
    whole: float | None,
    compute: float | None,
) -> None:
    late = Scripted("MONAI", *peer, "stopped after 5 s")
    late.stopped = 5.0
    measured = found(case, Scripted("voxtune", *own), late)
    for part, least in (("end to end", whole), ("compute", compute)):
        expected = {} if least is None else {"least_ratio": pytest.approx(least)}
        assert measured[part, "MONAI"].values == expected


def test_no_bound_is_known_of_what_ran_apart_or_never_ended_a_turn(case: Case) -> None:
    own, peer = Scripted("voxtune", 9, 2, 4), Scripted("MONAI", "stopped after 900 s")
    peer.stopped = 900.0
    assert found(case, own, peer)["end to end", "MONAI"].values == {}
    late = Scripted("MONAI", 50, "stopped after 10 s")
    late.stopped = 10.0
    found(case, late)
    apart = case._found([own, late], apart=["MONAI"])
    assert all("least_ratio" not in each.values for each in apart)


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
    own.turn()
    peer.turn()
    alone(own, 2)
    assert own.ended
    assert own.limits == [None, predict.STARTING, predict.STARTING]
    alone(peer, 5, own)
    assert peer.limits == [None, 2 * predict.LATE, 2 * predict.LATE]
    assert peer.ended
    fast, soon = Scripted("voxtune", 0.1), Scripted("other", 0.1, 0.1)
    fast.turn()
    alone(soon, 1, fast)
    assert soon.limits == [program.SOONEST]


@pytest.fixture
def measured_of(
    case: Case, entry: Callable[..., Entry], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Entry]]:
    """Gives what is measured of programs that start one after the other: end of case → entry."""
    monkeypatch.setattr(predict, "PAUSE", 0)
    monkeypatch.setattr(program, "PAUSE", 0)

    def measured(*starting: Scripted) -> dict[str, Entry]:
        left = list(starting)

        def start(name: str, *arguments: object, **options: object) -> Scripted:
            assert left[0].name == name
            return left.pop(0)

        monkeypatch.setattr(Program, "start", start)
        place = entry().place
        made = [Entry(place, each) for each in case.measured({"torch": Path(sys.executable)})]
        assert not left
        assert all(each.ended for each in starting)
        return {name_of(each): each for each in made}

    return measured


def name_of(entry: Entry) -> str:
    measured = entry.measurement
    return f"{measured.program}, {measured.case.partition('32³, ')[2]}"


NAMES = ["voxtune, compute", "MONAI, compute", "voxtune, end to end", "MONAI, end to end"]
APART = [name + ", not beside voxtune" * name.startswith("MONAI") for name in NAMES]


def test_programs_that_fit_take_turns(measured_of: Callable[..., dict[str, Entry]]) -> None:
    found = measured_of(Scripted("voxtune", 9, 2, 4), Scripted("MONAI", 50, 6, 8))
    assert list(found) == NAMES
    assert len([each for each in figures_of(found.values()) if each.ratio]) == 2
    other = found["MONAI, end to end"].measurement
    assert (other.first, other.seconds, other.settings["interleaved"]) == (50, (6, 8), True)


def test_programs_that_do_not_fit_have_no_ratio(
    measured_of: Callable[..., dict[str, Entry]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "available_memory", lambda: 150)  # each takes 100
    found = measured_of(Scripted("voxtune", 9, 2, 4), Scripted("MONAI", 50, 6, 8))
    assert list(found) == APART
    assert not [each for each in figures_of(found.values()) if each.ratio]
    other = found[APART[-1]].measurement
    assert (other.seconds, other.settings["interleaved"]) == ((6, 8), False)


@pytest.mark.parametrize("again", [(50, 6, 8), ("out of memory",)])
def test_what_lacked_memory_beside_others_has_it_alone(
    measured_of: Callable[..., dict[str, Entry]], again: tuple[float | str, ...]
) -> None:
    lost = Scripted("MONAI", 50, 6, "out of memory")
    found = measured_of(Scripted("voxtune", 9, 2, 4), lost, Scripted("MONAI", *again))
    assert list(found) == APART
    assert not [each for each in figures_of(found.values()) if each.ratio]
    other = found[APART[-1]].measurement
    assert (other.seconds, other.problem) == (((6, 8), "") if len(again) > 1 else ((), again[0]))
    assert found[NAMES[0]].measurement.seconds == (1, 2)


def test_peers_are_not_compared_with_what_ran_without_them(
    measured_of: Callable[..., dict[str, Entry]],
) -> None:
    lost, peer = Scripted("voxtune", 9, "out of memory"), Scripted("MONAI", 50, 6, 8)
    found = measured_of(lost, peer, Scripted("voxtune", 9, 2, 4))
    assert list(found) == APART
    assert found[NAMES[0]].measurement.seconds == (1, 2)
    # Alone it has no more memory than alone.
    found = measured_of(Scripted("voxtune", "out of memory"), Scripted("MONAI", 50, 6, 8))
    assert found[NAMES[0]].measurement.problem == "out of memory"


def test_where_voxtune_breaks_peers_are_measured(
    measured_of: Callable[..., dict[str, Entry]],
) -> None:
    found = measured_of(Scripted("voxtune", 9, "broke: a mistake"), Scripted("MONAI", 50, 6, 8))
    assert list(found) == NAMES
    assert found[NAMES[0]].measurement.problem == "broke: a mistake"
    assert found[NAMES[1]].measurement.seconds == (3, 4)
    assert not [each for each in figures_of(found.values()) if each.ratio]


def test_a_peer_that_labels_otherwise_is_not_timed(
    case: Case, measured_of: Callable[..., dict[str, Entry]]
) -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[0, 0] = 1
    nib.save(nib.Nifti1Image(labels, np.eye(4)), case.folder / "MONAI.nii.gz")
    peer = Scripted("MONAI", 50, 6, 8)
    found = measured_of(Scripted("voxtune", 9, 2, 4), peer)
    problem = "does not compute what voxtune does: 98.4 % of labels agree"
    assert found[NAMES[1]].measurement.problem == problem
    assert len(peer.turns) == 1
    assert mislabelled(case.folder, "MONAI", "gpu") == ""
    (case.folder / "voxtune.nii.gz").unlink()
    assert mislabelled(case.folder, "MONAI", "cpu") == ""


def test_work_is_counted_by_hand() -> None:
    layers = 27 * 21 + 8 * 27 * 21 * 21 + 21 * 18  # multiplications a voxel
    assert work_of(NETWORKS["meshnet"], 96, 0) == Work(1, 96**3, 2 * layers * 96**3)
    assert work_of(NETWORKS["meshnet"], 96, 64) == Work(1, 96**3, 8 * 2 * layers * 64**3)


def test_windows_are_smaller_than_the_scan_and_suit_the_networks() -> None:
    assert [window_of(edge) for edge in (48, 64, 96, 128, 256)] == [32, 48, 64, 96, 176]
    for edge in range(48, 513, 16):
        window = window_of(edge)
        assert block_starts(edge, window, OVERLAP) == [0, edge - window]
        assert edge - window < int(window * (1 - OVERLAP)) + 1  # or MONAI has one in between


def test_a_scan_that_programs_would_pad_is_refused() -> None:
    check_scan(48)
    for edge in (32, 100):
        with pytest.raises(InputError, match=f"--scan {edge} "):
            check_scan(edge)


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
    prepare(NETWORKS["meshnet"], 48, tmp_path, checked=True)
    case = Case("meshnet", "windows", 48, "cpu", tmp_path, turns=1)
    compute, whole = case.measured({})
    for each in (compute, whole):
        assert each.problem == ""
        assert len(each.seconds) == len(each.floors) == 1
        assert each.memory is not None
        assert each.settings["interleaved"]
    assert 0 < compute.seconds[0] < whole.seconds[0]
    assert agreement(tmp_path, "voxtune", "voxtune") == 1
    found: Any = nib.load(tmp_path / "voxtune.nii.gz")
    assert found.shape == (48, 48, 48)
    probabilities = np.load(tmp_path / "voxtune.npy")
    assert probabilities.shape == (32, 32, 32, 1)
    assert 0 < probabilities.min() < probabilities.max() < 1
