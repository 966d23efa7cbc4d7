"""The picture of `voxtune summary`, which can be read in print without colours. No JAX here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullFormatter

from voxtune.engine.case import Case
from voxtune.engine.store import Store
from voxtune.engine.summary import ClassSummary
from voxtune.engine.volume import written_beside

_SLICES = 4  # subjects that are drawn
_MOST_BARS = 40  # label values; of more, those with the fewest voxels are left out
_MARKERS = (("o", "left-right"), ("s", "front-back"), ("^", "up-down"))
_GREYS = ("0.1", "0.45", "0.7")
_LINE = "#ff9d00"  # stands out on black, white and grey


def draw_summary(store: Store, classes: Sequence[ClassSummary], path: Path) -> None:
    """Writes a PNG: class shares, shapes, boxes, and one plane of some subjects.

    Args:
        store: what is drawn; one plane of each subject shown is read.
        classes: of the store.
        path: where to write. An existing file is replaced.

    Raises:
        InputError: the picture cannot be written, or an array of the store not be read.
    """
    shown = sorted(classes, key=lambda each: each.share, reverse=True)[:_MOST_BARS]
    height = max(3.2, 0.24 * len(shown) + 1.2)
    figure = Figure(figsize=(13, height + 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1, height_ratios=(height, 3.4))
    above, below = (figure.add_subfigure(grid[row]) for row in range(2))
    bars, shapes, boxes = above.subplots(1, 3)
    _draw_shares(bars, shown, len(classes))
    _draw_shapes(shapes, store)
    _draw_boxes(boxes, store, [each for each in shown if len(each.boxes)])
    count = min(_SLICES, len(store.cases))
    chosen = [store.cases[i * len(store.cases) // count] for i in range(count)]
    planes = below.subplots(1, _SLICES, squeeze=False)[0]
    for axes in planes:
        axes.set_axis_off()
    for axes, case in zip(planes, chosen, strict=False):
        _draw_plane(axes, case, store.preparation.orientation)
    with written_beside(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _title(each: ClassSummary) -> str:
    return f"{each.value} {each.name}".strip()[:28]


def _draw_shares(axes: Axes, classes: Sequence[ClassSummary], of: int) -> None:
    some = f", the largest {len(classes)} of {of}" * (len(classes) < of)
    axes.set_title(f"Share of voxels{some}", fontsize=10)
    if not classes:
        axes.text(0.5, 0.5, "labels are images", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    shares = [each.share for each in classes]
    bars = axes.barh(range(len(classes)), shares, color="0.6", edgecolor="0.1")
    axes.bar_label(bars, [f"{100 * share:.2g} %" for share in shares], padding=3, fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(min(shares) / 3, 8)  # room for the figure beside the longest bar
    axes.set_xticks([10.0**power for power in range(int(np.log10(min(shares))), 1)])
    axes.xaxis.set_minor_formatter(NullFormatter())  # or they overlap where shares are alike
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_yticks(range(len(classes)), [_title(each) for each in classes], fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_shapes(axes: Axes, store: Store) -> None:
    """Edges in mm, before and after, each subject a mark on each of three columns."""
    axes.set_title("Extent of scans (hollow) and as stored (filled), mm", fontsize=10)
    jitter = np.random.default_rng(0).uniform(-0.12, 0.12, len(store.cases))
    before = [np.multiply(case.scan_shape, case.scan_spacing_mm) for case in store.cases]
    after = [np.multiply(case.shape, case.spacing_mm) for case in store.cases]
    for axis in range(3):
        for place, edges, face in ((-0.18, before, "none"), (0.18, after, "0.3")):
            x = axis + place + jitter
            y = [each[axis] for each in edges]
            axes.scatter(x, y, s=16, facecolors=face, edgecolors="0.1", linewidths=0.6)
    names = [f"axis {axis}" for axis in range(3)]
    stored = [f"axis {axis}, {code}" for axis, code in enumerate(store.preparation.orientation)]
    ticks = [axis + place for axis in range(3) for place in (-0.18, 0.18)]
    labels = [name for pair in zip(names, stored, strict=True) for name in pair]
    axes.set_xticks(ticks, labels, fontsize=7, rotation=30)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_boxes(axes: Axes, store: Store, classes: Sequence[ClassSummary]) -> None:
    """Median edges of the box of each label value, a bar from the 5th to the 95th percentile."""
    axes.set_title("Edges of boxes: median, 5th to 95th percentile, voxels", fontsize=10)
    if not classes:
        axes.set_axis_off()
        return
    pairs = ("LR", "PA", "IS")
    for number, (marker, name) in enumerate(_MARKERS):
        axis = next(
            i for i, code in enumerate(store.preparation.orientation) if code in pairs[number]
        )
        y = np.arange(len(classes)) + 0.22 * (number - 1)
        low, middle, high = np.array(
            [np.quantile(each.boxes[:, axis], (0.05, 0.5, 0.95)) for each in classes]
        ).T
        axes.hlines(y, low, high, color=_GREYS[number], linewidth=1.2)
        axes.scatter(middle, y, s=18, marker=marker, color=_GREYS[number], label=name)
    axes.set_yticks(range(len(classes)), [_title(each) for each in classes], fontsize=7)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.legend(fontsize=7, frameon=False, loc="best")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_plane(axes: Axes, case: Case, orientation: str) -> None:
    """The axial plane through the middle of what is labelled, the patient's right on the left."""
    across, up, cut = (
        next(axis for axis, code in enumerate(orientation) if code in pair)
        for pair in ("LR", "PA", "IS")
    )
    ends = [(low[cut] + high[cut]) // 2 for low, high in case.boxes.values()]
    plane = int(np.median(ends)) if ends else case.shape[cut] // 2
    where = tuple(slice(plane, plane + 1) if axis == cut else slice(None) for axis in range(3))
    label = None if not case.counts else np.asarray(case.label[where])
    if case.image is not None:
        image = case.image[where][..., 0]
    else:
        assert label is not None
        image = np.searchsorted(sorted(case.counts), label).astype(np.float32)  # greys apart
    order = (up, across, cut)
    shown = image.transpose(order)[..., 0]
    low, high = np.percentile(shown, (1, 99.5)).tolist()
    width, height = (case.shape[axis] * case.spacing_mm[axis] for axis in (across, up))
    axes.imshow(
        shown,
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        origin="lower",
        extent=(0, width, 0, height),
        interpolation="nearest",
    )
    if label is not None and case.image is not None:
        values = label.transpose(order)[..., 0]
        x = (np.arange(values.shape[1]) + 0.5) * case.spacing_mm[across]
        y = (np.arange(values.shape[0]) + 0.5) * case.spacing_mm[up]
        for value in np.unique(values[values != 0]):
            if min(values.shape) > 1:
                axes.contour(x, y, values == value, levels=[0.5], colors=[_LINE], linewidths=0.8)
    if orientation[across] == "R":
        axes.set_xlim(width, 0)
    if orientation[up] == "P":
        axes.set_ylim(height, 0)
    axes.set_title(f"{case.name[:40]}, plane {plane}", fontsize=8)
    outline = [withStroke(linewidth=1.5, foreground="black")]  # legible on white
    axes.text(
        0.01, 0.5, "R", transform=axes.transAxes, color="white", fontsize=8, path_effects=outline
    )
