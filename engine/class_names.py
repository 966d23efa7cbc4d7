"""classes.csv: what the values of predicted label maps are called, beside these. No JAX here."""

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from voxtune.engine.labels import LARGEST
from voxtune.engine.subjects import is_text
from voxtune.engine.volume import written_beside
from voxtune.models.errors import InputError

CLASSES = "classes.csv"
_MOST_BYTES = 1_000_000


def write_class_names(predictions_dir: Path, names: Mapping[int, str]) -> None:
    """Writes classes.csv beside predictions: `value,name`."""
    with (
        written_beside(predictions_dir / CLASSES) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        csv.writer(stream).writerows([("value", "name"), *names.items()])


def read_class_names(predictions_dir: Path) -> dict[int, str]:
    """Label value → name as classes.csv says; empty where there is none.

    Raises:
        InputError: it is no such list, or a name has control characters.
    """
    path = predictions_dir / CLASSES
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is larger than 1 MB")
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return dict(_rows(csv.DictReader(stream)))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path} is not a list of class names ({error}): delete it, or predict again"
        ) from error


def _rows(reader: "csv.DictReader[str]") -> Iterator[tuple[int, str]]:
    """Raises ValueError where a column is missing, or a row is none of a value and a name."""
    for column in ("value", "name"):
        if column not in (reader.fieldnames or ()):
            raise ValueError(f"it has no column {column}")
    for row in reader:
        value, name = row["value"], row["name"]
        place = f"line {reader.line_num}"
        if not re.fullmatch("[0-9]{1,5}", value or "") or int(value) > LARGEST:
            raise ValueError(f"{place} has no value between 0 and {LARGEST}")
        if name is None:
            raise ValueError(f"{place} has no name")
        if not is_text(name):
            raise ValueError(f"{place} has control characters in its name")
        yield int(value), name
