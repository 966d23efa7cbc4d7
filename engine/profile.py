"""A trace of some steps: what the devices, and the host beside them, did when."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from voxtune.engine.processes import is_first
from voxtune.models.errors import InputError


def steps_to_trace(text: str | None, steps: int) -> range:
    """The numbers of the steps that are traced, the first step of a run being 1.

    Args:
        text: as `--profile` has it, `FIRST:LAST`, both of them traced; None for no step.
        steps: of the run.

    Raises:
        InputError: it is not written so, or the run has no such steps.
    """
    if text is None:
        return range(0)
    found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", text, re.ASCII)
    if found is None:
        raise InputError(f"--profile takes FIRST:LAST, such as 10:15; '{text}' is not that.")
    first, last = map(int, found.groups())
    if not 1 <= first <= last <= steps:
        raise InputError(
            f"--profile {text} is no range of steps from 1 to --steps {steps}, the first "
            "before the last."
        )
    return range(first, last + 1)


class Profile:
    """Traces some steps of a run into a folder, for XProf and Perfetto.

    Of several processes the first traces its own devices. A run that goes on inside the range, or
    ends there, traces what there is of it. Validations are left out, being far longer than steps:
    what follows one is a trace of its own. To be closed, or used in a `with` statement.

    Args:
        steps: the numbers of the steps, see `steps_to_trace`; empty for none.
        folder: to be made.
        report: is told in a line where the trace is.
        paused: within it the run's clock stands: a trace takes time to write.
    """

    def __init__(
        self,
        steps: range,
        folder: Path,
        report: Callable[[str], None],
        paused: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._steps = steps if is_first() else range(0)
        self._folder, self._report, self._paused = folder, report, paused
        self._traced: list[int] = []
        self._annotation: jax.profiler.StepTraceAnnotation | None = None

    def begin(self, step: int) -> None:
        """Says that a step begins, with the wait for its data."""
        if step not in self._steps:
            return
        if not self._traced:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # a thousand lines a step, and slow
            options.session_id = f"step{step}"
            with self._paused():
                jax.profiler.start_trace(
                    self._folder, create_perfetto_trace=True, profiler_options=options
                )
        self._traced.append(step)
        self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._annotation.__enter__()

    def end(self, result: Any) -> None:
        """Says that all of a step is asked for.

        Args:
            result: arrays that are there once the devices are done with it.
        """
        if self._annotation is None:
            return
        self._annotation.__exit__(None, None, None)
        self._annotation = None
        if self._traced[-1] == self._steps[-1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes the trace, if there is one; a later step begins another."""
        if not self._traced:
            return
        first, last = self._traced[0], self._traced[-1]
        self._traced = []
        with self._paused():
            try:
                jax.profiler.stop_trace()
            except (OSError, ValueError, RuntimeError) as error:
                # The run is worth more than its trace.
                self._report(f"the trace of steps {first} to {last} cannot be written ({error})")
                return
        file = self._folder / "plugins" / "profile" / f"step{first}" / "perfetto_trace.json.gz"
        self._report(
            f"wrote a trace of steps {first} to {last}: open {file} at ui.perfetto.dev, or run "
            f"xprof --logdir {self._folder}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
