"""The user's folder of caches, and whether others could put something there. No JAX here."""

import errno
import os
import stat
import sys
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of voxtune's among the user's caches, without links, made where it is not there.

    Raises:
        OSError: it cannot be made or written.
        RuntimeError: there is no home, or links go in a circle.
    """
    folder = _user_caches() / "voxtune" / name
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
