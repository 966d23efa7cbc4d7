"""One subject of a store: its folder, and what is said of it there. No JAX here."""

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from voxtune.engine.arrays import (
    MappedArray,
    ZarrArray,
    inside,
    is_whole,
    read_bytes,
    read_npy,
    write_npy,
    write_zarr,
)
from voxtune.engine.case import Array, Box, Case, Quantised
from voxtune.engine.preparation import Preparation, whole
from voxtune.engine.subjects import is_file_name
from voxtune.engine.volume import MAX_VOXELS
from voxtune.models.errors import InputError

ArrayFormat = Literal["npy", "zarr"]
Record = dict[str, Any]

CASES = "subjects"  # the folder of subjects' folders
_CASE, _POSITIONS, _PARTIAL = "case.json", "positions.npy", ".partial"
_DTYPES = {"image": ("int16", "float16"), "label": ("uint8", "uint16")}
_LARGEST_LABEL = 65535

# What documents of the wrong make raise when they are taken apart.
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class Positions(Mapping[int, np.ndarray]):
    """`Case.positions` of a stored subject, read on first use.

    Args:
        folder: the subject's folder, or its address.
        numbers: label value → how many of its voxels are there.
        shape: of the subject.
    """

    def __init__(
        self, folder: str, numbers: Mapping[int, int], shape: tuple[int, int, int]
    ) -> None:
        self._folder, self._numbers, self._shape = folder, dict(numbers), shape
        self._read: dict[int, np.ndarray] | None = None

    def __getitem__(self, value: int) -> np.ndarray:
        if self._read is None:
            self._read = self._split()
        return self._read[value]

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def _split(self) -> dict[int, np.ndarray]:
        ends = np.cumsum(list(self._numbers.values()))
        shape = (int(ends[-1]) if len(ends) else 0, 3)
        found = read_npy(self._folder, _POSITIONS, shape, np.dtype(np.int16))
        if (found < 0).any() or (found >= self._shape).any():
            raise InputError(
                f"{inside(self._folder, _POSITIONS)} has voxels outside its subject: prepare its "
                "store again"
            )
        return dict(zip(self._numbers, np.split(found, ends[:-1]), strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return Positions, (self._folder, self._numbers, self._shape)


def write_case(
    store: Path, case: Case, arrays: ArrayFormat, sources: Sequence[Mapping[str, str]]
) -> None:
    """Writes a subject's folder, which appears whole or not at all.

    Args:
        store: the store's folder.
        case: the subject.
        arrays: how its arrays are stored.
        sources: name and SHA-256 of each of its files.

    Raises:
        OSError: the disk does not take it.
    """
    write = write_npy if arrays == "npy" else write_zarr
    folder = store / CASES / case.name
    partial = folder.with_name(f".{case.name}{_PARTIAL}")
    _remove(partial)
    partial.mkdir()
    try:
        for name, data in (("image", case.image), ("label", case.label)):
            if data is not None:
                stored = data.stored if isinstance(data, Quantised) else data
                write(partial / f"{name}.{arrays}", np.asarray(stored[...]))
        positions = [np.empty((0, 3), np.int16), *case.positions.values()]
        write_npy(partial / _POSITIONS, np.concatenate(positions))
        record = {**_record(case), "sources": [dict(each) for each in sources]}
        (partial / _CASE).write_text(json.dumps(record, allow_nan=False) + "\n")
        _remove(folder)
        partial.rename(folder)
    finally:
        _remove(partial)


def remove_partial_cases(store: Path) -> None:
    """Takes out what runs that were stopped left of subjects; what cannot be removed stays."""
    for each in (store / CASES).glob(f".*{_PARTIAL}"):
        _remove(each)


def finished_cases(store: Path) -> list[str]:
    """Names of the subjects that have a folder, in the order of the alphabet."""
    return sorted(
        each.parent.name
        for each in (store / CASES).glob(f"*/{_CASE}")
        if not each.parent.name.startswith(".")
    )


def read_record(store: Path, name: str) -> Record | None:
    """What a finished subject's case.json says; None where it is not finished.

    Raises:
        InputError: it cannot be read.
    """
    content = read_bytes(str(store / CASES / name), _CASE)
    if content is None:
        return None
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def is_finished(store: Path, name: str, preparation: Preparation, arrays: ArrayFormat) -> bool:
    """Whether a subject's folder is there, and whole, by headers and sizes of its files."""
    record = read_record(store, name)
    if record is None:
        return False
    try:
        case = open_case(str(store), {**record, "name": name}, None, preparation, arrays)
    except (*MALFORMED, InputError):
        return False
    layouts: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        _POSITIONS: ((sum(record["positions"].values()), 3), np.dtype(np.int16))
    }
    for kind, data in (("image", case.image), ("label", case.label)):
        if data is not None:
            stored = data.stored if isinstance(data, Quantised) else data
            layouts[f"{kind}.{arrays}"] = stored.shape, stored.dtype
    folder = store / CASES / name
    return all(is_whole(folder / file, *layout) for file, layout in layouts.items())


def open_case(
    place: str, record: Record, split: str | None, preparation: Preparation, arrays: ArrayFormat
) -> Case:
    """A stored subject; no array is read, but all that is said of them is checked.

    Args:
        place: the store's folder, or its address.
        record: of store.json.
        split: the subject's.
        preparation: the store's.
        arrays: how arrays are stored.

    Raises:
        InputError: an array is missing or has another size.
        ValueError, KeyError, TypeError, AttributeError, OverflowError: the record makes no sense.
    """
    name = record["name"]
    if not isinstance(name, str) or not is_file_name(name):
        raise ValueError(f"{name!r} is no name of a subject")
    folder = inside(place, CASES, name)
    shape = _three(record["shape"])
    if math.prod(shape) > MAX_VOXELS or min(shape) < 1:
        raise ValueError(f"its shape is {shape}")
    affine = np.array(record["affine"], np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.linalg.det(affine):
        raise ValueError("its affine cannot be inverted")
    channels = len(preparation.channels)
    image = _quantised(folder, "image", record, shape, channels, arrays) if channels else None
    label: Array | Quantised
    if preparation.target:
        label = _quantised(folder, "label", record, shape, 1, arrays)
    else:
        label = _array(folder, "label", record, shape, _DTYPES["label"], arrays)
    counts = {_label(value): whole(number) for value, number in record["counts"].items()}
    if sum(counts.values()) != (0 if preparation.target else math.prod(shape)):
        raise ValueError("its label values are not as many as its voxels")
    boxes = {_label(value): _box(box, shape) for value, box in record["boxes"].items()}
    numbers = {_label(value): whole(each) for value, each in record["positions"].items()}
    known = counts.keys() - {0}
    if boxes.keys() != known or numbers.keys() != known or min(counts.values(), default=1) < 1:
        raise ValueError("its label values are not the same everywhere")
    if any(not 1 <= number <= counts[value] for value, number in numbers.items()):
        raise ValueError("it has more positions than voxels")
    x, y, z = (float(size) for size in record["scan_spacing_mm"])
    if not all(0 < size < math.inf for size in (x, y, z)):
        raise ValueError("its voxels have no size")
    return Case(
        name,
        split,
        image,
        label,
        affine,
        counts,
        boxes,
        Positions(folder, numbers, shape),
        _three(record["scan_shape"]),
        (x, y, z),
        whole(record["replaced"]),
    )


def _remove(path: Path) -> None:
    """Takes out a folder, or whatever else has its name, as far as that may be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def _record(case: Case) -> Record:
    record: Record = {
        "shape": list(case.shape),
        "affine": case.affine.tolist(),
        "counts": {str(value): number for value, number in case.counts.items()},
        "boxes": {str(value): box for value, box in case.boxes.items()},
        "positions": {str(value): len(each) for value, each in case.positions.items()},
        "scan_shape": list(case.scan_shape),
        "scan_spacing_mm": list(case.scan_spacing_mm),
        "replaced": case.replaced,
    }
    for name, data in (("image", case.image), ("label", case.label)):
        if isinstance(data, Quantised):
            scales = {"scale": data.scale.tolist(), "offset": data.offset.tolist()}
            record[name] = {"dtype": data.stored.dtype.name, **scales}
        elif data is not None:
            record[name] = {"dtype": data.dtype.name}
    return record


def _quantised(
    folder: str,
    name: str,
    record: Record,
    shape: tuple[int, int, int],
    channels: int,
    arrays: ArrayFormat,
) -> Quantised:
    stored = _array(folder, name, record, (*shape, channels), _DTYPES["image"], arrays)
    with np.errstate(over="ignore"):  # infinite, which is refused below
        scale, offset = (np.array(record[name][each], np.float32) for each in ("scale", "offset"))
    if scale.shape != (channels,) or offset.shape != (channels,):
        raise ValueError(f"its {name} has not a scale and an offset for each channel")
    if not np.isfinite([scale, offset]).all() or not (scale > 0).all():
        raise ValueError(f"its {name} has a scale that is not above 0, or no finite offset")
    return Quantised(stored, scale, offset)


def _array(
    folder: str,
    name: str,
    record: Record,
    shape: tuple[int, ...],
    dtypes: Sequence[str],
    arrays: ArrayFormat,
) -> Array:
    dtype = record[name]["dtype"]
    if dtype not in dtypes:
        raise ValueError(f"its {name} is of the type {dtype!r}")
    path = inside(folder, f"{name}.{arrays}")
    if arrays == "zarr":
        return ZarrArray(path, shape, np.dtype(dtype))
    found = MappedArray(path, shape, np.dtype(dtype))
    found.check_size()
    return found


def _label(value: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", value) or int(value) > _LARGEST_LABEL:
        raise ValueError(f"{value!r} is no label value")
    return int(value)


def _box(value: Any, shape: tuple[int, int, int]) -> Box:
    low, high = map(_three, value)
    if not all(0 <= a < b <= n for a, b, n in zip(low, high, shape, strict=True)):
        raise ValueError("a box leaves it")
    return low, high


def _three(value: Any) -> tuple[int, int, int]:
    first, second, third = map(whole, value)
    return first, second, third
