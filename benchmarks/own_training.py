"""voxtune's training step, timed when asked: a child of the suite `train`, as peers are.

    own_training.py NETWORK FILE DTYPE --shape B D H W [--remat] [--map pmap]

does as `peer.py`, but writes the file that peers read. The shape is of the batch of each device. It
tells besides a step's `flops`, and the number of `devices`; and from the third turn on, after its
steps, the `floor`: FLOP/s that the devices have in a matrix product.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from voxtune.benchmarks.comparisons import OWN
from voxtune.benchmarks.nets import NETS, compared, for_peers
from voxtune.benchmarks.own_step import OwnStep
from voxtune.benchmarks.peer import CLIP, DECAY, EXACT, RATE, stepped
from voxtune.benchmarks.turns import RefusalError, Training, jax_peak, take_turns
from voxtune.engine.speed import product_speed_now
from voxtune.models.families import abstract


def own_training(options: argparse.Namespace) -> Training:
    """voxtune's step as a run compiles it; jitted for one device, or mapped over all.

    Its metrics come on top of what peers compute.

    Raises:
        RefusalError: blocks are not such as the network takes.
    """
    batch, *block = options.shape
    net = NETS[options.network]
    multiple = abstract(net.family, dict(net.arguments)).min_multiple
    if any(size % multiple for size in block):
        raise RefusalError(f"it takes blocks whose edges are multiples of {multiple} voxels")
    devices = jax.local_device_count() if options.map == "pmap" else 1
    dtype = options.dtype
    if dtype == EXACT:
        dtype = "float32"
        jax.config.update("jax_default_matmul_precision", "highest")
    own = OwnStep.of(
        net,
        (batch * devices, *block),
        compute_dtype=dtype,
        remat=options.remat,
        map=options.map,
        mesh=f"data={devices}",
        schedule="constant",
        warmup=0,
        trunk_lr=RATE,
        head_lr=RATE,
        weight_decay=DECAY,
        clip=CLIP,
    )
    state, compiled = own.state, None
    network = for_peers(own.net, state.params, state.statistics)
    np.savez(options.file, allow_pickle=False, **own.whole, **network)
    first = own.mesh.devices.flat[0]
    alike = devices if first.platform != "cpu" else 1  # CPUs that are simulated share its cores

    def run(steps: int) -> float:
        nonlocal state, compiled
        compiled = compiled or own.lower().compile()
        for _ in range(steps):
            state, metrics = compiled(state, own.batch)
        jax.block_until_ready((state, metrics))
        return float(metrics["loss"])

    return Training(
        run,
        first.platform,
        jax_peak,
        lambda: product_speed_now(first, jnp.dtype(dtype)) * alike,
        {"devices": devices, "flops": own.flops},
        parameters=lambda: compared(own.net, state.params, state.statistics),
    )


def parser() -> argparse.ArgumentParser:
    """Of what it is given."""
    made = argparse.ArgumentParser()
    made.add_argument("network", choices=NETS)
    made.add_argument("file")
    made.add_argument("dtype", choices=("float32", "bfloat16", EXACT))
    made.add_argument("--shape", type=int, nargs=4, required=True)
    made.add_argument("--remat", action="store_true")
    made.add_argument("--map", choices=("jit", "pmap"), default="jit")
    return made


def main() -> None:
    """Takes turns with its parent."""
    options = parser().parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # see `serve`
    take_turns(("voxtune", "jax"), lambda: own_training(options), {}, stepped(options.file, OWN))


if __name__ == "__main__":
    main()
