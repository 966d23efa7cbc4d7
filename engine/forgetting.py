"""How well networks that were fine-tuned still do what their model was pretrained for.

The last layer that the model had is kept beside the new one: it is put on what became of the rest,
which is what a person would do who wants both tasks of one network. The subjects are those of the
split test of a table of the old task, or all where it has no such split, without those that the
study trains or validates on. Nothing is chosen by these scores.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from voxtune.engine.arms import Trial
from voxtune.engine.config import Evaluate, Finetune, Predict, Study
from voxtune.engine.evaluate import evaluate
from voxtune.engine.job import predict
from voxtune.engine.model_dir import ModelSpec, check_predictable, prediction_channels, read_model
from voxtune.engine.old_head import OldHead
from voxtune.engine.output import make_folder, remove_folder
from voxtune.engine.pairs import listed
from voxtune.engine.resume import digest
from voxtune.engine.run_dir import finite
from voxtune.engine.score import Score
from voxtune.engine.score_summary import grouped, mean_of
from voxtune.engine.sidecar import model_hash, state_of
from voxtune.engine.statistics import mean_interval
from voxtune.engine.subjects import Subject, read_subjects, write_subjects
from voxtune.engine.trials import table_of
from voxtune.engine.volume import check_same_grid, load_image, load_label, written_beside
from voxtune.engine.workers import cores, run_each
from voxtune.models.errors import InputError

MEAN = "mean of classes"
_BEFORE = "before"  # the name of no trial
_FORMAT, _VERSION = "voxtune forgetting", 1
_MOST_BYTES = 2**28  # of scores
_MOST_THREADS = 4  # each holds a scan


@dataclass(frozen=True)
class Forgetting:
    """The old task, by one arm with one number of scans.

    Attributes:
        arm: name of the arm.
        size: scans of the new task that it was trained on.
        name: of a class of the old task, or `MEAN`.
        seeds: networks, of which a subject's Dice is the mean.
        subjects: that have a Dice before, and after with each seed.
        before: mean Dice of the pretrained model.
        after: mean Dice of its last layer on the trained network.
        difference: after minus before.
        low: lower end of its 95 % interval over subjects, see `statistics.mean_interval`.
        high: upper end.
    """

    arm: str
    size: int
    name: str
    seeds: int
    subjects: int
    before: float
    after: float
    difference: float
    low: float
    high: float


def check_source(config: Study) -> None:
    """Makes sure that the table of the old task can be scored, before anything is trained.

    Raises:
        InputError: the model has no classes, the table or a file of it cannot be read, or a label
            map has other values than the model's classes or another grid than its scan.
    """
    if config.source is None:
        return
    spec, _ = read_model(config.model)
    check_predictable(spec, config.model)
    if not spec.classes:
        raise InputError(f"--source is for models of classes, but {config.model} gives an image.")
    subjects, _ = _subjects(config)
    prediction_channels(spec, config.model, subjects[0].channels)
    with ThreadPoolExecutor(min(cores(), _MOST_THREADS)) as pool:
        quiet = Console(quiet=True)
        found = run_each(pool, quiet, "", _label_values, subjects, config, spec)
    if not set[int]().union(*found) - {0}:
        raise InputError(
            f"{config.source} has nothing but background in all label maps to be scored; give a "
            f"table with labels of {_classes(spec)}."
        )


def forgetting(config: Study, trials: Sequence[Trial], console: Console) -> list[Forgetting]:
    """Scores the old task before and after, as far as that is not done.

    Args:
        config: of the study; without `source` there is nothing to do.
        trials: of the comparison, all trained. Those that start from no pretrained weights have
            nothing to forget, and are left out.
        console: shows progress, and which arms are left out for other reasons.

    Returns:
        By size, then by arm in the order of `trials`; of several classes the mean first.

    Raises:
        InputError: a scan or a label cannot be read, or the disk is full.
    """
    if config.source is None:
        return []
    source = _Source.of(config, console)
    head = OldHead.read(config.model)
    arms = {each.arm: each.config for each in trials if each.config.init == "pretrained"}
    reasons = {name: head.why_not(run) for name, run in arms.items()}
    for name in filter(reasons.__getitem__, arms):
        said = f"--source: {name} left out, as {reasons[name]}"
        console.print(said, highlight=False, soft_wrap=True)
    fitting = [name for name in arms if not reasons[name]]
    before = source.scores(_BEFORE, head, None, console) if fitting else []
    found = []
    for size in sorted({each.size for each in trials}):
        for arm in fitting:
            own = [each for each in trials if (each.arm, each.size) == (arm, size)]
            after = [source.scores(each.name, head, each.config, console) for each in own]
            found += compared(arm, size, before, after)
    jax.clear_caches()
    return found


def compared(
    arm: str, size: int, before: Sequence[Score], after: Sequence[Sequence[Score]]
) -> list[Forgetting]:
    """What one arm and size has forgotten, of each class and of the mean of several.

    Args:
        arm: name of the arm.
        size: scans that it was trained on.
        before: a row for each subject and class, of the pretrained model.
        after: the same of each seed; none gives nothing.
    """
    if not after:
        return []
    old, new = _by_name(before), [_by_name(each) for each in after]
    found = []
    for name, dice in old.items():
        # A class in neither map has no Dice, which may be so with some seeds alone.
        subjects = [each for each in dice if all(each in one.get(name, {}) for one in new)]
        pairs = [
            (dice[each], float(np.mean([one[name][each] for one in new]))) for each in subjects
        ]
        if pairs:
            found.append(_forgetting(arm, size, name, len(new), np.array(pairs)))
    return found


def _forgetting(arm: str, size: int, name: str, seeds: int, pairs: np.ndarray) -> Forgetting:
    """Of Dice before and after `[subjects, 2]`."""
    before, after = pairs.mean(0).tolist()
    low, high = mean_interval(pairs[:, 1] - pairs[:, 0])
    return Forgetting(arm, size, name, seeds, len(pairs), before, after, after - before, low, high)


def _by_name(rows: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Class, and the mean of several → subject → Dice, where it is defined."""
    classes = grouped(rows, lambda row: row.name)
    found = {name: {row.subject: row.dice for row in own} for name, own in classes.items()}
    if len(classes) > 1:
        subjects = grouped(rows, lambda row: row.subject)
        found = {MEAN: {name: mean_of(own, "dice") for name, own in subjects.items()}, **found}
    return {
        name: {subject: dice for subject, dice in own.items() if np.isfinite(dice)}
        for name, own in found.items()
    }


