"""The suite `scaling`: meshes and their work, what is told of them, and what is predicted."""

from typing import Any

import pytest

from voxtune.benchmarks import program as programs
from voxtune.benchmarks import scaling
from voxtune.benchmarks.device import Devices
from voxtune.benchmarks.program import Program
from voxtune.benchmarks.scaling import (
    Series,
    counts,
    halo_prediction,
    measurement,
    prediction,
    series_of,
    turns_of,
)
from voxtune.benchmarks.scaling_prediction import of_halos, of_sums
from voxtune.engine.config import Benchmark
from voxtune.engine.machine import Device

WEAK = Series("unet", 16, 2, "float32")
DEEP = Series("meshnet", 16, 1, "float32", split="spatial", grows=False)


def program(seconds: list[float], **hello: Any) -> Program:
    """One that has had turns, the first of which does not count."""
    sent = {"all_reduce": 2, "all_reduce_bytes": 80, "all_gather": 0}
    sent |= {"collective_permute_bytes": 100}
    told = {"version": "1", "compiled": 3.0, "flops": 2**20, "collectives": sent, "gradient": 60}
    process: Any = None
    turns = [{"seconds": each, "memory": 5} for each in (9.0, *seconds)]
    return Program("voxtune", process, {**told, "platform": "cpu", **hello}, turns)


def test_meshes_grow() -> None:
    assert [WEAK.mesh(n) for n in (1, 8)] == ["data=1", "data=8"]
    assert [WEAK.shape(n) for n in (1, 8)] == [(2, 16, 16, 16), (16, 16, 16, 16)]
    meshes = ["data=1,spatial=1", "data=1,spatial=2", "data=1,spatial=4", "data=2,spatial=4"]
    assert [DEEP.mesh(n) for n in (1, 2, 4, 8)] == meshes
    assert {DEEP.shape(n) for n in (1, 2, 4, 8)} == {(2, 64, 16, 16)}


def test_titles_tell_cases_apart() -> None:
    found = [each.title(n) for each in series_of(Benchmark(), "cpu", 8) for n in counts(8)]
    assert len(found) == len(set(found))
    assert "Nobrainer U-Net, 16³, batch 8, float32, jit, weak, data=8" in found


def test_devices_are_doubled_up_to_all() -> None:
    assert [counts(n) for n in (1, 2, 6, 8)] == [[], [2], [2, 4, 6], [2, 4, 8]]
    assert counts(8, quick=True) == [8]


def test_quick_is_one_network_and_no_strong_scaling() -> None:
    found = series_of(Benchmark(quick=True), "cpu", 8)
    assert all(each.network == "unet" and each.grows for each in found)
    assert [(each.map, each.split) for each in found] == [("jit", "data"), ("jit", "spatial")]
    assert found[1].shape(8) == (2, 32, 8, 8)
    (other,) = series_of(Benchmark(quick=True, networks=("meshnet",), maps=("pmap",)), "cpu", 8)
    assert (other.map, other.shape(8)) == ("pmap", (8, 16, 16, 16))


def test_quick_is_less_on_a_gpu_too() -> None:
    for network in ("unet", "meshnet"):
        (first, *_) = series_of(Benchmark(quick=True, networks=(network,)), "gpu", 2)
        assert (first.edge, first.dtype) == (64, "bfloat16")
    assert turns_of(Benchmark(quick=True), simulated=False) == 3


def test_turns_are_capped() -> None:
    assert [turns_of(Benchmark(turns=n), simulated=True) for n in (1, 7)] == [1, 2]
    assert turns_of(Benchmark(quick=True), simulated=True) == 1
    assert [turns_of(Benchmark(turns=n), simulated=False) for n in (1, 7)] == [1, 7]


