"""Runs that end at chosen moments, each in a process of its own; test_resume.py goes on with them.

    python tests/engine/killed.py MOMENT:RUN_DIR ... -- OPTIONS OF FINETUNE WITHOUT RUN_DIR

Imports take far longer than a run, so they are made once, and the process is forked for each run
before JAX has any thread. Prints how each ended: a signal's number below zero, or the exit status.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from voxtune.engine import loop, output
from voxtune.engine import train as _train  # noqa: F401 - all that a run imports
from voxtune.engine.checkpoint import Checkpoints
from voxtune.engine.cli import main
from voxtune.engine.run_dir import Log


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(step: int, act: Callable[[], Any]) -> None:
    """Acts once a step is done."""
    look = loop.Skips.add

    def add(self: Any, number: int, *rest: Any) -> None:
        look(self, number, *rest)
        if number == step:
            act()

    loop.Skips.add = add  # type: ignore[method-assign]


def folder(run_dir: Path) -> None:
    """Just before the run directory is in its place."""
    del run_dir
    output.replace_folder = die  # type: ignore[assignment]


def first(run_dir: Path) -> None:
    """Before the first checkpoint."""
    del run_dir
    after(2, die)


def save(run_dir: Path) -> None:
    """While the second checkpoint is being written."""
    begin = Checkpoints.save

    def watch() -> None:
        while not list((run_dir / "checkpoints").glob("8.*")):
            time.sleep(0.0001)
        die()

    def saved(self: Any, step: int, *rest: Any) -> None:
        if step == 8:
            threading.Thread(target=watch, daemon=True).start()
        begin(self, step, *rest)

    Checkpoints.save = saved  # type: ignore[method-assign]


def line(run_dir: Path) -> None:
    """Between the line of the second validation and its checkpoint, a line half written."""
    write = Log.write

    def written(self: Any, **entry: Any) -> None:
        write(self, **entry)
        if (entry["event"], entry["step"]) == ("validation", 8):
            with (run_dir / "metrics.jsonl").open("a") as stream:
                stream.write('{"event": "train", "st')
            die()

    Log.write = written  # type: ignore[method-assign]


def term(run_dir: Path) -> None:
    """Told to end, between two lines of the log."""
    del run_dir
    after(4, lambda: os.kill(os.getpid(), signal.SIGTERM))


MOMENTS = {each.__name__: each for each in (folder, first, save, line, term)}


def begin(moment: str, run_dir: str, options: list[str]) -> int:
    """A run that ends at a moment, in a process of its own; how it ended."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            MOMENTS[moment](Path(run_dir))
            status = main(["finetune", *options[:2], run_dir, *options[2:]])
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    split = sys.argv.index("--")
    for each in sys.argv[1:split]:
        how, _, where = each.partition(":")
        print("ended", how, begin(how, where, sys.argv[split + 1 :]), flush=True)
