"""A picture of scans with the outlines of labels: what a person should look at before the numbers.

Drawn in the radiological convention, as the picture itself says: the patient's left is on the right
of axial and coronal planes. The nose is on the left of sagittal ones.
"""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from voxtune.engine.conform import conform
from voxtune.engine.evaluate import find_predictions
from voxtune.engine.subjects import Subject
from voxtune.engine.volume import (
    Volume,
    check_same_grid,
    load_image,
    load_label,
    written_beside,
)
from voxtune.models.errors import InputError

PictureRow = tuple[str, Volume, Volume | None, Volume | None]

TRUTH_COLOUR, PREDICTION_COLOUR = "#00d5ff", "#ff9d00"  # apart for the colour-blind, and on grey
MAX_BYTES = 1_000_000  # so that it can be mailed or put in a report
_PANEL_INCHES, _TOP_INCHES, _BOTTOM_INCHES = 2.4, 0.25, 0.35
_MAX_PIXELS = 30_000  # along one side; Agg ends at 65536

# Name, the RAS axis it cuts, the axes shown across and up, and the letters at its left and right.
_PLANES = (
    ("axial", 2, (0, 1), "RL"),
    ("coronal", 1, (0, 2), "RL"),
    ("sagittal", 0, (1, 2), "AP"),
)


