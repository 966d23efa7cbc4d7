"""Dice and volumes against values by hand, and every way to be refused."""

import csv
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from voxtune.engine.evaluate import (
    Row,
    evaluate,
    subject_table,
    summary_table,
    table,
    write_class_names,
    write_csv,
)
from voxtune.engine.subjects import Subject
from voxtune.models.errors import InputError

AFFINE = np.diag([-1.0, 2.0, 5.0, 1.0])  # voxels of 10 mm3 = 0.01 ml


def label(path: Path, counts: dict[int, int], affine: np.ndarray = AFFINE, start: int = 0) -> Path:
    """A label map of 4 x 5 x 6 voxels: runs of values, from voxel `start` on."""
    data = np.zeros(120, np.uint8)
    for value, count in counts.items():
        data[start : start + count] = value
        start += count
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(data.reshape(4, 5, 6), affine), path)
    return path


def subject(folder: Path, name: str, counts: dict[int, int], image: str | None = None) -> Subject:
    truth = label(folder / "labels" / f"{name}.nii.gz", counts)
    images = {"image": folder / (image or f"images/{name}_t1.nii.gz")}
    return Subject(name, images, truth, None)


def text(renderable: Table) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


class TestEvaluate:
    def test_by_hand(self, tmp_path: Path) -> None:
        """Runs 1: voxels 0-9 and 5-14 (5 shared), 2: 10-29 and 15-34 (15 shared), b has no 2."""
        subjects = (subject(tmp_path, "a", {1: 10, 2: 20}), subject(tmp_path, "b", {1: 8}))
        label(tmp_path / "out" / "a.nii.gz", {1: 10, 2: 20}, start=5)
        label(tmp_path / "out" / "b.nii", {1: 4, 7: 3})
        write_class_names(tmp_path / "out", {0: "background", 1: "head", 2: "body"})
        rows = evaluate(tmp_path / "out", subjects)
        assert [(row.subject, row.value, row.name) for row in rows] == [
            (name, value, class_name)
            for name in "ab"
            for value, class_name in ((1, "head"), (2, "body"), (7, "class 7"))
        ]
        expected = [0.5, 0.75, math.nan, 2 * 4 / 12, math.nan, 0.0]
        assert [row.dice for row in rows] == pytest.approx(expected, nan_ok=True)
        assert [row.predicted_ml for row in rows] == pytest.approx([0.1, 0.2, 0, 0.04, 0, 0.03])
        assert [row.true_ml for row in rows] == pytest.approx([0.1, 0.2, 0, 0.08, 0, 0])
        assert [row.difference_ml for row in rows] == pytest.approx([0, 0, 0, -0.04, 0, 0.03])

    def test_perfect_predictions(self, shared_data: Path, tmp_path: Path) -> None:
        folder = shared_data / "mri" / "hippocampus"
        truth = folder / "labels" / "hippocampus_001.nii.gz"
        (tmp_path / "one.nii.gz").write_bytes(truth.read_bytes())
        rows = evaluate(tmp_path, (Subject("one", {"image": truth}, truth, None),))
        assert [(row.value, row.dice) for row in rows] == [(1, 1.0), (2, 1.0)]
        voxels = np.asarray(nib.load(truth).dataobj)  # of 1 mm3
        assert rows[0].true_ml == pytest.approx((voxels == 1).sum() / 1000)

    def test_the_images_own_name_is_found(self, tmp_path: Path) -> None:
        subjects = (subject(tmp_path, "a", {1: 10}), subject(tmp_path, "b", {1: 10}, "x/b.v2.mgz"))
        label(tmp_path / "out" / "a_t1.nii", {1: 10})
        label(tmp_path / "out" / "b.v2.nii.gz", {1: 10})
        assert [row.dice for row in evaluate(tmp_path / "out", subjects)] == [1, 1]

    def test_the_subjects_name_comes_first(self, tmp_path: Path) -> None:
        subjects = (subject(tmp_path, "a", {1: 10}),)
        label(tmp_path / "out" / "a.nii", {1: 10})
        label(tmp_path / "out" / "a_t1.nii.gz", {1: 3})
        assert evaluate(tmp_path / "out", subjects)[0].dice == 1

    def test_image_names_that_two_subjects_share_are_not_used(self, tmp_path: Path) -> None:
        subjects = tuple(subject(tmp_path, name, {1: 9}, f"{name}/t1.nii.gz") for name in "ab")
        label(tmp_path / "out" / "t1.nii.gz", {1: 9})
        with pytest.raises(InputError, match="no prediction of any of the 2 subjects"):
            evaluate(tmp_path / "out", subjects)

    def test_a_label_is_no_prediction_of_itself(self, tmp_path: Path) -> None:
        subjects = (subject(tmp_path, "a", {1: 9}),)
        with pytest.raises(InputError, match=r"a\.nii\.gz"):
            evaluate(tmp_path / "labels", subjects)

    def test_some_missing(self, tmp_path: Path) -> None:
        subjects = tuple(subject(tmp_path, f"s{n}", {1: 9}) for n in range(8))
        label(tmp_path / "out" / "s3.nii.gz", {1: 9})
        with pytest.raises(InputError) as caught:
            evaluate(tmp_path / "out", subjects)
        message = str(caught.value)
        assert "s0, s1, s2, s4, s5 and 2 more (7 of 8 subjects)" in message
        assert str(tmp_path / "out") in message

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not a folder"):
            evaluate(tmp_path / "no", (subject(tmp_path, "a", {1: 9}),))

    def test_no_subjects(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="empty"):
            evaluate(tmp_path, ())

    def test_no_label(self, tmp_path: Path) -> None:
        label(tmp_path / "out" / "a.nii", {1: 10})
        with pytest.raises(InputError, match="no label"):
            evaluate(tmp_path / "out", (Subject("a", {"image": Path("a.mgz")}, None, None),))

    def test_another_grid(self, tmp_path: Path) -> None:
        subjects = (subject(tmp_path, "a", {1: 10}),)
        label(tmp_path / "out" / "a.nii", {1: 10}, affine=np.eye(4))
        with pytest.raises(InputError, match=r"a\.nii has the affine"):
            evaluate(tmp_path / "out", subjects)


