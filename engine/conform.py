"""From a scan's grid to the grid that a network expects, and back.

When the scan's axes already are the wanted ones up to order and direction, it is only transposed
and flipped and no voxel changes. Anything else, oblique and sheared scans too, is resampled onto a
straight grid: a network that learnt straight heads should see straight heads.
"""

import math
from dataclasses import dataclass
from typing import Literal

import nibabel as nib
import numpy as np
from scipy import ndimage

from voxtune.engine.volume import AXIS_TOLERANCE, MAX_VOXELS, Volume
from voxtune.models.errors import InputError

Kind = Literal["image", "label"]


@dataclass(frozen=True, eq=False)
class Conformed:
    """A volume on a network's grid, and the way back.

    "Reoriented" is the scan transposed and flipped as close to the wanted orientation as that gets.

    Attributes:
        data: [D, H, W], C order, float32 for images, the label's dtype for labels.
        affine: float64 [4, 4], conformed voxels to mm in RAS+ world space.
        scan_shape: shape of the scan.
        scan_affine: float64 [4, 4] of the scan.
        exact: reoriented only, every voxel is one of the scan's.
        axes: for each conformed axis, the scan's axis that became it.
        flipped: for each conformed axis, whether it runs against the scan's axis.
        to_reoriented: float64 [4, 4], conformed voxels to reoriented voxels; identity when exact.
    """

    data: np.ndarray
    affine: np.ndarray
    scan_shape: tuple[int, int, int]
    scan_affine: np.ndarray
    exact: bool
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    to_reoriented: np.ndarray


def conform(
    volume: Volume,
    orientation: str,
    spacing_mm: tuple[float, float, float] | None,
    kind: Kind,
) -> Conformed:
    """Bring a volume to an orientation and voxel size.

    A resampled grid is centred on the scan and spans the voxel centres of all eight corners. Images
    are interpolated linearly, after a Gaussian blur along axes that get coarser; labels take the
    nearest voxel. What lies outside the scan (the corners around an oblique one) becomes label 0 or
    the image's minimum, which is air, or the background of a skull-stripped scan.

    Args:
        volume: the scan or its label map.
        orientation: where the conformed axes point to, as in nibabel: "RAS", "LIA" ...
        spacing_mm: voxel sizes along the conformed axes. None keeps the scan's own.
        kind: "image" or "label".

    Raises:
        InputError: orientation or spacing make no sense, or the grid would be too large.
    """
    check_target(orientation, spacing_mm)
    axes, flipped = _closest_reorientation(volume.affine, orientation)
    shape, affine = _reoriented_grid(volume.data.shape, volume.affine, axes, flipped)
    own_spacing = np.linalg.norm(affine[:3, :3], axis=0)
    spacing = own_spacing if spacing_mm is None else np.asarray(spacing_mm, np.float64)
    directions = _directions(orientation)

    straight = np.abs(affine[:3, :3] / own_spacing - directions).max() <= AXIS_TOLERANCE
    exact = bool(straight and np.allclose(own_spacing, spacing, rtol=AXIS_TOLERANCE, atol=0))
    to_reoriented = np.eye(4)
    data = np.ascontiguousarray(_reorient(volume.data, axes, flipped))
    if not exact:
        new_shape, new_affine = _straight_grid(shape, affine, directions, spacing)
        if math.prod(new_shape) > MAX_VOXELS:
            raise InputError(
                f"{volume.path} would become {new_shape} voxels at {_sizes(spacing)} mm, too many: "
                f"check its voxel sizes ({_sizes(own_spacing)} mm) or choose a larger spacing"
            )
        to_reoriented = np.linalg.inv(affine) @ new_affine
        if kind == "image":
            outside = float(data.min())
            data = _blur(data, own_spacing, spacing)
            data = _resample(data, to_reoriented, new_shape, order=1, outside=outside)
        else:
            data = _resample(data, to_reoriented, new_shape, order=0, outside=0)
        affine = new_affine
    depth, height, width = volume.data.shape
    return Conformed(
        data=data,
        affine=affine,
        scan_shape=(depth, height, width),
        scan_affine=volume.affine,
        exact=exact,
        axes=axes,
        flipped=flipped,
        to_reoriented=to_reoriented,
    )


