"""How a program that is measured takes turns with its parent, and what it tells.

It needs nothing but NumPy, for it is loaded where there is no voxtune, see `peer.py`.
"""

import importlib
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TURN = 1.0  # seconds that a turn is to last at least, of steps of a millisecond or more
MOST = 1000  # steps a turn
# Of memory, they say; the last is NumPy's of more than anything can address.
TOO_LITTLE = (
    r"(?i)out of memory|allocate memory|RESOURCE_EXHAUSTED|\bOOM\b|ALLOC_FAILED|array is too big"
)
OUT_OF_MEMORY = "out of memory"


def process_peak() -> int:
    """The most memory that this process has held, bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # without the peak of the process that started it
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def jax_peak() -> int:
    """The most memory that one of JAX's devices has held, or this process, bytes."""
    import jax

    stats = [each.memory_stats() or {} for each in jax.local_devices()]
    return max(each.get("peak_bytes_in_use", 0) for each in stats) or process_peak()


class RefusalError(Exception):
    """A program cannot do this case, for what it says."""


def problem_of(error: Exception) -> str | None:
    """What was raised, in words, where that is a result; None where something broke."""
    if isinstance(error, ImportError | RefusalError):
        return str(error)
    if isinstance(error, MemoryError) or re.search(TOO_LITTLE, str(error)):
        return OUT_OF_MEMORY
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile fails: {str(error).strip().splitlines()[0]}"
    return None


@dataclass(frozen=True)
class Training:
    """A network that a framework trains on one batch.

    Attributes:
        run: does so many steps, waits for the last, gives the loss before it.
        platform: what computes, `cpu` or as JAX names it.
        memory: the most that was held so far, bytes.
        floor: FLOP/s of the devices in a matrix product, measured now; of voxtune's alone.
        about: what else is said of it.
        notes: what belongs to the version.
        parameters: those that it has now, as the file has them: LAYER:NAME → array.
    """

    run: Callable[[int], float]
    platform: str = "cpu"
    memory: Callable[[], int] = process_peak
    floor: Callable[[], float] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parameters: Callable[[], Mapping[str, np.ndarray]] | None = None


@dataclass(frozen=True)
class Ready:
    """A program that has loaded.

    Attributes:
        turn: its number, from 0 → what is said of it; raises what `problem_of` may know.
        about: what is said of the program.
        notes: what belongs to its version.
    """

    turn: Callable[[int], Mapping[str, Any]]
    about: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def serve(needed: Sequence[str], make: Callable[[], Ready], variables: Mapping[str, str]) -> None:
    """Says what it is, and takes a turn for each line on standard input; in lines of JSON.

    Args:
        needed: modules whose versions are told.
        make: what takes turns, once they are there.
        variables: that libraries heed.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    # Nothing is taken that was compiled before: how long that takes is told apart.
    os.environ |= {"JAX_ENABLE_COMPILATION_CACHE": "false", **variables}

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    trouble = "missing"  # how what goes wrong is called in the first answer
    try:
        modules = [importlib.import_module(name) for name in needed]
        ready = make()
        versions = [f"{m.__name__} {m.__version__}" for m in modules if hasattr(m, "__version__")]
        answer(version=", ".join((*versions, *ready.notes)), **ready.about)
        trouble = "problem"
        for number, _ in enumerate(sys.stdin):
            answer(**ready.turn(number))
    except Exception as error:  # each framework has its own
        problem = problem_of(error)
        if problem is None:
            raise
        answer(**{trouble: problem})


def take_turns(
    needed: Sequence[str],
    make: Callable[[], Training],
    variables: Mapping[str, str],
    kept: Path | None = None,
) -> None:
    """Says what it is, and trains when told to, as `peer.py` says.

    Args:
        needed: as of `serve`.
        make: what trains.
        variables: as of `serve`.
        kept: where parameters are saved after the first step.
    """

    def ready() -> Ready:
        training, steps = make(), 1

        def turn(number: int) -> dict[str, Any]:
            nonlocal steps
            began = time.perf_counter()
            loss = training.run(steps)
            seconds = (time.perf_counter() - began) / steps
            if not math.isfinite(loss):
                raise RefusalError("its loss is not finite")
            found = {"seconds": seconds, "loss": loss, "memory": training.memory()}
            if number == 0 and kept is not None and training.parameters is not None:
                np.savez(kept, allow_pickle=False, **training.parameters())
            # Turns before the first that counts tell the memory of the steps alone.
            if training.floor is not None and number > 1:
                found["floor"] = training.floor()
            if number == 1:  # which neither compiles nor counts
                steps = min(max(1, round(TURN / seconds)), MOST)
            return found

        return Ready(turn, {"platform": training.platform, **training.about}, training.notes)

    serve(needed, ready, variables)
