"""Being told to end, once and twice."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from voxtune.engine.loop import PreemptedError
from voxtune.engine.preemption import Preemption


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What hears SIGTERM outside of any run."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def test_the_step_after_the_signal_is_the_last(heard: list[int]):
    def run() -> None:
        with Preemption() as preemption:
            assert not preemption.stops()
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.stops()
            assert preemption.stops()
            # The system ends the process at the second one, whatever Python is busy with.
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            raise PreemptedError(3)

    with pytest.raises(PreemptedError):
        run()
    assert heard == []
    os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_who_runs_several_hears_of_it_where_the_last_step_was_done_already(heard: list[int]):
    """Or a study would go on with the next network."""
    with Preemption() as preemption:
        preemption.stops()
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == []
    assert heard == [signal.SIGTERM]


def test_another_thread_leaves_the_signal_alone(heard: list[int]):
    stops: list[bool] = []

    def run() -> None:
        with Preemption() as preemption:
            preemption.stops()
            os.kill(os.getpid(), signal.SIGTERM)
            stops.append(preemption.stops())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert stops == [False]
    assert heard == [signal.SIGTERM]


_CHILD = """
import os, signal
from voxtune.engine.preemption import Preemption

def told(before):
    child = os.fork()
    if child == 0:
        with Preemption() as preemption:
            if not before:
                preemption.stops()
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

told(True)
told(False)
"""


def test_before_the_first_step_one_ends_the_process_and_afterwards_two():
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == [str(-signal.SIGTERM)] * 2


def test_before_the_first_step_who_runs_several_is_told_at_once(heard: list[int]):
    with Preemption():
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
