"""Being told to end: SIGTERM, which schedulers send before they take a machine away."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Within it SIGTERM asks the run to end; a second one ends the process at once.

    Before the first step there is nothing to save, and the first SIGTERM does what it did outside:
    it ends the process, or is heard by who runs several. In a thread that is not Python's main one,
    it does so at any time.

    Of several processes all end after the same step, whichever of them is told to: JAX's own
    service hears the signal there, from the moment the processes have found each other. So there
    one that comes before the first step ends the run after that step, and a second one ends a
    process only once all of them know of the first, while the checkpoint is being written.
    """

    def __init__(self) -> None:
        self._several = jax.process_count() > 1
        self._main = threading.current_thread() is threading.main_thread()
        self._begun = self._told = False
        self._before: Any = None

    def stops(self, step: int) -> bool:
        """Whether the run has to end after this step, in all processes the same."""
        self._begun = True
        if self._several and not self._told:
            self._told = bool(multihost_utils.reached_preemption_sync_point(step))
            if self._told and self._main:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return self._told

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self._begun and callable(self._before):
            self._before(number, frame)
            return
        # From now on the system acts by itself, whatever Python is busy with.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if not self._begun:
            signal.raise_signal(number)
        self._told = True

    def __enter__(self) -> Self:
        if self._main and not self._several:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._main and not self._several:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
            if self._told and error is None and callable(self._before):
                # The run had its last step all the same; who runs several has to know.
                signal.raise_signal(signal.SIGTERM)
