"""Traces: of the steps that are asked for, as far as they come."""

import contextlib
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from voxtune.engine.profile import Profile, steps_to_trace
from voxtune.models.errors import InputError


def test_both_ends_are_traced():
    assert list(steps_to_trace("3:5", 10)) == [3, 4, 5]
    assert list(steps_to_trace("10:10", 10)) == [10]
    assert not steps_to_trace(None, 10)


@pytest.mark.parametrize("text", ["x", "3", "3:", ":5", "3-5", "-1:3", "1:2:3", "1.5:3", "³:5", ""])
def test_other_texts_are_refused(text: str):
    with pytest.raises(InputError, match=r"--profile takes FIRST:LAST, such as 10:15; '.*' is not"):
        steps_to_trace(text, 10)


@pytest.mark.parametrize("text", ["15:10", "0:3", "5:11", "11:12"])
def test_steps_that_there_are_not_are_refused(text: str):
    with pytest.raises(
        InputError, match=f"--profile {text} is no range of steps from 1 to --steps"
    ):
        steps_to_trace(text, 10)


def test_the_command_refuses_before_it_reads(
    refused: Callable[..., str], finetune: Callable[..., list[str]], tmp_path: Path
):
    missing = tmp_path / "missing"
    assert "15:10" in refused(*finetune(missing, missing, "--profile", "15:10"))


def traced(folder: Path, asked: str, run: Sequence[int]) -> tuple[list[int], list[str]]:
    """The steps that a trace of a run has, and what was said."""
    said: list[str] = []
    pauses: list[int] = []

    @contextlib.contextmanager
    def paused():
        pauses.append(1)
        yield

    function = jax.jit(lambda x: x @ x)
    value = jnp.ones((8, 8))
    with Profile(steps_to_trace(asked, 100), folder, said.append, paused) as profile:
        for step in run:
            profile.begin(step)
            value = function(value)
            profile.end(value)
    found: list[int] = []
    for file in folder.rglob("perfetto_trace.json.gz"):
        assert str(file) in said[0]
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        found += [int(each["args"]["step_num"]) for each in events if each.get("name") == "train"]
        assert len(pauses) == 2
    return found, said


def test_the_steps_asked_for_are_traced(tmp_path: Path):
    found, said = traced(tmp_path, "3:5", range(1, 8))
    assert found == [3, 4, 5]
    assert len(said) == 1
    assert "steps 3 to 5" in said[0]
    assert list(tmp_path.rglob("*.xplane.pb"))  # XProf's


def test_a_run_that_ends_in_the_range_is_traced_to_its_end(tmp_path: Path):
    assert traced(tmp_path, "3:9", range(1, 5))[0] == [3, 4]


def test_a_run_that_goes_on_in_the_range_is_traced_from_there(tmp_path: Path):
    assert traced(tmp_path, "3:5", range(5, 8))[0] == [5]


def test_a_run_that_goes_on_behind_the_range_is_not_traced(tmp_path: Path):
    assert traced(tmp_path / "none", "3:5", range(6, 8)) == ([], [])
    assert not (tmp_path / "none").exists()


def test_what_follows_a_validation_is_a_trace_of_its_own(tmp_path: Path):
    said: list[str] = []
    with Profile(range(1, 4), tmp_path, said.append, contextlib.nullcontext) as profile:
        for step in (1, 2, 3):
            profile.begin(step)
            profile.end(jnp.ones(()) + step)
            if step == 2:
                profile.close()
    assert [each.partition(":")[0] for each in said] == [
        "wrote a trace of steps 1 to 2",
        "wrote a trace of steps 3 to 3",
    ]
    assert len(list(tmp_path.rglob("perfetto_trace.json.gz"))) == 2


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path: Path):
    (tmp_path / "plugins").write_text("")
    found, said = traced(tmp_path, "1:2", range(1, 4))
    assert found == []
    assert said[0].startswith("the trace of steps 1 to 2 cannot be written (")
