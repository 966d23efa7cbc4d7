"""What a study reads, checked before anything is trained, and known again at the next call."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console

from voxtune.engine.arms import Arm, Design, Trial, trial_of
from voxtune.engine.arrays import is_remote
from voxtune.engine.config import Finetune, Study
from voxtune.engine.folds import person_of
from voxtune.engine.labels import read_label_map
from voxtune.engine.losses import REGRESSION
from voxtune.engine.model_dir import ModelSpec, read_model
from voxtune.engine.options import Labelling
from voxtune.engine.preparation import Preparation, files_of, problems_of
from voxtune.engine.prepare import refuse
from voxtune.engine.runtime import begin
from voxtune.engine.setup import Setup, check_options, set_up
from voxtune.engine.store import DOCUMENT, is_store, read_store
from voxtune.engine.study_results import OF_THE_ARM
from voxtune.engine.subjects import Problem, Subject, read_subjects
from voxtune.engine.training_data import (
    TrainingData,
    labelling_of,
    read_training_data,
    shuffled_subjects,
)
from voxtune.engine.trials import check_same, digest_of, is_scored, saved_run, table_of
from voxtune.engine.volume import load_label
from voxtune.engine.workers import cores, run_each
from voxtune.models.errors import InputError

_FOUND_LATER = ("threshold", "quantiles")  # of a contract, on which no training depends
_NONE = "none"  # in the place of a digest
_MOST_THREADS = 4  # each holds a scan


def check_inputs(design: Design, config: Study, console: Console) -> dict[str, str]:
    """Makes sure that all of a study can be trained and scored.

    Each arm is set up as for its smallest run, but nothing is computed. All scans that were not
    read by a network before are read once.

    Args:
        design: of the study.
        config: likewise.
        console: shows how scans are read, and a table of what is wrong with them.

    Returns:
        What is read → its digest, or for numbers themselves: what may not change later.

    Raises:
        InputError: something cannot be used, or a run that is there was trained otherwise.
    """
    subjects = read_scans(config)
    _check_splits(subjects, design, config)
    _check_choices(config)
    _check_labels(config)
    _check_source(config)
    todo = _check_runs(subjects, design, config)
    read = _Once()
    setups = {arm.name: _set_up(arm, design, config, console, read) for arm in design.arms}
    _check_batches(setups)
    _check_scans(subjects, todo, config, setups, console)
    return _digests(subjects, setups, config)


def read_scans(config: Study) -> tuple[Subject, ...]:
    """The subjects of a study, whose files are there.

    Raises:
        InputError: they cannot be read here, or the table has no split.
    """
    if is_remote(config.data):
        raise InputError(
            f"{config.data} is no folder: results are measured on whole scans, which are read from "
            "a disk; give a subjects table, or a store that lies here."
        )
    table = table_of(config.data)
    subjects = read_subjects(table, need_image=True)
    missing = [
        split
        for split in dict.fromkeys(("train", "validation", config.split))
        if not any(each.split == split for each in subjects)
    ]
    if missing:
        raise InputError(
            f"{table} has no subject of the split {missing[0]}; a study trains on 'train', follows "
            f"and chooses by 'validation', and has its results from '{config.split}'. Give it a "
            "column split with all of them."
        )
    return subjects


def _check_splits(subjects: Sequence[Subject], design: Design, config: Study) -> None:
    """Makes sure that there are scans enough, and that results are of other people."""
    train = sum(each.split == "train" for each in subjects)
    if max(design.sizes) > train:
        raise InputError(
            f"--sizes {config.sizes} wants {max(design.sizes)} scans to train on, but "
            f"{table_of(config.data)} has {train} of the split train; give smaller sizes."
        )
    result = {person_of(each.name): each.name for each in subjects if each.split == config.split}
    for each in subjects:
        used = each.split in ("train", "validation") and each.split != config.split
        if used and person_of(each.name) in result:
            raise InputError(
                f"{table_of(config.data)} has the same person in the splits {each.split} and "
                f"{config.split}, as {each.name} and {result[person_of(each.name)]}, so results "
                "would be too good; put both into one."
            )


def _check_choices(config: Study) -> None:
    """Makes sure that results are of no split by which something is chosen."""
    by = "--tune" if config.tune is not None else "--patience"
    chosen = config.tune is not None or config.patience is not None
    if config.split == "validation" and chosen:
        raise InputError(
            f"--split validation measures results on scans by which {by} has chosen, so they would "
            f"be too good; give --split test, or leave out {by}."
        )


def _check_labels(config: Study) -> None:
    """Makes sure that labels are scored as they are learned."""
    if not is_store(config.data):
        return
    there = read_store(config.data).preparation.labels
    here = read_label_map(config.label_map, config.keep, config.binarise, config.unlisted)
    same = there.mapping == here.mapping and set(there.keep) == set(here.keep)
    unlisted = there.mapping is None or there.unlisted == here.unlisted
    if not (same and unlisted and there.binarise == here.binarise):
        raise InputError(
            f"{config.data} was prepared with other values of labels than results would be "
            "measured with; give --label-map, --unlisted, --keep and --binarise as to "
            "'voxtune prepare'."
        )


def _check_source(config: Study) -> None:
    if config.source is not None:
        from voxtune.engine.forgetting import check_source

        check_source(config)


def _check_runs(subjects: Sequence[Subject], design: Design, config: Study) -> list[Trial]:
    """Makes sure that all runs which are there are of this study.

    Returns:
        Those that are not trained and scored with any factor of learning rates.
    """
    trained = [each.name for each in subjects if each.split == "train"]
    todo: dict[tuple[str, int, int], Trial] = {}
    done = set[tuple[str, int, int]]()
    for factor in dict.fromkeys((1.0, *design.factors)):
        factors = {(arm.name, size): factor for arm in design.arms for size in arm.sizes}
        for trial in design.trials(config, factors):
            saved = saved_run(trial)
            if saved is not None:
                check_same(saved, trial, trained)
            key = trial.arm, trial.size, trial.seed
            todo[key] = trial
            if saved is not None and is_scored(trial, config):
                done.add(key)
    return [trial for key, trial in todo.items() if key not in done]


def _check_batches(setups: Mapping[str, Setup]) -> None:
    """Makes sure that all arms see as many blocks."""
    batches = {name: setup.plan.batch for name, setup in setups.items()}
    other = [name for name, batch in batches.items() if batch != next(iter(batches.values()))]
    if other:
        first = next(iter(batches))
        raise InputError(
            f"[arms.{other[0]}] has a batch of {batches[other[0]]} blocks, but [arms.{first}] one "
            f"of {batches[first]}, and who sees more is not compared; give --batch, which all arms "
            "have in common."
        )


def _check_scans(
    subjects: Sequence[Subject],
    todo: Sequence[Trial],
    config: Study,
    setups: Mapping[str, Setup],
    console: Console,
) -> None:
    """Reads what networks will be trained on and measured on, as far as there are any to train."""
    trained = [each.name for each in subjects if each.split == "train"]
    wanted = set[str]()
    if not is_store(config.data):  # which was read when it was prepared
        for size, seed in {(each.size, each.seed) for each in todo}:
            wanted.update(shuffled_subjects(trained, seed)[:size])
    setup = next(iter(setups.values()))
    channels = subjects[0].channels and setup.data.channels
    labelling = {each.name: getattr(config, each.name) for each in dataclasses.fields(Labelling)}
    preparation = Preparation.of(setup.start.spec.contract, channels, Labelling(**labelling), False)
    read = [
        each.taking(channels)
        for each in subjects
        if todo and (each.split == config.split or each.name in wanted)
    ]
    with ThreadPoolExecutor(min(cores(), _MOST_THREADS)) as pool:
        found = run_each(pool, console, "checking", _problems_and_values, read, preparation)
    refuse([problem for problems, _ in found for problem in problems], read, console)
    for each, (_, values) in zip(read, found, strict=True):
        for arm, other in setups.items() if each.name in wanted else ():
            known = {known.value for known in other.start.spec.classes} | {config.ignore_label}
            if values - known and not other.config.synthetic:
                raise InputError(
                    f"{each.label} has the label value {min(values - known)}, which is no class of "
                    f"the arm {arm}; say with --labels which classes all of them learn, and "
                    "with --label-map or --ignore-label what becomes of others."
                )


def _problems_and_values(
    subject: Subject, preparation: Preparation
) -> tuple[list[Problem], set[int]]:
    """What is wrong with its files, else the values to learn."""
    problems = problems_of(subject, preparation)
    if problems or subject.label is None:
        return problems, set()
    return [], set(np.unique(preparation.labels(load_label(subject.label)).data).tolist())


class _Once:
    """Reads the scans once for all arms that take the same."""

    def __init__(self) -> None:
        self._read: dict[str, TrainingData] = {}

    def __call__(self, config: Finetune, spec: ModelSpec, console: Console) -> TrainingData:
        """As `read_training_data`; all smallest runs of a size and seed have the same subjects."""
        taken = (config.subjects, config.train_subjects, config.subject_seed, config.synthetic)
        key = repr((taken, labelling_of(config), spec.channels, spec.contract))
        if key not in self._read:
            self._read[key] = read_training_data(config, spec, console)
        return self._read[key]


def _set_up(arm: Arm, design: Design, config: Study, console: Console, read: _Once) -> Setup:
    """An arm's smallest run, as far as that computes nothing."""
    last = trial_of(config, arm, min(arm.sizes), design.seeds[-1], max(design.factors)).config
    first = trial_of(config, arm, min(arm.sizes), design.seeds[0], min(design.factors)).config
    try:
        for each in (first, last):
            check_options(each)
        if first.loss in REGRESSION:
            raise InputError(f"--loss {first.loss} learns an image, which has no Dice to compare.")
        begin(first)
        dry = dataclasses.replace(first, dry_run=True)
        found = set_up(dry, console, new=False, reader=read)
    except InputError as error:
        if config.design is None:
            raise
        raise InputError(f"{error} (So says the arm {arm.name}.)") from error
    if not found.start.spec.classes:
        raise InputError(f"{first.model_dir} gives an image, which has no Dice to compare.")
    return found


