"""From a subject's files to what its network sees."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from voxtune.engine.contract import Contract
from voxtune.engine.preprocessing import (
    conformed_channel,
    load_channels,
    network_image,
    pad_to_block,
    read_conformed,
)
from voxtune.engine.volume import Volume
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)


def volume(data: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    return Volume(
        data, np.eye(4) if affine is None else affine, Path("made.nii"), nib.Nifti1Header()
    )


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def noise(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_worker_processes_need_no_jax() -> None:
    modules = "preprocessing, labels, volume, conform, intensity, contract, config"
    code = f"import sys; from voxtune.engine import {modules}; "
    code += "print([n for n in ('jax', 'flax', 'grain', 'orbax') if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


class TestReadConformed:
    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 0.98)])
    @pytest.mark.parametrize("kind", ["zscore", "quantile", "percentile"])
    def test_two_volumes_at_a_time(self, tmp_path: Path, spacing, kind) -> None:
        """Of int16 that the file scales. A copy more would be three."""
        image = nib.Nifti1Image((1000 * noise(64, 64, 64)).astype(np.int16), np.diag([-1, 1, 1, 1]))
        image.header.set_slope_inter(0.5, 3)
        nib.save(image, tmp_path / "scan.nii")
        contract = Contract("RAS", spacing, kind, (8, 8, 8))
        found = read_conformed({"image": tmp_path / "scan.nii"}, contract)
        assert found.grid.exact == (spacing[2] == 1)
        tracemalloc.start()
        try:
            read_conformed({"image": tmp_path / "scan.nii"}, contract)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak / found.image.nbytes < 2.4

    @pytest.mark.parametrize("number", [1, 2])
    def test_it_is_what_the_parts_give(self, tmp_path: Path, number: int) -> None:
        names = ["t1", "t2"][:number]
        files = {name: save(tmp_path / f"{name}.nii", noise(5, 6, 7)) for name in names}
        contract = Contract("LPS", (1.0, 1.0, 1.0), "minmax", (4, 4, 4))
        found = read_conformed(files, contract)
        image, grid = network_image(load_channels(files), contract)
        np.testing.assert_array_equal(found.image, image)
        assert found.image.shape == (5, 6, 7, number)
        np.testing.assert_array_equal(found.grid.affine, grid.affine)
        assert found.place.data.shape == (5, 6, 7)

    def test_other_grids_are_refused(self, tmp_path: Path) -> None:
        files = {
            "t1": save(tmp_path / "t1.nii", noise(5, 6, 7)),
            "t2": save(tmp_path / "t2.nii", noise(5, 6, 8)),
        }
        with pytest.raises(InputError, match=r"t2\.nii has shape"):
            read_conformed(files, Contract("RAS", None, "minmax", (4, 4, 4)))


class TestNetworkImage:
    def test_the_contract_scales_the_whole_image(self) -> None:
        data = 7 + 3 * noise(4, 5, 6)
        image, grid = network_image([volume(data)], Contract("RAS", None, "zscore", (4, 4, 4)))
        assert (image.shape, image.dtype) == ((4, 5, 6, 1), np.float32)
        assert grid.exact
        assert image.mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
        assert image.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)

    def test_grid_window_and_interpolation_are_the_contracts(self) -> None:
        data = 50 + 40 * ndimage.gaussian_filter(noise(9, 9, 9), 1)
        how = {"grid": (12, 7, 9), "window": (20.0, 80.0)}
        images = {}
        for interpolation in ("linear", "cubic"):
            contract = Contract(
                "RAS", (0.5, 1.0, 1.0), "window", (4, 4, 4), interpolation=interpolation, **how
            )
            images[interpolation], grid = network_image([volume(data)], contract)
            assert images[interpolation].shape == (12, 7, 9, 1)
            unscaled = conformed_channel(volume(data), contract).data
            np.testing.assert_array_equal(
                images[interpolation][..., 0],
                ((np.clip(unscaled, 20, 80) - np.float32(20)) / np.float32(60)),
            )
            np.testing.assert_array_equal(grid.data, images[interpolation][..., 0])
        linear, cubic = images["linear"], images["cubic"]
        assert 0 < np.abs(linear - cubic).max() < 0.1

    def test_each_channel_by_its_own_statistics(self) -> None:
        data = noise(4, 4, 4)
        scan = [volume(data), volume(500 - 100 * data)]
        image, _ = network_image(scan, Contract("RAS", None, "zscore", (4, 4, 4)))
        np.testing.assert_allclose(image[..., 0], -image[..., 1], atol=1e-5)

    @pytest.mark.parametrize("interpolation", ["linear", "cubic"])
    def test_a_stripped_brain_gets_no_shell(self, interpolation) -> None:
        """Coarser by two: blurred far beyond the brain, whose statistics would be others."""
        ball = ((np.indices((33, 33, 33)) - 16.0) ** 2).sum(axis=0) < 12**2
        data = np.where(ball, 100 + 5 * noise(33, 33, 33), 0).astype(np.float32)
        contract = Contract(
            *("RAS", (2.0, 2.0, 2.0), "zscore_nonzero", (4, 4, 4)),
            grid=(30, 30, 30),
            interpolation=interpolation,
        )
        found = conformed_channel(volume(data), contract).data
        brain = np.zeros((30, 30, 30), bool)
        brain[6:23, 6:23, 6:23] = ball[::2, ::2, ::2]  # the middle, 8 of 17, becomes 14 of 30
        np.testing.assert_array_equal(found != 0, brain)
        image, _ = network_image([volume(data)], contract)
        np.testing.assert_array_equal(image[..., 0] != 0, brain)


class TestChannels:
    def test_they_lie_on_the_grid_of_the_first(self, tmp_path: Path) -> None:
        """To the last bit, or resampled they would be of different shapes."""
        near = np.eye(4) + 1e-4 * np.eye(4, k=1)
        files = {
            "t1": save(tmp_path / "t1.nii", noise(4, 4, 4)),
            "t2": save(tmp_path / "t2.nii", noise(4, 4, 4), near),
        }
        first, second = load_channels(files)
        np.testing.assert_array_equal(first.affine, second.affine)

    @pytest.mark.parametrize(
        ("shape", "shift", "words"),
        [
            ((4, 4, 5), 0.0, r"\(4, 4, 5\) but .*t1\.nii has \(4, 4, 4\)"),
            ((4, 4, 4), 1.0, "affine"),
        ],
    )
    def test_those_on_two_grids_are_refused(
        self, tmp_path: Path, shape: tuple[int, ...], shift: float, words: str
    ) -> None:
        files = {
            "t1": save(tmp_path / "t1.nii", noise(4, 4, 4)),
            "t2": save(tmp_path / "t2.nii", noise(*shape), np.eye(4) + shift * np.eye(4, k=3)),
        }
        with pytest.raises(InputError, match=rf"t2\.nii has .*{words}.*\(linear\)"):
            load_channels(files)

    def test_voxels_that_are_no_numbers_are_replaced_in_each(self, tmp_path: Path) -> None:
        data = noise(4, 4, 4)
        data[0, 0, :3] = np.nan, np.inf, -np.inf
        files = {
            "t1": save(tmp_path / "t1.nii", noise(4, 4, 4)),
            "t2": save(tmp_path / "t2.nii", data),
        }
        with pytest.raises(InputError, match=r"t2\.nii has 3 voxels"):
            load_channels(files)
        first, second = load_channels(files, -5.0)
        assert (first.replaced, second.replaced) == (0, 3)
        assert second.data[0, 0].tolist() == [-5, -5, -5, data[0, 0, 3]]


class TestPadding:
    def test_it_says_where_the_scan_lies(self) -> None:
        data = noise(3, 9, 5, 2)
        padded, inside = pad_to_block(data, (8, 8, 8))
        assert padded.shape == (8, 9, 8, 2)
        np.testing.assert_array_equal(padded[inside], data)
        assert pad_to_block(data, (3, 9, 5))[0] is data

    def test_a_scan_of_one_slice_can_be_padded(self) -> None:
        padded, inside = pad_to_block(np.full((1, 2, 2), 5.0), (4, 4, 4))
        assert padded.shape == (4, 4, 4)
        assert (padded == 5).all()
        assert padded[inside].shape == (1, 2, 2)
