"""The same bits in each run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from voxtune.models.errors import InputError

# jaxlib 0.10 and 0.11 say of it: "Guarantees run-to-run determinism on GPU." It chooses
# implementations of convolutions, products and scatters that give the same bits, as does
# --xla_gpu_exclude_nondeterministic_ops, which it contains (openxla.org/xla/determinism); and the
# first that works in the place of the fastest (XLA's GetAutotuneConfig: select_first_config), which
# is not the same one in each compilation.
FLAG = "--xla_gpu_deterministic_ops"


def be_deterministic() -> None:
    """Has XLA choose operations that give the same bits in each run, on GPUs.

    With it the same command, on the same kind and number of GPUs with the same versions of JAX and
    of the driver, gives the same bits. It costs speed, as nothing is autotuned, and compilation
    fails where an operation has no such implementation: gradients of windows' maxima
    (select-and-scatter). CPUs and TPUs give the same bits without it, and nothing changes there.

    XLA reads its flags once, so this comes before JAX looks for devices. A flag that the user has
    set stays.

    Raises:
        InputError: JAX has found GPUs already, without the flag.
    """
    given = os.environ.get("XLA_FLAGS", "")
    settings = [each for each in given.split() if each.partition("=")[0] == FLAG]
    if settings and settings[-1].partition("=")[2] in ("false", "0"):
        raise InputError(
            f"--deterministic needs {FLAG}, which XLA_FLAGS switches off; take it out there, or "
            "leave --deterministic out."
        )
    if settings:
        return
    if _started():
        import jax

        if jax.default_backend() == "gpu":
            raise InputError(
                f"--deterministic comes too late: JAX has found its GPUs already; set XLA_FLAGS to "
                f"{FLAG}=true before the program starts."
            )
        return
    os.environ["XLA_FLAGS"] = f"{given} {FLAG}=true".strip()


@contextmanager
def nondeterminism() -> Iterator[None]:
    """Says in a sentence that XLA refuses to compile what has no deterministic implementation.

    Raises:
        InputError: it does.
    """
    try:
        yield
    except Exception as error:  # XLA's kinds differ by backend; raised again unless it is this one
        text = str(error)
        if "UNIMPLEMENTED" not in text or "deterministic" not in text:
            raise
        raise InputError(
            "The step has an operation that gives the same bits in each run on no GPU "
            f"({text.strip().splitlines()[0]}): gradients of max-pooling with padding, or with "
            "windows that overlap, are one; leave --deterministic out."
        ) from error


def _started() -> bool:
    """Whether JAX has looked for devices, and XLA for its flags."""
    from jax._src import xla_bridge  # it has no public name

    return xla_bridge.backends_are_initialized()
