"""`voxtune study`: did transfer help? Networks from pretrained and random weights, compared.

What is done is known from the folder alone, so that any call goes on where others were stopped, and
several at once share the work.
"""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from voxtune.engine.arms import Design, Trial
from voxtune.engine.config import Study
from voxtune.engine.folds import part_of
from voxtune.engine.loop import PreemptedError
from voxtune.engine.output import check_free_or_of, make_folder_of
from voxtune.engine.saved_config import CONFIG
from voxtune.engine.sharing import claimed, listed_briefly
from voxtune.engine.study_inputs import check_inputs, check_unchanged
from voxtune.engine.study_results import DOCUMENT, Results, begin_document, read_inputs
from voxtune.engine.study_work import Work
from voxtune.engine.tuning import diverged, tuning_scores
from voxtune.models.errors import InputError

_KIND = "study"
_TRIES = 300  # of what takes another job a moment
_A_MOMENT = 0.1  # seconds between two of them


class ToldToEndError(BaseException):
    """SIGTERM came while no network was trained. Not to be caught on the way."""


def study(config: Study, console: Console) -> None:
    """Trains and scores what is left of a study, then compares.

    Everything is checked before anything is trained.

    Raises:
        InputError: the design, the data or an option is bad, or the folder is of something else;
            or, once all else is done, a network could not be trained.
        PreemptedError: it was told to end; the same command goes on.
    """
    design = Design.of(config)
    number, parts = part_of(config.shard, "--shard")
    check_free_or_of(config.out, _KIND)
    inputs = check_inputs(design, config, console)
    check_unchanged(config.out, _inputs_before(config.out), inputs)
    make_folder_of(config.out, _KIND)
    _begin(config.out, inputs)
    work = Work(design, config, console, number, parts)
    try:
        with _ends_when_told():
            work.do()
            _finish(work, inputs)
    except ToldToEndError:
        raise PreemptedError(0) from None


def _inputs_before(out: Path) -> dict[str, str]:
    """What the runs that are there were made with; what no run was made with does not count."""
    return read_inputs(out) if any((out / "runs").glob("*")) else {}


def _begin(out: Path, inputs: dict[str, str]) -> None:
    """Writes down what is read, one job after the other.

    Raises:
        InputError: another job began with something else, or the disk does not take it.
    """
    for _ in range(_TRIES):
        with claimed(out, DOCUMENT, True) as mine:
            if mine:
                before = _inputs_before(out)
                check_unchanged(out, before, inputs)
                begin_document(out, {**before, **inputs})
                return
        time.sleep(_A_MOMENT)
    raise InputError(f"{out / DOCUMENT} is being written by another job; give the command again.")


@contextmanager
def _ends_when_told() -> Iterator[None]:
    """SIGTERM raises; while a network is trained, that is heard first and leaves a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hear(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        raise ToldToEndError

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _finish(work: Work, inputs: dict[str, str]) -> None:
    """Compares if all is done, else says what is left.

    Raises:
        InputError: a network could not be trained.
    """
    failed, missing, total = work.failed(), work.missing(), len(work.trials())
    if missing:
        work.console.print(
            f"{total - work.left()} of {total} runs are done; missing: {listed_briefly(missing)}. "
            "Where other jobs do these, the one that ends last writes the report; else the same "
            "command without --shard does all that is left.",
            highlight=False,
            soft_wrap=True,
        )
    else:
        _report(work, inputs, failed)
    if failed:
        names = listed_briefly([each.name for each in failed])
        raise InputError(
            f"Training diverged, and {total - len(failed)} of {total} runs are left to compare, "
            f"without {names}; {diverged(failed[0])} says why. For lower learning rates choose "
            "another --out; to try the same again, remove the run."
        )


def _report(work: Work, inputs: dict[str, str], failed: Sequence[Trial]) -> None:
    """Compares what is left without the runs that came to nothing, if that can be compared."""
    config, console = work.config, work.console
    trials = [each for each in work.trials() if each not in failed]
    first = work.design.arms[0].name
    if not {first} < {each.arm for each in trials}:
        return
    with claimed(config.out, "report", True) as mine:
        if not mine:
            console.print("all runs are done; another job writes the report", highlight=False)
            return
        tuned = tuning_scores(work.design, config) if len(work.design.factors) > 1 else {}
        Results(config, work.design, inputs, trials, tuned, _notes(work, failed)).write(console)


def _notes(work: Work, failed: Sequence[Trial]) -> list[str]:
    """Which runs the report is without, as sentences."""
    config, notes = work.config, []
    if failed:
        names = listed_briefly([each.name for each in failed])
        notes.append(f"Training diverged, and nothing above is of it: {names}.")
    known = {each.name for each in (*work.trials(), *work.design.tuning(config))}
    runs = sorted(each.parent.name for each in (config.out / "runs").glob(f"*/{CONFIG}"))
    others = [each for each in runs if each not in known]
    if others:
        notes.append(
            f"Runs of other designs in this folder, of which nothing is in this report: "
            f"{len(others)}, {listed_briefly(others)}."
        )
    return notes
