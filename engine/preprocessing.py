"""From a subject's files to what its network sees. No JAX here: worker processes do this too."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.engine.conform import Conformed, conform
from voxtune.engine.contract import Contract
from voxtune.engine.intensity import scaling_of
from voxtune.engine.volume import Volume, check_same_grid, load_image
from voxtune.models.errors import InputError


def load_channels(images: Mapping[str, Path], nonfinite: float | None = None) -> tuple[Volume, ...]:
    """Reads a subject's images, all on the grid of the first.

    Args:
        images: name of each channel → file.
        nonfinite: see `load_image`.

    Raises:
        InputError: a file is bad, or not on that grid.
    """
    first, *others = (load_image(path, nonfinite) for path in images.values())
    return (first, *(check_same_grid(first, each, "linear") for each in others))


def conformed_channel(channel: Volume, contract: Contract) -> Conformed:
    """One channel on the network's grid, float32 `[D, H, W]`, not scaled yet.

    Where zero means that there is no head ("zscore_nonzero"), it is zero outside the scan and
    wherever the nearest voxel of the scan is: what interpolation and blurring spread round a
    skull-stripped brain, a shell of a fifth of its volume, would count as brain.

    Raises:
        InputError: see `conform`.
    """
    how = contract.orientation, contract.spacing_mm
    stripped = contract.intensity == "zscore_nonzero"
    outside = 0.0 if stripped else None
    found = conform(channel, *how, contract.interpolation, contract.grid, outside)
    if stripped and not found.exact:
        head = replace(channel, data=(channel.data != 0).astype(np.uint8))
        found.data[conform(head, *how, "nearest", contract.grid).data == 0] = 0
    return found


@dataclass(frozen=True, eq=False)
class ConformedScan:
    """A scan as its network sees it.

    Attributes:
        image: float32 `[D, H, W, C]`.
        grid: the conformed grid, its data those of the last channel.
        place: the scan's own grid and header, without its voxels.
        replaced: voxels that were NaN or infinite.
    """

    image: np.ndarray
    grid: Conformed
    place: Volume
    replaced: int


def read_conformed(
    images: Mapping[str, Path], contract: Contract, nonfinite: float | None = None
) -> ConformedScan:
    """Reads a scan and brings it to what its network sees, a channel at a time.

    The host holds two volumes at most beside what it returns, whatever the number of channels.

    Raises:
        InputError: as `load_channels` and `network_image`.
    """
    places: list[Volume] = []

    def read() -> Iterator[Volume]:
        for path in images.values():
            volume = load_image(path, nonfinite)
            if places:
                volume = check_same_grid(places[0], volume, "linear")
            places.append(volume.without_voxels())
            handed = [volume]
            del volume
            yield handed.pop()  # so that it goes when its user lets go of it

    image, grid = _conformed(read(), len(images), contract)
    return ConformedScan(image, grid, places[0], sum(each.replaced for each in places))


def network_image(scan: Sequence[Volume], contract: Contract) -> tuple[np.ndarray, Conformed]:
    """A scan as its network sees it, float32 `[D, H, W, C]`, and the conformed grid.

    The grid's data are those of the last channel as the network sees it, not a second volume.

    Args:
        scan: its channels, on one grid; each is scaled by its own statistics, those of the whole
            conformed grid.
        contract: how.

    Raises:
        InputError: see `conform` and `scaling_of`.
    """
    return _conformed(iter(scan), len(scan), contract)


def _conformed(
    scan: Iterator[Volume], channels: int, contract: Contract
) -> tuple[np.ndarray, Conformed]:
    image: np.ndarray | None = None
    for index in range(channels):
        channel = next(scan)
        path = channel.path
        grid = conformed_channel(channel, contract)
        # What was reoriented without a copy is the scan's own, which stays as it is.
        shared = np.shares_memory(grid.data, channel.data)
        del channel
        scaling = scaling_of(grid.data, contract.intensity, contract.window, path)
        scaled = scaling(grid.data) if shared else scaling.in_place(grid.data)
        if not np.isfinite(float(scaled.max()) - float(scaled.min())):
            raise InputError(
                f"{path} has values so large that they cannot be scaled by {contract.intensity}: "
                "export the scan again"
            )
        if channels == 1:
            image = scaled[..., np.newaxis]
        elif image is None:
            image = np.empty((*scaled.shape, channels), np.float32)
        if channels > 1:
            image[..., index] = scaled
        grid = replace(grid, data=image[..., index])
        del scaled
    assert image is not None
    return image, grid


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
