"""The threshold of a network of one class beside background, by Dice on labelled scans.

Dice is that of `voxtune evaluate` on the scans' own grids, before anything that `voxtune predict`
does with `--largest` and `--fill-holes`: a scan whose label lacks the class counts 0 where anything
is predicted, and is left out of the mean where nothing is.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import ndimage

from voxtune.engine.config import Threshold
from voxtune.engine.folds import person_of
from voxtune.engine.labels import LabelMap, read_label_map
from voxtune.engine.mesh import TO_PREDICT, memory_errors
from voxtune.engine.metrics import Counts, Mean, scores
from voxtune.engine.model_dir import (
    DOCUMENT,
    ModelSpec,
    prediction_channels,
    read_model,
    save_threshold,
    trained_on,
)
from voxtune.engine.predict import Model, load_model
from voxtune.engine.preprocessing import load_channels, network_image
from voxtune.engine.subjects import Subject, read_subjects
from voxtune.engine.volume import check_same_grid, load_label
from voxtune.models.errors import InputError

_HUNDREDTHS = tuple(round(number / 100, 2) for number in range(1, 100))
_SHOWN = (-0.2, -0.1, -0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2)  # round the best
_WORTH = 0.005  # Dice; less is a matter of which scans there are
_EQUAL = 1e-12  # Dice; means of the same numbers may differ by rounding


@dataclass(frozen=True, eq=False)
class Curve:
    """Dice by threshold.

    Attributes:
        thresholds: probabilities that rise, `[T]`.
        dice: of each scan, float64 `[S, T]`; NaN where the class is neither predicted nor true.
    """

    thresholds: Sequence[float]
    dice: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Over the scans that count, float64 `[T]`; NaN where none does."""
        return sum(map(Mean.of, self.dice[1:]), Mean.of(self.dice[0])).value()

    @property
    def best(self) -> int:
        """Which threshold has the best mean; of equals the middle of the longest row of them."""
        mean = np.nan_to_num(self.mean)
        rows, _ = ndimage.label(mean >= mean.max() - _EQUAL)
        (row,) = max(ndimage.find_objects(rows), key=lambda each: each[0].stop - each[0].start)
        return (row.start + row.stop - 1) // 2

    @property
    def at_end(self) -> bool:
        """Whether the best is the first or the last."""
        return not 0 < self.best < len(self.thresholds) - 1

    def table(self, present: int) -> Table:
        """For a person: some thresholds round the best, and the present one."""
        best = self.best
        near = [self.thresholds[best] + step for step in _SHOWN]
        inside = [each for each in near if self.thresholds[0] <= each <= self.thresholds[-1]]
        chosen = {int(np.abs(np.subtract(self.thresholds, each)).argmin()) for each in inside}
        result = Table(
            title="Dice by threshold",
            caption="n: scans counted, those left out have the class in neither label nor "
            "prediction",
        )
        for name in ("threshold", "mean Dice", "lowest", "n"):
            result.add_column(name, justify="right")
        result.add_column("")
        mean = self.mean
        for index in sorted({*chosen, present}):
            scans = self.dice[~np.isnan(self.dice[:, index]), index]
            numbers = (f"{mean[index]:.4f}", f"{scans.min():.4f}") if scans.size else ("-", "-")
            notes = ["best"] * (index == best) + ["the model's"] * (index == present)
            threshold = f"{self.thresholds[index]:g}"
            result.add_row(threshold, *numbers, str(scans.size), ", ".join(notes))
        return result

    def lines(self, present: int) -> list[str]:
        """What came out, and what to think of it, in lines for a person."""
        thresholds, mean, best = self.thresholds, self.mean, self.best
        scans = f"{len(self.dice)} scan{'s' * (len(self.dice) > 1)}"
        lines = [
            f"threshold {thresholds[best]:g}: mean Dice {mean[best]:.4f} of {scans}; "
            f"the model's {thresholds[present]:g}: {mean[present]:.4f}"
        ]
        if self.at_end:
            lines.append(
                "warning: it is at the end of what was tried, as where a network has not learned "
                "the class, or labels mean something else; look at some predictions first"
            )
        if best == present:
            lines.append("the model's threshold is the best")
        elif mean[best] - mean[present] < _WORTH:
            lines.append(
                f"warning: the gain over {thresholds[present]:g} is below {_WORTH:g} Dice, which "
                "other scans may not show; the model's threshold will do"
            )
        return lines


def dice_above(
    probability: np.ndarray, truth: np.ndarray, thresholds: Sequence[float]
) -> np.ndarray:
    """Dice of the voxels above each threshold, float64 `[T]`; NaN where there are none, nor true.

    Args:
        probability: float32, any shape.
        truth: bool, of the same shape.
        thresholds: that rise, `[T]`; like probabilities they are compared as float32.
    """
    levels = np.array(thresholds, np.float32)
    above = probability > levels[0]
    passed = np.searchsorted(levels, probability[above], side="left")  # how many each is above
    predicted = _beyond(passed, len(levels))
    overlap = _beyond(passed[truth[above]], len(levels))
    true = np.full(len(levels), np.count_nonzero(truth))
    nothing = np.zeros_like(true)
    counts = (np.stack([nothing, each]) for each in (overlap, predicted, true))
    return scores(Counts(*counts))["dice"][0]


