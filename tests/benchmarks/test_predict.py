"""The prediction benchmark: turns, their limits, and the check that all compute the same."""

import json
import subprocess
import sys

import numpy as np
import pytest

from voxtune.benchmarks.child import LateError
from voxtune.benchmarks.predict import Program, check, rows, scan_of

ANSWERS = """
import json, sys, time
print(json.dumps({"version": "1", "before": 0.5}), flush=True)
for answer in json.loads(sys.argv[1]):
    sys.stdin.readline()
    if answer == "sleep": time.sleep(60)
    if answer == "killed": import os; os.kill(os.getpid(), 9)
    if answer == "broken": sys.exit(3)
    print(json.dumps(answer), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def program():
    """Makes a program that gives these answers."""
    started = []

    def make(*answers):
        command = [sys.executable, "-c", ANSWERS, json.dumps(answers)]
        process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(Program("other", process))
        started[-1].load()
        return started[-1]

    yield make
    for each in started:
        each.end()


def seconds(compute, whole=9.0, peak=1.0):
    return {"compute": compute, "whole": whole, "peak": peak}


def test_medians_leave_the_first_turn_out(program):
    several = program(seconds(50.0), seconds(1.0, 2.0), seconds(3.0, 4.0, peak=2.5))
    for _ in range(3):
        several.turn(None)
    assert several.medians() == (2.0, 3.0)
    assert several.peak == 2.5
    single = program(seconds(5.0))
    single.turn(None)
    assert single.medians() == (5.0, 9.0)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("sleep", "stopped after 0 s"),
        ("killed", "out of memory"),
        ({"problem": "out of memory"}, "out of memory"),
    ],
)
def test_a_program_that_fails_has_a_row_that_says_why(program, tmp_path, answer, problem):
    failing = program(answer)
    failing.turn(0.2 if answer == "sleep" else None)
    assert failing.problem == problem
    assert rows([failing], tmp_path) == [("other", problem, "", "", "", "")]


def test_a_program_that_breaks_is_no_result(program):
    with pytest.raises(RuntimeError, match="status 3"):
        program("broken").turn(None)


def test_a_late_answer_is_told_from_an_end(program):
    with pytest.raises(LateError):
        program("sleep").ask("predict", 0.2)


def test_different_probabilities_are_refused(program, tmp_path):
    one, other = program(), program()
    one.name = "voxtune"
    np.save(tmp_path / "voxtune.npy", np.zeros((2, 2, 2, 1)))
    np.save(tmp_path / "other.npy", np.full((2, 2, 2, 1), 5e-4))
    check(tmp_path, [one, other])
    np.save(tmp_path / "other.npy", np.full((2, 2, 2, 1), np.nan))
    with pytest.raises(RuntimeError, match="other does not compute what voxtune does"):
        check(tmp_path, [one, other])


def test_the_scan_has_structures_of_all_intensities():
    scan = scan_of(40)
    assert scan.shape == (40, 40, 40)
    assert scan.dtype == np.int16
    assert 20 < scan.std() < 200
