"""One task for each of many subjects, in processes or threads, with progress shown. No JAX here."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Result = TypeVar("Result")

_SECONDS = 10.0  # between two lines where the console is no terminal
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def cores() -> int:
    """How many this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def processes(number: int) -> Iterator[Executor | None]:
    """Processes that import no JAX and use one core each; none for a number of 1.

    Then this process does it, with as many threads as its libraries like, which changes no result:
    nothing larger than an affine goes through them.

    When the block fails, or is interrupted, they end at once.
    """
    if number == 1:
        yield None
        return
    others = set(multiprocessing.active_children())
    with _one_thread_each():
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(number, mp_context=spawn, initializer=begin)
        try:
            yield pool
        except BaseException:
            for child in set(multiprocessing.active_children()) - others:
                child.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def run_each(
    pool: Executor | None,
    console: Console,
    title: str,
    task: Callable[..., Result],
    items: Sequence[Any],
    *arguments: Any,
) -> list[Result]:
    """`task(item, *arguments)` for each item, results in the order of the items.

    Args:
        pool: where; None is here.
        console: shows how far it is: a bar on a terminal, a line now and then elsewhere.
        title: what is done, for that.
        task: what to do; for processes a function of a module.
        items: what to do it with.
        arguments: further ones of the task.

    Raises:
        BrokenProcessPool: a process was ended from outside.
        Exception: the first that a task raises.
    """
    results: dict[int, Result] = {}
    with _progress(console, title, len(items)) as advance:
        if pool is None:
            for index, item in enumerate(items):
                results[index] = task(item, *arguments)
                advance()
        else:
            with interrupts_held():
                futures = {pool.submit(task, item, *arguments): i for i, item in enumerate(items)}
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                advance()
    return [results[index] for index in range(len(items))]


def begin() -> None:
    """What a worker process does first: it ends when its parent does, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started here keep the threads of their libraries to one."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Threads and processes that are started here never hear of Ctrl-C: their parent ends them."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _progress(console: Console, title: str, total: int) -> Iterator[Callable[[], None]]:
    bar = Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(title, total=total)
    done, said = 0, time.monotonic()

    def advance() -> None:
        nonlocal done, said
        done += 1
        bar.update(task, completed=done)
        if not console.is_terminal and time.monotonic() - said > _SECONDS:
            said = time.monotonic()
            console.print(f"{title} {done}/{total}", highlight=False, soft_wrap=True)

    with bar:
        yield advance
