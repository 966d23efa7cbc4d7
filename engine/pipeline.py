"""One item is used while a thread reads the next and writes what was made of the one before.

Reading and writing take turns: of each item the host holds several copies for a moment, and so
never of two at once. No JAX here.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


class Pipeline(Generic[Item, Read]):
    """A thread that reads ahead and writes behind, one item each; to be used in a `with` block.

    What was made is written when the block ends, whatever was raised in it, and what is being read
    is read: that is soon done, and else a file would be left in part.

    Args:
        read: what an item is read by.
    """

    def __init__(self, read: Callable[[Item], Read]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, "pipeline")
        self._writing: Future[None] | None = None
        self._reading: Future[Read] | None = None

    def ahead(self, items: Iterable[Item]) -> Iterator[Callable[[], Read]]:
        """For each item what gives, once, what was read of it, or raises what reading raised.

        The next is begun to be read first.
        """
        waiting = iter(items)
        self._begin(waiting)
        while self._reading is not None:
            future = self._reading
            future.exception()  # waits
            self._begin(waiting)
            take = _once(future)
            del future
            yield take

    def write(self, task: Callable[[], None]) -> None:
        """Begins a task once the one before is done; raises what that one raised."""
        self.wait()
        self._writing = self._thread.submit(task)

    def wait(self) -> None:
        """Waits for what is being written; raises what that raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _begin(self, items: Iterator[Item]) -> None:
        self._reading = next((self._thread.submit(self._read, item) for item in items), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._thread.shutdown()


def _once(future: Future[Read]) -> Callable[[], Read]:
    """Gives what a future holds, and lets go of it, so that its memory is the user's to free."""
    held = [future]
    return lambda: held.pop().result()
