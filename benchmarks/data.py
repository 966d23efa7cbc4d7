"""Times the data path: `python -m voxtune.benchmarks.data [STORE] [--torch PYTHON]`.

Examples a second for each place that blocks can be cut from, beside a plain loop that loads each
scan with nibabel, and beside PyTorch's DataLoader with MONAI's cache. All cut blocks of one shape
out of the same scans, int16 images and labels of 8 bits, which the others read from .nii.gz files;
voxtune's lie on the device in the end. Each first takes some batches that are not timed, or those
that were read ahead would be; then all take turns, so that a busy machine slows them alike.

Then a small U-Net is fine-tuned on the same scans, once for each place, and `data_wait` of its
metrics.jsonl is shown: the share of time that the loop waits for the next batch. Devices, which
still have steps to do when it begins to wait, wait less. The first line of the log is left out,
which has the start.

PyTorch's wants an environment of its own:

    python3 -m venv peers && peers/bin/pip install torch monai nibabel
    python -m voxtune.benchmarks.data --torch peers/bin/python
"""

import argparse
import io
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import nibabel as nib
import numpy as np
from rich.console import Console
from rich.table import Table

from voxtune.benchmarks.step import machine
from voxtune.engine.cache import DeviceCache, cut
from voxtune.engine.case import IGNORE, Case
from voxtune.engine.changes import Batch
from voxtune.engine.cli import main as voxtune
from voxtune.engine.config import Create, Finetune
from voxtune.engine.create import create
from voxtune.engine.dataset import Plan, batches, class_table, host_cached
from voxtune.engine.feed import Feed
from voxtune.engine.mesh import make_mesh
from voxtune.engine.model_dir import LabelClass
from voxtune.engine.phantom import write_phantoms
from voxtune.engine.store import Store, read_store
from voxtune.engine.train import finetune

WARM = 12  # batches before those that are timed: more than any of them reads ahead
HEAD_MM = 190.0
SMALL = 32  # edge of the U-Net's blocks
PLACES: dict[str, dict[str, Any]] = {
    "--cache disk": {"cache": "disk"},
    "--cache disk --workers 2": {"cache": "disk", "workers": 2},
    "--cache host": {"cache": "host"},
    "--cache device": {"cache": "device"},
}
Take = Callable[[int], Any]  # takes so many batches and waits for them


@dataclass
class Way:
    """A way to get examples.

    Attributes:
        title: for people.
        timed: takes some batches, then the seconds that so many more take.
        seconds: of each round.
    """

    title: str
    timed: Callable[[int], float]
    seconds: list[float]


def timed(take: Take) -> Callable[[int], float]:
    """Times a way of this process."""

    def run(count: int) -> float:
        take(WARM)
        began = time.perf_counter()
        take(count)
        return time.perf_counter() - began

    return run


def fed(feed: Feed, change: Callable[[Any], Any]) -> Take:
    """Takes batches of a feed."""

    def take(count: int) -> None:
        for _ in range(count):
            _, batch = next(feed)
            jax.block_until_ready(change(batch))

    return take


def loaded(files: Sequence[tuple[Path, Path]], plan: Plan) -> Take:
    """Loads scans, cuts a block out of each and puts them on the device, as tutorials do."""
    rng = np.random.default_rng(plan.seed)
    load: Any = nib.load

    def example() -> tuple[np.ndarray, np.ndarray]:
        pair = files[int(rng.integers(len(files)))]
        image, label = (np.asanyarray(load(path).dataobj) for path in pair)
        last = np.subtract(label.shape, plan.block)
        start = rng.integers(0, last + 1)
        where = tuple(slice(a, a + n) for a, n in zip(start, plan.block, strict=True))
        return image[where].astype(np.float32), label[where]

    def take(count: int) -> None:
        for _ in range(count):
            images, labels = zip(*(example() for _ in range(plan.batch)), strict=True)
            jax.block_until_ready(jax.device_put((np.stack(images), np.stack(labels))))

    return take


