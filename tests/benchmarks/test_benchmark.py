"""The command: what is refused, what is kept and compared, and how it ends; suites are made up."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from voxtune.benchmarks import benchmark as module
from voxtune.benchmarks import environments, history
from voxtune.benchmarks.benchmark import SUITES, place_of
from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.measurement import Measurement
from voxtune.engine.cli import main
from voxtune.engine.config import Benchmark
from voxtune.engine.machine import Device, Found, Machine
from voxtune.engine.page import page, write_page
from voxtune.models.errors import InputError

MACHINE = Machine(
    environment={},
    versions={"jax": "0.10.2", "voxtune": "0.1.0"},
    wanted={},
    python="3.12.1",
    cores=2,
    memory=2**34,
    shared=None,
    driver="",
    nvidia=False,
    cards=(),
    tpus=0,
    libraries=(),
    found=Found((Device("NVIDIA H200", "gpu"),), products={"float32": 1e11}, copy=1e10),
)
Called = list[tuple[str, dict[str, Path]]]


@dataclasses.dataclass
class Stub:
    """A suite that gives these measurements, and raises what is to be raised after them."""

    name: str
    called: Called
    measured: tuple[Measurement, ...] = ()
    error: BaseException | None = None

    def __call__(self, given: Benchmark, peers: Mapping[str, Path]) -> Iterator[Measurement]:
        self.called.append((self.name, dict(peers)))
        yield from self.measured
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def suites(
    monkeypatch: pytest.MonkeyPatch, entry: Callable[..., Entry]
) -> Callable[..., dict[str, Stub]]:
    """All suites, which measure voxtune in a case each, on a machine that is made up."""
    called: Called = []
    stubs = {}
    for name in SUITES:
        own = dataclasses.replace(entry().measurement, suite=name, case=f"case of {name}")
        stubs[name] = Stub(name, called, (own,))
        monkeypatch.setitem(SUITES, name, stubs[name])
    monkeypatch.setattr(module, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(module, "revision", lambda: "0123abcd")
    return stubs


@pytest.fixture
def called(suites: dict[str, Stub]) -> Called:
    """Which suites were begun, with which peers."""
    return suites["train"].called


def run(*arguments: str | Path) -> int:
    return main(["benchmark", *map(str, arguments)])


def kept(folder: Path) -> list[str]:
    return [each.measurement.case for each in history.read(folder)]


# What is measured


def test_suites_are_measured_in_order_and_once(
    called: Called, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", "train", "predict") == 0
    assert called == [("predict", {}), ("train", {})]
    said = capsys.readouterr().out
    assert said.startswith("1 x NVIDIA H200, 2 cores; voxtune 0123abcd\n")
    assert said.index("case of predict") < said.index("case of train")


def test_all_suites_are_measured_by_default_and_nothing_is_kept(
    called: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--quick") == 0
    assert [name for name, _ in called] == [*SUITES]
    assert not list(tmp_path.iterdir())


def test_peers_have_their_environments(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torch": Path("/peers/torch/bin/python")}
    monkeypatch.setattr(environments, "pythons", lambda console: there)
    assert run("train", "--peers") == 0
    assert called == [("train", there)]


def test_peers_that_cannot_be_made_end_it_before_anything_is_measured(
    called: Called, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(console: object) -> None:
        raise InputError("torch cannot be installed.")

    monkeypatch.setattr(environments, "pythons", fail)
    assert run("train", "--peers") == 2
    assert capsys.readouterr().err == "voxtune: torch cannot be installed.\n"
    assert called == []


# The history


def test_results_are_added_to_the_history_also_of_one_revision(tmp_path: Path) -> None:
    assert run("train", "data", "--history", tmp_path / "new" / "h") == 0
    assert run("train", "--history", tmp_path / "new" / "h") == 0
    assert kept(tmp_path / "new" / "h") == ["case of train", "case of data", "case of train"]
    (first, _, last) = history.read(tmp_path / "new" / "h")
    assert first == last
    assert first.place == place_of(MACHINE)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (InputError("no"), 2)])
def test_what_was_measured_before_it_is_stopped_is_kept(
    suites: dict[str, Stub], tmp_path: Path, error: BaseException, status: int
) -> None:
    suites["predict"].error = error
    assert run("train", "predict", "data", "--history", tmp_path) == status
    assert kept(tmp_path) == ["case of train", "case of predict"]
    assert [name for name, _ in suites["predict"].called] == ["train", "predict"]


def test_the_page_is_of_the_whole_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def write(entries: Sequence[Entry], path: Path) -> None:
        drawn.append(([each.measurement.case for each in entries], path))

    monkeypatch.setattr(module.throughput_page, "write", write)
    path = tmp_path / "h" / "index.html"
    assert run("train", "--history", path.parent) == 0
    assert run("data", "--history", path.parent, "--page", path) == 0
    assert drawn == [(["case of train", "case of data"], path)]


def slower(suites: dict[str, Stub], factor: float) -> None:
    (own,) = suites["train"].measured
    seconds = tuple(factor * each for each in own.seconds)
    suites["train"].measured = (dataclasses.replace(own, seconds=seconds),)


def test_check_compares_with_the_history(
    suites: dict[str, Stub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("train", "--history", tmp_path)
    slower(suites, 1.05)
    assert run("train", "--history", tmp_path, "--check") == 0
    said = capsys.readouterr().out
    total = "compared 1 of 1 figure of the history with this machine; nothing has fallen behind\n"
    assert said.endswith(total)
    slower(suites, 1.5)
    assert run("train", "--history", tmp_path, "--check") == 1
    assert "train, case of train:" in capsys.readouterr().out
    assert len(kept(tmp_path)) == 3  # what has fallen is kept as well
    assert run("train", "--history", tmp_path) == 0  # nobody asked


def test_a_figure_that_is_no_number_is_a_problem(
    suites: dict[str, Stub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what follows is measured."""
    (own,) = suites["train"].measured
    values = {"loss": float("nan"), "data_wait": 0.5}
    suites["train"].measured = (
        dataclasses.replace(own, values=values),
        dataclasses.replace(own, seconds=(float("inf"), 1.0, 1.0), first=0.0),
        own,
    )
    assert run("train", "--history", tmp_path) == 0
    said = capsys.readouterr().out
    assert "is not measured: gave a figure that is no number, or out of bounds: loss\n" in said
    assert "out of bounds: seconds, first\n" in said
    first, second, last = (each.measurement for each in history.read(tmp_path))
    assert first.problem.endswith("loss")
    assert first.seconds == second.seconds == ()
    assert last == own


