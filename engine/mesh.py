"""Devices as a mesh, and where arrays lie on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from voxtune.models.errors import InputError

DATA = "data"  # the axis that a batch is split over


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh with the one axis `data`; one device is the mesh of one.

    Args:
        devices: how many to use, all by default.

    Raises:
        InputError: there are not so many.
    """
    found = jax.devices()
    if devices is not None and not 1 <= devices <= len(found):
        raise InputError(f"--devices {devices} is not possible: this machine has {len(found)}.")
    return jax.make_mesh(
        (devices or len(found),), (DATA,), axis_types=(AxisType.Auto,), devices=found[:devices]
    )


def over_data(mesh: Mesh) -> NamedSharding:
    """Arrays whose first axis is split over the devices."""
    return NamedSharding(mesh, P(DATA))


def on_all(mesh: Mesh) -> NamedSharding:
    """Arrays of which each device has the whole."""
    return NamedSharding(mesh, P())


@contextmanager
def memory_errors() -> Iterator[None]:
    """Says in a sentence that memory ran out, the host's or a device's.

    Raises:
        InputError: it did.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise InputError(
                "There is not enough memory for blocks of this size; lower --block or --batch, "
                "fine-tune with --accumulate, --remat or --compute-dtype bfloat16, without --cache "
                "device, or convert the network with a smaller --block."
            ) from error
        raise


def check_batch(batch: int, mesh: Mesh, parts: int = 1) -> None:
    """Makes sure that a batch splits evenly over the devices, and each share into parts.

    Raises:
        InputError: it does not.
    """
    together = mesh.size * parts
    if batch < 1 or batch % together:
        more = -(-max(batch, 1) // together) * together
        each = f" in {parts} parts" if parts > 1 else ""
        other = "--accumulate or --devices" if parts > 1 else "--devices"
        raise InputError(
            f"A batch of {batch} cannot be split evenly over {mesh.size} devices{each}; "
            f"pass --batch {more}, or {other} with a number that divides {batch}."
        )
