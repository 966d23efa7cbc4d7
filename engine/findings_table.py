"""Findings of a study as tables: on a terminal of 100 columns, as CSV and as JSON values."""

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from voxtune.engine.findings import Cell, Comparison, Findings
from voxtune.engine.formats import interval, number, p_value, signed
from voxtune.engine.sentences import is_shown, is_spread_shown
from voxtune.engine.statistics import FAILURE
from voxtune.engine.volume import written_beside

TABLE, COMPARISONS = "table.csv", "comparisons.csv"


def summary_tables(findings: Findings) -> list[Table]:
    """One of the cells, one of the comparisons, where there are any."""
    tables = [_cells(findings.cells)]
    return [*tables, _comparisons(findings.comparisons)] if findings.comparisons else tables


def write_csv(findings: Findings, folder: Path) -> None:
    """Writes table.csv and comparisons.csv, each whole or not at all; NaN is an empty cell.

    Raises:
        InputError: the disk does not take it.
    """
    tables: list[tuple[str, type, Sequence[Any]]] = [
        (TABLE, Cell, findings.cells),
        (COMPARISONS, Comparison, findings.comparisons),
    ]
    for name, kind, rows in tables:
        stream = StringIO()
        names = [each.name for each in fields(kind)]
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in asdict(row).items()} for row in rows)
        with written_beside(folder / name) as temporary:
            temporary.write_text(stream.getvalue(), encoding="utf-8", newline="")


def to_json(findings: Findings) -> dict[str, Any]:
    """All findings as JSON values.

    NaN, which is undefined, is null. Infinity is the text "infinite": of a worth in scans, which is
    then more than the largest size of the other arm, or of a ratio of spreads whose other is 0.
    """
    return {
        each.name: [
            one if isinstance(one, str) else _values(asdict(one))
            for one in getattr(findings, each.name)
        ]
        for each in fields(findings)
    }


def _cell(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _values(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_values(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "infinite" if value > 0 else "-infinite"
    return value


def _cells(cells: Sequence[Cell]) -> Table:
    result = _table("Dice over subjects, mean of seeds")
    result.caption = (
        f"fail: subjects with a Dice below {FAILURE:g}, any: the same in each seed by itself, "
        "added up; SD over subjects; HD95, mm: mean of the subjects that have one, out: without"
    )
    result.add_column("scans", justify="right")
    result.add_column("arm", overflow="fold", max_width=18)
    columns = (
        "seeds",
        "n",
        "mean",
        "95 % interval",
        "SD",
        "median",
        "worst",
        "fail",
        "any",
        "HD95",
        "out",
    )
    for name in columns:
        result.add_column(name, justify="right", no_wrap=True)
    last = None
    for each in cells:
        if last not in (None, each.size):
            result.add_section()
        result.add_row(
            str(each.size) if each.size != last else "",
            Text(each.arm),
            str(each.seeds),
            str(each.subjects),
            number(each.mean),
            interval(each.low, each.high),
            number(each.sd),
            number(each.median),
            number(each.worst),
            str(each.failures),
            str(each.failures_any),
            number(each.hd95_mm, 1),
            str(each.hd95_left_out),
        )
        last = each.size
    return result


def _comparisons(comparisons: Sequence[Comparison]) -> Table:
    result = _table(f"Dice of {comparisons[0].arm} minus the others', of the same subjects")
    result.title = Text(str(result.title))
    result.caption = (
        "p: Wilcoxon signed-rank, Holm-corrected; ahead: subjects; *: shown, p < 0.05, the "
        "interval is beside 0, and ranks and mean agree; of SD ratios likewise, by a bootstrap, "
        "corrected by themselves, beside 1"
    )
    result.add_column("scans", justify="right")
    result.add_column("against", overflow="fold", max_width=18)
    columns = ("difference", "95 % interval", "p", "ahead", "seeds", "SD ratio", "95 % interval")
    for name in columns:
        result.add_column(name, justify="right", no_wrap=True)
    last = None
    for each in comparisons:
        if last not in (None, each.size):
            result.add_section()
        result.add_row(
            str(each.size) if each.size != last else "",
            Text(each.other),
            f"{signed(each.difference)}{'*' if is_shown(each) else ' '}",
            interval(each.low, each.high),
            p_value(each.p_holm),
            f"{each.ahead}/{each.subjects}",
            f"{each.seeds_ahead}/{each.seeds}",
            f"{number(each.sd_ratio, 2)}{'*' if is_spread_shown(each) else ' '}",
            interval(each.sd_ratio_low, each.sd_ratio_high, 2),
        )
        last = each.size
    return result


def _table(title: str) -> Table:
    return Table(
        title=title,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
        caption_justify="left",
    )
