"""A study whose jobs end at chosen moments; test_trials.py looks at what comes of it.

    python tests/engine/killed_study.py MOMENT:OUT ... -- OPTIONS OF STUDY WITHOUT OUT

Each job is a process of its own, forked before JAX has any thread, as imports take far longer than
a tiny study. Prints how each ended: a signal's number below zero,
or the exit status.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from voxtune.engine import loop, study_results, trials
from voxtune.engine import study as _study  # noqa: F401 - all that a study imports
from voxtune.engine.cli import main


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(step: int, act: Callable[[], Any]) -> None:
    """Acts once a step of the first network is done."""
    look = loop.Skips.add

    def add(self: Any, number: int, *rest: Any) -> None:
        look(self, number, *rest)
        if number == step:
            act()

    loop.Skips.add = add  # type: ignore[method-assign]


def training() -> None:
    """After the first checkpoint."""
    after(3, die)


def term() -> None:
    """Told to end, in training."""
    after(1, lambda: os.kill(os.getpid(), signal.SIGTERM))


def scoring() -> None:
    """Before the scores are written."""
    trials.evaluate = die  # type: ignore[assignment]


def reporting() -> None:
    """All networks scored, and nothing compared."""
    study_results.Results.write = die  # type: ignore[assignment]


def end() -> None:
    """Not disturbed."""


MOMENTS = {each.__name__: each for each in (training, term, scoring, reporting, end)}


def begin(moment: str, out: str, options: list[str]) -> int:
    """A job that ends at a moment; how it ended."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            MOMENTS[moment]()
            status = main(["study", "--out", out, *options])
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    split = sys.argv.index("--")
    for each in sys.argv[1:split]:
        how, _, where = each.partition(":")
        print("ended", how, begin(how, where, sys.argv[split + 1 :]), flush=True)
