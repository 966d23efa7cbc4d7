"""Blocks that cover an axis, and a volume."""

import itertools
import math

import numpy as np
import pytest

from voxtune.engine.tiling import block_starts, tiles, weighted_tiles


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_blocks_cover_an_axis_and_overlap_enough(overlap: float):
    for block in (1, 2, 7, 16):
        for size in range(block, 5 * block + 3):
            starts = block_starts(size, block, overlap)
            assert starts[0] == 0
            assert starts[-1] == size - block
            for one, other in itertools.pairwise(starts):
                assert other > one
                # A step of one voxel is the least there can be, and starts are rounded.
                assert other - one == 1 or block - (other - one) > block * overlap - 1


def test_blocks_by_hand():
    """10 voxels in blocks of 4 with an overlap of at least 1: 0, 3, 6."""
    assert block_starts(10, 4, 0.25) == [0, 3, 6]
    assert block_starts(4, 4, 0.25) == [0]
    assert block_starts(5, 4, 0.25) == [0, 1]


def test_a_volume_is_covered_axis_by_axis_and_a_small_one_by_one_block():
    assert tiles((8, 3, 5), (4, 4, 4), 0.0) == [(0, 0, 0), (0, 0, 1), (4, 0, 0), (4, 0, 1)]


def by_hand(size: int, block: int, tile_step_size: float) -> list[int]:
    """As nnU-Net v2 (inference/sliding_window_prediction.py) says it, of one axis.

    Steps of `block * tile_step_size` would be wished for; there are ceil((size - block) / that) + 1
    windows, spread from 0 to size - block, at whole voxels.
    """
    count = math.ceil((size - block) / (block * tile_step_size)) + 1
    step = (size - block) / (count - 1) if count > 1 else 1e9
    return [int(np.round(step * index)) for index in range(count)]


@pytest.mark.parametrize("step", [1.0, 0.75, 0.5, 0.2, 0.1])
def test_blocks_are_nnunets(step: float):
    """Steps as they are written: 1 - 0.8 is less than 0.2."""
    for block in (16, 20, 96, 128):
        for size in (block, block + 1, 2 * block, 110 + block, 256, 301):
            assert block_starts(size, block, 1 - step) == by_hand(size, block, step)
    assert block_starts(110, 64, 0.5) == [0, 23, 46]  # the example in nnU-Net's comment
    assert block_starts(32, 16, 0.8) == [0, 3, 6, 10, 13, 16]
    assert len(block_starts(32, 16, 0.9)) == 11


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_weights_are_gaussians_that_add_up_to_one(overlap: float):
    """Relative to each other those of one window are the Gaussians over their sum."""
    shape, block = (37, 20, 16), (16, 12, 16)
    total = np.zeros(shape)
    corners = []
    for corner, weights in weighted_tiles(shape, block, overlap):
        assert [len(each) for each in weights] == list(block)
        assert all(each.dtype == np.float32 and each.min() > 0 for each in weights)
        along = [each.astype(float) for each in weights]
        place = tuple(slice(at, at + n) for at, n in zip(corner, block, strict=True))
        total[place] += np.einsum("i,j,k", *along)
        corners.append(corner)
    assert corners == tiles(shape, block, overlap)
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_a_weight_by_hand():
    """Windows of 8 at 0 and 4 of 12 voxels: voxel 5 is 1.5 beside one centre, 2.5 beside the other.

    The standard deviation is an eighth of the window, one voxel.
    """
    (first, _), (second, _) = ((w[0], c) for c, w in weighted_tiles((12, 1, 1), (8, 1, 1), 0.5))
    near, far = math.exp(-(1.5**2) / 2), math.exp(-(2.5**2) / 2)
    assert first[5] == pytest.approx(near / (near + far))
    assert second[1] == pytest.approx(far / (near + far))
    assert first[:4].tolist() == [1] * 4  # alone there
