"""Programs in processes of their own: what they answer, how they end, and whose turn it is."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from voxtune.benchmarks import program as module
from voxtune.benchmarks.program import LateError, Program, running, take_turns

# Says hello, then one answer a line; what is no answer happens to it instead.
SCRIPT = r"""
import json, os, subprocess, sys, time
hello, *answers = json.loads(sys.argv[1])
print(json.dumps(hello), flush=True)
for answer in answers:
    if not sys.stdin.readline():
        break
    match answer:
        case "sleeps":
            time.sleep(60)
        case "is killed":
            os.kill(os.getpid(), 9)
        case "aborts":
            os.kill(os.getpid(), 6)
        case "breaks":
            print("a warning\n\nOSError: '/home/me/lib.so' is missing\n", file=sys.stderr)
            sys.exit(3)
        case "ends":
            sys.exit()
        case "warns":
            sys.stderr.write("a warning\n" * 100_000)  # more than a pipe holds
            print(json.dumps({"seconds": 1.0}), flush=True)
        case "works":
            print(json.dumps({"worker": subprocess.Popen(["sleep", "60"]).pid}), flush=True)
        case "shares":
            from multiprocessing.shared_memory import SharedMemory
            kept = SharedMemory(create=True, size=8)
            print(json.dumps({"memory": kept.name}), flush=True)
        case "stays":
            print(json.dumps({"seconds": 1.0}), flush=True)
            time.sleep(60)
        case _:
            print(json.dumps(answer), flush=True)
sys.stdin.readline()
"""
HELLO = {"version": "1"}
Make = Callable[..., Program]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes a program that says hello and gives these answers."""
    (tmp_path / "answers.py").write_text(SCRIPT)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "program.py"))
    monkeypatch.setattr(module, "PAUSE", 0.0)
    with running() as started:

        def start(*answers: Any, name: str = "peer", hello: dict[str, str] = HELLO) -> Program:
            script = ("answers.py", json.dumps([hello, *answers]))
            started.append(Program.start(name, sys.executable, *script))
            started[-1].load(20)
            return started[-1]

        yield start


def seconds(*values: float) -> list[dict[str, float]]:
    return [{"seconds": value} for value in values]


def is_there(number: int) -> bool:
    """Whether a process is, and has not ended."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def is_gone_soon(number: int) -> bool:
    ends = time.monotonic() + 10
    while is_there(number) and time.monotonic() < ends:
        time.sleep(0.02)
    return not is_there(number)


# One program


def test_a_program_says_what_it_is_and_what_each_turn_took(make: Make) -> None:
    program = make({"seconds": 2.0, "memory": 5}, {"seconds": 3.0})
    program.turn()
    program.turn(20)
    assert program.hello == HELLO
    assert program.turns == [{"seconds": 2.0, "memory": 5}, {"seconds": 3.0}]
    assert program.problem == ""


def test_a_program_whose_framework_is_missing_takes_no_turn(make: Make) -> None:
    program = make(hello={"missing": "No module named 'torch'"})
    assert program.problem == "No module named 'torch'"
    take_turns([program], 3)
    assert program.turns == []
    assert program.process.returncode is not None


@pytest.mark.parametrize(
    ("answer", "limit", "problem"),
    [
        ("sleeps", 0.2, "stopped after 0 s"),
        ("is killed", None, "out of memory"),
        ("aborts", None, "ended by signal 6"),
        ({"problem": "no 3D kernels"}, None, "no 3D kernels"),
    ],
)
def test_a_program_that_fails_says_why_and_has_ended(
    make: Make, answer: Any, limit: float | None, problem: str
) -> None:
    program = make({"seconds": 1.0}, answer)
    program.turn()
    program.turn(limit)
    assert (program.problem, program.turns) == (problem, seconds(1.0))
    assert program.process.returncode is not None


def test_that_one_breaks_is_a_problem_with_its_last_line_without_folders(make: Make) -> None:
    program = make("breaks")
    program.turn()
    assert program.problem == "broke: OSError: '.../lib.so' is missing"
    program = make("ends", name="voxtune")
    program.turn()
    assert program.problem == "broke: status 0"
    assert program.problem.startswith(module.CRASHES)
    program = make("aborts")
    program.turn()
    assert program.problem.startswith(module.CRASHES)


def test_a_late_answer_is_told_from_an_end(make: Make) -> None:
    with pytest.raises(LateError):
        make("sleeps").ask("turn", 0.2)
    late = make("sleeps")
    late.turn(0.2)
    assert (late.stopped, late.problem) == (0.2, "stopped after 0 s")
    assert make({"problem": "out of memory"}).stopped is None


def test_what_a_program_writes_beside_its_answers_does_not_stop_it(make: Make) -> None:
    program = make("warns")
    program.turn(20)
    assert program.turns == seconds(1.0)


# Their ends


def test_workers_of_a_program_end_with_it(make: Make) -> None:
    program = make("works")
    program.turn()
    worker = program.turns[0]["worker"]
    assert is_there(worker)
    program.end()
    assert is_gone_soon(worker)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="shared memory has no folder here")
@pytest.mark.parametrize("at_work", [False, True])
def test_no_shared_memory_is_left(make: Make, at_work: bool) -> None:
    program = make("shares")
    program.turn()
    memory = Path("/dev/shm", program.turns[0]["memory"])
    assert memory.exists()
    program.waits = not at_work
    program.end()
    assert program.process.returncode == (-signal.SIGKILL if at_work else 0)
    assert not memory.exists()


def test_one_that_does_not_end_is_killed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.1)
    program = make("stays")
    program.turn()
    program.end()
    assert program.process.returncode == -signal.SIGKILL


def test_one_that_is_at_work_gets_no_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float | None] = []
    wait = subprocess.Popen.wait

    def waited(process: subprocess.Popen[str], timeout: float | None = None) -> int:
        timeouts.append(timeout)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", waited)
    program = make()
    program.waits = False
    program.end()
    assert timeouts == [None]


def test_ending_twice_reaches_no_other_process(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    program = make()
    program.end()
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("its number may be another's"))
    program.end()


def test_all_have_ended_where_one_cannot_be_started(make: Make) -> None:
    one, other = make(), make()

    def start() -> Iterator[Program]:
        yield one
        yield Program.start("third", "/missing", "answers.py")

    with pytest.raises(FileNotFoundError), running(start()):
        pass
    with running() as programs:
        programs.append(other)
    assert [each.process.returncode for each in (one, other)] == [0, 0]


PARENT = """
import json, signal, sys
from voxtune.benchmarks import program
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and so does nohup with this
program.__file__ = sys.argv[1]
answers = json.dumps([{"version": "1"}, {"seconds": 1.0}, "sleeps"])
def start():
    started = program.Program.start("peer", sys.executable, "answers.py", answers)
    print(started.process.pid, flush=True)
    return started
