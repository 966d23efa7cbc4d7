"""A picture of scans with the outlines of labels: what a person should look at before the numbers.

Drawn in the radiological convention, as the picture itself says: the patient's left is on the right
of axial and coronal planes. The nose is on the left of sagittal ones.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from voxtune.engine.class_names import read_class_names
from voxtune.engine.colours import class_colours
from voxtune.engine.formats import counted
from voxtune.engine.pairs import find_predictions
from voxtune.engine.planes import Outline, draw_row, upright
from voxtune.engine.plots import add_legend, new_figure, save_plot, shown_names
from voxtune.engine.subjects import Subject
from voxtune.engine.volume import Volume, check_same_grid, load_image, load_label
from voxtune.models.errors import InputError

PictureRow = tuple[str, Volume, Volume | None, Volume | None]

TRUTH_COLOUR, PREDICTION_COLOUR = "#00d5ff", "#ff9d00"  # apart for the colour-blind, and on grey
_PANEL_INCHES, _TOP_INCHES, _BOTTOM_INCHES = 2.4, 0.25, 0.35
_LINE_INCHES = 0.13  # of a title
_LARGE_INCHES = 3.0  # of a panel where there is one scan
_LEGEND_INCHES, _LEGEND_COLUMNS = 0.19, 4  # of a row of the classes
_MOST_NAMES = 12  # classes that are named
_LONGEST_NAME = 26  # characters


def draw_contours(
    rows: Sequence[PictureRow], path: str | Path, names: Mapping[int, str] | None = None
) -> None:
    """Write a row for each scan, its axial, coronal and sagittal plane; a PNG is below 1 MB.

    The planes go through the centre of mass of the truth (without one, of the prediction; without
    either, the middle of the scan), moved to the next plane that meets it when it is hollow there.
    Where there is a prediction the truth's lines are dashed, so that they differ in grey too; where
    there are several classes each has a colour.

    Args:
        rows: title (of one line or more), image, truth label or None, prediction or None; the
            labels on the image's grid.
        path: where to write, .png or .svg. An existing file is replaced.
        names: label value → name of the class, of some or all.

    Raises:
        InputError: the picture cannot be written.
    """
    truths = [truth for *_, truth, _ in rows if truth is not None]
    predictions = [prediction for *_, prediction in rows if prediction is not None]
    counts: Counter[int] = Counter()
    for each in (*truths, *predictions):
        counts += _counts(each.data)
    colours = class_colours([*(names or {}), *counts]) if predictions and len(counts) > 1 else {}
    figure, axes = _figure(
        len(rows),
        _legend_inches(len(counts) if colours else 0),
        title_lines=max((title.count("\n") + 1 for title, *_ in rows), default=1),
    )
    for (title, image, truth, prediction), row_axes in zip(rows, axes, strict=True):
        outlines = [
            Outline(upright(replace(label, affine=image.affine))[0], colour, dashes)
            for label, colour, dashes in (
                (truth, colours or TRUTH_COLOUR, prediction is not None),
                (prediction, colours or PREDICTION_COLOUR, False),
            )
            if label is not None
        ]
        draw_row(title, image, outlines, row_axes)
    lines = []
    if truths:
        lines.append(Line2D([], [], color=TRUTH_COLOUR, label="truth"))
        lines[0].set_linestyle("--" if predictions else "-")
    if predictions:
        lines.append(Line2D([], [], color=PREDICTION_COLOUR, label="prediction"))
    if colours:
        for line in lines:
            line.set_color("white")
    _legend(figure, lines)
    if colours:
        _legend(figure, _class_lines(counts, colours, names or {}), above=_LEGEND_INCHES)
    save_plot(figure, Path(path))


def draw_scan(path: Path, image: Volume, labels: np.ndarray, names: Mapping[int, str]) -> None:
    """Write a PNG below 1 MB of a result: three planes of the scan with the outlines of classes.

    The planes lie as in `draw_contours`. The title is the picture's own name, without its folder;
    nothing of the scan's header or path is in the file.

    Args:
        path: where to write. An existing file is replaced.
        image: the scan.
        labels: label values, integers `[D, H, W]` on the scan's grid; or floats, of a network that
            gives an image, which is drawn below the scan.
        names: label value → name of the class.

    Raises:
        InputError: the picture cannot be written.
    """
    result = replace(image, data=labels)
    if labels.dtype.kind == "f":
        figure, axes = _figure(2, panel=_LARGE_INCHES)
        for title, shown, row_axes in zip(
            (path.stem, "result"), (image, result), axes, strict=True
        ):
            draw_row(title, shown, [], row_axes, trim=True)
    else:
        counts = _counts(labels)
        colours = class_colours([*names, *counts])
        figure, axes = _figure(
            1, max(0, _legend_inches(len(counts)) - _LEGEND_INCHES), _LARGE_INCHES
        )
        outlines = [Outline(upright(result)[0], colours)]
        draw_row(path.stem, image, outlines, axes[0], trim=True)
        lines = _class_lines(counts, colours, names)
        _legend(figure, lines or [Line2D([], [], linestyle="", label="nothing was found")])
    save_plot(figure, path)


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
    draw_contours(rows, path, read_class_names(predictions_dir))


def _figure(
    rows: int, legend_inches: float = 0, panel: float = _PANEL_INCHES, title_lines: int = 1
) -> tuple[Figure, np.ndarray]:
    """A black figure and its axes [rows, 3] with titles of so many lines, the convention below."""
    bottom = _BOTTOM_INCHES + legend_inches
    more = _LINE_INCHES * (title_lines - 1)
    top = _TOP_INCHES + more
    width, height = 3 * panel, rows * (panel + more) + _TOP_INCHES + bottom
    figure = new_figure(width, height, layout=None)
    figure.set_facecolor("black")
    axes = figure.subplots(rows, 3, squeeze=False)
    figure.subplots_adjust(
        left=0.03,
        right=0.97,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=0.1,
        hspace=0.12 + more / panel,
    )
    convention = "radiological convention: the patient's left is on the right"
    figure.text(0.98, 0.1 / height, convention, color="white", fontsize=7, ha="right", va="bottom")
    return figure, axes


def _legend_inches(classes: int) -> float:
    return _LEGEND_INCHES * -(-min(classes, _MOST_NAMES + 1) // _LEGEND_COLUMNS)


def _legend(figure: Figure, lines: Sequence[Line2D], above: float = 0.0) -> None:
    """A legend, so many inches above the lower edge."""
    if lines:
        add_legend(
            figure,
            lines,
            loc="lower left",
            bbox_to_anchor=(0, above / figure.get_figheight()),
            ncols=_LEGEND_COLUMNS,
            labelcolor="white",
        )


def _class_lines(
    counts: Counter[int], colours: Mapping[int, str], names: Mapping[int, str]
) -> list[Line2D]:
    """What the colours are: the classes of most voxels by name, the others by their number."""
    largest = sorted(value for value, _ in counts.most_common(_MOST_NAMES))
    shown = shown_names([names.get(value, str(value)) for value in largest], _LONGEST_NAME)
    lines = [
        Line2D([], [], color=colours[value], label=name)
        for value, name in zip(largest, shown, strict=True)
    ]
    if rest := len(counts) - len(largest):
        more = f"and {counted(rest, 'smaller structure')}"
        lines.append(Line2D([], [], linestyle="", label=more))
    return lines


def _counts(labels: np.ndarray) -> Counter[int]:
    """Voxels of each label value but 0, plane by plane: counting all at once takes much memory."""
    counts: Counter[int] = Counter()
    for plane in labels:
        values, voxels = np.unique(plane, return_counts=True)
        counts.update(dict(zip(values.tolist(), voxels.tolist(), strict=True)))
    del counts[0]
    return counts
