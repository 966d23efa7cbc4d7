"""Summaries, tables, files and the plot of scores that are made up."""

import csv
import json
import math
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from rich.table import Table

from voxtune.engine.score import MEASURES, Score
from voxtune.engine.score_plot import _figure, check_plot, draw_scores
from voxtune.engine.score_summary import Summary, summarise
from voxtune.engine.score_table import check_table, subject_table, summary_table, write_table
from voxtune.models.errors import InputError

NAN = math.nan


def rows_of(*dice: tuple[float, ...], hd95: float = 2.0, lesions: int = 1) -> list[Score]:
    """A subject for each tuple, a class for each of its numbers."""
    return [
        Score(f"s{n}", value, f"class {value}", x, hd95_mm=hd95, lesions_true=lesions)
        for n, own in enumerate(dice)
        for value, x in enumerate(own, 1)
    ]


def text(renderable: Table, width: int = 100) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def summary(rows: list[Score], value: int | None, measure: str = "dice") -> Summary:
    return next(s for s in summarise(rows) if (s.value, s.measure) == (value, measure))


class TestSummary:
    def test_by_hand(self) -> None:
        rows = rows_of((0.5, 0.9), (0.7, NAN), (0.9, 0.7))
        one = summary(rows, 1)
        numbers = (one.mean, one.sd, one.median, one.lower_quartile, one.upper_quartile)
        assert numbers == pytest.approx((0.7, 0.2, 0.7, 0.6, 0.8))
        assert (one.n, one.left_out, one.minimum, one.maximum) == (3, 0, 0.5, 0.9)
        two = summary(rows, 2)
        assert (two.n, two.left_out) == (2, 1)
        assert (two.mean, two.sd) == pytest.approx((0.8, math.sqrt(0.02)))
        # Means over classes: 0.7, 0.7 (its only class), 0.8
        mean = summary(rows, None)
        assert (mean.n, mean.left_out, mean.mean) == pytest.approx((3, 0, 2.2 / 3))

    def test_a_class_missed_entirely_leaves_the_subject_out_of_the_mean_of_distances(self) -> None:
        """Dice is 0 there; the mean of the other classes would be the best of all."""
        rows = [
            Score("s1", 1, "one", 0.8, hd95_mm=3.0),
            Score("s1", 2, "two", 0.6, hd95_mm=5.0),
            Score("s2", 1, "one", 0.9, hd95_mm=1.0),
            Score("s2", 2, "two", 0.0),
            Score("s3", 1, "one", 0.7, hd95_mm=6.0),
            Score("s3", 2, "two"),  # in neither map
        ]
        mean = summary(rows, None, "hd95_mm")
        assert (mean.n, mean.left_out, mean.mean) == (2, 1, 5.0)
        assert summary(rows, None).mean == pytest.approx((0.7 + 0.45 + 0.7) / 3)
        shown = text(summary_table(rows, summarise(rows)))
        assert "for any class in either map" in " ".join(shown.split())

    def test_the_interval_covers_the_mean_as_often_as_it_says(self) -> None:
        """Of 40 normal numbers: close to the 2.02 standard errors of Student's distribution."""
        values = np.random.default_rng(1).normal(0.8, 0.05, 40)
        one = summary(rows_of(*((float(x),) for x in values)), 1)
        error = one.sd / math.sqrt(40)
        ends = (one.mean - 2.02 * error, one.mean + 2.02 * error)
        assert (one.low, one.high) == pytest.approx(ends, abs=0.1 * error)
        assert summary(rows_of(*((float(x),) for x in values)), 1) == one

    def test_the_interval_ends_where_the_measure_does(self) -> None:
        values = (1.0, 0.99, 0.6, 1.0, 0.98)
        one = summary(rows_of(*((x,) for x in values)), 1)
        assert one.mean < one.high == 1.0
        rows = [Score(str(x), 1, "one", x, hd95_mm=10 * x, difference_ml=x - 0.99) for x in values]
        assert summary(rows, 1, "hd95_mm").high > 10
        rows = [Score(str(x), 1, "one", hd95_mm=x, difference_ml=-x) for x in (0, 0.1, 5, 0, 0.2)]
        distance, volume = summary(rows, 1, "hd95_mm"), summary(rows, 1, "difference_ml")
        assert distance.low == 0
        assert volume.high > 0
        assert volume.low == pytest.approx(-distance.high)

    @pytest.mark.parametrize("values", [(0.5,), (0.5, 0.5), (0.5, NAN), (NAN, NAN), (0.2, 0.4)])
    def test_few_and_constant(self, values: tuple[float, ...]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            one = summary(rows_of(*((x,) for x in values)), 1)
        kept = [x for x in values if not math.isnan(x)]
        assert (one.n, one.left_out) == (len(kept), len(values) - len(kept))
        assert math.isnan(one.low)
        assert math.isnan(one.high)
        assert math.isnan(one.sd) == (len(kept) < 2)

    def test_volumes_are_not_averaged_over_classes(self) -> None:
        measures = {s.measure for s in summarise(rows_of((0.5, 0.9))) if s.value is None}
        left = {"predicted_ml", "true_ml", "difference_ml"}
        left |= {name for name in MEASURES if name.startswith("lesions_")}
        assert measures == set(MEASURES) - left


class TestTables:
    def test_subjects(self) -> None:
        shown = text(subject_table(rows_of((0.5, NAN), (0.75, 0.875))))
        assert all(number in shown for number in ("0.500", "0.750", "0.875", "2.000"))
        assert "nan" not in shown
        assert "lesions" not in shown

    def test_summary(self) -> None:
        rows = rows_of((0.5, NAN), (0.7, NAN))
        shown = text(summary_table(rows, summarise(rows)))
        lines = [line.split() for line in shown.splitlines()]
        first = "class 1 Dice 2 0 0.600 - 0.141 0.600 0.500 0.700"
        assert first.split() in lines
        assert ["class", "2", "Dice", "0", "2", "-", "-", "-", "-", "-", "-"] in lines
        assert any(line[:3] == ["mean", "of", "classes"] for line in lines)
        assert "nan" not in shown

    def test_lesions_are_shown_where_there_are_several(self) -> None:
        rows = rows_of((0.5,), (0.7,), lesions=3)
        assert "0 of 3" in text(subject_table(rows))
        assert "lesion F1" in text(summary_table(rows, summarise(rows)))

    @pytest.mark.parametrize("classes", [2, 6, 33])
    def test_they_fit_a_hundred_columns(self, classes: int) -> None:
        long = "sub-0123456789_ses-baseline_acq-mprage_T1w"
        numbers = {"hd95_mm": 123.4, "surface_dice": 0.1, "predicted_ml": 1234.5, "true_ml": 2234.5}
        rows = [
            Score(name, value, f"Left-Cerebellum-Cortex {value}", 0.5, lesions_true=12, **numbers)
            for name in (long, "b")
            for value in range(1, classes + 1)
        ]
        subjects = text(subject_table(rows))
        over = text(summary_table(rows, summarise(rows)))
        assert "…" not in subjects + over
        assert "mean of classes" in over
        assert f"{rows[-1].name.split()[0][:10]}" in over
        many = classes > 6
        assert (f"{classes} classes" in " ".join(subjects.split())) == many
        assert ("1234.50" in subjects) != many


class TestFiles:
    def test_csv(self, tmp_path: Path) -> None:
        rows = rows_of((0.5, NAN))
        write_table(tmp_path / "a.csv", rows, summarise(rows), {})
        with (tmp_path / "a.csv").open(newline="") as stream:
            first, second = csv.DictReader(stream)
        assert list(first) == ["subject", "value", "class", *MEASURES]
        shown = ("subject", "value", "class", "dice", "hd95_mm", "hd_mm", "lesions_true")
        assert [first[name] for name in shown] == ["s0", "1", "class 1", "0.5", "2.0", "", "1"]
        assert second["dice"] == ""

    def test_json(self, tmp_path: Path) -> None:
        rows = rows_of((0.5, NAN), (0.75, NAN))
        write_table(tmp_path / "a.json", rows, summarise(rows), {"tolerance_mm": 1.0})
        assert "NaN" not in (tmp_path / "a.json").read_text()
        content = json.loads((tmp_path / "a.json").read_text())
        assert content["tolerance_mm"] == 1.0
        assert content["definitions"].keys() == {*MEASURES, "undefined", "mean of classes"}
        assert content["interval"]["resamples"] == 9999
        assert len(content["subjects"]) == 4
        assert content["subjects"][1]["dice"] is None
        one, mean = content["summary"][0], content["summary"][-1]
        assert list(one) == [
            "value",
            "class",
            "measure",
            "n",
            "left_out",
            "mean",
            "low",
            "high",
            "sd",
            "median",
            "lower_quartile",
            "upper_quartile",
            "minimum",
            "maximum",
        ]
        assert (one["class"], one["measure"], one["mean"]) == ("class 1", "dice", 0.625)
        assert (mean["value"], mean["class"]) == (None, "mean of classes")
        assert {name: asdict(rows[0])[name] for name in ("dice", "hd95_mm")} == {
            name: content["subjects"][0][name] for name in ("dice", "hd95_mm")
        }

    @pytest.mark.parametrize("ending", ["csv", "json"])
    def test_what_is_there_is_kept_unless_asked(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"a.{ending}"
        check_table(path, overwrite=False)
        write_table(path, rows_of((0.5,)), [], {})
        with pytest.raises(InputError, match="exists already"):
            check_table(path, overwrite=False)
        check_table(path, overwrite=True)
        path.write_text("subject,image,label\n")
        with pytest.raises(InputError, match="no table that voxtune wrote"):
            check_table(path, overwrite=True)
        assert list(tmp_path.iterdir()) == [path]

    def test_an_earlier_table_may_be_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("subject,value,class,dice,predicted_ml,true_ml\n")
        check_table(tmp_path / "a.csv", overwrite=True)

    def test_other_places_are_refused(self, tmp_path: Path) -> None:
        for name, reason in (("no/a.csv", "no folder"), ("a.txt", r"\.csv or \.json")):
            with pytest.raises(InputError, match=reason):
                check_table(tmp_path / name, overwrite=False)
        for name, reason in (("no/a.png", "no folder"), ("a.pdf", r"\.png or \.svg")):
            with pytest.raises(InputError, match=reason):
                check_plot(tmp_path / name, overwrite=False)
        (tmp_path / "a.svg").touch()
        with pytest.raises(InputError, match="exists already"):
            check_plot(tmp_path / "a.svg", overwrite=False)
        check_plot(tmp_path / "a.svg", overwrite=True)


class TestPlot:
    def test_violins_are_drawn_of_enough_subjects(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).uniform(0.6, 0.9, 9)
        pages = []
        for count in (4, 9):
            draw_scores(rows_of(*((float(x),) for x in values[:count])), tmp_path / "a.svg")
            pages.append((tmp_path / "a.svg").read_text())
        assert ["PolyCollection" in page for page in pages] == [False, True]
        assert ["n = 4" in page for page in pages] == [True, False]
        draw_scores(rows_of(*((float(x),) for x in values)), tmp_path / "b.svg")
        assert (tmp_path / "b.svg").read_text() == pages[1]

    def test_labels_say_how_many_are_defined_whatever_the_name(self, tmp_path: Path) -> None:
        rows = rows_of(*[(0.5, 0.6)] * 5, (0.5, NAN))
        rows = [replace(row, name=("cost $", r"$\frac$")[row.value - 1]) for row in rows]
        draw_scores(rows, tmp_path / "a.svg")
        labels = [each.get_text() for each in _figure(rows).axes[0].get_xticklabels()]
        assert labels == ["cost $\nn = 6", "$\\frac$\nn = 5"]

    def test_labels_of_many_classes_say_it_too(self) -> None:
        labels = _figure(rows_of(*[(0.5,) * 13] * 5)).axes[1].get_xticklabels()
        assert labels[12].get_text() == "class 13, n = 5"

    def test_it_is_grey(self, tmp_path: Path) -> None:
        draw_scores(rows_of(*[(0.5 + 0.05 * n, 0.5) for n in range(6)]), tmp_path / "a.png")
        pixels = imread(tmp_path / "a.png")[..., :3]
        assert pixels.min() < 0.1
        assert np.ptp(pixels, axis=-1).max() < 0.01

    def test_constant_undefined_and_many(self, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_scores(rows_of((NAN,), hd95=NAN), tmp_path / "a.png")
            draw_scores(rows_of(*[(0.5,) * 33] * 5), tmp_path / "b.png")
        width = imread(tmp_path / "b.png").shape[1]
        assert imread(tmp_path / "a.png").shape[1] < width <= 16 * 150
