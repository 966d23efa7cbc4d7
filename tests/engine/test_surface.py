"""Surface distances against MONAI's, DeepMind's, and all pairs of boundary voxels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from voxtune.engine import surface
from voxtune.engine.surface import SurfaceDistances, boundary, surface_distances

GOLDEN = np.load(Path(__file__).with_name("surfaces.golden.npz"))  # of make_surface_fixtures.py
CASES = [name.removesuffix("_masks") for name in GOLDEN.files if name.endswith("_masks")]
FULL = [case for case in CASES if np.isfinite(GOLDEN[f"{case}_deepmind"]).all()]
TOLERANCES = (0.5, 1.0, 2.0)
DIAGONAL = 0.5  # of a voxel: what HD95 and ASSD stay within of DeepMind's, measured


def masks(case: str) -> np.ndarray:
    """The predicted and the true mask, bool `[2, D, H, W]`."""
    shape = tuple(GOLDEN[f"{case}_shape"])
    bits = np.unpackbits(GOLDEN[f"{case}_masks"], axis=1, count=int(np.prod(shape)))
    return bits.reshape(2, *shape).astype(bool)


def axes(case: str) -> np.ndarray:
    return np.diag(GOLDEN[f"{case}_spacing"])


def numbers(distances: SurfaceDistances) -> list[float]:
    """In the order of the fixtures."""
    three = (distances.hausdorff(), distances.hausdorff(95), distances.average)
    return [*three, *(distances.dice(each) for each in TOLERANCES)]


def test_there_are_cases() -> None:
    assert len(FULL) == 11
    assert len(CASES) == 14


@pytest.mark.parametrize("case", CASES)
def test_monai(case: str) -> None:
    """MONAI's distance to an empty mask is infinite, or NaN for a percentile; ours is undefined."""
    own = numbers(surface_distances(*masks(case), axes(case)))
    expected = GOLDEN[f"{case}_monai"].copy()
    expected[:3][~np.isfinite(expected[:3])] = np.nan
    assert own == pytest.approx(expected, abs=1e-5, rel=0, nan_ok=True)


@pytest.mark.parametrize("case", FULL)
def test_deepmind(case: str) -> None:
    """HD within a voxel's diagonal, as the module derives; others as near as was measured."""
    own = numbers(surface_distances(*masks(case), axes(case)))
    theirs, diagonal = GOLDEN[f"{case}_deepmind"], np.linalg.norm(GOLDEN[f"{case}_spacing"])
    assert own[0] == pytest.approx(theirs[0], abs=diagonal)
    assert own[1:3] == pytest.approx(theirs[1:3], abs=DIAGONAL * diagonal)
    assert own[5] == pytest.approx(theirs[5], abs=0.2)  # measured: 0.168


def all_pairs(case: str, affine: np.ndarray) -> list[float]:
    """The same by the distances of all pairs."""
    points = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) @ affine.T for mask in masks(case)]
    table = cdist(*points)
    return numbers(SurfaceDistances(table.min(1), table.min(0)))


@pytest.mark.parametrize("case", ["ellipsoids", "border", "blobs"])
def test_a_sheared_grid(case: str) -> None:
    shear = np.array([[1, 0.4, 0], [0, 1, -0.3], [0.1, 0, 1]]) @ axes(case)
    own = numbers(surface_distances(*masks(case), shear))
    assert own == pytest.approx(all_pairs(case, shear), abs=1e-9)
    assert own != pytest.approx(numbers(surface_distances(*masks(case), axes(case))), abs=0.01)


@pytest.mark.parametrize("case", FULL)
def test_a_turned_grid_of_float32_changes_nothing(case: str) -> None:
    """Many distances are the tolerance itself, and would fall off it by rounding."""
    turn = Rotation.from_euler("xyz", (20, -35, 80), degrees=True).as_matrix()
    turned = (turn @ axes(case)).astype(np.float32)
    own = numbers(surface_distances(*masks(case), turned))
    expected = numbers(surface_distances(*masks(case), axes(case)))
    assert own[:3] == pytest.approx(expected[:3], abs=1e-5)
    assert own[3:] == expected[3:]


def test_boundaries_that_are_shared_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []
    nearest = surface._nearest
    monkeypatch.setattr(
        surface,
        "_nearest",
        lambda points, others: searched.append(len(points)) or nearest(points, others),
    )
    one = np.zeros((9, 9, 9), bool)
    one[2:7, 2:7, 2:7] = True
    two = one.copy()
    two[7, 4, 4] = True
    found = surface_distances(two, one, np.eye(3))
    assert searched == [1, 1]  # the voxel, and the one below it, which it made an inner one
    assert (len(found.to_true), len(found.to_predicted)) == (98, 98)
    assert found.hausdorff() == 1


def test_the_tolerance_counts() -> None:
    distances = SurfaceDistances(np.array([0.0, 1.0, 3.0]), np.array([1.0, 2.0]))
    assert distances.dice(1) == 3 / 5
    assert distances.dice(0) == 1 / 5
    assert distances.average == 7 / 5
    assert distances.hausdorff() == 3
    assert distances.hausdorff(50) == 1.5  # the larger of 1 and 1.5


def padded() -> Iterator[np.ndarray]:
    for case in CASES:
        yield from masks(case)


def test_the_boundary_is_what_an_erosion_takes() -> None:
    for mask in padded():
        assert np.array_equal(boundary(mask), mask & ~ndimage.binary_erosion(mask))


def test_the_whole_volume_has_a_boundary() -> None:
    assert boundary(np.ones((4, 4, 4), bool)).sum() == 4**3 - 2**3