@dataclass(frozen=True, eq=False)
class _Source:
    """Where the old task is scored.

    Attributes:
        folder: of predictions and scores.
        table: of the subjects to be scored, in that folder.
        subjects: what those are made of, a digest.
        nonfinite: see `Predict`.
    """

    folder: Path
    table: Path
    subjects: str
    nonfinite: float | None

    @staticmethod
    def of(config: Study, console: Console) -> "_Source":
        """Writes the table, and says which subjects are left out."""
        subjects, trained = _subjects(config)
        if trained:
            console.print(
                f"--source: {listed(trained)} left out ({len(trained)} of "
                f"{len(subjects) + len(trained)}), on whose scans the study trains or validates",
                highlight=False,
                soft_wrap=True,
            )
        folder = config.out / "source"
        table = folder / "subjects.csv"
        try:
            make_folder(folder)
            with written_beside(table) as beside:
                write_subjects(beside, {None: subjects})
            states = [
                (each.name, state_of({**each.images, "label": each.label}))
                for each in subjects
                if each.label is not None
            ]
        except OSError as error:
            raise InputError(
                f"{error.filename or folder} cannot be used ({error.strerror}); check its "
                "permission, and the room on the disk."
            ) from error
        return _Source(folder, table, digest(states), config.nonfinite)

    def scores(
        self, name: str, head: OldHead, run: Finetune | None, console: Console
    ) -> list[Score]:
        """A row for each subject and class, read where they are there.

        Args:
            name: of the network.
            head: the pretrained model.
            run: what trained its other layers; None is the model itself.
            console: shows progress.

        Raises:
            InputError: a scan or a label cannot be read, or the disk is full.
        """
        file = self.folder / f"{name}.json"
        made_by = {
            "model": model_hash(head.folder),
            "trained": None if run is None else model_hash(run.run_dir / "model"),
            "subjects": self.subjects,
            "nonfinite": self.nonfinite,
        }
        there = _read(file, made_by)
        if there is not None:
            return there
        console.print(f"{name}: the task of the pretrained model", highlight=False)
        temporary = self.folder / f".{name}.model"
        try:
            if run is not None:
                head.write_on(run, temporary)
            found = self._scored(name, head.folder if run is None else temporary, console)
        finally:
            remove_folder(temporary)
        rows = [finite(asdict(each)) for each in found]
        document = {"format": _FORMAT, "version": _VERSION, "made_by": made_by, "scores": rows}
        with written_beside(file) as beside:
            beside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
        return found

    def _scored(self, name: str, model: Path, console: Console) -> list[Score]:
        predictions = self.folder / name
        remove_folder(predictions)  # of a network before, or not whole
        job = Predict(
            model_dir=model, scans=(self.table,), output=predictions, nonfinite=self.nonfinite
        )
        if not predict(job, console):
            raise InputError(f"{name} could not segment all of {self.table}; see above.")
        return evaluate(Evaluate(predictions, self.table), Console(quiet=True))


