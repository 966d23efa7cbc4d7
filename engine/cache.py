"""All training cases in the memory of each device, and blocks cut from them inside the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh

from voxtune.engine.case import Case, block_of
from voxtune.engine.mesh import on_all
from voxtune.models.errors import InputError

Volumes = dict[str, Array]

_GB = 1e9


@dataclass(frozen=True, eq=False)
class DeviceCache:
    """What a device has to hold: all cases, padded behind to the shape of the largest.

    A case that is smaller than the block is padded to it first, as `block_of` does.

    Attributes:
        cases: the subjects.
        block: shape of the blocks that will be cut, voxels.
        table: label value → class index; None for a target.
        unknown: what a label has beside its case.
    """

    cases: Sequence[Case]
    block: tuple[int, int, int]
    table: np.ndarray | None
    unknown: float

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """`image` bfloat16 `[N, D, H, W, C]`, where there is one, and `label` `[N, D, H, W]`.

        A label is a class index, uint8, or the value of a target, bfloat16.
        """
        largest = np.max([each.shape for each in self.cases], axis=0)
        shape = (len(self.cases), *np.maximum(largest, self.block).tolist())
        label = jnp.bfloat16 if self.table is None else jnp.uint8
        found = {"label": jax.ShapeDtypeStruct(shape, label)}
        image = self.cases[0].image
        if image is not None:
            found["image"] = jax.ShapeDtypeStruct((*shape, image.shape[-1]), jnp.bfloat16)
        return found

    @property
    def bytes(self) -> int:
        """Of all this, on each device."""
        return sum(each.size * each.dtype.itemsize for each in self.shapes.values())

    def load(self, mesh: Mesh) -> Volumes:
        """Reads all cases and puts them on every device of a mesh, one after the other.

        Raises:
            InputError: a device has not so much free memory, as far as it tells.
        """
        self.check(mesh)
        volumes = jax.jit(self._zeros, out_shardings=on_all(mesh))()
        put = jax.jit(_put, donate_argnums=0, out_shardings=on_all(mesh))
        for number in range(len(self.cases)):
            volumes = put(volumes, self._padded(number), number)
        return volumes

    def check(self, mesh: Mesh) -> None:
        """Makes sure that it fits.

        Raises:
            InputError: a device has not so much free memory, as far as it tells.
        """
        for device in mesh.local_devices:
            memory = device.memory_stats() or {}
            if "bytes_limit" not in memory:
                continue
            free = memory["bytes_limit"] - memory.get("bytes_in_use", 0)
            if self.bytes > free:
                raise InputError(
                    f"--cache device needs {self.bytes / _GB:.1f} GB in the memory of each device, "
                    f"where {free / _GB:.1f} GB are free, for {len(self.cases)} scans padded to "
                    f"{' x '.join(map(str, self.shapes['label'].shape[1:]))} voxels; pass --cache "
                    "host, or train on fewer scans with --train-subjects."
                )

    def _zeros(self) -> Volumes:
        return {name: jnp.zeros(each.shape, each.dtype) for name, each in self.shapes.items()}

    def _padded(self, number: int) -> dict[str, np.ndarray]:
        """A case in the common shape: one shape for all is one program for all."""
        case = self.cases[number]
        shape = [max(n, edge) for n, edge in zip(case.shape, self.block, strict=True)]
        image, label = block_of(case, (0, 0, 0), shape, self.table, self.unknown)
        found = {"label": label} if image is None else {"image": image, "label": label}
        for name, data in found.items():
            common = np.zeros(self.shapes[name].shape[1:], data.dtype)
            common[tuple(slice(n) for n in data.shape)] = data
            found[name] = common
        return found


def _put(volumes: Volumes, case: dict[str, Array], number: Array) -> Volumes:
    return {
        name: lax.dynamic_update_index_in_dim(each, case[name].astype(each.dtype), number, 0)
        for name, each in volumes.items()
    }


def cut(volumes: Volumes, choice: dict[str, Any], block: tuple[int, int, int]) -> Volumes:
    """Blocks of cached cases: `image` and `label` as `voxtune.engine.dataset.batches` gives them.

    Pure, and meant for the inside of a jitted step, which takes the volumes as an argument: closed
    over, they would become constants of the program. A batch that is split over devices is cut by
    each device from its own copy.

    Args:
        volumes: of `DeviceCache.load`.
        choice: `case` int32 `[B]` and `start` int32 `[B, 3]`.
        block: shape of the blocks, voxels, that of the cache.

    Returns:
        `image` float32 `[B, *block, C]`, rounded to bfloat16, and `label` `[B, *block]`, uint8
        or for a target float32, rounded likewise.
    """
    return jax.vmap(partial(_cut, volumes, block))(choice["case"], choice["start"])


def _cut(volumes: Volumes, block: tuple[int, int, int], case: Array, start: Array) -> Volumes:
    found = {}
    for name, volume in volumes.items():
        channels = volume.shape[4:]
        corner = (case, *start, *(0 for _ in channels))
        part = lax.dynamic_slice(volume, corner, (1, *block, *channels))[0]
        found[name] = part.astype(jnp.float32) if part.dtype == jnp.bfloat16 else part
    return found
