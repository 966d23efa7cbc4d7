"""Writes surfaces.golden.npz: pairs of masks with MONAI's and DeepMind's surface distances.

    python make_surface_fixtures.py surfaces.golden.npz

Run by hand in an environment of its own, with torch, monai (1.6.1 wrote the file), scipy and
surface-distance-based-measures (0.1; DeepMind's, from PyPI). Nothing of voxtune is needed.

For each case the file holds `NAME_masks`, the bits of the predicted and the true mask, uint8
`[2, N]`; `NAME_shape`; `NAME_spacing`, mm; `NAME_monai` and `NAME_deepmind`, both HD, HD95, ASSD
and surface Dice at `TOLERANCES`, in that order. DeepMind's ASSD is pooled here, by areas, of what
their functions give; where a mask is empty its numbers are NaN. `versions` says what was used.
"""

import sys
import warnings
from importlib.metadata import version

import monai.metrics as monai
import numpy as np
import torch
from scipy import ndimage

warnings.filterwarnings("ignore")
import surface_distance as deepmind  # noqa: E402  (it warns of names that SciPy is to lose)

TOLERANCES = (0.5, 1.0, 2.0)  # mm


def ellipsoid(shape, spacing, centre, radii):
    """Voxels within an ellipsoid; centre in voxels, radii in mm."""
    grid = np.indices(shape).reshape(3, -1).T
    scaled = (grid - centre) * np.asarray(spacing) / radii
    return ((scaled**2).sum(1) <= 1).reshape(shape)


def cuboid(shape, begin, end):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(begin, end, strict=True))] = True
    return mask


def blobs(shape, seed, share):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return noise > np.quantile(noise, 1 - share)


def cases():
    """Name → spacing in mm, predicted mask, true mask."""
    shape, one = (24, 22, 20), (1.0, 1.0, 1.0)
    flat = (0.5, 0.75, 3.0)
    ball = ellipsoid(shape, one, (11, 11, 10), 7)
    empty = np.zeros(shape, bool)
    point = cuboid(shape, (4, 5, 6), (5, 6, 7))
    yield "same", one, ball, ball
    yield "balls", one, ellipsoid(shape, one, (13, 10, 9), 6), ball
    yield "nested", one, ellipsoid(shape, one, (11, 11, 10), 3), ball
    yield (
        "ellipsoids",
        flat,
        ellipsoid(shape, flat, (12, 10, 9), (4, 5, 20)),
        ellipsoid(shape, flat, (11, 11, 10), (5, 4, 18)),
    )
    yield (
        "plates",
        (1.2, 0.9, 1.0),
        cuboid(shape, (3, 3, 9), (20, 19, 10)),
        cuboid(shape, (4, 3, 11), (20, 20, 13)),
    )
    yield "border", one, cuboid(shape, (0, 0, 0), (9, 9, 20)), cuboid(shape, (0, 0, 0), (7, 10, 18))
    yield "whole", one, ~empty, ball
    yield "points", flat, point, cuboid(shape, (20, 15, 6), (21, 16, 7))
    yield "point_and_ball", one, point, ball
    yield "blobs", (1.0, 1.0, 2.0), blobs(shape, 0, 0.1), blobs(shape, 1, 0.15)
    mixed = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=shape), 1.5)
    yield "frayed", (0.8, 0.8, 1.2), (ndimage.gaussian_filter(ball * 1.0, 1) + mixed > 0.5), ball
    yield "missed", one, empty, ball
    yield "false", one, ball, empty
    yield "neither", one, empty, empty


def of_monai(predicted, true, spacing):
    both = [torch.from_numpy(each.astype(np.float32))[None, None] for each in (predicted, true)]
    place = {"include_background": True, "spacing": spacing}
    values = [
        monai.compute_hausdorff_distance(*both, **place),
        monai.compute_hausdorff_distance(*both, percentile=95, **place),
        monai.compute_average_surface_distance(*both, symmetric=True, **place),
        *(monai.compute_surface_dice(*both, [each], **place) for each in TOLERANCES),
    ]
    return [float(each) for each in values]


def of_deepmind(predicted, true, spacing):
    if not (predicted.any() and true.any()):
        return [np.nan] * (3 + len(TOLERANCES))
    found = deepmind.compute_surface_distances(true, predicted, spacing)
    to_predicted, to_true = deepmind.compute_average_surface_distance(found)
    areas = found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()
    return [
        deepmind.compute_robust_hausdorff(found, 100),
        deepmind.compute_robust_hausdorff(found, 95),
        (to_predicted * areas[0] + to_true * areas[1]) / sum(areas),
        *(deepmind.compute_surface_dice_at_tolerance(found, each) for each in TOLERANCES),
    ]


def main():
    arrays = {}
    for name, spacing, predicted, true in cases():
        arrays[f"{name}_masks"] = np.stack([np.packbits(each) for each in (predicted, true)])
        arrays[f"{name}_shape"] = np.array(true.shape)
        arrays[f"{name}_spacing"] = np.array(spacing)
        arrays[f"{name}_monai"] = np.array(of_monai(predicted, true, spacing))
        arrays[f"{name}_deepmind"] = np.array(of_deepmind(predicted, true, spacing))
    packages = ("monai", "torch", "scipy", "numpy", "surface-distance-based-measures")
    arrays["versions"] = np.array([f"{name} {version(name)}" for name in packages])
    np.savez_compressed(sys.argv[1], **arrays)


if __name__ == "__main__":
    main()
