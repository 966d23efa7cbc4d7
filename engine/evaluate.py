"""How well predictions agree with labels: Dice and volumes of each class of each subject.

Dice is 2 |P ∩ T| / (|P| + |T|). Where a class is in neither, Dice is undefined: NaN, shown as "-",
left out of means, and the number left out is shown. Where it is in one of them only, Dice is 0.
"""

import csv
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.table import Table

from voxtune.engine.metrics import Counts, scores
from voxtune.engine.subjects import Subject
from voxtune.engine.volume import check_same_grid, load_label, stem, written_beside
from voxtune.models.errors import InputError

Key = TypeVar("Key", str, int)

CLASSES = "classes.csv"  # names of the classes, beside the predictions
# Columns that fit on a terminal; with more classes the table of subjects shows their mean only.
_MAX_CLASS_COLUMNS = 6


@dataclass(frozen=True)
class Row:
    """One class of one subject.

    Attributes:
        subject: its name.
        value: the class's value in the label maps.
        name: the class's name.
        dice: 0 to 1, NaN when neither prediction nor truth have the class.
        predicted_ml: volume in the prediction, in ml.
        true_ml: volume in the label map, in ml.
        difference_ml: predicted minus true, in ml.
    """

    subject: str
    value: int
    name: str
    dice: float
    predicted_ml: float
    true_ml: float
    difference_ml: float


def evaluate(predictions_dir: Path, subjects: Sequence[Subject]) -> list[Row]:
    """Compare the prediction of each subject with its label map.

    Classes are called as the folder's classes.csv says, else after their values. A prediction is
    `<subject>.nii.gz` or `<subject>.nii`, else it is called as the subject's image
    is, if no other subject's image is called so.

    Args:
        predictions_dir: the folder with the predictions.
        subjects: with labels, of the split to judge.

    Returns:
        A row for each subject and each class: the nonzero values in any prediction or truth.

    Raises:
        InputError: a prediction is missing, cannot be read, or is not on its label's grid.
    """
    counts = [
        _count(prediction, subject)
        for subject, prediction in find_predictions(predictions_dir, subjects)
    ]
    values = sorted({value for count in counts for value in (*count.predicted, *count.true)} - {0})
    names = read_class_names(predictions_dir)
    return [row for count in counts for row in _rows(count, values, names)]


def table(rows: Sequence[Row]) -> Table:
    """For the terminal: the table of subjects above the summary of classes."""
    both = Table.grid(padding=(0, 0, 1, 0))
    both.add_row(subject_table(rows))
    both.add_row(summary_table(rows))
    return both


def subject_table(rows: Sequence[Row]) -> Table:
    """A row for each subject: Dice and volumes of each class, and the mean of several."""
    names = {row.value: row.name for row in rows}
    narrow = len(names) > _MAX_CLASS_COLUMNS
    shown = {} if narrow else names
    result = Table(
        title="Dice (predicted / true ml) of each subject",
        caption=f"{len(names)} classes; the CSV file has each of them" if narrow else None,
    )
    result.add_column("subject")
    several = len(names) > 1
    for name in (*shown.values(), *(["mean Dice"] if several else [])):
        result.add_column(name, justify="right")
    for subject, own in _grouped(rows, lambda row: row.subject).items():
        cells = [
            f"{_number(row.dice)} ({row.predicted_ml:.2f} / {row.true_ml:.2f})"
            for row in own
            if row.value in shown
        ]
        mean = [_number(_mean([row.dice for row in own]))] if several else []
        result.add_row(subject, *cells, *mean)
    return result


def summary_table(rows: Sequence[Row]) -> Table:
    """A row for each class, over subjects; below, where there are several, each subject's mean."""
    result = Table(
        title="Dice over subjects",
        caption="n: subjects counted. empty: left out, in neither prediction nor truth. "
        "ml off: mean of predicted minus true volume.",
    )
    result.add_column("class", overflow="fold", min_width=15)
    for name in ("n", "empty", "mean", "SD", "median", "min", "max", "ml off"):
        result.add_column(name, justify="right")
    for own in _grouped(rows, lambda row: row.value).values():
        difference = _mean([row.difference_ml for row in own])
        result.add_row(own[0].name, *_statistics([row.dice for row in own]), f"{difference:+.3f}")
    if len({row.value for row in rows}) > 1:
        result.add_section()
        by_subject = _grouped(rows, lambda row: row.subject).values()
        means = [_mean([row.dice for row in own]) for own in by_subject]
        result.add_row("mean of classes", *_statistics(means), "")
    return result


