"""The meter: rates over the time in which there is training, and memory."""

import contextlib
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from voxtune.engine import meter as module
from voxtune.engine.dataset import Plan
from voxtune.engine.mesh import make_mesh
from voxtune.engine.meter import MEASURED, Meter, peak_memory
from voxtune.engine.peaks import Peak


class Clock:
    """In the place of `time`: stands still unless it is set."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def make(flops: int = 4000) -> Meter:
    plan = Plan((4, 4, 2), "random", 0.5, 3, 0)
    return Meter(plan, flops, make_mesh("data=2"), Peak(10000.0, "table"))


def test_rates_are_of_the_time_that_is_no_pause(clock: Clock):
    """Two steps of three blocks in 5 s, of which 1 s is waiting, beside a pause of 40 s."""
    meter = make()
    with meter.waiting():
        clock.now += 1
    meter.step()
    clock.now += 4
    meter.step()
    with meter.paused():
        clock.now += 40
    found = meter.line()
    assert found.keys() == MEASURED - {"device_peak_bytes"}
    assert found.pop("process_peak_bytes") > 0
    assert found == pytest.approx(
        {
            "examples_per_second": 6 / 5,
            "voxels_per_second": 6 * 32 / 5,
            "flops_per_second": 2 * 4000 / 5,
            "peak_share": 2 * 4000 / 5 / 10000,
            "data_wait": 1 / 5,
        }
    )


def test_a_line_begins_the_next(clock: Clock):
    meter = make()
    meter.step()
    with meter.waiting():
        clock.now += 8
    meter.line()
    meter.step()
    clock.now += 2
    found = meter.line()
    assert found["examples_per_second"] == 3 / 2
    assert found["data_wait"] == 0


def test_a_pause_that_fails_is_one_too(clock: Clock):
    meter = make()
    with contextlib.suppress(KeyboardInterrupt), meter.paused():
        clock.now += 40
        raise KeyboardInterrupt
    clock.now += 1
    meter.step()
    assert meter.line()["examples_per_second"] == 3


def test_without_flops_no_share_is_made_up(clock: Clock):
    meter = make(flops=0)
    meter.step()
    clock.now += 1
    assert not {"flops_per_second", "peak_share"} & meter.line().keys()


def test_memory_is_the_largest_of_the_devices_that_tell():
    def device(stats: dict[str, int] | None) -> Any:
        return SimpleNamespace(memory_stats=lambda: stats)

    devices = [device({"peak_bytes_in_use": each}) for each in (5, 9, 7)]
    assert peak_memory(devices) == {"device_peak_bytes": 9}
    assert peak_memory([device(None)]).keys() == {"process_peak_bytes"}


def test_memory_of_a_process_is_in_bytes():
    """More than the 100 MB that Python with JAX needs at least, less than a TB."""
    assert 1e8 < peak_memory(jax.devices())["process_peak_bytes"] < 1e12
