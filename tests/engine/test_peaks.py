"""The table of peaks: the right row for each device, and measured where there is none."""

import math
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from voxtune.engine import peaks
from voxtune.engine.mesh import make_mesh
from voxtune.engine.peaks import Peak, known_peak, peak_of


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5, 494.5),
        ("NVIDIA H200", 989.5, 494.5),
        ("NVIDIA GH200 480GB", 989.5, 494.5),
        ("NVIDIA H200 NVL", 835.5, 417.5),
        ("NVIDIA H100 NVL", 835.5, 417.5),
        ("NVIDIA H100 PCIe", 756.5, 378),
        ("NVIDIA A100-SXM4-80GB", 312, 156),
        ("NVIDIA A100 80GB PCIe", 312, 156),
        ("NVIDIA A10", 125, 62.5),
        ("NVIDIA L4", 121, 60),
        ("NVIDIA L40", 181, 90.5),
        ("NVIDIA L40S", 362, 183),
        ("Tesla V100-SXM2-16GB", None, 15.7),
        ("TPU v3", 61.5, 61.5),
        ("TPU v4", 275, 275),
        ("TPU v5 lite", 197, 197),
        ("TPU v5", 459, 459),
        ("TPU v5p", 459, 459),
        ("TPU v6 lite", 918, 918),
        ("TPU7x", 1153.5, 1153.5),
        # Others that begin alike
        ("NVIDIA A10G", None, None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("TPU v4 lite", None, None),
        ("cpu", None, None),
    ],
)
def test_each_device_has_its_own_peak(kind: str, bfloat16: float | None, float32: float | None):
    for dtype, wanted in (("bfloat16", bfloat16), ("float32", float32)):
        assert known_peak(kind, dtype) == (None if wanted is None else pytest.approx(wanted * 1e12))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement gives 7 FLOP/s."""
    monkeypatch.setattr(peaks, "product_speed", lambda device, dtype: 7.0)


def mesh_of(kind: str, platform: str, number: int) -> Any:
    devices = np.array([SimpleNamespace(device_kind=kind, platform=platform)] * number)
    return SimpleNamespace(size=number, local_mesh=SimpleNamespace(devices=devices))


@pytest.mark.usefixtures("measured")
def test_a_known_device_is_looked_up_for_all_of_them():
    assert peak_of(mesh_of("TPU v4", "tpu", 4), "bfloat16") == Peak(4 * 275e12, "table")


@pytest.mark.usefixtures("measured")
def test_an_unknown_device_is_measured_for_all_of_them():
    peak = peak_of(mesh_of("NVIDIA GeForce GTX 1080", "gpu", 4), "float32")
    assert peak == Peak(28.0, "measured")
    assert peak.source == "measured"


@pytest.mark.usefixtures("measured")
def test_simulated_devices_share_one_cpu():
    assert peak_of(make_mesh("data=8"), "float32") == Peak(7.0, "measured")


@pytest.mark.usefixtures("measured")
def test_another_precision_is_not_the_tables():
    mesh = mesh_of("TPU v4", "tpu", 1)
    with jax.default_matmul_precision("highest"):
        assert peak_of(mesh, "float32").source == "measured"
        assert peak_of(mesh, "bfloat16").source == "table"


def test_a_device_that_is_full_has_no_peak(monkeypatch: pytest.MonkeyPatch):
    """Others of JAX's errors are no matter of memory."""

    def fail(device: Any, dtype: Any) -> float:
        raise jax.errors.JaxRuntimeError(error)

    monkeypatch.setattr(peaks, "product_speed", fail)
    error = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 67108864 bytes."
    peak = peak_of(mesh_of("NVIDIA GeForce GTX 1080", "gpu", 4), "float32")
    assert math.isnan(peak.flops)
    assert peak.source == "unknown"
    error = "INTERNAL: broken"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        peak_of(mesh_of("NVIDIA GeForce GTX 1080", "gpu", 4), "float32")
