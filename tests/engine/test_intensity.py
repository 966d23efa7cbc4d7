"""Intensities are scaled as by hand."""

from pathlib import Path

import numpy as np
import pytest

from voxtune.engine.intensity import IntensityKind, scale_intensity
from voxtune.engine.volume import load_image
from voxtune.models.errors import InputError


class TestIntensity:
    DATA = np.arange(101, dtype=np.float32).reshape(101, 1, 1)

    @pytest.mark.parametrize(
        ("kind", "first", "last"),
        [
            # mean 50; variance of 0..100 is (101^2 - 1) / 12 = 850
            ("zscore", -50 / np.sqrt(850), 50 / np.sqrt(850)),
            ("minmax", 0, 1),
            ("quantile", -5 / 90, 95 / 90),  # q05 = 5, q95 = 95
            ("none", 0, 100),
        ],
    )
    def test_by_hand(self, kind: IntensityKind, first: float, last: float) -> None:
        scaled = scale_intensity(self.DATA, kind)
        assert scaled.dtype == np.float32
        assert scaled[[0, -1], 0, 0].tolist() == pytest.approx([first, last], rel=1e-6)
        assert self.DATA[-1] == 100  # the input is untouched

    def test_brainchops_quantiles(self, shared_data: Path) -> None:
        """On this scan q05 = 0 and q95 = 112, says the data's README."""
        data = load_image(shared_data / "mri" / "t1_crop.nii.gz").data
        np.testing.assert_allclose(scale_intensity(data, "quantile"), data / 112, rtol=1e-6)

    @pytest.mark.parametrize("kind", ["zscore", "minmax", "quantile"])
    def test_nothing_to_divide_by(self, kind: IntensityKind) -> None:
        with pytest.raises(InputError, match=r"t1\.nii cannot be scaled"):
            scale_intensity(np.ones((3, 3, 3)), kind, "t1.nii")

    def test_a_kind_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="percent"):
            scale_intensity(self.DATA, "percent")  # type: ignore[arg-type]
