"""Plots of studies that are made up: what is in the files, and that no colour is needed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D

from voxtune.engine import study_plots
from voxtune.engine.outcomes import Outcome
from voxtune.engine.plots import MAX_BYTES
from voxtune.engine.statistics import mean_interval
from voxtune.engine.study_plots import draw_courses, draw_learning_curve, draw_violins

NAN = math.nan
ARMS = ("pretrained", "random")
HOSTILE = (r"$\frac$", "<b>&amp--;\"'\x07", f"{'x' * 200}1", f"{'x' * 200}2", "重み" * 20)
ALL = (draw_violins, draw_learning_curve, draw_courses)
Draw = Callable[[Sequence[Outcome], Path], None]


def outcome(arm: str, size: int, seed: int, dice: Sequence[float]) -> Outcome:
    by_subject = {f"s{n}": each for n, each in enumerate(dice)}
    curve = [(10, 0.3 + 0.01 * seed), (20, 0.6 + 0.01 * seed)]
    return Outcome(arm, size, seed, 1.0, by_subject, {}, curve, 1.0)


def made(
    arms: Sequence[str] = ARMS, sizes: Sequence[int] = (4,), seeds: int = 1, subjects: int = 4
) -> list[Outcome]:
    rng = np.random.default_rng(0)
    return [
        outcome(arm, size, seed, rng.uniform(0.6, 0.9, subjects).tolist())
        for seed in range(seeds)
        for size in sizes
        for arm in arms
    ]


def named(axes: Axes) -> list[str]:
    """First lines of the labels below a panel."""
    return [label.get_text().split("\n")[0] for label in axes.get_xticklabels()]


def subject_dots(outcomes: Sequence[Outcome]) -> np.ndarray:
    """Places `[n, 2]` of all dots of the violins' first panel."""
    axes = study_plots._violins(outcomes).axes[0]
    parts = [part for part in axes.collections if isinstance(part, PathCollection)]
    return np.concatenate([np.asarray(part.get_offsets()) for part in parts])


def lines(axes: Axes) -> list[Line2D]:
    """Those that have points."""
    return [line for line in axes.lines if len(np.asarray(line.get_xdata()))]


