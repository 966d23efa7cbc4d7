"""Times a training step with each lowering of 3D convolutions: `python -m voxtune.benchmarks.step`.

Both networks start from random weights; a step is forward, backward and AdamW, without
augmentation. Steps of the two lowerings take turns, so that a busy machine slows both.
"""

import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from voxtune.engine.config import Finetune
from voxtune.engine.rules import Parameters, make_rules
from voxtune.engine.step import make_step, split
from voxtune.models.families import abstract, build
from voxtune.models.lowering import plain_lowerings

REPEATS = 5
LOWERINGS = {"chosen": nullcontext, "plain": plain_lowerings}


@dataclass(frozen=True)
class Case:
    """A network and what it is given.

    Attributes:
        title: for people.
        family: a key of `voxtune.models.families.FAMILIES`.
        arguments: of the family.
        shape: `[B, D, H, W]` of a batch.
    """

    title: str
    family: str
    arguments: dict[str, Any]
    shape: tuple[int, int, int, int]


CASES = {
    "unet": Case("Nobrainer U-Net, 32³, batch 1", "unet", {"outputs": 2}, (1, 32, 32, 32)),
    "meshnet": Case(
        "brainchop MeshNet, 40x56x40, batch 2",
        "meshnet",
        {"outputs": 3, "activation": "elu", "norm": None},
        (2, 40, 56, 40),
    ),
}


def batch_of(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A random image `[B, D, H, W, 1]`, and as its label `[B, D, H, W]` where it is above 1."""
    image = np.random.default_rng(0).normal(size=(*case.shape, 1)).astype(np.float32)
    return image, (image[..., 0] > 1).astype(np.uint8)


def _in_order(case: Case, params: Any) -> list[tuple[tuple[str, ...], bool]]:
    """Paths of the parameters from input to output as Keras orders them; whether transposed."""
    levels = abstract(case.family, case.arguments).levels()
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = [tuple(key.key for key in path) for path, _ in flat]
    paths.sort(key=lambda p: (levels.index(p[0]), p[1] != "up", p[1:-1], p[-1] == "bias"))
    return [(path, path[-2:] == ("up", "kernel")) for path in paths]


def keras_weights(case: Case) -> list[np.ndarray]:
    """Random parameters as Keras stores them, from input to output."""
    _, params, _ = split(build(case.family, case.arguments))
    arrays = []
    for path, transposed in _in_order(case, params):
        value: Any = params
        for name in path:
            value = value[name]
        arrays.append(np.asarray(value.swapaxes(-1, -2) if transposed else value))
    return arrays


def own_step(
    case: Case, weights: Sequence[np.ndarray], image: np.ndarray, label: np.ndarray
) -> Callable[[], float]:
    """voxtune's training step without augmentation: does one, gives the loss before it."""
    config = Finetune(Path(), "", Path())
    network = build(case.family, case.arguments)
    rules = make_rules(Parameters.of(network), config)
    train, params, statistics = make_step(network, config, rules)
    for (path, transposed), array in zip(_in_order(case, params), weights, strict=True):
        inside: Any = params
        for name in path[:-1]:
            inside = inside[name]
        inside[path[-1]] = jnp.asarray(array.swapaxes(-1, -2) if transposed else array)
    state = train.first_state(params, statistics, 0)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label)}
    train_step = jax.jit(train, donate_argnums=0)

    def step() -> float:
        nonlocal state
        state, metrics = train_step(state, batch)
        return float(metrics["loss"])

    return step


def machine() -> str:
    """What computes, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = jax.devices()[0].device_kind
    return f"{jax.device_count()} x {device}, {cores} cores, {platform.machine()}"


def main() -> None:
    """Prints the table."""
    table = Table(title=f"Training step, jax {jax.__version__}, {machine()}")
    for name in ("network", "lowering", "first step", "step"):
        table.add_column(name, justify="left" if name in ("network", "lowering") else "right")
    for case in CASES.values():
        weights = keras_weights(case)
        steps: dict[str, Callable[[], float]] = {}
        times: dict[str, list[float]] = {}
        for _ in range(REPEATS + 2):  # the first compiles, the second warms up
            for name, lowerings in LOWERINGS.items():
                with lowerings():  # at each step, for another choice would be traced again
                    if name not in steps:
                        steps[name], times[name] = own_step(case, weights, *batch_of(case)), []
                    times[name].append(_seconds(steps[name]))
        for name, (first, _, *rest) in times.items():
            title = case.title if name == "chosen" else ""
            table.add_row(title, name, f"{first:.1f} s", f"{median(rest):.2f} s")
    Console(width=100).print(table)


def _seconds(step: Callable[[], float]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
