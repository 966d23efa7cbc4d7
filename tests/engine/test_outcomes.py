"""What came of a network is read from its files, which may be damaged."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from voxtune.engine.arms import Design, Trial
from voxtune.engine.config import Study
from voxtune.engine.outcomes import read_outcome, read_scores, read_seconds
from voxtune.engine.score import Score
from voxtune.engine.score_summary import summarise
from voxtune.engine.score_table import write_table
from voxtune.engine.trials import scores_of
from voxtune.models.errors import InputError

ROWS = [
    Score("s1", 1, "one", 0.8, hd95_mm=3.0),
    Score("s1", 2, "two", 0.6, hd95_mm=5.0),
    Score("s2", 1, "one", 0.9, hd95_mm=1.0),
    Score("s2", 2, "two", 0.0),  # in one map alone
    Score("s3", 1, "one", 0.7, hd95_mm=6.0),
    Score("s3", 2, "two"),  # in neither
]
LOG = [
    {"event": "compiled", "step": 0, "seconds": 9.0},
    {"event": "train", "step": 10, "examples_per_second": 4.0},
    {"event": "validation", "step": 10, "dice": {"one": 0.2, "two": 0.4, "mean": 0.3}},
    {"event": "train", "step": 25, "examples_per_second": 2.0},
    {"event": "validation", "step": 25, "dice": {"one": None, "two": None}},
]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Trial, Study]:
    """A study with the files of one network."""
    study = Study(model=tmp_path, data="subjects.csv", out=tmp_path, sizes="4", seeds=1)
    trial = Design.of(study).trials(study, {})[0]
    scores, run = scores_of(trial, study), trial.config.run_dir
    for folder in (scores.parent, run):
        folder.mkdir(parents=True)
    write_table(scores, ROWS, summarise(ROWS), {})
    write_log(run, LOG)
    config = {"folder": "", "command": "", "options": {}, "versions": {}, "classes": []}
    config |= {"batch": 2, "block": [8, 8, 8], "train": [], "validation": []}
    (run / "config.json").write_text(json.dumps(config))
    return trial, study


def write_log(run: Path, lines: list[dict[str, Any]]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_all_that_is_read(places: tuple[Trial, Study]) -> None:
    found = read_outcome(*places)
    assert (found.arm, found.size, found.seed, found.factor) == ("pretrained", 4, 0, 1)
    assert found.dice == pytest.approx({"s1": 0.7, "s2": 0.45, "s3": 0.7})
    # Of s2 a class is missed entirely; of s3 it is not there.
    assert found.hd95_mm == pytest.approx({"s1": 4.0, "s2": math.nan, "s3": 6.0}, nan_ok=True)
    assert found.curve[0] == (10, 0.3)
    assert found.curve[1][0] == 25
    assert math.isnan(found.curve[1][1])
    assert found.seconds == pytest.approx(10 * 2 / 4 + 15 * 2 / 2)
    assert found.compile_seconds == 9
    told = read_seconds(places[0].config.run_dir)
    assert told == pytest.approx((found.seconds, 9))


def test_the_only_class_is_the_mean(places: tuple[Trial, Study]) -> None:
    line = {"event": "validation", "step": 5, "dice": {"one": 0.25}}
    write_log(places[0].config.run_dir, [line])
    found = read_outcome(*places)
    assert found.curve == [(5, 0.25)]
    assert math.isnan(found.seconds)


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["subjects"][0].update({key: value})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda document: document.update(format="voxtune evaluation 0"), "its format is no"),
        (lambda document: document.update(subjects=[]), "no subjects"),
        (lambda document: document.update(subjects=[3]), "no object"),
        (lambda document: document["subjects"].append(document["subjects"][0]), "twice"),
        (lambda document: document["subjects"][0].pop("dice"), "no 'dice'"),
        (_set("dice", 1.5), "no number that it can be"),
        (_set("dice", math.nan), "no number that it can be"),
        (_set("dice", True), "no number that it can be"),
        (_set("hd95_mm", 10**400), "no number that it can be"),
        (_set("hd95_mm", -1.0), "no number that it can be"),
        (_set("subject", None), "no name"),
        (_set("subject", "s\x1b[2J"), "control characters"),
        (_set("value", 1.0), "no value"),
        (_set("class", "two"), "one name for several"),
    ],
)
def test_damaged_scores(
    places: tuple[Trial, Study], damage: Callable[[dict[str, Any]], None], words: str
) -> None:
    path = scores_of(*places)
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=words) as caught:
        read_outcome(*places)
    assert str(caught.value).startswith(f"{path} is no table of scores")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_scores_that_are_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match="is no table of scores"):
        read_scores(tmp_path / "x.json")
    with pytest.raises(InputError, match="is no table of scores"):
        read_scores(tmp_path / "none.json")


def test_scores_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as stream:
        stream.truncate(2**40)  # takes no room
    with pytest.raises(InputError, match="larger than"):
        read_scores(tmp_path / "x.json")


@pytest.mark.parametrize(
    "content", [b"{", b"3\n", b'{"event": "train"}\n', b'{"step": 1e400}\n', b'{"step": -1}\n']
)
def test_damaged_log(places: tuple[Trial, Study], content: bytes) -> None:
    (places[0].config.run_dir / "metrics.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.jsonl is no log of a run"):
        read_outcome(*places)


def test_odd_values_of_a_log_are_undefined(places: tuple[Trial, Study]) -> None:
    odd = [
        {"event": "compiled", "step": 0, "seconds": "9"},
        {"event": "train", "step": 10, "examples_per_second": -1},
        {"event": "validation", "step": 10, "dice": {"mean": "0.5"}},
        {"event": "validation", "step": 20, "dice": [0.5]},
        {"event": "validation", "step": 30, "mean_absolute_error": {"mean": 0.5}},
    ]
    write_log(places[0].config.run_dir, odd)
    found = read_outcome(*places)
    assert [step for step, _ in found.curve] == [10]
    assert math.isnan(found.curve[0][1])
    assert math.isnan(found.seconds)
    assert math.isnan(found.compile_seconds)


def test_what_is_missing_is_named(places: tuple[Trial, Study]) -> None:
    trial, study = places
    elsewhere = replace(trial.config, run_dir=trial.config.run_dir.with_name("none"))
    with pytest.raises(InputError, match=r"none\.json is no table"):
        read_outcome(replace(trial, config=elsewhere), study)
    (trial.config.run_dir / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"metrics\.jsonl is no log"):
        read_outcome(trial, study)
