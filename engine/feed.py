"""Batches on the devices, two ahead of the step."""

import os
import queue
import signal
import threading
from functools import partial
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Self

import grain
import numpy as np
from absl import flags
from jax.sharding import Mesh

from voxtune.engine.changes import Batch
from voxtune.engine.mesh import placed
from voxtune.engine.workers import begin, cores, interrupts_held
from voxtune.models.errors import InputError

AHEAD = 2  # batches on the devices that no step has taken yet
THREADS = min(8, cores())


class Feed:
    """An iterator over batches: the names of its subjects, and its arrays, split over a mesh.

    Threads, or worker processes, read batches; one more thread places them on the mesh, so that
    reading and copying overlap with the devices' work, and a slow read is made up for by the
    batches that are there already. To be closed, or used in a `with` statement.

    Args:
        dataset: see `voxtune.engine.dataset.batches`; of several processes each gives its part.
        mesh: the devices, those of all processes.
        first_step: the step whose batch comes first.
        workers: processes that read, besides this one; each gets the dataset pickled, so cases
            that are read from a store suit, those in memory are copied.
        threads: that read where there are no workers.
        mapped: whether batches are for `jax.pmap`, see `voxtune.engine.mesh.placed`.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        mesh: Mesh,
        first_step: int = 0,
        workers: int = 0,
        threads: int = THREADS,
        mapped: bool = False,
    ) -> None:
        each = 1 if workers else threads
        options = grain.ReadOptions(num_threads=each, prefetch_buffer_size=each)
        reader = dataset[first_step:].to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain asks flags that only absl's programs parse
            processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
            reader = reader.mp_prefetch(processes, worker_init_fn=_begin)
            _start_tracker()
        self._reader = iter(reader)
        self._workers = workers
        self._place_on = partial(placed, mesh=mesh, mapped=mapped)
        self._ready: queue.SimpleQueue[tuple[list[str], Batch] | BaseException]
        self._ready = queue.SimpleQueue()
        self._room = threading.Semaphore(AHEAD)
        self._closing = False
        self._thread = threading.Thread(target=self._place, name="voxtune-feed", daemon=True)
        with interrupts_held():  # and so in all that this thread starts, workers too
            self._thread.start()

    def _place(self) -> None:
        """What the thread does: places batches where there is room."""
        try:
            while self._room.acquire() and not self._closing:
                batch = next(self._reader)
                names = batch.pop("name").tolist()
                if self._workers:
                    # Out of the memory shared with them, which JAX would hold for as long as it
                    # likes, the end of the program included.
                    batch = {name: np.array(each) for name, each in batch.items()}
                self._ready.put((names, self._place_on(batch)))
        except BaseException as error:  # the loop is told, whatever it is
            self._ready.put(error)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[list[str], Batch]:
        """The names of this process's subjects, and the batch of all processes.

        Raises:
            InputError: a file cannot be read, or a worker process was killed.
        """
        found = self._ready.get()
        if isinstance(found, BaseException):
            self._ready.put(found)
            if "Worker process was terminated" in str(found):
                raise InputError(
                    f"A process that reads blocks ended unasked ({found}), for lack of memory, of "
                    "shared memory (/dev/shm) for example; pass fewer --workers, or none."
                ) from found
            raise found
        self._room.release()
        return found

    def close(self) -> None:
        """Ends the threads and processes; batches that are ready are let go."""
        self._closing = True
        self._room.release()
        self._thread.join()
        self._reader.close()
        del self._reader  # Grain complains of iterators that outlive the interpreter's modules
        self._ready = queue.SimpleQueue()
        self._ready.put(ValueError("the feed is closed"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _start_tracker() -> None:
    """Starts Python's process that frees what others leave, semaphores and shared memory.

    It would warn of what it frees, which follows one of voxtune's own sentences where a worker was
    killed, or the program ends without delay. It must be there before any worker: the thread that
    starts it hears of Ctrl-C afterwards.
    """
    before = os.environ.get("PYTHONWARNINGS")
    quiet = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = f"{before},{quiet}" if before else quiet
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _begin(_worker: int, _workers: int) -> None:
    """What a worker does first, for Grain.

    Schedulers send SIGTERM to all processes of a run, whose last step still wants its data.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begin()
