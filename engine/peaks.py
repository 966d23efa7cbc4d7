"""What a device can do at most: the table, and measured where it is not in there."""

import math
import re
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from voxtune.engine.mesh import ran_out
from voxtune.engine.speed import product_speed

_T = 1e12

# Device kind as JAX names it (a regular expression for its beginning) → FLOP/s in products of
# bfloat16, and of float32 as JAX computes them unless told otherwise: by tensor cores as TF32 on
# NVIDIA's GPUs since the A100, and by one pass in bfloat16 on TPUs
# (docs.jax.dev/en/latest/201/precision.html). All are of dense matrices and sums in float32, where
# data sheets often print twice as much, "sparse". None has to be measured: a V100 and a T4 have no
# bfloat16. Of a part of a GPU (MIG) nothing is known.
_TABLE: tuple[tuple[str, float | None, float], ...] = (
    # NVIDIA GB200 NVL72 data sheet: 5 and 2.5 PFLOP/s a GPU, sparse
    (r"NVIDIA GB200\b", 2500 * _T, 1250 * _T),
    # NVIDIA HGX B200 data sheet: 36 and 18 PFLOP/s for eight, sparse
    (r"NVIDIA B200\b", 2250 * _T, 1125 * _T),
    # NVIDIA H200 data sheet, NVL: 1671 and 835 TFLOP/s, sparse
    (r"NVIDIA H200 NVL\b", 835.5 * _T, 417.5 * _T),
    # NVIDIA H100, H200 and GH200 data sheets, SXM: 1979 and 989 TFLOP/s, sparse
    (r"NVIDIA (H200|GH200|H100 \d+GB HBM3)\b", 989.5 * _T, 494.5 * _T),
    # NVIDIA H100 data sheet, NVL: 1671 and 835 TFLOP/s, sparse
    (r"NVIDIA H100 NVL\b", 835.5 * _T, 417.5 * _T),
    # NVIDIA H100 data sheet, PCIe: 1513 and 756 TFLOP/s, sparse
    (r"NVIDIA H100 PCIe\b", 756.5 * _T, 378 * _T),
    # NVIDIA A100 data sheet, all forms
    (r"(NVIDIA )?A100\b", 312 * _T, 156 * _T),
    # NVIDIA A30 data sheet
    (r"(NVIDIA )?A30\b", 165 * _T, 82 * _T),
    # NVIDIA A40 data sheet
    (r"(NVIDIA )?A40\b", 149.7 * _T, 74.8 * _T),
    # NVIDIA A10 data sheet
    (r"(NVIDIA )?A10\b", 125 * _T, 62.5 * _T),
    # NVIDIA RTX A6000 data sheet and GA102 white paper
    (r"NVIDIA RTX A6000\b", 154.8 * _T, 77.4 * _T),
    # NVIDIA L40S data sheet
    (r"NVIDIA L40S\b", 362 * _T, 183 * _T),
    # NVIDIA L40 data sheet
    (r"NVIDIA L40\b", 181 * _T, 90.5 * _T),
    # NVIDIA L4 data sheet: 242 and 120 TFLOP/s, sparse
    (r"NVIDIA L4\b", 121 * _T, 60 * _T),
    # NVIDIA Ada white paper, appendix A
    (r"NVIDIA GeForce RTX 4090$", 165.2 * _T, 82.6 * _T),
    # NVIDIA GA102 white paper, appendix A
    (r"NVIDIA GeForce RTX 3090$", 71 * _T, 35.6 * _T),
    # NVIDIA V100 data sheet, single precision: SXM2, and PCIe
    (r"Tesla V100-SXM2\b", None, 15.7 * _T),
    (r"Tesla V100-PCIE\b", None, 14 * _T),
    # NVIDIA T4 data sheet, single precision
    (r"(NVIDIA |Tesla )T4\b", None, 8.1 * _T),
    # docs.cloud.google.com/tpu, a page for each version. JAX's device is a chip; of v2, v3 and 7x,
    # half of one.
    (r"TPU v2$", 46 / 2 * _T, 46 / 2 * _T),
    (r"TPU v3$", 123 / 2 * _T, 123 / 2 * _T),
    (r"TPU v4$", 275 * _T, 275 * _T),
    (r"TPU v5( lite|e)$", 197 * _T, 197 * _T),
    (r"TPU v5p?$", 459 * _T, 459 * _T),
    (r"TPU v6( lite|e)$", 918 * _T, 918 * _T),
    (r"TPU7x$", 2307 / 2 * _T, 2307 / 2 * _T),
)


@dataclass(frozen=True)
class Peak:
    """What devices can do at most.

    Attributes:
        flops: a second, of all devices together; NaN where nothing says so.
        source: where it is from; what is measured are products of this machine's own.
    """

    flops: float
    source: Literal["table", "measured", "unknown"]


def known_peak(device_kind: str, dtype: str) -> float | None:
    """FLOP/s of one device in dense products, from the table; None where it is not in there.

    Args:
        device_kind: as JAX names it.
        dtype: `float32` or `bfloat16`.
    """
    if "MIG" in device_kind.split():
        return None
    for pattern, bfloat16, float32 in _TABLE:
        if re.match(pattern, device_kind):
            return bfloat16 if dtype == "bfloat16" else float32
    return None


def peak_of(mesh: Mesh, dtype: str) -> Peak:
    """What the devices of a mesh can do at most together.

    Where the table has no answer it is measured, on one device in a fraction of a second. The
    devices that a CPU simulates share its cores, so there it is of each process, not device. It is
    unknown where the device has no memory left for that.

    Args:
        mesh: the devices; all are taken to be like this process's first.
        dtype: what is computed in, `float32` or `bfloat16`.
    """
    device = mesh.local_mesh.devices.flat[0]
    # Another precision than the usual one is not in the table.
    usual = dtype == "bfloat16" or jax.default_matmul_precision.value is None
    known = known_peak(device.device_kind, dtype) if usual else None
    if known is not None:
        return Peak(known * mesh.size, "table")
    alike = jax.process_count() if device.platform == "cpu" else mesh.size
    try:
        return Peak(product_speed(device, jnp.dtype(dtype)) * alike, "measured")
    except jax.errors.JaxRuntimeError as error:
        if not ran_out(error):  # the run may fit where the matrices do not, beside it
            raise
        return Peak(math.nan, "unknown")
