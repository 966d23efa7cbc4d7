"""Folders and files that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from voxtune.engine.volume import written_beside
from voxtune.models.errors import InputError

MARKER = ".voxtune"  # in every folder that voxtune wrote; no other folder is ever replaced


def check_free(folder: Path, overwrite: bool) -> None:
    """Makes sure that an output folder may be made.

    Args:
        folder: the folder to be written.
        overwrite: whether one that is there may be replaced.

    Raises:
        InputError: it exists and may not be replaced, or its parent cannot be written.
    """
    if folder.is_symlink() or folder.resolve() == Path.cwd():
        raise InputError(f"{folder} is a link or the current folder; name a folder to make.")
    if folder.exists():
        empty = folder.is_dir() and not any(folder.iterdir())
        if not empty and not (folder / MARKER).is_file():
            raise InputError(
                f"{folder} exists and was not written by voxtune (it holds no {MARKER}), so it is "
                "left alone; choose another folder."
            )
        if not overwrite:
            raise InputError(f"{folder} exists; choose another folder or pass --overwrite.")
    parent = next(each for each in folder.absolute().parents if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{folder} cannot be written: {parent} is no folder that you may write.")


def check_apart(folder: Path, inputs: Iterable[Path]) -> None:
    """Makes sure that replacing a folder would not remove what it is made of.

    Args:
        folder: the folder to be written.
        inputs: files and folders that are read.

    Raises:
        InputError: one is the folder, or lies in it.
    """
    place = folder.resolve()
    for each in inputs:
        if each.resolve().is_relative_to(place):
            raise InputError(
                f"{each} would be removed with {folder}, which is to be written anew; choose "
                "another folder."
            )


def replace_folder(new: Path, folder: Path) -> None:
    """Moves a finished folder into place; what was there goes only once the new one is whole."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder, if it is there, which is moved away first: none is ever half there.

    Raises:
        OSError: it cannot be moved.
    """
    remove_leftover(folder)
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        folder.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def remove_leftover(folder: Path) -> None:
    """Removes what stays beside a folder of a process that was stopped while it removed it."""
    shutil.rmtree(folder.with_name(f".{folder.name}.old"), ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Makes a folder and marks it as ours; one that is there is kept.

    Raises:
        OSError: the disk does not take it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def check_free_or_of(folder: Path, kind: str) -> None:
    """Makes sure that results of a kind may be written to a folder, beside those that are there.

    Args:
        folder: the folder, which may be there if `make_folder_of` made it for that kind.
        kind: of results.

    Raises:
        InputError: it may not be written to.
    """
    # What is hidden may be another job's, which is about to mark the same folder.
    free = folder.is_dir() and all(each.name[0] == "." for each in folder.iterdir())
    ours = _kind(folder) == kind
    if (folder / MARKER).is_file() and not free and not ours:  # a model or a run, of whose files
        raise InputError(  # a result might bear the name
            f"{folder} exists and holds something else than {kind}; choose another folder."
        )
    if not free or folder.is_symlink():
        check_free(folder, ours)
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written; give it permission, or choose another.")


def make_folder_of(folder: Path, kind: str) -> None:
    """Makes a folder and marks it as ours, of results of a kind; one that is there is kept.

    Raises:
        InputError: the disk does not take it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from error
    if _kind(folder) != kind:
        with written_beside(folder / MARKER) as beside:
            beside.write_text(f"{kind}\n")


def _kind(folder: Path) -> str:
    """Of what results a folder of ours is; empty where it is of no kind in particular."""
    try:
        return (folder / MARKER).read_text().strip()
    except (OSError, ValueError):
        return ""


def unfinished(path: Path) -> Path:
    """The file or folder that becomes another one when it is whole."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, beside `folder`, which it becomes if all goes well and else is gone.

    Raises:
        InputError: as `check_free`, or the disk does not take it.
    """
    check_free(folder, overwrite)
    beside = unfinished(folder)
    try:
        shutil.rmtree(beside, ignore_errors=True)
        make_folder(beside)
        yield beside
        replace_folder(beside, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def replace_file(path: Path, content: str) -> None:
    """Writes a text file anew, whole or not at all.

    Raises:
        InputError: the disk does not take it.
    """
    beside = unfinished(path)
    try:
        with beside.open("w") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # or after a power cut it may be there without its content
        beside.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        beside.unlink(missing_ok=True)
