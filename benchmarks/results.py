"""What was measured, in words and in tables. No JAX here."""

import math
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from voxtune.benchmarks.comparisons import LEAST_RATIO, Figure, figures_of, newest
from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.measurement import Measurement, Spread
from voxtune.engine.formats import rounded, size

UNITS = {"predict": "scans", "convert": "files"}  # of `work.blocks`, where they are not blocks
MOST_VALUES = 4  # of `Measurement.values` in a line or a table; the page has all
_WIDEST = 120  # columns of a table
_NOISY = "*"


# In words


def said_number(value: float) -> str:
    """With three digits that count, zeros too, as 1.50 or 1,230."""
    if 0.001 <= abs(value) < 999.5:
        return f"{value:#.3g}".removesuffix(".")
    return rounded(float(f"{value:.3g}"))


def said_seconds(seconds: float) -> str:
    """A time, as 503 ms or 12.3 s."""
    return f"{said_number(1000 * seconds)} ms" if seconds < 1 else f"{said_number(seconds)} s"


def said_took(took: Spread) -> str:
    """A time with its quartiles, as `503 ms (498 to 511)`, in the unit of the median.

    As all figures with quartiles, it is marked where it is noisy: `503 ms (410 to 511, noisy)`.
    """
    scale, unit = (1000, "ms") if took.median < 1 else (1, "s")
    return _with_quartiles(took, lambda value: said_number(scale * value), f" {unit}")


def said_share(share: Spread) -> str:
    """A share with its quartiles, as `31.2 % (30.8 to 31.5)`."""
    return _with_quartiles(share, lambda value: said_number(100 * value), " %")


def said_times(ratio: Spread) -> str:
    """A ratio with its quartiles, as `1.55 times (1.50 to 1.60)`."""
    return _with_quartiles(ratio, said_ratio, " times")


def short_times(ratio: Spread) -> str:
    """The same where a header says what it is, as `1.55 (1.50 to 1.60)`."""
    return _with_quartiles(ratio, said_ratio, "")


def said_ratio(value: float) -> str:
    """With two digits after the point, of large ones fewer."""
    return f"{value:.2f}" if value < 10 else said_number(value)


def said_least(ratio: float) -> str:
    """What a ratio is at least, rounded down, as `over 5.1`."""
    return f"over {math.floor(10 * ratio) / 10:.1f}"


def said_value(name: str, value: float) -> str:
    """One of `Measurement.values`, whose name tells its unit, with that name as words."""
    if name.endswith("_seconds"):
        return f"{plain(name.removesuffix('_seconds'))} {said_seconds(value)}"
    if "_bytes" in name:
        words = plain(name.replace("_bytes", ""))
        return f"{words}{':' * words[-1:].isdigit()} {size(value)}"
    if name.startswith(_SHARES):
        percent = 100 * value
        return f"{plain(name)} {percent:.{2 if 99 < percent < 100 else 1}f} %"
    return f"{plain(name)} {rounded(value)}"


# How names of values begin that are shares.
_SHARES = (
    "data_wait",
    "agreement",
    "efficiency",
    "predicted_efficiency_",
    "rate_on_same_cores",
    "share_",
)


def _with_quartiles(
    spread: Spread, shown: Callable[[float], str], unit: str, noisy: str = ", noisy"
) -> str:
    """The median, and the quartiles in brackets, with a mark where they are far apart."""
    if spread.turns < 2:
        return f"{shown(spread.median)}{unit} (one turn)"
    mark = noisy if spread.noisy else ""
    return f"{shown(spread.median)}{unit} ({shown(spread.low)} to {shown(spread.high)}{mark})"


def line(found: Sequence[Entry]) -> str:
    """The newest of what was measured, in words.

    Args:
        found: in the order in which it was measured; at least one.
    """
    figure = figures_of(found)[-1]
    measured = figure.measured
    start = f"{measured.suite}: {measured.case}: {measured.program}"
    if figure.least_ratio is not None:
        least = said_least(figure.least_ratio)
        return f"{start} was {measured.problem}: voxtune is {least} times as fast"
    if measured.problem:
        return f"{start} is not measured: {measured.problem}"
    parts = []
    if measured.took is not None:
        parts.append(said_took(measured.took))
    rate = measured.rate(measured.work.blocks)
    if rate is not None:
        parts.append(f"{said_number(rate)} {unit_of(measured)}/s")
    if measured.peak_share is not None:
        parts.append(f"{said_share(measured.peak_share)} of the measured peak")
    if measured.memory is not None:
        parts.append(size(measured.memory))
    if measured.first is not None:
        parts.append(f"first turn {said_seconds(measured.first)}")
    parts += [said_values(measured, MOST_VALUES)] * bool(said_values(measured))
    if figure.ratio is not None:
        parts.append(f"voxtune is {said_times(figure.ratio)} as fast")
    return f"{start} {', '.join(parts)}"


