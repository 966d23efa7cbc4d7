"""Times each augmentation profile beside a training step: `python -m voxtune.benchmarks.augment`.

The step is that of Nobrainer's U-Net on the same batch, without augmentation. Profiles and step
take turns, so that a busy machine slows all of them.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from voxtune.benchmarks.step import Case, batch_of, keras_weights, machine, own_step
from voxtune.engine.augment import PROFILES, Augmentation, augment

REPEATS = 5
STEP = "training step"


def profile_of(augmentation: Augmentation, image: jax.Array, label: jax.Array) -> Callable:
    """Augments the batch once, with flips from left to right, and waits for it."""
    change = jax.jit(partial(augment, augmentation=augmentation, flip_axes=(0,)))
    keys = jax.random.split(jax.random.key(0), len(image))
    return lambda: jax.block_until_ready(change(keys, image, label))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="voxtune.benchmarks.augment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--block", type=int, nargs=3, default=(32, 32, 32), help="voxels")
    parser.add_argument("--batch", type=int, default=2, help="blocks")
    given = parser.parse_args()
    block, blocks = "x".join(map(str, given.block)), given.batch
    case = Case("", "unet", {"outputs": 2}, (blocks, *given.block))
    image, label = batch_of(case)
    on_device = jnp.asarray(image), jnp.asarray(label)
    runs: dict[str, Callable] = {STEP: own_step(case, keras_weights(case), image, label)}
    runs |= {name: profile_of(each, *on_device) for name, each in PROFILES.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS + 2):  # the first compiles, the second warms up
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    step = median(times[STEP][2:])
    table = Table(
        title=f"Augmentation, {block}, batch {blocks}, jax {jax.__version__}, {machine()}"
    )
    table.add_column("profile")
    for column in ("first call", "a batch", "share of the step with it"):
        table.add_column(column, justify="right")
    for name, (first, _, *rest) in times.items():
        took = median(rest)
        share = "" if name == STEP else f"{took / (step + took):.2%}"
        table.add_row(name, f"{first:.1f} s", f"{1000 * took:.1f} ms", share)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
