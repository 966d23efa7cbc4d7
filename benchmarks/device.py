"""What JAX computes on, asked in another process: this one must leave a GPU to those it starts."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import jax

from voxtune.engine.machine import Device
from voxtune.models.errors import InputError

_ASK = """
import json, jax
found = jax.devices()
kind, platform = found[0].device_kind, found[0].platform
print(json.dumps({"kind": kind, "platform": platform, "count": len(found)}))
"""
_SECONDS = 120.0  # in which JAX has to find its devices


@dataclass(frozen=True)
class Devices:
    """The first that JAX finds, and how many there are."""

    first: Device
    count: int


def device() -> Device:
    """The first that JAX finds; see `devices`."""
    return devices().first


@functools.cache
def devices() -> Devices:
    """What JAX finds. Asked once in a process.

    Raises:
        InputError: it finds none.
    """
    command = [sys.executable, "-P", "-c", _ASK]  # -P: no module of the current folder
    try:
        done = subprocess.run(
            command,
            env=environment("gpu"),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise InputError("JAX finds no device; 'voxtune doctor' says why.") from error
    found = json.loads(done.stdout.splitlines()[-1])
    return Devices(Device(found["kind"], found["platform"]), found["count"])


def environment(platform: str) -> dict[str, str]:
    """Variables of a process that is measured: what else runs gets its part of a GPU's memory.

    Args:
        platform: as JAX names it; with `cpu` no framework sees a GPU.
    """
    found = {
        **os.environ,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }
    return (
        {**found, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if platform == "cpu"
        else found
    )


def keep_to_cpu() -> None:
    """What this process computes itself, it computes on the CPU."""
    jax.config.update("jax_platforms", "cpu")
