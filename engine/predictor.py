"""Probabilities of whole volumes, window by window, stitched together on the devices."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled

from voxtune.engine.mesh import DATA, on_all, over_data, over_depth
from voxtune.engine.predicted import Predicted
from voxtune.engine.preprocessing import pad_to_block
from voxtune.engine.step import Apply, predict_step
from voxtune.engine.tiling import weighted_tiles

_ROOM = 32  # volumes on the devices are multiples of it, so that most scans share their programs


@dataclass(frozen=True)
class Member:
    """One network of an ensemble.

    Attributes:
        apply: the network.
        params: its parameters, on the devices.
        statistics: likewise.
    """

    apply: Apply
    params: Any
    statistics: Any


@dataclass(frozen=True)
class Mirrors:
    """Mirrored passes to average over.

    Attributes:
        axes: spatial axes, 0 to 2, that are mirrored in all combinations.
        left_right: the axis whose mirroring exchanges sides; None where nothing has a side.
        swap: class indices that it exchanges, as pairs.
    """

    axes: tuple[int, ...] = ()
    left_right: int | None = None
    swap: tuple[tuple[int, int], ...] = ()

    def passes(self) -> Iterator[tuple[tuple[int, ...], bool]]:
        """Axes to mirror, and whether classes are exchanged, of each pass; the first is plain."""
        for number in range(len(self.axes) + 1):
            for axes in itertools.combinations(self.axes, number):
                yield axes, self.left_right in axes

    def order(self, classes: int) -> tuple[int, ...]:
        """Which class of a mirrored pass each class is."""
        other = dict((*self.swap, *((right, left) for left, right in self.swap)))
        return tuple(other.get(index, index) for index in range(classes))


class Predictor:
    """Predicts whole volumes, as many windows at a time as the devices hold.

    That is one for each device, or where the mesh splits depth one for each row of it. Each network
    is compiled once, for the shape of a window, whatever the shapes of the volumes.

    Args:
        block: shape of the windows, voxels; its depth splits over the devices of `spatial`, see
            `voxtune.models.sharding`.
        overlap: least share of a window that its neighbour covers too.
        mesh: the devices, all of this process.
        values: whether the networks' outputs are given as they are, not as probabilities.
        mirrors: mirrored passes to average over.
        samples: draws of random weights or dropout to average over; 0 draws nothing.
        seed: of the draws.
        variance: whether the variance over passes is wanted too.
    """

    def __init__(
        self,
        block: tuple[int, int, int],
        overlap: float,
        mesh: Mesh,
        *,
        values: bool = False,
        mirrors: Mirrors = Mirrors(),
        samples: int = 0,
        seed: int = 0,
        variance: bool = False,
    ) -> None:
        self._block, self._overlap, self.mesh = block, overlap, mesh
        self._mirrors, self._samples, self._variance = mirrors, samples, variance
        self._key = jax.random.key(seed)
        self._split = over_depth(mesh)
        network = partial(_drawn_alike, mesh) if samples else predict_step
        self._network = jax.jit(
            partial(network, values=values), static_argnums=0, out_shardings=self._split
        )
        self._mirror = jax.jit(_mirror, static_argnums=(1, 2), out_shardings=self._split)
        each = P(DATA)
        mapped = partial(jax.shard_map, mesh=mesh, check_vma=False)
        self._take = jax.jit(
            mapped(partial(_take, block), in_specs=(P(), each), out_specs=each),
            out_shardings=self._split,
        )
        self._add = jax.jit(
            mapped(_add, in_specs=(each, each, each, each), out_specs=each), donate_argnums=0
        )

    def __call__(self, members: Sequence[Member], image: np.ndarray) -> Predicted:
        """Probabilities, or values, of an image float32 `[D, H, W, C]`, the mean over members."""
        padded, inside = pad_to_block(image, self._block)
        windows = weighted_tiles(padded.shape[:3], self._block, self._overlap)
        if len(windows) == 1:
            return self.in_one(members, image, self._block)
        volume = self._roomy(padded)
        room = volume.shape[:3]
        del padded
        together = self.mesh.shape[DATA]
        totals: list[Array] = []
        for first in range(0, len(windows), together):
            now = windows[first : first + together]
            idle = together - len(now)  # devices that are given the first again, and count nothing
            corners = np.array([*(corner for corner, _ in now), *[now[0][0]] * idle], np.int32)
            weights = [np.stack(each) for each in zip(*(each for _, each in now), strict=True)]
            weights = [np.pad(each, ((0, idle), (0, 0))) for each in weights]
            corners, weights = jax.device_put((corners, weights), over_data(self.mesh))
            found = self._passes(members, self._take(volume, corners))
            if not totals:
                totals = [self._zeros((together, *room, each.shape[-1])) for each in found]
            totals = [
                self._add(total, each, corners, weights)
                for total, each in zip(totals, found, strict=True)
            ]
        # On the one device there is nothing to sum up, and a second copy could be too much for it.
        return _predicted([(_only if together == 1 else _sum)(total) for total in totals], inside)

    def in_one(
        self, members: Sequence[Member], image: np.ndarray, block: tuple[int, int, int]
    ) -> Predicted:
        """The same, with the whole image in one block that is as large, or larger.

        All devices of `data` do the same; those of `spatial` share it.
        """
        padded, inside = pad_to_block(image, block)
        together = self.mesh.shape[DATA]
        blocks = np.broadcast_to(padded, (together, *padded.shape))
        found = self._passes(members, jax.device_put(blocks, self._split))
        return _predicted([(_only if together == 1 else _first)(each) for each in found], inside)

    def compiled(self, member: Member, block: tuple[int, int, int], channels: int) -> Compiled:
        """The network for one block `[*block, C]` on each row of devices, which the call uses."""
        shape = (self.mesh.shape[DATA], *block, channels)
        image = jax.ShapeDtypeStruct(shape, np.float32, sharding=self._split)
        key = self._key if self._samples else None
        with jax.set_mesh(self.mesh):
            return self._network.lower(
                member.apply, member.params, member.statistics, image, key
            ).compile()

    def passes(self, members: int) -> int:
        """How many passes of networks a window takes."""
        return members * len(list(self._mirrors.passes())) * max(1, self._samples)

    def _passes(self, members: Sequence[Member], blocks: Array) -> list[Array]:
        """Mean over members, mirrors and draws, `[N, *block, K]`; `[N, *block, 1]` where wanted.

        That is the variance, summed over classes: of each window for itself, so that windows that
        disagree where they overlap add nothing to it. A draw is the same in all windows.
        """
        count = self.passes(len(members))
        keys = iter(jax.random.split(self._key, count) if self._samples else [None] * count)
        mean = squares = None
        for member in members:
            for axes, exchanged in self._mirrors.passes():
                given = self._mirror(blocks, axes, None) if axes else blocks
                for _ in range(max(1, self._samples)):
                    with jax.set_mesh(self.mesh):  # says whether depth is split
                        new = self._network(
                            member.apply, member.params, member.statistics, given, next(keys)
                        )
                    if axes:
                        order = self._mirrors.order(new.shape[-1]) if exchanged else None
                        new = self._mirror(new, axes, order)
                    square = _squared(new) if self._variance else None
                    mean = new if mean is None else _plus(mean, new)
                    if square is not None:
                        squares = square if squares is None else _plus(squares, square)
        assert mean is not None
        mean = mean if count == 1 else _divided(mean, count)
        return [mean] if squares is None else [mean, _spread(mean, squares, count)]

    def _roomy(self, image: np.ndarray) -> Array:
        """An image `[D, H, W, C]` in a larger volume on each device, a slab of it at a time."""
        room = tuple(-(-size // _ROOM) * _ROOM for size in image.shape[:3])
        everywhere = on_all(self.mesh)
        volume = jnp.zeros((*room, image.shape[-1]), jnp.float32, device=everywhere)
        for first in range(0, len(image), _ROOM):
            part = image[first : first + _ROOM]
            slab = np.zeros((_ROOM, *volume.shape[1:]), np.float32)
            slab[tuple(map(slice, part.shape))] = part
            # One after the other, or on CPUs, which copy none, all of them are held at once.
            volume = jax.block_until_ready(_put(volume, jax.device_put(slab, everywhere), first))
        return volume

    def _zeros(self, shape: tuple[int, ...]) -> Array:
        return jnp.zeros(shape, jnp.float32, device=over_data(self.mesh))


def _predicted(found: Sequence[Array], inside: Sequence[slice]) -> Predicted:
    mean, *spread = found
    depth, height, width = inside
    return Predicted(mean, (depth, height, width), spread[0][..., 0] if spread else None)


def _drawn_alike(
    mesh: Mesh,
    apply: Apply,
    params: Any,
    statistics: Any,
    blocks: Array,
    key: Array,
    *,
    values: bool,
) -> Array:
    """`predict_step`, where each device of `data` makes the same draw for its one block.

    Of a batch each block would get a draw of its own, so results would hang on how many devices
    there are. Over `spatial` the block is split as ever.
    """
    one = jax.shard_map(
        partial(predict_step, apply, values=values),
        mesh=mesh,
        in_specs=(P(), P(), P(DATA), P()),
        out_specs=P(DATA),
        axis_names={DATA},
        check_vma=False,
    )
    found: Array = one(params, statistics, blocks, key)
    return found


@partial(jax.jit, donate_argnums=0)
def _put(volume: Array, slab: Array, first: int) -> Array:
    return lax.dynamic_update_slice(volume, slab, (first, 0, 0, 0))


def _take(block: tuple[int, int, int], volume: Array, corners: Array) -> Array:
    """The window of this device, `[1, *block, C]`."""
    found = lax.dynamic_slice(volume, (*corners[0], 0), (*block, volume.shape[-1]))
    return found[None]


def _add(total: Array, blocks: Array, corners: Array, weights: list[Array]) -> Array:
    """The volume of this device `[1, D, H, W, K]` with its window `[1, *block, K]` added to it."""
    along_d, along_h, along_w = (each[0] for each in weights)
    weight = along_d[:, None, None, None] * along_h[:, None, None] * along_w[:, None]
    place = (0, *corners[0], 0)
    before = lax.dynamic_slice(total, place, blocks.shape)
    return lax.dynamic_update_slice(total, before + blocks * weight, place)


def _mirror(blocks: Array, axes: tuple[int, ...], order: tuple[int, ...] | None) -> Array:
    """Blocks `[N, D, H, W, K]` flipped along spatial axes, and their classes in another order."""
    flipped = jnp.flip(blocks, [axis + 1 for axis in axes])
    return flipped if order is None else flipped[..., list(order)]


_plus: Callable[[Array, Array], Array] = jax.jit(jnp.add, donate_argnums=0)
_divided: Callable[[Array, float], Array] = jax.jit(jnp.divide, donate_argnums=0)
_only: Callable[[Array], Array] = jax.jit(lambda each: each[0], donate_argnums=0)


@jax.jit
def _first(each: Array) -> Array:
    return each[0]


@jax.jit
def _squared(blocks: Array) -> Array:
    return jnp.square(blocks).sum(-1, keepdims=True)


@partial(jax.jit, donate_argnums=1)
def _spread(mean: Array, squares: Array, count: int) -> Array:
    """The variance of so many passes, `[N, *block, 1]`, from their mean and sum of squares."""
    return jnp.maximum(squares / count - jnp.square(mean).sum(-1, keepdims=True), 0)


@jax.jit
def _sum(total: Array) -> Array:
    """Over devices, `[N, D, H, W, K]` → `[D, H, W, K]`."""
    return total.sum(0)