def _beyond(passed: np.ndarray, number: int) -> np.ndarray:
    """How many are above each of so many thresholds, `[T]`."""
    return np.bincount(passed, minlength=number + 1)[::-1].cumsum()[::-1][1:]


@memory_errors(TO_PREDICT)
def choose_threshold(config: Threshold, console: Console) -> float:
    """Finds the threshold of the best mean Dice, shows it, and writes it where that is asked for.

    Returns:
        It.

    Raises:
        InputError: the model is not of one class beside background, or it, an option, the table, a
            scan or a label is bad, or no label has the class; or the threshold is to be written,
            but is at the end of what was tried.
    """
    label_map = read_label_map(config.label_map, config.keep, config.binarise, config.unlisted)
    spec, _ = read_model(config.model_dir)
    present = spec.threshold
    if present is None:
        number = len(spec.classes)
        what = f"{number} classes, of which the most probable wins" if number else "no classes"
        raise InputError(
            f"{config.model_dir} has {what}; a threshold is for one class beside background."
        )
    model = load_model(config.model_dir, options=config, maps=("probabilities",))
    if config.save and not os.access(config.model_dir, os.W_OK):
        raise InputError(f"{config.model_dir} may not be written; leave out --save.")
    subjects = _subjects(config)
    for line in _trained_on(config, subjects):
        console.print(line, highlight=False, soft_wrap=True)
    thresholds = sorted({*_HUNDREDTHS, present})
    shown = track(subjects, "predicting", console=console, disable=not console.is_terminal)
    curve = Curve(
        thresholds,
        np.stack([_scan_curve(model, config, each, label_map, thresholds) for each in shown]),
    )
    best = curve.best
    if not curve.mean[best] > 0:
        name = spec.classes[1].name
        raise InputError(
            f"Nothing that is {name} by the labels of {config.subjects} is predicted by any "
            "threshold; check the labels and the model, or give scans that have it."
        )
    console.print(curve.table(thresholds.index(present)))
    for line in curve.lines(thresholds.index(present)):
        console.print(line, highlight=False, soft_wrap=True)
    if config.save and curve.at_end:
        raise InputError(
            f"The threshold {thresholds[best]:g} is at the end of what was tried, so it is not "
            "saved; look at some predictions and labels, or pass it to 'voxtune predict "
            "--threshold'."
        )
    if config.save:
        save_threshold(config.model_dir, thresholds[best])
        of = ", for the ensemble" * bool(config.ensemble)
        console.print(
            f"wrote it to {config.model_dir / DOCUMENT}{of}", highlight=False, soft_wrap=True
        )
    return thresholds[best]


def _subjects(config: Threshold) -> list[Subject]:
    """Those of the split, or all where the table has no splits.

    Raises:
        InputError: the table is bad, or none is of the split.
    """
    every = read_subjects(config.subjects)
    wanted = (None, config.split)  # no subject of a table without splits has one
    found = [each for each in every if config.split is None or each.split in wanted]
    if not found:
        raise InputError(
            f"{config.subjects} has no subject in the split {config.split}; name another with "
            "--split, or add it to the column split."
        )
    return found


def _trained_on(config: Threshold, subjects: Sequence[Subject]) -> list[str]:
    """A warning for each model that was trained on people of some of the scans, by their names."""
    lines = []
    for folder in (config.model_dir, *config.ensemble):
        people = set(map(person_of, trained_on(folder)))
        known = sum(person_of(each.name) in people for each in subjects)
        if known:
            lines.append(
                f"warning: {folder} was trained on scans of the people of {known} of the "
                f"{len(subjects)} scans, whose probabilities are surer than those of new people; "
                "use scans of people that it has not seen"
            )
    return lines


def _scan_curve(
    model: Model,
    config: Threshold,
    subject: Subject,
    label_map: LabelMap,
    thresholds: Sequence[float],
) -> np.ndarray:
    """Dice of one scan, `[T]`.

    Raises:
        InputError: a file of it is bad, or its label has values that are no class.
    """
    names = prediction_channels(model.spec, config.model_dir, subject.channels)
    scan = load_channels(subject.taking(names).images, config.nonfinite)
    assert subject.label is not None
    label = check_same_grid(scan[0], label_map(load_label(subject.label)))
    truth = _truth(label.data, model.spec, subject.label)
    result = model(*network_image(scan, model.spec.contract))
    return dice_above(result.maps["probabilities"][..., 1], truth, thresholds)


def _truth(label: np.ndarray, spec: ModelSpec, path: Path) -> np.ndarray:
    """Where the class is, bool.

    Raises:
        InputError: the label has values of neither class nor background.
    """
    background, one = spec.classes
    other = sorted(set(np.unique(label).tolist()) - {background.value, one.value})
    if other:
        raise InputError(
            f"{path} has label values that are no class ({', '.join(map(str, other[:10]))}); the "
            f"model's are {background.value} {background.name} and {one.value} {one.name}: map "
            "others with --label-map, --keep or --binarise."
        )
    return label == one.value