def unit_of(measured: Measurement) -> str:
    """What `work.blocks` counts."""
    return UNITS.get(measured.suite, "blocks")


def plain(name: str) -> str:
    """The name of a setting or a value as words."""
    return name.replace("_", " ")


# In tables


def tables(found: Sequence[Entry]) -> list[Table]:
    """One for each suite on each machine, at most 120 columns wide.

    Args:
        found: in the order in which it was measured; of what was measured again, the last counts.
    """
    suites: dict[tuple[str, str], list[Figure]] = {}
    for figure in newest(figures_of(found)):
        machine, suite, _ = figure.case
        suites.setdefault((machine, suite), []).append(figure)
    return [_table(figures) for figures in suites.values()]


def _table(figures: Sequence[Figure]) -> Table:
    place, suite = figures[-1].entry.place, figures[0].measured.suite
    table = Table(
        title=f"{suite}: {place.machine}, {place.date}",
        caption=f"medians; (quartiles, or how far apart they are); {_NOISY} more than 10 % apart",
        box=box.SIMPLE,
    )
    columns = {
        header: [cell(each) for each in figures] for header, cell in _columns(figures[0].measured)
    }
    columns = {header: cells for header, cells in columns.items() if any(cells)}
    table.add_column(overflow="fold")
    for header in columns:
        table.add_column(header, justify="right", no_wrap=header != "also")
    case = ""
    for figure, *cells in zip(figures, *columns.values(), strict=True):
        if figure.measured.case != case:
            case = figure.measured.case
            table.add_row(case, style="bold")
        problem = figure.measured.problem
        table.add_row(f"  {figure.measured.program}{f': {problem}' if problem else ''}", *cells)
    widest = Console(width=10 * _WIDEST).measure(table).maximum
    table.width = min(_WIDEST, widest)
    return table


def _columns(measured: Measurement) -> list[tuple[str, Callable[[Figure], str]]]:
    """Headers of a suite, each with what gives its cells; empty where there is nothing to tell."""
    return [
        ("time", lambda each: _short_took(each.measured.took)),
        (f"{unit_of(measured)}/s", lambda each: said_rate(each.measured)),
        ("of peak", lambda each: _short_share(each.measured.peak_share)),
        ("memory", lambda each: said_memory(each.measured)),
        ("first", lambda each: said_first(each.measured)),
        ("also", lambda each: said_values(each.measured, MOST_VALUES)),
        ("times as fast", _short_ratio),
    ]


def said_rate(measured: Measurement) -> str:
    """Blocks a second, for a table whose header says what; empty where there are none."""
    rate = measured.rate(measured.work.blocks)
    return "" if rate is None else said_number(rate)


def said_memory(measured: Measurement) -> str:
    """Empty where nothing tells."""
    return "" if measured.memory is None else size(measured.memory)


def said_first(measured: Measurement) -> str:
    """Empty where there was no first turn apart."""
    return "" if measured.first is None else said_seconds(measured.first)


def said_values(measured: Measurement, most: int | None = None) -> str:
    """Other figures, with their names; the loss and a ratio, which compare programs, are none.

    Args:
        measured: whose they are.
        most: how many, those that tell most (`_TELLING`); None for all, in their own order.
    """
    names = [name for name in measured.values if name not in ("loss", LEAST_RATIO)]
    if most is not None:
        names = sorted(names, key=_telling)[:most]
    return ", ".join(said_value(name, measured.values[name]) for name in names)


def _telling(name: str) -> int:
    """Its place among values that tell most."""
    return _TELLING.index(name) if name in _TELLING else len(_TELLING)


# Values that tell most, in this order; others follow in their own.
_TELLING = (
    "rate_on_same_cores",
    "efficiency",
    "gradient_all_reduces",
    "collective_permute_bytes",
    "all_reduce_bytes",
    "predicted_halo_bytes_256",
    "predicted_efficiency_256_nvlink",
    "predicted_efficiency_256_ndr",
    "predicted_efficiency_256_ethernet",
    "gradient_bytes",
    "predicted_efficiency_8_nvlink",
    "predicted_efficiency_8_ndr",
    "predicted_efficiency_8_ethernet",
    "compile_seconds",
    "trace_seconds",
    "import_seconds",
    "found_in_cache",
)


def _short_took(took: Spread | None) -> str:
    return "" if took is None else f"{said_seconds(took.median)} {_apart(took)}"


def _short_share(share: Spread | None) -> str:
    return "" if share is None else f"{100 * share.median:.1f} % {_apart(share)}"


def _short_ratio(each: Figure) -> str:
    if each.least_ratio is not None:
        return said_least(each.least_ratio)
    return "" if each.ratio is None else _with_quartiles(each.ratio, said_ratio, "", _NOISY)


def _apart(spread: Spread) -> str:
    """Between the quartiles, of the median."""
    if spread.turns < 2:
        return "(one turn)"
    return f"({100 * spread.share:.0f} %){_NOISY if spread.noisy else ''}"
