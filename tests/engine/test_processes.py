"""Several processes: how they find each other, that they compute what one does, and what becomes of
the others when one ends. Real processes of the real command, each with two simulated devices."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from voxtune.engine import processes
from voxtune.engine.cli import main
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec, read_model, write_model
from voxtune.engine.processes import LostError, gathered, join, leave, losses, tag
from voxtune.models.errors import InputError
from voxtune.models.parameters import shapes

PATIENCE = 100  # seconds: machines are loaded; below the two minutes that are promised
START = 400  # seconds, of all runs before that
DEVICES = "--xla_force_host_platform_device_count="
NAMES = ("data=4", "data=1,spatial=4", "pmap")
LONG = "long"

# Commands one after the other in the same process: its start takes longer than they do.
PROGRAM = """
import json, sys
from voxtune.engine.cli import entry, main
*first, last = json.loads(sys.argv[1])
for arguments in first:
    status = main(arguments)
    if status:
        sys.exit(f"{arguments} ended with {status}")
sys.argv = ["voxtune", *last]
entry()
"""

# One of two processes, in its second run; prints at which of its calls `Preemption.stops` is true
# first. The signal comes after some, and after what Orbax does in the first process once
# checkpoint 1 is written.
TOLD = """
import contextlib, os, signal, sys, time
from jax._src import distributed
from jax.experimental import multihost_utils
from voxtune.engine.preemption import Preemption
from voxtune.engine.processes import join, leave

how, rank, calls = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
join(how)
client = distributed.global_state.client
with Preemption() as preemption:  # a run before
    if calls:
        assert not preemption.stops()
with Preemption() as preemption:
    for _ in range(calls - 1):
        assert not preemption.stops()
    if rank == 0 and calls:
        with contextlib.suppress(RuntimeError):
            multihost_utils.reached_preemption_sync_point(1)
    client.wait_at_barrier("called", timeout_in_ms=100_000)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    while len(client.key_value_dir_get("PREEMPTION_CURRENT_COUNTER/")) < 2:
        time.sleep(0.01)
    more = range(calls + 1, calls + 10)
    print(next((each for each in more if preemption.stops()), "never"), flush=True)
