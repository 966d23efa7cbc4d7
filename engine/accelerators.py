"""What JAX finds and how fast that is, told a JSON object a line: a process of the doctor's."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from voxtune.engine.compile_cache import use_compile_cache
from voxtune.engine.peaks import known_peak
from voxtune.engine.speed import copy_speed, product_speed, transfer_speed
from voxtune.engine.user_caches import exposed


def main() -> None:
    """Tells what is found as soon as it is: what comes next may end the process."""
    _tell(**_cache())
    devices = jax.local_devices()
    _tell(devices=[_device(each) for each in devices])
    first = devices[0]
    dtypes = ("float32", "bfloat16")
    peaks = {dtype: known_peak(first.device_kind, dtype) for dtype in dtypes}
    _tell(peaks={dtype: peak for dtype, peak in peaks.items() if peak is not None})
    products: dict[str, float] = {}
    for dtype in dtypes:
        products[dtype] = product_speed(first, jnp.dtype(dtype))
        _tell(products=products)
    _tell(copy=copy_speed(first))
    if first.platform != "cpu":
        _tell(transfer=transfer_speed(first))


def _cache() -> dict[str, Any]:
    """The folder of compiled programs, and why others could reach them."""
    reason = use_compile_cache()
    folder = jax.config.values["jax_compilation_cache_dir"]
    if folder and Path(folder).is_dir():
        return {"cache": folder, "exposed": exposed(Path(folder).resolve()) or ""}
    return {"cache": folder, "exposed": reason or ""}


def _device(device: jax.Device) -> dict[str, Any]:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return {"kind": device.device_kind, "platform": device.platform, "memory": limit}


def _tell(**content: Any) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main()