class TestViolins:
    def test_each_subject_is_one_dot_at_the_mean_over_seeds(self) -> None:
        outcomes = [
            outcome(arm, 4, seed, [0.5 + 0.1 * seed + shift] * 7)
            for arm, shift in zip(ARMS, (0.0, 0.2), strict=True)
            for seed in range(3)
        ]
        places = subject_dots(outcomes)
        assert len(places) == 14
        assert np.allclose(places[:7, 1], 0.6)
        assert np.allclose(places[7:, 1], 0.8)
        assert (places[:7, 0] < 0.5).all()
        assert (places[7:, 0] > 0.5).all()

    def test_panels_are_sizes_and_have_their_own_arms(self) -> None:
        outcomes = [*made(sizes=(16, 4), subjects=6), *made(("control",), (4,), subjects=6)]
        figure = study_plots._violins(outcomes)
        assert [axes.get_title("left") for axes in figure.axes] == [
            "4 training scans",
            "16 training scans",
        ]
        assert [named(axes) for axes in figure.axes] == [[*ARMS, "control"], [*ARMS]]
        assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()

    def test_mean_and_spread_are_below_the_name(self) -> None:
        outcomes = [outcome("a", 4, 0, [0.5, 0.7, NAN]), outcome("b", 4, 0, [NAN, NAN, 0.25])]
        labels = [t.get_text() for t in study_plots._violins(outcomes).axes[0].get_xticklabels()]
        assert labels == ["a\nn = 2\n0.600 ± 0.141", "b\nn = 1\n0.250"]

    @pytest.mark.parametrize(
        ("subjects", "bodies", "said"),
        [
            (1, 0, "1 subject, each a dot\nline: median; numbers: mean"),
            (4, 0, "4 subjects, each a dot\nline: median; numbers: mean ± SD"),
            (5, 2, "5 subjects, each a dot\nline: median, dashed: quartiles; numbers: mean ± SD"),
        ],
    )
    def test_few_subjects_have_no_violin(self, subjects: int, bodies: int, said: str) -> None:
        figure = study_plots._violins(made(subjects=subjects))
        assert figure.get_suptitle() == said
        axes = figure.axes[0]
        assert sum(isinstance(part, PolyCollection) for part in axes.collections) == bodies
        assert sum(isinstance(part, PathCollection) for part in axes.collections) == 2

    def test_lines_join_the_dots_of_the_same_subject(self) -> None:
        outcomes = [outcome("a", 4, 0, [0.9, 0.5, NAN]), outcome("b", 4, 0, [0.4, NAN, 0.6])]
        axes = study_plots._violins(outcomes).axes[0]
        paths = [
            np.asarray(path.vertices) for part in axes.collections for path in part.get_paths()
        ]
        joins = [path for path in paths if path.shape == (2, 2) and path[0, 1] != path[1, 1]]
        assert [path[:, 1].tolist() for path in joins] == [[0.9, 0.4]]

    def test_a_seed_without_a_dice_leaves_the_subject_out(self) -> None:
        outcomes = [outcome("a", 4, 0, [0.9, 0.5]), outcome("a", 4, 1, [0.7, NAN])]
        places = subject_dots(outcomes)
        assert places[:, 1].tolist() == [0.8]

    def test_the_axis_is_of_the_dice_that_there_are(self) -> None:
        figure = study_plots._violins([outcome("a", 4, 0, [0.6, 0.86]), outcome("b", 4, 0, [0.7])])
        assert figure.axes[0].get_ylim() == pytest.approx((0.55, 0.91))

    def test_names_do_not_overlap(self) -> None:
        outcomes = made(HOSTILE, (4, 16), subjects=6)
        figure = study_plots._violins(outcomes)
        figure.canvas.draw()
        for axes in figure.axes:
            boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
            assert not any(a.overlaps(b) for a, b in pairwise(boxes))


class TestLearningCurve:
    def test_points_are_means_over_subjects_with_their_interval(self) -> None:
        outcomes = made(sizes=(4, 16), subjects=9)
        axes = study_plots._learning_curve(outcomes).axes[0]
        for container, arm in zip(axes.containers, ARMS, strict=True):
            values = [np.array([*o.dice.values()]) for o in outcomes if o.arm == arm]
            line, _, (bars,) = container.lines
            assert np.allclose(line.get_ydata(), [each.mean() for each in values])
            ends = [path.vertices[:, 1] for path in bars.get_paths()]
            assert np.allclose(ends, [mean_interval(each) for each in values])

    def test_ticks_are_the_sizes_and_arms_stand_beside_each_other(self) -> None:
        figure = study_plots._learning_curve(made(HOSTILE, (4, 5, 64), seeds=2, subjects=5))
        axes = figure.axes[0]
        assert named(axes) == ["4", "5", "64"]
        places = np.log2(np.array([bar.lines[0].get_xdata() for bar in axes.containers], float))
        assert (np.diff(places, axis=0) > 0).all()
        assert (places[-1, 0] + 0.01 < places[0, 1]).all()  # no arm is among the next size's

    def test_many_arms_stay_near_their_size(self) -> None:
        arms = [f"arm {n}" for n in range(11)]
        axes = study_plots._learning_curve(made(arms, (4, 16), subjects=5)).axes[0]
        places = np.log2(np.array([bar.lines[0].get_xdata() for bar in axes.containers], float))
        assert np.abs(places - np.log2([4, 16])).max() < 0.15 * 2  # of two doublings

    @pytest.mark.parametrize(("seeds", "marks"), [(1, 0), (3, 3)])
    def test_each_of_several_seeds_has_a_small_mark(self, seeds: int, marks: int) -> None:
        outcomes = [outcome("a", 4, seed, [0.1 * seed] * 5) for seed in range(seeds)]
        axes = study_plots._learning_curve(outcomes).axes[0]
        parts = [part for part in axes.collections if isinstance(part, PathCollection)]
        values = [float(y) for part in parts for _, y in np.asarray(part.get_offsets())]
        assert values == pytest.approx([0.1 * seed for seed in range(marks)])


