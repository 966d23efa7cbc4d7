"""How far a job over many scans is: a bar on a terminal, a line for each scan, and the end."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class JobDisplay:
    """Shows how far a job is; may be told so by any thread.

    Args:
        console: where.
        total: scans to do.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._done = console, total, 0
        self._began = time.perf_counter()
        self._bar = Progress(
            TextColumn("predicting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or not total,
        )
        self._task = self._bar.add_task("predicting", total=total, speed="")

    def done(self, text: str) -> None:
        """Prints what is to say of a scan that is done, or failed."""
        self._done += 1
        self._console.print(text, highlight=False, soft_wrap=True)
        self._bar.update(self._task, completed=self._done, speed=self._speed(self._done))

    def summary(self, before: int, failures: Mapping[str, str]) -> None:
        """Prints what has been done.

        Args:
            before: scans that were done already.
            failures: names of scans that could not be done → why.
        """
        number = self._done - len(failures)
        parts = [f"{number} scan{'s' * (number != 1)} predicted"]
        if number:
            parts[0] += f", {self._speed(number)}"
        if before:
            parts.append(f"{before} {'was' if before == 1 else 'were'} there already")
        if failures:
            parts.append(f"{len(failures)} failed:")
        lines = ["; ".join(parts), *(f"  {name}: {why}" for name, why in failures.items())]
        self._console.print("\n".join(lines), highlight=False, soft_wrap=True)

    def _speed(self, number: int) -> str:
        return f"{3600 * number / (time.perf_counter() - self._began):.0f} scans an hour"

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
