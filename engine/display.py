"""Progress on a terminal, a line every so often elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Shows how far a loop is.

    Args:
        console: where.
        total: steps of the loop.
        every: steps between two lines where the console is no terminal.
    """

    def __init__(self, console: Console, total: int, every: int) -> None:
        self._console, self._total, self._every = console, total, every
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, text="")

    def step(self, step: int, text: str) -> None:
        """Shows that `step` steps are done."""
        self._bar.update(self._task, completed=step, text=text)
        if not self._console.is_terminal and (step % self._every == 0 or step == self._total):
            self.line(f"step {step}/{self._total}  {text}")

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, highlight=False, soft_wrap=True)

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
