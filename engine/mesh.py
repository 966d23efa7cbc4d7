"""Devices as a mesh, and where arrays lie on it.

A mesh has two axes: `data`, that a batch is split over, and `spatial`, that the depth of each block
is split over.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from voxtune.engine.processes import is_loss
from voxtune.models.errors import InputError
from voxtune.models.lowering import SPATIAL

DATA = "data"

# What helps where memory ran out.
TO_TRAIN = (
    "lower --block or --batch, fine-tune with --accumulate, --remat, --compute-dtype bfloat16 or "
    "--mesh spatial=, without --cache device, or convert the network with a smaller --block"
)
TO_PREDICT = "lower --block, split it by --mesh spatial=, or ask for fewer --maps"


def find_devices() -> list[jax.Device]:
    """The devices of all processes, in the order of the processes.

    Raises:
        InputError: JAX finds none, or not those that it is asked for.
    """
    try:
        found = jax.devices()
    except (RuntimeError, AssertionError) as error:  # a plugin that is missing is an assertion
        if is_loss(error):
            raise
        lines = str(error).strip().splitlines()
        reason = f" ({lines[0]})" if lines else ""
        asked = os.environ.get("JAX_PLATFORMS")
        where = f" with JAX_PLATFORMS={asked}" if asked else ""
        raise InputError(f"JAX finds no devices{where}{reason}; see 'voxtune doctor'.") from error
    return sorted(found, key=lambda each: (each.process_index, each.id))


def make_mesh(shape: str | None = None) -> Mesh:
    """A mesh of the devices of all processes; one device is the mesh of one.

    Devices are in the order of their processes, so that each process has rows of the mesh of its
    own, or a row is of some processes alone: see `share_of`.

    Args:
        shape: as `--mesh` has it, `data=4,spatial=2` or one of the two; by default all on `data`,
            and with `spatial` alone as many on `data` as there are left.

    Raises:
        InputError: it is no shape, there are no devices or not so many, or it does not suit how
            many of them each process has.
    """
    found = find_devices()
    data, spatial = _sizes(shape, len(found))
    if data * spatial > len(found):
        raise InputError(
            f"--mesh {shape} asks for {data * spatial} devices, but there are {len(found)}; see "
            "'voxtune doctor'."
        )
    if jax.process_count() > 1 and data * spatial < len(found):
        raise InputError(
            f"--mesh {shape} leaves out some of the {len(found)} devices of "
            f"{jax.process_count()} processes; name all of them."
        )
    grid = np.array(found[: data * spatial]).reshape(data, spatial)
    if _shares(grid) is None:
        raise InputError(
            f"--mesh {shape or f'{DATA}={data}'} does not suit {jax.process_count()} processes, of "
            f"which this one has {len(jax.local_devices())} devices: give each process as many, "
            f"and {SPATIAL} a number that divides that, or a multiple of it."
        )
    return Mesh(grid, (DATA, SPATIAL), axis_types=(AxisType.Auto,) * 2)


def _sizes(shape: str | None, devices: int) -> tuple[int, int]:
    sizes: dict[str, int] = {}
    for part in (f"{DATA}={devices}" if shape is None else shape).split(","):
        found = re.fullmatch(r"\s*(data|spatial)\s*=\s*([1-9]\d{0,5})\s*", part)
        if found is None or found[1] in sizes:
            raise InputError(
                f"--mesh takes data=N,spatial=M or one of the two; '{shape}' is not that."
            )
        sizes[found[1]] = int(found[2])
    spatial = sizes.get(SPATIAL, 1)
    return sizes.get(DATA, max(1, devices // spatial)), spatial


def over_data(mesh: Mesh) -> NamedSharding:
    """Arrays whose first axis is split over the devices of `data`."""
    return NamedSharding(mesh, P(DATA))


def over_depth(mesh: Mesh) -> NamedSharding:
    """Arrays `[B, D, ...]` whose batch is split over `data` and depth over `spatial`."""
    return NamedSharding(mesh, P(DATA, SPATIAL))


def on_all(mesh: Mesh) -> NamedSharding:
    """Arrays of which each device has the whole."""
    return NamedSharding(mesh, P())


def share_of(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch this process reads: its number, and how many parts there are.

    Processes that hold the same rows of the mesh, parts of the same blocks, read the same.
    """
    shares = _shares(mesh.devices)
    assert shares is not None
    return shares[jax.process_index()], len(set(shares.values()))


