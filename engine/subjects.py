"""The subjects table: a CSV with `subject,image,label` and, if wanted, `split`.

Columns `image_t1`, `image_flair` and so on in the place of `image` are channels, in that order.
Without any of them it is a table of label maps alone. Paths are relative to the CSV. Each row is
one subject; its name also names its output files. No JAX here.
"""

import csv
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxtune.models.errors import InputError

SPLITS = ("train", "validation", "test")
UNNAMED = ("image",)  # the channels of a table that does not name its only one
_CHANNEL = "image_"  # what the names of channels' columns begin with
_LONGEST_NAME = 200  # bytes; file systems take 255, and files of a subject have longer names


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


@dataclass(frozen=True)
class Problem:
    """What is wrong with a subject.

    Attributes:
        subject: its name, or the number of its row where it has none.
        file: which of its files; None where it is the table.
        sentence: that says so, and what to do.
    """

    subject: str
    file: Path | None
    sentence: str


def read_subjects(
    path: str | Path,
    need_label: bool = True,
    split: str | None = None,
    need_image: bool = True,
) -> tuple[Subject, ...]:
    """Read and check a subjects table.

    A byte order mark (as Excel writes) and blank lines are fine.

    Args:
        path: the CSV.
        need_label: False ignores the label column, which then may be absent or name lost files.
        split: gives the subjects of this split alone. The whole table is checked all the same.
        need_image: False lets a table without image columns pass, which is of label maps alone.

    Raises:
        InputError: the table cannot be read, has no rows, lacks a column, has both a column image
            and columns of channels, an empty cell, an unknown split or a name that cannot be a file
            name; a file does not exist; a subject is there twice; one image is in two splits.
    """
    path = Path(path)
    subjects, problems = find_subjects(path, need_label, need_image)
    if problems:
        raise InputError(problems[0].sentence)
    chosen = tuple(each for each in subjects if split is None or each.split == split)
    if not chosen:
        raise InputError(f"{path} has no subject in the split {split}: check its column split")
    return chosen


def find_subjects(
    path: str | Path, need_label: bool = True, need_image: bool = True, need_files: bool = True
) -> tuple[list[Subject], list[Problem]]:
    """The subjects of a table whose rows are sound, and all that is wrong with the others.

    Args:
        path: the CSV.
        need_label: see `read_subjects`.
        need_image: likewise.
        need_files: False does not look whether the files exist.

    Raises:
        InputError: the table itself cannot be read, has no rows or lacks a column.
    """
    path = Path(path)
    header, rows = _read_cells(path)
    images = _image_columns(path, header, need_image)
    wanted = ("subject", *images, *(["label"] * need_label))
    _check_header(path, header, wanted)
    if not rows:
        raise InputError(f"{path} has a header but no subjects: add one row for each")
    columns = (*wanted, "split") if "split" in header else wanted
    subjects, problems = [], []
    for number, cells in rows:
        row, sentences = _named_cells(path, number, header, cells, columns)
        found = [Problem(row.get("subject") or f"row {number}", None, each) for each in sentences]
        if not found:
            found = list(_row_problems(path, number, row, images, need_files))
        problems += found
        if not found:
            subjects.append(_subject(path, row, images))
    problems += _repeated(path, subjects)
    problems += _leaks(path, subjects)
    return subjects, problems


def write_subjects(
    path: Path, splits: Mapping[str, Sequence[Subject]] | Mapping[None, Sequence[Subject]]
) -> None:
    """Writes a subjects table, paths relative to it.

    Args:
        path: the CSV.
        splits: split → its subjects, with labels, all of the same channels; None alone writes no
            column of splits.
    """
    folder = path.parent.resolve()  # where ".." starts from, whatever links lead here
    every = [each for subjects in splits.values() for each in subjects]
    channels = every[0].channels if every else UNNAMED
    images = channels if channels == UNNAMED else [f"{_CHANNEL}{name}" for name in channels]
    column = () if set(splits) == {None} else ("split",)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("subject", *images, "label", *column))
        for split, subjects in splits.items():
            for each in subjects:
                files = (*each.images.values(), each.label)
                shown = (
                    os.path.relpath(file.parent.resolve() / file.name, folder)
                    for file in files
                    if file
                )
                writer.writerow((each.name, *shown, *([split] if column else [])))


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


