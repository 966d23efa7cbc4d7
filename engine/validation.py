"""How well a network does on scans that it is not trained on, while it is trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxtune.engine.case import Case, class_indices
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
    predictor: Predictor,
    params: Any,
    statistics: Any,
    cases: Sequence[Case],
    spec: ModelSpec,
    table: np.ndarray | None,
) -> Validation:
    """Mean over cases of each metric of each class but background, and the mean of classes.

    Measured on the conformed grid. A case in which a metric of a class is undefined (Dice: neither
    label nor prediction has it) is left out of its mean. For a network that gives an image: the
    mean absolute error, in units of the scaled target.

    Args:
        predictor: what predicts whole volumes.
        params: of the network.
        statistics: of the network.
        cases: with images; each is read whole.
        spec: the network's.
        table: label value → class index, see `voxtune.engine.dataset.class_table`; None for a
            network that gives an image.
    """
    if not cases:
        return Validation({})
    errors: list[float] = []
    found: dict[str, Mean] = {}
    for case in cases:
        assert case.image is not None
        predicted = predictor(params, statistics, case.image[:, :, :])
        truth = case.label[:, :, :]
        if table is None:
            errors.append(float(np.nanmean(np.abs(predicted[..., 0] - truth[..., 0]))))
            continue
        classes = contested(predicted, spec).argmax(axis=-1)
        for name, values in scores(
            count(classes, class_indices(case, truth, table), len(spec.classes))
        ).items():
            mean = Mean.of(values)
            found[name] = found[name] + mean if name in found else mean
    if table is None:
        return Validation({ERROR: {"mean": float(np.mean(errors))}})
    return Validation({name: _by_class(mean.value(), spec) for name, mean in found.items()})


def _by_class(values: np.ndarray, spec: ModelSpec) -> dict[str, float]:
    names = [each.name for each in spec.classes[1:]]
    named = dict(zip(names, map(float, values), strict=True))
    if len(named) > 1 and np.isfinite(values).any():
        named["mean"] = float(np.nanmean(values))
    return named
