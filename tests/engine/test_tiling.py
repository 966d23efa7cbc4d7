"""Blocks that cover an axis, and a volume."""

import itertools

import pytest

from voxtune.engine.tiling import block_starts, tiles


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_blocks_cover_an_axis_and_overlap_enough(overlap: float):
    for block in (1, 2, 7, 16):
        for size in range(block, 5 * block + 3):
            starts = block_starts(size, block, overlap)
            assert starts[0] == 0
            assert starts[-1] == size - block
            for one, other in itertools.pairwise(starts):
                assert other > one
                # A step of one voxel is the least there can be.
                assert other - one == 1 or block - (other - one) >= block * overlap


def test_blocks_by_hand():
    """10 voxels in blocks of 4 with an overlap of at least 1: 0, 3, 6."""
    assert block_starts(10, 4, 0.25) == [0, 3, 6]
    assert block_starts(4, 4, 0.25) == [0]
    assert block_starts(5, 4, 0.25) == [0, 1]


def test_a_volume_is_covered_axis_by_axis_and_a_small_one_by_one_block():
    assert tiles((8, 3, 5), (4, 4, 4), 0.0) == [(0, 0, 0), (0, 0, 1), (4, 0, 0), (4, 0, 1)]
