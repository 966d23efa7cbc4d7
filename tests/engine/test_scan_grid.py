"""Classes on the scan's grid, against each class's map interpolated by scipy, one after another."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from voxtune.engine import scan_grid
from voxtune.engine.conform import Conformed, conform
from voxtune.engine.predicted import Predicted
from voxtune.engine.scan_grid import to_scan_grid
from voxtune.engine.volume import Volume

RNG = np.random.default_rng(0)
OBLIQUE = np.array(
    [[0.9, 0.3, -0.1, 4], [-0.2, 1.3, 0.2, -3], [0.15, -0.1, 1.1, 8], [0, 0, 0, 1.0]]
)
COARSE = np.diag([1.7, -2.3, 1.2, 1.0])
GRIDS = {
    "exact": (np.array([[0, 0, 1, 0], [-1, 0, 0, 9], [0, 1, 0, 0], [0, 0, 0, 1.0]]), None),
    "exact and cut": (np.diag([-1.0, 1, 1, 1]), (8, 14, 12)),
    "oblique": (OBLIQUE, None),
    "oblique and cut": (OBLIQUE, (8, 30, 9)),
    "coarse": (COARSE, None),
    "coarse and padded": (COARSE, (40, 41, 30)),
    "one plane": (np.diag([0.5, 1, 1, 1]), (1, 10, 10)),
}


def conformed(name: str) -> Conformed:
    affine, grid = GRIDS[name]
    data = RNG.random((11, 12, 13)).astype(np.float32)
    scan = Volume(data, affine, Path("made.nii"), nib.Nifti1Header())
    return conform(scan, "RAS", (1.0, 1.0, 1.0), "linear", grid)


def held(mean: np.ndarray) -> Predicted:
    """In a larger volume of other values."""
    wide = np.pad(mean, [(1, 4), (2, 3), (0, 5), (0, 0)], constant_values=7.0)
    inside = tuple(slice(first, first + n) for first, n in zip((1, 2, 0), mean.shape, strict=False))
    return Predicted(jnp.asarray(wide), inside)


def reference(grid: Conformed, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Winners on the scan's grid, and by how much they win there."""
    moved = np.linalg.inv(grid.to_reoriented)
    shape = tuple(grid.scan_shape[axis] for axis in grid.axes)
    moved[:3, 3] -= grid.corner
    maps = np.stack(
        [
            ndimage.affine_transform(
                each, moved[:3, :3], moved[:3, 3], shape, order=1, mode="nearest"
            )
            for each in np.moveaxis(mean, -1, 0)
        ]
    )
    first, second = np.sort(maps, axis=0)[-1:-3:-1]
    places = np.moveaxis(moved[:3, :3] @ np.indices(shape).reshape(3, -1) + moved[:3, 3:], 0, -1)
    beyond = (places < -0.5) | (places > np.array(grid.data.shape) - 0.5)
    uncut = [
        at <= 0 and at + n >= size
        for at, n, size in zip(grid.corner, grid.data.shape, grid.uncut_shape, strict=True)
    ]
    out = (beyond & ~np.array(uncut)).any(-1).reshape(shape)
    winners = np.where(out, 0, maps.argmax(0))
    turned = [axis for axis in range(3) if grid.flipped[axis]]
    back = [np.flip(x, turned).transpose(np.argsort(grid.axes)) for x in (winners, first - second)]
    return back[0], back[1]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts for each scan, the last ones not full."""
    monkeypatch.setattr(scan_grid, "_LOOKED_UP", 500)
    monkeypatch.setattr(scan_grid, "_INTERPOLATED", 150)


@pytest.mark.parametrize("name", GRIDS)
def test_the_winners_are_those_of_interpolated_maps(name: str) -> None:
    """Blobs of five classes, and of two of which the second wins above 0.4."""
    grid = conformed(name)
    assert grid.exact == name.startswith("exact")
    noise = RNG.normal(size=(*grid.data.shape, 5))
    logits = ndimage.gaussian_filter(noise, (2, 2, 2, 0)) * 30
    mean = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mean = mean.astype(np.float32)
    wanted, margin = reference(grid, mean)
    found = to_scan_grid(grid, held(mean))
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.uint8, (11, 12, 13), True)
    sure = margin > 1e-4
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(found[sure], wanted[sure])
    assert len(np.unique(found)) == 5

    two = np.stack([1 - mean[..., 0], mean[..., 0]], -1)
    wanted, margin = reference(grid, np.stack([np.full_like(mean[..., 0], 0.4), mean[..., 0]], -1))
    found = to_scan_grid(grid, held(two), 0.4)
    sure = margin > 1e-4
    np.testing.assert_array_equal(found[sure], wanted[sure])
    assert 0 < found.mean() < 1


def test_few_voxels_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two halves with a border between, those of two planes of cells."""
    grid, seen = conformed("oblique"), list[int]()
    places = scan_grid._places
    monkeypatch.setattr(
        scan_grid, "_places", lambda these, *rest: seen.append(these.size) or places(these, *rest)
    )
    mean = np.zeros((*grid.data.shape, 2), np.float32)
    mean[:7, ..., 0] = mean[7:, ..., 1] = 1
    found = to_scan_grid(grid, held(mean))
    np.testing.assert_array_equal(found, reference(grid, mean)[0])
    assert 0 < sum(seen) < found.size / 5


def test_the_last_voxels_of_the_largest_scan() -> None:
    """Of 1 x 2^16 x 2^15 voxels: the plane's size is beyond int32."""
    cells = jnp.arange(4, dtype=jnp.uint8).reshape(4, 1, 1)
    matrix = np.zeros((4, 4), np.float32)
    matrix[0] = 1, 2**-16, 0, 1  # cell 1 of depth, and its end along height
    shape, first, size = (
        np.array(each, np.int32) for each in ((1, 2**16, 2**15), [0] * 3, [4] * 3)
    )
    start = np.uint32(2**31 - 4)
    found = scan_grid._looked_up(8, cells, start, shape, matrix, first, size)
    np.testing.assert_array_equal(found[:4], 1)


def test_more_than_256_classes() -> None:
    grid = conformed("coarse")
    mean = np.zeros((*grid.data.shape, 300), np.float32)
    mean[..., 299] = 1
    found = to_scan_grid(grid, held(mean))
    assert found.dtype == np.uint16
    assert (found == 299).all()


def test_another_grid_is_a_mistake() -> None:
    grid = conformed("coarse")
    with pytest.raises(ValueError, match="is not on the grid"):
        to_scan_grid(grid, held(np.zeros((3, 3, 3, 2), np.float32)))
    other = dataclasses.replace(grid, data=np.zeros((3, 3, 3), np.float32))
    assert not to_scan_grid(other, held(np.ones((3, 3, 3, 2), np.float32))).any()  # ties: the first
