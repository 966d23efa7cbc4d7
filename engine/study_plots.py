"""A study as plots, which can be read in grey: violins, the learning curve, and training curves.

Arms are told apart by marks and dashes, and shown in the order in which outcomes first name them.
No JAX here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from voxtune.engine.findings import subject_scores
from voxtune.engine.formats import counted
from voxtune.engine.outcomes import Outcome
from voxtune.engine.plots import (
    FEWEST,
    Style,
    add_legend,
    count_steps,
    draw_violin,
    jitter,
    make_plain,
    new_figure,
    save_plot,
    say,
    shown_names,
    wrapped,
)
from voxtune.engine.statistics import mean_interval

_WIDEST = 10.0  # inches of a figure, if it can be: the width of a page on a screen
_ARM_INCHES = 1.1  # of a violin
_LINE_CHARACTERS = 14  # below a violin
_LONGEST_NAME = 40  # characters
_MOST_JOINED = 300  # dots of a panel that are joined by lines; more would be a thicket
_ROOM = 0.05  # Dice, beyond the lowest and the highest dot
_MARKS = 10  # of a line with more points than that, about so many have a mark


@dataclass(frozen=True)
class _Arm:
    """How an arm is shown in all plots."""

    name: str
    shown: str
    style: Style


_Cells = Mapping[int, Mapping[str, Sequence[Outcome]]]  # size → arm → its networks


def draw_violins(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draws Dice by arm, a panel for each number of scans, each subject a dot (mean over seeds).

    A subject is drawn where all seeds of the arm have a Dice of it. Fewer than five subjects are
    dots and a median alone. Faint lines join the dots of a subject, unless they are too many.

    Args:
        outcomes: at least one.
        path: where to write, .png or .svg. An existing file is replaced.

    Raises:
        InputError: the picture cannot be written.
    """
    save_plot(_violins(outcomes), path)


