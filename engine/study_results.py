"""What a study leaves once all its networks are scored: tables, figures, study.json, report.html.

STUDY_DIR/
  runs/NAME/          a run directory for each network, ARM_nSIZE_seedSEED or, with other
                      learning rates, ARM_nSIZE_seedSEED_xFACTOR; diverged.txt in it says why
                      it came to nothing, where it did
  predictions/NAME/   what `voxtune predict` makes of the split with it
  scores/NAME.json    what `voxtune evaluate` says of that
  source/             with --source, the same of the old task, see `voxtune.engine.forgetting`
  logs/NAME.txt       what these commands said
  table.csv           a row for each arm and number of scans
  comparisons.csv     a row for each comparison
  figures/            violins, learning_curve, courses and cases (.png and .svg)
  report.html         all of that as one page
  study.json          see `document`
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from voxtune.engine.arms import Design, Trial, design_options
from voxtune.engine.command_line import study_command, without_folders
from voxtune.engine.config import Study
from voxtune.engine.findings import Findings, find
from voxtune.engine.labels import read_label_map
from voxtune.engine.outcomes import Outcome, read_outcome
from voxtune.engine.run_dir import finite
from voxtune.engine.saved_config import read_config, read_json
from voxtune.engine.subjects import is_text, read_subjects
from voxtune.engine.trials import table_of
from voxtune.engine.tuning import Tuned
from voxtune.engine.volume import written_beside
from voxtune.models.errors import InputError

if TYPE_CHECKING:
    from voxtune.engine.forgetting import Forgetting

DOCUMENT = "study.json"
FORMAT = "voxtune study 1"
_REMOVE_IT = "remove it, which loses the report alone"
# Names of what a study reads.
OF_ALL = ("subjects or scans", "label map")
OF_ARMS = ("model", "model to take weights from", "rules file", "batch")
OF_THE_ARM = " of the arm "


@dataclass(frozen=True, eq=False)
class Results:
    """All of a study that is to be told.

    Attributes:
        study: its options.
        design: of it.
        inputs: what `voxtune.engine.study_inputs.check_inputs` gave.
        trials: of the comparison, all scored; without those that came to nothing.
        tuned: arm and size → factor of learning rates → validation Dice, -inf where training
            diverged; empty where nothing was chosen.
        notes: sentences about what is left out, which follow those of the findings.
    """

    study: Study
    design: Design
    inputs: Mapping[str, str]
    trials: Sequence[Trial]
    tuned: Tuned
    notes: Sequence[str] = ()

    def write(self, console: Console) -> None:
        """Compares, shows it, and writes all files; those that are there are replaced.

        Raises:
            InputError: scores cannot be read, or the disk does not take it.
        """
        from voxtune.engine.findings_table import summary_tables, write_csv
        from voxtune.engine.study_report import write_report

        out = self.study.out
        outcomes = [read_outcome(trial, self.study) for trial in in_order(self.trials, self.design)]
        found = find(outcomes)
        findings = replace(found, sentences=[*found.sentences, *self.notes])
        forgotten = self._forgotten(console)
        documents = {trial.name: read_config(trial.config.run_dir) for trial in self.trials}
        write_csv(findings, out)
        figures = self._draw(outcomes)
        write_report(
            out / "report.html",
            self.study,
            self.design,
            findings,
            outcomes,
            documents,
            figures=figures,
            inputs=self.inputs,
            tuned=self.tuned,
            forgetting=forgotten,
        )
        write_document(out, self.document(findings, outcomes, documents, forgotten))
        for table in summary_tables(findings):
            console.print(table)
        for sentence in findings.sentences:
            console.print(sentence, highlight=False)
        console.print(f"wrote {out / 'report.html'}", highlight=False, soft_wrap=True)

    def _forgotten(self, console: Console) -> "list[Forgetting]":
        if self.study.source is None:
            return []
        from voxtune.engine.forgetting import forgetting

        return forgetting(self.study, self.trials, console)

    def _draw(self, outcomes: Sequence[Outcome]) -> dict[str, Path]:
        """Draws all figures; name → the one for the page."""
        from voxtune.engine.study_cases import draw_cases
        from voxtune.engine.study_plots import draw_courses, draw_learning_curve, draw_violins

        study = self.study
        folder = study.out / "figures"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made ({error.strerror}).") from error
        plots = {
            "violins": draw_violins,
            "learning_curve": draw_learning_curve,
            "courses": draw_courses,
        }
        found = {}
        for name, draw in plots.items():
            for ending in ("png", "svg"):
                found[name] = folder / f"{name}.{ending}"
                draw(outcomes, found[name])
        subjects = read_subjects(table_of(study.data), split=study.split)
        label_map = read_label_map(study.label_map, study.keep, study.binarise, study.unlisted)
        for ending in ("svg", "png"):
            found["cases"] = folder / f"cases.{ending}"
            draw_cases(outcomes, study.out, subjects, found["cases"], label_map)
        return found

    def document(
        self,
        findings: Findings,
        outcomes: Sequence[Outcome],
        documents: Mapping[str, Mapping[str, Any]],
        forgotten: "Sequence[Forgetting]",
    ) -> dict[str, Any]:
        """study.json: all findings and what they came of, without folders of a machine.

        "inputs" are digests of what was read, by which a later call knows that it is the same;
        "options" those of the command that are not the usual; "design" the arms with what each has
        otherwise; "findings" all numbers and sentences; "forgetting" the task before; "tuning" the
        validation Dice with each factor of learning rates; "runs" each network with the scores of
        each subject, its curve, its seconds of training, whom it was trained on, and digests;
        "made_with" each combination of versions, revision, devices, batch, block and classes with
        its number of runs. Numbers that JSON lacks are null.
        """
        from voxtune.engine.findings_table import to_json

        study, designed = self.study, design_options(self.study.design)
        usual = {each.name: each.default for each in fields(Study)}
        options = {
            name: _plain(value) for name, value in vars(study).items() if value != usual[name]
        }
        named = {(each.arm, each.size, each.seed): each for each in outcomes}
        runs = []
        for trial in in_order(self.trials, self.design):
            outcome, about = named[trial.arm, trial.size, trial.seed], documents[trial.name]
            runs.append(
                {
                    "name": trial.name,
                    **{name: getattr(trial, name) for name in ("arm", "size", "seed", "factor")},
                    "seconds": outcome.seconds,
                    "curve": [list(each) for each in outcome.curve],
                    "dice": dict(outcome.dice),
                    "hd95_mm": dict(outcome.hd95_mm),
                    "train": about["train"],
                    "weights": about.get("weights"),
                    "data": about.get("data"),
                }
            )
        return {
            "format": FORMAT,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": study_command(study, designed),
            "inputs": {**read_inputs(study.out), **self.inputs},  # of other jobs' arms too
            "options": options,
            "design": {
                "arms": {
                    arm.name: {
                        "sizes": list(arm.sizes),
                        "options": {name: _plain(value) for name, value in arm.options.items()},
                    }
                    for arm in self.design.arms
                },
                "sizes": list(self.design.sizes),
                "seeds": list(self.design.seeds),
                "factors": list(self.design.factors),
            },
            "findings": to_json(findings),
            "forgetting": [asdict(each) for each in forgotten],
            "tuning": [
                {"arm": arm, "size": size, "factor": factor, "validation_dice": dice}
                for (arm, size), found in self.tuned.items()
                for factor, dice in found.items()
            ],
            "runs": runs,
            "made_with": _made_with(documents),
        }


def in_order(trials: Sequence[Trial], design: Design) -> list[Trial]:
    """By arm as the design has them, then by size and seed."""
    places = {arm.name: place for place, arm in enumerate(design.arms)}
    return sorted(trials, key=lambda each: (places[each.arm], each.size, each.seed))


def read_inputs(out: Path) -> dict[str, str]:
    """What `check_inputs` gave when the study began; empty where it did not.

    Raises:
        InputError: study.json is none of this version.
    """
    return dict(_read_document(out)["inputs"])


def _read_document(out: Path) -> dict[str, Any]:
    """study.json, or what it is at first.

    Raises:
        InputError: it is none of this version.
    """
    path = out / DOCUMENT
    try:
        if not path.exists():
            return {"format": FORMAT, "inputs": {}}
        document = _without_nan(read_json(path))  # goes as deep as it is nested
        if document.get("format") != FORMAT or not _are_inputs(document.get("inputs")):
            raise ValueError("it is of another version")
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply; {_REMOVE_IT}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {_REMOVE_IT}.") from error
    return dict(document)


def _are_inputs(inputs: Any) -> bool:
    """Whether these are such as `check_inputs` gives."""
    if not isinstance(inputs, dict):
        return False
    named = [name.partition(OF_THE_ARM) for name in inputs]
    return all(
        kind in (OF_ARMS if of else OF_ALL) and is_text(arm) for kind, of, arm in named
    ) and all(isinstance(each, str) and is_text(each) for each in inputs.values())


def begin_document(out: Path, inputs: Mapping[str, str]) -> None:
    """Writes what is read into study.json, beside what is there.

    Raises:
        InputError: the disk does not take it.
    """
    document = _read_document(out)
    if document["inputs"] != inputs:
        write_document(out, {**document, "inputs": dict(inputs)})


def write_document(out: Path, document: Mapping[str, Any]) -> None:
    """Writes study.json, whole or not at all.

    Raises:
        InputError: the disk does not take it.
    """
    with written_beside(out / DOCUMENT) as beside:
        beside.write_text(json.dumps(_without_nan(document), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Of an option, as a JSON value; of a path its name alone."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str):
        return without_folders(value)
    return list(value) if isinstance(value, tuple) else value


def _made_with(documents: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = ("versions", "revision", "devices", "batch", "block", "classes")
    counts: dict[str, int] = {}
    for each in documents.values():
        key = json.dumps({name: each.get(name) for name in names}, sort_keys=True)
        counts[key] = counts.get(key, 0) + 1
    return [{**json.loads(key), "runs": count} for key, count in counts.items()]


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return finite(value)
