"""NIfTI images to be written, with headers that say where they lie and nothing else."""

from typing import Any

import nibabel as nib
import numpy as np


def like_scan(data: np.ndarray, scan_header: Any) -> Any:
    """NIfTI image of data `[D, H, W]`, or `[D, H, W, K]`, under what describes a scan's grid.

    That is of its header: both forms and their codes, units, voxel sizes, byte order, version. The
    image's affine is in the header's unit.
    """
    two = isinstance(scan_header, nib.Nifti2Header)
    header_class: Any = nib.Nifti2Header if two else nib.Nifti1Header
    image_class: Any = nib.Nifti2Image if two else nib.Nifti1Image
    # Built from the bytes: nibabel's own conversion from the header of a pair forgets both forms,
    # and its copy() shares the list of extensions.
    header = header_class(scan_header.binaryblock, scan_header.endianness, check=False)
    header["vox_offset"] = 0  # nibabel places the voxels anew
    for field in ("descrip", "aux_file", "db_name", "data_type", "intent_name"):
        if field in header:
            header[field] = b""
    # These describe the scan's intensities.
    for field in ("intent_code", "intent_p1", "intent_p2", "intent_p3", "cal_min", "cal_max"):
        header[field] = 0
    pixdim = header["pixdim"].copy()
    header.set_data_shape(data.shape)  # one frame in 4D becomes 3D
    header["pixdim"] = pixdim  # which set_data_shape overwrites beyond the third
    header.set_data_dtype(data.dtype)
    # The affine is the header's own, so nibabel has no reason to touch the forms.
    return image_class(data, header.get_best_affine(), header)


def at_affine(data: np.ndarray, affine: np.ndarray, tolerance: float) -> Any:
    """NIfTI-1 image of data `[D, H, W]`, or `[D, H, W, K]`, at an affine, in scanner coordinates.

    A qform that differs from the affine by more than the tolerance is left out.
    """
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    if not np.allclose(image.get_qform(), affine, atol=tolerance):  # shear, beyond a qform
        image.set_qform(None, code="unknown")
    return image
