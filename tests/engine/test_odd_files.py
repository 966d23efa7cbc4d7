"""Small odd but legal files: each is the right volume, by nibabel and by their README, or refused.

A file that is not listed here fails, so that none is passed over.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxtune.engine.volume import load_image, load_label
from voxtune.models.errors import InputError

# file → shape, axes, voxel size in mm, range
VOLUMES = {
    "ail_orientation.nii.gz": ((79, 67, 64), "AIL", (2.39, 2.366, 2.385), (0, 92.554)),
    "bigendian_int16.nii": ((33, 41, 25), "LAS", (2, 2, 2), (-610, 30393)),
    "lia_labels256.nii.gz": ((256, 256, 256), "LIA", (1, 1, 1), (0, 2)),
    "lia_uint8.mgz": ((256, 256, 256), "LIA", (1, 1, 1), (0, 250)),
    "no_qform_no_sform_bigendian.nii.gz": ((64, 64, 10), "LAS", (3, 3, 3), (0, 63)),
    "pair.hdr": ((62, 41, 34), "RAS", (2.385, 2.39, 2.366), (0, 255)),
    "pair.img": ((62, 41, 34), "RAS", (2.385, 2.39, 2.366), (0, 255)),
    "sform_only_4x5x7.nii.gz": ((4, 5, 7), "RAS", (1, 3, 2), (0, 255)),
    "sform_shear_uint8_scaled.nii.gz": (
        *((120, 150, 44), "RAS"),
        *((0.482, 0.482, 2.371), (-1024, 732.122)),
    ),
    "tiny_7x5x3.nii.gz": ((7, 5, 3), "RAS", (2, 2, 2), (0, 1)),
}
SENTENCES = {
    "4d_int16_slope_inter.nii": "20 frames",
    "bigendian_float32_nan.nii": "153 voxels that are NaN or infinite",
    "complex64_no_qform_no_sform.nii.gz": "complex numbers",
    "float32_4d.mgz": "2 frames",
    "nifti2_4d.nii.gz": "2 frames",
    **dict.fromkeys(("LICENSE.nibabel", "LICENSE.niivue", "README.md"), "not a file type"),
}


def test_every_file_is_known(shared_data: Path) -> None:
    found = {path.name for path in (shared_data / "mri" / "odd").iterdir()}
    assert found == {*VOLUMES, *SENTENCES}


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes(shared_data: Path, name: str) -> None:
    shape, axes, spacing, (low, high) = VOLUMES[name]
    path = shared_data / "mri" / "odd" / name
    read, reference = load_image(path), nib.load(path)
    assert (read.data.shape, read.data.dtype) == (shape, np.float32)
    assert "".join(nib.aff2axcodes(read.affine)) == axes
    assert read.spacing_mm == pytest.approx(spacing, abs=1e-3)
    assert (read.data.min(), read.data.max()) == pytest.approx((low, high), abs=1e-3)
    np.testing.assert_allclose(read.affine, reference.affine)
    voxels = np.asanyarray(reference.dataobj).reshape(shape)
    np.testing.assert_array_equal(read.data, voxels.astype(np.float32))


@pytest.mark.parametrize("name", SENTENCES)
@pytest.mark.parametrize("load", [load_image, load_label])
def test_sentences(shared_data: Path, name: str, load) -> None:
    path = shared_data / "mri" / "odd" / name
    with pytest.raises(InputError, match=SENTENCES[name]) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_voxels_that_are_nan_are_replaced_where_asked(shared_data: Path) -> None:
    path = shared_data / "mri" / "odd" / "bigendian_float32_nan.nii"
    read, stored = load_image(path, nonfinite=-7), nib.load(path).get_fdata(dtype=np.float32)
    assert read.replaced == np.isnan(stored).sum() == 153
    np.testing.assert_array_equal(read.data, np.where(np.isnan(stored), -7, stored))
    assert "".join(nib.aff2axcodes(read.affine)) == "LAS"
    assert read.spacing_mm == pytest.approx((4, 4, 8))
