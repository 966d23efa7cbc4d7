"""Mutates good scans of each format: each must become a volume or one sentence, in bounds.

    python tests/engine/fuzz_volume.py --count 3000 --seed 0

The same seed gives the same mutations. A file that breaks the rule is kept and named, and the exit
status is 1.
"""

import argparse
import gzip
import io
import random
import shutil
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.fileholders import FileHolder

from voxtune.engine.volume import Volume, load_image, load_label
from voxtune.models.errors import InputError

MAX_SECONDS = 5.0
# What reading may take for a moment: nibabel's float64 of each byte that is there, and its copies.
MAX_BYTES, MAX_RATIO = 8 * 2**20, 40


def outcome(path: Path, load: Callable[[Path], Volume]) -> str:
    """ "volume" or "refused"; any error but a sentence is a fault."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # nibabel leaves MGH files open
        warnings.filterwarnings("ignore", module="nibabel")  # as volume.py has it, before "always"
        try:
            volume = load(path)
            finite = np.isfinite(volume.data).all() and np.isfinite(volume.affine).all()
            if volume.data.ndim != 3 or not finite:
                raise AssertionError(f"shape {volume.data.shape}, finite {finite}")
            result = "volume"
        except InputError as error:
            result, sentence = "refused", str(error)
            if "\n" in sentence or str(path) not in sentence or len(sentence) > 1000:
                raise AssertionError(f"not one line that names it: {sentence!r}") from error
    if told:
        raise AssertionError(f"{result}, and {[str(each.message) for each in told]}")
    return result


# Good files


@dataclass(frozen=True)
class Target:
    """One file to mutate, among those that belong together.

    Attributes:
        files: name → content, not compressed.
        mutated: the name of the one.
        header: its header's fields, name → type and place, and its byte order; none for voxels.
    """

    files: dict[str, bytes]
    mutated: str
    header: Any


def _files(image: Any, names: dict[str, str]) -> dict[str, bytes]:
    streams = {part: io.BytesIO() for part in names}
    image.to_file_map({part: FileHolder(fileobj=stream) for part, stream in streams.items()})
    return {names[part]: stream.getvalue() for part, stream in streams.items()}


def targets() -> dict[str, Target]:
    """A good file of each format and byte order, compressed and not."""
    rng = np.random.default_rng(0)
    small, affine = rng.integers(-300, 300, (4, 5, 6)).astype(np.int16), np.diag([1.0, 2, 3, 1])
    affine[0, 1] = 0.1
    scaled = nib.Nifti1Image(small, affine)
    scaled.header.set_slope_inter(0.5, -3)
    scaled.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a word"))
    swapped = nib.Nifti1Image(small.astype(np.float32), affine, nib.Nifti1Header(endianness=">"))
    singles = {
        "scaled.nii": scaled,
        "swapped.nii": swapped,
        "two.nii": nib.Nifti2Image(small.astype(np.uint8), affine),
        "mgh.mgh": nib.MGHImage(small, affine),
        # Of noise, whose bytes might hold a thousand times as many voxels.
        "noise.nii.gz": nib.Nifti1Image(rng.integers(0, 2**15, (20, 20, 20), np.int16), affine),
        "noise.mgz": nib.MGHImage(rng.integers(0, 2**15, (20, 20, 20), np.int32), affine),
        "scaled.nii.gz": scaled,
        "two.nii.gz": nib.Nifti2Image(small.astype(np.float64), affine),
    }
    found = {}
    for name, image in singles.items():
        found[name] = Target(_files(image, {"image": name}), name, image.header)
    for ending in ("", ".gz"):
        for image in (nib.Nifti1Pair(small, affine), nib.Nifti2Pair(small, affine)):
            name = f"pair{image.header['sizeof_hdr']}"
            parts = {"header": f"{name}.hdr{ending}", "image": f"{name}.img{ending}"}
            files = _files(image, parts)
            found[parts["header"]] = Target(files, parts["header"], image.header)
            found[parts["image"]] = Target(files, parts["image"], None)
    return found


# Mutations

NUMBERS = [0, 1, -1, 2, 3, 4, 7, 127, 128, 255, 256, 348, 352, 540, 544, 1000, 2000, 2**15 - 1]
NUMBERS += [2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63)]
REALS = [0.0, -0.0, 1e-45, 1e-30, 0.5, 1.5, -1.0, 352.5, 1e6, 1e20, -1e38, 1e300, np.inf, np.nan]


def change_field(content: bytearray, header: Any, dice: random.Random) -> None:
    """A number of the header becomes a largest, smallest or odd one."""
    fields = {
        name: kind
        for name, kind in header.template_dtype.fields.items()
        if kind[0].base.kind in "iuf" and kind[1] + kind[0].itemsize <= len(content)
    }
    if not fields:
        return
    name = dice.choice([*fields, *(["dim", "dims"] * 20)])
    kind, place = fields.get(name) or fields[dice.choice([*fields])][:2]
    place += dice.randrange(kind.itemsize // kind.base.itemsize) * kind.base.itemsize
    if kind.base.kind == "f":
        value = np.array(dice.choice([*REALS, *NUMBERS]), np.float64)
    else:
        value = np.array(dice.choice(NUMBERS) % 2**64, np.uint64)
    with np.errstate(all="ignore"):
        stored = value.astype(kind.base.newbyteorder(header.endianness)).tobytes()
    content[place : place + len(stored)] = stored


def flip(content: bytearray, dice: random.Random) -> None:
    for _ in range(dice.choice((1, 1, 1, 2, 8, 64))):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def truncate(content: bytearray, dice: random.Random) -> None:
    del content[dice.randrange(len(content)) :]


def insert(content: bytearray, dice: random.Random) -> None:
    position = dice.randrange(len(content))
    content[position:position] = dice.randbytes(dice.choice((1, 2, 8, 100, 1000)))


def splice(content: bytearray, dice: random.Random) -> None:
    size = min(dice.choice((1, 4, 8, 16, 64, 512)), len(content))
    source, target = (dice.randrange(len(content) - size + 1) for _ in range(2))
    content[target : target + size] = content[source : source + size]


def noise(content: bytearray, dice: random.Random) -> None:
    """Within the header, where that is what comes first."""
    for _ in range(dice.choice((1, 2, 5, 20))):
        content[dice.randrange(min(len(content), 540))] = dice.randrange(256)


MUTATIONS = [flip, truncate, insert, splice, noise]


def mutated(content: bytes, header: Any, dice: random.Random) -> bytes:
    """The content of a file or of a stream, changed."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        if not changed:
            break
        if header is not None and dice.random() < 0.6:
            change_field(changed, header, dice)
        else:
            dice.choice(MUTATIONS)(changed, dice)
    return bytes(changed)