def _shares(grid: np.ndarray) -> dict[int, int] | None:
    """Process → number of the rows that it holds, of devices `[data, spatial]` in their order.

    None where processes have not as many rows each, or some but not all of them in common.
    """
    rows: dict[int, set[int]] = {}
    for (row, _), device in np.ndenumerate(grid):
        rows.setdefault(device.process_index, set()).add(row)
    each = {len(held) for held in rows.values()}
    parts = sorted({tuple(sorted(held)) for held in rows.values()})
    if len(each) > 1 or len(parts) * each.pop() != len(grid):
        return None
    return {process: parts.index(tuple(sorted(held))) for process, held in rows.items()}


def placed(batch: Mapping[str, np.ndarray], mesh: Mesh, mapped: bool = False) -> dict[str, Array]:
    """A batch on the devices, of which each process gives its part.

    Args:
        batch: arrays `[B / processes, ...]`.
        mesh: the devices.
        mapped: whether it is for `jax.pmap`, which wants `[devices, B / devices, ...]`.
    """
    if mapped:
        devices = len(mesh.local_mesh.devices)
        batch = {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}
    sharding = over_data(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, each) for name, each in batch.items()
    }


def here(tree: Any, mesh: Mesh) -> Any:
    """Arrays of which each device has the whole, on this process's devices of a mesh alone."""
    local = on_all(mesh.local_mesh)

    def of_this_process(array: Array) -> Array:
        shards = [each.data for each in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, local, shards)

    return jax.tree.map(of_this_process, tree)


@contextmanager
def memory_errors(advice: str = TO_TRAIN) -> Iterator[None]:
    """Says in a sentence that memory ran out, the host's or a device's.

    Args:
        advice: what helps.

    Raises:
        InputError: it did.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and not ran_out(error):
            raise
        raise InputError(
            f"There is not enough memory{amounts(error)} for blocks of this size; {advice}."
        ) from error


def ran_out(error: BaseException) -> bool:
    """Whether what JAX raised says that a device's memory is too small."""
    return "RESOURCE_EXHAUSTED" in str(error)


def amounts(error: BaseException) -> str:
    """What XLA says of how much was asked for, to go into a sentence; nothing where it does not.

    " (used 17.20G of 15.48G)" where a TPU's compiler refuses, " (3.20 GiB more were asked for)"
    where a device does.
    """
    if found := re.search(r"[Uu]sed (\S+) of (\S+)", str(error)):
        return f" (used {found[1]} of {found[2].rstrip('.')})"
    if found := re.search(r"allocat\w+ (\d[\d.]*) ?(bytes|[KMGT]i?B)", str(error)):
        return f" ({found[1]} {found[2]} more were asked for)"
    return ""


def check_batch(batch: int, mesh: Mesh, parts: int = 1) -> None:
    """Makes sure that a batch splits evenly over the devices of `data`, and each share into parts.

    Then it splits over the processes too, each of which holds whole rows of the mesh or shares one.

    Raises:
        InputError: it does not.
    """
    devices = mesh.shape[DATA]
    together = devices * parts
    if batch < 1 or batch % together:
        more = -(-max(batch, 1) // together) * together
        each = f" in {parts} parts" if parts > 1 else ""
        other = "--accumulate or --mesh" if parts > 1 else "--mesh data="
        raise InputError(
            f"A batch of {batch} cannot be split evenly over {devices} devices{each}; "
            f"pass --batch {more}, or {other} with a number that divides {batch}."
        )
