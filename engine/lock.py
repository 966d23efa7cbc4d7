"""Which process has a folder: locks on its marker, which end with the process, however it ends.

No JAX here.
"""

import sys
from typing import BinaryIO

Part = tuple[int, int]  # (1, 4) is the first of four shards

WHOLE: Part = (1, 1)


def locked(marker: BinaryIO, part: Part, unknown: bool) -> bool:
    """Locks a part of a folder, instead of what the process had locked of it, until it ends.

    Args:
        marker: open for writing, which no other code of this process may open: that unlocks it.
        part: one byte of the file for each shard, or all of them.
        unknown: what to return where the disk has no locks.

    Returns:
        Whether no other process has it.
    """
    if sys.platform == "win32":
        return unknown
    import fcntl

    first, step = part
    try:
        fcntl.lockf(marker, fcntl.LOCK_UN)
        fcntl.lockf(marker, fcntl.LOCK_EX | fcntl.LOCK_NB, 0 if step == 1 else 1, first - 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return unknown
    return True
