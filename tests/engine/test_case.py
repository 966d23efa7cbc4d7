"""Subjects in 16 bits: what they lose, what is counted, and the blocks cut of them."""

import numpy as np
import pytest

from voxtune.engine.case import Affine, Array, Case, Quantised, block_of, contents_of, quantised
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)
WHOLE = (slice(None),) * 3


def read(*channels: np.ndarray, scaling: Affine | None = None) -> np.ndarray:
    """Channels [D, H, W, C] as they are read again."""
    given = [each.astype(np.float32) for each in channels]
    return quantised(given, [scaling or Affine()] * len(given))[WHOLE]


def case_of(label: np.ndarray, image: np.ndarray | None = None) -> Case:
    stored = None if image is None else quantised([image.astype(np.float32)], [Affine()])
    affine = np.diag([2.0, 1.0, 0.5, 1.0])
    return Case("a", None, stored, label, affine, *contents_of(label), label.shape, (1, 1, 1))


class TestQuantised:
    @pytest.mark.parametrize(
        ("low", "high"), [(0, 255), (-1024, 3071), (0, 65534), (-32768, 32766), (10**6, 10**6 + 9)]
    )
    def test_whole_numbers_lose_nothing(self, low: int, high: int) -> None:
        data = RNG.integers(low, high, (4, 5, 6), endpoint=True)
        data.flat[:2] = low, high
        np.testing.assert_array_equal(read(data)[..., 0], data)

    @pytest.mark.parametrize("span", [1e-3, 1.0, 65535.0, 3e7])
    @pytest.mark.parametrize("middle", [-0.3, 0.0, 0.5, 0.9])
    def test_others_are_off_by_half_a_step(self, span: float, middle: float) -> None:
        data = RNG.uniform(-0.5, 0.5, (8, 8, 8)).astype(np.float32)
        data.flat[:3] = -0.5, 0.5, -middle  # the ends, and zero
        data = (data + np.float32(middle)) * np.float32(span)
        found = read(data)[..., 0]
        assert np.abs(found - data).max() <= 0.51 * np.ptp(data) / 65534
        np.testing.assert_array_equal(found[data == 0], 0)

    def test_it_is_scaled_when_it_is_read(self) -> None:
        data = RNG.integers(0, 100, (4, 4, 4))
        found = read(data, scaling=Affine(offset=40.0, spread=8.0))[..., 0]
        np.testing.assert_allclose(found, (data - 40) / 8, atol=1e-6)

    def test_a_far_outlier_makes_half_floats(self) -> None:
        data = RNG.normal(size=(32, 32, 32)).astype(np.float32)
        data[0, 0, 0] = 1e8
        whole = RNG.integers(-2000, 2000, data.shape).astype(np.float32)
        found = quantised([data, whole], [Affine()] * 2)
        assert found.stored.dtype == np.float16
        np.testing.assert_array_equal(found[WHOLE][..., 1], whole)
        np.testing.assert_allclose(found[WHOLE][0, 0, 0, 0], 1e8, rtol=1e-3)

    @pytest.mark.parametrize("value", [0.0, 7.0, -0.1])
    def test_a_constant(self, value: float) -> None:
        np.testing.assert_allclose(read(np.full((2, 2, 2), value)), value, rtol=1e-7)


def test_contents_are_those_of_a_plain_count() -> None:
    label = RNG.choice(np.array([0, 1, 300], np.uint16), (20, 21, 22), p=[0.5, 0.499, 0.001])
    counts, boxes, positions = contents_of(label)
    assert counts == {value: int((label == value).sum()) for value in (0, 1, 300)}
    assert list(boxes) == list(positions) == [1, 300]
    for value in (1, 300):
        voxels = np.argwhere(label == value)
        np.testing.assert_array_equal(boxes[value], [voxels.min(0), voxels.max(0) + 1])
        every = -(-len(voxels) // 1000)
        assert positions[value].dtype == np.int16
        np.testing.assert_array_equal(positions[value], voxels[::every])


class TestBlocks:
    LABEL = RNG.choice(np.array([0, 3], np.uint8), (6, 7, 8))
    IMAGE = RNG.integers(0, 50, LABEL.shape)
    TABLE = np.uint8([0, 0, 0, 1] + [255] * (2**16 - 4))

    def test_a_block_is_a_part(self) -> None:
        case = case_of(self.LABEL, self.IMAGE)
        image, label = block_of(case, (1, 2, 3), (4, 4, 4), self.TABLE, 255)
        where = slice(1, 5), slice(2, 6), slice(3, 7)
        assert image is not None
        np.testing.assert_array_equal(image[..., 0], self.IMAGE[where])
        np.testing.assert_array_equal(label, self.LABEL[where] == 3)

    def test_a_small_case_lies_in_the_middle(self) -> None:
        case = case_of(self.LABEL, self.IMAGE)
        image, label = block_of(case, (0, 0, 4), (8, 10, 4), self.TABLE, 255)
        widths = ((1, 1), (1, 2), (0, 0))
        assert image is not None
        part = self.IMAGE[..., 4:]
        np.testing.assert_array_equal(image[..., 0], np.pad(part, widths, "reflect"))
        classes = (self.LABEL[..., 4:] == 3).astype(np.uint8)
        np.testing.assert_array_equal(label, np.pad(classes, widths, constant_values=255))

    def test_label_maps_alone_have_no_image(self) -> None:
        assert block_of(case_of(self.LABEL), (0, 0, 0), (2, 2, 2), self.TABLE, 255)[0] is None

    def test_a_value_that_the_record_does_not_list(self) -> None:
        damaged = self.LABEL.copy()
        damaged[2, 3, 4] = 77
        case = Case(**{**vars(case_of(self.LABEL)), "label": damaged})
        assert block_of(case, (3, 0, 0), (2, 7, 8), self.TABLE, 255)[1].shape == (2, 7, 8)
        with pytest.raises(InputError, match=r"values that its record does not list \(77\)"):
            block_of(case, (0, 0, 0), (6, 7, 8), self.TABLE, 255)

    def test_only_the_block_is_read(self) -> None:
        asked = []

        class Far:
            shape, dtype = (6, 7, 8, 1), np.dtype(np.int16)

            def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
                asked.append(where)
                shape = [each.stop - each.start for each in where]
                assert all(each.stop <= n for each, n in zip(where, (6, 7, 8), strict=True))
                return np.zeros((*shape, 1), np.int16)

        far: Array = Far()
        image = Quantised(far, np.ones(1, np.float32), np.zeros(1, np.float32))
        case = case_of(self.LABEL)
        case = Case(**{**vars(case), "image": image})
        block_of(case, (1, 1, 1), (2, 2, 2), self.TABLE, 255)
        assert asked == [(slice(1, 3),) * 3]
        block_of(case, (0, 0, 0), (8, 8, 8), self.TABLE, 255)  # larger than the case

    def test_the_grid_is_the_labels(self) -> None:
        case = case_of(self.LABEL)
        assert (case.shape, case.spacing_mm) == ((6, 7, 8), (2.0, 1.0, 0.5))