def write_csv(rows: Sequence[Row], path: str | Path, overwrite: bool = False) -> None:
    """Write all rows; an undefined Dice is an empty cell.

    Raises:
        InputError: the file exists and may not be overwritten, or cannot be written.
    """
    path = Path(path)
    header = ("subject", "value", "class", "dice", "predicted_ml", "true_ml", "difference_ml")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: give another name, or pass --overwrite")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file: name the CSV file to write")
    if path.exists() and path.read_bytes()[:200].splitlines()[:1] != [",".join(header).encode()]:
        raise InputError(f"{path} is no table that voxtune wrote: give another name")
    with written_beside(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for row in rows:
            subject, value, name, *numbers = astuple(row)
            writer.writerow((subject, value, name, *("" if math.isnan(n) else n for n in numbers)))


# Finding predictions


def find_predictions(folder: Path, subjects: Sequence[Subject]) -> list[tuple[Subject, Path]]:
    """The prediction of each subject.

    Raises:
        InputError: one is missing.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the one that holds the predictions")
    if not subjects:
        raise InputError(f"{folder} has nothing to be compared with: the list of subjects is empty")
    image_names = Counter(stem(subject.image) for subject in subjects)
    found, missing = [], []
    for subject in subjects:
        names = [subject.name]
        if image_names[stem(subject.image)] == 1:  # sub-01/t1.nii.gz and sub-02/t1.nii.gz clash
            names.append(stem(subject.image))
        prediction = _find_prediction(folder, subject, names)
        if prediction is None:
            missing.append(subject.name)
        else:
            found.append((subject, prediction))
    if not found:
        raise InputError(
            f"{folder} has no prediction of any of the {len(subjects)} subjects: "
            f"name them after the subject, such as {subjects[0].name}.nii.gz"
        )
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"{folder} has no prediction of {', '.join(missing[:5])}{more} ({len(missing)} of "
            f"{len(subjects)} subjects): predict them too, or evaluate only the split you predicted"
        )
    return found


def _find_prediction(folder: Path, subject: Subject, names: Sequence[str]) -> Path | None:
    """The first file that exists and is not the subject's own image or label."""
    files = (*subject.images.values(), subject.label)
    own = [file.resolve() for file in files if file is not None]
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in (".nii.gz", ".nii")]
    return next((c for c in candidates if c.is_file() and c.resolve() not in own), None)


def write_class_names(predictions_dir: Path, names: Mapping[int, str]) -> None:
    """Writes classes.csv beside predictions: `value,name`."""
    with (
        written_beside(predictions_dir / CLASSES) as temporary,
        temporary.open("w", newline="") as stream,
    ):
        csv.writer(stream).writerows([("value", "name"), *names.items()])


def read_class_names(predictions_dir: Path) -> dict[int, str]:
    """Label value → name as classes.csv says; empty where there is none."""
    path = predictions_dir / CLASSES
    if not path.is_file():
        return {}
    try:
        with path.open(newline="") as stream:
            return {int(row["value"]): row["name"] for row in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path} is not a list of class names ({error}): delete it, or predict again"
        ) from error


# Counting voxels


@dataclass(frozen=True)
class _Counts:
    """Voxels of each class value of one subject."""

    subject: str
    voxel_ml: float
    predicted: Mapping[int, int]
    true: Mapping[int, int]
    overlap: Mapping[int, int]


def _count(prediction_path: Path, subject: Subject) -> _Counts:
    if subject.label is None:
        raise InputError(f"{subject.image} has no label to compare with: add it to the table")
    truth = load_label(subject.label)
    prediction = load_label(prediction_path)
    check_same_grid(truth, prediction)
    return _Counts(
        subject=subject.name,
        voxel_ml=truth.voxel_ml,
        predicted=_histogram(prediction.data),
        true=_histogram(truth.data),
        overlap=_histogram(truth.data[truth.data == prediction.data]),
    )


def _histogram(data: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(data, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _rows(count: _Counts, values: Sequence[int], names: Mapping[int, str]) -> list[Row]:
    overlap, predicted, true = (
        np.array([found.get(value, 0) for value in (0, *values)])
        for found in (count.overlap, count.predicted, count.true)
    )
    dice = scores(Counts(overlap, predicted, true))["dice"]
    return [
        Row(
            subject=count.subject,
            value=value,
            name=names.get(value, f"class {value}"),
            dice=float(dice[index - 1]),
            predicted_ml=int(predicted[index]) * count.voxel_ml,
            true_ml=int(true[index]) * count.voxel_ml,
            difference_ml=int(predicted[index] - true[index]) * count.voxel_ml,
        )
        for index, value in enumerate(values, start=1)
    ]


# Statistics for the tables


def _grouped(rows: Sequence[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _statistics(values: Sequence[float]) -> tuple[str, ...]:
    """Number, number left out, mean, SD (of the sample), median, minimum, maximum."""
    kept = np.array([value for value in values if not math.isnan(value)])
    counts = (str(kept.size), str(len(values) - kept.size))
    if not kept.size:
        return (*counts, *["-"] * 5)
    sd = float(kept.std(ddof=1)) if kept.size > 1 else math.nan
    numbers = (kept.mean(), sd, np.median(kept), kept.min(), kept.max())
    return (*counts, *(_number(float(number)) for number in numbers))


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN when none is left."""
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
