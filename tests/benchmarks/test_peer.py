"""How programs that train take turns, without any framework."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.benchmarks import peer

PROGRAM = """
from pathlib import Path
import numpy as np
from voxtune.benchmarks.turns import Training, take_turns

done = 0
held = 1

def run(steps):
    global done
    done += steps
    return {loss}

def floor():
    global held
    held = 9
    return 7.0

def make():
    {make}
    kept = lambda: {{"a.b:kernel": np.full(2, done)}}
    about = dict(floor=floor, notes=("slowly",), parameters=kept)
    return Training(run, memory=lambda: held, **about)

take_turns(("json",), make, {{}}, Path({kept!r}) if {kept!r} else None)
"""


def said(
    turns: int, loss: str = "float(steps)", make: str = "pass", kept: str = ""
) -> list[dict[str, Any]]:
    """What a program says that does nothing in no time."""
    code = PROGRAM.format(loss=loss, make=make, kept=kept)
    done = subprocess.run(
        (sys.executable, "-c", code), input="turn\n" * turns, capture_output=True, text=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [*found, {"status": done.returncode}]


@pytest.mark.parametrize("script", ["peer.py", "predict_peer.py"])
def test_they_need_no_voxtune(script: str) -> None:
    path = str(Path(peer.__file__).with_name(script))
    code = f"import runpy, sys; sys.modules['voxtune'] = None; runpy.run_path({path!r})"
    subprocess.run((sys.executable, "-P", "-c", code), check=True)


def test_turns() -> None:
    hello, *turns, _ = said(4)
    assert hello == {"version": f"json {json.__version__}, slowly", "platform": "cpu"}
    # As many steps from the third on as are allowed, for these take no time.
    assert [each["loss"] for each in turns] == [1, 1, 1000, 1000]
    # What the floor holds comes after the memory of the first turns.
    assert [each["memory"] for each in turns] == [1, 1, 1, 9]
    assert [each.get("floor") for each in turns] == [None, None, 7, 7]


def test_parameters_are_saved_after_the_first_step(tmp_path: Path) -> None:
    kept = peer.stepped(str(tmp_path / "arrays.npz"), "Some program")
    said(3, kept=str(kept))
    with np.load(kept) as arrays:
        np.testing.assert_array_equal(arrays["a.b:kernel"], [1, 1])


@pytest.mark.parametrize(
    "error",
    [
        "MemoryError()",
        "RuntimeError('RESOURCE_EXHAUSTED: no room')",
        "ValueError('array is too big; so much')",
    ],
)
def test_what_does_not_fit_into_memory_is_a_problem(error: str) -> None:
    assert said(1, make=f"raise {error}") == [{"missing": "out of memory"}, {"status": 0}]


def test_what_breaks_is_none() -> None:
    assert said(1, make="raise ValueError('a mistake')") == [{"status": 1}]


@pytest.mark.parametrize("loss", ["nan", "inf"])
def test_a_loss_that_is_not_finite_is_a_problem(loss: str) -> None:
    _, told, _ = said(2, loss=f"float('{loss}')")
    assert told == {"problem": "its loss is not finite"}


def test_cores_where_the_system_does_not_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peer.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert peer.cores() == 3
