"""What is measured of each class of each subject, of two label maps on one grid.

Where a class is in neither map, all but its volumes is undefined. Where it is in one, Dice,
Jaccard and surface Dice are 0, distances are undefined, and so are shares of nothing: precision
where nothing is predicted, recall and the difference in % where nothing is true. Undefined is NaN
here, an empty cell in a CSV, null in JSON and "-" in a table; means leave it out and count it. A
subject's mean over classes is of those in either of its maps, and undefined where it is for one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import ndimage

from voxtune.engine.labels import LARGEST, LabelMap
from voxtune.engine.lesions import detect
from voxtune.engine.metrics import Counts, scores
from voxtune.engine.pairs import Pair
from voxtune.engine.surface import surface_distances
from voxtune.engine.volume import Volume, check_same_grid, load_label
from voxtune.models.errors import InputError


@dataclass(frozen=True)
class Score:
    """One class of one subject. NaN is undefined.

    Attributes:
        subject: its name.
        value: the class's value in the label maps.
        name: the class's name.
        dice: 2 |P ∩ T| / (|P| + |T|), of the predicted voxels P and the true ones T.
        jaccard: |P ∩ T| / |P ∪ T|.
        precision: |P ∩ T| / |P|.
        recall: |P ∩ T| / |T|.
        predicted_ml: volume in the prediction.
        true_ml: volume in the true labels.
        difference_ml: predicted minus true.
        difference_percent: that in % of true.
        hd_mm: Hausdorff distance; see `surface`, as for the next three.
        hd95_mm: the same of 95th percentiles.
        assd_mm: average symmetric surface distance.
        surface_dice: share of both surfaces within the tolerance.
        lesions_true: components of 26 neighbours; see `lesions`, as for all below.
        lesions_found: of these.
        lesions_missed: likewise.
        lesions_false: predicted ones that touch no true voxel.
        lesion_sensitivity: found / (found + missed).
        lesion_precision: found / (found + false).
        lesion_f1: 2 found / (2 found + missed + false).
    """

    subject: str
    value: int
    name: str
    dice: float = math.nan
    jaccard: float = math.nan
    precision: float = math.nan
    recall: float = math.nan
    predicted_ml: float = 0.0
    true_ml: float = 0.0
    difference_ml: float = 0.0
    difference_percent: float = math.nan
    hd_mm: float = math.nan
    hd95_mm: float = math.nan
    assd_mm: float = math.nan
    surface_dice: float = math.nan
    lesions_true: int = 0
    lesions_found: int = 0
    lesions_missed: int = 0
    lesions_false: int = 0
    lesion_sensitivity: float = math.nan
    lesion_precision: float = math.nan
    lesion_f1: float = math.nan


MEASURES = tuple(each.name for each in fields(Score))[3:]

DEFINITIONS = {
    "dice": "2 |P n T| / (|P| + |T|), P the predicted voxels of the class, T the true ones",
    "jaccard": "|P n T| / |P u T|",
    "precision": "|P n T| / |P|",
    "recall": "|P n T| / |T|",
    "predicted_ml": "volume of P, ml",
    "true_ml": "volume of T, ml",
    "difference_ml": "predicted_ml - true_ml",
    "difference_percent": "100 (predicted_ml - true_ml) / true_ml",
    "hd_mm": "Hausdorff distance: largest distance of a boundary voxel to the nearest boundary "
    "voxel of the other mask, between centres, mm; boundary: a neighbour across a face is outside, "
    "as all beyond the volume is",
    "hd95_mm": "as hd_mm, the larger of both directions' 95th percentiles",
    "assd_mm": "mean of the distances of both directions, pooled, mm",
    "surface_dice": "share of the boundary voxels of both that are within tolerance_mm of the "
    "other's (Nikolov et al. 2021, voxels counted in the place of areas)",
    "lesions_true": "components of T; voxels touch by faces, edges and corners (26 neighbours)",
    "lesions_found": "components of T with at least one voxel in P",
    "lesions_missed": "components of T with none",
    "lesions_false": "components of P with no voxel in T",
    "lesion_sensitivity": "found / (found + missed)",
    "lesion_precision": "found / (found + false)",
    "lesion_f1": "2 found / (2 found + missed + false)",
    "undefined": "null: of a class in neither map all but volumes; of one in one map the distances "
    "and shares of nothing (dice, jaccard, surface_dice are 0); left out of means, counted there",
    "mean of classes": "of a subject's classes in either of its maps; undefined where it is for "
    "one of these, so a class missed entirely leaves the subject out of the mean of distances",
}


@dataclass(frozen=True)
class SubjectScores:
    """All classes of one subject.

    Attributes:
        subject: its name.
        by_value: value → scores, of the values that are in either map.
        ignored: voxels that counted for nothing.
    """

    subject: str
    by_value: Mapping[int, Score]
    ignored: int


def score_pair(
    pair: Pair, label_map: LabelMap, tolerance_mm: float, ignore: int | None = None
) -> SubjectScores:
    """Reads two label maps and compares them.

    Args:
        pair: their files.
        label_map: what the true values become. What it keeps, and whether all become 1, holds for
            the prediction too.
        tolerance_mm: of the surface Dice.
        ignore: true value, after the mapping of `label_map` and before what it keeps, of voxels
            that count for nothing: they are background in both maps, as in MONAI, so a class that
            reaches them has the same boundary there in both.

    Raises:
        InputError: a file cannot be read, the two are not on one grid, or a value is not listed.
    """
    truth, prediction = load_label(pair.label), load_label(pair.prediction)
    check_same_grid(truth, prediction)
    true, predicted = label_map(truth).data, prediction.data
    ignored = 0
    if ignore is not None:
        nothing = replace(label_map, keep=(), binarise=False)(truth).data == ignore
        ignored = int(np.count_nonzero(nothing))
        true, predicted = np.where(nothing, 0, true), np.where(nothing, 0, predicted)
    wrong = [each for each in (predicted.min(), predicted.max()) if not 0 <= each <= LARGEST]
    if wrong:
        raise InputError(
            f"{pair.prediction} has the label value {wrong[0]}: give a label map with values "
            f"between 0 and {LARGEST}"
        )
    both = replace(prediction, data=predicted.astype(np.uint16), affine=truth.affine)
    if label_map.keep or label_map.binarise:
        both = replace(label_map, mapping=None)(both)
        both = replace(both, data=both.data.astype(np.uint16))
    true = true.astype(np.uint16)
    return SubjectScores(pair.name, _scores(pair.name, both, true, tolerance_mm), ignored)


def all_rows(subjects: Sequence[SubjectScores], names: Mapping[int, str]) -> list[Score]:
    """A row for each subject and each class that any of them has, in either map.

    Args:
        subjects: in the order of the rows.
        names: value → name of the class, else it is called after its value. Where no subject has
            any class, these have the rows.
    """
    values = sorted({value for each in subjects for value in each.by_value} or {*names} - {0})
    return [
        replace(
            each.by_value.get(value, Score(each.subject, value, "")),
            name=names.get(value, f"class {value}"),
        )
        for each in subjects
        for value in values
    ]


def _scores(
    subject: str, prediction: Volume, true: np.ndarray, tolerance_mm: float
) -> dict[int, Score]:
    predicted = prediction.data
    counts = [_histogram(each) for each in (true[true == predicted], predicted, true)]
    values = sorted((counts[1].keys() | counts[2].keys()) - {0})
    overlap, here, there = (
        np.array([found.get(value, 0) for value in (0, *values)]) for found in counts
    )
    shares = scores(Counts(overlap, here, there))
    boxes = _boxes(predicted, true)
    result = {}
    for index, value in enumerate(values):
        n_predicted, n_true = int(here[index + 1]), int(there[index + 1])
        box = boxes[value]
        masks = predicted[box] == value, true[box] == value
        distances = surface_distances(*masks, prediction.affine[:3, :3])
        lesions = detect(*masks)
        result[value] = Score(
            subject=subject,
            value=value,
            name="",
            dice=float(shares["dice"][index]),
            jaccard=float(shares["jaccard"][index]),
            precision=float(shares["precision"][index]),
            recall=float(shares["recall"][index]),
            predicted_ml=n_predicted * prediction.voxel_ml,
            true_ml=n_true * prediction.voxel_ml,
            difference_ml=(n_predicted - n_true) * prediction.voxel_ml,
            difference_percent=100 * float(shares["volume_difference"][index]),
            hd_mm=distances.hausdorff(),
            hd95_mm=distances.hausdorff(95),
            assd_mm=distances.average,
            surface_dice=distances.dice(tolerance_mm),
            lesions_true=lesions.found + lesions.missed,
            lesions_found=lesions.found,
            lesions_missed=lesions.missed,
            lesions_false=lesions.false,
            lesion_sensitivity=lesions.sensitivity,
            lesion_precision=lesions.precision,
            lesion_f1=lesions.f1,
        )
    return result


def _histogram(data: np.ndarray) -> dict[int, int]:
    """Value → number of voxels, of uint16."""
    counts = np.bincount(data.ravel())
    values = np.flatnonzero(counts)
    return dict(zip(values.tolist(), counts[values].tolist(), strict=True))


def _boxes(one: np.ndarray, other: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Value → the smallest box that holds it in both maps; 0 is left out."""
    found: dict[int, tuple[slice, ...]] = {}
    for data in (one, other):
        for value, box in enumerate(ndimage.find_objects(data), start=1):
            if box is not None:
                found[value] = _union(found.get(value, box), box)
    return found


def _union(one: tuple[slice, ...], other: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
