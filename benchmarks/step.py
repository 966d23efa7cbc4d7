"""Times a training step with each lowering of 3D convolutions: `python -m voxtune.benchmarks.step`.

Both networks start from random weights; a step is augmentation, forward, backward and AdamW.
"""

import os
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from voxtune.engine.config import Finetune
from voxtune.engine.optimizer import make_optimizer
from voxtune.engine.step import TrainState, make_train_step, split
from voxtune.models.families import build

REPEATS = 5
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "Nobrainer U-Net, 32³, batch 1": ("unet", {"outputs": 2}, (1, 32, 32, 32)),
    "brainchop MeshNet, 40x40x56, batch 2": (
        "meshnet",
        {"outputs": 3, "activation": "elu", "batchnorm": False},
        (2, 40, 40, 56),
    ),
}


def seconds(family: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> tuple[float, float]:
    """Seconds to compile a training step, and the median of its time."""
    apply, params, statistics = split(build(family, arguments))
    optimizer = make_optimizer(Finetune(Path(), Path(), Path()), params, "head")
    moments, key = optimizer.init(params), jax.random.key(0)
    state = TrainState(jnp.zeros((), jnp.int32), params, statistics, moments, key)
    image = jax.random.normal(key, (*shape, 1))
    batch = {"image": image, "label": (image[..., 0] > 1).astype(jnp.uint8)}
    began = time.perf_counter()
    train_step = jax.jit(make_train_step(apply, optimizer, (0,)), donate_argnums=0)
    step = train_step.lower(state, batch).compile()
    compiled = time.perf_counter() - began
    times = []
    for _ in range(REPEATS + 1):  # the first warms up
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    return compiled, median(times[1:])


def main() -> None:
    """Prints the table."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {cores} cores"
    table = Table(title=f"Training step, jax {jax.__version__}, {machine}, {platform.machine()}")
    for name in ("network", "lowering", "compile", "step"):
        table.add_column(name, justify="left" if name in ("network", "lowering") else "right")
    for name, network in NETWORKS.items():
        compiled, step = seconds(*network)
        table.add_row(name, "chosen", f"{compiled:.1f} s", f"{step:.2f} s")
        with mock.patch("voxtune.models.layers._by_depth_slices", return_value=False):
            compiled, step = seconds(*network)
        table.add_row("", "XLA's convolution", f"{compiled:.1f} s", f"{step:.2f} s")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