class TestCourses:
    def test_a_line_is_the_mean_of_its_thin_lines(self) -> None:
        axes = study_plots._courses(made(("a",), seeds=3)).axes[0]
        *thin, mean = lines(axes)
        assert len(thin) == 3
        assert np.allclose(mean.get_ydata(), np.mean([line.get_ydata() for line in thin], axis=0))
        assert all(line.get_linewidth() < mean.get_linewidth() / 2 for line in thin)

    def test_the_mean_is_of_steps_that_all_seeds_have(self) -> None:
        first, second = made(("a",), seeds=2)
        axes = study_plots._courses([first, replace(second, curve=second.curve[:1])]).axes[0]
        assert np.asarray(lines(axes)[-1].get_xdata()).tolist() == [10]

    def test_without_validations_it_says_so(self) -> None:
        figure = study_plots._courses([replace(each, curve=[]) for each in made()])
        assert [text.get_text() for text in figure.axes[0].texts] == ["not validated"]


class TestFiles:
    @pytest.mark.parametrize("draw", ALL)
    def test_the_same_outcomes_give_the_same_file(self, draw: Draw, tmp_path: Path) -> None:
        for ending in ("svg", "png"):
            first, second = (tmp_path / f"{name}.{ending}" for name in "ab")
            for path in (first, second):
                draw(made(seeds=2, subjects=5), path)
            assert first.read_bytes() == second.read_bytes()
        assert b"dc:date" not in (tmp_path / "a.svg").read_bytes()

    @pytest.mark.parametrize("draw", ALL)
    def test_names_are_text_whatever_they_are(self, draw: Draw, tmp_path: Path) -> None:
        draw(made(HOSTILE, subjects=5), tmp_path / "a.svg")
        page = ElementTree.parse(tmp_path / "a.svg")
        text = "".join("".join(each.itertext()) for each in page.iter() if each.tag[-4:] == "text")
        for part in (r"$\frac$", "<b>&amp--;\"'\ufffd", "x1", "x2", "…", "重み"):
            assert part in text
        tags = {each.tag.rpartition("}")[2] for each in page.iter()}
        assert not tags & {"b", "script", "image", "foreignObject"}

    @pytest.mark.parametrize("draw", ALL)
    @pytest.mark.parametrize("dice", [[NAN] * 6, [0.0] * 6, [0.5, NAN, NAN, NAN, NAN, NAN]])
    @pytest.mark.filterwarnings("error")
    def test_undefined_and_constant_dice_are_drawn(
        self, draw: Draw, dice: list[float], tmp_path: Path
    ) -> None:
        draw([outcome("a", 4, 0, dice), outcome("b", 4, 0, [0.7] * 6)], tmp_path / "a.png")
        assert np.ptp(imread(tmp_path / "a.png")) > 0.9

    def test_a_large_study_stays_small(self, tmp_path: Path) -> None:
        arms = [f"arm {n}" for n in range(8)]
        draw_violins(made(arms, (4, 8, 16, 32), subjects=60), tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size < MAX_BYTES
        assert imread(tmp_path / "a.png").shape[1] >= 1400  # 150 dots an inch


@pytest.mark.parametrize("figure", [study_plots._courses, study_plots._learning_curve])
def test_arms_differ_without_colours(figure: Callable[[Sequence[Outcome]], Figure]) -> None:
    arms = [f"arm {n}" for n in range(36)]
    drawn = figure(made(arms))
    (legend,) = drawn.legends
    looks = {
        (str(line.get_marker()), str(line._unscaled_dash_pattern)) for line in legend.get_lines()
    }
    assert len(looks) == len(arms)
    assert [text.get_text() for text in legend.get_texts()] == arms
