"""Several jobs at one study: who is at what, and waiting for what others do. No JAX here."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from voxtune.engine.lock import WHOLE, locked
from voxtune.models.errors import InputError

LOOK_EVERY = 10.0  # seconds, at what other jobs do
PATIENCE = 1800.0  # seconds without any change by other jobs, after which they are given up
_NAMED = 4  # runs in a sentence


@contextmanager
def claimed(out: Path, name: str, mine: bool) -> Iterator[bool]:
    """Whether no other job of the study works on something; while this lasts, none begins to.

    Args:
        out: folder of the study.
        name: of the run.
        mine: whether it is this job's where the disk has no locks.

    Raises:
        InputError: the disk does not take it.
    """
    path = out / ".locks" / name
    try:
        path.parent.mkdir(exist_ok=True)
        marker = path.open("ab")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}).") from error
    with marker:
        yield locked(marker, WHOLE, mine)


class Others:
    """Waits for what other jobs do.

    Args:
        out: folder of the study.
        console: told once what is waited for.
    """

    def __init__(self, out: Path, console: Console) -> None:
        self._out, self._console = out, console
        self._state: object = None
        self._since = time.monotonic()
        self._said = False

    def go_on(self, waited_for: Sequence[str]) -> bool:
        """Waits a little; False once nothing has changed for too long."""
        if not self._said:
            names = listed_briefly(waited_for)
            self._console.print(
                f"waiting for other jobs, which train {names}", highlight=False, soft_wrap=True
            )
            self._said = True
        state = self._looked()
        if state != self._state:
            self._state, self._since = state, time.monotonic()
        if time.monotonic() - self._since > PATIENCE:
            return False
        time.sleep(LOOK_EVERY)
        return True

    def _looked(self) -> dict[str, int]:
        """When what belongs to runs has changed."""
        found = {}
        for path in (self._out, *self._out.glob("*/*")):
            for each in (path, path / "metrics.jsonl"):
                with contextlib.suppress(OSError):
                    found[str(each)] = each.stat().st_mtime_ns
        return found


def listed_briefly(names: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
    return ", ".join(names[:_NAMED]) + more