def _read(file: Path, made_by: Mapping[str, Any]) -> list[Score] | None:
    """Scores that are there; None where they are not, or of something else."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            return None
        document = json.loads(file.read_bytes())
        if (document["format"], document["version"]) != (_FORMAT, _VERSION):
            return None
        if document["made_by"] != made_by:
            return None
        return [_score(row) for row in document["scores"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _score(row: Mapping[str, Any]) -> Score:
    """A row that was written, null for NaN.

    Raises:
        KeyError: it lacks something.
    """
    values: dict[str, Any] = {each.name: row[each.name] for each in fields(Score)}
    values |= {name: math.nan for name, each in values.items() if each is None}
    return Score(**values)


def _subjects(config: Study) -> tuple[list[Subject], list[str]]:
    """Subjects to be scored, and names of those on whose scans the study trains or validates.

    Raises:
        InputError: a table cannot be read, or no subject is left.
    """
    assert config.source is not None
    every = read_subjects(config.source)
    test = [each for each in every if each.split == "test"] or list(every)
    study = read_subjects(table_of(config.data), need_label=False, need_image=False)
    seen = {
        os.path.realpath(file)
        for each in study
        if each.split not in ("test", config.split)
        for file in each.images.values()
    }
    trained = [
        each.name
        for each in test
        if any(os.path.realpath(file) in seen for file in each.images.values())
    ]
    left = [each for each in test if each.name not in trained]
    if not left:
        raise InputError(
            f"{config.source} has no scan on which the study does not train or validate; give a "
            "table with others."
        )
    return left, trained


def _label_values(subject: Subject, config: Study, spec: ModelSpec) -> set[int]:
    """Values in the label map of a subject.

    Raises:
        InputError: it cannot be read, is on another grid, or has values of no class.
    """
    assert subject.label is not None
    label = load_label(subject.label)
    check_same_grid(load_image(subject.image, config.nonfinite), label)
    values = set(np.unique(label.data).tolist())
    strange = sorted(values - spec.names.keys())
    if strange:
        shown = listed([str(value) for value in strange])
        raise InputError(
            f"{subject.label} of --source has the label values {shown}, but "
            f"{config.model} was pretrained for {_classes(spec)}; give labels of these."
        )
    return values


def _classes(spec: ModelSpec) -> str:
    return listed([f"{each.value} {each.name}" for each in spec.classes])
