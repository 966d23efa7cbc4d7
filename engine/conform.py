"""From a scan's grid to the grid that a network expects, and back.

When the scan's axes already are the wanted ones up to order and direction, it is only transposed
and flipped and no voxel changes. Anything else, oblique and sheared scans too, is resampled onto a
straight grid: a network that learnt straight heads should see straight heads. No JAX here.

`nibabel.processing.conform` differs, in per cent of the scan's range (linear / cubic), by

| scan                        | to           | shift  | largest   | mean        | on our grid |
|-----------------------------|--------------|--------|-----------|-------------|-------------|
| t1_crop, 1 mm, 256^3        | 1 mm, 256^3  | 0      | 0 / 0     | 0 / 0       | 0 / 0       |
| t1_crop, 1 mm, 256^3        | 2 mm, 128^3  | 0.25   | 54 / 52   | 0.91 / 0.85 | 19 / 26     |
| open_ms, 1 mm               | 1 mm, 256^3  | 0      | 3.7 / 3.7 | 2.1 / 2.1   | 0 / 0       |
| hippocampus_001, 1 mm       | 1 mm, 64^3   | 0      | 1.5 / 1.5 | 1.1 / 1.1   | 0 / 0       |
| hippocampus_001, 1 mm       | 0.8 mm, 48^3 | 0.5    | 68 / 71   | 3.9 / 4.4   | 0 / 0       |
| bigendian_int16, 2 mm       | 1 mm, 96^3   | 0      | 2.0 / 12  | 1.4 / 1.5   | 0 / 0       |
| ail_orientation, 2.4 mm     | 1 mm, 96^3   | 0.69   | 28 / 28   | 2.2 / 2.6   | 0 / 0       |
| pair, 2.4 mm                | 1 mm, 96^3   | 1.19   | 100 / 100 | 4.1 / 4.8   | 0 / 0       |
| sform_shear, 0.5 and 2.4 mm | 1 mm, 96^3   | turned | 98 / 104  | 38 / 38     | 19 / 24     |

since it lays voxel (n - 1) // 2 of the scan on that of the grid, up to half a voxel of each beside
our centre; fills with 0, not the minimum, and that at once beyond the centre of the last voxel,
where ours fades within a voxel; keeps the scan's oblique or sheared axes; does not clip what
splines overshoot; and aliases where voxels get coarser, which alone is left on our grid. Made by
tests/engine/make_conform_table.py with nibabel 5.4.2.
"""

import math
from dataclasses import dataclass
from typing import Literal

import nibabel as nib
import numpy as np
from scipy import ndimage

from voxtune.engine.contract import check_target
from voxtune.engine.volume import AXIS_TOLERANCE, MAX_VOXELS, Volume
from voxtune.models.errors import InputError

Interpolation = Literal["linear", "cubic", "nearest", "label_linear"]


@dataclass(frozen=True, eq=False)
class Conformed:
    """A volume on a network's grid, and the way back.

    "Reoriented" is the scan transposed and flipped as close to the wanted orientation as that gets.
    "Uncut" is the conformed grid before it was cut or padded to a given shape.

    Attributes:
        data: [D, H, W], C order, float32 for images, the label's dtype for labels.
        affine: float64 [4, 4], conformed voxels to mm in RAS+ world space.
        scan_shape: shape of the scan.
        scan_affine: float64 [4, 4] of the scan.
        exact: not resampled, every voxel is one of the scan's or padding.
        axes: for each conformed axis, the scan's axis that became it.
        flipped: for each conformed axis, whether it runs against the scan's axis.
        to_reoriented: float64 [4, 4], uncut voxels to reoriented voxels; identity when exact.
        uncut_shape: shape of the uncut grid.
        corner: the uncut voxel that is the first conformed one; below 0 where it was padded.
    """

    data: np.ndarray
    affine: np.ndarray
    scan_shape: tuple[int, int, int]
    scan_affine: np.ndarray
    exact: bool
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    to_reoriented: np.ndarray
    uncut_shape: tuple[int, int, int]
    corner: tuple[int, int, int]

    @property
    def reoriented_shape(self) -> tuple[int, int, int]:
        """Shape of the reoriented scan."""
        first, second, third = (self.scan_shape[axis] for axis in self.axes)
        return first, second, third


