"""Scores of a validation by hand."""

import dataclasses
import math
import warnings
from typing import Any, cast

import numpy as np
import pytest

from voxtune.engine import validation
from voxtune.engine.case import Case, Quantised, contents_of
from voxtune.engine.contract import Contract
from voxtune.engine.dataset import class_table
from voxtune.engine.model_dir import LabelClass, ModelSpec
from voxtune.engine.predicted import Predicted
from voxtune.engine.predictor import Member
from voxtune.engine.step import Apply
from voxtune.engine.validation import Validation, validate
from voxtune.models.errors import InputError

CLASSES = (LabelClass(0, "background"), LabelClass(7, "blob"), LabelClass(9, "other"))
SPEC = ModelSpec(
    family="meshnet",
    arguments={"outputs": 3},
    output_activation="softmax",
    classes=CLASSES,
    contract=Contract("LIA", (1.0, 1.0, 1.0), "zscore", (8, 8, 8)),
)


TABLE = class_table(CLASSES)
MEMBER = Member(cast(Apply, None), {}, {})
ECHO: Any = lambda members, image: Predicted.of(image)  # noqa: E731
IGNORED = 255  # a label value that is no class


def stored(values: np.ndarray) -> Quantised:
    """Values `[D, H, W, C]`, in 16 bits as a fifth of them."""
    ones = np.ones(values.shape[-1], np.float32)
    return Quantised((values / 5).astype(np.float16), 5 * ones, 0 * ones)


def case(image: np.ndarray, label: Any) -> Case:
    shape = image.shape[:3]
    counts = contents_of(label)[0] if isinstance(label, np.ndarray) else {}
    about: Any = (np.eye(4), counts, {}, {}, shape, (1.0, 1.0, 1.0))
    return Case("a", None, stored(image), label, *about)


def classified(predicted: list[int], label: list[int]) -> Case:
    """A case whose image is what is predicted, as one-hot classes; label values 0, 7 and 9."""
    return case(np.eye(3)[predicted].reshape(1, 1, -1, 3), np.uint8(label).reshape(1, 1, -1))


class TestValidation:
    """Dice by hand, with a predictor that answers with what it is shown."""

    def scores(self, *pairs: tuple[list[int], list[int]]) -> dict[str, float]:
        cases = [
            classified(predicted, [(0, 7, 9)[each] if each < 3 else each for each in label])
            for predicted, label in pairs
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = validate(ECHO, MEMBER, cases, SPEC, TABLE)
        return dict(found.scores.get("dice", {}))

    def test_mean_of_cases_then_of_classes(self) -> None:
        """blob: 2·1/(2+1) = 2/3 and 1; other: 1 and, being nowhere in the second, left out."""
        found = self.scores(([0, 1, 1, 2], [0, 0, 1, 2]), ([0, 1, 0, 0], [0, 1, 0, 0]))
        assert found == pytest.approx({"blob": 5 / 6, "other": 1.0, "mean": 11 / 12})

    def test_processes_share_the_cases(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two cases and three processes, one after the other here: the last one has none."""
        pairs = ([0, 1, 1, 2], [0, 0, 1, 2]), ([0, 1, 0, 0], [0, 1, 0, 0])
        wanted = self.scores(*pairs)
        given: list[list[np.ndarray]] = []
        monkeypatch.setattr(validation.jax, "process_count", lambda: 3)
        for rank in (0, 1, 2):
            given.append([])
            monkeypatch.setattr(validation.jax, "process_index", lambda rank=rank: rank)
            monkeypatch.setattr(validation, "gathered", lambda x: given[-1].append(x) or x[None])
            self.scores(*pairs)
        parts = iter(np.stack(each) for each in zip(*given, strict=True))
        monkeypatch.setattr(validation, "gathered", lambda x: next(parts))
        assert self.scores(*pairs) == pytest.approx(wanted)

    def test_what_is_no_class_is_not_judged(self) -> None:
        found = self.scores(([1, 1, 2, 2], [1, IGNORED, IGNORED, 2]))
        assert found == pytest.approx({"blob": 1.0, "other": 1.0, "mean": 1.0})

    def test_a_damaged_label_is_a_sentence(self) -> None:
        one = classified([1, 1, 2, 2], [1, IGNORED, IGNORED, 2])
        assert isinstance(one.label, np.ndarray)
        one.label[0, 0, 0] = 77
        with pytest.raises(InputError, match=r"does not list \(77\): the store is damaged"):
            validate(ECHO, MEMBER, [one], SPEC, TABLE)

    def test_a_class_that_is_nowhere_has_no_dice(self) -> None:
        found = self.scores(([0, 1], [0, 1]))
        assert math.isnan(found["other"])
        assert found["mean"] == 1

    def test_no_class_anywhere_is_no_warning(self) -> None:
        found = self.scores(([0, 0], [0, 0]))
        assert all(math.isnan(value) for value in found.values())

    def test_no_case_no_score(self) -> None:
        assert self.scores() == {}

    def test_all_metrics_of_all_classes(self) -> None:
        """blob: one of two predicted is right, one of one true is found; volume twice as large."""
        cases = [classified([1, 1, 0], [7, 0, 0])]
        found = validate(ECHO, MEMBER, cases, SPEC, TABLE).scores
        blob = {metric: values["blob"] for metric, values in found.items()}
        wanted = {"dice": 2 / 3, "jaccard": 1 / 2, "precision": 1 / 2, "recall": 1.0}
        assert blob == pytest.approx(wanted | {"volume_difference": 1.0})

    def test_an_image_is_judged_by_its_error_where_the_target_is_known(self) -> None:
        """Errors 5 and 15 and one unknown in the first scan, 0 in the second."""
        spec = dataclasses.replace(SPEC, classes=(), output_activation="linear")
        target = stored(np.float32([[[[5], [10], [np.nan]]]]))
        cases = [
            case(np.float32([[[[10], [25], [7]]]]), target),
            case(np.float32([[[[5], [10], [7]]]]), target),
        ]
        found = validate(ECHO, MEMBER, cases, spec, None)
        assert found.scores == {"mean_absolute_error": {"mean": 5.0}}
        assert found.monitored("dice") == -5
        assert found.line() == "mean absolute error 5.000"


class TestMonitoring:
    def test_of_several_classes_the_mean(self) -> None:
        found = Validation({"dice": {"a": 0.2, "b": 0.4, "mean": 0.3}, "recall": {"a": 1.0}})
        assert found.monitored("dice") == 0.3
        assert found.monitored("recall") == 1.0

    def test_nothing_measured(self) -> None:
        assert math.isnan(Validation({}).monitored("dice"))
        assert Validation({}).line() == "nothing measured"

    def test_its_line(self) -> None:
        assert Validation({"dice": {"a": 0.25, "b": 1.0}}).line() == "Dice a 0.250  b 1.000"
