"""Throughput as plots: over revisions, and against peers. No JAX here.

They can be read in grey: marks, dashes and hatches tell things apart.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from voxtune.benchmarks.comparisons import Figure, of_each_machine
from voxtune.benchmarks.history import Place
from voxtune.benchmarks.measurement import Spread
from voxtune.benchmarks.results import said_ratio, unit_of
from voxtune.engine.formats import rounded
from voxtune.engine.plots import (
    Style,
    add_legend,
    make_plain,
    new_figure,
    save_plot,
    say,
    shown_names,
    wrapped,
)

WIDTH = 10.0  # inches
# Of a machine; more would be too small.
MOST_CASES = 12  # over revisions, those that were measured most often
MOST_BARS = 60  # against peers
_MOST_TICKS = 4  # along x
_REVISION = 7  # characters, as git shortens them
_CASE_HEIGHT, _BAR_HEIGHT = 1.75, 0.2  # inches


@dataclass(frozen=True)
class Drawing:
    """A part of the picture.

    Attributes:
        height: inches.
        draw: draws it to a figure, or to a part of one.
    """

    height: float
    draw: Callable[[Canvas | SubFigure], None]


def save_drawings(drawings: Sequence[Drawing], path: Path) -> None:
    """Writes drawings, one below the other.

    Args:
        drawings: at least one.
        path: .png or .svg. An existing file is replaced.

    Raises:
        InputError: it cannot be written.
    """
    heights = [each.height for each in drawings]
    figure = new_figure(WIDTH, sum(heights))
    parts = figure.subfigures(len(drawings), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, drawing in zip(parts, drawings, strict=True):
        drawing.draw(part)
    save_plot(figure, path)


def nothing() -> Drawing:
    """What says that there is nothing to draw."""

    def draw(canvas: Canvas | SubFigure) -> None:
        axes = canvas.subplots()
        axes.set_axis_off()
        say(axes, "Neither training nor prediction has been measured yet.")

    return Drawing(1.0, draw)


# Over revisions


def over_revisions(figures: Sequence[Figure]) -> Drawing | None:
    """A row of panels for each case of training and prediction: ratios to peers, share of the
    measured peak, and blocks/s, over revisions; and a row of what the machine itself did.

    Args:
        figures: of the history, in its order.
    """
    cases: dict[tuple[str, str, str], list[Figure]] = {}
    for figure in figures:
        if figure.measured.suite in ("train", "predict") and figure.measured.seconds:
            cases.setdefault(figure.case, []).append(figure)
    if not cases:
        return None
    by_count = sorted(cases, key=lambda case: -len(_revisions(cases[case])))
    often = of_each_machine(by_count, lambda case: case[0], MOST_CASES)
    shown = {case: own for case, own in cases.items() if case in often}
    machines = list(dict.fromkeys(machine for machine, _, _ in shown))
    rows = len(shown) + len(machines)

    def draw(canvas: Canvas | SubFigure) -> None:
        panels = canvas.subplots(rows, 3, squeeze=False, width_ratios=(1.3, 1, 1))
        left = iter(panels)
        for machine in machines:
            of_machine = (each.entry.place for each in figures if each.case[0] == machine)
            places = [place for place, _ in itertools.groupby(of_machine)]
            order = _order(places)
            for case, own in shown.items():
                if case[0] == machine:
                    _draw_case(next(left), own, order)
            _draw_machine(next(left), places, order)
        canvas.suptitle("Over revisions: medians and quartiles", fontsize=10)

    return Drawing(0.4 + _CASE_HEIGHT * rows, draw)


def _revisions(figures: Sequence[Figure]) -> set[str]:
    return {each.entry.place.revision for each in figures}


def _order(places: Sequence[Place]) -> dict[str, int]:
    """Revisions in the order of the history, from 0."""
    return {each: place for place, each in enumerate(dict.fromkeys(p.revision for p in places))}


def _draw_case(panels: Sequence[Axes], figures: Sequence[Figure], order: Mapping[str, int]) -> None:
    """The row of a case."""
    ratios, shares, rates = panels
    own = [each for each in figures if each.is_own]
    peers = list(dict.fromkeys(each.measured.program for each in figures if not each.is_own))
    names = shown_names(peers, 22)
    lines = []
    for place, (peer, name) in enumerate(zip(peers, names, strict=True)):
        points = [
            (order[each.entry.place.revision], each.ratio, each.measured.version)
            for each in figures
            if each.measured.program == peer
        ]
        # A line ends where the peer's version does: another program is not the same measure.
        for version in dict.fromkeys(version for _, _, version in points):
            part = [(x, y) for x, y, of in points if of == version and y is not None]
            lines += _draw_line(ratios, part, Style.of(place + 1), name)
    if lines:
        ratios.axhline(1, color="black", linewidth=1)
        _log_ratios(ratios, [r for each in figures if (r := each.ratio)], vertical=True, room=1.15)
        _add_legend(ratios, lines)
    else:
        _say_nothing(ratios, "no peer measured")
    ratios.set_ylabel("times as fast\nas the peer", fontsize=8)
    at = [(order[each.entry.place.revision], each.measured) for each in own]
    peaks = [(x, _scaled(each.peak_share, 100)) for x, each in at]
    _draw_values(shares, peaks, "% of the\nmeasured peak")
    speeds = [(x, _per_second(each.took, each.work.blocks)) for x, each in at]
    _draw_values(rates, speeds, f"{unit_of(figures[0].measured)}/s")
    _, suite, case = figures[0].case
    ratios.set_title(wrapped(f"{suite}: {case}", 110), fontsize=9, loc="left", parse_math=False)
    for axes in panels:
        _count_revisions(axes, order)


def _draw_machine(
    panels: Sequence[Axes], places: Sequence[Place], order: Mapping[str, int]
) -> None:
    """What the machine itself did: products and copies, whose changes are not voxtune's."""
    products, copies, rest = panels
    rest.set_axis_off()
    lines = []
    names = list(dict.fromkeys(dtype for each in places for dtype in each.products))
    for number, dtype in enumerate(names):
        points = [
            (order[each.revision], _one(each.products[dtype] / 1e9))
            for each in places
            if dtype in each.products
        ]
        lines += _draw_line(products, points, Style.of(number), dtype)
    if lines:
        rates = [rate / 1e9 for each in places for rate in each.products.values()]
        products.set(yscale="log", ylim=(min(rates) / 1.5, max(rates) * 1.5))
        products.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        products.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rounded(value)))
        products.yaxis.set_minor_formatter(NullFormatter())
        _add_legend(products, lines)
    else:
        _say_nothing(products, "not measured")
    copied = [(order[each.revision], _one(each.copy / 1e9)) for each in places if each.copy]
    _draw_values(copies, copied, "copies, GB/s")
    products.set_ylabel("products,\nGFLOP/s", fontsize=8)
    title = f"the machine itself: {places[0].machine}"
    products.set_title(title, fontsize=9, loc="left", parse_math=False)
    for axes in (products, copies):
        _count_revisions(axes, order)


