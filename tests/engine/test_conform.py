"""Conforming and going back; references are nibabel's and values by hand."""

import dataclasses
import itertools
from collections.abc import Callable

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest
from scipy import ndimage

from voxtune.engine.conform import (
    Conformed,
    Interpolation,
    conform,
    image_to_scan_grid,
)
from voxtune.engine.predicted import Predicted
from voxtune.engine.scan_grid import to_scan_grid
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
        there = conform(scan, "RAS", None, "linear")
        assert there.exact
        np.testing.assert_array_equal(there.data, reference.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(there.affine, reference.affine)

        labels = RNG.integers(0, 3, data.shape)
        moved = conform(dataclasses.replace(scan, data=labels), "RAS", None, "nearest")
        np.testing.assert_array_equal(
            to_scan_grid(there, Predicted.of(np.eye(3, dtype=np.float32)[moved.data])), labels
        )

        # From RAS to this orientation, the same in the other direction.
        straight = volume(there.data, there.affine)
        again = conform(straight, orientation, None, "linear")
        np.testing.assert_array_equal(again.data, data)
        np.testing.assert_allclose(again.affine, scan.affine)

    def test_a_scan_already_there_keeps_every_voxel(
        self, oriented_affine: Callable[..., np.ndarray], volume: Callable[..., Volume]
    ) -> None:
        data = RNG.normal(size=(4, 5, 6)).astype(np.float32)
        affine = oriented_affine("LIA", (1, 1, 1))
        affine[:3, :3] *= 1.0000002  # as MGH files have it
        result = conform(volume(data, affine), "LIA", (1, 1, 1), "linear")
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
        result = conform(scan, "LIA", spacing, "linear")
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
        moved = conform(dataclasses.replace(scan, data=labels), "LIA", spacing, "nearest")
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
        result = conform(scan, "RPI", spacing, "linear")
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
        assert conform(scan, "RAS", (1, 1, 1), "linear").exact is exact

    def test_outside_is_the_minimum(self, volume: Callable[..., Volume]) -> None:
        data = (RNG.random((9, 9, 9)) + 5).astype(np.float32)
        scan = volume(data, nib.affines.from_matvec(rotation(45, 2)))
        result = conform(scan, "RAS", None, "linear")
        assert result.data[0, 0, 4] == data.min()

    def test_coarsening_does_not_alias(self, volume: Callable[..., Volume]) -> None:
        """A one-voxel checkerboard has mean 0; sampling every second voxel would show 1."""
        board = ((-1.0) ** np.indices((33, 33, 33)).sum(axis=0)).astype(np.float32)
        result = conform(volume(board, np.eye(4)), "RAS", (2, 2, 2), "linear")
        middle = result.data[3:-3, 3:-3, 3:-3]
        assert np.abs(middle).max() < 0.05

    @pytest.mark.parametrize("size", [0.1, 0.3, 0.7, 1.1])
    def test_rounding_neither_blanks_the_border_nor_adds_a_plane(
        self, size: float, volume: Callable[..., Volume]
    ) -> None:
        """11 voxels span 10 steps, five of twice the size; 10 * 0.7 / 1.4 is not exactly 5."""
        scan = volume(np.ones((11, 11, 11), np.uint8), np.diag([size, size, size, 1]))
        result = conform(scan, "LIA", (2 * size, 2 * size, 2 * size), "nearest")
        assert result.data.shape == (6, 6, 6)
        assert result.data.all()
        slightly = conform(scan, "LIA", (2 * size, 2 * size, 2 * size * (1 - 1e-5)), "nearest")
        assert slightly.data.shape == (6, 6, 6)
        third = conform(scan, "LIA", (size / 3, size / 3, size / 3), "nearest")
        assert third.data.shape == (31, 31, 31)
        assert third.data.all()

    def test_a_constant_region_keeps_its_value(self, volume: Callable[..., Volume]) -> None:
        data = np.zeros((40, 40, 40), np.float32)
        data[8:32, 8:32, 8:32] = 100
        result = conform(volume(data, np.eye(4)), "LIA", (1.7, 1.7, 1.7), "linear")
        assert result.data.dtype == np.float32
        assert result.data.max() == pytest.approx(100, rel=1e-4)
        assert result.data.flags.c_contiguous

    @pytest.mark.parametrize("orientation", ["RAX", "RLS", "RA", "ras", "RASS", ""])
    def test_orientations_that_are_none(
        self, orientation: str, volume: Callable[..., Volume]
    ) -> None:
        with pytest.raises(InputError, match="orientation"):
            conform(volume(np.zeros((3, 3, 3)), np.eye(4)), orientation, None, "linear")

    @pytest.mark.parametrize("size", [0.0, -1.0, np.nan, np.inf])
    def test_spacings_that_are_none(self, size: float, volume: Callable[..., Volume]) -> None:
        with pytest.raises(InputError, match="spacing"):
            conform(volume(np.zeros((3, 3, 3)), np.eye(4)), "RAS", (1, 1, size), "linear")

    def test_a_grid_too_large(self, volume: Callable[..., Volume]) -> None:
        scan = volume(np.zeros((9, 9, 9), np.float32), np.diag([1e4, 1e4, 1e4, 1]))
        with pytest.raises(InputError, match=r"made\.nii\.gz.*too many"):
            conform(scan, "RAS", (1, 1, 1), "linear")

    def test_probabilities_are_interpolated_before_the_argmax(
        self, volume: Callable[..., Volume]
    ) -> None:
        """Between voxels with 0.9 and 0.2 of class 1 the border lies at 4/7, not at 1/2."""
        scan = volume(np.arange(41, dtype=np.float32).reshape(41, 1, 1), np.diag([0.1, 1, 1, 1]))
        conformed = conform(scan, "RAS", (1, 1, 1), "linear")
        assert conformed.data.shape == (5, 1, 1)
        one = np.array([0.9, 0.9, 0.2, 0.2, 0.2], np.float32).reshape(5, 1, 1)
        labels = to_scan_grid(conformed, Predicted.of(np.stack([1 - one, one], axis=-1)))
        assert labels.ravel().tolist() == [1] * 16 + [0] * 25  # 1 + 4/7 = 1.57 mm

    def test_images_are_interpolated_linearly(self, volume: Callable[..., Volume]) -> None:
        """From voxels of 1 mm at 0, 1, 2 ... to voxels of 0.1 mm."""
        scan = volume(np.arange(41, dtype=np.float32).reshape(41, 1, 1), np.diag([0.1, 1, 1, 1]))
        conformed = conform(scan, "RAS", (1, 1, 1), "linear")
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
        conformed = conform(scan, "LAS", None, "linear")
        np.testing.assert_array_equal(image_to_scan_grid(conformed, conformed.data), scan.data)


class TestGrid:
    """Cut and padded round the middle voxel, and back."""

    @pytest.mark.parametrize("grid", [(12, 13, 14), (5, 4, 2), (7, 20, 1), (9, 10, 12)])
    @pytest.mark.parametrize("orientation", ["RAS", "PIR"])
    def test_without_resampling_it_is_nibabels(
        self, grid, orientation: str, volume: Callable[..., Volume], oriented_affine
    ) -> None:
        """To the last bit and the last plane; 9, 10 and 12 are all parities with the others."""
        data = RNG.normal(size=(9, 10, 12)).astype(np.float32)
        scan = volume(data, oriented_affine("LSA", (1, 1, 1)))
        result = conform(scan, orientation, (1, 1, 1), "linear", grid)
        expected = nibabel.processing.conform(
            *(nib.Nifti1Image(data, scan.affine), grid, (1, 1, 1), 0),
            cval=data.min(),
            orientation=orientation,
        )
        assert result.exact
        np.testing.assert_array_equal(result.data, expected.get_fdata())
        np.testing.assert_allclose(result.affine, expected.affine)

    @pytest.mark.parametrize("interpolation", ["linear", "cubic", "nearest", "label_linear"])
    def test_a_scan_already_there_keeps_every_voxel(
        self, interpolation: Interpolation, volume: Callable[..., Volume]
    ) -> None:
        data = RNG.integers(-3, 3, (6, 7, 8)).astype(np.float32)
        result = conform(volume(data, RAS), "RAS", (1, 1, 1), interpolation, (6, 7, 8))
        assert result.exact
        np.testing.assert_array_equal(result.data, data)
        np.testing.assert_array_equal(result.affine, RAS)

    @pytest.mark.parametrize("interpolation", ["linear", "cubic", "nearest", "label_linear"])
    @pytest.mark.parametrize("grid", [(30, 5, 16), (4, 41, 15)])
    def test_resampled_voxels_are_those_without_it(
        self, interpolation: Interpolation, grid, volume: Callable[..., Volume]
    ) -> None:
        affine = nib.affines.from_matvec(rotation(12, 1) * 1.3, (5, -3, 2))
        scan = volume(RNG.integers(2, 9, (11, 12, 13)).astype(np.float32), affine)
        whole = conform(scan, "LIA", (1, 1, 1), interpolation)
        result = conform(scan, "LIA", (1, 1, 1), interpolation, grid)
        assert result.data.shape == grid
        offset = np.linalg.inv(whole.affine) @ result.affine
        np.testing.assert_allclose(offset[:3, :3], np.eye(3), atol=1e-9)
        corner = np.rint(offset[:3, 3]).astype(int)
        np.testing.assert_allclose(offset[:3, 3], corner, atol=1e-9)
        middles = [(np.array(n) - 1) // 2 for n in (whole.data.shape, grid)]
        np.testing.assert_array_equal(corner, middles[0] - middles[1])
        # Where they are outside the whole, an image is its minimum, which is 2 here.
        outside = 2 if interpolation in ("linear", "cubic") else 0
        padded = np.pad(whole.data, 50, constant_values=outside)
        where = tuple(slice(50 + at, 50 + at + n) for at, n in zip(corner, grid, strict=True))
        np.testing.assert_array_equal(result.data, padded[where])

    def test_what_is_outside_may_be_given(self, volume: Callable[..., Volume]) -> None:
        scan = volume(np.full((4, 4, 4), 7, np.float32), np.diag([2, 2, 2, 1.0]))
        for spacing in (2, 1):
            found = conform(scan, "RAS", (spacing,) * 3, "cubic", (20, 20, 20), 3.0).data
            assert (found[0, 0, 0], found[10, 10, 10]) == (3, pytest.approx(7, abs=1e-4))
            assert found.min() == 3

    @pytest.mark.parametrize(("spacing", "exact"), [((1.0, 1.0, 1.0), True), (None, False)])
    def test_what_was_cut_off_comes_back_as_the_first_class(
        self, spacing, exact: bool, volume: Callable[..., Volume]
    ) -> None:
        """And as an image's minimum; elsewhere as without a grid, but for the voxel at the cut."""
        turn = np.eye(3) if exact else rotation(20, 0)
        scan = volume(RNG.random((15, 16, 17)).astype(np.float32), nib.affines.from_matvec(turn))
        cut = conform(scan, "LPI", spacing, "linear", (24, 9, 8))
        whole = conform(scan, "LPI", spacing, "linear")
        assert cut.exact is exact
        world = nib.affines.apply_affine(
            scan.affine, np.moveaxis(np.indices(scan.data.shape), 0, -1)
        )
        places = nib.affines.apply_affine(np.linalg.inv(cut.affine), world)
        inside = ((places > -0.5) & (places < np.array(cut.data.shape) - 0.5)).all(axis=-1)
        assert 0.2 < inside.mean() < 0.6

        # All of the last class, to the very border.
        ones = np.zeros((*cut.data.shape, 3), np.float32)
        ones[..., 2] = 1
        np.testing.assert_array_equal(to_scan_grid(cut, Predicted.of(ones)), 2 * inside)

        values = ndimage.gaussian_filter(RNG.normal(size=whole.data.shape), 2).astype(np.float32)
        values[0, 0, 0] = -5  # cut off, so it is not the minimum of what is left
        offset = np.rint((np.linalg.inv(whole.affine) @ cut.affine)[:3, 3]).astype(int)
        padded = np.pad(values, 30)
        box = zip(offset + 30, offset + 30 + cut.data.shape, strict=True)
        kept = padded[tuple(slice(first, end) for first, end in box)]
        found = image_to_scan_grid(cut, kept)
        assert (found[~inside] == kept.min()).all()
        deep = ((places >= 0) & (places <= np.array(cut.data.shape) - 1)).all(axis=-1)
        np.testing.assert_allclose(found[deep], image_to_scan_grid(whole, values)[deep], atol=1e-5)

    def test_a_padded_scan_comes_back_whole(self, volume: Callable[..., Volume]) -> None:
        labels = RNG.integers(0, 3, (5, 6, 7))
        scan = volume(RNG.random((5, 6, 7)).astype(np.float32), PSR)
        conformed = conform(scan, "LIA", None, "linear", (9, 9, 9))
        moved = conform(dataclasses.replace(scan, data=labels), "LIA", None, "nearest", (9, 9, 9))
        back = to_scan_grid(conformed, Predicted.of(np.eye(3, dtype=np.float32)[moved.data]))
        np.testing.assert_array_equal(back, labels)


class TestInterpolation:
    @pytest.mark.parametrize(("order", "interpolation"), [(1, "linear"), (3, "cubic")])
    def test_images_are_nibabels(
        self, order: int, interpolation: Interpolation, volume: Callable[..., Volume]
    ) -> None:
        """Its conformed grid but for a shift of the centre; anti-aliasing is out of play."""
        data = 50 + 9 * RNG.normal(size=(12, 13, 14)).astype(np.float32)
        affine = np.diag([-1.7, 1.2, 1.9, 1.0])
        scan, grid = volume(data, affine), (16, 14, 20)  # beyond its last voxel nibabel fades
        result = conform(scan, "RAS", (1, 1, 1), interpolation, grid)
        image = nib.Nifti1Image(data, affine)
        theirs = nibabel.processing.conform(image, grid, (1, 1, 1), order)
        shift = theirs.affine - result.affine
        assert np.abs(shift[:3, :3]).max() < 1e-9
        assert 0 < np.abs(shift[:3, 3]).max() < (1.9 + 1) / 2
        expected = nibabel.processing.resample_from_to(
            *(image, (grid, result.affine), order, "grid-constant", data.min())
        ).get_fdata()
        clipped = np.clip(expected, data.min(), data.max())
        assert np.abs(result.data - clipped).max() < 1e-3 * np.ptp(data)

    def test_nothing_overshoots(self, volume: Callable[..., Volume]) -> None:
        """A step rings in a spline; a percentile or a minimum would see it."""
        data = np.zeros((16, 16, 16), np.float32)
        data[5:11, 5:11, 5:11] = 100
        for spacing in (0.7, 1.6):
            found = conform(volume(data, RAS), "RAS", (spacing,) * 3, "cubic").data
            assert (found.min(), found.dtype) == (0, np.float32)
            assert 99 < found.max() <= 100

    @pytest.mark.parametrize("spacing", [(0.6, 0.7, 1.3), (1.0, 1.0, 1.0)])
    def test_the_class_with_the_largest_linear_weight_wins(
        self, spacing, volume: Callable[..., Volume]
    ) -> None:
        """By every class over the whole grid at once, outside being 0."""
        values = np.array([-2, 0, 3, 700], np.int32)
        data = values[
            (ndimage.gaussian_filter(RNG.normal(size=(9, 10, 11)), 1) * 9 % 4).astype(int)
        ]
        affine = nib.affines.from_matvec(rotation(15, 2))
        result = conform(volume(data, affine), "RAS", spacing, "label_linear")
        weights = [
            ndimage.affine_transform(
                (data == value).astype(np.float32),
                *nib.affines.to_matvec(np.linalg.inv(affine) @ result.affine),
                output_shape=result.data.shape,
                order=1,
                mode="grid-constant",
                cval=value == 0,
            )
            for value in values
        ]
        np.testing.assert_array_equal(result.data, values[np.argmax(weights, axis=0)])
        assert result.data.dtype == np.int32
        assert set(np.unique(result.data)) == set(values)

    def test_of_two_equal_classes_the_smaller_wins(self, volume: Callable[..., Volume]) -> None:
        """Half-way between 2, 1 and -1; nearest would make a choice of rounding."""
        data = np.array([2, 2, 1, 1, -1, -1], np.int16).reshape(6, 1, 1)
        found = conform(volume(data, np.eye(4)), "RAS", (0.5, 1, 1), "label_linear").data.ravel()
        assert found.tolist() == [2, 2, 2, 1, 1, 1, 1, -1, -1, -1, -1]


def test_conformed_is_immutable(volume: Callable[..., Volume]) -> None:
    result = conform(volume(np.ones((2, 2, 2), np.float32), np.eye(4)), "RAS", None, "linear")
    assert isinstance(result, Conformed)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.exact = False  # type: ignore[misc]
