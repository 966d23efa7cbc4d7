"""Largest components and holes, beside scipy and by hand."""

import numpy as np
import pytest
from scipy import ndimage

from voxtune.engine.components import connected, fill_holes, keep_largest, largest


def grid(*rows: str) -> np.ndarray:
    """Labels of one plane between two planes of background."""
    plane = np.array([[int(sign) for sign in row] for row in rows], np.uint8)
    return np.stack([0 * plane, plane, 0 * plane])


def blobs(seed: int, classes: int = 3) -> np.ndarray:
    """Blobs of some classes that touch, with holes, uint8 `[17, 19, 15]`."""
    noise = np.random.default_rng(seed).random((classes + 1, 17, 19, 15))
    smooth = np.stack([ndimage.gaussian_filter(each, 0.8) for each in noise])
    smooth[0] += 0.05
    return smooth.argmax(0).astype(np.uint8)


class TestConnected:
    def test_corners_and_edges_touch(self) -> None:
        mask = np.zeros((4, 4, 4), bool)
        mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 1] = mask[0, 3, 3] = True
        labels, number = connected(mask)
        assert number == 2
        assert labels[0, 0, 0] == labels[1, 1, 1] == labels[2, 2, 1] != labels[0, 3, 3]
        assert labels.dtype == np.int32
        assert not labels[~mask].any()

    def test_nothing(self) -> None:
        labels, number = connected(np.zeros((2, 2, 2), bool))
        assert number == 0
        assert not labels.any()
        assert not largest(np.zeros((2, 2, 2), bool)).any()


class TestLargest:
    @pytest.mark.parametrize("seed", range(3))
    def test_the_one_of_scipy(self, seed: int) -> None:
        mask = blobs(seed, 1) == 1
        labels, number = ndimage.label(mask, np.ones((3, 3, 3)))
        sizes = ndimage.sum_labels(mask, labels, range(1, number + 1))
        assert number > 1
        np.testing.assert_array_equal(largest(mask), labels == 1 + sizes.argmax())

    def test_by_class_or_of_all(self) -> None:
        labels = grid(
            "110220",
            "100200",
            "000001",
            "222000",
            "222000",
        )
        by_class = grid(
            "110000",
            "100000",
            "000000",
            "222000",
            "222000",
        )
        np.testing.assert_array_equal(keep_largest(labels, [1, 2], True), by_class)
        of_all = np.where(by_class == 2, 2, 0)
        np.testing.assert_array_equal(keep_largest(labels, [1, 2], False), of_all)

    def test_classes_that_touch_are_one_of_all(self) -> None:
        labels = grid("112", "000", "330")
        np.testing.assert_array_equal(
            keep_largest(labels, [1, 2, 3], False), grid("112", "000", "000")
        )

    def test_values_that_are_not_there_and_the_given_array_stay(self) -> None:
        labels = grid("101")
        before = labels.copy()
        found = keep_largest(labels, [1, 300], True)
        assert found.sum() == 1
        np.testing.assert_array_equal(labels, before)


class TestHoles:
    @pytest.mark.parametrize("seed", range(4))
    def test_one_class_as_scipy(self, seed: int) -> None:
        mask = ndimage.gaussian_filter(np.random.default_rng(seed).random((17, 19, 15)), 0.6) > 0.42
        labels = 7 * mask.astype(np.uint16)
        wanted = ndimage.binary_fill_holes(mask)
        assert wanted.sum() > mask.sum()
        np.testing.assert_array_equal(fill_holes(labels, [7]), 7 * wanted)

    def test_background_leaves_by_faces_alone(self) -> None:
        shell = np.ones((5, 5, 5), np.uint8)
        shell[1:4, 1:4, 1:4] = 0
        shell[0, 0, 0] = 0  # touches the inside by a corner only
        filled = fill_holes(shell, [1])
        assert filled[2, 2, 2] == 1
        assert filled[0, 0, 0] == 0
        shell[0, 2, 2] = 0
        np.testing.assert_array_equal(fill_holes(shell, [1]), shell)

    def test_the_inner_of_two_gets_it_and_classes_inside_stay(self) -> None:
        labels = np.zeros((11, 11, 11), np.uint8)
        labels[1:10, 1:10, 1:10] = 1
        labels[2:9, 2:9, 2:9] = 0
        labels[3:8, 3:8, 3:8] = 2
        labels[4:7, 4:7, 4:7] = 0
        labels[5, 5, 5] = 3
        filled = fill_holes(labels, [1, 2, 3])
        assert filled[2, 5, 5] == 1
        assert filled[4, 5, 5] == 2
        assert filled[5, 5, 5] == 3
        assert filled[0, 0, 0] == 0

    def test_what_two_enclose_together_stays(self) -> None:
        labels = np.zeros((5, 5, 5), np.uint8)
        labels[1:4, 1:4, 1:4] = 1
        labels[1:4, 1:4, 3] = 2
        labels[2, 2, 2] = 0
        np.testing.assert_array_equal(fill_holes(labels, [1, 2]), labels)
