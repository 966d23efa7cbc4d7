"""Label maps: what is made of the values in label files before they are learned. No JAX here."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from voxtune.engine.subjects import is_text
from voxtune.engine.volume import Volume
from voxtune.models.errors import InputError

LARGEST = 65535  # labels are stored as uint16 at most
_SHOWN = 10  # values that a sentence lists
_SHOWN_CHARACTERS = 60
_HEADERS = (["original", "new"], ["original", "new", "name"])
_FORMATS = (
    "give a CSV with the columns original,new and, if wanted, name, or FreeSurfer's colour table"
)


@dataclass(frozen=True)
class LabelMap:
    """Label values of a file → those to learn: by the mapping, then what is kept, then binarised.

    Attributes:
        mapping: value in the file → new value, 0 to 0 where it does not say otherwise; None leaves
            all values as they are.
        names: new value → its name, for those that have one.
        keep: new values that stay, all others become background; empty keeps all.
        binarise: whether all that is not background then becomes 1.
        unlisted: whether values that the mapping does not list are an error or background.
    """

    mapping: Mapping[int, int] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    keep: tuple[int, ...] = ()
    binarise: bool = False
    unlisted: Literal["error", "background"] = "error"

    def __call__(self, volume: Volume) -> Volume:
        """A whole label map with the new values, uint8, or uint16 where one is above 255.

        Raises:
            InputError: it has values that are not listed, or that no label can have.
        """
        values = np.unique(volume.data)
        new = np.array(self.new_values(values.tolist(), volume.path))
        dtype = np.uint8 if new.max() <= 255 else np.uint16
        return replace(volume, data=new.astype(dtype)[np.searchsorted(values, volume.data)])

    def new_values(self, values: Sequence[int], name: object) -> tuple[int, ...]:
        """What some values become.

        Args:
            values: of a label map.
            name: what a message should call that, its file at best.

        Raises:
            InputError: some are not listed, or no label can have what they become.
        """
        if self.mapping is not None and self.unlisted == "error":
            unlisted = [each for each in values if each and each not in self.mapping]
            if unlisted:
                raise InputError(
                    f"{name} has label values that the label map does not list "
                    f"({_listed(unlisted)}): add them to it, or pass --unlisted background"
                )
        new = tuple(map(self._new, values))
        wrong = [each for each, to in zip(values, new, strict=True) if not 0 <= to <= LARGEST]
        if wrong:
            raise InputError(
                f"{name} has label values that are not between 0 and {LARGEST} "
                f"({_listed(wrong)}): give them new ones with --label-map"
            )
        return new

    def _new(self, value: int) -> int:
        new = value
        if self.mapping is not None:
            new = self.mapping.get(value, 0)
        if self.keep and new not in self.keep:
            new = 0
        return int(new != 0) if self.binarise else new


def read_label_map(
    path: Path | None,
    keep: Sequence[int] = (),
    binarise: bool = False,
    unlisted: Literal["error", "background"] = "error",
) -> LabelMap:
    """Reads what label values become.

    Args:
        path: a CSV of rows `original,new` or `original,new,name`, a header above them or not; or
            FreeSurfer's colour table, `id name R G B A` a line, which gives names alone: each value
            becomes itself. Empty lines and those that begin with # count for nothing. None
            leaves values as they are.
        keep: see `LabelMap`, as all below.
        binarise: likewise.
        unlisted: likewise.

    Raises:
        InputError: the file cannot be read or contradicts itself, or a value to keep is none of
            its new ones.
    """
    if path is None:
        return LabelMap(None, {}, tuple(keep), binarise, unlisted)
    mapping, names = _read(path)
    strange = [each for each in keep if each not in {0, *mapping.values()}]
    if strange:
        raise InputError(
            f"--keep {' '.join(map(str, strange))} is none of the values that labels become by "
            f"{path}: give some of its new ones"
        )
    kept = {value: name for value, name in names.items() if not keep or value in (0, *keep)}
    if binarise:
        left = [name for value, name in kept.items() if value]
        # One that stands for several has no name.
        kept = {0: kept[0]} if 0 in kept else {}
        if len(left) == 1 and len(keep or set(mapping.values()) - {0}) == 1:
            kept[1] = left[0]
    return LabelMap(mapping, kept, tuple(keep), binarise, unlisted)


def _read(path: Path) -> tuple[dict[int, int], dict[int, str]]:
    """Value → new value, and new value → name."""
    mapping: dict[int, int] = {}
    names: dict[int, str] = {}
    lines: dict[int, int] = {}
    for number, original, new, name in _rows(path):
        place = f"{path} line {number}"
        if original in mapping:
            raise InputError(
                f"{place} lists the value {original}, as line {lines[original]} does: keep one"
            )
        if not 0 <= new <= LARGEST:
            raise InputError(
                f"{place} makes {original} {new}: give new values between 0 and {LARGEST}"
            )
        if not is_text(name):
            raise InputError(f"{place} has a name with control characters: give one without")
        if name and names.setdefault(new, name) != name:
            raise InputError(
                f"{place} calls the new value {new} {name!r}, but it is {names[new]!r} above: give "
                "one name"
            )
        mapping[original], lines[original] = new, number
    if not mapping:
        raise InputError(f"{path} lists no label value: {_FORMATS}")
    return mapping, names


def _rows(path: Path) -> Iterator[tuple[int, int, int, str]]:
    """Number of each line that counts, its value, the new value and its name or ""."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise InputError(f"{path} cannot be read ({reason}): {_FORMATS}") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    read = _csv_row if lines and "," in lines[0][1] else _colour_row
    for index, (number, line) in enumerate(lines):
        try:
            if index == 0 and [cell.lower() for cell in _cells(line)] in _HEADERS:
                continue
            yield number, *read(line)
        except (ValueError, csv.Error) as error:
            shown = repr(line[:_SHOWN_CHARACTERS])
            raise InputError(
                f"{path} line {number} is not understood ({shown}): {_FORMATS}"
            ) from error


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]))]


def _csv_row(line: str) -> tuple[int, int, str]:
    original, new, *rest = _cells(line)
    name, *more = rest or [""]
    if any(more):
        raise ValueError
    return _whole(original), _whole(new), name


def _colour_row(line: str) -> tuple[int, int, str]:
    value, name, red, green, blue, *_ = line.split()
    if not all(level.isdecimal() for level in (red, green, blue)):
        raise ValueError
    return _whole(value), _whole(value), name


def _whole(text: str) -> int:
    if not re.fullmatch("[+-]?[0-9]+", text):  # int() reads 1_0 as 10
        raise ValueError
    return int(text)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + ", ..." * (len(values) > _SHOWN)
