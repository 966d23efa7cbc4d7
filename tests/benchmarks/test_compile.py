"""The suite `compile`: a first step in fresh processes, with an empty and with a filled cache."""

from typing import Any

import pytest

from voxtune.benchmarks import compile as suite
from voxtune.benchmarks.compile import measure, measurement, turn
from voxtune.benchmarks.first_step import PARTS
from voxtune.engine.config import Benchmark
from voxtune.engine.machine import Device

SHAPE = ("8", "1", "float32")


def told(seconds: float, **changes: Any) -> dict[str, Any]:
    """What a process tells."""
    parts = dict.fromkeys(PARTS, seconds / 10)
    line = {"version": "jax 1", "parts": parts, "found": 0, "memory": 5, "unkept": ""}
    return {**line, "seconds": seconds, "problem": "", **changes}


def test_the_second_process_takes_what_the_first_has_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # These are compiled in less than the second from which programs are kept.
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    found = turn("unet", SHAPE, "cpu")
    for each in found.values():
        assert each["problem"] == each["unkept"] == ""
        assert 0 < sum(each["parts"].values()) < each["seconds"]
    assert (found["cold"]["found"], found["warm"]["found"]) == (0, 1)


def test_turns_are_told_by_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((10.0, 20.0, 30.0))
    monkeypatch.setattr(suite, "device", lambda: Device("cpu", "cpu"))
    monkeypatch.setattr(
        suite,
        "turn",
        lambda *_: {"cold": told(next(seconds)), "warm": told(1.0, found=1)},
    )
    cold, warm = measure(Benchmark(networks=("unet",), turns=3), {})
    assert cold.case == "Nobrainer U-Net, 32³, batch 1, float32, cold cache"
    assert cold.seconds == (10, 20, 30)
    assert cold.values["compile_seconds"] == 2
    assert warm.case.endswith("warm cache")
    assert warm.values["found_in_cache"] == 1


def test_a_cache_that_is_not_kept_is_a_problem() -> None:
    found = measurement("unet", SHAPE, "warm", [told(1.0, found=1), told(1.0, unkept="no home")])
    assert (found.problem, found.seconds) == ("no home", ())
    found = measurement("unet", SHAPE, "warm", [told(1.0, found=1), told(1.0)])
    assert (found.problem[:37], found.seconds) == ("the step is not found in the cache, w", ())
    found = measurement("unet", SHAPE, "cold", [{"seconds": 1.0, "problem": "out of memory"}])
    assert found.problem == "out of memory"
