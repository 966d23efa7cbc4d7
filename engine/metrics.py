"""How well predicted classes agree with labels, as states that merge and are scored once.

Counts of voxels add up over blocks, batches, devices and processes, and scores are computed of the
sum. Where each scan is to count alike, its scores are averaged instead (`Mean`).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from voxtune.engine.case import IGNORE


@partial(
    jax.tree_util.register_dataclass, data_fields=["overlap", "predicted", "true"], meta_fields=[]
)
@dataclass(frozen=True)
class Counts:
    """Voxels of each class, background first: three arrays of integers `[K]`.

    Attributes:
        overlap: both predicted and true.
        predicted: predicted.
        true: true.
    """

    overlap: Any
    predicted: Any
    true: Any

    def __add__(self, other: "Counts") -> "Counts":
        """Of both together: int64 on the host, or inside a compiled function of its arrays' type.

        On a device counts are int32, which holds a batch but not a large set of scans.
        """
        return jax.tree.map(_sum, self, other)


@partial(jax.tree_util.register_dataclass, data_fields=["total", "number"], meta_fields=[])
@dataclass(frozen=True)
class Mean:
    """A mean of arrays, each element by itself, that leaves out what is not finite.

    Attributes:
        total: sum of the finite values, float64 `[...]`.
        number: how many these are, int64 `[...]`.
    """

    total: np.ndarray
    number: np.ndarray

    @classmethod
    def of(cls, values: Any) -> "Mean":
        """The mean of one array, `[...]`."""
        values = np.asarray(values, np.float64)
        finite = np.isfinite(values)
        return cls(np.where(finite, values, 0.0), finite.astype(np.int64))

    def __add__(self, other: "Mean") -> "Mean":
        """Of the values of both."""
        return Mean(self.total + other.total, self.number + other.number)

    def value(self) -> np.ndarray:
        """The mean, float64 `[...]`; NaN where no value was finite."""
        return _ratio(self.total, self.number)


def count(predicted: Any, label: Any, classes: int) -> Counts:
    """Voxels of each class, those to be ignored left out.

    Args:
        predicted: class indices, integers of any shape.
        label: class indices of the same shape, or `IGNORE`.
        classes: their number, background included.

    Returns:
        int32 of JAX's arrays, traced or not, whose scans may be split over devices; int64 of
        NumPy's.
    """
    xp: Any = jnp if isinstance(predicted, Array) or isinstance(label, Array) else np
    nowhere = xp.int32(classes)
    predicted = xp.where(label == IGNORE, nowhere, predicted)
    return Counts(
        overlap=_histogram(xp.where(predicted == label, predicted, nowhere), classes),
        predicted=_histogram(predicted, classes),
        true=_histogram(xp.where(label == IGNORE, nowhere, label), classes),
    )


def scores(counts: Counts) -> dict[str, np.ndarray]:
    """How well each class but background agrees, float64 `[K - 1]`; NaN where undefined.

    With P the predicted voxels and T the true ones:

    - `dice`, 2 |P ∩ T| / (|P| + |T|), and `jaccard`, |P ∩ T| / |P ∪ T|: undefined where both are
      empty, 0 where one is;
    - `precision`, |P ∩ T| / |P|: undefined where nothing is predicted;
    - `recall`, |P ∩ T| / |T|, and `volume_difference`, (|P| - |T|) / |T|: undefined where nothing
      is true.
    """
    overlap, predicted, true = (
        np.asarray(each, np.int64)[1:] for each in (counts.overlap, counts.predicted, counts.true)
    )
    return {
        "dice": _ratio(2 * overlap, predicted + true),
        "jaccard": _ratio(overlap, predicted + true - overlap),
        "precision": _ratio(overlap, predicted),
        "recall": _ratio(overlap, true),
        "volume_difference": _ratio(predicted - true, true),
    }


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, jax.core.Tracer) or isinstance(other, jax.core.Tracer):
        return one + other
    return np.asarray(one, np.int64) + np.asarray(other, np.int64)


def _histogram(values: Any, classes: int) -> Any:
    """How often each of 0 to `classes` - 1 is there, `[K]`."""
    if isinstance(values, np.ndarray):
        return np.bincount(values.ravel(), minlength=classes)[:classes]
    # Comparing splits over devices as the volume does, where counting by index would gather it.
    same = values[..., None] == jnp.arange(classes)
    return same.sum(tuple(range(values.ndim)), dtype=jnp.int32)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Their quotient, NaN where the denominator is zero."""
    defined = denominator != 0
    return np.where(defined, numerator / np.where(defined, denominator, 1), np.nan)
