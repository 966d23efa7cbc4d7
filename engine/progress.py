"""How far a run is: what the loop knows beside the state, and needs to go on."""

import functools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from voxtune.engine.metrics import Counts, scores
from voxtune.engine.validation import Validation
from voxtune.models.errors import InputError


@dataclass
class Best:
    """The best validation so far.

    Attributes:
        step: its step, the later of two that are as good; 0 before any.
        value: what was measured.
        since: the step since which there has been no better one.
        stale: how many validations there have been since.
        validation: all that was measured.
    """

    step: int = 0
    value: float = -math.inf
    since: int = 0
    stale: int = 0
    validation: Validation = field(default_factory=lambda: Validation({}))

    def add(self, step: int, value: float, validation: Validation) -> None:
        """Takes note of a validation; of two that are as good, the later one is kept."""
        better = value > self.value
        self.stale = 0 if better else self.stale + 1
        self.since = step if better else self.since
        if value >= self.value:
            self.step, self.value, self.validation = step, value, validation


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: steps done, and the number of the next one's batch.
        skipped: steps that were skipped.
        last: the last validation.
        best: the best one.
        given_up: why the run was given up, for a person; empty where it was not.
        made_of: what is trained, and how; see `voxtune.engine.resume.made_of`.
    """

    step: int = 0
    skipped: int = 0
    last: Validation = field(default_factory=lambda: Validation({}))
    best: Best = field(default_factory=Best)
    given_up: str = ""
    made_of: Mapping[str, Any] = field(default_factory=dict)
    _waiting: list[Counts] = field(default_factory=list)  # since the last line of metrics.jsonl

    def add(self, counts: Counts | None) -> None:
        """Takes note of a step's counts, where it has any."""
        if counts is not None:
            # Kept on the devices until they are wanted: adding them up would wait.
            self._waiting.append(counts)

    def dice(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Of all blocks since the last line, and begins the next; empty where nothing is counted.

        Args:
            classes: names of the classes, background first.
        """
        if not self._waiting:
            return {}
        values = scores(functools.reduce(operator.add, self._waiting))["dice"]
        self._waiting.clear()
        return {"dice": dict(zip(classes[1:], map(float, values), strict=True))}

    def to_json(self) -> dict[str, Any]:
        """JSON values, with Python's NaN and infinity among them."""
        if len(self._waiting) > 1:
            self._waiting[:] = [functools.reduce(operator.add, self._waiting)]
        best = self.best
        return {
            "step": self.step,
            "skipped": self.skipped,
            "last": _plain(self.last),
            "best": {
                "step": best.step,
                "value": best.value,
                "since": best.since,
                "stale": best.stale,
                "validation": _plain(best.validation),
            },
            "counts": [
                {name: np.asarray(getattr(each, name)).tolist() for name in _COUNTS}
                for each in self._waiting
            ],
            "given_up": self.given_up,
            "made_of": dict(self.made_of),
        }

    @classmethod
    def of_json(cls, content: Mapping[str, Any], classes: int) -> Self:
        """What `to_json` gave.

        Args:
            content: that.
            classes: how many are counted, background included.

        Raises:
            InputError: it did not give this.
        """
        try:
            best, made_of = content["best"], content["made_of"]
            if not all(isinstance(each, dict) for each in (made_of, *made_of.values())):
                raise TypeError("made_of is of other types")
            return cls(
                step=_whole(content["step"]),
                skipped=_whole(content["skipped"]),
                last=_validation(content["last"]),
                best=Best(
                    step=_whole(best["step"]),
                    value=_number(best["value"]),
                    since=_whole(best["since"]),
                    stale=_whole(best["stale"]),
                    validation=_validation(best["validation"]),
                ),
                given_up=_text(content.get("given_up", "")),
                made_of=made_of,
                _waiting=[_counts(each, classes) for each in content["counts"]],
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"The checkpoint does not say how far its run was ({error!r}): it is of another "
                "version; start the run again with 'voxtune finetune'."
            ) from error


_COUNTS = ("overlap", "predicted", "true")


def _plain(validation: Validation) -> dict[str, dict[str, float]]:
    return {
        metric: {name: float(value) for name, value in values.items()}
        for metric, values in validation.scores.items()
    }


def _validation(content: Mapping[str, Mapping[str, float]]) -> Validation:
    return Validation(
        {
            metric: {name: _number(value) for name, value in values.items()}
            for metric, values in content.items()
        }
    )


def _counts(content: Mapping[str, list[int]], classes: int) -> Counts:
    arrays = {name: np.array([_whole(n) for n in content[name]], np.int64) for name in _COUNTS}
    if any(each.size != classes for each in arrays.values()):
        raise ValueError(f"it did not count {classes} classes")
    return Counts(**arrays)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no number of something")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no sentence")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{value!r} is no number")
    return float(value)