def on_disk(target: Target, name: str, dice: random.Random | None) -> tuple[bytes, int]:
    """A file as it is written, mutated by the dice, and how many bytes it holds unpacked."""
    content = target.files[name]
    if name != target.mutated:
        dice = None
    compressed = name.endswith((".gz", ".mgz"))
    stream_too = dice is not None and compressed and dice.random() < 0.3
    if dice is not None and not stream_too:
        content = mutated(content, target.header, dice)
    size = len(content)
    if compressed:
        content = gzip.compress(content, 1, mtime=0)
    if dice is not None and stream_too:
        content = mutated(content, None, dice)
    return content, size


def main() -> int:
    """Runs; prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    dice = random.Random(given.seed)
    chosen = targets()
    outcomes: Counter[str] = Counter()
    slowest, largest, faults = (0.0, ""), (0, ""), 0
    start = time.monotonic()
    tracemalloc.start()
    memory = Path("/dev/shm")  # opening files takes most of the time elsewhere
    within = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="voxtune-fuzz-", dir=within) as folder:
        for number in range(-len(chosen), given.count):
            # First each good file as it is: a reader that refuses everything shall not pass.
            key = [*chosen][number] if number < 0 else dice.choice([*chosen])
            target, held = chosen[key], 0
            for name in target.files:
                content, size = on_disk(target, name, dice if number >= 0 else None)
                (Path(folder) / name).write_bytes(content)
                held += size
            tracemalloc.reset_peak()
            before, begin, fault = tracemalloc.get_traced_memory()[0], time.monotonic(), ""
            try:
                load = load_image if number < 0 or number % 2 else load_label
                result = outcome(Path(folder) / key, load)
                outcomes[result] += 1
                if number < 0 and result != "volume":
                    fault = "the good file is refused"
            except Exception as error:  # what is not our sentence is the fault looked for
                fault = f"{type(error).__name__}: {error}"
            seconds = time.monotonic() - begin
            taken = tracemalloc.get_traced_memory()[1] - before
            slowest = max(slowest, (seconds, f"number {number}, {key}"))
            largest = max(largest, (taken, f"number {number}, {key}"))
            if seconds > MAX_SECONDS:
                fault = f"took {seconds:.1f} s"
            if taken > MAX_BYTES + MAX_RATIO * held:
                fault = f"took {taken / 2**20:.1f} MB for {held} bytes"
            if fault:
                faults += 1
                kept = Path(tempfile.mkdtemp(prefix="voxtune-fault-"))
                for name in target.files:
                    shutil.copy(Path(folder) / name, kept)
                print(f"number {number}, {key}: {fault}\n  kept in {kept / key}")
    print(
        f"seed {given.seed}: {given.count} mutations in {time.monotonic() - start:.1f} s, "
        f"{dict(outcomes)}, slowest {slowest[0]:.2f} s ({slowest[1]}), most memory "
        f"{largest[0] / 2**20:.1f} MB ({largest[1]}), {faults} faults"
    )
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
