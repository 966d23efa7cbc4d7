"""Memory that a compiled step needs of a device, and whether it has that."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Compiled

from voxtune.engine.cgroups import lines_of, memory_left
from voxtune.engine.config import Finetune
from voxtune.engine.feed import AHEAD
from voxtune.engine.mesh import DATA, amounts, make_mesh, ran_out
from voxtune.models.errors import InputError
from voxtune.models.lowering import SPATIAL

Splits = Callable[[int], None]

_GB = 1e9
_ARGUMENTS = ("state", "batch", "cache")  # of a step, in their order


@dataclass(frozen=True)
class Memory:
    """Bytes that a compiled step needs of each device, by XLA's own analysis.

    Attributes:
        mesh: the devices.
        arguments: what the step is given.
        outputs: what it gives.
        aliased: of its outputs, what lies where an argument did.
        temporary: what it needs besides, while it runs.
        code: the program.
        parts: of the arguments, by name.
    """

    mesh: Mesh
    arguments: int
    outputs: int
    aliased: int
    temporary: int
    code: int
    parts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, compiled: Compiled, mesh: Mesh, arguments: Sequence[str] = _ARGUMENTS
    ) -> Self | None:
        """Of a program, by default a step's; None where XLA does not tell.

        Args:
            compiled: the program.
            mesh: the devices.
            arguments: names of its first ones, to be told apart as `parts`.
        """
        found = compiled.memory_analysis()
        if found is None:
            return None
        return cls(
            mesh,
            found.argument_size_in_bytes,
            found.output_size_in_bytes,
            found.alias_size_in_bytes,
            found.temp_size_in_bytes,
            found.generated_code_size_in_bytes,
            _parts(compiled, arguments),
        )

    @property
    def total(self) -> int:
        """Bytes of each device."""
        return self.arguments + self.further

    @property
    def further(self) -> int:
        """Bytes of each device beside the arguments, which are there before the step."""
        return self.outputs - self.aliased + self.temporary + self.code

    def line(self) -> str:
        """For a person."""
        parts = self.parts or {"arguments": self.arguments}
        known = {**parts, "temporary": self.temporary}
        known["other"] = self.total - sum(known.values())
        worth = {name: size for name, size in known.items() if size > self.total / 1000}
        shown = ", ".join(f"{name} {size_of(size)}" for name, size in worth.items())
        return f"a device needs {size_of(self.total)} of memory: {shown}"

    def check(self, config: Finetune, batch: int, splits: Splits) -> None:
        """Makes sure that the devices of this process have so much.

        Args:
            config: of the run.
            batch: blocks a step.
            splits: see `advice`.

        Raises:
            InputError: they have not, as far as they tell.
        """
        if lack := self.lack(self._waiting):
            needed, free, where = lack
            raise InputError(
                f"The step does not fit: it needs {size_of(needed)} more memory, but {where} "
                f"{size_of(free)} free, {size_of(needed - free)} too little; "
                f"{advice(config, self.mesh, batch, splits)}."
            )

    def lack(self, more: int) -> tuple[int, float, str] | None:
        """Bytes that are needed and that are free, and whose they are, "a device has".

        None where they suffice, as far as the devices tell.

        Args:
            more: bytes of each device that are needed besides.
        """
        devices = self.mesh.local_mesh.devices.flatten().tolist()
        needed: int
        free: float | None
        if devices[0].platform == "cpu":
            # They share the machine's memory, where the arguments are already.
            needed = (self.further + more) * len(devices)
            free = available_memory()
            where = "the machine has"
        else:
            margins = (self._margin(each, more) for each in devices)
            needed, free = min(margins, key=lambda x: x[1] - x[0])
            where = "a device has"
        return None if free is None or needed <= free else (needed, free, where)

    @property
    def _waiting(self) -> int:
        """Bytes of each device for batches: those that come next, and the one before."""
        return (AHEAD + 1) * self.parts.get("batch", 0)

    def _margin(self, device: jax.Device, more: int) -> tuple[int, float]:
        """What a device needs beside what it holds, and what it has free, bytes."""
        told = device.memory_stats() or {}
        held = told.get("bytes_in_use", 0)
        needed = self.further + more + max(0, self.arguments - held)
        return needed, told.get("bytes_limit", math.inf) - held


@contextmanager
def refusals(config: Finetune, mesh: Mesh, batch: int, splits: Splits) -> Iterator[None]:
    """Says in a sentence that XLA refuses to compile a step for lack of memory, as on TPUs.

    Args:
        config: of the run.
        mesh: the devices.
        batch: blocks a step.
        splits: see `advice`.

    Raises:
        InputError: it does.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not ran_out(error):
            raise
        raise InputError(
            f"The step does not fit into the memory of a device{amounts(error)}; "
            f"{advice(config, mesh, batch, splits)}."
        ) from error


