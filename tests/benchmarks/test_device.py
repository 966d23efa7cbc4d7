"""What JAX computes on, asked in another process."""

import os

import pytest

from voxtune.benchmarks import device as module
from voxtune.benchmarks.device import device, environment
from voxtune.models.errors import InputError


def test_the_device_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    device.cache_clear()
    monkeypatch.setattr(
        module, "_ASK", 'print(\'banner\'); print(\'{"kind": "K", "platform": "gpu"}\')'
    )
    assert (device().kind, device().platform) == ("K", "gpu")
    monkeypatch.setattr(module, "_ASK", "raise SystemExit(1)")
    assert device().kind == "K"
    device.cache_clear()
    with pytest.raises(InputError, match="voxtune doctor"):
        device()


def test_on_a_cpu_nothing_sees_a_gpu() -> None:
    assert environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""
    assert environment("cpu")["JAX_PLATFORMS"] == "cpu"
    assert environment("gpu").get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")
    assert environment("gpu")["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
