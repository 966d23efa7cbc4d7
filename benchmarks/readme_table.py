"""What was measured as a Markdown table, short enough for a README. No JAX here."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from voxtune.benchmarks.comparisons import Figure, figures_of, newest
from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.results import (
    MOST_VALUES,
    said_least,
    said_share,
    said_took,
    said_values,
    short_times,
)
from voxtune.benchmarks.throughput_plots import short_revision
from voxtune.engine.formats import NOTHING

_MARK = "<!-- Made by voxtune benchmark of its history. -->\n\n"  # of a file that may be made again
_COMPUTED = ("train", "predict")  # suites whose peers compute the same


def is_ours(path: Path) -> bool:
    """Whether a file was made here, and so may be made again.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return stream.read(len(_MARK)) == _MARK.encode()


def markdown(entries: Iterable[Entry]) -> str:
    """A table for each machine, of the newest of each case: voxtune's time, and peers' ratios.

    Where peers were measured, cases of training and of prediction beside them are shown, without
    reading and writing; else all cases. What the history says is shown as text.

    Args:
        entries: the history, in its order.
    """
    machines: dict[str, dict[str, list[Figure]]] = {}
    for each in newest(figures_of(entries)):
        name = f"{each.measured.suite}: {each.measured.case}"
        machines.setdefault(each.case[0], {}).setdefault(name, []).append(each)
    parts = [_table(_shown(cases)) for cases in machines.values()]
    return _MARK + "\n\n".join(parts or ["Nothing has been measured yet."]) + "\n"


def _shown(cases: dict[str, list[Figure]]) -> dict[str, list[Figure]]:
    """The cases of a machine that tell most."""
    beside = {
        name: figures
        for name, figures in cases.items()
        if all(_is_computed(each) for each in figures)
        and {each.is_own for each in figures} == {True, False}
    }
    has_ratio = any(
        each.ratio is not None or each.least_ratio is not None
        for figures in beside.values()
        for each in figures
    )
    return beside if has_ratio else cases


def _is_computed(figure: Figure) -> bool:
    part = figure.measured.settings.get("part", "compute")  # predictions are timed with files, too
    return figure.measured.suite in _COMPUTED and part == "compute"


def _table(cases: dict[str, list[Figure]]) -> str:
    """The table of a machine, its caption and what has no figures."""
    shown = [each for figures in cases.values() for each in figures]
    peers = list(dict.fromkeys(each.measured.program for each in shown if not each.is_own))
    rows = [["", "voxtune", "of the measured peak", *peers]]
    rows += [[name, *_cells(figures, peers)] for name, figures in cases.items()]
    lines = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    lines.insert(1, "| --- " * len(rows[0]) + "|")
    problems = [
        f"- {_escaped(f'{each.measured.program}, {name}: {each.measured.problem}')}"
        for name, figures in cases.items()
        for each in figures
        if each.measured.problem
    ]
    notes = ["", "Not measured, or stopped:", "", *problems] if problems else []
    return "\n".join([*lines, "", _caption(shown, bool(peers)), *notes])


def _cells(figures: Sequence[Figure], peers: Sequence[str]) -> list[str]:
    """Of a case, after its name."""
    programs = {each.measured.program: each for each in figures}
    own = next((each.measured for each in figures if each.is_own), None)
    cells = ["", ""]
    if own is not None and own.problem:
        cells[0] = "not measured"
    elif own is not None:
        cells[0] = said_values(own, MOST_VALUES) if own.took is None else said_took(own.took)
        cells[1] = "" if own.peak_share is None else said_share(own.peak_share)
    cells += [_ratio(programs[peer]) if peer in programs else "" for peer in peers]
    return [each or NOTHING for each in cells]


def _ratio(figure: Figure) -> str:
    if figure.least_ratio is not None:
        return said_least(figure.least_ratio)
    if figure.ratio is None:
        return "not measured" if figure.measured.problem else ""
    return short_times(figure.ratio)


def _caption(figures: Sequence[Figure], has_peers: bool) -> str:
    """Where, when and by what it was measured."""
    place = figures[-1].entry.place
    dates = sorted({each.entry.place.date for each in figures})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    revisions = dict.fromkeys(short_revision(each.entry.place.revision) for each in figures)
    versions = dict.fromkeys(
        part for each in figures for part in each.measured.version.split(", ") if part
    )
    below = " Below a peer is how many times as fast voxtune is." if has_peers else ""
    return _escaped(
        f"Medians of turns and their quartiles, on {place.machine}, {days}.{below} "
        f"voxtune at {', '.join(revisions)}; {', '.join(versions) or 'versions unknown'}."
    )


def _escaped(text: str) -> str:
    """As Markdown shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", " ".join(text.split()))