@contextmanager
def torch_way(
    python: str, files: Sequence[tuple[Path, Path]], plan: Plan, workers: int
) -> Iterator[tuple[str, Callable[[int], float]]]:
    """PyTorch and MONAI in a child process: their versions, and its clock."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        images, labels = zip(*((str(a), str(b)) for a, b in files), strict=True)
        about = {"images": images, "labels": labels, "workers": workers}
        about |= {"block": plan.block, "batch": plan.batch, "seed": plan.seed}
        json.dump(about, file)
        file.flush()
        program = Path(__file__).with_name("torch_data.py")
        command = [python, str(program), file.name]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            told = json.loads(process.stdout.readline() or "{}")
            if told.get("shape") != [plan.batch, 1, *plan.block]:
                raise RuntimeError(f"{python} gives no batches as voxtune does, but: {told}")

            def run(count: int) -> float:
                assert process.stdin is not None
                assert process.stdout is not None
                print(WARM, count, file=process.stdin, flush=True)
                return float(json.loads(process.stdout.readline())["seconds"])

            try:
                yield told["version"], run
            finally:
                process.kill()


def made_store(folder: Path, size: int, subjects: int) -> Path:
    """A store of phantoms with an edge of `size` voxels."""
    shape, spacing = (size, size, size), HEAD_MM / size
    table = write_phantoms(folder / "phantoms", "healthy", subjects, 0, 0, 0, shape, spacing)
    store = folder / "store"
    if voxtune(["prepare", str(table), str(store), "--spacing", "own"]):
        raise RuntimeError("the phantoms cannot be prepared")
    return store


def write_files(folder: Path, cases: Sequence[Case]) -> list[tuple[Path, Path]]:
    """Image and label of each case as .nii.gz, for those who cannot read a store."""
    files = []
    for number, case in enumerate(cases):
        assert case.image is not None
        image = np.asarray(case.image.stored[:, :, :])[..., 0]
        pair = folder / f"{number}_image.nii.gz", folder / f"{number}_label.nii.gz"
        if image.dtype == np.float16:
            image = image.astype(np.float32)  # NIfTI has no shorter one
        label = np.asarray(case.label[:, :, :])
        for path, data in zip(pair, (image, label), strict=True):
            nib.save(nib.Nifti1Image(data, case.affine), path)
        files.append(pair)
    return files


def ways(
    stack: ExitStack, cases: Sequence[Case], folder: Path, plan: Plan, python: str | None
) -> tuple[list[Way], str]:
    """Everything that is to be timed, and the versions of what is not voxtune's."""
    values = sorted({value for case in cases for value in case.counts} | {0})
    table = class_table([LabelClass(value, str(value)) for value in values])
    mesh, how = make_mesh("data=1"), (plan, table, IGNORE)

    def feed(cases: Sequence[Case], read: bool = True, workers: int = 0) -> Feed:
        data = batches(cases, *how, read=read)
        return stack.enter_context(Feed(data, mesh, workers=workers))

    volumes = DeviceCache(cases, plan.block, table, IGNORE).load(mesh)
    cutting = partial(jax.jit(partial(cut, block=plan.block)), volumes)

    def same(batch: Batch) -> Batch:
        return batch

    files = write_files(folder, cases)
    takes = {
        "nibabel, a loop": loaded(files, plan),
        "voxtune, --cache disk": fed(feed(cases), same),
        "voxtune, --cache disk --workers 2": fed(feed(cases, workers=2), same),
        "voxtune, --cache host": fed(feed(host_cached(cases)), same),
        "voxtune, --cache device": fed(feed(cases, read=False), cutting),
    }
    found = [Way(title, timed(take), []) for title, take in takes.items()]
    if python is None:
        return found, "PyTorch is not measured: give --torch"
    for workers in (0, 2):
        version, run = stack.enter_context(torch_way(python, files, plan, workers))
        found.append(Way(f"PyTorch, MONAI's cache, {workers} workers", run, []))
    return found, version


