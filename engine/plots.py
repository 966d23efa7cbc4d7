"""What all plots have in common: their files, violins, and styles that need no colours."""

import io
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from voxtune.engine.volume import written_beside

FEWEST = 5  # subjects of a violin: of fewer it would show a shape that nobody measured
MAX_BYTES = 1_000_000  # of a PNG, so that it can be mailed or put in a report
_MAX_PIXELS = 30_000  # along one side; Agg ends at 65536
_JITTER = 0.12  # of dots, to both sides

# Okabe and Ito's colours without yellow, which is too light for lines, told apart by the
# colour-blind too; and what tells them apart in grey. No two of these numbers have a divisor in
# common, so that any two of the three come again together as late as they can.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Style:
    """How one of several things is drawn: each of the three tells some of them apart."""

    marker: str
    dashes: Any
    colour: str

    @property
    def line(self) -> dict[str, Any]:
        """Options of a line that is drawn so."""
        return {"marker": self.marker, "linestyle": self.dashes, "color": self.colour}

    @staticmethod
    def of(place: int) -> "Style":
        """Of the thing at a place; colour and dashes come again after 28, in grey after 36."""
        return Style(
            _MARKERS[place % len(_MARKERS)],
            _DASHES[place % len(_DASHES)],
            _COLOURS[place % len(_COLOURS)],
        )


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """An empty figure of so many inches, which needs no screen."""
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_plot(figure: Figure, path: Path) -> None:
    """Writes a figure as its file's ending says, .png or .svg; a PNG stays below `MAX_BYTES`.

    The same figure gives the same file: no time of day, no random names.

    Raises:
        InputError: it cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    with written_beside(path) as temporary:
        temporary.write_bytes(_svg(figure) if kind == "svg" else _png(figure))


def _svg(figure: Figure) -> bytes:
    # Text remains text: it can be searched, read out and copied.
    with rc_context({"svg.hashsalt": "voxtune", "svg.fonttype": "none"}):
        return _bytes(figure, format="svg", metadata={"Date": None})


def _png(figure: Figure) -> bytes:
    """At the finest resolution, up to 150 dots an inch, that stays below MAX_BYTES."""
    dpi = min(150.0, _MAX_PIXELS / max(figure.get_size_inches()))
    while len(content := _bytes(figure, format="png", dpi=dpi, metadata={"Software": None})) >= (
        MAX_BYTES
    ):
        dpi *= 0.9 * (MAX_BYTES / len(content)) ** 0.5  # bytes grow with the area
    return content


def _bytes(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Signs of some scripts are boxes in a PNG; nobody who reads the warning can help that.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def draw_violin(
    axes: Axes,
    place: float,
    values: np.ndarray,
    marker: str = "o",
    colour: str = "0.4",
    *,
    quartiles: bool = False,
) -> None:
    """A violin with a line at the median and each value as a dot; of fewer than five, no violin.

    Args:
        axes: where to draw.
        place: along x; the violin is 0.75 wide.
        values: finite, any number of them.
        marker: of the dots.
        colour: of the dots.
        quartiles: whether thin lines at the quartiles are drawn too, of five values or more.
    """
    if len(values) >= FEWEST:
        violin = axes.violinplot(values, [place], widths=0.75, showextrema=False, bw_method="scott")
        for body in violin["bodies"]:  # type: ignore[attr-defined]  # a list, typed one artist
            body.set(facecolor="0.85", edgecolor="0.35", linewidth=0.8, alpha=1)
        if quartiles:
            ends = np.quantile(values, (0.25, 0.75))
            axes.hlines(
                ends,
                place - 0.2,
                place + 0.2,
                color="black",
                linewidth=0.9,
                linestyle="--",
                zorder=3,
            )
    if not len(values):
        return
    axes.scatter(
        place + jitter(len(values)),
        values,
        s=16,
        marker=marker,
        facecolors=colour,
        edgecolors="white",
        linewidths=0.5,
        zorder=4,
    )
    axes.hlines(np.median(values), place - 0.3, place + 0.3, color="black", linewidth=1.6, zorder=3)


def jitter(count: int) -> np.ndarray:
    """How far dots `[count]` lie beside their place, always the same."""
    return np.random.default_rng(0).uniform(-_JITTER, _JITTER, count)


def shown_names(names: Sequence[str], longest: int) -> list[str]:
    """Names as they fit: of long ones the middle is left out; each stays different from others.

    Args:
        names: all that are shown together, each once.
        longest: characters, a number in front aside where they would be alike without.
    """
    clean = ["".join(sign if sign.isprintable() else "\ufffd" for sign in name) for name in names]
    half = (longest - 1) // 2
    short = [
        each if len(each) <= longest else f"{each[: longest - 1 - half]}…{each[-half:]}"
        for each in clean
    ]
    return [
        f"{place}: {each}" if short.count(each) > 1 else each for place, each in enumerate(short, 1)
    ]


def wrapped(name: str, width: int) -> str:
    """A name in lines of at most so many characters, broken after - _ . and spaces if it can be.

    Signs of double width, as those of Chinese and Japanese, count twice.
    """
    lines, line = [], ""
    for part in _parts(name, width):
        if line and _width(line) + _width(part) > width:
            lines.append(line)
            line = ""
        line += part
    return "\n".join([*lines, line])


def _parts(name: str, width: int) -> list[str]:
    """Of a name, where it may be broken."""
    parts = [""]
    for sign in name:
        if parts[-1] and (parts[-1][-1] in "-_. " or _width(parts[-1] + sign) > width):
            parts.append("")
        parts[-1] += sign
    return parts


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def add_legend(where: Axes | Figure, lines: Sequence[Line2D], **options: Any) -> None:
    """A legend whose names are no mathematics, whatever dollars they have."""
    legend = where.legend(handles=lines, frameon=False, fontsize=8, **options)
    for text in legend.get_texts():
        text.set_parse_math(False)


def count_steps(axes: Axes, last: int) -> None:
    """Has steps of training along x, from 0 to the last, at round numbers."""
    axes.set_xlim(0, 1.03 * max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def say(axes: Axes, text: str) -> None:
    """In the place of what would be drawn."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=9)


def make_plain(axes: Axes) -> None:
    """Lines across at the ticks, and no frame."""
    axes.grid(axis="y", color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
