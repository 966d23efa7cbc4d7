"""One network of a study: trained, then run on the split that results are measured on, and scored.

Each part is left alone where it is done, so that a study goes on where it was.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from voxtune.engine.arms import Trial
from voxtune.engine.config import Evaluate, Finetune, Predict, Resume, Study
from voxtune.engine.evaluate import evaluate
from voxtune.engine.job import predict
from voxtune.engine.options import Relabelling, Training
from voxtune.engine.output import remove_folder
from voxtune.engine.resume import SavedRun, made_of
from voxtune.engine.saved_config import CONFIG, SETTLED, read_json
from voxtune.engine.sidecar import model_hash, read_sidecar
from voxtune.engine.store import is_store
from voxtune.engine.train import finetune, resume
from voxtune.engine.training_data import shuffled_subjects
from voxtune.engine.validation import Validation
from voxtune.engine.volume import written_beside
from voxtune.models.errors import InputError


def train_trial(trial: Trial, console: Console) -> Validation:
    """Trains a network, or what is left of it, or nothing where it is done.

    Returns:
        The validation of the weights that were kept.

    Raises:
        DivergedError: too many of its steps in a row were skipped.
        HeldError: another process trains it.
        InputError: it cannot be trained, or its run directory is of another run.
        PreemptedError: the run was told to end.
    """
    run = trial.config
    saved = saved_run(trial)
    if saved is not None:
        check_same(saved, trial)
        if saved.finished:
            return saved.validation
    try:
        return finetune(run, console) if saved is None else resume(_resume(run), console)
    finally:
        jax.clear_caches()  # or the programs of all trials would stay in memory


def score_trial(trial: Trial, study: Study, console: Console) -> None:
    """Segments the split that results are measured on, and scores it, as far as that is not done.

    What is there of the run's weights in an earlier state is done again.

    Raises:
        InputError: a scan or a label cannot be read, or the disk is full.
    """
    if is_scored(trial, study):
        return
    table = table_of(study.data)
    predictions, scores = predictions_of(trial, study), scores_of(trial, study)
    if not _of_these_weights(trial, study):
        remove_folder(predictions)
    job = Predict(
        model_dir=trial.config.run_dir / "model",
        scans=(table,),
        output=predictions,
        split=study.split,
        nonfinite=study.nonfinite,
    )
    if not predict(job, console):
        raise InputError(
            f"{trial.name} could not segment all of {table}; see {log_of(trial, study)}."
        )
    scores.parent.mkdir(exist_ok=True)
    relabelling = {each.name: getattr(study, each.name) for each in dataclasses.fields(Relabelling)}
    evaluate(
        Evaluate(
            predictions_dir=predictions,
            labels=table,
            output=scores,
            split=study.split,
            ignore_label=study.ignore_label,
            overwrite=True,
            **relabelling,
        ),
        console,
    )
    if study.label_map is not None:  # whose name alone is in the scores
        document = {**read_json(scores), _LABEL_MAP: digest_of(study.label_map)}
        with written_beside(scores) as beside:
            beside.write_text(json.dumps(document, indent=1) + "\n")
    jax.clear_caches()


def digest_of(path: Path | None) -> str | None:
    """Of what is in a file.

    Raises:
        InputError: it cannot be read.
    """
    if path is None:
        return None
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error


def is_scored(trial: Trial, study: Study) -> bool:
    """Whether its scores are there, of the weights that are there, as the study measures them."""
    try:
        document = read_json(scores_of(trial, study))
    except (OSError, ValueError):
        return False
    wanted = {name: getattr(study, name) for name in _OF_SCORES}
    plain = json.loads(json.dumps({**wanted, _LABEL_MAP: digest_of(study.label_map)}))
    return {name: document.get(name) for name in plain} == plain and _of_these_weights(trial, study)


_OF_SCORES = ("split", "ignore_label", "unlisted", "keep", "binarise")
_LABEL_MAP = "label_map_sha256"


def _of_these_weights(trial: Trial, study: Study) -> bool:
    """Whether predictions are there, of the run's weights."""
    sidecars = sorted(predictions_of(trial, study).glob("*.json"))
    found: dict[str, Any] = read_sidecar(sidecars[0]).get("made_by", {}) if sidecars else {}
    model = trial.config.run_dir / "model"
    return bool(found) and model.is_dir() and found.get("models") == [model_hash(model)]


def scores_of(trial: Trial, study: Study) -> Path:
    """Where the scores of a network are: what `voxtune evaluate -o FILE.json` wrote."""
    return study.out / "scores" / f"{trial.name}.json"


def predictions_of(trial: Trial, study: Study) -> Path:
    """The folder that `voxtune predict` wrote."""
    return study.out / "predictions" / trial.name


def log_of(trial: Trial, study: Study) -> Path:
    """What finetune, predict and evaluate said of a network."""
    return study.out / "logs" / f"{trial.name}.txt"


def table_of(data: str) -> Path:
    """The subjects table of a table, or of a store."""
    return Path(data) / "subjects.csv" if is_store(data) else Path(data)


def saved_run(trial: Trial) -> SavedRun | None:
    """The run that is there.

    Raises:
        InputError: its documents are broken.
    """
    if not (trial.config.run_dir / CONFIG).is_file():
        return None
    return SavedRun.read(_resume(trial.config))


def _resume(run: Finetune) -> Resume:
    options = {each.name: getattr(run, each.name) for each in dataclasses.fields(Training)}
    return Resume(run_dir=run.run_dir, **options)


def check_same(saved: SavedRun, trial: Trial, train: Sequence[str] | None = None) -> None:
    """Makes sure that a run which is there is the one that is wanted.

    Where it runs and what is logged may be others.

    Args:
        saved: the run.
        trial: what is wanted.
        train: names of the subjects of the split train, in their order; None does not compare them.

    Raises:
        InputError: it is not.
    """
    run, document = trial.config, saved.document
    there, now = (_options(document, options) for options in (document["options"], _plain(run)))
    differing = [name for name in now if name in there and not _same(there[name], now[name])]
    if differing:
        name = differing[0]
        raise InputError(
            f"{run.run_dir} was trained with {name}={there[name]!r}, not {now[name]!r}; choose "
            "another --out, or remove the run."
        )
    if train is None:
        return
    wanted = shuffled_subjects(train, run.subject_seed)[: run.train_subjects]
    if document["train"] != wanted:
        raise InputError(
            f"{run.run_dir} was trained on other subjects than {run.subjects} now gives; put that "
            "back, choose another --out, or remove the run."
        )


def _same(one: Any, other: Any) -> bool:
    """Whether a value of an option is another's, or but for its last digits."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-11)
    return bool(one == other)


def _options(document: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What of the options of a run decides what is trained.

    Those that devices and scans settle are as they were settled, unless others are given.
    """
    settled = {
        name: document[name]
        if options.get(name) in (None, document["options"].get(name))
        else options[name]
        for name in SETTLED
    }
    given = {**document["options"], **options}
    found: dict[str, Any] = made_of({"config": {**document, "options": given, **settled}})[
        "options"
    ]
    return {name: value for name, value in found.items() if name in document["options"]}


def _plain(run: Finetune) -> dict[str, Any]:
    values = dataclasses.asdict(run).items()
    plain: dict[str, Any] = json.loads(
        json.dumps({name: str(x) if isinstance(x, Path) else x for name, x in values})
    )
    return plain
