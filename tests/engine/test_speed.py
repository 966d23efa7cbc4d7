"""Measured speeds: what is counted, and that something is."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxtune.engine import speed
from voxtune.engine.speed import copy_speed, product_speed, transfer_speed


def test_what_is_counted(monkeypatch: pytest.MonkeyPatch):
    """If each call took a second: four products of 512 cubed, and memory read and written."""
    monkeypatch.setattr(speed, "_seconds", lambda function, argument: 1.0)
    device = jax.devices()[0]
    assert product_speed.__wrapped__(device, jnp.dtype("float32")) == 4 * 2 * 512**3
    assert copy_speed(device) == 2 * 2**29
    assert transfer_speed(device) == 2**26


def test_an_accelerator_multiplies_for_a_while(monkeypatch: pytest.MonkeyPatch):
    """So many products as last that long, of values that are not all the same."""
    called: list[Any] = []

    def seconds(function: Any, argument: Any) -> float:
        called.append((function, argument))
        return 0.001 if len(called) == 1 else 0.04

    device: Any = SimpleNamespace(platform="gpu")
    monkeypatch.setattr(speed, "_seconds", seconds)
    monkeypatch.setattr(jax, "device_put", lambda values, device: values)
    found = speed.product_speed_now(device, jnp.dtype("bfloat16"))
    assert found == pytest.approx(50 * 4 * 2 * 4096**3 / 0.04)
    assert called[1][0].args == (50,)
    values = called[0][1]
    assert values.dtype == jnp.bfloat16
    # So a product's values are as large as its factors'.
    assert values.astype(np.float32).std() == pytest.approx(1 / 64, rel=0.01)


def test_a_product_takes_a_time():
    assert 1e8 < product_speed(jax.devices()[0], jnp.dtype("float32")) < 1e14


def test_the_median_of_calls_after_the_first(monkeypatch: pytest.MonkeyPatch):
    times = iter([0, 3, 10, 11, 20, 27, 30, 32, 40, 44])  # 3, 1, 7, 2 and 4 s
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(times))
    calls: list[int] = []
    assert speed._seconds(calls.append, 1) == 3
    assert len(calls) == 6


def test_what_is_copied_takes_no_new_memory(monkeypatch: pytest.MonkeyPatch):
    """Or a CPU would be measured by how fast it gets some."""
    places: list[int] = []

    def called(function: Any, argument: Any) -> float:
        places.extend(function(argument).unsafe_buffer_pointer() for _ in range(3))
        return 1.0

    monkeypatch.setattr(speed, "_COPIED", 2**12)
    monkeypatch.setattr(speed, "_seconds", called)
    copy_speed(jax.devices()[0])
    assert len(places) == 3
    assert len(set(places)) == 1
