"""One subject as it is stored, and blocks of it. No JAX here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy import ndimage

from voxtune.models.errors import InputError

Box = tuple[tuple[int, int, int], tuple[int, int, int]]  # first voxel, and one behind the last

IGNORE = 255  # class index of voxels that count for nothing: padding, say

_POSITIONS = 1000  # voxels remembered of each label value, to centre blocks on
_LEVELS = 65534  # steps between the lowest and the highest of 16 bits, one kept for rounding
_COARSEST = 1e-3  # of a channel's standard deviation; beyond it half floats are the better store
_WHOLE_HALVES = 2048  # half floats hold every whole number up to this


class Array(Protocol):
    """What a block can be read from without the rest: an array in memory, on disk or far away."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, where: Any) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Quantised:
    """Numbers in 16 bits: value = stored * scale + offset.

    Attributes:
        stored: int16 or float16 `[D, H, W, C]`.
        scale: float32 `[C]`.
        offset: float32 `[C]`.
    """

    stored: Array
    scale: np.ndarray
    offset: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        """Values of a part, float32 `[d, h, w, C]`."""
        part = np.asarray(self.stored[where], np.float32)
        if len(self.scale) == 1:
            part *= self.scale
            part += self.offset
            return part
        # By rows: NumPy takes twenty times as long where the last axis is a few channels.
        rows = part.reshape(*part.shape[:2], -1)
        width = part.shape[2]
        rows *= np.tile(self.scale, width)
        rows += np.tile(self.offset, width)
        return part


