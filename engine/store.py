"""The store: prepared subjects, of which a block can be read without the rest. No JAX here.

    STORE/
      store.json        what was done, and of each subject all but its voxels
      subjects.csv      the subjects table, paths relative to the store
      subjects/NAME/
        image.npy       int16 or float16 [D, H, W, C], or image.zarr
        label.npy       uint8 or uint16 [D, H, W], or label.zarr; of a target as the image
        positions.npy   int16 [N, 3], of each label value but 0 some voxels, in order of the values
        case.json       this subject's part of store.json

A subject's folder appears whole, by a rename. store.json lists subjects once all are there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtune.engine.arrays import is_remote, read_bytes
from voxtune.engine.case import Case
from voxtune.engine.contract import Contract
from voxtune.engine.options import Labelling
from voxtune.engine.output import make_folder
from voxtune.engine.preparation import Preparation
from voxtune.engine.stored_case import (
    CASES,
    MALFORMED,
    ArrayFormat,
    Record,
    open_case,
    read_record,
)
from voxtune.engine.subjects import SPLITS, Subject, find_subjects, write_subjects
from voxtune.engine.volume import written_beside
from voxtune.models.errors import InputError

DOCUMENT, TABLE = "store.json", "subjects.csv"
_FORMAT, _VERSION = "voxtune store", 1
_SPATIAL = ("orientation", "spacing_mm", "grid", "target")
_OF_IMAGES = ("interpolation", "intensity", "window", "channels")


@dataclass(frozen=True, eq=False)
class Store:
    """Prepared subjects.

    Attributes:
        path: the folder, or its address.
        preparation: what was done to them.
        names: label value → name, of those that have one.
        cases: the subjects, in the order of their table; arrays are opened on first use.
        subjects: rows of its subjects table, whose files need not be there any more; none where the
            store is far away, or has lost its table.
    """

    path: str
    preparation: Preparation
    names: Mapping[int, str]
    cases: tuple[Case, ...]
    subjects: tuple[Subject, ...]

    def check(self, contract: Contract, channels: Sequence[str], target: bool = False) -> None:
        """Makes sure that a network can learn from the store.

        Label maps alone suit any channels: the images that are drawn from them do.

        Args:
            contract: the network's.
            channels: names of its images, in the order of its channels.
            target: whether it learns an image.

        Raises:
            InputError: it was prepared in another way.
        """
        mine = self.preparation
        wanted = Preparation.of(contract, channels, Labelling(), target)
        different = mine.differences(wanted, _SPATIAL + _OF_IMAGES * bool(mine.channels))
        if different:
            raise InputError(
                f"{self.path} was prepared for another network ({'; '.join(different)}): prepare "
                "the subjects again, with --model MODEL_DIR"
            )


@dataclass(frozen=True)
class Head:
    """What store.json says but for the subjects.

    Attributes:
        preparation: what is done to them.
        arrays: how arrays are stored.
    """

    preparation: Preparation
    arrays: ArrayFormat


def is_store(path: str | Path) -> bool:
    """Whether a path is a store's, finished or not, or an address, which can be nothing else."""
    return is_remote(str(path)) or Path(path, DOCUMENT).is_file()


def read_store(path: str | Path) -> Store:
    """Opens a store; no array is read.

    Args:
        path: the folder, or its address: gs://, s3://, http:// or https://.

    Raises:
        InputError: it is not there, not finished, damaged, or far away and not made of Zarr arrays.
    """
    place = str(path)
    head, records = _read_document(place)
    if records is None:
        raise InputError(
            f"{place} is not finished: run 'voxtune prepare' for it again, which goes on with it"
        )
    if is_remote(place) and head.arrays == "npy":
        raise InputError(
            f"{place} is made of .npy files, which can be read on a disk alone: copy it to one, or "
            "prepare it with --format zarr"
        )
    cases = []
    for number, record in enumerate(records, 1):
        where = f"{place}/{DOCUMENT} subject {number}"
        try:
            split = record["split"]
            if split not in (None, *SPLITS):
                raise ValueError(f"no split is called {split!r}")
            cases.append(open_case(place, record, split, head.preparation, head.arrays))
        except (*MALFORMED, InputError) as error:
            raise InputError(
                f"{where} cannot be used ({_one_line(error)}): prepare the store again"
            ) from error
    if len({case.name for case in cases}) < len(cases):
        raise InputError(f"{place}/{DOCUMENT} lists a subject twice: prepare the store again")
    names = head.preparation.labels.names
    return Store(place, head.preparation, names, tuple(cases), _subjects(place, head))


def read_head(path: Path) -> Head | None:
    """What a store is made like, finished or not; None where there is no store.

    Raises:
        InputError: its store.json cannot be read.
    """
    return _read_document(str(path))[0] if (path / DOCUMENT).is_file() else None


def start_store(path: Path, head: Head) -> None:
    """Makes the folder of a store that has no subjects yet.

    Raises:
        OSError, InputError: the disk does not take it.
    """
    make_folder(path)
    (path / CASES).mkdir(exist_ok=True)
    _write_document(path, head, None)


def finish_store(path: Path, head: Head, subjects: Sequence[Subject]) -> bool:
    """Writes what makes a store of subjects' folders, if all are there.

    Returns:
        Whether they are.

    Raises:
        OSError, InputError: the disk does not take it.
    """
    records = []
    for subject in subjects:
        record = read_record(path, subject.name)
        if record is None:
            return False
        records.append({"name": subject.name, "split": subject.split, **record})
    with written_beside(path / TABLE) as temporary:
        splits = list(dict.fromkeys(each.split for each in subjects))
        rows: dict[Any, list[Subject]] = {
            split: [each for each in subjects if each.split == split] for split in splits
        }
        write_subjects(temporary, rows)
    _write_document(path, head, records)
    return True


def _read_document(place: str) -> tuple[Head, list[Record] | None]:
    content = read_bytes(place, DOCUMENT)
    if content is None:
        raise InputError(
            f"{place} is not a store: it has no {DOCUMENT}; make one with 'voxtune prepare'"
        )
    try:
        document = json.loads(content)
        if (document["format"], document["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"it is not a '{_FORMAT}' of version {_VERSION}")
        if document["arrays"] not in ("npy", "zarr"):
            raise ValueError(f"arrays are stored as {document['arrays']!r}")
        head = Head(Preparation.from_json(document["preparation"]), document["arrays"])
        records = document["subjects"]
        if records is not None and (type(records) is not list or not records):
            raise TypeError("it lists no subjects")
    except (*MALFORMED, InputError) as error:
        raise InputError(
            f"{place}/{DOCUMENT} cannot be read ({_one_line(error)}): prepare the store again"
        ) from error
    return head, records


def _write_document(path: Path, head: Head, records: Sequence[Record] | None) -> None:
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "arrays": head.arrays,
        "preparation": head.preparation.to_json(),
        "subjects": records,
    }
    with written_beside(path / DOCUMENT) as temporary:
        temporary.write_text(json.dumps(document, allow_nan=False) + "\n")


def _subjects(place: str, head: Head) -> tuple[Subject, ...]:
    if is_remote(place) or not Path(place, TABLE).is_file():
        return ()
    alone = not head.preparation.channels
    found, problems = find_subjects(Path(place, TABLE), need_image=not alone, need_files=False)
    if problems:
        raise InputError(problems[0].sentence)
    return tuple(found)


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    if isinstance(error, KeyError):
        return f"it lacks {lines[0]}"
    return lines[0] or type(error).__name__