def _one(value: float) -> Spread:
    return Spread(value, value, value, 1)


def _scaled(spread: Spread | None, factor: float) -> Spread | None:
    if spread is None:
        return None
    low, high = factor * spread.low, factor * spread.high
    return Spread(factor * spread.median, low, high, spread.turns)


def _per_second(took: Spread | None, amount: int) -> Spread | None:
    if took is None or not amount:
        return None
    return Spread(amount / took.median, amount / took.high, amount / took.low, took.turns)


def _draw_line(
    axes: Axes, points: Sequence[tuple[int, Spread]], style: Style, label: str
) -> list[Line2D]:
    """Medians with their quartiles, in the order of revisions."""
    if not points:
        return []
    points = sorted(points, key=lambda point: point[0])
    medians = [spread.median for _, spread in points]
    bars = [
        [spread.median - spread.low for _, spread in points],
        [spread.high - spread.median for _, spread in points],
    ]
    options: dict[str, Any] = {
        "markersize": 4,
        "linewidth": 1,
        "elinewidth": 0.8,
        "capsize": 2,
        "zorder": 3,
    }
    drawn = axes.errorbar([x for x, _ in points], medians, bars, **style.line, **options)
    (line, *_) = axes.plot([], [], **style.line, markersize=4, linewidth=1, label=label)
    drawn.lines[0].set_markerfacecolor("white" if style.marker == "o" else style.colour)
    return [line]


def _add_legend(axes: Axes, lines: Sequence[Line2D]) -> None:
    """At the right, each name once."""
    unique = {line.get_label(): line for line in lines}
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    add_legend(axes, list(unique.values()), handlelength=3, **place)


def _say_nothing(axes: Axes, text: str) -> None:
    say(axes, text)
    axes.set_yticks([])


