"""How fast a device multiplies and copies, measured."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_PRODUCTS = 4  # one after the other in each call, so that starting it counts for little
_CALLS = 5
_LASTING = 0.05  # seconds in which an accelerator comes to the clock rate that it can keep
_COPIED = 2**29  # bytes: more than most caches have


@functools.cache
def product_speed(device: jax.Device, dtype: np.dtype) -> float:
    """`product_speed_now`, measured once in a process."""
    return product_speed_now(device, dtype)


def product_speed_now(device: jax.Device, dtype: np.dtype) -> float:
    """FLOP/s in products of square matrices; a multiplication and an addition count as two.

    The median of a few calls, after one that is not counted. The values are random, as those of
    equal values cost a GPU less power, which lets it run faster than in training.

    Args:
        device: of this process.
        dtype: of the matrices, computed with as JAX does unless told otherwise.
    """
    cpu = device.platform == "cpu"
    edge = 512 if cpu else 4096
    values = np.random.default_rng(0).standard_normal((edge, edge), np.float32) / edge**0.5
    left = jax.device_put(values.astype(dtype), device)
    times, seconds = 1, _seconds(_products, left)
    if not cpu:
        times = math.ceil(_LASTING / seconds)
        seconds = _seconds(functools.partial(_repeated, times), left)
    return times * _PRODUCTS * 2 * edge**3 / seconds


def _repeated(times: int, left: Array) -> Array:
    """The last of so many, which a device does one after the other."""
    for _ in range(times):
        found = _products(left)
    return found


@jax.jit
def _products(left: Array) -> Array:
    right = left
    for _ in range(_PRODUCTS):
        right = left @ right
    return right


def copy_speed(device: jax.Device) -> float:
    """Bytes/s that a device reads and writes of its own memory, adding one to each value.

    In place: memory that is new to the process costs a CPU more than writing it.
    """
    with jax.default_device(device):
        held = [jnp.zeros(_COPIED // 4)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def again(held: list[Array]) -> Array:
        held[0] = add(held[0])
        return held[0]

    return 2 * _COPIED / _seconds(again, held)


def transfer_speed(device: jax.Device) -> float:
    """Bytes/s from the host's memory to a device's; of no meaning on a CPU, which shares it."""
    values = np.zeros(2**26 // 4, np.float32)
    return values.nbytes / _seconds(functools.partial(jax.device_put, device=device), values)


def _seconds(function: Callable[[Any], Any], argument: Any) -> float:
    """That a call takes."""
    jax.block_until_ready(function(argument))
    found = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        jax.block_until_ready(function(argument))
        found.append(time.perf_counter() - began)
    return statistics.median(found)
