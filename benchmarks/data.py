"""Suite `data`: blocks from each place that they can be cut from, and how long steps wait for them.

Examples a second from a store on disk, without and with worker processes, from the host's memory
and from the device's; beside a plain loop that loads each scan with nibabel, and PyTorch's
DataLoader with MONAI's cache. All cut blocks of one shape out of the same scans, which the others
read from .nii.gz files; voxtune's and the loop's lie on the device in the end, MONAI's in the
host's memory, and cases say so. Each process first takes some batches that are not timed, or those
that were read ahead would be; all take turns. On a CPU all of them keep memory that they freed, see
`KEPT`.

Then a U-Net is fine-tuned from each place, and `data_wait` of its metrics.jsonl is told: the share
of time that the loop waits for the next batch. And each augmentation profile is timed beside a
training step on the same batch. `--blocks` is of the blocks that are only cut.
"""

import dataclasses
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
from rich.console import Console

from voxtune.benchmarks.device import device, environment, keep_to_cpu
from voxtune.benchmarks.environments import peer_environment
from voxtune.benchmarks.measurement import Measurement, Spread, Work
from voxtune.benchmarks.program import Program, running, take_turns
from voxtune.engine import config
from voxtune.engine.case import Case
from voxtune.engine.create import create
from voxtune.engine.phantom import write_phantoms
from voxtune.engine.prepare import prepare
from voxtune.engine.store import Store, read_store
from voxtune.models.errors import InputError

OWN = "voxtune"
LOOP = "nibabel, a loop"
MONAI = {"MONAI's cache": 0, "MONAI's cache, 2 workers": 2}  # program → its worker processes
# Place → options of `finetune`, and who is compared with it: others that do as much for speed.
PLACES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "disk": ({"cache": "disk", "workers": 0}, (LOOP,)),
    "disk, 2 workers": ({"cache": "disk", "workers": 2}, ("MONAI's cache, 2 workers",)),
    "host": ({"cache": "host", "workers": 0}, ("MONAI's cache",)),
    "device": ({"cache": "device", "workers": 0}, tuple(MONAI)),
}
# Variables of glibc, for all programs that only cut blocks on a CPU, peers too. A batch of two 128³
# is 21 MB; whether glibc hands that back to the system after each batch depends on what else lies
# in its heaps, and differs from process to process and within one. Where it does, the next batch
# takes 3,000 to 9,000 page faults of 1.8 µs, and `--cache device` 9 to 22 ms of CPU time where
# cutting takes 4 to 5: what was timed was chance. Another libc does not know them.
KEPT = {
    "MALLOC_ARENA_MAX": "1",  # other arenas give memory back whatever the threshold
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_MMAP_MAX_": "0",  # what is mapped is given back when it is freed
}
HEAD_MM = 190.0
QUICK_TURNS = 3


@dataclass(frozen=True)
class Job:
    """How much is done.

    Attributes:
        scan: edge of the phantoms, voxels, where no store is given.
        subjects: how many phantoms.
        edge: of the blocks that are only cut, voxels.
        batch: blocks at a time.
        batches: whose time a turn tells.
        steps: of each run that fine-tunes.
        trained: edge of the blocks that it trains on.
        network: of it, options of `voxtune create`.
        places: that it reads from.
        augmented: edge of the blocks that are augmented.
        dtype: that steps compute in.
        turns: that count.
    """

    scan: int
    subjects: int
    edge: int
    batch: int
    batches: int
    steps: int
    trained: int
    network: tuple[str, ...]
    places: tuple[str, ...]
    augmented: int
    dtype: str
    turns: int


_SMALL = ("filters=4", "norm=batch", "outputs=2")
JOBS = {
    "cpu": Job(160, 8, 128, 2, 12, 32, 32, _SMALL, tuple(PLACES), 32, "float32", 7),
    "gpu": Job(160, 8, 128, 2, 24, 64, 128, ("outputs=2",), tuple(PLACES), 128, "bfloat16", 7),
}
QUICK = Job(
    *(48, 4, 32, 2, 12, 16, 16, (*_SMALL, "depth=1"), ("disk", "device"), 16),
    dtype="float32",
    turns=QUICK_TURNS,
)


def job_of(given: config.Benchmark, platform: str) -> Job:
    """What is to be done.

    Args:
        given: options.
        platform: of the device, as JAX names it.
    """
    job = QUICK if given.quick else JOBS["cpu" if platform == "cpu" else "gpu"]
    turns = min(job.turns, given.turns) if given.quick else given.turns
    return dataclasses.replace(
        job,
        edge=(*given.blocks, job.edge)[0],
        batch=(*given.batches, job.batch)[0],
        dtype=(*given.dtypes, job.dtype)[0],
        turns=turns,
    )


