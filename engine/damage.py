"""What is wrong with files that a checkpoint is read from or written to, in a few words.

Orbax and its storage libraries raise errors of many kinds, and leave things behind that complain.
"""

import errno
import gc
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What is raised on a damaged checkpoint is of many kinds, some of them Orbax's own.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_PARTS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # that are missing, or something else


def system_code(error: BaseException) -> int | None:
    """What the system said, where that is why files could not be written or read.

    TensorStore has it at the end of its message, whatever its exception.
    """
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return None if found is None else int(found[1])


def reason(error: BaseException) -> str:
    """Why something could not be written or read, in a few words."""
    code = system_code(error)
    if code is not None:
        return os.strerror(code)
    first = str(error).strip().splitlines()[:1]
    return first[0][:200] if first else type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__


def passing(error: BaseException) -> str | None:
    """Why files that may be sound could not be read now; None where they are what is wrong."""
    for each in _chain(error):
        code = system_code(each)
        if code is not None and code not in _PARTS:
            return os.strerror(code)
    return None


def damage(error: BaseException) -> str:
    """What is wrong with a checkpoint, in a few words: Orbax's own are about its handlers."""
    words = ("NOT_FOUND", "not found", "does not exist")
    for each in _chain(error):
        if isinstance(each, FileNotFoundError) or any(word in str(each) for word in words):
            return "a part of it is missing"
    return "its files are damaged"


def but_closed_loops(unraisable: Any) -> None:
    """Reports an error that nobody can catch, unless it is that Orbax's event loop has ended."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


@contextmanager
def without_aftermath() -> Iterator[None]:
    """Keeps Orbax's abandoned tasks quiet: on a damaged file they report themselves when they are
    collected, as dozens of lines round the one sentence that a person needs."""
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    try:
        yield
    except BaseException as error:
        # For good: TensorStore's threads and asyncio's tasks may report themselves later.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        hook, level = but_closed_loops, logging.CRITICAL + 1
        traceback.clear_frames(error.__traceback__)  # they hold the tasks
        raise
    finally:
        gc.collect()
        sys.unraisablehook = hook
        logger.setLevel(level)