leave()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with batch normalisation, `net`, and a table of three scans to train on and three
    to validate on, `subjects.csv`."""
    import nibabel as nib

    folder, rng = tmp_path_factory.mktemp("processes"), np.random.default_rng(0)
    arguments = {"channels": 1, "outputs": 2, "filters": 2, "dilations": [1], "activation": "elu"}
    arguments["norm"] = "batch"
    classes = (LabelClass(0, "background"), LabelClass(1, "lesion"))
    contract = Contract("RAS", (1.0, 1.0, 1.0), "zscore", (8, 8, 8), 0.5)
    spec = ModelSpec("meshnet", arguments, "softmax", classes, contract)
    usual = {"mean": 0.0, "bias": 0.0, "var": 1.0, "scale": 1.0}  # others are kernels
    values = {
        path: np.full(shape, usual.get(path.rpartition("/")[2], rng.normal(size=shape)))
        for path, shape in shapes("meshnet", arguments).items()
    }
    write_model(
        folder / "net",
        spec,
        {path: each.astype(np.float32) for path, each in values.items()},
        history={"creation": {}},
    )
    rows = ["subject,image,label,split"]
    for number in range(6):
        image = rng.normal(size=(8, 8, 8)).astype(np.float32)
        for name, data in (("", image), ("_label", (image > 0.3).astype(np.uint8))):
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{number}{name}.nii")
        split = "train" if number < 3 else "validation"
        rows.append(f"{number},{number}.nii,{number}_label.nii,{split}")
    (folder / "subjects.csv").write_text("\n".join(rows) + "\n")
    return folder


def command(folder: Path, name: str, *options: str) -> list[str]:
    """A run of six steps, called like its mesh, or `pmap`."""
    given = [str(folder / each) for each in ("net", "subjects.csv", name)]
    mesh = ["--map", "pmap"] if name == "pmap" else [] if name == LONG else ["--mesh", name]
    short = ["--batch", "4", "--steps", "6", "--log-every", "1", "--validate-every", "6"]
    rates = ["--trunk-lr", "1e-3", "--head-lr", "1e-3", "--head", "keep", "--warmup", "2"]
    return ["finetune", *given, *short, *rates, *mesh, *options]


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def started(folder: Path, commands: list[list[str]]) -> Iterator[list[subprocess.Popen]]:
    """Two processes that each run all of the commands; both are gone afterwards."""
    port = free_port()
    before, _, after = os.environ["XLA_FLAGS"].partition(f"{DEVICES}8")
    running = []
    for rank in range(2):
        together = ["--distributed", f"localhost:{port},{rank},2"]
        content = json.dumps([[*each, *together] for each in commands])
        with (folder / f"{rank}.log").open("w") as log:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, content],
                    env=os.environ
                    | {"XLA_FLAGS": f"{before}{DEVICES}2{after}", "PYTHONFAULTHANDLER": "1"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        yield running
    finally:
        for each in running:
            each.kill()
            each.wait()


def wait_until(true: Callable[[], Any], running: list[subprocess.Popen], folder: Path) -> None:
    """Returns once something is true, at the latest when a process ends."""
    until = time.monotonic() + START
    while not true():
        logs = "".join((folder / f"{rank}.log").read_text() for rank in range(2))
        assert all(each.poll() is None for each in running), logs
        assert time.monotonic() < until, logs
        time.sleep(0.05)


def statuses(running: list[subprocess.Popen], folder: Path) -> tuple[int, ...]:
    """Exit statuses; where one does not end in time, where all of its threads are is shown."""
    try:
        return tuple(each.wait(PATIENCE) for each in running)
    except subprocess.TimeoutExpired:
        for each in running:
            each.send_signal(signal.SIGABRT)  # Python's fault handler writes the stacks
            each.wait()
        logs = ((folder / f"{rank}.log").read_text() for rank in range(2))
        pytest.fail("\n".join(f"process {rank}:\n{log}" for rank, log in enumerate(logs)))


@dataclass(frozen=True)
class Ended:
    """How two processes of the run without end did.

    Attributes:
        told: exit statuses after SIGTERM to the second one.
        lost: of the first one, after the second one was killed.
        seconds: that it took then.
        said: what it said then.
    """

    told: tuple[int, ...]
    lost: int
    seconds: float
    said: str


@pytest.fixture(scope="module")
def ended(folder: Path) -> Ended:
    """Runs all, and in the last run, which has no end, tells the second of two processes to end;
    goes on with it, and kills the second one."""
    endless = command(folder, LONG, "--steps", "1000000", "--log-every", "100")
    saved = folder / LONG / "checkpoints"

    def steps() -> set[str]:
        return {each.parent.name for each in saved.glob("*/commit_success.txt")}

    with started(folder, [*(command(folder, each) for each in NAMES), endless]) as running:
        wait_until(steps, running, folder)
        running[1].send_signal(signal.SIGTERM)
        told = statuses(running, folder)
    before = steps()
    with started(folder, [["resume", str(folder / LONG)]]) as running:
        wait_until(lambda: steps() - before, running, folder)
        running[1].send_signal(signal.SIGKILL)
        began = time.monotonic()
        (lost,) = statuses(running[:1], folder)
    return Ended(told, lost, time.monotonic() - began, (folder / "0.log").read_text())


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The run of one process with four devices."""
    run = folder / "alone"
    arguments = command(folder, "data=4")
    arguments[3] = str(run)
    assert main(arguments) == 0
    return run


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    content = (run / "metrics.jsonl").read_text().splitlines()
    return [each for each in map(json.loads, content) if each["event"] == event]


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize("name", NAMES)
class TestTwoProcesses:
    """Of two devices each, and one process of four."""

    def test_the_losses_are_the_same(self, folder: Path, alone: Path, name: str):
        found, wanted = lines(folder / name, "train"), lines(alone, "train")
        assert [each["step"] for each in found] == [1, 2, 3, 4, 5, 6]  # each once: one process logs
        assert [each["loss"] for each in found] == pytest.approx(
            [each["loss"] for each in wanted], rel=1e-5
        )

    def test_the_parameters_are_the_same(self, folder: Path, alone: Path, name: str):
        found, wanted = (read_model(each / "model")[1] for each in (folder / name, alone))
        start = read_model(folder / "net")[1]
        for path, values in wanted.items():
            # A bias that feeds a batch normalisation has no gradient but rounding, which Adam
            # magnifies; it moves the running mean too.
            if path.endswith(("conv/bias", "norm/mean")):
                continue
            assert np.abs(values - start[path]).max() > 1e-4 * np.abs(values).max(), path
            assert np.abs(found[path] - values).max() <= 1e-5 * np.abs(values).max(), path

    def test_so_is_the_validation(self, folder: Path, alone: Path, name: str):
        """Of three scans, two of which the first process predicts."""
        (found,), (wanted,) = lines(folder / name, "validation"), lines(alone, "validation")
        assert found["dice"]["lesion"] > 0
        for metric in ("dice", "precision", "recall"):
            assert found[metric] == pytest.approx(wanted[metric], rel=1e-3)


def test_bad_input_is_said_by_each(folder: Path):
    """None of them is lost by the others, though process 0 ends what they talk by."""
    with started(folder, [command(folder, "data=2,spatial=2", "--batch", "3")]) as running:
        assert statuses(running, folder) == (2, 2)
    for rank in range(2):
        said = (folder / f"{rank}.log").read_text().splitlines()[-1]
        assert said.startswith(f"voxtune: process {rank}: A batch of 3 cannot be split")


