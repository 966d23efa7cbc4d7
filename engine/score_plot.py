"""Scores as a picture: violins by class, a dot for each subject. Legible without colours."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from voxtune.engine.formats import counted
from voxtune.engine.plots import draw_violin, make_plain, new_figure, save_plot
from voxtune.engine.score import Score
from voxtune.engine.score_summary import grouped
from voxtune.models.errors import InputError

_PANELS = (("dice", "Dice"), ("hd95_mm", "HD95, mm"))
_NAME_CHARACTERS = 24
_MANY = 12  # classes; the labels of more stand upright, in one line
_CLASS_INCHES = 0.45


def check_plot(path: Path, overwrite: bool) -> None:
    """Makes sure that a plot may be written.

    Raises:
        InputError: it has another ending than .png or .svg, is there and may not be replaced, or
            its folder is missing.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise InputError(f"{path} must end in .png or .svg: name the plot so")
    if path.exists() and not (overwrite and path.is_file()):
        raise InputError(f"{path} exists already: give another name, or pass --overwrite")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.parent} is no folder")


def draw_scores(rows: Sequence[Score], path: Path) -> None:
    """Draws Dice above HD95: for each class a violin, its median, and each subject as a dot.

    Fewer than five subjects are dots and a median alone. Undefined scores are not drawn; how many
    are defined is written beside the class's name.

    Args:
        rows: at least one.
        path: where to write, .png or .svg. An existing file is replaced.

    Raises:
        InputError: the picture cannot be written.
    """
    save_plot(_figure(rows), path)


def _figure(rows: Sequence[Score]) -> Figure:
    """A panel for each measure."""
    classes = grouped(rows, lambda row: row.value)
    width = float(np.clip(2 + 1.1 * len(classes), 4.5, 16))
    figure = new_figure(width, 6.4)
    panels = figure.subplots(len(_PANELS), 1)
    names = [own[0].name[:_NAME_CHARACTERS] for own in classes.values()]
    crowded = width / len(classes) < 2 * _CLASS_INCHES
    for axes, (measure, title) in zip(panels, _PANELS, strict=True):
        defined = [
            np.array([x for row in own if not np.isnan(x := getattr(row, measure))])
            for own in classes.values()
        ]
        for place, values in enumerate(defined):
            draw_violin(axes, place, values)
        many = len(classes) > _MANY
        between = ", " if many else "\n"
        shown = [f"{name}{between}n = {len(x)}" for name, x in zip(names, defined, strict=True)]
        turn = {"rotation": 90 if many else 30, "ha": "right"} if crowded else {}
        # Dollars in names are no mathematics.
        axes.set_xticks(range(len(classes)), shown, fontsize=8, parse_math=False, **turn)
        axes.set_xlim(-0.7, len(classes) - 0.3)
        axes.set_ylabel(title)
        make_plain(axes)
    lowest = min((row.dice for row in rows if not np.isnan(row.dice)), default=0.0)
    panels[0].set_ylim(max(-0.02, np.floor(10 * lowest - 0.5) / 10), 1.01)
    panels[1].set_ylim(bottom=0)
    subjects = len({row.subject for row in rows})
    panels[0].set_title(f"{counted(subjects, 'subject')}, each a dot; line: median", fontsize=9)
    return figure
