"""TensorBoard's files, read by TensorBoard."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from voxtune.engine.run_dir import Log
from voxtune.engine.tensorboard import numbers


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag → steps and values."""
    found = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(each.step, each.value) for each in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_nested_numbers_have_paths_and_words_are_left_out():
    values = {"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "f": "word", "g": ["list"], "h": True}
    assert dict(numbers(values)) == {"a": 1.0, "b/c": 2.5, "b/d/e": 3.0}


def test_it_gets_what_the_log_gets(tmp_path: Path):
    with Log(tmp_path / "metrics.jsonl", tensorboard=True) as log:
        log.write(event="train", step=2, loss=0.5, dice={"lesion": 0.25})
        log.write(event="skipped", step=3, subjects=["a"])
        log.write(event="validation", step=4, dice={"lesion": 0.75})
    assert read(tmp_path / "tensorboard") == {
        "train/loss": [(2, 0.5)],
        "train/dice/lesion": [(2, 0.25)],
        "validation/dice/lesion": [(4, 0.75)],
    }
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("again", [0, 4])
def test_what_comes_after_the_checkpoint_is_not_there_twice(tmp_path: Path, again: int):
    """A killed run, which has not closed its file, goes on from a checkpoint or from its start."""
    killed = Log(tmp_path / "metrics.jsonl", tensorboard=True)
    for step in (2, 4, 6, 8):
        killed.write(event="train", step=step, loss=step)
    with Log(tmp_path / "metrics.jsonl", tensorboard=True, step=again) as log:
        for step in range(again + 2, 12, 2):
            log.write(event="train", step=step, loss=100 + step)
    found = read(tmp_path / "tensorboard")["train/loss"]
    assert found == [(step, step + 100 * (step > again)) for step in (2, 4, 6, 8, 10)]
    killed.close()


def test_without_it_no_file_is_written(tmp_path: Path):
    with Log(tmp_path / "metrics.jsonl") as log:
        log.write(event="train", step=1, loss=1.0)
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_where_it_is_missing_the_command_says_so_before_it_reads(
    refused: Callable[..., str],
    finetune: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    found = importlib.util.find_spec
    missing = tmp_path / "missing"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else found(name)
    )
    said = refused(*finetune(missing, missing, "--tensorboard"))
    assert "pip install 'voxtune[tensorboard]'" in said
