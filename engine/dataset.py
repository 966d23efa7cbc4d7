"""Which block of which case comes when, and host batches of these blocks, through Grain.

A step's batch follows from the seed and the number of the step alone: not from where the blocks
are read, nor from how many threads, worker processes or machines read them.
"""

import functools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import grain
import numpy as np

from voxtune.engine.case import IGNORE, Array, Case, Quantised, block_of
from voxtune.engine.tiling import tiles

Sampling = Literal["random", "grid"]
HostBatch = dict[str, np.ndarray]

_VALUES = 2**16  # that a label can have


class Valued(Protocol):
    """A class that voxels have by the value of their label."""

    @property
    def value(self) -> int: ...


@dataclass(frozen=True)
class Plan:
    """How examples are drawn.

    Attributes:
        block: shape of a block, voxels. Where it is at least as large as every case, examples are
            whole volumes.
        sampling: "random": each pass goes through all cases in a new order, and cuts one block out
            of each, somewhere. "grid": Nobrainer's `to_blocks`: each pass goes through all blocks
            of all cases in a new order, blocks that lie side by side; where a volume is no
            multiple of the block they overlap, as little as can be and evenly.
        foreground: of "random": share of blocks that are centred on a labelled voxel, each class
            of the case being as likely (nnU-Net's oversampling, Isensee et al. 2021; here it is
            drawn for each block, not fixed to the last places of a batch).
        batch: blocks a step, of all processes together.
        seed: of order and places.
    """

    block: tuple[int, int, int]
    sampling: Sampling
    foreground: float
    batch: int
    seed: int


def class_table(classes: Iterable[Valued]) -> np.ndarray:
    """Label value → class index, uint8 `[65536]`; `IGNORE` for values that are no class."""
    table = np.full(_VALUES, IGNORE, np.uint8)
    for index, each in enumerate(classes):
        table[each.value] = index
    return table


def examples(cases: Sequence[Case], plan: Plan) -> int:
    """How many blocks a pass through all cases has."""
    if plan.sampling == "random":
        return len(cases)
    return sum(len(tiles(each.shape, plan.block, overlap=0.0)) for each in cases)


def choices(cases: Sequence[Case], plan: Plan, table: np.ndarray | None) -> grain.MapDataset:
    """Examples without end: `case`, an index, int32, and `start`, its first voxel, int32 `[3]`.

    Along an axis that is smaller than the block, `start` is 0.

    Args:
        cases: the subjects.
        plan: how examples are drawn.
        table: see `class_table`; None for targets, whose blocks lie anywhere.
    """
    if plan.sampling == "grid":
        places = np.array(
            [
                (case, *start)
                for case, each in enumerate(cases)
                for start in tiles(each.shape, plan.block, overlap=0.0)
            ],
            np.int32,
        )
        return _shuffled(len(places), plan.seed).map(TakePlace(places))
    draw = DrawBlock(cases, plan.block, plan.foreground, table)
    return _shuffled(len(cases), plan.seed).random_map(draw, seed=plan.seed)


def _shuffled(count: int, seed: int) -> grain.MapDataset:
    """0 to `count - 1`, again and again, each time in a new order."""
    return grain.MapDataset.range(count).repeat().map_with_index(Shuffle(count, seed))


# Classes, and no functools.partial: Grain would print one with all of its arguments.