def rows_of(*scores: tuple[float, float]) -> list[Row]:
    return [
        Row(f"s{n}", value, f"class {value}", score, 1.5, 1.0, 0.5)
        for n, pair in enumerate(scores)
        for value, score in enumerate(pair, 1)
    ]


class TestTables:
    def test_summary_by_hand(self) -> None:
        rows = rows_of((0.5, 0.9), (0.7, math.nan), (0.9, 0.7))
        lines = [line.replace("│", " ").split() for line in text(summary_table(rows)).splitlines()]
        cells = {" ".join(line[:2]): " ".join(line[2:]) for line in lines if len(line) > 8}
        # counted, left out, mean, SD (n - 1), median, min, max, ml off
        assert cells["class 1"] == "3 0 0.700 0.200 0.700 0.500 0.900 +0.500"
        assert cells["class 2"] == "2 1 0.800 0.141 0.800 0.700 0.900 +0.500"
        # Means over classes: 0.7, 0.7 (its only class), 0.8
        assert cells["mean of"] == "classes 3 0 0.733 0.058 0.700 0.700 0.800"

    def test_subjects(self) -> None:
        shown = text(subject_table(rows_of((0.5, math.nan), (0.7, 0.9))))
        assert "0.500 (1.50 / 1.00)" in shown
        assert "- (1.50 / 1.00)" in shown
        assert "0.800" in shown  # mean of 0.7 and 0.9

    def test_a_class_that_is_nowhere_and_a_single_subject(self) -> None:
        shown = text(table(rows_of((math.nan, 0.5))))
        assert "nan" not in shown

    def test_both_are_in_the_table(self) -> None:
        result = table(rows_of((0.5, 0.9)))
        assert isinstance(result, Table)
        assert "of each subject" in text(result)
        assert "Dice over subjects" in text(result)

    def test_many_classes_fit_the_terminal(self) -> None:
        rows = [Row("s", value, f"class {value}", 0.5, 1, 1, 0) for value in range(1, 34)]
        shown = text(subject_table(rows))
        assert "33 classes" in shown
        assert "class 1" not in shown
        assert "class 33" in text(summary_table(rows))


class TestCsv:
    def test_all_rows(self, tmp_path: Path) -> None:
        write_csv(rows_of((0.5, math.nan)), tmp_path / "a.csv")
        with (tmp_path / "a.csv").open(newline="") as stream:
            first, second = csv.DictReader(stream)
        assert first == {
            "subject": "s0",
            "value": "1",
            "class": "class 1",
            "dice": "0.5",
            "predicted_ml": "1.5",
            "true_ml": "1.0",
            "difference_ml": "0.5",
        }
        assert second["dice"] == ""

    def test_an_existing_file_is_kept_unless_asked(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        write_csv(rows_of((0.5, 0.5)), path)
        old = path.read_text()
        with pytest.raises(InputError, match="exists already"):
            write_csv(rows_of((0.25, 0.5)), path)
        assert path.read_text() == old
        write_csv(rows_of((0.25, 0.5)), path, overwrite=True)
        assert path.read_text() != old
        assert list(tmp_path.iterdir()) == [path]

    def test_a_table_of_someone_else_is_never_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "subjects.csv"
        path.write_text("subject,image,label\n")
        with pytest.raises(InputError, match="no table that voxtune wrote"):
            write_csv(rows_of((0.5, 0.5)), path, overwrite=True)
        assert path.read_text() == "subject,image,label\n"

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot be written"):
            write_csv(rows_of((0.5, 0.5)), tmp_path / "no" / "a.csv")
