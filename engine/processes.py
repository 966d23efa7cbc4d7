"""The processes of a run, each with its own devices: JAX's distributed runtime."""

import importlib.util
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # its client has no public name
from jax.experimental import multihost_utils

from voxtune.models.errors import InputError

FOUND_WITHIN = 300  # seconds that processes wait for each other at the start
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
LEFT_WITHIN = 10  # seconds that a process with bad input waits for the others to find the same

# Ways to ask the machine who the others are, and what JAX calls those that it can be told.
_WAYS = {"auto": None, "slurm": "slurm", "k8s": None, "tpu": None}

# What runtime errors say where another process is gone: of gloo (CPUs), NCCL (GPUs), gRPC.
_LOST = re.compile(
    r"gloo|nccl|coordination|barrier|heartbeat|connection|socket|peer|UNAVAILABLE|DEADLINE_EXCEEDED",
    re.IGNORECASE,
)

_joined: str | None = None  # how this process found the others


class LostError(Exception):
    """Another process of the run ended, or cannot be reached, in a sentence."""


def join(how: str | None) -> None:
    """Makes this process one of several, before anything asks for devices.

    A second time it does nothing. It ends after `FOUND_WITHIN` seconds at the latest, but JAX ends
    the process, with a report of its own, where two have the same rank.

    Args:
        how: as `--distributed` has it; None for a process on its own.

    Raises:
        InputError: the others are not found, or it is too late.
    """
    global _joined
    if how is None or how == _joined:
        return
    if _joined is not None:
        raise InputError(
            f"--distributed {how} comes too late: this process is one of those of {_joined}."
        )
    arguments = _arguments(how)
    found: list[Exception | None] = []

    def initialize() -> None:
        try:
            # Its own time limit ends the process with a stack trace, so ours has to be shorter.
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=FOUND_WITHIN + 60,
                heartbeat_timeout_seconds=HEARTBEAT,
            )
            found.append(None)
        except Exception as error:  # whatever it is, it is told outside of this thread
            found.append(error)

    # A thread, because only one that waits for a thread can be stopped, by the time or by Ctrl-C.
    thread = threading.Thread(target=initialize, name="voxtune-join", daemon=True)
    thread.start()
    thread.join(FOUND_WITHIN)
    if not found:
        raise InputError(
            f"--distributed {how}: the processes did not find each other within {FOUND_WITHIN} s; "
            "start all of them, each with a rank of its own, at an address of process 0 that all "
            "can reach."
        )
    if found[0] is not None:
        raise InputError(f"--distributed {how}: {_reason(found[0])}") from found[0]
    _joined = how


def _arguments(how: str) -> dict[str, Any]:
    """Of `jax.distributed.initialize`.

    Raises:
        InputError: it is none of the ways, or process 0 cannot listen where it is told to.
    """
    if how in _WAYS:
        missing = _environment(how)
        if missing is not None:
            raise InputError(f"--distributed {how}: {missing}")
        return {"cluster_detection_method": _WAYS[how]}
    found = re.fullmatch(r"([^\s,]+):(\d{1,5}),(\d{1,6}),(\d{1,6})", how)
    if found is None:
        raise InputError(
            f"--distributed takes auto, slurm, k8s, tpu or HOST:PORT,RANK,SIZE; '{how}' is none "
            "of them."
        )
    host, port, rank, size = found[1], *map(int, found.groups()[1:])
    if rank >= size:
        ranks = f"the ranks are 0 to {size - 1}, not {rank}" if size else "there is none"
        raise InputError(f"--distributed {how}: of {size} processes {ranks}.")
    if not 0 < port < 2**16:
        raise InputError(f"--distributed {how}: ports are 1 to 65535, not {port}.")
    if rank == 0:
        _check_port(port, how)
    # Told that nothing is to be found out, JAX asks neither Slurm nor a metadata server.
    return {
        "coordinator_address": f"{host}:{port}",
        "num_processes": size,
        "process_id": rank,
        "cluster_detection_method": "deactivate",
    }


