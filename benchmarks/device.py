"""What JAX computes on, asked in another process: this one must leave a GPU to those it starts."""

import functools
import json
import os
import subprocess
import sys

import jax

from voxtune.engine.machine import Device
from voxtune.models.errors import InputError

_ASK = """
import json, jax
first = jax.devices()[0]
print(json.dumps({"kind": first.device_kind, "platform": first.platform}))
"""
_SECONDS = 120.0  # in which JAX has to find its devices


@functools.cache
def device() -> Device:
    """The first that JAX finds. Asked once in a process.

    Raises:
        InputError: it finds none.
    """
    command = [sys.executable, "-c", _ASK]
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
    return Device(**json.loads(done.stdout.splitlines()[-1]))


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
