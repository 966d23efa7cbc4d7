"""What a run directory says of its run, checked: anybody may have changed it. No JAX here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from voxtune.engine.config import Finetune
from voxtune.engine.lock import WHOLE, locked
from voxtune.engine.output import MARKER
from voxtune.engine.run_log import METRICS, log_lines
from voxtune.engine.saved_config import SETTLED, options_of, read_config, read_json
from voxtune.models.errors import InputError

ERROR = "mean_absolute_error"  # of networks that give an image
_EVENTS = ("compiled", "train", "validation", "skipped")
# What has a number for each class, or for each group of parameters.
_NAMED = ("dice", "jaccard", "precision", "recall", "volume_difference", ERROR, "learning_rates")

State = Literal["finished", "running", "stopped"]


@dataclass(frozen=True)
class Account:
    """All that is told.

    Attributes:
        name: of the folder.
        config: of the run, with places as they were given.
        document: what config.json says.
        parameters: what parameters.json says; empty where there is none.
        rules: what rules.json says, likewise.
        entries: of metrics.jsonl, of known events, with finite numbers alone.
        state: of the run, as far as this machine can tell.
    """

    name: str
    config: Finetune
    document: Mapping[str, Any]
    parameters: Mapping[str, Any]
    rules: Mapping[str, Any]
    entries: Sequence[Mapping[str, Any]]
    state: State

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """Reads it.

        Raises:
            InputError: the folder is no run directory, or a file of it cannot be used.
        """
        document = read_config(run_dir)
        options = document["options"]
        # As they were given: from no folder, and not as devices and scans have settled them.
        given = {**document, "folder": "", **{name: options.get(name) for name in SETTLED}}
        config = Finetune(**options_of(given, Finetune))
        return cls(
            name=run_dir.resolve().name,
            config=config,
            document=document,
            parameters=_read(run_dir / "parameters.json"),
            rules=_read(run_dir / "rules.json"),
            entries=_entries(run_dir / METRICS),
            state=_state(run_dir, config),
        )

    @property
    def trained(self) -> list[Mapping[str, Any]]:
        """Entries of training steps, the last of each step."""
        return self._of("train")

    @property
    def validations(self) -> list[Mapping[str, Any]]:
        """Entries of validations that measured something."""
        return [each for each in self._of("validation") if isinstance(each.get(self.metric), dict)]

    @property
    def skipped(self) -> list[Mapping[str, Any]]:
        """Entries of steps that were skipped."""
        return self._of("skipped")

    @property
    def compiled(self) -> list[Mapping[str, Any]]:
        """An entry of each part of the run."""
        return [each for each in self.entries if each["event"] == "compiled"]

    @property
    def step(self) -> int:
        """The last that is told of."""
        return max((each["step"] for each in self.entries), default=0)

    @property
    def metric(self) -> str:
        """By which validations are compared."""
        image = any(ERROR in each for each in self._of("validation"))
        return ERROR if image else self.config.monitor

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The best validation, the later of two that are as good."""
        sign = -1 if self.metric == ERROR else 1
        told = [each for each in self.validations if not math.isnan(self.monitored(each))]
        return max(told, key=lambda x: (sign * self.monitored(x), x["step"]), default=None)

    def monitored(self, entry: Mapping[str, Any]) -> float:
        """The mean over classes of a validation, or the value of its only class."""
        values = entry[self.metric]
        return values.get("mean", next(iter(values.values()), math.nan))

    @property
    def train(self) -> list[str]:
        """Subjects that it is trained on."""
        return [str(each) for each in self.document["train"]]

    @property
    def validation(self) -> list[str]:
        """Subjects that it is validated on."""
        return [str(each) for each in self.document["validation"]]

    def _of(self, event: str) -> list[Mapping[str, Any]]:
        found = {each["step"]: each for each in self.entries if each["event"] == event}
        return [found[step] for step in sorted(found)]


def _read(path: Path) -> dict[str, Any]:
    """A JSON file that may be missing.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return read_json(path) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); put it back, or remove it.") from error


def _entries(path: Path) -> list[dict[str, Any]]:
    """Entries of known events; what is of another kind than a run writes is left out.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return [_known(entry) for _, entry in log_lines(path) if _is_known(entry)]
    except FileNotFoundError:  # it was killed before its first line
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from error


def _is_known(entry: Mapping[str, Any]) -> bool:
    step = entry.get("step")
    return entry.get("event") in _EVENTS and type(step) is int and 0 <= step < 2**53


def _known(entry: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"event": entry["event"], "step": entry["step"]}
    for name, value in entry.items():
        if name in _NAMED:
            if isinstance(value, dict):
                found[name] = {_plain(key): x for key, x in value.items() if _is_number(x)}
        elif name == "subjects":
            if isinstance(value, list):
                found[name] = [_plain(each) for each in value if isinstance(each, str)]
        elif _is_number(value):
            found[name] = value
    return found


def _is_number(value: Any) -> bool:
    # Whole numbers may be larger than any float.
    if type(value) is int:
        return abs(value) < 2**1000
    return type(value) is float and math.isfinite(value)


def _plain(name: str) -> str:
    """Without lone surrogates, which no file takes."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _state(run_dir: Path, config: Finetune) -> State:
    try:
        kept = read_json(run_dir / "model" / "finetune.json")["options"]["steps"]
        if config.steps <= kept:
            return "finished"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        with (run_dir / MARKER).open("r+b") as marker:
            return "stopped" if locked(marker, WHOLE, True) else "running"
    except OSError:  # it was copied without its marker, or may not be written
        return "stopped"
