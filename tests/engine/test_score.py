"""Scores of pairs of files against values by hand, and what counts for nothing."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxtune.engine.labels import LabelMap
from voxtune.engine.pairs import Pair
from voxtune.engine.score import DEFINITIONS, MEASURES, Score, all_rows, score_pair
from voxtune.models.errors import InputError

AFFINE = np.diag([-1.0, 2.0, 5.0, 1.0])  # voxels of 10 mm3 = 0.01 ml


def label(path: Path, counts: dict[int, int], affine: np.ndarray = AFFINE, start: int = 0) -> Path:
    """A label map of 4 x 5 x 6 voxels: runs of values, from voxel `start` on."""
    data = np.zeros(120, np.int32)
    for value, count in counts.items():
        data[start : start + count] = value
        start += count
    nib.save(nib.Nifti1Image(data.reshape(4, 5, 6), affine), path)
    return path


def score(
    folder: Path, predicted: dict[int, int], true: dict[int, int], start: int = 0, **options
) -> dict[int, Score]:
    prediction = label(folder / "p.nii", predicted, start=start)
    pair = Pair("s", prediction, label(folder / "t.nii", true))
    label_map = options.pop("label_map", LabelMap())
    return dict(score_pair(pair, label_map, options.pop("tolerance", 1.0), **options).by_value)


def test_voxels_by_hand(tmp_path: Path) -> None:
    """1: voxels 5-14 and 0-9 (5 shared). 2: 15-34 and 10-29 (15 shared)."""
    scores = score(tmp_path, {1: 10, 2: 20}, {1: 10, 2: 20}, start=5)
    one, two = scores[1], scores[2]
    assert (one.dice, two.dice) == (0.5, 0.75)
    assert (one.jaccard, two.jaccard) == (5 / 15, 15 / 25)
    assert (one.precision, one.recall) == (0.5, 0.5)
    assert (two.predicted_ml, two.true_ml, two.difference_ml) == pytest.approx((0.2, 0.2, 0))


def test_more_predicted_than_true(tmp_path: Path) -> None:
    one = score(tmp_path, {1: 12}, {1: 8})[1]
    assert (one.precision, one.recall) == (8 / 12, 1)
    assert one.difference_ml == pytest.approx(0.04)
    assert one.difference_percent == pytest.approx(50)


def test_distances_are_in_mm_along_each_axis(tmp_path: Path) -> None:
    """A voxel off by one along axes of 5, 2 and 1 mm."""
    for step, expected in ((1, 5.0), (6, 2.0), (30, 1.0)):
        one = score(tmp_path, {1: 1}, {1: 1}, start=step)[1]
        assert (one.hd_mm, one.hd95_mm, one.assd_mm) == pytest.approx((expected,) * 3)
        assert one.surface_dice == float(expected <= 1)
    assert score(tmp_path, {1: 1}, {1: 1}, start=6, tolerance=2.0)[1].surface_dice == 1


def test_lesions(tmp_path: Path) -> None:
    one = score(tmp_path, {1: 1, 0: 59, 7: 1}, {1: 1, 7: 1})
    assert (one[1].lesions_true, one[1].lesions_found, one[1].lesion_f1) == (1, 1, 1)
    assert (one[7].lesions_missed, one[7].lesions_false, one[7].lesion_f1) == (1, 1, 0)


def test_empties(tmp_path: Path) -> None:
    scores = score(tmp_path, {1: 4}, {2: 4})
    false, missed = scores[1], scores[2]
    for each in scores.values():
        assert (each.dice, each.jaccard, each.surface_dice) == (0, 0, 0)
        assert all(map(math.isnan, (each.hd_mm, each.hd95_mm, each.assd_mm)))
    assert (false.precision, missed.recall, missed.difference_percent) == (0, 0, -100)
    assert all(map(math.isnan, (false.recall, false.difference_percent, missed.precision)))
    assert score(tmp_path, {}, {}) == {}


def test_a_class_of_another_subject_is_undefined_but_for_its_volume(tmp_path: Path) -> None:
    pair = Pair("a", label(tmp_path / "p.nii", {1: 4}), label(tmp_path / "t.nii", {1: 4}))
    other = Pair("b", label(tmp_path / "q.nii", {3: 4}), label(tmp_path / "u.nii", {3: 4}))
    subjects = [score_pair(each, LabelMap(), 1.0) for each in (pair, other)]
    rows = all_rows(subjects, {1: "head"})
    assert [(row.subject, row.value, row.name) for row in rows] == [
        (subject, value, name) for subject in "ab" for value, name in ((1, "head"), (3, "class 3"))
    ]
    assert [row.dice for row in rows] == pytest.approx([1, math.nan, math.nan, 1], nan_ok=True)
    defined = {name for name in MEASURES if not math.isnan(getattr(rows[1], name))}
    assert defined == {name for name in MEASURES if "_ml" in name or name.startswith("lesions_")}


def test_what_is_ignored_counts_in_neither(tmp_path: Path) -> None:
    """Voxels 0-9 are 1, 10-19 nobody labelled; predicted are 0-14."""
    scores = score(tmp_path, {1: 15}, {1: 10, 9: 10}, ignore=9)
    assert scores.keys() == {1}
    assert (scores[1].dice, scores[1].predicted_ml) == pytest.approx((1, 0.1))
    assert scores[1].hd_mm == 0


def test_labels_become_what_the_map_says(tmp_path: Path) -> None:
    """The value to ignore is one after the mapping, whatever is kept then."""
    label_map = LabelMap({17: 1, 53: 1, 99: 255}, keep=(1,), binarise=True)
    scores = score(tmp_path, {1: 10}, {17: 3, 53: 3, 99: 4}, label_map=label_map, ignore=255)
    assert scores.keys() == {1}
    assert scores[1].dice == 1
    with pytest.raises(InputError, match="does not list"):
        score(tmp_path, {1: 10}, {18: 3}, label_map=label_map)


def test_refused(tmp_path: Path) -> None:
    truth = label(tmp_path / "t.nii", {1: 4})
    for value in (-1, 70000):
        pair = Pair("s", label(tmp_path / "p.nii", {value: 4}), truth)
        with pytest.raises(InputError, match=f"has the label value {value}"):
            score_pair(pair, LabelMap(), 1.0)
    pair = Pair("s", label(tmp_path / "p.nii", {1: 4}, affine=np.eye(4)), truth)
    with pytest.raises(InputError, match=r"p\.nii has the affine"):
        score_pair(pair, LabelMap(), 1.0)


def test_every_measure_is_defined() -> None:
    assert set(DEFINITIONS) == {*MEASURES, "undefined", "mean of classes"}


def test_perfect_predictions(shared_data: Path) -> None:
    truth = shared_data / "mri" / "hippocampus" / "labels" / "hippocampus_001.nii.gz"
    scores = score_pair(Pair("one", truth, truth), LabelMap(), 0.0).by_value
    assert [(value, each.dice, each.hd_mm) for value, each in scores.items()] == [
        (1, 1, 0),
        (2, 1, 0),
    ]
    assert all(each.surface_dice == 1 for each in scores.values())
    voxels = np.asarray(nib.load(truth).dataobj)  # of 1 mm3
    assert scores[1].true_ml == pytest.approx((voxels == 1).sum() / 1000)
