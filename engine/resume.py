"""A run that was stopped, as its directory remembers it."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from voxtune.engine.config import Finetune, Resume
from voxtune.engine.options import Training
from voxtune.engine.output import replace_file
from voxtune.engine.processes import is_first, together
from voxtune.engine.progress import Progress
from voxtune.engine.run_log import METRICS, log_lines
from voxtune.engine.saved_config import (
    CONFIG,
    READ,
    SETTLED,
    check_places,
    options_of,
    place_of,
    read_config,
    read_json,
)
from voxtune.engine.validation import Validation
from voxtune.models.errors import InputError

_RULES = "rules.json"

# Say where a run runs and what is seen of it, not what is trained.
_FREE = (
    "mesh",
    "map",
    "shard_optimizer",
    "distributed",
    "deterministic",
    "workers",
    "checkpoints",
    "profile",
    "tensorboard",
    "log_every",
)
_PLACES = (*READ, "run_dir")
_OF_THE_START = ("recipe", "dry_run", "examples", "overwrite")
_OF_RULES = "rules of the parameters"


def made_of(documents: Mapping[str, Any]) -> dict[str, Any]:
    """What is trained, and how: what has to stay the same from one part of a run to the next.

    Args:
        documents: "config", see `voxtune.engine.record.record`.

    Returns:
        JSON values: "options", and "rest", name → value or digest.
    """
    config = documents["config"]
    left_out = {*_FREE, *_PLACES, *_OF_THE_START, *SETTLED}
    options = {name: value for name, value in config["options"].items() if name not in left_out}
    return _plain(
        {
            "options": options
            | {name: config[name] for name in ("batch", "block", "classes") if name in config},
            "rest": {
                _OF_RULES: config.get("rules"),
                "pretrained weights": config.get("weights"),
                "subjects to train on": digest(config["train"]),
                "subjects to validate on": digest(config["validation"]),
                "shapes or labels of the subjects": config.get("data"),
            },
        }
    )


@dataclass(frozen=True)
class SavedRun:
    """A run directory.

    Attributes:
        config: of the run, as it will go on.
        finished: whether there is nothing left to do.
        validation: of the weights that were kept, where it is finished.
        document: what config.json says.
        allow_change: whether what is trained may change.
        others: options that are not the run's, as they are given.
    """

    config: Finetune
    finished: bool
    validation: Validation
    document: Mapping[str, Any]
    allow_change: bool
    others: Sequence[str]

    @classmethod
    def read(cls, command: Resume) -> Self:
        """Reads it.

        Raises:
            InputError: it is no run directory, or a broken one.
        """
        run_dir = command.run_dir
        document = read_config(run_dir)
        options = options_of(document, Finetune)
        given = {each.name: getattr(command, each.name) for each in dataclasses.fields(Training)}
        for name in SETTLED:
            if given[name] is None:
                given[name] = options[name]
        config = Finetune(
            **given,
            model_dir=options["model_dir"],
            subjects=options["subjects"],
            run_dir=run_dir,
            recipe=options.get("recipe", "voxtune"),
        )
        others = [
            "--" + name.replace("_", "-")
            for name, value in given.items()
            if name in options and name != "distributed" and value != options[name]
        ]
        try:
            kept = read_json(run_dir / "model" / "finetune.json")
            finished = config.steps <= kept["options"]["steps"]
            validation = Validation(_numbers(kept["validation"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            finished, validation = False, Validation({})
        if not finished:
            check_places(config, document)
        return cls(config, finished, validation, document, command.allow_change, others)

    @property
    def finished_line(self) -> str:
        """What to say of a run that is finished."""
        unused = f"not used: {', '.join(self.others)}; " if self.others else ""
        return (
            f"{self.config.run_dir} is finished: its model is there; {unused}"
            "--steps N --allow-change makes it longer"
        )

    def check(self, documents: Mapping[str, Any], console: Console) -> dict[str, Any]:
        """Compares what was trained with what is going to be.

        Args:
            documents: what a run directory of its own would be given.
            console: told of changes that were allowed, and of what rounds in another way.

        Returns:
            The documents, with the options as they were given first where they mean the same.

        Raises:
            InputError: they differ, and the change was not allowed.
        """
        now = {**documents, "config": self._merged(documents["config"])}
        found = _differences(made_of({"config": self.document}), made_of(now))
        self._refuse(found)
        for each in found:
            console.print(f"changed: {each}", highlight=False, soft_wrap=True)
        other = _rounding(self.document, now["config"])
        if other:
            mapping = self.document["options"].get("map") != self.config.map
            drawn = ", dropout and random weights aside, which --map has drawn otherwise" * mapping
            console.print(
                f"note: {'; '.join(other)}; what follows equals an undisturbed run to rounding"
                f"{drawn}",
                highlight=False,
                soft_wrap=True,
            )
        return now

    def go_on(
        self, documents: Mapping[str, Any], progress: Progress, origin: Mapping[str, str]
    ) -> None:
        """Brings the run directory to where the checkpoint is: its log ends there.

        Args:
            documents: what `check` gave.
            progress: of the checkpoint, or of no step at all.
            origin: from where and by which command the run goes on.

        Raises:
            InputError: the checkpoint was made with something else, and that was not allowed, or
                the disk does not take it.
        """
        if progress.step > self.config.steps:
            raise InputError(
                f"{self.config.run_dir} has done {progress.step} steps already, more than --steps "
                f"{self.config.steps}; give at least {progress.step}, or leave it out."
            )
        now = made_of(documents)
        past = list(self.document.get("resumed", []))
        found = _differences(progress.made_of, now) if progress.made_of else []
        if not any(each.get("made_of") == digest(now) for each in past):
            self._refuse(found)
        with together():
            if is_first():
                self._write(documents, progress.step, origin, found, past)

    def _write(
        self,
        documents: Mapping[str, Any],
        step: int,
        origin: Mapping[str, str],
        found: Sequence[str],
        past: Sequence[Mapping[str, Any]],
    ) -> None:
        """Ends the log at a step, and says in the documents that the run goes on from it."""
        log = self.config.run_dir / METRICS
        try:
            lines = _until(log, step)
        except OSError as error:
            raise InputError(f"{log} cannot be read ({error.strerror or error}).") from error
        if lines is not None:
            replace_file(log, lines)
        entry = {
            "step": step,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **origin,
            "devices": documents["config"]["devices"],
            "changed": found,
            "made_of": digest(made_of(documents)),
        }
        kept = {name: self.document[name] for name in ("folder", "command")}
        document = {**documents["config"], **kept, "resumed": [*past, entry]}
        if found:  # first, as this alone is for people: what config.json says is compared
            rules = json.dumps(documents["rules"], indent=2) + "\n"
            replace_file(self.config.run_dir / _RULES, rules)
        replace_file(self.config.run_dir / CONFIG, json.dumps(document, indent=2) + "\n")

    def _refuse(self, differences: Sequence[str]) -> None:
        if differences and not self.allow_change:
            raise InputError(
                f"{self.config.run_dir} was trained so far with something else "
                f"({'; '.join(differences)}); leave the change out, or pass --allow-change."
            )

    def _merged(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What a run is, its options in the words in which they were given first."""
        first, options = self.document["options"], dict(config["options"])
        folder = Path(self.document["folder"])
        for name, value in options.items():
            old = first.get(name)
            moved = name in _PLACES and isinstance(old, str) and place_of(old, folder) == value
            usual = name in SETTLED and old in (None, "full")
            if usual:
                usual = _plain(value) == self.document[name]
            if name in first and (moved or usual or name == "run_dir"):
                options[name] = old
        return {**config, "options": options}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was made of something else, in a few words each."""
    old, new = before.get("options", {}), now["options"]
    found = [
        f"{name}: {_shown(old[name])} → {_shown(new[name])}"
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name] and not (old[name] != old[name] and new[name] != new[name])
    ]
    consequences = {_OF_RULES} if found else set[str]()
    old, new = before.get("rest", {}), now["rest"]
    return found + [
        f"other {name}"
        for name in new
        if name in old and old[name] != new[name] and name not in consequences
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _rounding(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What makes the bits others, and nothing else."""
    flat = [
        {**each.get("versions", {}), **{n: each.get(n) for n in ("revision", "devices")}}
        | {name: each["options"].get(name) for name in ("mesh", "map", "deterministic")}
        for each in (before, now)
    ]
    return [
        f"{name}: {_shown(flat[0][name])} → {_shown(flat[1][name])}"
        for name in flat[1]
        if name in flat[0] and flat[0][name] != flat[1][name]
    ]


def _until(log: Path, step: int) -> str | None:
    """The lines of metrics.jsonl up to a step; a line that was not finished is left out.

    Returns:
        None where there is no such file.

    Raises:
        InputError: it is far too large.
        OSError: it cannot be read.
    """
    if not log.exists():
        return None
    return "".join(f"{line}\n" for line, entry in log_lines(log) if entry.get("step", 0) <= step)


def _numbers(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """Scores as JSON has them, with NaN again where it has null."""
    return {
        metric: {name: math.nan if x is None else float(x) for name, x in values.items()}
        for metric, values in scores.items()
    }


def _plain(content: Any) -> Any:
    """JSON values as they come back from a file: tuples are lists."""
    return json.loads(json.dumps(content))


def digest(content: Any) -> str:
    """Of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