def conform(
    volume: Volume,
    orientation: str,
    spacing_mm: tuple[float, float, float] | None,
    interpolation: Interpolation,
    grid: tuple[int, int, int] | None = None,
    outside: float | None = None,
) -> Conformed:
    """Bring a volume to an orientation and voxel size.

    A resampled grid is centred on the scan and spans the voxel centres of all eight corners. What
    lies outside the scan (the corners around an oblique one, and what `grid` adds) becomes label 0,
    or an image's minimum, which is air, or the background of a skull-stripped scan. Images fade to
    it within a voxel beyond the centres of the scan's last voxels, so the outermost planes of a
    resampled image, up to half a voxel of the grid beyond those, are a blend.

    Args:
        volume: the scan or its label map.
        orientation: where the conformed axes point to, as in nibabel: "RAS", "LIA" ...
        spacing_mm: voxel sizes along the conformed axes. None keeps the scan's own.
        interpolation: of images "linear" or "cubic" (splines, clipped to the scan's own range),
            after a Gaussian blur along axes that get coarser; of labels "nearest", or
            "label_linear": each value's map linearly, and the largest wins, of equals the smallest
            value.
        grid: shape to cut or pad to, voxels along the conformed axes. The middle voxel stays the
            middle one (that before the middle of an even number), as in nibabel, so no voxel
            changes.
        outside: value of an image outside the scan, in the place of its minimum.

    Raises:
        InputError: orientation or spacing make no sense, or the grid would be too large.
    """
    plan = _planned(volume, orientation, spacing_mm)
    shape, affine = plan.shape, plan.affine
    to_reoriented = np.eye(4)
    data = _reorient(volume.data, plan.axes, plan.flipped)
    if plan.exact:  # else there would be a third volume beside the scan and the resampled one
        data = np.ascontiguousarray(data)
    if interpolation in ("nearest", "label_linear"):
        outside = 0.0
    elif outside is None:
        outside = float(data.min())
    if not plan.exact:
        to_reoriented = np.linalg.inv(plan.reoriented) @ affine
        if interpolation == "nearest":
            data = _resample(data, to_reoriented, shape, order=0, outside=0)
        elif interpolation == "label_linear":
            data = _resample_classes(data, to_reoriented, shape)
        else:
            low, high = min(float(data.min()), outside), max(float(data.max()), outside)
            data = _blur(data, plan.own_spacing, plan.spacing)
            order = 1 if interpolation == "linear" else 3
            data = _resample(data, to_reoriented, shape, order, outside)
            np.clip(data, low, high, out=data)
    corner = (0, 0, 0)
    if grid is not None:
        first, second, third = (
            (n - 1) // 2 - (m - 1) // 2 for n, m in zip(shape, grid, strict=True)
        )
        corner = (first, second, third)
        data = _cut(data, corner, grid, outside)
        affine = affine @ nib.affines.from_matvec(np.eye(3), corner)
    depth, height, width = volume.data.shape
    return Conformed(
        data=data,
        affine=affine,
        scan_shape=(depth, height, width),
        scan_affine=volume.affine,
        exact=plan.exact,
        axes=plan.axes,
        flipped=plan.flipped,
        to_reoriented=to_reoriented,
        uncut_shape=shape,
        corner=corner,
    )


def conformed_shape(
    volume: Volume, orientation: str, spacing_mm: tuple[float, float, float] | None
) -> tuple[tuple[int, int, int], bool]:
    """Shape that `conform` gives a volume where it is not cut or padded, and whether it is exact.

    Nothing is resampled.

    Raises:
        InputError: as `conform`.
    """
    plan = _planned(volume, orientation, spacing_mm)
    return plan.shape, plan.exact


