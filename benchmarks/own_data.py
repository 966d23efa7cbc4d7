"""voxtune's data path, timed when asked: a child of the suite `data`.

    own_data.py WAY FILE

FILE is JSON, see `voxtune.benchmarks.data.write_job`. WAY is a key of `WAYS`. It writes a line of
JSON with its version, then one for each turn on standard input.
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
from rich.console import Console

from voxtune.benchmarks.nets import NETS, batch_of
from voxtune.benchmarks.own_step import OwnStep
from voxtune.benchmarks.turns import jax_peak
from voxtune.engine.augment import PROFILES, augment
from voxtune.engine.cache import DeviceCache, cut
from voxtune.engine.case import IGNORE
from voxtune.engine.config import Finetune
from voxtune.engine.dataset import Plan, batches, class_table, host_cached
from voxtune.engine.feed import Feed
from voxtune.engine.mesh import make_mesh
from voxtune.engine.model_dir import LabelClass
from voxtune.engine.store import read_store
from voxtune.engine.train import finetune

WARM = 12  # batches before those that are timed: more than any way reads ahead
LEAST = 0.5  # seconds that what is timed lasts at least
Given = Mapping[str, Any]
Answer = dict[str, Any]
Turn = Callable[[], Answer]


def timed(take: Callable[[int], None], given: Given) -> Turn:
    """Takes batches that do not count, then others for a while; tells what `batches` of them took.

    Args:
        take: takes so many and waits for them.
        given: see `voxtune.benchmarks.data.write_job`.
    """

    def turn() -> Answer:
        take(WARM)
        count, began = given["batches"], time.perf_counter()
        taken, took = 0, 0.0
        while took < LEAST:
            take(count)
            taken, took = taken + count, time.perf_counter() - began
        return {"seconds": took * count / taken, "memory": jax_peak()}

    return turn


def fed(given: Given, stack: ExitStack, *, place: str, workers: int = 0) -> Turn:
    """Blocks of a store as a run gets them, on the device in the end."""
    cases = read_store(given["store"]).cases
    plan = plan_of(given)
    values = sorted({value for case in cases for value in case.counts} | {0})
    table = class_table([LabelClass(value, str(value)) for value in values])
    mesh = make_mesh("data=1")
    of_device = place == "device"
    read = host_cached(cases) if place == "host" else cases
    data = batches(read, plan, table, IGNORE, read=not of_device)
    feed = stack.enter_context(Feed(data, mesh, workers=workers))
    change: Callable[[Any], Any] = partial(dict)
    if of_device:
        volumes = DeviceCache(cases, plan.block, table, IGNORE).load(mesh)
        change = partial(jax.jit(partial(cut, block=plan.block)), volumes)

    def take(count: int) -> None:
        for _ in range(count):
            _, batch = next(feed)
            jax.block_until_ready(change(batch))

    return timed(take, given)


def loaded(given: Given, stack: ExitStack) -> Turn:
    """Loads scans, cuts a block out of each and puts them on the device, as tutorials do."""
    del stack
    plan = plan_of(given)
    files = list(zip(given["images"], given["labels"], strict=True))
    rng = np.random.default_rng(plan.seed)
    load: Any = nib.load

    def example() -> tuple[np.ndarray, np.ndarray]:
        pair = files[int(rng.integers(len(files)))]
        image, label = (np.asanyarray(load(path).dataobj) for path in pair)
        start = rng.integers(0, np.subtract(label.shape, plan.block) + 1)
        where = tuple(slice(a, a + n) for a, n in zip(start, plan.block, strict=True))
        return image[where].astype(np.float32), label[where]

    def take(count: int) -> None:
        for _ in range(count):
            images, labels = zip(*(example() for _ in range(plan.batch)), strict=True)
            jax.block_until_ready(jax.device_put((np.stack(images), np.stack(labels))))

    return timed(take, given)


def trained(given: Given, stack: ExitStack) -> Turn:
    """Fine-tunes, a whole run a turn.

    It answers with the seconds a step of each line of metrics.jsonl but the first, which has the
    start, and with the share of time that the loop waited for batches in them.
    """
    del stack
    about = given["finetune"]
    config = Finetune(
        Path(about["model"]),
        given["store"],
        Path(about["run"]),
        cache=about["cache"],
        workers=about["workers"],
        batch=given["batch"],
        block=tuple(about["block"]),
        compute_dtype=about["dtype"],
        steps=about["steps"],
        log_every=about["steps"] // 4,
        validate_every=about["steps"],
        mesh="data=1",
        overwrite=True,
    )

    def turn() -> Answer:
        began = time.perf_counter()
        finetune(config, Console(file=io.StringIO()))
        log = map(json.loads, (config.run_dir / "metrics.jsonl").read_text().splitlines())
        lines = [line for line in log if line["event"] == "train"][1:]
        steps = [given["batch"] / line["examples_per_second"] for line in lines]
        waits = [line["data_wait"] * step for line, step in zip(lines, steps, strict=True)]
        return {
            "seconds": time.perf_counter() - began,
            "memory": jax_peak(),
            "steps": steps,
            "data_wait": sum(waits) / sum(steps),
        }

    return turn


def augmented(given: Given, stack: ExitStack) -> Turn:
    """A step of Nobrainer's U-Net without augmentation, then each profile on the same batch."""
    del stack
    about = given["augment"]
    shape = about["batch"], *(about["edge"],) * 3
    own = OwnStep.of(NETS["unet"], shape, mesh="data=1", compute_dtype=about["dtype"])
    state, compiled = own.state, own.lower().compile()
    image, label = map(jnp.asarray, batch_of(shape))
    keys = jax.random.split(jax.random.key(0), len(image))
    changes = {
        name: jax.jit(partial(augment, augmentation=each, flip_axes=(0,)))
        for name, each in PROFILES.items()
        if name != "none"
    }

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, own.batch)
        return metrics

    def turn() -> Answer:
        seconds = seconds_of(step)
        profiles = {
            name: seconds_of(partial(change, keys, image, label))
            for name, change in changes.items()
        }
        return {"seconds": seconds, "profiles": profiles, "memory": jax_peak()}

    return turn


def seconds_of(run: Callable[[], Any]) -> float:
    """That it takes until its result is there; what is over at once is done again and again."""
    began = time.perf_counter()
    done, took = 0, 0.0
    while took < LEAST / 5:
        jax.block_until_ready(run())
        done, took = done + 1, time.perf_counter() - began
    return took / done


def plan_of(given: Given) -> Plan:
    """How blocks are drawn: a third of them round a labelled voxel."""
    return Plan((given["edge"],) * 3, "random", 0.33, given["batch"], given["seed"])


WAYS: dict[str, Callable[[Given, ExitStack], Turn]] = {
    "disk": partial(fed, place="disk"),
    "disk, 2 workers": partial(fed, place="disk", workers=2),
    "host": partial(fed, place="host"),
    "device": partial(fed, place="device"),
    "loop": loaded,
    "finetune": trained,
    "augment": augmented,
}


def main() -> None:
    """Takes turns with its parent."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    way, file = sys.argv[1:]
    given = json.loads(Path(file).read_text())
    with ExitStack() as stack:
        turn = WAYS[way](given, stack)
        version = f"nibabel {nib.__version__}" if way == "loop" else f"jax {jax.__version__}"
        print(json.dumps({"version": version}), file=answers, flush=True)
        for _ in sys.stdin:
            print(json.dumps(turn()), file=answers, flush=True)


if __name__ == "__main__":
    main()
