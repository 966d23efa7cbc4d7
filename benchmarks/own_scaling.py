"""voxtune's training step on a mesh, timed when asked: a child of the suite `scaling`.

    own_scaling.py NETWORK DTYPE --mesh data=4,spatial=2 --shape B D H W [--map pmap]

The shape is of the whole batch. It takes turns as `own_training.py` does, and tells besides how
many seconds `compiled` took, what the devices send each other (`collectives`), and the bytes of a
`gradient`. CPU devices share the cores of one machine, so what counts is what is sent, and
convolutions are compiled as for a GPU.
"""

import argparse
import time
from contextlib import nullcontext

import jax
import jax.numpy as jnp

from voxtune.benchmarks.collectives import collectives, counted
from voxtune.benchmarks.nets import NETS
from voxtune.benchmarks.own_step import OwnStep
from voxtune.benchmarks.turns import RefusalError, Training, jax_peak, take_turns
from voxtune.engine.speed import product_speed_now
from voxtune.models.errors import InputError
from voxtune.models.lowering import plain_lowerings


def scaling(options: argparse.Namespace) -> Training:
    """The step, compiled.

    Raises:
        RefusalError: there are not so many devices.
    """
    how = {"mesh": options.mesh, "map": options.map, "compute_dtype": options.dtype}
    try:
        own = OwnStep.of(NETS[options.network], options.shape, **how)
    except InputError as error:
        raise RefusalError(str(error)) from error
    first = own.mesh.devices.flat[0]
    began = time.perf_counter()
    with plain_lowerings() if first.platform == "cpu" else nullcontext():
        compiled = own.lower().compile()
    seconds = time.perf_counter() - began
    state, batch = own.state, own.batch
    leaves = jax.tree.leaves(state.params)
    kernels = {each.size for each in leaves if each.ndim > 1}
    about = {
        "compiled": seconds,
        "collectives": counted(collectives(compiled.as_text() or ""), kernels),
        "gradient": sum(each.nbytes for each in leaves),
        "flops": own.flops,
    }

    def run(steps: int) -> float:
        nonlocal state
        for _ in range(steps):
            state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        return float(metrics["loss"])

    def floor() -> float:
        return product_speed_now(first, jnp.dtype(options.dtype)) * own.mesh.size

    return Training(
        run, first.platform, jax_peak, None if first.platform == "cpu" else floor, about
    )


def parser() -> argparse.ArgumentParser:
    """Of what it is given."""
    made = argparse.ArgumentParser()
    made.add_argument("network", choices=NETS)
    made.add_argument("dtype", choices=("float32", "bfloat16"))
    made.add_argument("--mesh", required=True)
    made.add_argument("--shape", type=int, nargs=4, required=True)
    made.add_argument("--map", choices=("jit", "pmap"), default="jit")
    return made


def main() -> None:
    """Takes turns with its parent."""
    options = parser().parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # as `serve` has it for peers
    take_turns(("voxtune", "jax"), lambda: scaling(options), {})


if __name__ == "__main__":
    main()