def advice(config: Finetune, mesh: Mesh, batch: int, splits: Splits) -> str:
    """Options that lower the memory that a step needs, without those that a run has already.

    Args:
        config: of the run.
        mesh: the devices.
        batch: blocks a step.
        splits: raises an `InputError` where blocks do not split along depth over so many devices.
    """
    data = mesh.shape[DATA]
    each = batch // data
    cpu = mesh.devices.flat[0].platform == "cpu"  # whose devices share the machine's memory
    options = {
        "a smaller --block": True,
        f"--batch {data * config.accumulate}": each > config.accumulate,
        f"--accumulate {each}": each > config.accumulate,
        "--remat": not config.remat and not cpu,  # XLA on CPUs undoes it
        "--compute-dtype bfloat16": config.compute_dtype == "float32" and not cpu,
        **({} if cpu else dict.fromkeys(_meshes(config, mesh, batch, splits), True)),
        "--shard-optimizer": (
            data > 1 and not config.shard_optimizer and config.map == "jit" and not cpu
        ),
        "--cache host": config.cache == "device",
    }
    return f"try {_either([option for option, helps in options.items() if helps])}"


def _meshes(config: Finetune, mesh: Mesh, batch: int, splits: Splits) -> Iterator[str]:
    """Meshes that need less memory of a device, and that the run would take."""
    devices = jax.device_count()
    data, spatial = mesh.shape[DATA], mesh.shape[SPATIAL]
    if spatial == 1:  # over devices that are idle
        more = [n for n in range(devices, data, -1) if batch % (n * config.accumulate) == 0]
        yield from [f"--mesh {DATA}={n}" for n in more if _suits(f"{DATA}={n}")][:1]
    if config.map != "jit":
        return
    for n in range(devices, spatial, -1):  # one block over so many devices
        shape = f"{DATA}={devices // n},{SPATIAL}={n}"
        if devices % n == 0 and _suits(shape, partial(splits, n)):
            shape = shape.removeprefix(f"{DATA}=1,")
            yield f"--mesh {shape} with --batch {devices // n * config.accumulate}"
            return


def _suits(shape: str, splits: Callable[[], None] = lambda: None) -> bool:
    try:
        make_mesh(shape)
        splits()
    except InputError:
        return False
    return True


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take, of the machine's and of its cgroups'.

    None where nothing says so: on Linux alone something does.

    Args:
        root: where /proc and /sys lie.
    """
    found = []
    for line in lines_of(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    left = memory_left(root)
    return min([*found, *([] if left is None else [left])], default=None)


def _parts(compiled: Compiled, names: Sequence[str]) -> dict[str, int]:
    """Bytes of a device that each of those arguments takes."""
    given, _ = compiled.args_info
    lies, _ = compiled.input_shardings
    return {
        name: sum(map(_bytes, jax.tree.leaves(arrays), jax.tree.leaves(shardings)))
        for name, arrays, shardings in zip(names, given, lies, strict=False)
    }


def _bytes(array: Any, sharding: jax.sharding.Sharding) -> int:
    shape, dtype = sharding.shard_shape(array.shape), array.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return 0  # a few
    return math.prod(shape) * int(dtype.itemsize)


def size_of(size: float) -> str:
    """Bytes for a person."""
    return f"{size / _GB:,.1f} GB" if size >= _GB / 10 else f"{size / 1e6:,.1f} MB"


def _either(options: Sequence[str]) -> str:
    *first, last = options
    return f"{', '.join(first)} or {last}" if first else last