def exactly_to_scan_grid(conformed: Conformed, values: np.ndarray, outside: float) -> np.ndarray:
    """Values at each of the scan's own voxels, where it was not resampled.

    Args:
        conformed: what `conform` returned for the scan.
        values: `[D, H, W]` on the conformed grid.
        outside: value where the grid cut scan voxels off.

    Returns:
        An array shaped as the scan.
    """
    first, second, third = conformed.corner
    uncut = _cut(values, (-first, -second, -third), conformed.uncut_shape, outside)
    return to_scan_axes(conformed, uncut)


def image_to_scan_grid(conformed: Conformed, image: np.ndarray) -> np.ndarray:
    """An image at each of the scan's own voxels, interpolated linearly where it was resampled.

    Args:
        conformed: what `conform` returned for the scan.
        image: float32 [D, H, W] on the conformed grid.

    Returns:
        float32, shaped as the scan; the image's minimum where the grid cut scan voxels off.
    """
    if image.shape != conformed.data.shape:
        raise ValueError(f"{image.shape} is not on the grid {conformed.data.shape}")
    if conformed.exact:
        return exactly_to_scan_grid(conformed, image, float(image.min()))
    # A contiguous copy: interpolating a strided map takes three times as long.
    grid = np.ascontiguousarray(image, np.float32)
    shape = conformed.reoriented_shape
    values = _resample(grid, to_conformed(conformed), shape, order=1, outside=None)
    fill_cut_off(conformed, values, float(image.min()))
    return to_scan_axes(conformed, values)


def to_scan_axes(conformed: Conformed, values: np.ndarray) -> np.ndarray:
    """Values of the reoriented scan `[reoriented_shape]` as the scan's own axes have them."""
    undone = np.flip(values, _flips(conformed.flipped)).transpose(np.argsort(conformed.axes))
    return np.ascontiguousarray(undone)


def to_conformed(conformed: Conformed) -> np.ndarray:
    """float64 `[4, 4]`: voxels of the reoriented scan to conformed ones."""
    found = np.linalg.inv(conformed.to_reoriented)
    found[:3, 3] -= conformed.corner
    return found


def fill_cut_off(conformed: Conformed, values: np.ndarray, outside: float) -> None:
    """Fills in, in place, what lies more than half a voxel outside the grid, where that was cut.

    Args:
        conformed: what `conform` returned for the scan.
        values: `[reoriented_shape]`.
        outside: what those voxels get.
    """
    to_uncut = np.linalg.inv(conformed.to_reoriented)
    _, height, width = values.shape
    for axis in range(3):
        first, size = conformed.corner[axis], conformed.data.shape[axis]
        if first <= 0 and first + size >= conformed.uncut_shape[axis]:
            continue
        for depth, plane in enumerate(values):  # places of a plane at a time, which are float64
            voxels = (depth, np.arange(height)[:, None], np.arange(width))
            x, y, z = (to_uncut[axis, each] * voxels[each] for each in range(3))
            place = x + y + z + (to_uncut[axis, 3] - first)
            plane[(place < -0.5) | (place > size - 0.5)] = outside


