"""Tables of scores: on a terminal of 100 columns, as CSV and as JSON."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from io import StringIO
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from voxtune.engine.score import DEFINITIONS, MEASURES, Score
from voxtune.engine.score_summary import (
    Summary,
    grouped,
    mean_of,
)
from voxtune.engine.statistics import CONFIDENCE, RESAMPLES, SEED
from voxtune.engine.volume import written_beside
from voxtune.models.errors import InputError

FORMAT = "voxtune evaluation 1"
_HEADER = ("subject", "value", "class", *MEASURES)
_CSV_BEGINS = b"subject,value,class,dice,"  # as did earlier, shorter tables
# With more classes the terminal shows their means, and Dice alone of each class.
_MOST_CLASSES = 6
_SHOWN = {
    "dice": "Dice",
    "hd95_mm": "HD95, mm",
    "surface_dice": "surface Dice",
    "difference_ml": "volume off, ml",
}


def subject_table(rows: Sequence[Score]) -> Table:
    """A row for each subject and class; of many classes one with their means."""
    classes = {row.value for row in rows}
    several, narrow = len(classes) > 1, len(classes) > _MOST_CLASSES
    lesions = not narrow and has_lesions(rows)
    result = _table("Each subject, mean of classes" if narrow else "Each subject")
    if narrow:
        result.caption = f"{len(classes)} classes; a CSV or JSON file (-o) has each of them"
    result.add_column("subject", overflow="fold", max_width=30)
    if several and not narrow:
        result.add_column("class", overflow="fold", max_width=16)
    names = ["Dice", "HD95, mm", "surface Dice"]
    names += [] if narrow else ["predicted ml", "true ml"]
    for name in (*names, *(["lesions found", "false"] if lesions else [])):
        result.add_column(name, justify="right")
    for subject, own in grouped(rows, lambda row: row.subject).items():
        for row in [None] if narrow else own:
            shown = own if row is None else [row]
            cells = [number(mean_of(shown, measure)) for measure in list(_SHOWN)[:3]]
            if row is not None:
                cells = [row.name, *cells] if several else cells
                cells += [f"{row.predicted_ml:.2f}", f"{row.true_ml:.2f}"]
                if lesions:
                    cells += [f"{row.lesions_found} of {row.lesions_true}", str(row.lesions_false)]
            result.add_row(subject if row is None or row is own[0] else "", *cells)
    return result


def summary_table(rows: Sequence[Score], summaries: Sequence[Summary]) -> Table:
    """For each class, and the mean of classes, a row for each of the measures that matter most."""
    result = _table("Over subjects")
    result.caption = "out: subjects left out of the rest, where it is undefined"
    if len({row.value for row in rows}) > 1:
        result.caption += "; of the mean of classes, where it is so for any class in either map"
    result.add_column("class", overflow="fold", max_width=18)
    result.add_column("")
    columns = ("n", "out", "mean", "95 % interval", "SD", "median", "min", "max")
    for name in columns:
        result.add_column(name, justify="right", no_wrap=True)
    classes = len({row.value for row in rows})
    measures = dict(_SHOWN)
    if has_lesions(rows):
        measures["lesion_f1"] = "lesion F1"
    last: int | None = -1
    order = list(measures)
    shown = [each for each in summaries if each.measure in measures]
    # Stable: classes stay as they are, their measures are ordered as shown.
    places = {value: place for place, value in enumerate(dict.fromkeys(s.value for s in shown))}
    shown.sort(key=lambda each: (places[each.value], order.index(each.measure)))
    for each in shown:
        few = classes <= _MOST_CLASSES or each.value is None
        if each.measure not in (measures if few else ("dice",)):
            continue
        new = each.value != last
        if new and last != -1 and few:
            result.add_section()
        last = each.value
        interval = "-" if math.isnan(each.low) else f"{number(each.low)} to {number(each.high)}"
        numbers = (each.sd, each.median, each.minimum, each.maximum)
        result.add_row(
            each.name if new else "",
            measures[each.measure],
            str(each.n),
            str(each.left_out),
            number(each.mean),
            interval,
            *map(number, numbers),
        )
    return result


def has_lesions(rows: Sequence[Score]) -> bool:
    """Whether a class comes in several parts, in at least half of the subjects that have it."""
    for own in grouped(rows, lambda row: row.value).values():
        numbers = [row.lesions_true for row in own if row.lesions_true]
        if numbers and 2 * sum(each > 1 for each in numbers) >= len(numbers):
            return True
    return False


def number(value: float) -> str:
    """Three decimals, fewer of large numbers, and "-" for NaN."""
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def check_table(path: Path, overwrite: bool) -> None:
    """Makes sure that a table may be written.

    Raises:
        InputError: it has another ending than .csv or .json, is there and may not be replaced, was
            not written by this command, or its folder is missing.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file: name the CSV or JSON file to write")
    if path.suffix.lower() not in (".csv", ".json"):
        raise InputError(f"{path} must end in .csv or .json: name the table so")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: give another name, or pass --overwrite")
    if path.exists() and not _is_ours(path):
        raise InputError(f"{path} is no table that voxtune wrote: give another name")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.parent} is no folder")


def write_table(
    path: Path, rows: Sequence[Score], summaries: Sequence[Summary], options: Mapping[str, Any]
) -> None:
    """Writes all rows, and as JSON the summary, the definitions and the options too.

    Args:
        path: ends in .csv or .json.
        rows: undefined numbers are empty cells, or null.
        summaries: of these.
        options: further entries of the JSON file, without any of a person's paths.

    Raises:
        InputError: it cannot be written.
    """
    text = _csv(rows) if path.suffix.lower() == ".csv" else _json(rows, summaries, options)
    with written_beside(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _csv(rows: Sequence[Score]) -> str:
    stream = StringIO()
    writer = csv.writer(stream)
    writer.writerow(_HEADER)
    for row in rows:
        subject, value, name, *numbers = astuple(row)
        writer.writerow((subject, value, name, *("" if math.isnan(n) else n for n in numbers)))
    return stream.getvalue()


def _json(rows: Sequence[Score], summaries: Sequence[Summary], options: Mapping[str, Any]) -> str:
    content = {
        "format": FORMAT,
        **options,
        "definitions": DEFINITIONS,
        "interval": {
            "of": "mean",
            "method": "symmetric studentised bootstrap over subjects",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "summary": [_entry(asdict(each)) for each in summaries],
        "subjects": [_entry(asdict(row)) for row in rows],
    }
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _entry(values: dict[str, Any]) -> dict[str, Any]:
    """With `class` for `name`, as in the CSV, and None for NaN."""
    return {
        "class" if key == "name" else key: None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in values.items()
    }


def _is_ours(path: Path) -> bool:
    begin = path.read_bytes()[:200]
    if path.suffix.lower() == ".csv":
        return begin.startswith(_CSV_BEGINS)
    return b'"format": "voxtune evaluation' in begin


def _table(title: str) -> Table:
    return Table(
        title=title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
    )
