"""One thread that reads ahead and writes behind."""

import threading
from collections.abc import Callable
from functools import partial

import pytest

from voxtune.engine.pipeline import Pipeline


def test_the_next_is_read_while_one_is_used_and_writing_comes_first() -> None:
    events: list[str] = []
    begun = {name: threading.Event() for name in "abc"}

    def read(name: str) -> str:
        events.append(f"read {name}")
        begun[name].set()
        return name

    with Pipeline(read) as pipeline:
        for take in pipeline.ahead("abc"):
            name = take()
            following = chr(ord(name) + 1)
            if following in begun:
                assert begun[following].wait(10)
            pipeline.write(partial(events.append, f"write {name}"))
    assert events == ["read a", "read b", "write a", "read c", "write b", "write c"]


def test_reading_raises_for_its_item_alone() -> None:
    def read(number: int) -> float:
        return 1 / number

    found: list[float | None] = []
    with Pipeline(read) as pipeline:
        for take in pipeline.ahead([1, 0, 2]):
            try:
                found.append(take())
            except ZeroDivisionError:
                found.append(None)
    assert found == [1, None, 0.5]


def test_writing_raises_at_the_next_chance() -> None:
    with Pipeline(str) as pipeline:
        pipeline.write(lambda: [].remove(1))
        with pytest.raises(ValueError, match="not in list"):
            pipeline.wait()
        pipeline.wait()


def test_what_was_made_is_written_whatever_happens() -> None:
    written: list[int] = []
    second, gate = threading.Event(), threading.Event()

    def slow(number: int) -> int:
        if number == 2:
            second.set()
            gate.wait(10)
        return number

    def stopped() -> None:
        with Pipeline(slow) as pipeline:
            takes = pipeline.ahead([1, 2, 3])
            finish: Callable[[], None] = partial(written.append, next(takes)())
            assert second.wait(10)
            pipeline.write(finish)  # waits behind the second, which is being read
            gate.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert written == [1]