def to_scan_grid(conformed: Conformed, probabilities: np.ndarray) -> np.ndarray:
    """The most probable class of each of the scan's own voxels.

    Resampled scans get each class's map interpolated linearly at their voxel centres, one class at
    a time, and the largest wins: boundaries fall between the conformed voxels, not on them.

    Args:
        conformed: what `conform` returned for the scan.
        probabilities: float32 [D, H, W, C] on the conformed grid; anything that rises with the
            probability, logits too.

    Returns:
        Indices of classes, uint8 (uint16 beyond 256 classes), shaped as the scan.
    """
    if probabilities.shape[:-1] != conformed.data.shape:
        raise ValueError(f"{probabilities.shape} is not on the grid {conformed.data.shape}")
    classes = probabilities.shape[-1]
    dtype = np.uint8 if classes <= 256 else np.uint16
    if conformed.exact:
        winners = np.argmax(probabilities, axis=-1).astype(dtype)
    else:
        winners = _interpolated_argmax(conformed, probabilities, dtype)
    return np.ascontiguousarray(_undo_reorient(winners, conformed.axes, conformed.flipped))


def image_to_scan_grid(conformed: Conformed, image: np.ndarray) -> np.ndarray:
    """An image at each of the scan's own voxels, interpolated linearly where it was resampled.

    Args:
        conformed: what `conform` returned for the scan.
        image: float32 [D, H, W] on the conformed grid.

    Returns:
        float32, shaped as the scan.
    """
    if image.shape != conformed.data.shape:
        raise ValueError(f"{image.shape} is not on the grid {conformed.data.shape}")
    values = image if conformed.exact else _at_scan_voxels(conformed, image)
    return np.ascontiguousarray(_undo_reorient(values, conformed.axes, conformed.flipped))


def _interpolated_argmax(
    conformed: Conformed, probabilities: np.ndarray, dtype: type[np.integer]
) -> np.ndarray:
    """Winning class [reoriented scan shape]; the first wins a tie, as in argmax."""
    best = _at_scan_voxels(conformed, probabilities[..., 0])
    winners = np.zeros(best.shape, dtype)
    for index in range(1, probabilities.shape[-1]):
        values = _at_scan_voxels(conformed, probabilities[..., index])
        winners[values > best] = index
        np.maximum(best, values, out=best)
    return winners


def _at_scan_voxels(conformed: Conformed, values: np.ndarray) -> np.ndarray:
    """Values [D, H, W] interpolated linearly at the scan's voxels, [reoriented scan shape]."""
    first, second, third = (conformed.scan_shape[axis] for axis in conformed.axes)
    # A contiguous copy: interpolating a strided map takes three times as long.
    grid = np.ascontiguousarray(values, np.float32)
    to_conformed = np.linalg.inv(conformed.to_reoriented)
    return _resample(grid, to_conformed, (first, second, third), order=1, outside=None)


def check_target(orientation: str, spacing_mm: tuple[float, float, float] | None) -> None:
    """Makes sure that an orientation and voxel sizes make sense.

    Raises:
        InputError: they do not.
    """
    one_of_each = [sum(code in pair for code in orientation) == 1 for pair in ("LR", "PA", "IS")]
    if len(orientation) != 3 or not all(one_of_each):
        raise InputError(
            f"{orientation!r} is no orientation: give one letter of each of L or R, P or A, I or "
            "S, such as RAS"
        )
    if spacing_mm is not None and not all(0 < size < math.inf for size in spacing_mm):
        raise InputError(f"spacing {spacing_mm} is not three voxel sizes above 0: give them in mm")


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


def _undo_reorient(
    data: np.ndarray, axes: tuple[int, int, int], flipped: tuple[bool, bool, bool]
) -> np.ndarray:
    return np.flip(data, _flips(flipped)).transpose(np.argsort(axes))


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


def _directions(orientation: str) -> np.ndarray:
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
    "constant" scipy also blanks points that rounding puts 1e-15 beyond the border.
    """
    return ndimage.affine_transform(
        data,
        to_data[:3, :3],
        to_data[:3, 3],
        output_shape=shape,
        order=order,
        mode="nearest" if outside is None else "grid-constant",
        cval=outside or 0,
        prefilter=False,
    )


def _sizes(spacing: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in spacing)