def _image_columns(path: Path, header: list[str], need_image: bool) -> tuple[str, ...]:
    """Names of the columns with images, in the table's order."""
    channels = tuple(dict.fromkeys(name for name in header if name.startswith(_CHANNEL)))
    if not channels:
        return UNNAMED if need_image or "image" in header else ()
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
) -> tuple[dict[str, str], list[str]]:
    """Cells of one row under the names of the columns that are used, and what is wrong."""
    if len(cells) > len(header):
        return {}, [
            f"{path} has {len(cells)} cells in row {number} but {len(header)} columns: "
            "put cells that contain a comma in double quotes"
        ]
    # Spreadsheets leave trailing empty cells out.
    row = dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=True))
    wrong = [
        f"{path} has nothing under {name} in row {number}: fill it in"
        for name in columns
        if not row[name]
    ]
    return {name: row[name] for name in columns}, wrong


def _row_problems(
    path: Path, number: int, row: dict[str, str], images: Sequence[str], need_files: bool
) -> Iterator[Problem]:
    name, split = row["subject"], row.get("split")
    if not is_file_name(name):
        yield Problem(
            name,
            None,
            f"{path} has a subject called {name!r} in row {number}, which cannot be a file name: "
            f"use letters, digits, - and _, {_LONGEST_NAME} of them at most",
        )
    if split is not None and split not in SPLITS:
        yield Problem(
            name,
            None,
            f"{path} has the split {split!r} in row {number}: write one of {', '.join(SPLITS)}",
        )
    for column in (*images, "label"):
        file = path.parent / row.get(column, "")
        if need_files and column in row and not _is_file(file):
            yield Problem(
                name,
                file,
                f"{file} is not a file, the {column} of {name} in row {number} of {path}: "
                "correct the path, which is relative to the table",
            )


def _subject(path: Path, row: dict[str, str], images: Sequence[str]) -> Subject:
    label = path.parent / row["label"] if "label" in row else None
    files = {column.removeprefix(_CHANNEL): path.parent / row[column] for column in images}
    return Subject(row["subject"], files, label, row.get("split"))


def is_file_name(name: str) -> bool:
    """Whether a subject's name can be that of a file, on any system, and not of a hidden one."""
    fits = 0 < len(name.encode(errors="replace")) <= _LONGEST_NAME and is_text(name)
    return fits and name[0] != "." and not any(sign in name for sign in '/\\:*?"<>|')


def is_text(name: str) -> bool:
    """Whether a name has no control characters, which terminals obey, and can be UTF-8."""
    return not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than the file system allows
        return False


def _repeated(path: Path, subjects: Sequence[Subject]) -> Iterator[Problem]:
    """Subjects that are there already."""
    first: dict[str, Subject] = {}
    for subject in subjects:
        other = first.setdefault(subject.name, subject)
        if other is subject:
            continue
        sentence = (
            f"{path} has subject {subject.name} twice: keep one row, or give each its own name"
        )
        if other.split != subject.split:
            sentence = (
                f"{path} has subject {subject.name} in two splits, {other.split} and "
                f"{subject.split}: what is trained on cannot be tested on, keep one row"
            )
        yield Problem(subject.name, None, sentence)


def _leaks(path: Path, subjects: Sequence[Subject]) -> Iterator[Problem]:
    """Images, or label maps where there are none, that are in two splits, whatever their names."""
    first: dict[str, Subject] = {}
    for subject in subjects:
        for file in subject.images.values() or filter(None, [subject.label]):
            other = first.setdefault(os.path.realpath(file), subject)
            if other.split != subject.split and other.name != subject.name:
                yield Problem(
                    subject.name,
                    file,
                    f"{path} has the image {file} in two splits, as {other.name} in "
                    f"{other.split} and as {subject.name} in {subject.split}: keep one row",
                )
