"""What remat saves on a TPU, and that no step gathers there: compiled for one, without one.

`make soak` runs it, in an environment of its own with libtpu, which compiles for TPUs that are not
there: about four minutes on two idle cores. XLA on CPUs undoes remat, so tests cannot measure it.

With 8 blocks a chip, as here, activations take most of the memory. With fewer XLA splits each
block into several along its width and pads channels to 128, and those working copies, which remat
does not touch, take most of it: with one block a chip it saves 20 to 25 %.
"""

import os
import re
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# Before anything imports jax: no search for a TPU, on this machine or in Google's cloud, and no
# lock that keeps two programs from using one.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TF_CPP_MIN_LOG_LEVEL="3",
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from voxtune.engine.augment import PROFILES
from voxtune.engine.changes import Augmented
from voxtune.engine.config import Finetune
from voxtune.engine.mesh import DATA
from voxtune.engine.rules import Parameters, make_rules
from voxtune.engine.step import make_step
from voxtune.models.families import abstract
from voxtune.models.lowering import SPATIAL, plain_lowerings

TOPOLOGY, CHIPS = "v5e:2x2", 4
EDGE = 64  # voxels of a block
# XLA tries less for speed: each step compiles in one minute instead of seven (two cores).
OPTIONS = {"exec_time_optimization_effort": -1.0}
LEAST_SAVED = 0.35
COLLECTIVES = ("all-gather", "all-to-all", "all-reduce", "collective-permute")


@dataclass(frozen=True)
class Compiled:
    """A training step, compiled.

    Attributes:
        temporary: bytes that a chip needs beside parameters, optimizer state and batch.
        collectives: how often each stands in the program.
        seconds: that compiling took.
    """

    temporary: int
    collectives: dict[str, int]
    seconds: float


def compile_step(batch: int, shards: int, remat: bool) -> Compiled:
    """Nobrainer's U-Net in bfloat16 with AdamW, from augmentation to new parameters.

    Args:
        batch: blocks, of all chips together.
        shards: chips that each block's depth is split over; the batch is split over the others.
        remat: whether levels are computed again in the backward pass.
    """
    chips = np.array(topologies.get_topology_desc(TOPOLOGY, "tpu").devices)
    grid = chips.reshape(CHIPS // shards, shards)
    mesh = Mesh(grid, (DATA, SPATIAL), axis_types=(AxisType.Auto,) * 2)
    paths = (Path(),) * 3
    config = Finetune(*paths, compute_dtype="bfloat16", remat=remat)
    network = abstract("unet", {"outputs": 2})
    rules = make_rules(Parameters.of(network), config)
    train, *arrays = make_step(network, config, rules, changes=Augmented(PROFILES["light"], (0,)))
    state = jax.eval_shape(lambda *each: train.first_state(*each, 0), *arrays)
    blocks = {
        "image": jax.ShapeDtypeStruct((batch, EDGE, EDGE, EDGE, 1), jnp.float32),
        "label": jax.ShapeDtypeStruct((batch, EDGE, EDGE, EDGE), jnp.uint8),
    }
    whole, parts = NamedSharding(mesh, P()), NamedSharding(mesh, P(DATA, SPATIAL))
    step = jax.jit(
        train,
        in_shardings=(whole, parts),
        out_shardings=whole,
        donate_argnums=0,
    )
    began = time.perf_counter()
    with plain_lowerings():  # what is fast on a TPU, not on the machine that compiles
        compiled = step.lower(state, blocks).compile(compiler_options=OPTIONS)
    text = compiled.as_text()
    found = {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}
    seconds = time.perf_counter() - began
    return Compiled(compiled.memory_analysis().temp_size_in_bytes, found, seconds)


def report(what: str, compiled: Compiled) -> None:
    """Prints what was found, on a line."""
    counts = ", ".join(f"{count} {name}" for name, count in compiled.collectives.items() if count)
    print(
        f"{what}: {compiled.temporary / 1e6:,.0f} MB temporary memory a chip; {counts}; "
        f"compiled in {compiled.seconds:.0f} s",
        flush=True,
    )


def main() -> int:
    """The exit status: 1 where remat saves too little or a step gathers."""
    if find_spec("libtpu") is None:
        print("Skipped: libtpu, which compiles for TPUs, is not there; Linux on x86 alone has it.")
        return 0
    print(f"A training step of UNet, {EDGE}^3, bfloat16, on {CHIPS} chips of {TOPOLOGY}.")
    kept, again = (compile_step(8 * CHIPS, 1, remat) for remat in (False, True))
    report(f"batch {8 * CHIPS} split over chips", kept)
    report("with remat", again)
    split_depth = compile_step(1, CHIPS, remat=True)
    report("one block split along depth, with remat", split_depth)
    saved = 1 - again.temporary / kept.temporary
    print(f"Remat saves {saved:.0%} of the temporary memory; at least {LEAST_SAVED:.0%} is asked.")
    steps = (kept, again, split_depth)
    gathers = sum(s.collectives["all-gather"] + s.collectives["all-to-all"] for s in steps)
    print(f"{gathers} operations gather; none may.")
    return int(saved < LEAST_SAVED or gathers > 0)


if __name__ == "__main__":
    sys.exit(main())
