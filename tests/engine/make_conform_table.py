"""Prints how `conform` differs from nibabel's: the table in conform.py, of scans of the test data.

python tests/engine/make_conform_table.py FOLDER/mri
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import conform as nibabels
from nibabel.processing import resample_from_to

from voxtune.engine.conform import Interpolation, conform
from voxtune.engine.volume import load_image

# file, orientation, edge of the grid in voxels, voxel size in mm
ROWS: tuple[tuple[str, str, int, float], ...] = (
    ("t1_crop.nii.gz", "LIA", 256, 1.0),
    ("t1_crop.nii.gz", "RAS", 128, 2.0),
    ("open_ms/patient07/t1.nii.gz", "RAS", 256, 1.0),
    ("hippocampus/images/hippocampus_001.nii.gz", "RAS", 64, 1.0),
    ("hippocampus/images/hippocampus_001.nii.gz", "LIA", 48, 0.8),
    ("odd/bigendian_int16.nii", "RAS", 96, 1.0),
    ("odd/ail_orientation.nii.gz", "LIA", 96, 1.0),
    ("odd/pair.hdr", "RAS", 96, 1.0),
    ("odd/sform_shear_uint8_scaled.nii.gz", "RAS", 96, 1.0),
)
ORDERS: tuple[tuple[int, Interpolation], ...] = ((1, "linear"), (3, "cubic"))


def main() -> None:
    """Largest and mean difference, in per cent of the scan's range."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print(
        "| scan | to | shift | order | largest | mean | same grid |\n|---|---|---|---|---|---|---|"
    )
    for name, orientation, edge, size in ROWS:
        scan = load_image(folder / name)
        image = nib.Nifti1Image(scan.data, scan.affine)
        low, percent = float(scan.data.min()), float(np.ptp(scan.data)) / 100
        for order, interpolation in ORDERS:
            shape, spacing = (edge,) * 3, (size,) * 3
            ours = conform(scan, orientation, spacing, interpolation, shape)
            theirs = nibabels(image, shape, spacing, order=order, orientation=orientation)
            same = resample_from_to(
                image, (shape, ours.affine), order=order, mode="grid-constant", cval=low
            )
            between = np.linalg.inv(ours.affine) @ theirs.affine
            straight = np.allclose(between[:3, :3], np.eye(3), atol=1e-3)
            shift = f"{np.abs(between[:3, 3]).max():.2f}" if straight else "turned"
            far = np.abs(ours.data - theirs.get_fdata())
            # Beyond the scan's voxel centres nibabel fades to the outside, and it never clips.
            inside = tuple(
                slice(max(0, -first), max(0, n - first))
                for first, n in zip(ours.corner, ours.uncut_shape, strict=True)
            )
            clipped = np.clip(same.get_fdata(), low, scan.data.max())
            exact = np.abs(ours.data - clipped)[inside]
            print(
                f"| {name.rpartition('/')[2].partition('.')[0]} | {orientation} {edge} {size:g} "
                f"| {shift} | {order} | {far.max() / percent:.1f} | {far.mean() / percent:.2f} "
                f"| {exact.max() / percent:.2g} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
