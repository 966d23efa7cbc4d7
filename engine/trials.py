"""One network of a study: trained, then run on the split that results are measured on, and scored.

Each part is left alone where it is done, so that a study goes on where it was.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from voxtune.engine.arms import Trial
from voxtune.engine.config import Evaluate, Finetune, Predict, Resume, Study
from voxtune.engine.evaluate import evaluate
from voxtune.engine.job import predict
from voxtune.engine.options import Training
from voxtune.engine.resume import SavedRun, made_of
from voxtune.engine.store import is_store
from voxtune.engine.train import finetune, resume
from voxtune.engine.validation import Validation
from voxtune.models.errors import InputError


def train_trial(trial: Trial, console: Console) -> Validation:
    """Trains a network, or what is left of it, or nothing where it is done.

    Returns:
        The validation of the weights that were kept.

    Raises:
        InputError: it cannot be trained, or its run directory is of another run.
        PreemptedError: the run was told to end.
    """
    run = trial.config
    saved = _saved(run)
    if saved is None:
        found = finetune(run, console)
    else:
        _check_same(saved, run)
        found = saved.validation if saved.finished else resume(_resume(run), console)
    jax.clear_caches()  # or the programs of all trials would stay in memory
    return found


def score_trial(trial: Trial, study: Study, console: Console) -> None:
    """Segments the split that results are measured on, and scores it, as far as that is not done.

    Raises:
        InputError: a scan or a label cannot be read, or the disk is full.
    """
    scores = scores_of(trial, study)
    if scores.is_file():
        return
    table = table_of(study.data)
    predictions = study.out / "predictions" / trial.name
    quiet = Console(quiet=True)
    job = Predict(
        model_dir=trial.config.run_dir / "model",
        scans=(table,),
        output=predictions,
        split=study.split,
        nonfinite=study.nonfinite,
    )
    if not predict(job, console):
        raise InputError(f"{trial.name} could not segment all of {table}; see above.")
    scores.parent.mkdir(exist_ok=True)
    relabelling = {
        name: getattr(study, name) for name in ("label_map", "unlisted", "keep", "binarise")
    }
    evaluate(
        Evaluate(
            predictions_dir=predictions,
            labels=table,
            output=scores,
            split=study.split,
            ignore_label=study.ignore_label,
            **relabelling,
        ),
        quiet,
    )


def scores_of(trial: Trial, study: Study) -> Path:
    """Where the scores of a network are: what `voxtune evaluate -o FILE.json` wrote."""
    return study.out / "scores" / f"{trial.name}.json"


def table_of(data: str) -> Path:
    """The subjects table of a table, or of a store."""
    return Path(data) / "subjects.csv" if is_store(data) else Path(data)


def _saved(run: Finetune) -> SavedRun | None:
    """The run that is there."""
    if not (run.run_dir / "config.json").is_file():
        return None
    return SavedRun.read(_resume(run))


def _resume(run: Finetune) -> Resume:
    options = {each.name: getattr(run, each.name) for each in dataclasses.fields(Training)}
    return Resume(run_dir=run.run_dir, **options)


def _check_same(saved: SavedRun, run: Finetune) -> None:
    """Makes sure that a run which is there is the one that is wanted.

    Raises:
        InputError: it is not.
    """
    # Options that are settled by scans and devices are those of the run where none are given.
    wanted = {**saved.document["options"], **json.loads(json.dumps(_plain(run)))}
    settled = {name: saved.document[name] for name in ("batch", "block", "classes")}
    there, now = (
        made_of({"config": {**saved.document, "options": options, **settled}})["options"]
        for options in (saved.document["options"], wanted)
    )
    given = {name: wanted[name] for name in ("batch", "block") if wanted[name] is not None}
    now = {**now, **given}
    differing = [name for name in now if there.get(name) != now[name]]
    if differing:
        name = differing[0]
        raise InputError(
            f"{run.run_dir} was trained with {name}={there.get(name)!r}, not {now[name]!r}; choose "
            "another --out, or remove the run."
        )


def _plain(run: Finetune) -> dict[str, Any]:
    values = dataclasses.asdict(run).items()
    return {name: str(value) if isinstance(value, Path) else value for name, value in values}
