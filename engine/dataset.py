"""Labelled scans as host batches of blocks, through Grain.

What is learnt is classes of voxels, or another image of the same head: the target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from voxtune.engine.conform import Conformed, conform
from voxtune.engine.intensity import scale_intensity
from voxtune.engine.losses import IGNORE
from voxtune.engine.model_dir import Contract, LabelClass
from voxtune.engine.subjects import Subject
from voxtune.engine.volume import Volume, check_same_grid, load_image, load_label
from voxtune.models.errors import InputError

Pair = tuple[tuple[Volume, ...], Volume]  # a subject's channels, and its label or target

_POSITIONS = 1000  # labelled voxels remembered for each class of a case, to centre blocks on


@dataclass(frozen=True, eq=False)
class Case:
    """One subject as the network sees it.

    Attributes:
        name: the subject's.
        image: float32 `[D, H, W, C]`, conformed and scaled, at least as large as a block.
        label: class indices uint8 `[D, H, W]`, `IGNORE` where the image was padded; or the values
            of a target, float32, NaN where it was padded.
        positions: for each class but background that is there, voxels of it, int `[N, 3]`; none
            for targets.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    positions: tuple[np.ndarray, ...]


def load_channels(images: Mapping[str, Path]) -> tuple[Volume, ...]:
    """Reads a subject's images, all on the grid of the first.

    Raises:
        InputError: a file is bad, or not on that grid.
    """
    first, *others = map(load_image, images.values())
    return (first, *(check_same_grid(first, each, "linear") for each in others))


def network_image(scan: Sequence[Volume], contract: Contract) -> tuple[np.ndarray, Conformed]:
    """A scan as its network sees it, float32 `[D, H, W, C]`, and the conformed grid.

    Args:
        scan: its channels, on one grid; each is scaled by its own statistics.
        contract: how.
    """
    channels = []
    for each in scan:
        grid = conform(each, contract.orientation, contract.spacing_mm, "image")
        channels.append(scale_intensity(grid.data, contract.intensity, each.path))
    return np.stack(channels, axis=-1), grid


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


def read_pairs(subjects: Sequence[Subject], target: bool = False) -> list[Pair]:
    """Scan and label of each subject, on one grid.

    Args:
        subjects: with labels.
        target: whether what the table calls label is an image, with any values.

    Raises:
        InputError: a file is bad, or does not fit the others.
    """
    pairs = []
    for subject in subjects:
        assert subject.label is not None
        scan = load_channels(subject.images)
        if target:
            truth = check_same_grid(scan[0], load_image(subject.label), "linear")
        else:
            truth = check_same_grid(scan[0], load_label(subject.label))
        pairs.append((scan, truth))
    return pairs


def make_case(
    name: str,
    scan: Sequence[Volume],
    label: Volume,
    contract: Contract,
    classes: Sequence[LabelClass],
    ignored: int | None = None,
) -> Case:
    """One subject as the network sees it.

    Args:
        name: the subject's.
        scan: its channels.
        label: its label map.
        contract: preprocessing.
        classes: what label values are.
        ignored: label value of voxels that count for nothing.

    Raises:
        InputError: the label has values that are no class.
    """
    values = np.array([each.value for each in classes])
    known = values if ignored is None else np.append(values, ignored)
    unknown = np.setdiff1d(label.data, known)
    if unknown.size:
        shown = ", ".join(map(str, unknown[:10])) + (", ..." if unknown.size > 10 else "")
        raise InputError(
            f"{label.path} has label values that are no class ({shown}); the classes are "
            f"{', '.join(map(str, values))}: correct the file, name them with --labels where the "
            "head is not kept, or leave them out with --ignore-label."
        )
    conformed = conform(label, contract.orientation, contract.spacing_mm, "label").data
    order = np.argsort(known)
    # The value to be ignored comes behind the classes, and is none of them.
    indices = order[np.searchsorted(known[order], conformed)]
    indices = np.where(indices == len(values), IGNORE, indices).astype(np.uint8)
    image, filled = _padded(scan, indices, contract, IGNORE)
    return Case(name, image, filled, _positions(filled, len(classes)))


def make_target_case(name: str, scan: Sequence[Volume], target: Volume, contract: Contract) -> Case:
    """One subject as a network that gives an image sees it.

    The target is conformed and scaled as the scan's channels are: linearly, and by its own
    statistics. So what the network learns to give is scaled too.
    """
    scaled, _ = network_image((target,), contract)
    image, filled = _padded(scan, scaled[..., 0], contract, np.nan)
    return Case(name, image, filled, ())


def _padded(
    scan: Sequence[Volume], truth: np.ndarray, contract: Contract, unknown: float
) -> tuple[np.ndarray, np.ndarray]:
    """The network's image, and beside it `truth`, `unknown` where the image was padded."""
    image, _ = network_image(scan, contract)
    padded, _ = pad_to_block(image, contract.block)
    filled, _ = pad_to_block(truth, contract.block, mode="constant", constant_values=unknown)
    return padded, filled


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

    def random_map(self, element: Case, rng: np.random.Generator) -> dict[str, Any]:
        """`image` `[*block, C]`, `label` `[*block]`, and `name`, the subject's."""
        last = np.array(element.label.shape) - self._block
        start = rng.integers(0, last + 1)
        if element.positions and rng.random() < self._foreground:
            positions = element.positions[rng.integers(len(element.positions))]
            centre = positions[rng.integers(len(positions))]
            start = np.clip(centre - self._block // 2, 0, last)
        where = tuple(slice(a, a + n) for a, n in zip(start, self._block, strict=True))
        image, label = element.image[where], element.label[where]
        return {"image": image, "label": label, "name": element.name}


def batches(
    cases: Sequence[Case], block: tuple[int, int, int], batch: int, foreground: float, seed: int
) -> grain.MapDataset:
    """Batches without end, `batches(...)[step]` being the one of a step.

    A batch is `image` `[B, *block, C]`, `label` `[B, *block]` and `name`, str `[B]`, which has to
    stay on the host: devices hold no text. Each pass goes through all cases in a new order. A
    step's batch follows from the seed and its number alone.
    """
    dataset = grain.MapDataset.source(cases).seed(seed).shuffle().repeat()
    return dataset.random_map(CutBlock(block, foreground)).batch(batch, drop_remainder=True)
