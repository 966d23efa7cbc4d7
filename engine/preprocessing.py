"""From a subject's files to what its network sees. No JAX here: worker processes do this too."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.engine.conform import Conformed, conform
from voxtune.engine.contract import Contract
from voxtune.engine.intensity import scaling_of
from voxtune.engine.volume import Volume, check_same_grid, load_image


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


def network_image(scan: Sequence[Volume], contract: Contract) -> tuple[np.ndarray, Conformed]:
    """A scan as its network sees it, float32 `[D, H, W, C]`, and the conformed grid.

    Args:
        scan: its channels, on one grid; each is scaled by its own statistics, those of the whole
            conformed grid.
        contract: how.

    Raises:
        InputError: see `conform` and `scaling_of`.
    """
    channels = []
    for each in scan:
        grid = conformed_channel(each, contract)
        scaling = scaling_of(grid.data, contract.intensity, contract.window, each.path)
        channels.append(scaling(grid.data))
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
