"""`voxtune prepare` killed at random moments, then run again: the same bytes.

Alone, with --overwrite of another store, and as one of two shards; as the folder is made, in the
middle, as the last subject is written, and as the store is finished. `make soak` runs it: about
two minutes on two idle cores. With --seed N it kills at the same
moments again, as far as the machine is as fast.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

SUBJECTS, SHAPE, KILLS = 16, (64, 64, 64), 12
MOMENTS = ("first", "middle", "last", "end")
REPLACED = "replaced"  # a file in a store that is to be written anew
HOWS = ("alone", "overwrite", "shards")


def write_scans(folder: Path) -> Path:
    """A table of subjects that are resampled, so that each takes a while."""
    rng = np.random.default_rng(0)
    lines = ["subject,image,label"]
    for index in range(SUBJECTS):
        image = rng.integers(0, 900, SHAPE).astype(np.int16)
        label = rng.integers(0, 4, SHAPE).astype(np.uint8)
        for kind, data in (("image", image), ("label", label)):
            nib.save(
                nib.Nifti1Image(data, np.diag([1.4, 1.4, 1.4, 1])), folder / f"{index}{kind}.nii"
            )
        lines.append(f"s{index},{index}image.nii,{index}label.nii")
    table = folder / "subjects.csv"
    table.write_text("\n".join(lines))
    return table


def start(table: Path, store: Path, arrays: str, *options: str) -> subprocess.Popen:
    """The command, on its way."""
    command = [sys.executable, "-m", "voxtune.engine.cli", "prepare", table, store]
    return subprocess.Popen(
        [*command, "--workers", "2", "--format", arrays, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def prepare(table: Path, store: Path, arrays: str, *options: str) -> None:
    """Runs the command to its end."""
    assert start(table, store, arrays, *options).wait() == 0


def finished(store: Path) -> int:
    """How many subjects are finished."""
    return len([each for each in store.glob("subjects/*") if not each.name.startswith(".")])


def kill(process: subprocess.Popen, store: Path, moment: str, seconds: float) -> bool:
    """Kills a run of so many seconds at a moment; whether it had not ended by itself."""
    while process.poll() is None:
        new = store.exists() and not (store / REPLACED).exists()
        if moment == "middle" or (
            new and (moment == "first" or finished(store) >= SUBJECTS - (moment == "last"))
        ):
            break
        time.sleep(0.0005)
    time.sleep(seconds)
    process.kill()
    killed = process.wait() == -signal.SIGKILL
    time.sleep(0.1)  # until its workers have noticed
    return killed


def tree(folder: Path) -> dict[str, bytes]:
    """Path → content of all files of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def soak(folder: Path, arrays: str, rng: random.Random) -> None:
    """Kills runs, a new store for each, and goes on with each."""
    table = write_scans(folder)
    begin = time.monotonic()
    prepare(table, folder / "kept" / "undisturbed", arrays)
    seconds = time.monotonic() - begin
    wanted = tree(folder / "kept" / "undisturbed")
    prepare(table, folder / "kept" / "other", arrays, "--spacing", "own")
    (folder / "stores").mkdir()
    for number in range(KILLS):
        store = folder / "stores" / f"store{number}"
        moment, how = MOMENTS[number % len(MOMENTS)], HOWS[number // len(MOMENTS) % len(HOWS)]
        # Before a third of it, it starts up; the first and the last tenth are tried on their own.
        after = rng.uniform(0.3, 0.9) if moment == "middle" else rng.uniform(0, 0.02)
        options = [()]
        if how == "overwrite":
            shutil.copytree(folder / "kept" / "other", store)
            (store / REPLACED).touch()
            options = [("--overwrite",)]
        elif how == "shards":
            options = [("--shard", "1/2"), ("--shard", "2/2")]
        runs = [start(table, store, arrays, *each) for each in options]
        killed = kill(runs[0], store, moment, after * seconds)
        for run in runs[1:]:
            assert run.wait() == 0
        left = finished(store)
        again = [start(table, store, arrays, *each) for each in options]
        assert [run.wait() for run in again] == [0] * len(again)
        assert tree(store) == wanted, f"{store} differs"
        names = [each.name for each in store.parent.iterdir()]
        assert names == [store.name], f"{names} are there"
        said = f"{left} of {SUBJECTS} subjects were finished" if killed else "it had ended"
        print(f"{arrays}, {how}, {moment}: {said}: the same bytes", flush=True)
        shutil.rmtree(store)


def main() -> None:
    """Both kinds of stores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    seed = parser.parse_args().seed
    print(f"--seed {seed}")
    rng = random.Random(seed)
    for arrays in ("npy", "zarr"):
        with tempfile.TemporaryDirectory() as folder:
            soak(Path(folder), arrays, rng)


if __name__ == "__main__":
    main()