@dataclass(frozen=True, eq=False)
class Case:
    """One subject, conformed and scaled.

    Attributes:
        name: the subject's.
        split: "train", "validation" or "test"; None where the table has no such column.
        image: what the network sees, `[D, H, W, C]`; None where there is a label map alone.
        label: label values uint8 or uint16 `[D, H, W]`, or the values of a target, `[D, H, W, 1]`.
        affine: float64 `[4, 4]`, voxels to mm in RAS+ world space.
        counts: label value → voxels; empty for targets, as the next two.
        boxes: label value but 0 → the smallest box that holds its voxels.
        positions: label value but 0 → some of its voxels, spread evenly, int16 `[N, 3]`.
        scan_shape: of the subject's files, before they were conformed.
        scan_spacing_mm: likewise.
        replaced: voxels of its images that were NaN or infinite, and were replaced.
    """

    name: str
    split: str | None
    image: Quantised | None
    label: Array | Quantised
    affine: np.ndarray
    counts: Mapping[int, int]
    boxes: Mapping[int, Box]
    positions: Mapping[int, np.ndarray]
    scan_shape: tuple[int, int, int]
    scan_spacing_mm: tuple[float, float, float]
    replaced: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the conformed grid."""
        depth, height, width = self.label.shape[:3]
        return depth, height, width

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of the conformed grid."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z


@dataclass(frozen=True)
class Affine:
    """A linear scaling of one channel: (value - offset) / spread."""

    offset: float = 0.0
    spread: float = 1.0


def quantised(channels: Sequence[np.ndarray], scalings: Sequence[Affine]) -> Quantised:
    """Channels in 16 bits.

    Whole numbers that 16 bits hold lose nothing. Others are rounded to 65,534 steps between the
    lowest and the highest, zero being one of the steps; where a far outlier would make such a step
    wider than a thousandth of a channel's standard deviation, all become half floats (in which
    whole numbers over a range of at most 4,096 lose nothing either).

    Args:
        channels: float32 `[D, H, W]` each, in units of the scan.
        scalings: of each channel, what is done to it when it is read.
    """
    levels = [_levels(data) for data in channels]
    coarse = any(
        not whole and step > _COARSEST * float(data.std(dtype=np.float64))
        for data, (_, step, whole) in zip(channels, levels, strict=True)
    )
    if coarse:
        levels = [
            (base, step, whole)
            if whole and np.ptp(data) <= 2 * _WHOLE_HALVES
            # Divided by the largest, so that none overflows.
            else (0.0, float(np.abs(data).max()), False)
            for data, (base, step, whole) in zip(channels, levels, strict=True)
        ]
    stored = np.empty((*channels[0].shape, len(channels)), np.float16 if coarse else np.int16)
    for index, (data, (base, step, _)) in enumerate(zip(channels, levels, strict=True)):
        for plane, values in zip(stored[..., index], data, strict=True):
            numbers = (values.astype(np.float64) - base) / step
            plane[:] = numbers if coarse else np.rint(numbers)
    scale = [step / by.spread for (_, step, _), by in zip(levels, scalings, strict=True)]
    offset = [
        (base - by.offset) / by.spread for (base, _, _), by in zip(levels, scalings, strict=True)
    ]
    return Quantised(stored, np.array(scale, np.float32), np.array(offset, np.float32))


def _levels(data: np.ndarray) -> tuple[float, float, bool]:
    """The value of the stored zero, the step, and whether that loses nothing."""
    low, high = float(data.min()), float(data.max())
    if low == high:
        return low, 1.0, True
    if high - low <= _LEVELS and np.array_equal(data, np.rint(data)):
        return float(round((low + high) / 2)), 1.0, True
    # In float32, as it is read again: then base and the step of zero cancel to the last bit.
    step = float(max(np.float32((high - low) / _LEVELS), np.finfo(np.float32).tiny))
    return math.ceil((low + high) / 2 / step) * step, step, False


def contents_of(
    label: np.ndarray,
) -> tuple[dict[int, int], dict[int, Box], dict[int, np.ndarray]]:
    """What a label map holds: `Case.counts`, `Case.boxes` and `Case.positions`.

    Args:
        label: uint8 or uint16 `[D, H, W]`.
    """
    totals = np.bincount(label.reshape(-1))
    counts = {int(value): int(totals[value]) for value in np.flatnonzero(totals)}
    boxes: dict[int, Box] = {}
    positions: dict[int, np.ndarray] = {}
    for value, where in enumerate(ndimage.find_objects(label), 1):
        if where is None:
            continue
        low, high = (tuple(getattr(each, end) for each in where) for end in ("start", "stop"))
        boxes[value] = (low, high)
        found = np.argwhere(label[where] == value)
        every = -(-len(found) // _POSITIONS)
        positions[value] = (found[::every] + low).astype(np.int16)
    return counts, boxes, positions


def class_indices(case: Case, part: np.ndarray, table: np.ndarray) -> np.ndarray:
    """What a table makes of a part of a case's label, uint8.

    Args:
        case: the subject.
        part: of its label, uint8 or uint16.
        table: label value → class index, or `IGNORE`: uint8 `[65536]`.

    Raises:
        InputError: the part has values that the case does not count: its store is damaged.
    """
    indices: np.ndarray = table[part]
    if (indices == IGNORE).any():  # values that nobody counted are no class, so look only then
        unknown = set(np.flatnonzero(np.bincount(part.reshape(-1))).tolist()) - case.counts.keys()
        if unknown:
            raise InputError(
                f"The label of subject {case.name} has values that its record does not list "
                f"({', '.join(map(str, sorted(unknown)[:10]))}): the store is damaged, prepare it "
                "again."
            )
    return indices


def block_of(
    case: Case, start: Sequence[int], block: Sequence[int], table: np.ndarray | None, unknown: float
) -> tuple[np.ndarray | None, np.ndarray]:
    """A block's image and label; where the case is smaller than the block, it is in the middle.

    Only the block is read. Beside the case an image is mirrored: zeros round a cropped scan look
    like nothing that a network was trained on, and it finds nothing there (brainchop's networks
    label all background).

    Args:
        case: the subject.
        start: first voxel, at most `case.shape - block`, and 0 along axes that are smaller.
        block: its shape, voxels.
        table: see `class_indices`; None for a target.
        unknown: what a label has beside the case: a class index, or a target's value.

    Returns:
        image: float32 `[*block, C]`, None where there is none.
        label: class indices uint8 `[*block]`, or values of a target, float32.

    Raises:
        InputError: the case comes from a damaged store.
    """
    # Not beyond the case: NumPy would not mind, arrays that lie elsewhere do.
    where = tuple(
        slice(a, min(a + n, size)) for a, n, size in zip(start, block, case.shape, strict=True)
    )
    image = None if case.image is None else case.image[where]
    part = case.label[where]
    label = part[..., 0] if table is None else class_indices(case, part, table)
    short = [max(0, n - size) for n, size in zip(block, case.shape, strict=True)]
    if any(short):
        width = [(n // 2, n - n // 2) for n in short]
        label = np.pad(label, width, constant_values=unknown)
        image = None if image is None else np.pad(image, [*width, (0, 0)], "reflect")
    return image, label
