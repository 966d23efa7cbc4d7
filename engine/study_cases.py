"""The worst and the median case of a study as a picture, so that a person looks at contours too."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from voxtune.engine.arms import run_name
from voxtune.engine.class_names import read_class_names
from voxtune.engine.findings import subject_scores
from voxtune.engine.labels import LabelMap
from voxtune.engine.outcomes import Outcome
from voxtune.engine.pairs import find_predictions
from voxtune.engine.picture import PictureRow, draw_contours
from voxtune.engine.plots import shown_names
from voxtune.engine.subjects import Subject
from voxtune.engine.volume import check_same_grid, load_image, load_label
from voxtune.models.errors import InputError

_Seeds = Mapping[int, Outcome]  # the networks of an arm and size

_AS_THEY_ARE = LabelMap()
_LONGEST_NAME = 20  # characters, in a line of a title that is a panel wide


def draw_cases(
    outcomes: Sequence[Outcome],
    study_out: Path,
    subjects: Sequence[Subject],
    path: Path,
    label_map: LabelMap = _AS_THEY_ARE,
) -> None:
    """Draws the first arm's worst and median subject, as it and another arm segment them.

    The other is the first with a number of scans that the first arm has too; of these the smallest
    is shown. Subjects are chosen by their means over seeds; the lowest seed is drawn.

    Args:
        outcomes: at least one, their arms in the design's order.
        study_out: the study's folder, with the predictions.
        subjects: of the split that results are measured on, with labels if there are any.
        path: where to write, .png or .svg. An existing file is replaced.
        label_map: what true values become, and which of the predicted are kept.

    Raises:
        InputError: a file is bad or missing, or the picture cannot be written.
    """
    shown = _networks(outcomes)
    by_name = {each.name: each for each in subjects}
    rows: list[PictureRow] = []
    for what, name in _chosen(shown[0]):
        if name not in by_name:
            raise InputError(f"{name} has scores, but no row in the table of subjects.")
        rows += [
            _row(what, by_name[name], networks[min(networks)], study_out, label_map)
            for networks in shown
        ]
    first = shown[0][min(shown[0])]
    draw_contours(rows, path, read_class_names(_folder_of(first, study_out)))


def _folder_of(outcome: Outcome, study_out: Path) -> Path:
    """Where a network's predictions are."""
    name = run_name(outcome.arm, outcome.size, outcome.seed, outcome.factor)
    return study_out / "predictions" / name


def _networks(outcomes: Sequence[Outcome]) -> Sequence[_Seeds]:
    """Of the first arm and another of as many scans; of the first alone, if there is none."""
    cells: dict[str, dict[int, dict[int, Outcome]]] = {}  # arm → size → seed
    for each in outcomes:
        cells.setdefault(each.arm, {}).setdefault(each.size, {})[each.seed] = each
    first, *others = cells.values()
    other = next((each for each in others if first.keys() & each.keys()), first)
    size = min(first.keys() & other.keys())
    return [first[size]] + [other[size]] * (other is not first)


def _chosen(networks: _Seeds) -> list[tuple[str, str]]:
    """What it is called, and the subject: the worst and the median, or one that is both."""
    scores = subject_scores(networks)
    ranked = sorted(scores, key=lambda name: scores[name])
    if not ranked:
        return [("undefined", name) for name in list(networks[min(networks)].dice)[:1]]
    worst, median = ranked[0], ranked[len(ranked) // 2]
    return [("worst", worst)] + [("median", median)] * (median != worst)


def _row(
    what: str,
    subject: Subject,
    outcome: Outcome,
    study_out: Path,
    label_map: LabelMap,
) -> PictureRow:
    ((_, file),) = find_predictions(_folder_of(outcome, study_out), [subject])
    image = load_image(subject.image)
    truth = None
    if subject.label is not None:
        truth = label_map(check_same_grid(image, load_label(subject.label)))
    # Of predictions the mapping is done, as they are when they are scored.
    prediction = replace(label_map, mapping=None)(check_same_grid(image, load_label(file)))
    name, arm = (shown_names([each], _LONGEST_NAME)[0] for each in (subject.name, outcome.arm))
    dice = outcome.dice.get(subject.name, math.nan)
    said = f"seed {outcome.seed}: {'no Dice' if math.isnan(dice) else f'Dice {dice:.3f}'}"
    return f"{what}: {name}\n{arm}\n{said}", image, truth, prediction
