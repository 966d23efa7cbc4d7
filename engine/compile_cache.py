"""Compiled programs kept from one run to the next."""

import atexit
import contextlib
import errno
import glob
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

LARGEST = 4 * 10**9  # bytes that are kept

# JAX's warnings, before the name of a program.
_UNREADABLE = "Error (reading|writing) persistent compilation cache entry for "


def use_compile_cache() -> str | None:
    """Keeps programs that take over a second to compile, in the user's cache folder.

    What is kept is executed, so the folder has to be the user's own, and no one else's to write;
    otherwise nothing is kept. A folder that the user has given JAX, `JAX_COMPILATION_CACHE_DIR`,
    comes first, and `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.

    A program that cannot be read, such as one whose writing was cut short, is removed and compiled
    again. JAX looks for programs by the instructions that the CPU has, among other things, so
    machines of several kinds may share a home.

    Returns:
        Why nothing is kept, though nobody said so, in a sentence.
    """
    asked = jax.config.values
    if not asked["jax_enable_compilation_cache"] or asked["jax_compilation_cache_dir"]:
        return None
    try:
        folder = _made()
        reason = exposed(folder)
        if reason is not None:
            return reason
        _remove_exposed(folder)
    except (OSError, RuntimeError) as error:  # of a loop of links, or where there is no home
        told = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        return f"there is no cache folder that can be written{told}; set XDG_CACHE_HOME to one."
    prune(folder)
    _remove_unreadable(folder)
    atexit.register(_close, folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return None


def _made() -> Path:
    """The folder, without links, made where it is not there.

    Raises:
        OSError: it cannot be made or written.
        RuntimeError: there is no home, or links go in a circle.
    """
    folder = _user_caches() / "voxtune" / "programs"
    folder.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in (folder.parent, folder):
        each.mkdir(mode=0o700, exist_ok=True)
    resolved = folder.resolve(strict=True)
    if not os.access(resolved, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(resolved))
    return resolved


def _user_caches() -> Path:
    """The user's folder of caches.

    Raises:
        RuntimeError: there is no home.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():  # others are to be ignored, says the specification
        return given
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def exposed(folder: Path) -> str | None:
    """Why others could put a program of theirs into a folder; None where they cannot.

    The folder and the one that it lies in belong to the user, and no one else may write them. Those
    above belong to the user or to root; others may write them where they can replace only what is
    theirs, as in /tmp.

    Args:
        folder: without links.
    """
    if sys.platform == "win32":
        return "nobody can say here whose a folder is; set JAX_COMPILATION_CACHE_DIR"
    user = os.geteuid()
    for number, each in enumerate((folder, *folder.parents)):
        found = each.stat()
        own = number < 2
        if found.st_uid != user and (own or found.st_uid != 0):
            return f"{each} belongs to someone else; set XDG_CACHE_HOME to a folder of your own."
        sticky = found.st_mode & stat.S_ISVTX and not own
        # A group that has the user's number is the user's alone, and root's is root's.
        group = found.st_mode & stat.S_IWGRP and (own or found.st_gid not in (user, 0))
        if (group or found.st_mode & stat.S_IWOTH) and not sticky:
            if found.st_uid != user:
                return f"others can write {each}; set XDG_CACHE_HOME to a folder of your own."
            return f"others can write {each}; run 'chmod go-w {each}', and empty {folder}."
    return None


def _remove_exposed(folder: Path) -> None:
    """Removes programs that others could have written while the folder was open to them.

    Raises:
        OSError: one cannot be removed.
    """
    for path, found in _programs(folder):
        if (
            not stat.S_ISREG(found.st_mode)  # a link leads elsewhere
            or found.st_uid != os.geteuid()
            or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ):
            path.unlink(missing_ok=True)


def _close(folder: Path) -> None:
    """Takes from others what a umask lets them do with programs, or the next run removes them."""
    for path, found in _programs(folder):
        with contextlib.suppress(OSError):
            path.chmod(stat.S_IMODE(found.st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))


def _remove_unreadable(folder: Path) -> None:
    """Has programs removed that JAX warns of: it never writes over one that is there.

    It names a program's function alone, so that all programs of the name go, and says so in four
    lines that no one can do anything about, which are left out.
    """
    others = warnings.showwarning

    def show(message: Warning | str, *arguments: Any, **options: Any) -> None:
        found = re.match(_UNREADABLE + "'([^']+)'", str(message))
        if found is None:
            others(message, *arguments, **options)
            return
        for path in folder.glob(f"{glob.escape(found[2])}-*-cache"):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    warnings.filterwarnings("always", _UNREADABLE)
    warnings.showwarning = show


def prune(folder: Path, largest: int = LARGEST) -> None:
    """Removes the programs that were used longest ago, beyond so many bytes."""
    found = [
        (max(about.st_atime, about.st_mtime), about.st_size, path)
        for path, about in _programs(folder)
    ]
    kept = 0
    for _, size, path in sorted(found, reverse=True):
        kept += size
        if kept > largest:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                return


def _programs(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob("*-cache"):
        try:
            yield path, path.lstat()
        except OSError:
            continue  # another process was faster
