"""Lesions found, missed and false, by hand."""

import math

import numpy as np
import pytest

from voxtune.engine.lesions import Detection, detect


def mask(*voxels: tuple[int, int, int]) -> np.ndarray:
    result = np.zeros((6, 6, 6), bool)
    for voxel in voxels:
        result[voxel] = True
    return result


def test_found_missed_and_false() -> None:
    true = mask((0, 0, 0), (0, 0, 1), (3, 3, 3), (5, 5, 5))
    predicted = mask((0, 0, 1), (0, 0, 2), (5, 0, 0), (0, 5, 5))
    found = detect(predicted, true)
    assert found == Detection(found=1, missed=2, false=2)
    assert found.sensitivity == 1 / 3
    assert found.precision == 1 / 3
    assert found.f1 == pytest.approx(2 / 6)


def test_corners_join() -> None:
    assert detect(mask(), mask((1, 1, 1), (2, 2, 2), (3, 3, 2))) == Detection(0, 1, 0)


def test_one_prediction_over_two_lesions_and_two_in_one() -> None:
    bar = mask(*((0, 0, z) for z in range(6)))
    ends = mask((0, 0, 0), (0, 0, 5))
    assert detect(bar, ends) == Detection(2, 0, 0)
    assert detect(ends, bar) == Detection(1, 0, 0)


def test_beside_is_missed() -> None:
    """Neighbours without a voxel in common."""
    assert detect(mask((2, 2, 3)), mask((2, 2, 2))) == Detection(0, 1, 1)


def test_empties() -> None:
    one = mask((1, 1, 1))
    neither, missed, false = detect(mask(), mask()), detect(mask(), one), detect(one, mask())
    assert all(math.isnan(each) for each in (neither.sensitivity, neither.precision, neither.f1))
    assert (missed.sensitivity, missed.f1, false.precision, false.f1) == (0, 0, 0, 0)
    assert math.isnan(missed.precision)
    assert math.isnan(false.sensitivity)