def draw_contours(rows: Sequence[PictureRow], path: str | Path) -> None:
    """Write a PNG below 1 MB: a row for each scan, its axial, coronal and sagittal plane.

    The planes go through the centre of mass of the truth (without one, of the prediction; without
    either, the middle of the scan), moved to the next plane that meets it when it is hollow there.

    Args:
        rows: title, image, truth label or None, prediction or None; the labels on the image's grid.
        path: where to write. An existing file is replaced.

    Raises:
        InputError: the picture cannot be written.
    """
    width, height = 3 * _PANEL_INCHES, len(rows) * _PANEL_INCHES + _TOP_INCHES + _BOTTOM_INCHES
    figure = Figure(figsize=(width, height), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    figure.subplots_adjust(
        left=0.03,
        right=0.97,
        bottom=_BOTTOM_INCHES / height,
        top=1 - _TOP_INCHES / height,
        wspace=0.1,
        hspace=0.12,
    )
    for row, row_axes in zip(rows, axes, strict=True):
        _draw_row(row, row_axes)
    names = ((TRUTH_COLOUR, "truth", 2), (PREDICTION_COLOUR, "prediction", 3))
    lines = [
        Line2D([], [], color=colour, label=name)
        for colour, name, place in names
        if any(row[place] is not None for row in rows)
    ]
    if lines:
        figure.legend(
            handles=lines,
            loc="lower left",
            ncols=2,
            frameon=False,
            labelcolor="white",
            fontsize=8,
        )
    convention = "radiological convention: the patient's left is on the right"
    figure.text(0.98, 0.1 / height, convention, color="white", fontsize=7, ha="right", va="bottom")
    with written_beside(Path(path)) as temporary:
        temporary.write_bytes(_png(figure))


def check_picture(path: Path, overwrite: bool) -> None:
    """Makes sure that a picture may be written.

    Raises:
        InputError: it has another ending than .png, or is there and may not be replaced.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} must end in .png: name the picture so")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: give another name, or pass --overwrite")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.parent} is no folder")


def draw_predictions(
    predictions_dir: Path, subjects: Sequence[Subject], path: Path, overwrite: bool = False
) -> None:
    """Draw subjects with the outlines of their true and predicted labels; see `draw_contours`.

    Raises:
        InputError: the picture exists and may not be overwritten, or a file is bad or missing.
    """
    check_picture(path, overwrite)
    rows: list[PictureRow] = []
    for subject, prediction in find_predictions(predictions_dir, subjects):
        image = load_image(subject.image)
        truth = None
        if subject.label is not None:
            truth = check_same_grid(image, load_label(subject.label))
        rows.append((subject.name, image, truth, check_same_grid(image, load_label(prediction))))
    draw_contours(rows, path)


def _png(figure: Figure) -> bytes:
    """The figure at the finest resolution, up to 150 dots an inch, that stays below MAX_BYTES."""
    dpi = min(150.0, _MAX_PIXELS / max(figure.get_size_inches()))
    while True:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="black")
        size = buffer.tell()
        if size < MAX_BYTES:
            return buffer.getvalue()
        dpi *= 0.9 * (MAX_BYTES / size) ** 0.5  # bytes grow with the area


def _draw_row(row: PictureRow, row_axes: Sequence[Axes]) -> None:
    title, image, truth, prediction = row
    straight = conform(image, "RAS", None, "linear")
    spacing = np.linalg.norm(straight.affine[:3, :3], axis=0)
    outlines = [
        (conform(replace(label, affine=image.affine), "RAS", None, "nearest").data, colour)
        for label, colour in ((truth, TRUTH_COLOUR), (prediction, PREDICTION_COLOUR))
        if label is not None
    ]
    centre = _centre(straight.data.shape, [data for data, _ in outlines])
    low, high = np.percentile(straight.data, (1, 99.5)).tolist()
    for axes, (plane, cut, (across, up), letters) in zip(row_axes, _PLANES, strict=True):
        shown = straight.data.take(centre[cut], axis=cut)
        width, height = shown.shape[0] * spacing[across], shown.shape[1] * spacing[up]
        axes.imshow(
            shown.T,
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
            origin="lower",
            extent=(0, width, 0, height),
            aspect="equal",  # the extent is in mm
            interpolation="nearest",
        )
        for data, colour in outlines:
            _outline(axes, data.take(centre[cut], axis=cut), spacing[across], spacing[up], colour)
        # Both the patient's right and the nose go to the left of the picture.
        axes.set_xlim(width, 0)
        axes.set_ylim(0, height)
        axes.set_axis_off()
        for x, letter in ((0.01, letters[0]), (0.99, letters[1])):
            axes.text(
                x,
                0.5,
                letter,
                transform=axes.transAxes,
                color="white",
                fontsize=7,
                ha="left" if x < 0.5 else "right",
                path_effects=[withStroke(linewidth=1.5, foreground="black")],  # legible on white
            )
        heading = f"{title}, {plane}" if plane == "axial" else plane
        axes.set_title(heading, color="white", fontsize=8, pad=3, loc="left")


def _outline(axes: Axes, labels: np.ndarray, step_x: float, step_y: float, colour: str) -> None:
    """Draw the border of each nonzero value of labels [X, Y] with voxels step_x by step_y mm."""
    # A rim of background closes outlines at the edge, and gives one voxel the width contours need.
    padded = np.pad(labels, 1)
    x = (np.arange(padded.shape[0]) - 0.5) * step_x
    y = (np.arange(padded.shape[1]) - 0.5) * step_y
    for value in np.unique(labels[labels != 0]):
        mask = (padded == value).astype(np.float32)
        axes.contour(x, y, mask.T, levels=[0.5], colors=[colour], linewidths=0.8)


def _centre(shape: tuple[int, ...], labels: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Voxel [3] to cut at: see `draw_contours`."""
    mask = next((data != 0 for data in labels if data.any()), np.ones(shape, bool))
    first, second, third = (_cut(mask, axis) for axis in range(3))
    return first, second, third


def _cut(mask: np.ndarray, axis: int) -> int:
    """The plane through the centre of mass along an axis, or the nearest that meets the mask."""
    voxels = mask.sum(axis=tuple(other for other in range(3) if other != axis))
    centre = float(voxels @ np.arange(voxels.size)) / float(voxels.sum())
    filled = np.flatnonzero(voxels)
    return int(filled[np.abs(filled - centre).argmin()])
