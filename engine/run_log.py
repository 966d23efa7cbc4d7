"""metrics.jsonl of a run, read again: anybody may have changed it. No JAX here."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxtune.models.errors import InputError

METRICS = "metrics.jsonl"
_LARGEST = 2**30  # bytes


def log_lines(log: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of a log and the entries that they are; what is no entry is left out.

    A line that was not finished, when its process was killed, is no entry.

    Raises:
        InputError: it is far too large.
        OSError: it cannot be read.
    """
    if log.stat().st_size > _LARGEST:
        raise InputError(
            f"{log} is larger than {_LARGEST} bytes, which no run writes; move it away."
        )
    with log.open("rb") as stream:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip("\r\n")
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step", 0), int | float):
                yield line, entry