with program.ended_when_told(), program.running(start() for _ in range(2)) as programs:
    for each in programs:
        each.load()
        each.turn()
    print("sleeps", flush=True)
    programs[0].turn()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_no_program_outlives_one_that_is_told_to_end(tmp_path: Path, number: int) -> None:
    (tmp_path / "answers.py").write_text(SCRIPT)
    command = [sys.executable, "-c", PARENT, str(tmp_path / "program.py")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe) as parent:
        assert parent.stdout
        *started, _ = (parent.stdout.readline().strip() for _ in range(3))
        assert all(is_there(int(each)) for each in started)
        parent.send_signal(number)
        _, said = parent.communicate(timeout=20)
    assert parent.returncode == (-number if number == signal.SIGINT else 128 + number)
    assert not any(is_there(int(each)) for each in started)
    assert "KeyboardInterrupt" in said if number == signal.SIGINT else not said


# Turns


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None]]:
    """Whose turn it was, one after the other, and how long it may have taken."""
    found: list[tuple[str, float | None]] = []
    turn = Program.turn

    def watched(program: Program, limit: float | None = None) -> None:
        found.append((program.name, limit))
        turn(program, limit)

    monkeypatch.setattr(Program, "turn", watched)
    return found


def test_programs_take_turns_and_those_that_warm_up_are_among_them(
    make: Make, taken: list[tuple[str, float | None]]
) -> None:
    one, other = (make(*seconds(0, 1, 2, 3), name=name) for name in ("one", "other"))
    take_turns([one, other], turns=2, warm=1)
    assert taken == [("one", module.STARTING), ("other", module.STARTING)] * 4
    assert one.turns == other.turns == seconds(0, 1, 2, 3)


def test_a_program_with_a_problem_takes_no_further_turns_and_others_do(make: Make) -> None:
    one = make(*seconds(1.0, 1.0, 1.0))
    other = make(*seconds(1.0), {"problem": "out of memory"})
    take_turns([one, other], turns=2, warm=0)
    assert (len(one.turns), len(other.turns)) == (3, 1)
    assert other.problem == "out of memory"


def test_a_program_is_late_by_the_fastest_turn_of_the_first(
    make: Make, taken: list[tuple[str, float | None]]
) -> None:
    one, other = make(*seconds(90.0, 4.0, 3.0)), make(*seconds(1.0, 1.0, 1.0), name="other")
    take_turns([one, other], turns=2, warm=0, late=10)
    assert [limit for name, limit in taken if name == "other"] == [module.STARTING, 40.0, 30.0]
    assert {limit for name, limit in taken if name == "peer"} == {module.STARTING}