def draw_learning_curve(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draws mean Dice over the number of training scans, with its 95 % interval over subjects.

    Small marks beside it are the means of single seeds.

    Args:
        outcomes: see `draw_violins`.
        path: likewise.

    Raises:
        InputError: the picture cannot be written.
    """
    save_plot(_learning_curve(outcomes), path)


def draw_courses(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draws validation Dice over steps, a panel for each number of scans.

    A line is the mean over seeds of an arm, at steps that all of them have; thin lines are its
    seeds, if there are several.

    Args:
        outcomes: see `draw_violins`.
        path: likewise.

    Raises:
        InputError: the picture cannot be written.
    """
    save_plot(_courses(outcomes), path)


def _violins(outcomes: Sequence[Outcome]) -> Figure:
    arms, cells = _arms(outcomes), _cells(outcomes)
    rows = _rows([len(of_size) for of_size in cells.values()])
    units = max(sum(row) for row in rows)
    lines = max(wrapped(arm.shown, _LINE_CHARACTERS).count("\n") for arm in arms)
    figure = new_figure(max(4.2, 0.9 + _ARM_INCHES * units), 0.5 + (2.9 + 0.14 * lines) * len(rows))
    grid = figure.add_gridspec(len(rows), units)
    spans = [
        grid[number, sum(row[:place]) : sum(row[: place + 1])]
        for number, row in enumerate(rows)
        for place in range(len(row))
    ]
    values = [{arm: _scores(own) for arm, own in of_size.items()} for of_size in cells.values()]
    limits = _limits([dice for each in values for own in each.values() for dice in own.values()])
    for span, size, own in zip(spans, cells, values, strict=True):
        axes = figure.add_subplot(span)
        _draw_size(axes, [arm for arm in arms if arm.name in own], own)
        axes.set_title(counted(size, "training scan"), fontsize=9, loc="left")
        axes.set_ylim(*limits)
        if span.is_first_col():
            axes.set_ylabel("Dice")
        else:
            axes.tick_params(labelleft=False)
    figure.suptitle(_explained(values, _most_seeds(cells)), fontsize=9)
    return figure


def _explained(values: Sequence[Mapping[str, Mapping[str, float]]], seeds: int) -> str:
    """What is drawn of all that violins may have, in two lines."""
    subjects = len({name for each in values for own in each.values() for name in own})
    most = max(len(own) for each in values for own in each.values())
    mean = f", mean of {seeds} seeds" if seeds > 1 else ""
    quartiles = ", dashed: quartiles" if most >= FEWEST else ""
    spread = " ± SD" if most > 1 else ""
    return (
        f"{counted(subjects, 'subject')}, each a dot{mean}\n"
        f"line: median{quartiles}; numbers: mean{spread}"
    )


def _rows(widths: Sequence[int]) -> list[list[int]]:
    """Panels, so many violins wide, in rows that fit a page."""
    most = int(_WIDEST / _ARM_INCHES)
    rows: list[list[int]] = [[]]
    for width in widths:
        if rows[-1] and sum(rows[-1]) + width > most:
            rows.append([])
        rows[-1].append(width)
    return rows


def _draw_size(axes: Axes, arms: Sequence[_Arm], values: Mapping[str, Mapping[str, float]]) -> None:
    """The violins of one number of scans, and the lines between them."""
    labels = []
    for place, arm in enumerate(arms):
        own = np.array(list(values[arm.name].values()))
        draw_violin(axes, place, own, arm.style.marker, arm.style.colour, quartiles=True)
        labels.append(f"{wrapped(arm.shown, _LINE_CHARACTERS)}\n{_said(own)}")
    if sum(len(values[arm.name]) for arm in arms) <= _MOST_JOINED:
        _join(axes, [values[arm.name] for arm in arms])
    axes.set_xticks(range(len(arms)), labels, fontsize=8, parse_math=False)
    axes.set_xlim(-0.6, len(arms) - 0.4)
    make_plain(axes)


def _join(axes: Axes, values: Sequence[Mapping[str, float]]) -> None:
    """Lines between the dots of a subject in violins that are side by side."""
    dots = [
        {
            name: (place + aside, dice)
            for (name, dice), aside in zip(own.items(), asides, strict=True)
        }
        for place, own in enumerate(values)
        for asides in [jitter(len(own)).tolist()]
    ]
    lines = [
        (left[name], right[name])
        for left, right in pairwise(dots)
        for name in left
        if name in right
    ]
    axes.add_collection(LineCollection(lines, colors="0.65", linewidths=0.4, zorder=2))


def _said(values: np.ndarray) -> str:
    """How many there are, their mean and SD."""
    if not len(values):
        return "n = 0"
    spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return f"n = {len(values)}\n{values.mean():.3f}{spread}"


def _learning_curve(outcomes: Sequence[Outcome]) -> Figure:
    arms, cells = _arms(outcomes), _cells(outcomes)
    figure = new_figure(7.5 if len(arms) < 5 else _WIDEST, 4.2 + 0.18 * (len(arms) // 2))
    axes = figure.subplots()
    sizes = list(cells)
    # Arms stand side by side, or their bars would hide each other, but near their size.
    gap = min([math.log2(b / a) for a, b in pairwise(sizes)], default=1.0)
    step = min(0.3 * gap / len(arms), 0.06 * gap)
    for number, arm in enumerate(arms):
        aside = (number - (len(arms) - 1) / 2) * step
        of_arm = {size: cells[size][arm.name] for size in sizes if arm.name in cells[size]}
        _draw_growth(axes, arm.style, of_arm, aside, step / 3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xticks([], minor=True)
    axes.set_xlim(sizes[0] / 2 ** (gap / 2), sizes[-1] * 2 ** (gap / 2))
    axes.set_xlabel("training scans")
    axes.set_ylabel("Dice")
    small = "; small: one seed" if _most_seeds(cells) > 1 else ""
    axes.set_title(f"mean over subjects with its 95 % interval{small}", fontsize=9)
    make_plain(axes)
    axes.grid(axis="x", color="0.85", linewidth=0.6)  # what arms are beside
    _name_arms(figure, arms)
    return figure


def _draw_growth(
    axes: Axes, style: Style, of_arm: Mapping[int, Sequence[Outcome]], aside: float, further: float
) -> None:
    """The line of one arm, so many doublings beside the sizes, and its seeds a little further."""
    x = [size * 2**aside for size in of_arm]
    scores = [_scores(runs) for runs in of_arm.values()]
    values = [np.array(list(each.values())) for each in scores]
    means = [float(each.mean()) if each.size else math.nan for each in values]
    ends = [mean_interval(each) for each in values]
    reach = np.abs(np.array(ends).T - means)  # without an interval there is no bar
    axes.errorbar(x, means, yerr=reach, capsize=3, markersize=6, linewidth=1.4, **style.line)
    seeds = [
        (place * 2**further, float(np.mean([run.dice[name] for name in own])))
        for place, own, runs in zip(x, scores, of_arm.values(), strict=True)
        if own and len(runs) > 1
        for run in runs
    ]
    if seeds:
        places, own = zip(*seeds, strict=True)
        axes.scatter(
            places,
            own,
            s=9,
            marker=style.marker,
            facecolors="white",
            edgecolors=style.colour,
            linewidths=0.7,
            zorder=3,
        )


def _courses(outcomes: Sequence[Outcome]) -> Figure:
    arms, cells = _arms(outcomes), _cells(outcomes)
    columns = min(2, len(cells))
    rows = -(-len(cells) // columns)
    height = 0.7 + 3.0 * rows + 0.18 * (len(arms) // 2)
    figure = new_figure(_WIDEST if columns > 1 else 7.0, height)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in panels[len(cells) :]:
        axes.set_axis_off()
    for axes, (size, of_size) in zip(panels, cells.items(), strict=False):
        for arm in arms:
            _draw_course(axes, arm.style, [run.curve for run in of_size.get(arm.name, ())])
        axes.set_title(counted(size, "training scan"), fontsize=9, loc="left")
        axes.set_xlabel("steps")
        axes.tick_params(labelbottom=True)
        if not any(run.curve for runs in of_size.values() for run in runs):
            say(axes, "not validated")
        make_plain(axes)
    count_steps(panels[0], max((step for run in outcomes for step, _ in run.curve), default=0))
    seeds = _most_seeds(cells)
    said = f"mean of {seeds} seeds; thin: one seed" if seeds > 1 else "one seed"
    figure.suptitle(said, fontsize=9)
    for axes in panels[::columns]:
        axes.set_ylabel("validation Dice")
    _name_arms(figure, arms)
    return figure


def _draw_course(axes: Axes, style: Style, curves: Sequence[Sequence[tuple[int, float]]]) -> None:
    """The line of one arm, and thin ones of its seeds."""
    by_step = [dict(curve) for curve in curves if curve]
    if len(by_step) > 1:
        for each in by_step:
            axes.plot([*each], [*each.values()], color=style.colour, linewidth=0.5, alpha=0.6)
    shared = set.intersection(*(set(each) for each in by_step)) if by_step else set()
    steps = sorted(shared)
    means = [float(np.mean([each[step] for each in by_step])) for step in steps]
    every = max(1, len(steps) // _MARKS)
    axes.plot(steps, means, markersize=5, linewidth=1.5, markevery=every, **style.line)


def _arms(outcomes: Sequence[Outcome]) -> list[_Arm]:
    names = list(dict.fromkeys(each.arm for each in outcomes))
    shown = shown_names(names, _LONGEST_NAME)
    return [_Arm(*pair, Style.of(n)) for n, pair in enumerate(zip(names, shown, strict=True))]


def _cells(outcomes: Sequence[Outcome]) -> _Cells:
    """Sizes from small to large."""
    cells: dict[int, dict[str, list[Outcome]]] = {}
    for each in sorted(outcomes, key=lambda each: each.size):
        cells.setdefault(each.size, {}).setdefault(each.arm, []).append(each)
    return cells


def _scores(runs: Sequence[Outcome]) -> dict[str, float]:
    return subject_scores({each.seed: each for each in runs})


def _most_seeds(cells: _Cells) -> int:
    return max(len(runs) for of_size in cells.values() for runs in of_size.values())


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Of an axis of Dice, with a little room."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    return max(-0.02, low - _ROOM), min(1.01, high + _ROOM)


def _name_arms(figure: Figure, arms: Sequence[_Arm]) -> None:
    """A legend below the figure."""
    lines = [Line2D([], [], label=arm.shown, markersize=6, **arm.style.line) for arm in arms]
    add_legend(figure, lines, loc="outside lower center", ncols=2, handlelength=4)
