"""The command: what it compares, says, writes and refuses. Scores themselves are tested beside."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from voxtune.engine.class_names import write_class_names
from voxtune.engine.config import Evaluate
from voxtune.engine.evaluate import evaluate
from voxtune.engine.score import Score
from voxtune.models.errors import InputError


def label(path: Path, counts: dict[int, int], start: int = 0) -> Path:
    """A label map of 4 x 5 x 6 voxels: runs of values, from voxel `start` on."""
    data = np.zeros(120, np.uint8)
    for value, count in counts.items():
        data[start : start + count] = value
        start += count
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.reshape(4, 5, 6), np.eye(4)), path)
    return path


@pytest.fixture
def config(tmp_path: Path) -> Evaluate:
    """A table of two subjects in two splits, with predictions of both."""
    lines = ["subject,image,label,split"]
    for name, split, shift in (("a", "test", 0), ("b", "validation", 5)):
        label(tmp_path / "labels" / f"{name}.nii.gz", {1: 10, 2: 20})
        label(tmp_path / "out" / f"{name}.nii.gz", {1: 10, 2: 20}, start=shift)
        lines.append(f"{name},labels/{name}.nii.gz,labels/{name}.nii.gz,{split}")
    write_class_names(tmp_path / "out", {0: "background", 1: "head", 2: "body"})
    (tmp_path / "subjects.csv").write_text("\n".join(lines))
    return Evaluate(tmp_path / "out", tmp_path / "subjects.csv")


def run(config: Evaluate) -> tuple[list[Score], str]:
    """The rows, and what was shown."""
    console = Console(width=100, markup=False)
    with console.capture() as capture:
        rows = evaluate(config, console)
    return rows, capture.get()


def test_by_table(config: Evaluate) -> None:
    rows, shown = run(config)
    found = [(row.subject, row.value, row.name, row.dice) for row in rows]
    assert found == [
        ("a", 1, "head", 1),
        ("a", 2, "body", 1),
        ("b", 1, "head", 0.5),
        ("b", 2, "body", 0.75),
    ]
    assert "head" in shown
    assert "0.750" in shown
    assert "not compared" not in shown


def test_by_name(config: Evaluate, tmp_path: Path) -> None:
    label(tmp_path / "labels" / "c.nii", {1: 4})
    label(tmp_path / "out" / "d.nii", {1: 4})
    output = tmp_path / "scores.json"
    config = replace(config, labels=tmp_path / "labels", output=output)
    rows, shown = run(config)
    assert rows == run(replace(config, labels=tmp_path / "subjects.csv", output=None))[0]
    assert "no label called so: d (1 of 3)" in shown
    assert "no prediction called so: c (1 of 3)" in shown
    assert "by their subfolders" not in shown
    content = json.loads(output.read_text())
    assert content["predictions_without_label"] == ["d"]
    assert content["labels_without_prediction"] == ["c"]
    with pytest.raises(InputError, match="wants a subjects table"):
        run(replace(config, split="test", overwrite=True))


def test_a_table_of_labels_alone(config: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "subjects.csv").write_text("subject,label\na,labels/a.nii.gz\n")
    assert [row.subject for row in run(config)[0]] == ["a", "a"]


def test_a_split(config: Evaluate) -> None:
    assert {row.subject for row in run(replace(config, split="test"))[0]} == {"a"}


def test_what_is_written_names_no_folder(config: Evaluate, tmp_path: Path) -> None:
    config = replace(config, plot=tmp_path / "scores.svg", tolerance=2.5)
    _, shown = run(replace(config, output=tmp_path / "scores.csv"))
    assert "wrote" in shown
    label_map = tmp_path / "map.csv"
    label_map.write_text("1,1\n2,2\n")
    config = replace(config, output=tmp_path / "scores.json", overwrite=True, label_map=label_map)
    run(config)
    content = json.loads((tmp_path / "scores.json").read_text())
    assert (content["tolerance_mm"], content["label_map"]) == (2.5, "map.csv")
    assert content["versions"].keys() == {"voxtune", "numpy", "scipy"}
    for ending in ("csv", "json", "svg"):
        assert str(tmp_path) not in (tmp_path / f"scores.{ending}").read_text()


def test_nothing_is_written_where_a_file_may_not_be(config: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "scores.png").write_text("mine")
    config = replace(config, output=tmp_path / "scores.csv", plot=tmp_path / "scores.png")
    with pytest.raises(InputError, match=r"scores\.png exists already"):
        run(config)
    assert not (tmp_path / "scores.csv").exists()
    assert (tmp_path / "scores.png").read_text() == "mine"


def test_labels_become_what_is_said(config: Evaluate, tmp_path: Path) -> None:
    label_map = tmp_path / "map.csv"
    label_map.write_text("original,new,name\n1,2,whole\n2,2,whole\n")
    for name in "ab":
        label(tmp_path / "out" / f"{name}.nii.gz", {2: 30})
    (tmp_path / "out" / "classes.csv").unlink()
    rows, _ = run(replace(config, label_map=label_map))
    assert [(row.value, row.name, row.dice) for row in rows] == [(2, "whole", 1)] * 2


def test_what_may_be_mistyped_is_said(config: Evaluate) -> None:
    _, shown = run(replace(config, ignore_label=7))
    assert "--ignore-label 7" in shown
    assert ", but in no " not in shown
    assert "--ignore-label" not in run(replace(config, ignore_label=2))[1]
    for name in "ab":
        label(config.predictions_dir / f"{name}.nii.gz", {1: 10, 5: 20})
    _, shown = run(config)
    assert "in predictions, but in no true labels: 5" in shown
    assert "in true labels, but in no prediction: 2" in shown


def test_what_is_kept_and_binarised_is_so_in_both(config: Evaluate) -> None:
    def found(**changes: Any) -> list[tuple[int, str, float]]:
        rows, _ = run(replace(config, split="validation", **changes))
        return [(row.value, row.name, row.dice) for row in rows]

    assert found(keep=(2,)) == [(2, "body", 0.75)]
    assert found(binarise=True) == [(1, "class 1", 50 / 60)]
    assert found(keep=(2,), binarise=True) == [(1, "body", 0.75)]


def test_files_compared_by_their_subfolder_are_said(tmp_path: Path) -> None:
    label(tmp_path / "out" / "sub-1" / "sub-1_T1w.nii.gz", {1: 4})
    label(tmp_path / "der" / "sub-1" / "sub-1_dseg.nii.gz", {1: 4})
    rows, shown = run(Evaluate(tmp_path / "out", tmp_path / "der"))
    assert [(row.subject, row.dice) for row in rows] == [("sub-1/sub-1_T1w", 1)]
    assert "sub-1/sub-1_T1w with sub-1_dseg" in " ".join(shown.split())


def test_where_nothing_is_labelled_classes_have_rows(config: Evaluate, tmp_path: Path) -> None:
    for folder in ("out", "labels"):
        for name in "ab":
            label(tmp_path / folder / f"{name}.nii.gz", {})
    plot, output = tmp_path / "scores.png", tmp_path / "scores.json"
    rows, shown = run(replace(config, plot=plot, output=output))
    assert [(row.subject, row.name, row.true_ml) for row in rows] == [
        (subject, name, 0) for subject in "ab" for name in ("head", "body")
    ]
    assert all(math.isnan(row.dice) for row in rows)
    assert "neither predictions nor true labels have any class" in shown
    assert ", but in no " not in shown
    assert plot.exists()
    assert output.exists()


def test_the_names_of_classes_are_not_replaced_by_scores(config: Evaluate) -> None:
    path = config.predictions_dir / "classes.csv"
    path.unlink()
    with pytest.raises(InputError, match="where the names of the predictions' classes are"):
        run(replace(config, output=path))
    assert not path.exists()


def test_refused(config: Evaluate, tmp_path: Path) -> None:
    for tolerance in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="--tolerance"):
            run(replace(config, tolerance=tolerance))
    for folder in ("out", "labels"):
        for name in "ab":
            label(tmp_path / folder / f"{name}.nii.gz", {})
    (tmp_path / "out" / "classes.csv").unlink()
    with pytest.raises(InputError, match="background alone; check --keep"):
        run(config)