def _draw_values(axes: Axes, points: Sequence[tuple[int, Spread | None]], label: str) -> None:
    """One line from zero; in its place a word where there is nothing to draw."""
    axes.set_ylabel(label, fontsize=8)
    there = [(x, spread) for x, spread in points if spread is not None]
    if not there:
        _say_nothing(axes, "not measured")
        return
    _draw_line(axes, there, Style("o", "-", "black"), "")
    axes.set_ylim(0, 1.15 * max(spread.high for _, spread in there))


def _count_revisions(axes: Axes, order: Mapping[str, int]) -> None:
    """Has revisions along x, not all named where there are many."""
    every, last = -(-len(order) // _MOST_TICKS), len(order) - 1
    named = [(x, short_revision(each)) for each, x in order.items() if (last - x) % every == 0]
    axes.set_xticks(*zip(*named, strict=True), fontsize=6.5, parse_math=False)
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.tick_params(axis="y", labelsize=7)
    make_plain(axes)


def short_revision(revision: str) -> str:
    """As git shortens it, with a plus where files were changed since."""
    return revision[:_REVISION] + "+" * revision.endswith("-dirty")


def _log_ratios(axes: Axes, ratios: Sequence[Spread], *, vertical: bool, room: float) -> None:
    """A logarithmic axis that names 0.5, 1, 2, 5 and so on, and holds 1.

    Args:
        axes: where the ratios are drawn.
        ratios: at least one.
        vertical: whether they are along y.
        room: factor from the highest to the end.
    """
    low = min(0.8, *(each.low / 1.15 for each in ratios))
    high = max(1.25, *(each.high * room for each in ratios))
    if vertical:
        axes.set(yscale="log", ylim=(low, high))
    else:
        axes.set(xscale="log", xlim=(low, high))
    axis = axes.yaxis if vertical else axes.xaxis
    few = high / low < 4
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if few else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


# Against peers


def against_peers(figures: Sequence[Figure]) -> Drawing | None:
    """Bars of how many times as fast voxtune is as each peer, with quartiles; None without peers.

    Args:
        figures: of which those that have a ratio are drawn.
    """
    compared = (each for each in figures if each.ratio is not None)
    shown = of_each_machine(compared, lambda each: each.case[0], MOST_BARS)
    if not shown:
        return None
    cases: dict[tuple[str, str, str], list[Figure]] = {}
    for figure in shown:
        cases.setdefault(figure.case, []).append(figure)
    rows = len(shown) + len(cases)

    def draw(canvas: Canvas | SubFigure) -> None:
        axes = canvas.subplots()
        names: list[str] = []
        for (machine, suite, case), own in cases.items():
            _head(axes, len(names), f"{suite}: {case} ({machine})")
            names.append("")
            for figure in own:
                _draw_bar(axes, len(names), figure)
                names.append(figure.measured.program)
        axes.set_yticks(range(len(names)), names, fontsize=7.5, parse_math=False)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.axvline(1, color="black", linewidth=1.2)
        _log_ratios(axes, [r for each in shown if (r := each.ratio)], vertical=False, room=1.5)
        make_plain(axes)
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color="0.85", linewidth=0.6)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=7.5)
        axes.set_xlabel("how many times as fast voxtune is: median and quartiles", fontsize=8)
        canvas.suptitle("Against peers, in turns on the same machine", fontsize=10)

    return Drawing(1.0 + _BAR_HEIGHT * rows, draw)


def _head(axes: Axes, place: int, text: str) -> None:
    """What the bars below are of."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.text(
        0.004,
        place + 0.1,
        text,
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=8,
        fontweight="bold",
        bbox=box,
        zorder=5,
        parse_math=False,
    )


def _draw_bar(axes: Axes, place: int, figure: Figure) -> None:
    """From 1 to a ratio; hatched where voxtune is slower."""
    ratio = figure.ratio
    assert ratio is not None
    slower = ratio.median < 1
    axes.barh(
        place,
        ratio.median - 1,
        left=1,
        height=0.62,
        facecolor="white" if slower else "0.75",
        edgecolor="0.25",
        hatch="////" if slower else "",
        linewidth=0.7,
        zorder=3,
    )
    axes.hlines(place, ratio.low, ratio.high, color="black", linewidth=1.4, zorder=4)
    text = said_ratio(ratio.median) + (" (noisy)" if ratio.noisy else "")
    end = max(ratio.high, 1.0)
    axes.annotate(
        text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=7.5, zorder=5
    )
