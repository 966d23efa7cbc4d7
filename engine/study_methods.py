"""How a study was done, for its page: arms, learning rates, statistics, inputs, runs, subjects.

No JAX here.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from voxtune.engine.arms import Arm, Design, trial_of
from voxtune.engine.command_line import finetune_command, option_name, shown_value
from voxtune.engine.config import Study
from voxtune.engine.findings import subject_scores
from voxtune.engine.formats import NOTHING, counted, duration, number
from voxtune.engine.options import Training
from voxtune.engine.outcomes import Outcome, read_seconds
from voxtune.engine.page import Html, code, details, pairs, paragraph, subheading, table
from voxtune.engine.statistics import METHOD
from voxtune.models.errors import InputError

_NO_WEIGHTS = hashlib.sha256().hexdigest()  # that a random start takes
_SHOWN = 16  # digits of a hash in a table
_MOST_NAMES = 2000  # subjects that are listed


def methods(
    study: Study,
    design: Design,
    outcomes: Sequence[Outcome],
    documents: Mapping[str, Mapping[str, Any]],
    tuned: Mapping[tuple[str, int], Mapping[float, float]],
    inputs: Mapping[str, str],
) -> list[Html]:
    """What another person needs to repeat a study, or to doubt it.

    Args:
        study: see `voxtune.engine.study_report.write_report`, as all others.
        design: of it.
        outcomes: of all networks of the comparison.
        documents: of their runs.
        tuned: by which learning rates were chosen.
        inputs: digests of what was read.
    """
    return [
        *_arms(study, design, outcomes),
        *_rates(design, outcomes, tuned),
        subheading("Statistics"),
        *map(paragraph, METHOD),
        *_inputs(inputs),
        *_runs(study, design, outcomes, documents),
        *_subjects(outcomes),
        *_made_with(documents),
    ]


def _arms(study: Study, design: Design, outcomes: Sequence[Outcome]) -> list[Html]:
    rows = [(arm.name, _options(arm), _numbers(arm.sizes)) for arm in design.arms]
    found = [
        subheading("Arms"),
        table("What each arm has otherwise", ("Arm", "Options", "Scans"), rows, words=(0, 1)),
    ]
    common = _differing(study)
    if common:
        found.append(pairs(common, "Options of all arms that are not the defaults"))
    commands = "\n\n".join(_command(study, arm, outcomes) for arm in design.arms)
    found += [
        paragraph(
            "Each network is an ordinary run. These are the first ones of each arm; the others are "
            "in other folders, with another number of train-subjects, or another seed and "
            "subject-seed. Of absolute paths the folders are cut, here and on all of this page: "
            "give your own."
        ),
        code(commands),
    ]
    return found


def _command(study: Study, arm: Arm, outcomes: Sequence[Outcome]) -> str:
    """Of the first network of an arm."""
    own = [each for each in outcomes if each.arm == arm.name]
    first = min(own, key=lambda each: (each.size, each.seed), default=None)
    size, seed = (arm.sizes[0], study.seed) if first is None else (first.size, first.seed)
    factor = 1.0 if first is None else first.factor
    return finetune_command(trial_of(study, arm, size, seed, factor).config)


def _options(arm: Arm) -> str:
    shown = [f"{option_name(name)} {shown_value(value)}" for name, value in arm.options.items()]
    return ", ".join(shown) or "as the study"


def _differing(study: Study) -> dict[str, str]:
    return {
        option_name(each.name): shown_value(getattr(study, each.name))
        for each in dataclasses.fields(Training)
        if getattr(study, each.name) != each.default
    }


def _rates(
    design: Design,
    outcomes: Sequence[Outcome],
    tuned: Mapping[tuple[str, int], Mapping[float, float]],
) -> list[Html]:
    if len(design.factors) < 2:
        return []
    chosen = {(each.arm, each.size): each.factor for each in outcomes}
    keys = [
        (arm.name, size)
        for size in design.sizes
        for arm in design.arms
        if (arm.name, size) in chosen
    ]
    rows = [
        (
            arm,
            str(size),
            *(_dice(tuned.get((arm, size), {}).get(x, math.nan)) for x in design.factors),
            f"{chosen[arm, size]:g}",
        )
        for arm, size in keys
    ]
    header = ("Arm", "Scans", *(f"Factor {factor:g}" for factor in design.factors), "Chosen")
    ends = {min(design.factors), max(design.factors)}
    lacking = any(math.isinf(dice) for found in tuned.values() for dice in found.values())
    at_ends = [f"{arm} with {size} scans" for arm, size in keys if chosen[arm, size] in ends]
    found = [
        subheading("Learning rates"),
        table("Validation Dice of the first seed by factor of the learning rates", header, rows),
    ]
    if lacking:
        found.append(paragraph(f"{NOTHING}: training diverged, or no subject had a Dice."))
    if at_ends:
        found.append(
            paragraph(
                f"The smallest or largest factor was the best for {'; '.join(at_ends)}: a wider "
                "--tune might find a better one."
            )
        )
    return found


def _dice(value: float) -> str:
    return number(value) if math.isfinite(value) else NOTHING


def _runs(
    study: Study,
    design: Design,
    outcomes: Sequence[Outcome],
    documents: Mapping[str, Mapping[str, Any]],
) -> list[Html]:
    arms = {each.name: each for each in design.arms}
    rows, scans = [], dict[tuple[int, int], dict[str, None]]()
    for each in outcomes:
        name = trial_of(study, arms[each.arm], each.size, each.seed, each.factor).name
        about = documents.get(name, {})
        rows.append(
            (
                name,
                str(about.get("devices", NOTHING)),
                _hash(about.get("data")),
                _hash(about.get("weights")),
                duration(each.seconds),
            )
        )
        trained = _names(about.get("train", []))
        if trained:
            scans.setdefault((each.size, each.seed), {})[trained] = None
    validation = {_names(each.get("validation", [])) for each in documents.values()} - {""}
    header = ("Run", "Devices", "Hash of data", "Hash of weights", "Training")
    trained_on = [
        (f"{size} scans, seed {seed}", names) for (size, seed), of in scans.items() for names in of
    ]
    return [
        subheading("Runs"),
        paragraph(f"{_compute(study, design, outcomes)} Seeds: {_numbers(design.seeds)}."),
        details(
            "Each run",
            table("Networks of the comparison", header, rows, words=(0, 1, 2, 3)),
            paragraph(
                "Hashes are the first digits of those in each run's config.json: SHA-256 of the "
                "subjects' names, shapes and label counts, and of the pretrained values."
            ),
        ),
        details(
            "Which subjects",
            table("Trained on", ("Networks", "Subjects"), trained_on, words=(0, 1)),
            *(paragraph(f"Validated on: {names}.") for names in sorted(validation)),
        ),
    ]


def _made_with(documents: Mapping[str, Mapping[str, Any]]) -> list[Html]:
    versions: dict[str, dict[str, None]] = {}
    for each in documents.values():
        told = each.get("versions")
        for name, value in (told if isinstance(told, dict) else {}).items():
            versions.setdefault(str(name), {})[str(value)] = None
        for name in ("revision", "devices"):
            if isinstance(value := each.get(name), str):
                versions.setdefault(name, {})[value] = None
    shown = {name: ", ".join(values) for name, values in versions.items()}
    return [subheading("Made with"), pairs(shown)] if shown else []


def _compute(study: Study, design: Design, outcomes: Sequence[Outcome]) -> str:
    """The time of all runs, and of those with learning rates that were tried alone."""
    if not outcomes:
        return "No network was compared."
    chosen = {(each.arm, each.size, each.seed, each.factor) for each in outcomes}
    tried = [
        each.config.run_dir
        for each in design.tuning(study)
        if (each.arm, each.size, each.seed, each.factor) not in chosen
    ]
    compared = [(each.seconds, each.compile_seconds) for each in outcomes]
    given_up = list(_read_seconds(tried))
    steps, compiling = (_total(column) for column in zip(*compared, *given_up, strict=True))
    text = f"All runs together took {steps} of training steps and {compiling} of compilation"
    if given_up:
        own, _ = (_total(column) for column in zip(*given_up, strict=True))
        text += (
            f", of which {own} of steps were of {counted(len(given_up), 'run')} with learning "
            "rates that were not chosen"
        )
    untold = sum(not all(map(math.isfinite, each)) for each in (*compared, *given_up))
    lacking = f" {counted(untold, 'run')} did not log both." if untold else ""
    return (
        f"{text}.{lacking} This is by the logs, which do not time the rest: reading of scans, "
        "validation, segmentation of whole scans and scores are not in it."
    )


def _read_seconds(run_dirs: Sequence[Path]) -> Iterator[tuple[float, float]]:
    """Of those that are there: a run that diverged may have left nothing."""
    for each in run_dirs:
        with suppress(InputError):
            yield read_seconds(each)


def _total(seconds: Sequence[float]) -> str:
    return duration(sum(each for each in seconds if math.isfinite(each)))


def _inputs(inputs: Mapping[str, str]) -> list[Html]:
    if not inputs:
        return []
    return [
        subheading("Inputs"),
        pairs(
            inputs,
            "What was read, by which a later call knows that it is the same: SHA-256 of the names, "
            "splits and file sizes of scans, of architectures and weights of models, of label map "
            "and rules files; and the blocks of a step",
        ),
    ]


def _subjects(outcomes: Sequence[Outcome]) -> list[Html]:
    """Dice of each subject that results are of: a table for each size, a column for each arm."""
    sizes = sorted({each.size for each in outcomes})
    tables = []
    for size in sizes:
        arms: dict[str, dict[int, Outcome]] = {}
        for each in outcomes:
            if each.size == size:
                arms.setdefault(each.arm, {})[each.seed] = each
        scores = {arm: subject_scores(networks) for arm, networks in arms.items()}
        names = sorted({name for each in outcomes if each.size == size for name in each.dice})
        rows = [
            (name, *(number(of_arm.get(name, math.nan)) for of_arm in scores.values()))
            for name in names[:_MOST_NAMES]
        ]
        caption = f"Dice with {counted(size, 'scan')}, each subject's mean over seeds"
        if len(names) > _MOST_NAMES:
            caption += f"; the first {_MOST_NAMES} of {len(names)} subjects"
        tables.append(table(caption, ("Subject", *scores), rows))
    return [details("Dice of each subject", *tables)] if tables else []


def _hash(value: Any) -> str:
    return NOTHING if not isinstance(value, str) or value == _NO_WEIGHTS else value[:_SHOWN]


def _names(names: Any) -> str:
    """Subjects, as many as a person might read."""
    shown = [str(each) for each in names] if isinstance(names, list) else []
    more = f" and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
    return ", ".join(shown[:_MOST_NAMES]) + more


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