@dataclass(frozen=True, eq=False)
class _Plan:
    """The grid that a scan is conformed to, before it is cut.

    Attributes:
        axes: see `Conformed`.
        flipped: likewise.
        exact: likewise.
        reoriented: float64 [4, 4], voxels of the reoriented scan to mm.
        own_spacing: mm, of the reoriented scan.
        spacing: mm, along the axes of the grid.
        shape: of the grid.
        affine: float64 [4, 4], voxels of the grid to mm.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    exact: bool
    reoriented: np.ndarray
    own_spacing: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, int, int]
    affine: np.ndarray


def _planned(
    volume: Volume, orientation: str, spacing_mm: tuple[float, float, float] | None
) -> _Plan:
    check_target(orientation, spacing_mm)
    axes, flipped = _closest_reorientation(volume.affine, orientation)
    shape, reoriented = _reoriented_grid(volume.data.shape, volume.affine, axes, flipped)
    own_spacing = np.linalg.norm(reoriented[:3, :3], axis=0)
    spacing = own_spacing if spacing_mm is None else np.asarray(spacing_mm, np.float64)
    directions = axis_directions(orientation)
    straight = np.abs(reoriented[:3, :3] / own_spacing - directions).max() <= AXIS_TOLERANCE
    exact = bool(straight and np.allclose(own_spacing, spacing, rtol=AXIS_TOLERANCE, atol=0))
    affine = reoriented
    if not exact:
        shape, affine = _straight_grid(shape, reoriented, directions, spacing)
        if math.prod(shape) > MAX_VOXELS:
            raise InputError(
                f"{volume.path} would become {shape} voxels at {_sizes(spacing)} mm, too many: "
                f"check its voxel sizes ({_sizes(own_spacing)} mm) or choose a larger spacing"
            )
    return _Plan(axes, flipped, exact, reoriented, own_spacing, spacing, shape, affine)


def _cut(
    data: np.ndarray, corner: tuple[int, int, int], shape: tuple[int, int, int], outside: float
) -> np.ndarray:
    """The box [shape] of data that begins at `corner`, `outside` where it sticks out."""
    found = np.full(shape, outside, data.dtype)
    pairs = list(zip(corner, shape, data.shape, strict=True))
    inside = tuple(slice(max(at, 0), min(at + size, n)) for at, size, n in pairs)
    place = tuple(slice(max(-at, 0), min(size, n - at)) for at, size, n in pairs)
    found[place] = data[inside]
    return found


def _closest_reorientation(
    affine: np.ndarray, orientation: str
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """For each axis of the wanted orientation, the closest scan axis and whether it is reversed."""
    transform = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(orientation)
    )
    first, second, third = np.argsort(transform[:, 0]).tolist()
    axes = (first, second, third)
    return axes, (transform[first, 1] < 0, transform[second, 1] < 0, transform[third, 1] < 0)


def _reorient(
    data: np.ndarray, axes: tuple[int, int, int], flipped: tuple[bool, bool, bool]
) -> np.ndarray:
    return np.flip(data.transpose(axes), _flips(flipped))


def _flips(flipped: tuple[bool, bool, bool]) -> tuple[int, ...]:
    return tuple(axis for axis in range(3) if flipped[axis])


def _reoriented_grid(
    shape: tuple[int, ...],
    affine: np.ndarray,
    axes: tuple[int, int, int],
    flipped: tuple[bool, bool, bool],
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the scan after `_reorient`."""
    first, second, third = (shape[axis] for axis in axes)
    new_shape = (first, second, third)
    to_scan = np.zeros((4, 4))
    to_scan[3, 3] = 1
    for new, old in enumerate(axes):
        to_scan[old, new] = -1 if flipped[new] else 1
        to_scan[old, 3] = shape[old] - 1 if flipped[new] else 0
    return new_shape, affine @ to_scan