def measure(given: config.Benchmark, peers: Mapping[str, Path]) -> Iterator[Measurement]:
    """Measures places, then runs that fine-tune, then augmentation.

    Args:
        given: options.
        peers: kind of environment → its interpreter.

    Raises:
        InputError: JAX finds no device, or the store is none that all programs can read.
    """
    keep_to_cpu()
    job = job_of(given, device().platform)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        path = made_store(folder, job) if given.store is None else given.store
        store = read_store(str(path))
        check(job, path, store)
        file = write_job(job, folder, path, store)
        of_store = f"scans of {path.resolve().name}"
        kind = f"phantoms of {job.scan}³" if given.store is None else of_store
        scans = f"{len(store.cases)} {kind}"
        yield from _places(job, file, peers, scans)
        yield from _runs(job, file, scans)
        yield from _augmentation(job, file)


def check(job: Job, path: Path, store: Store) -> None:
    """Makes sure that everybody can cut blocks out of a store's scans.

    Raises:
        InputError: they cannot.
    """
    channels = len(store.preparation.channels)
    if channels != 1:
        raise InputError(
            f"{path} holds {channels} images of each subject, where all programs take one; give "
            "--store one with one."
        )
    smallest = min(min(case.shape) for case in store.cases)
    if smallest < job.edge:
        raise InputError(
            f"{path} has a scan of {smallest} voxels along an axis, smaller than blocks of "
            f"{job.edge}; give smaller --blocks."
        )


def made_store(folder: Path, job: Job) -> Path:
    """A store of phantoms, one of which is to validate on."""
    shape = (job.scan,) * 3
    spacing = HEAD_MM / job.scan
    counts = job.subjects - 1, 1, 0
    table = write_phantoms(folder / "phantoms", "healthy", *counts, 0, shape, spacing)
    store = folder / "store"
    prepare(config.Prepare(table, store, spacing="own", workers=1), Console(file=io.StringIO()))
    return store


def write_job(job: Job, folder: Path, path: Path, store: Store) -> Path:
    """The file of which the processes read what to do, with scans and a model beside it."""
    files = write_files(folder, store.cases)
    create(model_of(folder / "model", job, store), Console(file=io.StringIO()))
    about = {
        "store": str(path),
        "images": [str(image) for image, _ in files],
        "labels": [str(label) for _, label in files],
        "seed": 0,
        "edge": job.edge,
        "batch": job.batch,
        "batches": job.batches,
        "augment": {"edge": job.augmented, "batch": job.batch, "dtype": job.dtype},
        "finetune": {
            "model": str(folder / "model"),
            "run": str(folder / "run"),
            "block": (job.trained,) * 3,
            "steps": job.steps,
            "dtype": job.dtype,
        },
    }
    file = folder / "job.json"
    file.write_text(json.dumps(about))
    return file


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


def model_of(folder: Path, job: Job, store: Store) -> config.Create:
    """How a U-Net with fresh weights is made for the scans of a store."""
    made = store.preparation
    return config.Create(
        "unet",
        folder,
        (*job.network, f"channels={len(made.channels)}"),
        orientation=made.orientation,
        spacing=made.spacing_mm or "own",
        grid=made.grid,
        interpolation=made.interpolation,
        intensity=made.intensity,
        window=made.window,
        block=(job.trained,) * 3,
    )


def kept(variables: Mapping[str, str], platform: str) -> dict[str, str]:
    """Variables of a process that only cuts blocks; see `KEPT`."""
    return {**variables, **(KEPT if platform == "cpu" else {})}


def started(way: str, file: Path) -> Program:
    """A process of voxtune's, or the loop's."""
    name = LOOP if way == "loop" else OWN
    platform = device().platform
    variables = environment(platform)
    if way in (*PLACES, "loop"):
        variables = kept(variables, platform)
    return Program.start(name, sys.executable, "own_data.py", way, str(file), environment=variables)


