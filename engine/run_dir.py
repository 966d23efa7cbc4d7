"""The run directory: what a run was told, what it was made of, and what happened."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from voxtune.engine.lock import WHOLE, locked
from voxtune.engine.output import MARKER, new_folder
from voxtune.engine.processes import is_first, together
from voxtune.engine.subjects import Subject, write_subjects
from voxtune.engine.tensorboard import TensorBoard
from voxtune.models.errors import InputError


class HeldError(InputError):
    """Another run has a run directory."""


def make_run_dir(
    folder: Path,
    overwrite: bool,
    documents: Mapping[str, Any],
    subjects: Mapping[str, Sequence[Subject]],
) -> None:
    """Makes the folder anew, with a JSON file of each document, and the table of its subjects.

    Raises:
        InputError: it exists, a run is writing it, or it cannot be made.
    """
    with ExitStack() as until_replaced:
        if (folder / MARKER).is_file():
            until_replaced.enter_context(_claimed(folder))
        beside = until_replaced.enter_context(new_folder(folder, overwrite))
        for name, content in documents.items():
            (beside / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
        if any(subjects.values()):
            write_subjects(beside / "subjects.csv", subjects)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A run directory that no other run may write to meanwhile; to be called by all processes.

    The first process holds it, and however that ends, the folder is free afterwards.

    Raises:
        HeldError: another run has it.
        InputError: it cannot be written.
    """
    marker = None
    with together():
        marker = _claimed(folder) if is_first() else None
    try:
        yield
    finally:
        if marker is not None:
            marker.close()


def _claimed(folder: Path) -> BinaryIO:
    """The marker of a run directory, which is this process's as long as that is open.

    Raises:
        HeldError: another run has it.
        InputError: it cannot be written.
    """
    try:
        marker = (folder / MARKER).open("ab")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error
    # It may have been replaced meanwhile, and its marker with it.
    if locked(marker, WHOLE, True) and os.fstat(marker.fileno()).st_nlink:
        return marker
    marker.close()
    raise HeldError(
        f"{folder} is being written by another run; wait until that has ended, or end it."
    )


class Log:
    """metrics.jsonl: one JSON object a line. Of several processes the first writes it.

    To be closed, or used in a `with` statement.

    Args:
        path: the file.
        tensorboard: whether TensorBoard's files are written too, into a folder beside it.
        step: that the run goes on from.
    """

    def __init__(self, path: Path, tensorboard: bool = False, step: int = 0) -> None:
        self._path, self._writes = path, is_first()
        self._board = None
        if tensorboard and self._writes:
            self._board = TensorBoard(path.with_name("tensorboard"), step)

    def write(self, *, event: str, step: int, **entry: Any) -> None:
        """Appends an entry; numbers that JSON lacks (NaN) become null.

        Raises:
            InputError: the disk does not take it.
        """
        if not self._writes:
            return
        line = finite({"event": event, "step": step, **entry})
        try:
            with self._path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be written: {error.strerror or error}. Make room, then go on "
                f"with 'voxtune resume {self._path.parent}'."
            ) from error
        if self._board is not None:
            self._board.write(event, step, entry)

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def finite(value: Any) -> Any:
    """JSON values, with null for the numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