@pytest.mark.parametrize(("platform", "warm"), [("cpu", 0), ("gpu", 1)])
def test_turns_that_warm_up_do_not_count(
    platform: str, warm: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn takes its own number of seconds, ten times as many on two devices."""
    ended: list[str] = []

    def started(series: Series, devices: int, platform: str) -> Program:
        found = program([], platform=platform)
        found.name, found.turns = str(devices), []
        return found

    def turn(each: Program, limit: float | None = None) -> None:
        seconds = len(each.turns) * (10 if each.name == "2" else 1)
        each.turns.append({"seconds": float(seconds), "memory": 1})

    monkeypatch.setattr(programs, "PAUSE", 0.0)
    monkeypatch.setattr(scaling, "SIMULATED", 2)
    monkeypatch.setattr(scaling, "started", started)
    monkeypatch.setattr(scaling, "found_devices", lambda: Devices(Device("x", platform), 2))
    monkeypatch.setattr(Program, "load", lambda _: None)
    monkeypatch.setattr(Program, "turn", turn)
    monkeypatch.setattr(Program, "let_go", lambda _: None)
    monkeypatch.setattr(Program, "end", lambda each: ended.append(each.name))
    given = Benchmark(networks=("unet",), maps=("pmap",), turns=2)
    one, _, more = scaling.measure(given, {})
    assert one.seconds == (1.0 + warm, 2.0 + warm)
    assert more.seconds == (10 * (1.0 + warm), 10 * (2.0 + warm))
    beside = [2 + 2 * warm + 1 + each for each in (1, 2)]
    times = sum(2 * one / more for one, more in zip(beside, more.seconds, strict=True)) / 2
    name, share = ("efficiency", times / 2) if platform == "gpu" else ("rate_on_same_cores", times)
    assert more.values[name] == pytest.approx(share)
    assert {*ended} == {"1", "2"}


def test_a_gpu_alone_has_no_depth_to_split() -> None:
    found = series_of(Benchmark(networks=("unet",)), "gpu", 1)
    assert [(each.map, each.split) for each in found] == [("jit", "data"), ("pmap", "data")]
    assert (found[0].edge, found[0].batch, found[0].dtype) == (128, 2, "bfloat16")


@pytest.mark.parametrize(
    ("simulated", "wanted"), [(False, {"efficiency": 0.8}), (True, {"rate_on_same_cores": 6.4})]
)
def test_work_and_not_time_is_compared(simulated: bool, wanted: dict[str, float]) -> None:
    more, one = program([5.0, 10.0, 5.0]), [{"seconds": each} for each in (4.0, 8.0, 4.0)]
    found = measurement(WEAK, 8, simulated, more, 3, one)
    told = {"all_reduce": 2, "all_reduce_bytes": 80, "collective_permute_bytes": 100}
    assert found.values == pytest.approx({**told, **wanted})
    assert found.seconds == (5.0, 10.0, 5.0)
    assert found.work.blocks == 16
    assert found.first == 12.0
    assert found.settings["simulated"] is simulated


def test_strong_scaling_shares_the_work() -> None:
    found = measurement(DEEP, 4, False, program([1.0]), 1, [{"seconds": 4.0}])
    assert found.values["efficiency"] == 1.0


def test_a_problem_is_no_time() -> None:
    failed = program([])
    failed.problem = "out of memory"
    found = measurement(WEAK, 8, False, failed, 1, [{"seconds": 1.0}])
    assert (found.seconds, found.problem) == ((), "out of memory")


def test_sums_cost_what_a_ring_sends() -> None:
    found = of_sums(step=0.027, gradient=19_100_000, devices=8)
    sent = 2 * 19.1e6 * 7 / 8
    assert found["predicted_efficiency_8_ethernet"] == pytest.approx(
        0.027 / (0.027 + sent / 12.5e9)
    )
    assert 0.99 < found["predicted_efficiency_8_nvlink"] < 1


def test_planes_grow_with_the_square_of_the_edge() -> None:
    sent = {"collective_permute_bytes": 1000.0}
    found = of_halos(1.0, sent, edge=64, rows=2)
    assert found["predicted_halo_bytes_256"] == 8000
    assert found["predicted_efficiency_256_ndr"] == pytest.approx(1 / (1 + 8000 / 50e9))


def test_a_simulated_device_predicts_for_a_gpu() -> None:
    found = prediction(WEAK, program([1.0]), 1)
    flops = 2**20 * 2 * 128**3 / (2 * 16**3)
    assert found.values["predicted_step_seconds"] == pytest.approx(flops / 217e12)
    assert found.case == "Nobrainer U-Net, 128³, batch 2 a device, 217 TFLOP/s (predicted)"
    assert not found.seconds


def test_a_gpu_predicts_by_its_own_step() -> None:
    one = program([99.0, 1.0, 3.0, 2.0], platform="gpu")
    found = prediction(WEAK, one, 3)
    wanted = of_sums(2.0, 60, 4)
    assert wanted.items() <= found.values.items()
    title = "Nobrainer U-Net, 16³, batch 2 a device, the measured float32 step (predicted)"
    assert found.case == title


def test_planes_are_of_each_block_and_beside_the_same_step_as_sums() -> None:
    deep = Series("unet", 16, 3, "float32", split="spatial", grows=False)  # 6 blocks on any
    assert deep.shape(1) == (6, 64, 16, 16)
    own, voxels = 2**20 / 217e12, 6 * 64 * 16**2
    for platform, second, source in (
        ("cpu", own, "217 TFLOP/s"),
        ("gpu", 2.0, "the measured float32 step"),
    ):
        one, more = (program([99.0, 2.0], platform=platform) for _ in range(2))
        for devices, rows in ((4, 6), (8, 3)):
            found = halo_prediction(deep, devices, one, more, 1)
            sent, step = 100 * 16**2 / rows, second * 256**3 / 4 / voxels
            assert found.values["predicted_halo_bytes_256"] == pytest.approx(sent)
            share = step / (step + sent / 50e9)
            assert found.values["predicted_efficiency_256_ndr"] == pytest.approx(share)
            assert found.case == f"Nobrainer U-Net, 256³ split over 4, {source} (predicted)"
