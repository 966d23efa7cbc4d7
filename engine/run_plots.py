"""One run as a plot: loss, validation Dice and learning rates over steps. No JAX here."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from voxtune.engine.plots import (
    Style,
    add_legend,
    count_steps,
    make_plain,
    new_figure,
    save_plot,
    say,
    shown_names,
    wrapped,
)
from voxtune.engine.run_account import ERROR, Account

_MOST_NAMES = 8  # lines that are told apart; of more, only the highest and the lowest
_LONGEST_NAME = 40  # characters
_LINE_CHARACTERS = 24  # of the legend
_MARKS = 12  # of a line with more points than that, about so many have a mark
_MEAN = "mean"  # of classes, as the log calls it

_Entries = Sequence[Mapping[str, Any]]  # of the log, in the order of steps, each once
_Series = Mapping[str, Mapping[int, float]]  # name → step → value; NaN where there is none


def draw_training(account: Account, path: Path) -> None:
    """Draws loss, validation Dice by class and learning rates over steps, one below the other.

    Networks that give an image have their mean absolute error in the place of Dice.

    Args:
        account: of the run; what its log lacks is not drawn.
        path: where to write, .png or .svg. An existing file is replaced.

    Raises:
        InputError: the picture cannot be written.
    """
    save_plot(_training(account), path)


def _training(account: Account) -> Figure:
    # Arranged by hand: long legends beside axes would push their labels out of the figure.
    figure = new_figure(9.0, 7.2, layout=None)
    figure.subplots_adjust(left=0.09, right=0.745, bottom=0.07, top=0.98, hspace=0.18)
    loss, scores, rates = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    metric, shown = ("dice", "validation Dice")
    if account.metric == ERROR:
        metric, shown = ERROR, "mean absolute error"
    _draw_loss(loss, _values(account.trained, "loss"), [each["step"] for each in account.skipped])
    _draw_series(scores, _nested(account.validations, metric), "not validated yet")
    _draw_series(rates, _nested(account.trained, "learning_rates"), "not logged yet")
    loss.set_ylabel("training loss")
    scores.set_ylabel(shown)
    rates.set_ylabel("learning rate")
    rates.set_xlabel("steps")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rates.set_ylim(bottom=0)
    count_steps(rates, account.step)
    for axes in (loss, scores, rates):
        make_plain(axes)
        if not axes.lines:
            axes.set_yticks([])
    return figure


def _values(entries: _Entries, name: str) -> dict[int, float]:
    return {each["step"]: float(each.get(name, math.nan)) for each in entries}


def _nested(entries: _Entries, key: str) -> _Series:
    """What is by name in each entry."""
    inner = {each["step"]: each.get(key, {}) for each in entries}
    names = dict.fromkeys(name for each in inner.values() for name in each)
    return {
        name: {step: float(each.get(name, math.nan)) for step, each in inner.items()}
        for name in names
    }


def _draw_loss(axes: Axes, values: Mapping[int, float], skipped: Sequence[int]) -> None:
    if np.isnan([*values.values()]).all():
        say(axes, "not logged yet")
    else:
        marker = "." if len(values) <= 2 * _MARKS else ""
        axes.plot([*values], [*values.values()], color="black", linewidth=1.2, marker=marker)
    if skipped:
        crosses = axes.plot(
            skipped,
            [0.04] * len(skipped),
            transform=axes.get_xaxis_transform(),
            color="black",
            marker="x",
            linestyle="",
            label="step skipped",
        )
        _name(axes, crosses)


def _draw_series(axes: Axes, series: _Series, nothing: str) -> None:
    """A line for each name, told apart where they are not too many; the mean is bold."""
    series = {name: own for name, own in series.items() if not np.isnan([*own.values()]).all()}
    if not series:
        say(axes, nothing)
        return
    mean = series.pop(_MEAN, None)
    ranked = sorted(series, key=lambda name: float(np.nanmean([*series[name].values()])))
    many = len(series) > _MOST_NAMES
    told = [ranked[-1], ranked[0]] if many else list(series)
    lines = []
    if mean is not None:
        lines += _line(
            axes, mean, "mean of classes" if series else _MEAN, color="0.2", linewidth=2.4
        )
    for place, (name, shown) in enumerate(zip(told, shown_names(told, _LONGEST_NAME), strict=True)):
        lines += _line(axes, series[name], shown, **Style.of(place).line, linewidth=1.2)
    for number, name in enumerate(each for each in ranked if many and each not in told):
        other = _line(axes, series[name], f"{len(ranked) - 2} others", color="0.7", linewidth=0.6)
        lines += other if number == 0 else []
    _name(axes, lines)


def _line(axes: Axes, values: Mapping[int, float], label: str, **options: Any) -> list[Line2D]:
    every = max(1, len(values) // _MARKS)
    options = {"marker": ".", "markersize": 4, "markevery": every, **options}
    return axes.plot(
        [*values], [*values.values()], label=wrapped(label, _LINE_CHARACTERS), **options
    )


def _name(axes: Axes, lines: Sequence[Line2D]) -> None:
    """A legend at the right."""
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    add_legend(axes, lines, handlelength=3.5, **place)
