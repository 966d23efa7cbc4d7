"""How far a run is, written and read again."""

import json
import math
from typing import Any

import numpy as np
import pytest

from voxtune.engine.metrics import Counts
from voxtune.engine.progress import Best, Progress
from voxtune.engine.validation import Validation
from voxtune.models.errors import InputError


def counts(*numbers: int) -> Counts:
    each = np.array(numbers, np.int32)
    return Counts(each, 2 * each, 3 * each)


def read_again(progress: Progress) -> Progress:
    return Progress.of_json(json.loads(json.dumps(progress.to_json())), 2)


def test_all_of_it_comes_back():
    dice = Validation({"dice": {"lesion": 1 / 3, "rare": math.nan}})
    best, made_of = Best(4, -math.inf, 4, 3, dice), {"options": {"seed": 1}}
    found = read_again(Progress(7, 2, dice, best, "it diverged", made_of))
    assert found.given_up == "it diverged"
    assert (found.step, found.skipped, found.made_of) == (7, 2, {"options": {"seed": 1}})
    assert (found.best.step, found.best.value) == (4, -math.inf)
    assert (found.best.since, found.best.stale) == (4, 3)
    for each in (found.last, found.best.validation):
        assert each.scores["dice"]["lesion"] == 1 / 3
        assert math.isnan(each.scores["dice"]["rare"])


def test_a_new_one_comes_back():
    assert read_again(Progress()) == Progress()


def test_what_was_counted_since_the_last_line_is_counted_on():
    """Written between two lines, once, twice or never: the next line is the same."""
    classes, parts = ("background", "lesion"), [counts(5, 1), counts(2, 7), counts(0, 4)]
    whole, broken = Progress(), Progress()
    for part in parts:
        whole.add(part)
        broken.add(part)
        broken = read_again(broken)
    wanted = whole.dice(classes)
    assert wanted["dice"]["lesion"] == pytest.approx(2 * 12 / (5 * 12))
    assert broken.dice(classes) == wanted
    assert read_again(broken).dice(classes) == {}


def test_writing_changes_nothing():
    progress = Progress()
    progress.add(counts(5, 1))
    progress.add(counts(2, 7))
    assert progress.to_json() == progress.to_json()


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": None},
        {"step": -1},
        {"last": 3},
        {"last": {"dice": {"lesion": "x"}}},
        {"best": {}},
        {"best": None},
        {"best": {**Progress().to_json()["best"], "value": "x"}},
        {"best": {**Progress().to_json()["best"], "stale": None}},
        {"counts": [{}]},
        {"counts": [{"overlap": [1, 2], "predicted": [1, 2], "true": [1, 2, 3]}]},
        {"counts": [{"overlap": [2**70, 2], "predicted": [1, 2], "true": [1, 2]}]},
        {"made_of": 1},
        {"made_of": {"options": []}},
    ],
)
def test_what_it_did_not_write_is_a_sentence(wrong: dict[str, Any]):
    with pytest.raises(InputError, match="does not say how far its run was"):
        Progress.of_json({**Progress().to_json(), **wrong}, 2)
    with pytest.raises(InputError, match="of another version"):
        Progress.of_json({"step": 3}, 2)
