"""How well a network does on scans that it is not trained on, while it is trained."""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from voxtune.engine.case import Case, class_indices
from voxtune.engine.metrics import Mean, count, scores
from voxtune.engine.model_dir import ModelSpec
from voxtune.engine.predictor import Member, Predictor
from voxtune.engine.processes import gathered

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
        if not self.scores:
            return "nothing measured"
        if ERROR in self.scores:
            return f"mean absolute error {self.scores[ERROR]['mean']:.3f}"
        return "Dice " + "  ".join(f"{each} {x:.3f}" for each, x in self.scores["dice"].items())


def validate(
    predictor: Predictor,
    member: Member,
    cases: Sequence[Case],
    spec: ModelSpec,
    table: np.ndarray | None,
) -> Validation:
    """Mean over cases of each metric of each class but background, and the mean of classes.

    Measured on the conformed grid. A case in which a metric of a class is undefined (Dice: neither
    label nor prediction has it) is left out of its mean. For a network that gives an image: the
    mean absolute error, in units of the scaled target. Of several processes each predicts its share
    of the cases, and all get the same.

    Args:
        predictor: what predicts whole volumes, on this process's devices.
        member: the network.
        cases: with images, all of them in each process; each is read whole.
        spec: the network's.
        table: label value → class index, see `voxtune.engine.dataset.class_table`; None for a
            network that gives an image.
    """
    if not cases:
        return Validation({})
    classes = len(spec.classes)
    none = np.zeros(0, np.uint8)  # to learn the names of: a process may have no case
    names = [ERROR] if table is None else list(scores(count(none, none, classes)))
    mean = Mean.of(np.full((len(names), max(1, classes - 1)), math.nan))
    for case in cases[jax.process_index() :: jax.process_count()]:
        assert case.image is not None
        found, truth = predictor([member], case.image[:, :, :]), case.label[:, :, :]
        if table is None:
            error = np.nanmean(np.abs(found.channel(0) - truth[..., 0]))
            mean += Mean.of(np.array([[error]]))
            continue
        indices = class_indices(case, truth, table)
        values = scores(count(found.winners(spec.threshold), indices, classes))
        mean += Mean.of([values[name] for name in names])
    parts = zip(gathered(mean.total), gathered(mean.number), strict=True)
    means = functools.reduce(operator.add, (Mean(*each) for each in parts)).value()
    if table is None:
        return Validation({ERROR: {"mean": float(means[0, 0])}})
    rows = zip(names, means, strict=True)
    return Validation({name: _by_class(values, spec) for name, values in rows})


def _by_class(values: np.ndarray, spec: ModelSpec) -> dict[str, float]:
    names = [each.name for each in spec.classes[1:]]
    named = dict(zip(names, map(float, values), strict=True))
    if len(named) > 1 and np.isfinite(values).any():
        named["mean"] = float(np.nanmean(values))
    return named