@pytest.mark.parametrize(
    ("problem", "status"), [("broke: a mistake", 1), ("ended by signal 6", 1), ("out of memory", 0)]
)
def test_that_voxtune_breaks_is_told_at_the_end_and_fails(
    suites: dict[str, Stub], capsys: pytest.CaptureFixture[str], problem: str, status: int
) -> None:
    (own,) = suites["train"].measured
    peer = dataclasses.replace(own, program="peer", seconds=(), problem="broke: of others")
    suites["train"].measured = (dataclasses.replace(own, seconds=(), problem=problem), peer)
    assert run("train", "data") == status
    assert [name for name, _ in suites["data"].called] == ["train", "data"]
    said = capsys.readouterr().out
    assert f"voxtune is not measured: {problem}\n" in said
    assert said.endswith(f"\ntrain, case of train: voxtune {problem}\n") == bool(status)


def test_check_wants_something_to_compare_with_before_it_measures(
    called: Called,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("train", "--history", tmp_path, "--check") == 2
    run("train", "--history", tmp_path)
    other = dataclasses.replace(MACHINE, cores=64)
    monkeypatch.setattr(module, "this_machine", lambda: other)
    called.clear()
    capsys.readouterr()
    assert run("train", "--history", tmp_path, "--check") == 2
    assert capsys.readouterr().err == (
        f"voxtune: {tmp_path} has nothing to --check against on 1 x NVIDIA H200, 64 cores; run "
        "once without --check first.\n"
    )
    assert called == []


# What is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--check"], "--check and --page are of a history; name its folder with --history."),
        (["--page", "p.html"], "--check and --page are of a history"),
        (["--turns", "0"], "--turns 0 is too small; 1 is the least."),
        (["--blocks", "16", "-8"], "--blocks -8 is too small"),
        (["--batches", "0"], "--batches 0 is too small"),
        (["--scan", "0"], "--scan 0 is too small"),
        (["--scan", "100"], "--scan 100 is not a multiple of 16 voxels"),
        (["--blocks", "16", "20"], "--blocks 20: Nobrainer U-Net takes multiples of 8."),
        (
            ["train", "--networks", "unetr", "--blocks", "24"],
            "UNETR takes multiples of 16",
        ),
        (
            ["train", "--networks", "resenc_unet", "--blocks", "64", "32"],
            "--blocks 32: nnU-Net ResEnc leaves one voxel to the instance norms of its lowest "
            "resolution; give 64 or more.",
        ),
        (["--networks", "vnet"], "--networks vnet is of train, not of predict, scaling, compile;"),
        (["--store", "missing"], "missing is not a store: it has no store.json"),
        (["--history", "file"], "--history file is no folder, nor can it be made (File exists)"),
        (["--history", "h", "--page", "file"], "file must end in .html"),
        (["--history", "h", "--page", "other.html"], "other.html exists and is no page of a"),
        (["--history", "h", "--page", "no/p.html"], "there is no folder no."),
        (["--blocks", "8", "--blocks", "16"], "--blocks is given twice"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(
    called: Called,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("of somebody's")
    write_page(Path("other.html"), page("A run", [], []))
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert called == []


@pytest.mark.parametrize(
    ("arguments", "heeding"),
    [
        (["predict", "--blocks", "8"], "train, data, scaling, not of predict"),
        (["predict", "compile", "--batches", "8"], "train, data, scaling, not of predict, compile"),
        (["convert", "--dtypes", "bfloat16"], "train, data, scaling, not of convert"),
        (["data", "--maps", "jit"], "train, scaling, not of data"),
        (["scaling", "--remats", "no"], "train, not of scaling"),
        (["train", "--scan", "8"], "predict, not of train"),
        (["train", "--store", "s"], "data, not of train"),
        (["data", "--networks", "unet"], "train, predict, scaling, compile, not of data"),
    ],
)
def test_options_of_suites_that_are_not_measured_are_refused(
    called: Called, capsys: pytest.CaptureFixture[str], arguments: list[str], heeding: str
) -> None:
    assert run(*arguments) == 2
    said = f"voxtune: {arguments[-2]} is of {heeding}; leave it out, or measure what it is of.\n"
    assert capsys.readouterr().err == said
    assert called == []


def test_blocks_that_are_only_cut_may_be_of_any_size(called: Called) -> None:
    assert run("data", "--blocks", "20") == 0
    assert run("train", "--networks", "meshnet", "--blocks", "20") == 0
    assert run("train", "data", "--networks", "vnet") == 0  # data has no networks


def test_a_history_that_cannot_be_read_is_refused(called: Called, tmp_path: Path) -> None:
    (tmp_path / "cpu.jsonl").write_text("{}\n")
    assert run("train", "--history", tmp_path) == 2
    assert called == []


# Where and by what


def on(environment: Mapping[str, str] | None = None, **changes: Any) -> history.Place:
    return place_of(dataclasses.replace(MACHINE, environment=environment or {}, **changes))


def test_a_place_names_the_machine_and_what_it_has() -> None:
    found = on()
    assert (found.machine, found.revision) == ("1 x NVIDIA H200, 2 cores", "0123abcd")
    assert found.versions == {"python": "3.12.1", "jax": "0.10.2", "voxtune": "0.1.0"}
    assert (found.copy, found.products, found.flags) == (1e10, {"float32": 1e11}, {})
    assert on(cores=1.0).machine.endswith(", 1 core")
    assert on(cores=1.5).machine.endswith(", 1.5 cores")


@pytest.mark.parametrize(
    ("content", "machine"),
    [
        ("flags: sse\nmodel name\t: Intel(R) Xeon(R)  CPU @ 2.10GHz\n", "Intel Xeon CPU @ 2.10GHz"),
        ("processor: 0\n", "arm64"),
    ],
)
def test_a_cpu_is_named_as_itself(
    monkeypatch: pytest.MonkeyPatch, content: str, machine: str
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: content)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr(module, "revision", lambda: None)
    eight = Found((Device("cpu", "cpu"),) * 8)
    found = on(found=eight)
    assert found.machine == f"8 x {machine}, 2 cores"
    assert found.revision == "0.1.0"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ("--xla_gpu_autotune_level=4 --xla_foo", "--xla_gpu_autotune_level=4 --xla_foo"),
        ("--xla_dump_to=/home/me/dump --xla_a=true", "--xla_dump_to=... --xla_a=true"),
        ("'--xla_dump_to=/home/my dump' --xla_a=1", "--xla_dump_to=... --xla_a=1"),
        ("--xla_dump_to='dumps/a", "--xla_dump_to=..."),
        ("--xla_extra=a=b,c --xla_share=0.5", "--xla_extra=a=b,c --xla_share=0.5"),
        ("--coordinator=node1.lab.org:8080", "--coordinator=..."),
        ("/home/me/flags", "..."),
    ],
)
def test_places_and_hosts_are_left_out_of_flags(flags: str, shown: str) -> None:
    assert on({"XLA_FLAGS": flags, "HOME": "/home/me"}).flags == {"XLA_FLAGS": shown}


def test_flags_of_one_word_stay() -> None:
    words = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "NVIDIA_TF32_OVERRIDE": "0"}
    assert on({**words, "LIBTPU_INIT_ARGS": ""}).flags == words


def test_there_has_to_be_a_device() -> None:
    with pytest.raises(InputError, match=r"JAX finds no device \(no chip\); run 'voxtune doctor'"):
        on(found=Found(error="no chip"))


def test_this_process_leaves_the_device_to_others() -> None:
    code = (
        "from voxtune.benchmarks.benchmark import _check\n"
        "from voxtune.engine.config import Benchmark\n"
        "_check(Benchmark(blocks=(16,)))\n"
        "_check(Benchmark(('train',), networks=('graph',), blocks=(16,)))\n"
        "import jax\n"
        "jax.config.update('jax_platforms', 'none')\n"  # which devices that are in use do not heed
        "try:\n"
        "    print(jax.devices())\n"
        "except RuntimeError:\n"
        "    print('not used')\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "not used\n"