def _environment(how: str) -> str | None:
    """What is missing of the surroundings that one of `_WAYS` asks for."""
    if how == "slurm" and not {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= os.environ.keys():
        return "this is no step of a Slurm job; start it with srun, in a job."
    if how == "k8s" and "KUBERNETES_SERVICE_HOST" not in os.environ:
        return "this is no pod of a Kubernetes cluster."
    if how == "k8s" and importlib.util.find_spec("kubernetes") is None:
        return "the package kubernetes is missing; install voxtune[k8s]."
    return None


def _check_port(port: int, how: str) -> None:
    """Makes sure that this process can listen at a port: JAX would crash if it cannot.

    Raises:
        InputError: it cannot.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        # Without the permission to share a port, which JAX has: it would take another run's.
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"--distributed {how}: process 0 cannot listen at port {port} ({reason}); give all "
            "processes another one."
        ) from error


def _reason(error: Exception) -> str:
    """Why JAX did not bring the processes together, and what to do."""
    text = str(error).strip().splitlines()
    if isinstance(error, ValueError) and "should be defined" in str(error):
        return (
            "nothing here says which processes there are, as Slurm, Kubernetes, a TPU VM or Open "
            "MPI would; pass HOST:PORT,RANK,SIZE."
        )
    if "before any JAX calls" in str(error):
        return (
            "this comes too late, something has asked JAX for devices; begin with it, in a new "
            "process."
        )
    return f"JAX could not bring the processes together ({text[0] if text else repr(error)})."


def tag() -> str:
    """What an error of this process begins with, if it is one of several: "process 3: "."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return ""
    return f"process {jax.process_index()}: "


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(where: str) -> None:
    """Returns once all processes have come here; at once where there is one.

    Args:
        where: a name of the place, the same in all.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def gathered(values: np.ndarray) -> np.ndarray:
    """What each process gives, `[processes, ...]`, in all of them, to the bit."""
    if jax.process_count() == 1:
        return values[None]
    # As bytes: arrays on devices have no more than 32 bits a number.
    whole = np.ascontiguousarray(values)
    found = multihost_utils.process_allgather(np.frombuffer(whole.tobytes(), np.uint8))
    return np.asarray(found).view(whole.dtype).reshape(-1, *values.shape)


@contextmanager
def together() -> Iterator[None]:
    """What is refused in one process within it is refused in all: none waits for the others.

    Raises:
        InputError: as it was raised in this process, or that it was in another.
    """
    refused: InputError | None = None
    try:
        yield
    except InputError as error:
        refused = error
    there = gathered(np.array(refused is not None))
    if refused is not None:
        raise refused
    if there.any():
        raise InputError(f"process {int(there.argmax())} cannot go on, and says why.")


@contextmanager
def losses() -> Iterator[None]:
    """Says in a sentence that another process is gone, where JAX does not end this one at once.

    Raises:
        LostError: one is.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_loss(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise LostError(
            f"another process of the run ended or cannot be reached ({reason})"
        ) from error


def is_loss(error: Exception) -> bool:
    """Whether what JAX raised says that another process is gone."""
    of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    # While devices are looked for, what is wrong is wrapped.
    of_jax = of_jax or str(error).startswith("Unable to initialize backend")
    return of_jax and jax.distributed.is_initialized() and bool(_LOST.search(str(error)))


def leave(within: int | None = None) -> None:
    """Parts from the other processes, once all have come here: none takes another for lost.

    Where one of them is gone, or does not come in time, this one goes alone.

    Args:
        within: seconds to wait for the others; by default as long as they are alive.
    """
    client = distributed.global_state.client
    with suppress(RuntimeError):
        if client is not None and within is not None:
            client.wait_at_barrier("voxtune leaves", timeout_in_ms=1000 * within)
        jax.distributed.shutdown()