class TestOneIsToldToEnd:
    def test_both_end_with_a_checkpoint(self, ended: Ended):
        assert ended.told == (75, 75)

    @pytest.mark.parametrize(
        ("calls", "last"),
        [
            pytest.param((0, 0), 1, id="before the first step, which may be any"),
            pytest.param((3, 2), 4, id="while the first is a step ahead, and writes a checkpoint"),
        ],
    )
    def test_both_end_after_the_same_step(self, calls: tuple[int, int], last: int):
        how = f"localhost:{free_port()}"
        running = [
            subprocess.Popen(
                [sys.executable, "-c", TOLD, f"{how},{rank},2", str(rank), str(calls[rank])],
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            assert [int(each.communicate(timeout=PATIENCE)[0]) for each in running] == [last] * 2
        finally:
            for each in running:
                each.kill()
                each.wait()


class TestOneIsKilled:
    def test_the_other_ends_soon_with_a_sentence(self, ended: Ended):
        # Where JAX's runtime hears of it first, it ends the process itself.
        assert ended.lost in (69, -signal.SIGABRT)
        assert ended.seconds < PATIENCE
        if ended.lost == 69:
            sentence = ended.said.splitlines()[-1]
            assert sentence.startswith("voxtune: process 0: another process of the run ended")
            assert "'voxtune resume " in sentence

    @pytest.mark.usefixtures("ended")
    def test_one_process_goes_on_from_its_checkpoint(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ):
        run = folder / LONG
        last = max(
            int(each.name) for each in (run / "checkpoints").iterdir() if each.name.isdigit()
        )
        more = ["--steps", str(last + 2), "--allow-change", "--mesh", "data=4"]
        assert main(["resume", str(run), *more]) == 0, capsys.readouterr().err
        assert lines(run, "train")[-1]["step"] == last + 2
        assert (run / "model" / "model.json").is_file()


# How they find each other


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("everywhere", "takes auto, slurm, k8s, tpu or HOST:PORT,RANK,SIZE"),
        ("localhost,0,2", "takes auto"),
        ("localhost:1234,0", "takes auto"),
        ("localhost:1234,2,2", "the ranks are 0 to 1, not 2"),
        ("localhost:65536,0,2", "ports are 1 to 65535"),
        ("slurm", "start it with srun"),
        ("k8s", "no pod of a Kubernetes cluster"),
    ],
)
def test_what_makes_no_sense_is_a_sentence(how: str, words: str, monkeypatch: Any):
    for name in ("SLURM_PROCID", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=words):
        join(how)


def test_a_port_in_use_is_a_sentence():
    with socket.create_server(("", 0)) as server:
        how = f"localhost:{server.getsockname()[1]},0,2"
        with pytest.raises(InputError, match=r"cannot listen at port \d+ \(Addr"):
            join(how)


def test_once_devices_are_known_it_is_too_late():
    assert jax.devices()
    with pytest.raises(InputError, match="too late"):
        join("auto")


def test_no_others_are_a_sentence_and_a_second_join_nothing():
    """In a process that has asked for no devices, and that ends with it."""
    program = (
        "import os, sys\n"
        "from voxtune.engine import processes\n"
        "from voxtune.models.errors import InputError\n"
        "processes.FOUND_WITHIN = 1\n"
        "for how in sys.argv[1:]:\n"
        "    try:\n"
        "        processes.join(how)\n"
        "        processes.join(how)\n"
        "        print('joined', processes.tag())\n"
        "    except InputError as error:\n"
        "        print(error, flush=True)\n"
        "os._exit(0)\n"
    )
    port = free_port()

    def say(*ways: str) -> subprocess.Popen:
        arguments = [sys.executable, "-c", program, *ways]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    waits, joins = say(f"localhost:{free_port()},1,2"), say("auto", f"localhost:{port},0,1", "tpu")
    sentence = waits.communicate(timeout=PATIENCE)[0]
    assert "did not find each other within 1 s" in sentence
    nowhere, joined, late = joins.communicate(timeout=PATIENCE)[0].splitlines()
    assert "nothing here says which processes there are" in nowhere
    assert joined.split() == ["joined"]
    assert "comes too late" in late


# What they say to each other


def test_alone_everything_is_ones_own():
    values = np.array([1 / 3, np.nan])
    np.testing.assert_array_equal(gathered(values), values[None])
    assert tag() == ""


def test_numbers_are_gathered_to_the_bit(monkeypatch: pytest.MonkeyPatch):
    """Devices have 32 bits a number, so they must not get these as they are."""

    def allgather(array: np.ndarray) -> np.ndarray:
        assert array.dtype == np.uint8
        return np.stack([array, array])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", allgather)
    values = np.array([[1 / 3, 2**53 + 1]])
    np.testing.assert_array_equal(gathered(values), np.stack([values, values]))


def test_alone_a_runtime_error_is_no_loss():
    with pytest.raises(jax.errors.JaxRuntimeError), losses():
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: Connection reset by peer")


def test_a_process_lost_while_devices_are_looked_for_is_a_loss(monkeypatch: pytest.MonkeyPatch):
    said = "Unable to initialize backend 'cpu': UNAVAILABLE: recvmsg:Connection reset by peer"
    with pytest.raises(RuntimeError, match="Unable"), losses():
        raise RuntimeError(said)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with pytest.raises(LostError, match="cannot be reached"), losses():
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="of mine"), losses():
        raise RuntimeError("a connection of mine")


def test_who_leaves_last_leaves_alone(monkeypatch: pytest.MonkeyPatch):
    def shutdown() -> None:
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: another one is gone")

    monkeypatch.setattr(jax.distributed, "shutdown", shutdown)
    leave()