def axis_directions(orientation: str) -> np.ndarray:
    """[3, 3]: column i is the unit vector in RAS+ space along axis i of the orientation."""
    matrix = np.zeros((3, 3))
    for axis, code in enumerate(orientation):
        row = next(row for row, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        matrix[row, axis] = 1 if code in "RAS" else -1
    return matrix


def _straight_grid(
    shape: tuple[int, int, int], affine: np.ndarray, directions: np.ndarray, spacing: np.ndarray
) -> tuple[tuple[int, int, int], np.ndarray]:
    """The smallest grid along `directions` that spans a scan's voxel centres, centred on it."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.asarray(shape)[:, None] - 1)
    along = directions.T @ (affine[:3, :3] @ corners + affine[:3, 3:])  # mm along each new axis
    low, high = along.min(axis=1), along.max(axis=1)
    # A thousandth of a voxel may stick out, or rounding would add a plane of voxels.
    steps = np.ceil((high - low) / spacing - AXIS_TOLERANCE)
    new_affine = np.eye(4)
    new_affine[:3, :3] = directions * spacing
    new_affine[:3, 3] = directions @ ((low + high - steps * spacing) / 2)
    first, second, third = (int(n) + 1 for n in steps)
    return (first, second, third), new_affine


def _blur(data: np.ndarray, own_spacing: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Low-pass image [D, H, W] along the axes that get coarser, so that fine texture cannot alias.

    The width makes a voxel's Gaussian profile (full width at half maximum = voxel size) as wide as
    the new voxel's: Cardoso et al. 2015, scale factor point spread function matching.
    """
    ratio = spacing / own_spacing
    sigma = np.sqrt(np.maximum(ratio**2 - 1, 0) / (8 * np.log(2)))  # in own voxels
    sigma[ratio <= 1 + AXIS_TOLERANCE] = 0
    return ndimage.gaussian_filter(data, sigma, mode="nearest") if sigma.any() else data


def _resample(
    data: np.ndarray,
    to_data: np.ndarray,
    shape: tuple[int, int, int],
    order: int,
    outside: float | None,
) -> np.ndarray:
    """Sample data at voxels of a new grid [shape]; `to_data` takes those to data's voxels.

    `outside` is the value around data, None repeats the border. "grid-constant" because with
    "constant" scipy also blanks points that rounding puts 1e-15 beyond the border. Order 3 is
    filtered first, so that the spline goes through the values. Axes are taken as they lie in
    memory: against that, interpolating 256^3 voxels takes three times as long.
    """
    memory = np.argsort([-abs(stride) for stride in data.strides], kind="stable")
    return ndimage.affine_transform(
        data.transpose(memory),
        to_data[memory, :3],
        to_data[memory, 3],
        output_shape=shape,
        order=order,
        mode="nearest" if outside is None else "grid-constant",
        cval=outside or 0,
        prefilter=order > 1,
    )


def _resample_classes(
    data: np.ndarray, to_data: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """Labels [shape] of which each value's map, interpolated linearly, is the largest.

    One value at a time, and that in its own box, so that a hundred values take the memory of two.
    """
    found, best = np.zeros(shape, data.dtype), np.zeros(shape, np.float32)
    values = np.unique(data)
    indices = np.searchsorted(values, data)
    boxes = dict(zip(values.tolist(), ndimage.find_objects(indices + 1), strict=True))
    for value in sorted({0, *boxes}):
        if value:
            inside, where = boxes[value], _reached(boxes[value], to_data, shape)
        else:  # which is outside the scan too
            inside, where = np.s_[:, :, :], tuple(map(slice, shape))
        first, size = [part.start or 0 for part in where], best[where].shape
        shifted = to_data @ nib.affines.from_matvec(np.eye(3), first)
        shifted[:3, 3] -= [part.start or 0 for part in inside]
        mask = (data[inside] == value).astype(np.float32)
        weight = _resample(mask, shifted, size, order=1, outside=float(value == 0))
        wins = weight > best[where]
        found[where][wins] = value
        best[where][wins] = weight[wins]
    return found


def _reached(
    box: tuple[slice, ...], to_data: np.ndarray, shape: tuple[int, int, int]
) -> tuple[slice, ...]:
    """Where a box of data and the voxel round it lie in a new grid [shape]."""
    ends = np.array([(part.start - 1, part.stop) for part in box])
    corners = np.stack(np.meshgrid(*ends), axis=-1).reshape(8, 3)
    voxels = nib.affines.apply_affine(np.linalg.inv(to_data), corners)
    low = np.clip(np.floor(voxels.min(axis=0)), 0, shape).astype(int).tolist()
    high = np.clip(np.ceil(voxels.max(axis=0)) + 1, 0, shape).astype(int).tolist()
    return tuple(map(slice, low, high))


def _sizes(spacing: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in spacing)
