"""A training step beside its floor, as plots that can be read in grey. Nothing is run here."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from voxtune.benchmarks.comparisons import of_each_machine
from voxtune.benchmarks.results import said_times
from voxtune.benchmarks.roofline import Layer, Reach
from voxtune.benchmarks.throughput_plots import Drawing
from voxtune.engine.formats import rounded
from voxtune.engine.plots import add_legend, make_plain, shown_names

MOST_NETS = 4  # of a machine
_LONGEST = 34  # characters of a name
_NET_HEIGHT = 3.2  # inches


def against_floors(reaches: Sequence[Reach]) -> Drawing | None:
    """A row for each network: its layers under the roof of the device, with the step that was
    measured; and the floor of each layer in a step. None without networks.

    Args:
        reaches: of which the first of each network is drawn, for a few networks of each machine.
    """
    first: dict[tuple[str, Any], Reach] = {}
    for each in reaches:
        network = each.entry.measurement.settings["network"]
        first.setdefault((each.entry.place.machine, network), each)
    shown = of_each_machine(first.values(), lambda each: each.entry.place.machine, MOST_NETS)
    if not shown:
        return None

    def draw(canvas: Canvas | SubFigure) -> None:
        panels = canvas.subplots(len(shown), 2, squeeze=False, width_ratios=(1.15, 1))
        for (roof, bars), reach in zip(panels, shown, strict=True):
            _draw_roof(roof, reach)
            _draw_layers(bars, reach)
        canvas.suptitle("Against the floor: the device's products and copies", fontsize=10)

    return Drawing(0.4 + _NET_HEIGHT * len(shown), draw)


def _draw_roof(axes: Axes, reach: Reach) -> None:
    """FLOP/s that layers can reach over their FLOPs a byte, on logarithmic axes."""
    measured = reach.entry.measurement
    took = measured.took
    assert took is not None
    flops = sum(each.passes * each.flops for each in reach.layers)
    moved = sum(each.passes * each.bytes for each in reach.layers)
    intensities = [each.intensity for each in reach.layers]
    ridge = reach.product / reach.copy
    low, high = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2
    roof = [(x, min(x * reach.copy, reach.product) / 1e9) for x in (low, ridge, high)]
    axes.plot(*zip(*roof, strict=True), color="black", linewidth=1.4)
    points = [(each.intensity, each.flops / reach.pass_floor(each) / 1e9) for each in reach.layers]
    (layers,) = axes.plot(
        *zip(*points, strict=True), "o", color="0.35", mfc="white", ms=5, label="floors of layers"
    )
    rate = flops / took.median / 1e9
    (star,) = axes.plot(
        flops / moved, rate, "*", color="black", ms=11, label="the step as measured"
    )
    (best,) = axes.plot(
        flops / moved, flops / reach.floor / 1e9, "D", color="black", ms=5, label="the step's floor"
    )
    axes.vlines(flops / moved, rate, flops / reach.floor / 1e9, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    axes.set_ylim(bottom=min(rate, roof[0][1]) / 3, top=reach.product / 1e9 * 3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: rounded(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("FLOPs a byte", fontsize=8)
    axes.set_ylabel("GFLOP/s", fontsize=8)
    axes.tick_params(labelsize=7)
    machine = reach.entry.place.machine
    title = f"{measured.case}\n{machine}: a step takes {said_times(reach.times)} its floor"
    axes.set_title(title, fontsize=8.5, loc="left", parse_math=False)
    make_plain(axes)
    add_legend(axes, [best, star, layers], loc="lower right")


def _draw_layers(axes: Axes, reach: Reach) -> None:
    """The floor of each layer in a step, in the order of the network."""
    for place, layer in enumerate(reach.layers):
        copied = reach.is_copied(layer)
        axes.barh(
            place,
            1000 * layer.passes * reach.pass_floor(layer),
            height=0.7,
            facecolor="white" if copied else "0.75",
            edgecolor="0.25",
            hatch="////" if copied else "",
            linewidth=0.6,
        )
    names = shown_names([short_name(each) for each in reach.layers], _LONGEST)
    axes.set_yticks(range(len(names)), names, fontsize=6.5, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("ms of the floor of a step; hatched: bound by copies", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)


def short_name(layer: Layer) -> str:
    """Without what the paths of all kernels end in."""
    return layer.name.removesuffix("/kernel").removesuffix("/conv")
