"""Compiled programs kept from one run to the next."""

import atexit
import contextlib
import glob
import os
import re
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from voxtune.engine.user_caches import cache_folder, exposed

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
        folder = cache_folder("programs")
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
