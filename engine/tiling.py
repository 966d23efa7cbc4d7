"""Blocks that cover a volume. No JAX here."""

import itertools
from collections.abc import Sequence


def tiles(shape: Sequence[int], block: Sequence[int], overlap: float) -> list[tuple[int, ...]]:
    """First voxels of blocks that cover a volume, the last axis moving fastest.

    Args:
        shape: of the volume, voxels; where it is smaller than a block, one lies at 0.
        block: its shape, voxels.
        overlap: least share of a block that its neighbour covers too, from 0 to below 1.
    """
    starts = (
        block_starts(max(size, edge), edge, overlap)
        for size, edge in zip(shape, block, strict=True)
    )
    return list(itertools.product(*starts))


def block_starts(size: int, block: int, overlap: float) -> list[int]:
    """Where blocks begin along an axis: as few as overlap enough, evenly spaced.

    Args:
        size: of the axis, at least `block`, voxels.
        block: edge of a block, voxels.
        overlap: least share of a block that its neighbour covers too.
    """
    step = max(1, int(block * (1 - overlap)))
    count = 1 + -(-(size - block) // step)
    return [round(index * (size - block) / max(1, count - 1)) for index in range(count)]