def small_model(folder: Path, store: Store) -> Path:
    """A U-Net with fresh weights for the scans of a store."""
    made = store.preparation
    given = Create(
        "unet",
        folder / "model",
        ("filters=4", "norm=batch", "outputs=2", f"channels={len(made.channels)}"),
        orientation=made.orientation,
        spacing=made.spacing_mm or "own",
        grid=made.grid,
        interpolation=made.interpolation,
        intensity=made.intensity,
        window=made.window,
        block=(SMALL,) * 3,
    )
    create(given, Console(file=io.StringIO()))
    return given.model_dir


def waits(model: Path, store: str, folder: Path, steps: int, **place: Any) -> tuple[float, float]:
    """Fine-tunes: the share of time that the loop waited for batches, and blocks a second."""
    every = steps // 4
    config = Finetune(
        *(model, store, folder / "run"),
        **place,
        steps=steps,
        log_every=every,
        validate_every=steps,
        overwrite=True,
    )
    finetune(config, Console(file=io.StringIO()))
    log = map(json.loads, (config.run_dir / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in log if line["event"] == "train"][1:]
    seconds = [1 / line["examples_per_second"] for line in lines]
    waited = sum(line["data_wait"] * each for line, each in zip(lines, seconds, strict=True))
    return waited / sum(seconds), len(lines) / sum(seconds)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        prog="voxtune.benchmarks.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", nargs="?", help="by default one is made of phantoms")
    parser.add_argument("--synthetic-size", type=int, default=160, help="edge of the phantoms")
    parser.add_argument("--subjects", type=int, default=8, help="how many phantoms")
    parser.add_argument("--block", type=int, default=128, help="edge of a block")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="batches in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train-steps", type=int, default=32, help="of each run of the U-Net")
    parser.add_argument("--torch", metavar="PYTHON", help="of an environment with torch and monai")
    given = parser.parse_args()
    if given.train_steps < 8:
        parser.error("a run of so few steps is all start; pass more --train-steps")
    plan = Plan((given.block,) * 3, "random", 0.33, given.batch, seed=0)
    console = Console(width=100)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = given.store or str(made_store(folder, given.synthetic_size, given.subjects))
        store = read_store(path)
        cases = store.cases
        if any(min(case.shape) < given.block for case in cases):
            parser.error("a scan is smaller than the block; pass a smaller --block")
        with ExitStack() as feeds:
            every, versions = ways(feeds, cases, folder, plan, given.torch)
            for _ in range(given.rounds):
                for way in every:
                    way.seconds.append(way.timed(given.steps))
        count = given.steps * given.batch
        table = Table(title=f"Blocks of {given.block}³, batches of {given.batch}, {machine()}")
        for name in ("data path", "examples/s", "slowest to fastest", "times the loop"):
            table.add_column(name, justify="left" if name == "data path" else "right")
        for way in every:
            rates = [count / seconds for seconds in way.seconds]
            times = median(every[0].seconds) / median(way.seconds)
            spread = f"{min(rates):.1f} to {max(rates):.1f}"
            table.add_row(way.title, f"{median(rates):.1f}", spread, f"{times:.1f}")
        table.caption = (
            f"{len(cases)} scans, {given.rounds} rounds of {given.steps} batches; medians"
        )
        console.print(table)
        console.print(f"jax {jax.__version__}; {versions}", highlight=False)

        model = small_model(folder, store)
        table = Table(title=f"finetune, U-Net of 4 filters, blocks of {SMALL}³")
        for name in ("blocks from", "data_wait", "blocks/s"):
            table.add_column(name, justify="left" if name == "blocks from" else "right")
        for title, place in PLACES.items():
            share, rate = waits(model, path, folder, given.train_steps, **place)
            table.add_row(title, f"{100 * share:.2f} %", f"{rate:.1f}")
        table.caption = f"the last three quarters of {given.train_steps} steps"
        console.print(table)


if __name__ == "__main__":
    main()
