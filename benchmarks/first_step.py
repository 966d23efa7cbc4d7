"""From nothing to the first training step: a child of `voxtune.benchmarks.compile`.

    first_step.py NETWORK EDGE BATCH DTYPE

imports what `voxtune finetune` does, makes the network and its state, traces the step, compiles it
(or takes it from the cache of compiled programs, in the user's folder of caches) and does it. Then
it writes a line of JSON: `version`, the seconds of these `parts`, how many programs of the step's,
one, were `found` in the cache, the most `memory` that was held, bytes, and what is wrong with the
cache, as `unkept`.
"""

import importlib
import itertools
import json
import os
import sys
import time

PARTS = ("import", "setup", "trace", "compile", "step")


def main() -> None:
    """Does it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    network, edge, batch, dtype = sys.argv[1:]
    times = [time.perf_counter()]

    import jax  # here, as importing takes a part of the time

    from voxtune.benchmarks.nets import NETS
    from voxtune.benchmarks.own_step import OwnStep
    from voxtune.benchmarks.turns import jax_peak
    from voxtune.engine.compile_cache import use_compile_cache

    importlib.import_module("voxtune.engine.train")
    times.append(time.perf_counter())
    unkept = use_compile_cache()
    shape = (int(batch), *(int(edge),) * 3)
    own = OwnStep.of(NETS[network], shape, compute_dtype=dtype, mesh="data=1")
    jax.block_until_ready(own.state)
    times.append(time.perf_counter())
    lowered = own.lower()
    found: list[str] = []
    jax.monitoring.register_event_listener(
        lambda event, **_: found.append(event) if event.endswith("/cache_hits") else None
    )
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    jax.block_until_ready(compiled(own.state, own.batch))
    times.append(time.perf_counter())
    seconds = [after - before for before, after in itertools.pairwise(times)]
    told = {
        "version": f"jax {jax.__version__}",
        "parts": dict(zip(PARTS, seconds, strict=True)),
        "found": len(found),
        "memory": jax_peak(),
        "unkept": unkept or "",
    }
    print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
