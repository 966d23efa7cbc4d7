"""Labelled scans as host batches of blocks, through Grain."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from voxtune.engine.conform import conform
from voxtune.engine.intensity import scale_intensity
from voxtune.engine.losses import IGNORE
from voxtune.engine.model_dir import Contract, LabelClass
from voxtune.engine.subjects import Subject
from voxtune.engine.volume import Volume, check_same_grid, load_image, load_label
from voxtune.models.errors import InputError

_POSITIONS = 1000  # labelled voxels remembered for each class of a case, to centre blocks on


@dataclass(frozen=True, eq=False)
class Case:
    """One subject as the network sees it.

    Attributes:
        name: the subject's.
        image: float32 `[D, H, W, C]`, conformed and scaled, at least as large as a block.
        label: class indices uint8 `[D, H, W]`; `IGNORE` where the image was padded.
        positions: for each class but background that is there, voxels of it, int `[N, 3]`.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    positions: tuple[np.ndarray, ...]


def network_image(scan: Volume, contract: Contract) -> tuple[np.ndarray, Any]:
    """A scan as its network sees it, float32 `[D, H, W, 1]`, and the conformed grid."""
    grid = conform(scan, contract.orientation, contract.spacing_mm, "image")
    return scale_intensity(grid.data, contract.intensity, scan.path)[..., None], grid


def pad_to_block(
    data: np.ndarray, block: Sequence[int], **how: Any
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Pads the three spatial axes on both sides to the block's size, where they are smaller.

    Images are padded by reflection: zeros round a cropped scan look like nothing that a network
    was trained on, and it finds nothing there (brainchop's networks label all background).

    Args:
        data: `[D, H, W, ...]`.
        block: least size of the three axes, voxels.
        how: of `numpy.pad`; reflection by default.

    Returns:
        The padded array, and where the given one lies in it.
    """
    short = [max(0, size - n) for n, size in zip(data.shape[:3], block, strict=True)]
    width = [(n // 2, n - n // 2) for n in short] + [(0, 0)] * (data.ndim - 3)
    inside = tuple(
        slice(before, before + n) for (before, _), n in zip(width[:3], data.shape[:3], strict=True)
    )
    if not any(short):
        return data, inside
    return np.pad(data, width, **(how or {"mode": "reflect"})), inside


def read_pairs(subjects: Sequence[Subject]) -> list[tuple[Volume, Volume]]:
    """Scan and label of each subject, on one grid.

    Raises:
        InputError: a file is bad, or the two do not fit each other.
    """
    pairs = []
    for subject in subjects:
        assert subject.label is not None
        image = load_image(subject.image)
        pairs.append((image, check_same_grid(image, load_label(subject.label))))
    return pairs


def found_classes(pairs: Sequence[tuple[Volume, Volume]]) -> tuple[LabelClass, ...]:
    """A class for each label value in some scans, and background (0)."""
    values = {0}.union(*(np.unique(label.data).tolist() for _, label in pairs))
    return tuple(
        LabelClass(value, f"class {value}" if value else "background")
        for value in sorted(values, key=lambda value: (value != 0, value))  # background first
    )


def make_case(
    name: str,
    image: Volume,
    label: Volume,
    contract: Contract,
    classes: Sequence[LabelClass],
) -> Case:
    """One subject as the network sees it.

    Raises:
        InputError: the label has values that are no class.
    """
    values = np.array([each.value for each in classes])
    unknown = np.setdiff1d(label.data, values)
    if unknown.size:
        shown = ", ".join(map(str, unknown[:10])) + (", ..." if unknown.size > 10 else "")
        raise InputError(
            f"{label.path} has label values that are no class ({shown}); the classes are "
            f"{', '.join(map(str, values))}: correct the file or name them with --labels."
        )
    scaled, _ = network_image(image, contract)
    target = conform(label, contract.orientation, contract.spacing_mm, "label").data
    order = np.argsort(values)
    indices = order[np.searchsorted(values[order], target)].astype(np.uint8)
    padded, _ = pad_to_block(scaled, contract.block)
    filled, _ = pad_to_block(indices, contract.block, mode="constant", constant_values=IGNORE)
    return Case(name, padded, filled, _positions(filled, len(classes)))


def _positions(label: np.ndarray, classes: int) -> tuple[np.ndarray, ...]:
    found = []
    for index in range(1, classes):
        where = np.flatnonzero(label == index)
        if where.size:
            every = -(-where.size // _POSITIONS)
            found.append(np.stack(np.unravel_index(where[::every], label.shape), axis=-1))
    return tuple(found)


class CutBlock(grain.transforms.RandomMap):
    """Cuts one block out of a case, centred on a labelled voxel with some probability.

    Args:
        block: its shape, voxels.
        foreground: that probability; each class of the case is as likely.
    """

    def __init__(self, block: tuple[int, int, int], foreground: float) -> None:
        self._block = np.array(block)
        self._foreground = foreground

    def random_map(self, element: Case, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`image` `[*block, C]` and `label` `[*block]`."""
        last = np.array(element.label.shape) - self._block
        start = rng.integers(0, last + 1)
        if element.positions and rng.random() < self._foreground:
            positions = element.positions[rng.integers(len(element.positions))]
            centre = positions[rng.integers(len(positions))]
            start = np.clip(centre - self._block // 2, 0, last)
        where = tuple(slice(a, a + n) for a, n in zip(start, self._block, strict=True))
        return {"image": element.image[where], "label": element.label[where]}


def batches(
    cases: Sequence[Case], block: tuple[int, int, int], batch: int, foreground: float, seed: int
) -> grain.MapDataset:
    """Batches without end, `batches(...)[step]` being the one of a step.

    Each pass goes through all cases in a new order. A step's batch follows from the seed and its
    number alone.
    """
    dataset = grain.MapDataset.source(cases).seed(seed).shuffle().repeat()
    return dataset.random_map(CutBlock(block, foreground)).batch(batch, drop_remainder=True)
