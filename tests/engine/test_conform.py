"""Conforming and going back; references are nibabel's and values by hand."""

import dataclasses
import itertools
from collections.abc import Callable

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest
from scipy import ndimage

from voxtune.engine.conform import Conformed, conform, image_to_scan_grid, to_scan_grid
from voxtune.engine.volume import Volume
from voxtune.models.errors import InputError

ORIENTATIONS = [
    "".join(letters)
    for pairs in itertools.permutations(("LR", "PA", "IS"))
    for letters in itertools.product(*pairs)
]
# Affines with axes in an orientation.
PSR = np.array([[0, 0, 1, -11], [-1.5, 0, 0, 7.5], [0, 0.8, 0, 3], [0, 0, 0, 1]])
RAS = np.array([[1, 0, 0, -11], [0, 1, 0, 7.5], [0, 0, 1, 3], [0, 0, 0, 1.0]])
RNG = np.random.default_rng(0)


def rotation(degrees: float, axis: int) -> np.ndarray:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    first, second = (other for other in range(3) if other != axis)
    matrix[first, first] = matrix[second, second] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return matrix


class TestConform:
    @pytest.mark.parametrize("orientation", ORIENTATIONS)
    def test_reorienting_is_nibabels_and_exact_both_ways(
        self,
        orientation: str,
        oriented_affine: Callable[..., np.ndarray],
        volume: Callable[..., Volume],
    ) -> None:
        assert len(set(ORIENTATIONS)) == 48
        data = RNG.normal(size=(4, 5, 6)).astype(np.float32)
        scan = volume(data, oriented_affine(orientation, (1, 2, 3)))
        reference = nib.as_closest_canonical(nib.Nifti1Image(data, scan.affine))
        there = conform(scan, "RAS", None, "image")
        assert there.exact
        np.testing.assert_array_equal(there.data, reference.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(there.affine, reference.affine)

        labels = RNG.integers(0, 3, data.shape)
        moved = conform(dataclasses.replace(scan, data=labels), "RAS", None, "label")
        np.testing.assert_array_equal(
            to_scan_grid(there, np.eye(3, dtype=np.float32)[moved.data]), labels
        )

        # From RAS to this orientation, the same in the other direction.
        straight = volume(there.data, there.affine)
        again = conform(straight, orientation, None, "image")
        np.testing.assert_array_equal(again.data, data)
        np.testing.assert_allclose(again.affine, scan.affine)

    def test_a_scan_already_there_keeps_every_voxel(
        self, oriented_affine: Callable[..., np.ndarray], volume: Callable[..., Volume]
    ) -> None:
        data = RNG.normal(size=(4, 5, 6)).astype(np.float32)
        affine = oriented_affine("LIA", (1, 1, 1))
        affine[:3, :3] *= 1.0000002  # as MGH files have it
        result = conform(volume(data, affine), "LIA", (1, 1, 1), "image")
        assert result.exact
        np.testing.assert_array_equal(result.data, data)
        np.testing.assert_array_equal(result.affine, affine)

    @pytest.mark.parametrize(
        ("affine", "spacing"),
        [
            (PSR, (1.0, 1.0, 1.0)),
            (RAS, (0.7, 0.8, 0.9)),
            (np.diag([1.0, 1, 1, 1]) @ nib.affines.from_matvec(rotation(12, 1)), None),
            (np.array([[0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0.2, 2.4, 0], [0, 0, 0, 1]]), None),
        ],
    )
    def test_resampling_is_nibabels(
        self,
        affine: np.ndarray,
        spacing,
        volume: Callable[..., Volume],
        blob: Callable[..., np.ndarray],
    ) -> None:
        data = ndimage.gaussian_filter(RNG.normal(size=(14, 15, 16)), 1).astype(np.float32)
        data -= data.min()
        scan = volume(data, affine)
        finer = spacing is None or all(
            new <= old for new, old in zip(spacing, (0.8, 1, 1), strict=True)
        )
        result = conform(scan, "LIA", spacing, "image")
        assert not result.exact
        assert nib.aff2axcodes(result.affine) == ("L", "I", "A")
        # nibabel stops at the border where this fades to the minimum within a voxel: look inside.
        source = nib.Nifti1Image(data, affine)
        target = (result.data.shape, result.affine)
        expected = nibabel.processing.resample_from_to(source, target, order=1, cval=-1)
        inside = expected.get_fdata() >= 0
        assert inside.mean() > 0.2
        if finer:  # else blurred first, see below
            np.testing.assert_allclose(
                result.data[inside], expected.get_fdata()[inside], atol=1e-4 * data.max()
            )
        labels = blob(data.shape)
        moved = conform(dataclasses.replace(scan, data=labels), "LIA", spacing, "label")
        nearest = nibabel.processing.resample_from_to(
            nib.Nifti1Image(labels, affine), target, order=0, mode="grid-constant"
        )
        # Half-way between two voxels either may be taken.
        places = nib.affines.apply_affine(
            np.linalg.inv(affine) @ result.affine, np.moveaxis(np.indices(result.data.shape), 0, -1)
        )
        tie = (np.abs(places % 1 - 0.5) < 1e-3).any(axis=-1)
        assert (inside & ~tie).sum() > 500
        np.testing.assert_array_equal(moved.data[~tie], nearest.get_fdata()[~tie])
        assert moved.data.dtype == np.uint8

    @pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0), (2.0, 0.5, 3.3)])
    def test_the_grid_spans_all_corners(
        self, spacing, oriented_affine: Callable[..., np.ndarray], volume: Callable[..., Volume]
    ) -> None:
        affine = oriented_affine("SPL", (1, 2, 0.5))
        affine[:3, :3] = rotation(20, 0) @ rotation(-9, 2) @ affine[:3, :3]
        scan = volume(RNG.random((11, 7, 23)).astype(np.float32), affine)
        result = conform(scan, "RPI", spacing, "image")
        corners = np.array(list(itertools.product((0, 10), (0, 6), (0, 22))))
        world = nib.affines.apply_affine(scan.affine, corners)
        voxels = nib.affines.apply_affine(np.linalg.inv(result.affine), world)
        last = np.asarray(result.data.shape) - 1
        assert (voxels > -2e-3).all()
        assert (voxels < last + 2e-3).all()
        middles = voxels.mean(axis=0), last / 2
        np.testing.assert_allclose(*middles, atol=1e-6)  # centred
        # And is the smallest: no plane could be left out.
        assert (voxels.max(axis=0) - voxels.min(axis=0) > last - 1).all()
        assert nib.aff2axcodes(result.affine) == ("R", "P", "I")
        expected = (0.5, 2, 1) if spacing is None else spacing  # closest axes: L, P, S
        np.testing.assert_allclose(nib.affines.voxel_sizes(result.affine), expected)

    @pytest.mark.parametrize(("degrees", "exact"), [(0.02, True), (0.5, False)])
    def test_obliquity(self, degrees: float, exact: bool, volume: Callable[..., Volume]) -> None:
        affine = nib.affines.from_matvec(rotation(degrees, 2))
        scan = volume(RNG.random((9, 9, 9)).astype(np.float32), affine)
        assert conform(scan, "RAS", (1, 1, 1), "image").exact is exact

    def test_outside_is_the_minimum(self, volume: Callable[..., Volume]) -> None:
        data = (RNG.random((9, 9, 9)) + 5).astype(np.float32)
        scan = volume(data, nib.affines.from_matvec(rotation(45, 2)))
        result = conform(scan, "RAS", None, "image")
        assert result.data[0, 0, 4] == data.min()

    def test_coarsening_does_not_alias(self, volume: Callable[..., Volume]) -> None:
        """A one-voxel checkerboard has mean 0; sampling every second voxel would show 1."""
        board = ((-1.0) ** np.indices((33, 33, 33)).sum(axis=0)).astype(np.float32)
        result = conform(volume(board, np.eye(4)), "RAS", (2, 2, 2), "image")
        middle = result.data[3:-3, 3:-3, 3:-3]
        assert np.abs(middle).max() < 0.05

    @pytest.mark.parametrize("size", [0.1, 0.3, 0.7, 1.1])
    def test_rounding_neither_blanks_the_border_nor_adds_a_plane(
        self, size: float, volume: Callable[..., Volume]
    ) -> None:
        """11 voxels span 10 steps, five of twice the size; 10 * 0.7 / 1.4 is not exactly 5."""
        scan = volume(np.ones((11, 11, 11), np.uint8), np.diag([size, size, size, 1]))
        result = conform(scan, "LIA", (2 * size, 2 * size, 2 * size), "label")
        assert result.data.shape == (6, 6, 6)
        assert result.data.all()
        slightly = conform(scan, "LIA", (2 * size, 2 * size, 2 * size * (1 - 1e-5)), "label")
        assert slightly.data.shape == (6, 6, 6)
        third = conform(scan, "LIA", (size / 3, size / 3, size / 3), "label")
        assert third.data.shape == (31, 31, 31)
        assert third.data.all()

    def test_a_constant_region_keeps_its_value(self, volume: Callable[..., Volume]) -> None:
        data = np.zeros((40, 40, 40), np.float32)
        data[8:32, 8:32, 8:32] = 100
        result = conform(volume(data, np.eye(4)), "LIA", (1.7, 1.7, 1.7), "image")
        assert result.data.dtype == np.float32
        assert result.data.max() == pytest.approx(100, rel=1e-4)
        assert result.data.flags.c_contiguous

    @pytest.mark.parametrize("orientation", ["RAX", "RLS", "RA", "ras", "RASS", ""])
    def test_orientations_that_are_none(
        self, orientation: str, volume: Callable[..., Volume]
    ) -> None:
        with pytest.raises(InputError, match="orientation"):
            conform(volume(np.zeros((3, 3, 3)), np.eye(4)), orientation, None, "image")

    @pytest.mark.parametrize("size", [0.0, -1.0, np.nan, np.inf])
    def test_spacings_that_are_none(self, size: float, volume: Callable[..., Volume]) -> None:
        with pytest.raises(InputError, match="spacing"):
            conform(volume(np.zeros((3, 3, 3)), np.eye(4)), "RAS", (1, 1, size), "image")

    def test_a_grid_too_large(self, volume: Callable[..., Volume]) -> None:
        scan = volume(np.zeros((9, 9, 9), np.float32), np.diag([1e4, 1e4, 1e4, 1]))
        with pytest.raises(InputError, match=r"made\.nii\.gz.*too many"):
            conform(scan, "RAS", (1, 1, 1), "image")

    def test_probabilities_are_interpolated_before_the_argmax(
        self, volume: Callable[..., Volume]
    ) -> None:
        """Between voxels with 0.9 and 0.2 of class 1 the border lies at 4/7, not at 1/2."""
        scan = volume(np.arange(41, dtype=np.float32).reshape(41, 1, 1), np.diag([0.1, 1, 1, 1]))
        conformed = conform(scan, "RAS", (1, 1, 1), "image")
        assert conformed.data.shape == (5, 1, 1)
        one = np.array([0.9, 0.9, 0.2, 0.2, 0.2], np.float32).reshape(5, 1, 1)
        labels = to_scan_grid(conformed, np.stack([1 - one, one], axis=-1))
        assert labels.ravel().tolist() == [1] * 16 + [0] * 25  # 1 + 4/7 = 1.57 mm
        assert not to_scan_grid(conformed, np.ones((5, 1, 1, 3))).any()  # ties go to the first
        with pytest.raises(ValueError, match="grid"):
            to_scan_grid(conformed, np.zeros((4, 1, 1, 2), np.float32))

    def test_images_are_interpolated_linearly(self, volume: Callable[..., Volume]) -> None:
        """From voxels of 1 mm at 0, 1, 2 ... to voxels of 0.1 mm."""
        scan = volume(np.arange(41, dtype=np.float32).reshape(41, 1, 1), np.diag([0.1, 1, 1, 1]))
        conformed = conform(scan, "RAS", (1, 1, 1), "image")
        found = image_to_scan_grid(conformed, np.float32([0, 10, 30, 30, 20]).reshape(5, 1, 1))
        assert (found.shape, found.dtype) == ((41, 1, 1), np.float32)
        np.testing.assert_allclose(found.ravel()[[0, 5, 10, 14, 36, 40]], [0, 5, 10, 18, 24, 20])
        with pytest.raises(ValueError, match="grid"):
            image_to_scan_grid(conformed, np.zeros((5, 1, 2), np.float32))

    def test_reoriented_images_come_back_unchanged(
        self, oriented_affine: Callable[..., np.ndarray], volume: Callable[..., Volume]
    ) -> None:
        scan = volume(
            RNG.normal(size=(4, 5, 6)).astype(np.float32), oriented_affine("PIR", (1,) * 3)
        )
        conformed = conform(scan, "LAS", None, "image")
        np.testing.assert_array_equal(image_to_scan_grid(conformed, conformed.data), scan.data)


def test_conformed_is_immutable(volume: Callable[..., Volume]) -> None:
    result = conform(volume(np.ones((2, 2, 2), np.float32), np.eye(4)), "RAS", None, "image")
    assert isinstance(result, Conformed)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.exact = False  # type: ignore[misc]
