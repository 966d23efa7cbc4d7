"""What was measured, a JSON line each, in a file for each kind of machine. No JAX here."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtune.benchmarks.measurement import Measurement, Work
from voxtune.models.errors import InputError

LARGEST = 10**8  # bytes of a file: a line has about two thousand, so of fifty thousand figures
# What figures can be; quotients of a few of them are finite, and none is by zero.
_FAR = 1e30
_SECONDS = 1e-9, 1e9
_RATES = 1.0, _FAR  # FLOP/s, bytes/s


@dataclass(frozen=True)
class Place:
    """By what and where something was measured.

    Attributes:
        revision: of voxtune's source; its version where that is no checkout.
        date: of the day, `2026-01-31`.
        machine: kind of device, how many, and cores of the host: what figures depend on.
        versions: package → version.
        flags: variables that JAX and XLA heed, as they were set.
        copy: bytes/s that the device reads and writes of its memory; None where that is not known.
        products: data type → FLOP/s of the device in matrix products.
        platform: of the device, as JAX names it.
    """

    revision: str
    date: str
    machine: str
    versions: Mapping[str, str]
    flags: Mapping[str, str]
    copy: float | None = None
    products: Mapping[str, float] = dataclasses.field(default_factory=dict)
    platform: str = ""


@dataclass(frozen=True)
class Entry:
    """A line of the history."""

    place: Place
    measurement: Measurement

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `of` reads them."""
        return {**dataclasses.asdict(self.place), **dataclasses.asdict(self.measurement)}

    @staticmethod
    def of(content: Mapping[str, Any]) -> "Entry":
        """What `to_json` gave; fields that have a default may be missing.

        Raises:
            ValueError: it is something else; why, in words.
        """
        if not isinstance(content, Mapping):
            raise ValueError("is no JSON object")
        for name in content:
            if name not in _FIELDS:
                raise ValueError(f"has the field {name!r:.40}, which this version does not know")
        if odd := unfit(content):
            raise ValueError(f"has a field '{odd[0]}' that is none of a measurement")
        values = dict(content)
        names = [each.name for each in dataclasses.fields(Place) if each.name in values]
        try:
            place = Place(**{name: values.pop(name) for name in names})
            values["work"] = Work(**values.get("work", {}))
            for name in ("seconds", "floors"):
                values[name] = tuple(values.get(name, ()))
            measurement = Measurement(**values)
        except TypeError as error:
            raise ValueError("lacks a field, or has one too many in 'work'") from error
        if measurement.floors and len(measurement.floors) != len(measurement.seconds):
            raise ValueError("has another number of 'floors' than of 'seconds'")
        return Entry(place, measurement)


def unfit(content: Mapping[str, Any]) -> list[str]:
    """Fields that are none of an entry, as of a figure that is not finite.

    Args:
        content: field → value; of those that an entry has.
    """
    return [name for name, value in content.items() if not _FIELDS[name](value)]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _FAR


def _within(limits: tuple[float, float]) -> Callable[[Any], bool]:
    return lambda value: _is_figure(value) and limits[0] <= value <= limits[1]


_is_time, _is_rate = _within(_SECONDS), _within(_RATES)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_figure(value) and value >= 0


def _is_setting(value: Any) -> bool:
    return isinstance(value, str | bool) or _is_figure(value)


def _maybe(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_one(value)


def _all(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(is_one, value))


def _named(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_one, value.values()))


# Field → whether it can be so; all of `Place` and `Measurement`.
_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("revision", "date", "machine", "platform"), _is_text),
    **dict.fromkeys(("versions", "flags"), _named(_is_text)),
    "copy": _maybe(_is_rate),
    "products": _named(_is_rate),
    **dict.fromkeys(("suite", "case", "program", "version", "problem"), _is_text),
    "settings": _named(_is_setting),
    "seconds": _all(_is_time),
    "floors": _all(_is_rate),
    "work": _named(_is_count),
    "first": _maybe(_is_time),
    "memory": _maybe(_is_count),
    "values": _named(_is_figure),
}


def file_of(folder: Path, machine: str) -> Path:
    """Where the lines of a kind of machine are."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', machine.lower()).strip('-')}.jsonl"


def append(folder: Path, entry: Entry) -> None:
    """Adds a line.

    Raises:
        InputError: it cannot be written.
        ValueError: it could not be read again, as of a figure that is not finite.
    """
    path = file_of(folder, entry.place.machine)
    content = entry.to_json()
    Entry.of(content)
    line = f"{json.dumps(content)}\n".encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as stream:  # at once, so that no stop leaves half a line
            written = stream.write(line)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}).") from error
    if written != len(line):
        raise InputError(f"{path} cannot be written, as its disk is full; remove its last line.")


def read(folder: Path) -> list[Entry]:
    """All lines of all machines, in the order of their files and of time.

    Raises:
        InputError: the folder or a file cannot be read, a file is none or far too large, or a line
            is none of a history.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder; name the folder of the history.")
    return [each for path in sorted(folder.glob("*.jsonl")) for each in _of_file(path)]


def _of_file(path: Path) -> list[Entry]:
    try:
        if not path.is_file():  # a device or a pipe might never end
            raise InputError(f"{path} is no file; move it away.")
        with path.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    if len(content) > LARGEST:
        raise InputError(
            f"{path} is larger than {LARGEST:,} bytes, which no history is; move it away."
        )
    lines = content.split(b"\n")
    if lines[-1]:
        raise InputError(f"{path}, line {len(lines)}, is not written to its end; remove it.")
    return [_of_line(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]


def _of_line(place: str, line: bytes) -> Entry:
    try:
        return Entry.of(json.loads(line))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{place}, is no line of a history; remove it.") from error
    except ValueError as error:
        raise InputError(
            f"{place}, {error}; remove the line, or update voxtune if a later one wrote it."
        ) from error
