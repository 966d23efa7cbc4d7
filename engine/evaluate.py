"""`voxtune evaluate`: how well predicted labels agree with true ones.

What is measured is said in `score`, of surfaces in `surface`, of lesions in `lesions`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from voxtune.engine.class_names import CLASSES, read_class_names
from voxtune.engine.config import Evaluate
from voxtune.engine.labels import LabelMap, read_label_map
from voxtune.engine.pairs import Pair, listed, pairs_of_names, pairs_of_table
from voxtune.engine.score import Score, SubjectScores, all_rows, score_pair
from voxtune.engine.score_plot import check_plot, draw_scores
from voxtune.engine.score_summary import summarise
from voxtune.engine.score_table import check_table, subject_table, summary_table, write_table
from voxtune.engine.subjects import read_subjects
from voxtune.engine.volume import stem
from voxtune.engine.workers import cores, run_each
from voxtune.models.errors import InputError

_MOST_THREADS = 4  # each takes up to a gigabyte of a large scan's labels


def evaluate(config: Evaluate, console: Console) -> list[Score]:
    """Compares predictions with true labels, shows the scores and writes what is asked for.

    Args:
        config: of the command.
        console: shows progress, what has no counterpart, and two tables.

    Returns:
        A row for each subject and each class: the nonzero values in any prediction or truth. Where
        there is none, the classes that classes.csv names, else those that the label map names.

    Raises:
        InputError: an option makes no sense; a file is missing, cannot be read or is not on its
            counterpart's grid; there is nothing to compare; a file cannot be written.
    """
    if not (math.isfinite(config.tolerance) and config.tolerance >= 0):
        raise InputError(f"--tolerance {config.tolerance} is no distance; give mm, 0 or more.")
    if config.output is not None:
        _check_output(config.output, config.predictions_dir)
        check_table(config.output, config.overwrite)
    if config.plot is not None:
        check_plot(config.plot, config.overwrite)
    label_map = read_label_map(config.label_map, config.keep, config.binarise, config.unlisted)
    pairs, alone = _pairs(config, console)
    of_predictions = _kept(read_class_names(config.predictions_dir), label_map)
    subjects = _scored(pairs, label_map, config, console)
    names = {**label_map.names, **of_predictions}
    if not any(each.by_value for each in subjects):
        console.print("neither predictions nor true labels have any class", highlight=False)
        names = of_predictions or names
    rows = all_rows(subjects, names)
    if not rows:
        raise InputError(
            f"{config.predictions_dir} has nothing to compare: all {len(subjects)} predictions and "
            "their true labels are background alone; check --keep and the labels, or name the "
            f"classes in {CLASSES} beside the predictions for a table of them"
        )
    _say_what_is_nowhere(rows, subjects, config, console)
    summaries = summarise(rows)
    console.print(subject_table(rows))
    console.print(summary_table(rows, summaries))
    if config.output is not None:
        write_table(config.output, rows, summaries, {**_options(config), **alone})
        console.print(f"wrote {config.output}", highlight=False, soft_wrap=True)
    if config.plot is not None:
        draw_scores(rows, config.plot)
        console.print(f"wrote {config.plot}", highlight=False, soft_wrap=True)
    return rows


def _pairs(config: Evaluate, console: Console) -> tuple[list[Pair], dict[str, list[str]]]:
    """What to compare, and the names of what has no counterpart."""
    if not config.labels.is_dir():
        subjects = read_subjects(config.labels, split=config.split, need_image=False)
        return pairs_of_table(config.predictions_dir, subjects), {}
    if config.split is not None:
        raise InputError(f"--split wants a subjects table, but {config.labels} is a folder.")
    pairs, predictions, labels = pairs_of_names(config.predictions_dir, config.labels)
    others = [each for each in pairs if stem(each.prediction) != stem(each.label)]
    if others:
        console.print(
            f"compared by their subfolders, as no files are called the same: {others[0].name} with "
            f"{stem(others[0].label)}, and so on",
            highlight=False,
            soft_wrap=True,
        )
    for names, lacks in ((predictions, "label"), (labels, "prediction")):
        if names:
            console.print(
                f"not compared, since there is no {lacks} called so: {listed(names)} "
                f"({len(names)} of {len(pairs) + len(names)})",
                highlight=False,
                soft_wrap=True,
            )
    return pairs, {"predictions_without_label": predictions, "labels_without_prediction": labels}


def _check_output(output: Path, predictions_dir: Path) -> None:
    """Raises InputError where names of classes are looked for, there or not."""
    same_folder = output.resolve().parent == predictions_dir.resolve()
    if same_folder and output.name.lower() == CLASSES:
        raise InputError(
            f"{output} is where the names of the predictions' classes are: give another name"
        )


def _kept(names: Mapping[int, str], label_map: LabelMap) -> dict[int, str]:
    """Of a prediction's classes the names of those that are left; one of several has none."""
    kept = {
        value: name
        for value, name in names.items()
        if value and (not label_map.keep or value in label_map.keep)
    }
    if label_map.binarise:
        return dict(zip((1,), kept.values(), strict=True)) if len(kept) == 1 else {}
    return kept


def _scored(
    pairs: Sequence[Pair], label_map: LabelMap, config: Evaluate, console: Console
) -> list[SubjectScores]:
    """Threads do it: most of the time goes into unpacking and trees, which let others run."""
    pool = ThreadPoolExecutor(min(cores(), _MOST_THREADS))
    tolerance, ignore = config.tolerance, config.ignore_label
    try:
        return run_each(pool, console, "comparing", score_pair, pairs, label_map, tolerance, ignore)
    finally:
        pool.shutdown(cancel_futures=True)


def _say_what_is_nowhere(
    rows: Sequence[Score], subjects: Sequence[SubjectScores], config: Evaluate, console: Console
) -> None:
    """Of a value to ignore and of classes: they may be mistyped, or of other numbers elsewhere."""
    value = config.ignore_label
    if value is not None and not any(each.ignored for each in subjects):
        console.print(f"no true label has the value of --ignore-label {value}", highlight=False)
    true, predicted = (
        {row.value for row in rows if getattr(row, name)} for name in ("true_ml", "predicted_ml")
    )
    for words, found in (
        ("in predictions, but in no true labels", predicted - true),
        ("in true labels, but in no prediction", true - predicted),
    ):
        if found:
            shown = listed([str(value) for value in sorted(found)])
            console.print(f"{words}: {shown}", highlight=False, soft_wrap=True)


def _name(path: Path) -> str:
    """Of a file, as text that can be written."""
    return os.fsencode(path.name).decode(errors="replace")


def _options(config: Evaluate) -> dict[str, Any]:
    """For the report, without paths."""
    return {
        "versions": {name: version(name) for name in ("voxtune", "numpy", "scipy")},
        "split": config.split,
        "tolerance_mm": config.tolerance,
        "ignore_label": config.ignore_label,
        "label_map": _name(config.label_map) if config.label_map is not None else None,
        "unlisted": config.unlisted,
        "keep": list(config.keep),
        "binarise": config.binarise,
    }
