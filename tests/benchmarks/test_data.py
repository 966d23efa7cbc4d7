"""The suite `data`: a store and files of the same scans, blocks from each place, and turns."""

import dataclasses
import json
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from voxtune.benchmarks import data, own_data
from voxtune.benchmarks import program as programs
from voxtune.benchmarks.data import LOOP, PLACES, Job, difference, job_of, measurement
from voxtune.benchmarks.program import Program
from voxtune.engine.config import Benchmark, Finetune
from voxtune.engine.machine import Device
from voxtune.engine.store import read_store
from voxtune.models.errors import InputError

TINY = Job(
    *(24, 2, 8, 2, 3, 8, 8, ("filters=2", "depth=1", "outputs=2"), ("disk",), 8),
    dtype="float32",
    turns=1,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What processes are told, with a store of two phantoms."""
    folder = tmp_path_factory.mktemp("data")
    path = data.made_store(folder, TINY)
    return data.write_job(TINY, folder, path, read_store(str(path)))


def test_scans_must_hold_the_blocks(file: Path) -> None:
    path = Path(json.loads(file.read_text())["store"])
    with pytest.raises(InputError, match="a scan of 24 voxels along an axis"):
        data.check(dataclasses.replace(TINY, edge=32), path, read_store(str(path)))


def test_files_hold_what_the_store_has(file: Path) -> None:
    about = json.loads(file.read_text())
    cases = read_store(about["store"]).cases
    assert len(about["images"]) == len(cases) == 2
    for case, image, label in zip(cases, about["images"], about["labels"], strict=True):
        load: Any = nib.load
        stored = np.asarray(case.image.stored[:, :, :])[..., 0]
        np.testing.assert_array_equal(np.asanyarray(load(image).dataobj), stored)
        np.testing.assert_array_equal(np.asanyarray(load(label).dataobj), case.label[:, :, :])


@pytest.mark.parametrize(("platform", "keeps"), [("cpu", True), ("gpu", False)])
def test_all_that_cut_on_a_cpu_keep_freed_memory(
    platform: str, keeps: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, str]] = []

    def start(*arguments: Any, environment: dict[str, str]) -> None:
        del arguments
        found.append(environment)
        if len(found) == len(PLACES) + 1 + len(data.MONAI):
            raise RuntimeError("all have started")

    monkeypatch.setattr(data, "device", lambda: Device("any", platform))
    monkeypatch.setattr(data.Program, "start", start)
    monkeypatch.setattr(data, "running", lambda: nullcontext([]))
    with pytest.raises(RuntimeError, match="all have started"):
        next(data._places(TINY, file, {"torch": Path("python")}, ""))
    for variables in found:
        assert (data.KEPT.items() <= variables.items()) == keeps


@pytest.mark.parametrize("way", ["disk", "host", "device", "loop"])
def test_each_way_takes_as_many_batches(
    way: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_data, "WARM", 1)
    monkeypatch.setattr(own_data, "LEAST", 1e-9)
    waited: list[Any] = []
    block = own_data.jax.block_until_ready
    monkeypatch.setattr(
        own_data.jax, "block_until_ready", lambda each: waited.append(block(each)) or each
    )
    with ExitStack() as stack:
        found = own_data.WAYS[way](json.loads(file.read_text()), stack)()
    assert found["seconds"] > 0
    assert found["memory"] > 0
    batches = [each for each in waited if not hasattr(each, "block_until_ready")][-4:]
    assert len(batches) == 1 + TINY.batches
    for each in batches:
        image, label = (each["image"], each["label"]) if isinstance(each, dict) else each
        assert image.shape[:4] == label.shape == (2, 8, 8, 8)


def test_short_turns_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, taken = [0.0], []

    def take(count: int) -> None:
        taken.append(count)
        clock[0] += 0.04 * count

    monkeypatch.setattr(own_data.time, "perf_counter", lambda: clock[0])
    found = own_data.timed(take, {"batches": 5})()
    assert taken == [own_data.WARM, 5, 5, 5]
    assert found["seconds"] == pytest.approx(0.2)


def test_waiting_is_of_all_lines_but_the_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finetune(config: Finetune, _: Any) -> None:
        assert (config.cache, config.workers, config.block) == ("disk", 2, (8, 8, 8))
        config.run_dir.mkdir()
        lines = [(1.0, 0.9), (2.0, 0.1), (1.0, 0.4)]
        (config.run_dir / "metrics.jsonl").write_text(
            "\n".join(
                json.dumps({"event": "train", "examples_per_second": rate, "data_wait": wait})
                for rate, wait in lines
            )
        )

    monkeypatch.setattr(own_data, "finetune", finetune)
    about = json.loads(file.read_text())
    about["finetune"] |= {"cache": "disk", "workers": 2}
    with ExitStack() as stack:
        found = own_data.trained(about, stack)()
    assert found["steps"] == [1.0, 2.0]
    assert found["data_wait"] == pytest.approx((0.1 * 1 + 0.4 * 2) / 3)


def test_a_peer_must_cut_the_same_blocks() -> None:
    hello = {"shape": [2, 1, 8, 8, 8], "types": ["float32", "uint8"]}
    assert not difference(TINY, hello)
    for other in ({"shape": [2, 1, 8, 8, 9]}, {"types": ["float32", "int64"]}):
        assert difference(TINY, hello | other).startswith("does not compute what voxtune does")


def test_every_place_is_compared_with_somebody() -> None:
    assert {name for _, names in PLACES.values() for name in names} == {LOOP, *data.MONAI}
    assert all(names for _, names in PLACES.values())


def test_the_first_turn_does_not_count() -> None:
    process: Any = None
    turns = [{"seconds": each, "memory": 7} for each in (9.0, 1.0, 2.0)]
    found = measurement(TINY, "host", "2 phantoms", Program("voxtune", process, {}, turns), "cpu")
    assert found.seconds == (1.0, 2.0)
    assert (found.work.blocks, found.work.voxels) == (6, 6 * 512)
    assert found.case == "8³, batch 2, of 2 phantoms, from host to the device (MONAI's to the host)"
    assert found.rate(found.work.blocks) == 4


def test_cases_say_where_blocks_end() -> None:
    process: Any = None
    own, monai = (Program(name, process) for name in (data.OWN, "MONAI's cache"))
    assert measurement(TINY, "host", "x", own, "gpu").settings["to"] == "device"
    assert measurement(TINY, "host", "x", monai, "gpu").settings["to"] == "host"
    assert measurement(TINY, "disk", "x", own, "gpu").case.endswith("from disk to the device")


def test_settings_say_which_programs_kept_freed_memory() -> None:
    process: Any = None
    for platform, kept in (("cpu", True), ("gpu", None)):
        found = measurement(TINY, "host", "x", Program(data.OWN, process), platform)
        assert found.settings.get("kept") is kept


SAID = {
    "seconds": 60.0,
    "memory": 7,
    "steps": [1.0, 2.0],
    "data_wait": 0.1,
    "profiles": {"light": 20.0},
}


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of programs that have ended, none of which is a process: all of them say `SAID`."""
    names: list[str] = []
    process: Any = None
    hello = {"shape": [2, 1, 8, 8, 9], "types": ["float32", "uint8"]}

    def start(name: str, *_: Any, **__: Any) -> Program:
        return Program(name, process, dict(hello))

    monkeypatch.setattr(programs, "PAUSE", 0.0)
    monkeypatch.setattr(data, "device", lambda: Device("cpu", "cpu"))
    monkeypatch.setattr(data, "keep_to_cpu", lambda: None)
    monkeypatch.setattr(Program, "start", start)
    monkeypatch.setattr(Program, "load", lambda _: None)
    monkeypatch.setattr(Program, "turn", lambda each, _=None: each.turns.append(SAID))
    monkeypatch.setattr(Program, "let_go", lambda _: None)
    monkeypatch.setattr(Program, "end", lambda each: names.append(each.name))
    return names


def test_cases_say_of_which_scans_and_in_what_they_compute(
    file: Path, ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "job_of", lambda *_: TINY)
    store = Path(json.loads(file.read_text())["store"])
    scans = "2 phantoms of 24³"
    for given, name in ((Benchmark(store=store), "2 scans of store"), (Benchmark(), scans)):
        found = list(data.measure(given, {}))
        assert f"of {name}, from" in found[0].case
        run, augmentation = found[-2:]
        assert run.case.endswith(f"8³, batch 2, float32, on {name}, from disk")
        assert run.settings["scans"] == name
        assert (run.first, run.seconds) == (None, (1.0, 2.0))
        assert run.values == {"data_wait": 0.1, "run_seconds": 60.0}
        assert augmentation.case == "augmentation light, 8³, batch 2, float32"
        assert augmentation.settings["dtype"] == "float32"
    assert ended


def test_a_peer_that_differs_ends(file: Path, ended: list[str]) -> None:
    running = data._places(TINY, file, {"torch": Path("python")}, "2 phantoms")
    found = [each for each in running if each.program in data.MONAI]
    assert all(each.problem.startswith("does not compute") for each in found)
    assert ended[:2] == list(data.MONAI)


def test_options_change_the_job() -> None:
    assert job_of(Benchmark(quick=True, turns=7), "cpu").turns == data.QUICK_TURNS
    found = job_of(Benchmark(blocks=(64,), batches=(3,), turns=5), "gpu")
    assert (found.edge, found.batch, found.dtype, found.turns) == (64, 3, "bfloat16", 5)
    assert dataclasses.replace(found, edge=128, batch=2, turns=7) == data.JOBS["gpu"]
