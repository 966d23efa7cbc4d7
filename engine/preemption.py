"""Being told to end: SIGTERM, which schedulers send before they take a machine away."""

import itertools
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax._src import distributed  # its preemption service has no public name

# JAX's service ends a run at the call whose number is one more than the highest that a process has
# reached when the signal is heard, which is 1 before any call. So it is calls that are numbered,
# from 1 and through all runs of the process: the steps of a resumed run begin far above.
_calls = itertools.count(1)


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
        self._service: Any = None

    def stops(self) -> bool:
        """Whether the run has to end after this step, in all processes the same.

        To be asked once after each step.
        """
        self._begun = True
        if self._service is not None and not self._told:
            self._told = bool(self._service.reached_sync_point(next(_calls)))
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
        if self._several:
            # Out of Orbax's sight: once a checkpoint is written, which may be steps later, its
            # thread in the first process would tell the service of that step, as if the process
            # had got no further. The others would end after a step that it has passed already.
            # Without one (JAX_ENABLE_PREEMPTION_SERVICE=false) the signal ends the process at once.
            self._service = distributed.global_state.preemption_sync_manager
            distributed.global_state.preemption_sync_manager = None
        elif self._main:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._several:
            distributed.global_state.preemption_sync_manager = self._service
        elif self._main:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
            if self._told and error is None and callable(self._before):
                # The run had its last step all the same; who runs several has to know.
                signal.raise_signal(signal.SIGTERM)
