"""The subjects table: a CSV with `subject,image,label` and, if wanted, `split`.

Columns `image_t1`, `image_flair` and so on in the place of `image` are channels, in that order.
Paths are relative to the CSV. Each row is one subject; its name also names its output files.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxtune.models.errors import InputError

SPLITS = ("train", "validation", "test")
UNNAMED = ("image",)  # the channels of a table that does not name its only one
_CHANNEL = "image_"  # what the names of channels' columns begin with


@dataclass(frozen=True)
class Subject:
    """One row of the table.

    Attributes:
        name: unique, usable as a file name.
        images: channel → file, in the table's order; "image" where it names no channel.
        label: the label map; None when the table was read without labels.
        split: "train", "validation" or "test"; None when the table has no such column.
    """

    name: str
    images: Mapping[str, Path]
    label: Path | None
    split: str | None

    @property
    def image(self) -> Path:
        """The first of its images."""
        return next(iter(self.images.values()))

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of its images; all subjects of a table have the same."""
        return tuple(self.images)

    def taking(self, channels: Sequence[str]) -> "Subject":
        """The subject with these images alone, in this order."""
        return replace(self, images={name: self.images[name] for name in channels})


def read_subjects(
    path: str | Path, need_label: bool = True, split: str | None = None
) -> tuple[Subject, ...]:
    """Read and check a subjects table.

    A byte order mark (as Excel writes) and blank lines are fine.

    Args:
        path: the CSV.
        need_label: False ignores the label column, which then may be absent or name lost files.
        split: gives the subjects of this split alone. The whole table is checked all the same.

    Raises:
        InputError: the table cannot be read, has no rows, lacks a column, has both a column image
            and columns of channels, an empty cell, an unknown split or a name that cannot be a file
            name; a file does not exist; a subject is there twice; one image is in two splits.
    """
    path = Path(path)
    header, rows = _read_cells(path)
    images = _image_columns(path, header)
    wanted = ("subject", *images, *(["label"] * need_label))
    _check_header(path, header, wanted)
    if not rows:
        raise InputError(f"{path} has a header but no subjects: add one row for each")
    columns = (*wanted, "split") if "split" in header else wanted
    subjects = []
    for number, cells in rows:
        row = _named_cells(path, number, header, cells, columns)
        subjects.append(_subject(path, number, row, images))
    _check_unique(path, subjects)
    _check_leaks(path, subjects)
    chosen = tuple(each for each in subjects if split is None or each.split == split)
    if not chosen:
        raise InputError(f"{path} has no subject in the split {split}: check its column split")
    return chosen


def write_subjects(path: Path, splits: Mapping[str, Sequence[Subject]]) -> None:
    """Writes a subjects table, paths relative to it.

    Args:
        path: the CSV.
        splits: split → its subjects, with labels, all of the same channels.
    """
    folder = path.absolute().parent
    every = [each for subjects in splits.values() for each in subjects]
    channels = every[0].channels if every else UNNAMED
    images = channels if channels == UNNAMED else [f"{_CHANNEL}{name}" for name in channels]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("subject", *images, "label", "split"))
        for split, subjects in splits.items():
            for each in subjects:
                files = (*each.images.values(), each.label)
                shown = (os.path.relpath(file, folder) for file in files if file)
                writer.writerow((each.name, *shown, split))


def _read_cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the rows that are not blank, each with the number of its line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give the CSV that lists the subjects") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): give the CSV that lists the subjects"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} is not a CSV file in UTF-8 ({error}): export the table as one"
        ) from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise InputError(f"{path} is empty: give it a header subject,image,label and rows")
    return lines[0][1], lines[1:]


def _image_columns(path: Path, header: list[str]) -> tuple[str, ...]:
    """Names of the columns with images, in the table's order."""
    channels = tuple(dict.fromkeys(name for name in header if name.startswith(_CHANNEL)))
    if not channels:
        return UNNAMED
    if "image" in header:
        raise InputError(
            f"{path} has a column image and also {', '.join(channels)}: give one image a subject "
            "in a column image, or several in columns image_NAME, not both"
        )
    if _CHANNEL in channels:
        raise InputError(f"{path} has a column called {_CHANNEL}: name its channel, as in image_t1")
    return channels


def _check_header(path: Path, header: list[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in header]
    if missing:
        found = ", ".join(header)
        raise InputError(
            f"{path} has no column {' and no column '.join(missing)}, only: {found}; "
            f"its first line must name {','.join(wanted)}, separated by commas"
        )
    twice = [name for name in (*wanted, "split") if header.count(name) > 1]
    if twice:
        raise InputError(f"{path} has two columns called {twice[0]}: keep one")


def _named_cells(
    path: Path, number: int, header: list[str], cells: list[str], columns: Sequence[str]
) -> dict[str, str]:
    """Cells of one row under the names of the columns that are used."""
    if len(cells) > len(header):
        raise InputError(
            f"{path} has {len(cells)} cells in row {number} but {len(header)} columns: "
            "put cells that contain a comma in double quotes"
        )
    # Spreadsheets leave trailing empty cells out.
    row = dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=True))
    empty = [name for name in columns if not row[name]]
    if empty:
        raise InputError(f"{path} has nothing under {empty[0]} in row {number}: fill it in")
    return {name: row[name] for name in columns}


def _subject(path: Path, number: int, row: dict[str, str], images: Sequence[str]) -> Subject:
    name, split = row["subject"], row.get("split")
    if name in (".", "..") or any(sign in name for sign in '/\\\0\n\r:*?"<>|'):
        raise InputError(
            f"{path} has a subject called {name!r} in row {number}, which cannot be a file name: "
            "use letters, digits, - and _"
        )
    if split is not None and split not in SPLITS:
        raise InputError(
            f"{path} has the split {split!r} in row {number}: write one of {', '.join(SPLITS)}"
        )
    for column in (*images, "label"):
        if column in row and not _is_file(path.parent / row[column]):
            raise InputError(
                f"{path.parent / row[column]} is not a file, the {column} of {name} in row "
                f"{number} of {path}: correct the path, which is relative to the table"
            )
    label = path.parent / row["label"] if "label" in row else None
    files = {column.removeprefix(_CHANNEL): path.parent / row[column] for column in images}
    return Subject(name, files, label, split)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than the file system allows
        return False


def _check_unique(path: Path, subjects: Sequence[Subject]) -> None:
    first: dict[str, Subject] = {}
    for subject in subjects:
        other = first.setdefault(subject.name, subject)
        if other is subject:
            continue
        if other.split != subject.split:
            raise InputError(
                f"{path} has subject {subject.name} in two splits, {other.split} and "
                f"{subject.split}: what is trained on cannot be tested on, keep one row"
            )
        raise InputError(
            f"{path} has subject {subject.name} twice: keep one row, or give each its own name"
        )


def _check_leaks(path: Path, subjects: Sequence[Subject]) -> None:
    """No image may be in two splits, whatever its rows are called."""
    first: dict[str, Subject] = {}
    for subject in subjects:
        for image in subject.images.values():
            other = first.setdefault(os.path.realpath(image), subject)
            if other.split != subject.split:
                raise InputError(
                    f"{path} has the image {image} in two splits, as {other.name} in "
                    f"{other.split} and as {subject.name} in {subject.split}: keep one row"
                )
