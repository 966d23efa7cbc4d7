"""Intensities are scaled as by hand."""

from pathlib import Path

import numpy as np
import pytest

from voxtune.engine.intensity import IntensityKind, Scaling, scaling_of
from voxtune.engine.volume import load_image
from voxtune.models.errors import InputError

# mean 50; variance of 0..100 is (101^2 - 1) / 12 = 850, of 1..100 (100^2 - 1) / 12 = 833.25
DATA = np.arange(101, dtype=np.float32).reshape(101, 1, 1)


@pytest.mark.parametrize(
    ("kind", "first", "second", "last"),
    [
        ("zscore", -50 / np.sqrt(850), -49 / np.sqrt(850), 50 / np.sqrt(850)),
        ("zscore_nonzero", 0, -49.5 / np.sqrt(833.25), 49.5 / np.sqrt(833.25)),
        ("minmax", 0, 0.01, 1),
        ("quantile", -5 / 90, -4 / 90, 95 / 90),  # q05 = 5, q95 = 95
        ("percentile", 0, 0.5 / 99, 1),  # from 0.5 to 99.5
        ("window", 0, 0, 1),
        ("none", 0, 1, 100),
    ],
)
def test_by_hand(kind: IntensityKind, first: float, second: float, last: float) -> None:
    window = (20.0, 60.0) if kind == "window" else None
    scaled = scaling_of(DATA, kind, window)(DATA)
    assert scaled.dtype == np.float32
    assert scaled[[0, 1, -1], 0, 0].tolist() == pytest.approx([first, second, last], rel=1e-6)
    assert DATA[[0, -1]].ravel().tolist() == [0, 100]  # the input is untouched


def test_a_window_is_linear_inside_and_clips_outside() -> None:
    scaled = scaling_of(DATA, "window", (20.0, 60.0))(DATA).ravel()
    np.testing.assert_allclose(scaled, np.clip((np.arange(101) - 20) / 40, 0, 1), atol=1e-7)


@pytest.mark.parametrize("window", [(-9.0, 0.0), (100.0, 240.0)])
def test_a_window_that_shows_nothing(window: tuple[float, float]) -> None:
    words = rf"ct\.nii has values from 0 to 100, all outside the window {window[0]:g} to"
    with pytest.raises(InputError, match=words):
        scaling_of(DATA, "window", window, "ct.nii")
    for low, high in ((-9.0, 1.0), (99.0, 240.0)):
        assert np.ptp(scaling_of(DATA, "window", (low, high))(DATA)) > 0


def test_voxels_that_are_zero_stay_so_in_a_stripped_scan() -> None:
    """As MONAI's NormalizeIntensity(nonzero=True): what is not zero gets mean 0 and spread 1."""
    rng = np.random.default_rng(0)
    brain = rng.random((9, 9, 9)) < 0.4
    data = np.where(brain, rng.normal(-3, 20, brain.shape), 0).astype(np.float32)
    scaled = scaling_of(data, "zscore_nonzero")(data)
    assert not scaled[~brain].any()
    assert scaled[brain].mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
    assert scaled[brain].std(dtype=np.float64) == pytest.approx(1, abs=1e-6)


def test_a_scaling_is_a_function_of_each_voxel() -> None:
    """So a block may be scaled by what the whole volume says."""
    for kind in ("zscore", "zscore_nonzero", "percentile", "window"):
        scaling = scaling_of(DATA, kind, (20.0, 60.0))
        np.testing.assert_array_equal(scaling(DATA[30:50]), scaling(DATA)[30:50])
    np.testing.assert_array_equal(
        Scaling(low=1, high=3, offset=1, spread=4)(np.array([0, 1, 2, 5], np.int16)),
        np.float32([0, 0, 0.25, 0.5]),
    )


def test_brainchops_quantiles(shared_data: Path) -> None:
    """On this scan q05 = 0 and q95 = 112, says the data's README."""
    data = load_image(shared_data / "mri" / "t1_crop.nii.gz").data
    assert scaling_of(data, "quantile") == Scaling(None, None, 0, 112)


@pytest.mark.parametrize("kind", ["zscore", "zscore_nonzero", "minmax", "quantile", "percentile"])
@pytest.mark.parametrize("value", [0, 1])
def test_nothing_to_divide_by(kind: IntensityKind, value: float) -> None:
    with pytest.raises(InputError, match=rf"t1\.nii cannot be scaled by {kind}, .*value {value}:"):
        scaling_of(np.full((3, 3, 3), value, np.float32), kind, name="t1.nii")


def test_a_kind_that_is_none() -> None:
    with pytest.raises(ValueError, match="percent"):
        scaling_of(DATA, "percent")  # type: ignore[arg-type]
