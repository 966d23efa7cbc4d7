"""`voxtune finetune` killed at random moments, then gone on with: the same bits, the same log.

Of 30 kills half fall into the writing of a checkpoint, the others anywhere between the first step
and the end; a third of the runs is killed once more while it goes on. `make soak` runs it: with
--seed N it kills at the same moments again, as far as the machine is as fast.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
from orbax.checkpoint import v1 as ocp

from voxtune.engine import train as _train  # noqa: F401 - imported once, not by each run
from voxtune.engine.cli import main as voxtune
from voxtune.engine.meter import MEASURED
from voxtune.engine.model_dir import read_model

KILLS, EDGE = 30, 12
OPTIONS = ["--steps", "24", "--validate-every", "2", "--log-every", "3", "--mesh", "data=1"]
OPTIONS += ["--block", "8", "8", "8", "--ema", "0.9", "--anchor", "0.1", "--patience", "50"]


def forked(task: Callable[[], int | None], quiet: bool = True) -> int:
    """A task in a process of its own, forked before JAX has any thread; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        if quiet:
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
        status = 70
        try:
            status = task() or 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def start(folder: Path, *command: str) -> int:
    """A command in a folder, on its way; its number."""

    def run() -> int:
        os.chdir(folder)
        return voxtune(command)

    return forked(run)


def ended(child: int) -> int:
    """How it ended: an exit status, or a signal's number below zero."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def running(child: int) -> bool:
    """Whether it is; its end stays to be asked for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def write_study(folder: Path) -> None:
    """A model directory `pretrained`, and a table of three subjects with a bright blob."""
    rng = np.random.default_rng(0)
    network = ["filters=4", "dilations=1,1", "norm=batch", "activation=relu", "outputs=2"]
    create = ["create", "meshnet", "pretrained", "--arguments", *network, "--block", "8", "8", "8"]
    assert ended(start(folder, *create)) == 0
    rows = ["subject,image,label,split"]
    for number, split in enumerate(("train", "train", "validation")):
        image = rng.normal(size=(EDGE,) * 3).astype(np.float32)
        blob = ((np.indices(image.shape) - 5 - number) ** 2).sum(axis=0) < 12
        image[blob] += 2
        for name, data in (("image", image), ("label", blob.astype(np.uint8))):
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{name}{number}.nii")
        rows.append(f"sub-{number},image{number}.nii,label{number}.nii,{split}")
    (folder / "subjects.csv").write_text("\n".join(rows))


def halves(run: Path) -> list[Path]:
    """Checkpoints that are being written."""
    return list((run / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def kill(child: int, run: Path, save: int | None, seconds: float) -> str:
    """Kills a run; where it was.

    Args:
        child: its process.
        run: its folder.
        save: within the writing of which of its checkpoints; None for anywhere.
        seconds: after the beginning of that, or of the first step.
    """
    seen: set[str] = set()
    while running(child):
        if save is None and (run / "checkpoints").is_dir():
            break
        seen |= {each.name for each in halves(run)}
        if save is not None and len(seen) >= save:
            break
        time.sleep(0.0002)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    if ended(child) != -signal.SIGKILL:
        return "had ended"
    return "in a save" if halves(run) else "elsewhere"


def log(run: Path) -> list[dict]:
    """All of metrics.jsonl but timings, and that a step was compiled."""
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in each.items() if name not in MEASURED}
        for each in entries
        if each["event"] != "compiled"
    ]


def last_checkpoint(run: Path) -> tuple[str, list[bytes]]:
    """Its step, and all that it holds."""
    step = max((run / "checkpoints").iterdir(), key=lambda each: int(each.name))
    with warnings.catch_warnings(action="ignore"):  # it is put where it was saved from
        held = ocp.load_checkpointables(step)
    held["state"]["key"] = jax.random.key_data(held["state"]["key"])
    leaves = jax.tree.leaves(held["state"])
    return step.name, [np.asarray(each).tobytes() for each in leaves]


def check(run: Path, whole: Path) -> None:
    """Makes sure that a run left what the undisturbed one left."""
    assert log(run) == log(whole), f"{run}/metrics.jsonl differs"
    found, wanted = (read_model(each / "model")[1] for each in (run, whole))
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        assert found[path].tobytes() == value.tobytes(), f"{run}/model differs at {path}"
    assert last_checkpoint(run) == last_checkpoint(whole), f"{run}/checkpoints differ"


def soak(folder: Path, rng: random.Random, kills: int) -> None:
    """Kills runs, goes on with each, and compares what they leave."""
    write_study(folder)
    finetune = ("finetune", "pretrained", "subjects.csv")
    whole = folder / "whole"
    assert ended(start(folder, *finetune, "warm", *OPTIONS)) == 0  # compiled for all that follow
    begin = time.monotonic()
    child = start(folder, *finetune, "whole", *OPTIONS)
    while not (whole / "checkpoints").is_dir():
        time.sleep(0.001)
    trained = time.monotonic()
    assert ended(child) == 0
    end = time.monotonic()
    print(f"undisturbed: {end - begin:.1f} s, {end - trained:.1f} s from its first step on")
    where: list[str] = []
    for number in range(kills):
        run = folder / f"run{number}"
        command = (*finetune, run.name, *OPTIONS)
        for _ in range(1 + (number % 3 == 2)):
            save = rng.randint(1, 11) if number % 2 else None
            seconds = rng.uniform(0, 0.005) if save else rng.uniform(0, 0.95 * (end - trained))
            where.append(kill(start(folder, *command), run, save, seconds))
            left = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
            print(f"{run.name}: killed {where[-1]}, checkpoints {left}", flush=True)
            command = ("resume", run.name)
        assert ended(start(folder, "resume", run.name)) == 0, f"{run} could not be gone on with"
        assert ended(forked(partial(check, run, whole), quiet=False)) == 0, f"{run} differs"
    counts = ", ".join(f"{where.count(each)} {each}" for each in sorted(set(where)))
    print(f"{kills} runs killed {len(where)} times ({counts}): the same bits")
    assert where.count("in a save") >= kills // 3, "too few kills fell into saves"


def main() -> None:
    """In a folder of its own, with a cache of its own for compiled programs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--kills", type=int, default=KILLS, help="runs that are killed")
    seed, kills = vars(parser.parse_args()).values()
    print(f"--seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        soak(Path(folder), random.Random(seed), kills)


if __name__ == "__main__":
    # Before JAX reads them: each run would compile the same program.
    cache = {
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    if not cache.items() <= os.environ.items():
        with tempfile.TemporaryDirectory() as programs:
            environment = {**os.environ, **cache, "JAX_COMPILATION_CACHE_DIR": programs}
            command = [sys.executable, *sys.argv]
            sys.exit(os.spawnve(os.P_WAIT, sys.executable, command, environment))
    main()