class Shuffle(grain.transforms.MapWithIndex):
    """Index of an example → which one of `count` it is.

    In the place of Grain's own shuffle, which takes 3 ms an example where there are 30 of them, and
    18 ms where there are two (grain 0.2.18): as long as a step with a device cache.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed

    def map_with_index(self, index: int, element: int) -> int:
        """The example, from 0 to `count - 1`."""
        turn, place = divmod(index, self._count)
        return int(_order(self._count, self._seed, turn)[place])


@functools.lru_cache(maxsize=4)  # those who read ahead may be in the next pass
def _order(count: int, seed: int, turn: int) -> np.ndarray:
    return np.random.default_rng((seed, turn)).permutation(count)


class TakePlace(grain.transforms.Map):
    """Number of a block → `case` and `start`."""

    def __init__(self, places: np.ndarray) -> None:
        self._places = places

    def map(self, element: int) -> HostBatch:
        """The place with this number."""
        case, *start = self._places[element]
        return {"case": case, "start": np.array(start)}


class DrawBlock(grain.transforms.RandomMap):
    """Draws where a case's block lies: see `Plan`.

    Args:
        cases: the subjects.
        block: shape of a block, voxels.
        foreground: probability that it is centred on a labelled voxel.
        table: see `class_table`.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        block: tuple[int, int, int],
        foreground: float,
        table: np.ndarray | None,
    ) -> None:
        self._cases, self._block, self._table = cases, np.array(block), table
        self._foreground = foreground

    def random_map(self, element: int, rng: np.random.Generator) -> HostBatch:
        """`case` and `start` of the case with this index."""
        case = self._cases[element]
        last = np.maximum(np.array(case.shape) - self._block, 0)
        start = rng.integers(0, last + 1)
        labelled = self._labelled(case)
        if labelled and rng.random() < self._foreground:
            positions = labelled[rng.integers(len(labelled))]
            centre = positions[rng.integers(len(positions))]
            start = np.clip(centre - self._block // 2, 0, last)
        return {"case": np.int32(element), "start": start.astype(np.int32)}

    def _labelled(self, case: Case) -> list[np.ndarray]:
        """Voxels of each class of a case, but background."""
        if self._table is None:
            return []
        # Sorted, or blocks would depend on how a case came by its labels.
        values = [each for each in sorted(case.positions) if self._table[each] not in (0, IGNORE)]
        return [case.positions[each] for each in values if len(case.positions[each])]


def batches(
    cases: Sequence[Case],
    plan: Plan,
    table: np.ndarray | None,
    unknown: float,
    share: tuple[int, int] = (0, 1),
    read: bool = True,
) -> grain.MapDataset:
    """Batches without end, `batches(...)[step]` being a process's part of that of a step.

    A batch is `image` float32 `[B, *block, C]` (absent where cases have none), `label`
    `[B, *block]` (class indices uint8, or a target's values, float32), and `name`, str `[B]`, which
    has to stay on the host: devices hold no text.

    Args:
        cases: the subjects.
        plan: how examples are drawn.
        table: see `class_table`; None for a target.
        unknown: what a label has beside its case: `IGNORE`, or NaN for a target.
        share: number of this process, and how many there are; they divide the batch evenly.
        read: whether blocks are read; otherwise a batch has `case` int32 `[B]` and `start` int32
            `[B, 3]` in the place of image and label, see `voxtune.engine.cache`.
    """
    chosen = choices(cases, plan, table).batch(plan.batch, drop_remainder=True)
    part = chosen.map(TakePart(*share)).map(AddNames(cases))
    return part.map(ReadBlocks(cases, plan.block, table, unknown)) if read else part


class TakePart(grain.transforms.Map):
    """Takes a process's part of a batch: see `batches`."""

    def __init__(self, index: int, count: int) -> None:
        self._index, self._count = index, count

    def map(self, element: HostBatch) -> HostBatch:
        """The arrays `[B / count, ...]`."""
        return {name: np.split(each, self._count)[self._index] for name, each in element.items()}


class AddNames(grain.transforms.Map):
    """Adds `name` to `case`."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._cases = cases

    def map(self, element: HostBatch) -> HostBatch:
        """What there is, and `name`, str `[B]`."""
        return element | {"name": np.array([self._cases[each].name for each in element["case"]])}


class ReadBlocks(grain.transforms.Map):
    """Reads the blocks that were chosen: see `batches`."""

    def __init__(
        self,
        cases: Sequence[Case],
        block: tuple[int, int, int],
        table: np.ndarray | None,
        unknown: float,
    ) -> None:
        self._cases, self._how = cases, (block, table, unknown)

    def map(self, element: HostBatch) -> HostBatch:
        """`image` and `label` in the place of `case` and `start`."""
        images, labels = [], []
        for case, start in zip(element["case"], element["start"].tolist(), strict=True):
            image, label = block_of(self._cases[case], start, *self._how)
            labels.append(label)
            if image is not None:
                images.append(image)
        found = {"label": np.stack(labels), "name": element["name"]}
        return found | ({"image": np.stack(images)} if images else {})


def host_cached(cases: Sequence[Case]) -> list[Case]:
    """The cases with their arrays in memory, as they are stored."""
    with ThreadPoolExecutor() as pool:  # reading from an object store is waiting, most of all
        return list(pool.map(_in_memory, cases))


def _in_memory(case: Case) -> Case:
    image, label = case.image, case.label
    return replace(
        case,
        image=None if image is None else _loaded(image),
        label=_loaded(label) if isinstance(label, Quantised) else _read(label),
    )


def _loaded(values: Quantised) -> Quantised:
    return replace(values, stored=_read(values.stored))


def _read(array: Array) -> np.ndarray:
    return array if type(array) is np.ndarray else np.array(array[:, :, :])