def _places(job: Job, file: Path, peers: Mapping[str, Path], scans: str) -> Iterator[Measurement]:
    with running() as programs:
        ways = {way: started(way, file) for way in (*PLACES, "loop")}
        programs += ways.values()
        for name, workers in MONAI.items():
            if "torch" in peers:
                arguments = "torch_data.py", str(file), str(workers)
                platform = device().platform
                variables = kept(peer_environment(platform, file.parent), platform)
                programs.append(
                    Program.start(name, peers["torch"], *arguments, environment=variables)
                )
        for each in programs:
            each.load()
        for each in programs[len(ways) :]:
            if not each.problem and (problem := difference(job, each.hello)):
                each.problem = problem
                each.end()
        take_turns(programs, job.turns, warm=0)
    others = {each.name: each for each in programs if each.name != OWN}
    for place, (_, beside) in PLACES.items():
        found = [ways[place], *(others[name] for name in beside if name in others)]
        for each in found:
            yield measurement(job, place, scans, each, device().platform)


def difference(job: Job, hello: Mapping[str, Any]) -> str:
    """Why a peer is not measured; empty where it cuts the blocks that voxtune does."""
    wanted = [job.batch, 1, *(job.edge,) * 3]
    if hello.get("shape") == wanted and hello.get("types") == ["float32", "uint8"]:
        return ""
    return (
        "does not compute what voxtune does: it gives batches of "
        f"{hello.get('shape')}, {hello.get('types')}"
    )


def measurement(job: Job, place: str, scans: str, program: Program, platform: str) -> Measurement:
    """Of a program beside a place of voxtune's."""
    blocks = job.batch * job.batches
    ends = "host" if program.name in MONAI else "device"
    others = " (MONAI's to the host)" if {*PLACES[place][1]} & {*MONAI} else ""
    turns = [] if program.problem else program.turns[1:]
    return Measurement(
        "data",
        f"{job.edge}³, batch {job.batch}, of {scans}, from {place} to the device{others}",
        program.name,
        settings={
            "block": job.edge,
            "batch": job.batch,
            "place": place,
            "to": ends,
            "scans": scans,
            **({"kept": True} if platform == "cpu" else {}),
        },
        seconds=tuple(each["seconds"] for each in turns),
        work=Work(blocks, blocks * job.edge**3),
        memory=max((each["memory"] for each in turns if "memory" in each), default=None),
        version=program.hello.get("version", ""),
        problem=program.problem,
    )


def _runs(job: Job, file: Path, scans: str) -> Iterator[Measurement]:
    """Fine-tunes from each place, one after the other: a run of several seconds each."""
    about = json.loads(file.read_text())
    for place in job.places:
        options, _ = PLACES[place]
        of_place = file.with_name("run.json")
        of_place.write_text(json.dumps({**about, "finetune": {**about["finetune"], **options}}))
        with running([started("finetune", of_place)]) as (program,):
            program.load()
            program.turn()
            said = program.turns[0] if program.turns else {}
        yield Measurement(
            "data",
            f"fine-tuning, {', '.join(job.network)}, {job.trained}³, batch {job.batch}, {job.dtype}"
            f", on {scans}, from {place}",
            OWN,
            settings={
                "block": job.trained,
                "batch": job.batch,
                "dtype": job.dtype,
                "scans": scans,
                **options,
            },
            seconds=tuple(said.get("steps", ())),
            work=Work(job.batch, job.batch * job.trained**3),
            memory=said.get("memory"),
            values={"data_wait": said["data_wait"], "run_seconds": said["seconds"]} if said else {},
            version=program.hello.get("version", ""),
            problem=program.problem,
        )


def _augmentation(job: Job, file: Path) -> Iterator[Measurement]:
    """Each profile, beside a step."""
    with running([started("augment", file)]) as (program,):
        program.load()
        take_turns([program], job.turns, warm=1)
    turns = [] if program.problem else program.turns[2:]
    for profile in turns[0]["profiles"] if turns else ("strong",):
        times = [each["profiles"][profile] for each in turns]
        shares = [took / (took + each["seconds"]) for took, each in zip(times, turns, strict=True)]
        yield Measurement(
            "data",
            f"augmentation {profile}, {job.augmented}³, batch {job.batch}, {job.dtype}",
            OWN,
            settings={
                "block": job.augmented,
                "batch": job.batch,
                "dtype": job.dtype,
                "profile": profile,
            },
            seconds=tuple(times),
            work=Work(job.batch, job.batch * job.augmented**3),
            first=program.turns[0]["profiles"][profile] if turns else None,
            values={
                "share_of_step": Spread.of(shares).median,
                "step_seconds": median(each["seconds"] for each in turns),
            }
            if turns
            else {},
            version=program.hello.get("version", ""),
            problem=program.problem,
        )
