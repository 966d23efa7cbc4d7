"""How well a network does on scans that it is not trained on, while it is trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxtune.engine.dataset import Case
from voxtune.engine.metrics import Mean, count, scores
from voxtune.engine.model_dir import ModelSpec
from voxtune.engine.predict import Predictor, contested

ERROR = "mean_absolute_error"  # of networks that give an image


@dataclass(frozen=True)
class Validation:
    """Means over scans.

    Attributes:
        scores: metric → name of a class, and "mean" where there are several → value; NaN where no
            scan has the class. Empty where there was no scan.
    """

    scores: Mapping[str, Mapping[str, float]]

    def monitored(self, metric: str) -> float:
        """What a better validation has more of; NaN where nothing was measured."""
        if ERROR in self.scores:
            return -self.scores[ERROR]["mean"]
        found = self.scores.get(metric, {})
        return found.get("mean", next(iter(found.values()), math.nan))

    def line(self) -> str:
        """For a person: Dice by class, or the error."""
        if ERROR in self.scores:
            return f"mean absolute error {self.scores[ERROR]['mean']:.3f}"
        return "Dice " + "  ".join(f"{each} {x:.3f}" for each, x in self.scores["dice"].items())


def validate(
    predictor: Predictor, params: Any, statistics: Any, cases: Sequence[Case], spec: ModelSpec
) -> Validation:
    """Mean over cases of each metric of each class but background, and the mean of classes.

    Measured on the conformed grid. A case in which a metric of a class is undefined (Dice: neither
    label nor prediction has it) is left out of its mean. For a network that gives an image: the
    mean absolute error, in units of the scaled target.
    """
    if not cases:
        return Validation({})
    if not spec.classes:
        errors = [_error(predictor(params, statistics, case.image), case) for case in cases]
        return Validation({ERROR: {"mean": float(np.mean(errors))}})
    found: dict[str, Mean] = {}
    for case in cases:
        probabilities = predictor(params, statistics, case.image)
        predicted = contested(probabilities, spec).argmax(axis=-1)
        for name, values in scores(count(predicted, case.label, len(spec.classes))).items():
            mean = Mean.of(values)
            found[name] = found[name] + mean if name in found else mean
    return Validation({name: _by_class(mean.value(), spec) for name, mean in found.items()})


def _by_class(values: np.ndarray, spec: ModelSpec) -> dict[str, float]:
    names = [each.name for each in spec.classes[1:]]
    named = dict(zip(names, map(float, values), strict=True))
    if len(named) > 1 and np.isfinite(values).any():
        named["mean"] = float(np.nanmean(values))
    return named


def _error(image: np.ndarray, case: Case) -> float:
    return float(np.nanmean(np.abs(image[..., 0] - case.label)))
