"""What JAX computes on, asked in another process."""

import os
from pathlib import Path

import pytest

from voxtune.benchmarks import device as module
from voxtune.benchmarks.device import device, devices, environment
from voxtune.models.errors import InputError


def test_the_device_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    devices.cache_clear()
    answer = '{"kind": "K", "platform": "gpu", "count": 3}'
    monkeypatch.setattr(module, "_ASK", f"print('banner'); print('{answer}')")
    assert (device().kind, device().platform, devices().count) == ("K", "gpu", 3)
    monkeypatch.setattr(module, "_ASK", "raise SystemExit(1)")
    assert device().kind == "K"
    devices.cache_clear()
    with pytest.raises(InputError, match="voxtune doctor"):
        device()


def test_no_module_of_the_current_folder_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not the one')")
    monkeypatch.chdir(tmp_path)
    devices.cache_clear()
    say = "json.dumps({'kind': 'K', 'platform': 'gpu', 'count': 1})"
    monkeypatch.setattr(module, "_ASK", f"import json; print({say})")
    assert device().kind == "K"
    devices.cache_clear()


def test_on_a_cpu_nothing_sees_a_gpu() -> None:
    assert environment("cpu")["CUDA_VISIBLE_DEVICES"] == ""
    assert environment("cpu")["JAX_PLATFORMS"] == "cpu"
    assert environment("gpu").get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")
    assert environment("gpu")["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
