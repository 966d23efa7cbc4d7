"""Tasks in processes: results in order, and failures that are told."""

import os
from concurrent.futures.process import BrokenProcessPool

import pytest
from rich.console import Console

from voxtune.engine import workers
from voxtune.engine.workers import cores, processes, run_each

QUIET = Console(quiet=True)


def test_one_process_is_this_one() -> None:
    with processes(1) as pool:
        assert pool is None
        assert run_each(pool, QUIET, "adding", pow, [3, 1, 2], 2) == [9, 1, 4]


def test_processes_give_results_in_order_with_one_thread_each() -> None:
    before = dict(os.environ)
    with processes(2) as pool:
        assert run_each(pool, QUIET, "adding", pow, [3, 1, 2], 2) == [9, 1, 4]
        assert run_each(pool, QUIET, "asking", os.getenv, ["OMP_NUM_THREADS"]) == ["1"]
        assert str(os.getpid()) not in map(str, run_each(pool, QUIET, "asking", _pid, [1, 2]))
        with pytest.raises(ZeroDivisionError):
            run_each(pool, QUIET, "dividing", divmod, [1, 2], 0)
        with pytest.raises(BrokenProcessPool):
            run_each(pool, QUIET, "ending", os._exit, [1])
    assert dict(os.environ) == before


def _pid(_: int) -> int:
    return os.getpid()


def test_lines_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, width=80)
    run_each(None, console, "adding", pow, [1, 2, 3], 2)
    assert console.export_text() == ""
    monkeypatch.setattr(workers, "_SECONDS", 0.0)
    run_each(None, console, "adding", pow, [1, 2, 3], 2)
    assert console.export_text().split() == ["adding", "1/3", "adding", "2/3", "adding", "3/3"]


def test_there_is_a_core() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