# What may not change


def _digests(
    subjects: Sequence[Subject], setups: Mapping[str, Setup], config: Study
) -> dict[str, str]:
    found = {
        "subjects or scans": _of_subjects(subjects, config.data),
        "label map": digest_of(config.label_map) or _NONE,
    }
    models: dict[Path, str] = {}
    for arm, setup in setups.items():
        run = setup.config
        for name, folder in (
            ("model", run.model_dir),
            ("model to take weights from", run.init_from),
        ):
            if folder is not None and folder not in models:
                models[folder] = _of_model(folder)
            found[name + OF_THE_ARM + arm] = _NONE if folder is None else models[folder]
        found[f"rules file{OF_THE_ARM}{arm}"] = digest_of(run.rules) or _NONE
        found[f"batch{OF_THE_ARM}{arm}"] = str(setup.plan.batch)
    return found


def _of_subjects(subjects: Sequence[Subject], data: str) -> str:
    """Of names, splits, and the size of each file; what is in the files is not read."""
    lines = [
        f"{each.name} {each.split} {[file.stat().st_size for file in files_of(each)]}"
        for each in subjects
    ]
    if is_store(data):
        lines.append(str(digest_of(Path(data, DOCUMENT))))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _of_model(folder: Path) -> str:
    """Of the architecture, the contract and the weights: the same if it is converted again."""
    spec, parameters = read_model(folder)
    contract = dataclasses.asdict(spec.contract)
    about = {name: value for name, value in contract.items() if name not in _FOUND_LATER}
    classes = [[each.value, each.name] for each in spec.classes]
    content = [spec.family, spec.arguments, spec.output_activation, classes, about]
    found = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for path, value in sorted(parameters.items()):
        found.update(f"{path} {np.shape(value)}\n".encode())
        found.update(np.ascontiguousarray(value).data)
    return found.hexdigest()


def check_unchanged(out: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Makes sure that a study goes on with what it began with.

    Args:
        out: its folder.
        before: what `check_inputs` gave at an earlier call.
        now: what it gives now; what only one of both has is an arm of that call alone.

    Raises:
        InputError: something is another.
    """
    other = [name for name in now if before.get(name, now[name]) != now[name]]
    if other:
        name = other[0]
        there, here = before[name], now[name]
        if name.startswith("batch"):
            text, advice = f"another {name} ({there}, not {here})", f"give --batch {there}"
        elif there == _NONE:
            text, advice = f"no {name}", "leave it out"
        else:
            text, advice = f"another {name}", "put back what it began with"
        raise InputError(f"{out} was begun with {text}; {advice}, or choose another --out.")
