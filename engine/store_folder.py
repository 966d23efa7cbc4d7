"""The folder of a store while it is made: who may write to it, and what stopped runs left there.

No JAX here.
"""

import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from voxtune.engine.lock import WHOLE, Part, locked
from voxtune.engine.output import MARKER, make_folder, remove_folder, remove_leftover
from voxtune.engine.store import DOCUMENT, TABLE, Head, read_head, start_store
from voxtune.engine.stored_case import CASES, finished_cases, remove_partial_cases
from voxtune.models.errors import InputError

_SHOWN = 5
_TRIES, _PAUSE_S = 20, 0.1


def check_store(path: Path, head: Head, names: Collection[str], table: Path) -> None:
    """Makes sure that a store that is there may be gone on with.

    Args:
        path: the store's folder, which need not be there.
        head: how it is to be made.
        names: of all subjects that it is to hold.
        table: that lists them.

    Raises:
        InputError: it is no store, was prepared in another way, or holds other subjects.
    """
    if not path.exists():
        return
    there = read_head(path)
    finished = finished_cases(path)
    if there is None:
        # A run that was stopped before it could say how subjects are prepared has prepared none.
        if finished or {*path.iterdir()} - {path / MARKER, path / CASES, *_temporaries(path)}:
            raise InputError(f"{path} exists; choose another folder or pass --overwrite.")
        return
    different = there.preparation.differences(head.preparation)
    if there.arrays != head.arrays:
        different.append(f"format {there.arrays}, not {head.arrays}")
    if different:
        raise InputError(
            f"{path} was prepared in another way ({'; '.join(different)}); choose another folder, "
            "or pass --overwrite to make it anew."
        )
    if others := [name for name in finished if name not in names]:
        raise InputError(
            f"{path} holds {len(others)} subjects that {table} does not list ({shown(others)}); "
            f"choose another folder, take theirs out of {path / CASES}, or pass --overwrite to "
            "make it anew."
        )


@contextmanager
def room(path: Path, head: Head, part: Part, overwrite: bool, new: bool) -> Iterator[None]:
    """A folder to write subjects to, which no other run of the same part has meanwhile.

    Afterwards what is half-written goes, of this run and of others that were stopped, unless others
    are at work; and the folder too where this run alone has made it and no subject is finished.

    Args:
        path: the folder.
        head: how the store is made.
        part: of the subjects, which this run prepares.
        overwrite: whether a store that is there goes first.
        new: whether there are subjects to prepare, until which the store is not finished.

    Raises:
        InputError: another run has it.
        OSError: the disk does not take it.
    """
    if overwrite and path.exists():
        make_folder(path)
        with (path / MARKER).open("r+b") as marker:
            _claim(marker, WHOLE, path)
            remove_folder(path)
    fresh = not path.exists()
    make_folder(path)
    with (path / MARKER).open("r+b") as marker:
        _claim(marker, part, path)
        remove_leftover(path)
        try:
            if (there := read_head(path)) not in (None, head):
                raise InputError(
                    f"{path} was meanwhile prepared in another way; give all shards the same "
                    "options, and choose another folder."
                )
            if new or there is None:
                start_store(path, head)
            yield
        finally:
            # The last of several runs finds none at work: each gives its own part up first.
            if locked(marker, WHOLE, part == WHOLE):
                remove_partial_cases(path)
                for each in _temporaries(path):
                    with suppress(OSError):
                        each.unlink()
                if fresh and part == WHOLE and not finished_cases(path):
                    shutil.rmtree(path, ignore_errors=True)


def what_stays(path: Path) -> str:
    """Says what a run that failed leaves, and what to do."""
    if finished := finished_cases(path):
        return (
            f"the {len(finished)} subjects that are finished stay: mend that and run the same "
            "again (without --overwrite), which goes on with the others"
        )
    return "nothing was written: mend that and run the same again"


def shown(names: Collection[str]) -> str:
    """The first few of some names."""
    return ", ".join([*names][:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def _temporaries(path: Path) -> list[Path]:
    """What `written_beside` leaves of a process that is ended."""
    return [each for name in (DOCUMENT, TABLE) for each in path.glob(f".*.{name}")]


def _claim(marker: BinaryIO, part: Part, path: Path) -> None:
    tries = 1 if part == WHOLE else _TRIES  # a shard that ends has all of it for a moment
    ours = locked(marker, part, True)
    while not ours and (tries := tries - 1):
        time.sleep(_PAUSE_S)
        ours = locked(marker, part, True)
    # The marker may have gone with its folder meanwhile: then its lock keeps nobody away.
    if not ours or os.fstat(marker.fileno()).st_nlink == 0:
        raise InputError(
            f"{path} is being written by another run of 'voxtune prepare'; wait until that has "
            "ended."
        )
