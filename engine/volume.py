"""Scans and label maps: NIfTI and MGH files in, labels and images on the scan's own grid out.

A file is checked before its voxels are believed: what it claims must fit what is on the disk, its
numbers must be finite, its affine invertible. What is wrong becomes one sentence (`InputError`).
"""

import gzip
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from voxtune.models.errors import InputError

SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".mgz", ".mgh")

# Two affines, or an affine and a straight grid, count as equal when no axis differs by more than
# this fraction of a voxel per voxel. A qform stores a rotation as three float32 of a quaternion and
# loses up to 7e-4 rad near half turns (every LAS scan is near one), so a smaller tolerance tells
# apart files that hold the same grid. At 1e-3 the far end of 256 voxels is a quarter voxel off.
AXIS_TOLERANCE = 1e-3
ORIGIN_TOLERANCE_MM = 0.01  # origins are stored as they are, not through a quaternion

MAX_VOXELS = 2**31  # 8 GiB as float32, eight times a 0.25 mm head; beyond it a header is broken
_MAX_DEFLATE_RATIO = 1032  # the format cannot compress better: 258 bytes in 2 bits
_WHOLE_NUMBER_TOLERANCE = 1e-4  # labels stored as scaled integers: 255 * 0.00392157 is 1.00000035
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI codes of metre and micrometre; all else is mm


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D image or label map and where it lies.

    Attributes:
        data: [D, H, W] in the file's axis order. Images float32; labels uint8, uint16 or int32.
        affine: float64 [4, 4], voxel indices to millimetres in RAS+ world space.
        path: the file it came from.
        header: nibabel's header, kept to write outputs on the very same grid.
    """

    data: np.ndarray
    affine: np.ndarray
    path: Path
    header: Any

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel sizes along the three axes, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel, in ml."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000


def load_image(path: str | Path) -> Volume:
    """Read a scan.

    Returns:
        Volume with data float32 [D, H, W], the file's slope and intercept applied.

    Raises:
        InputError: the file is missing, damaged, not one 3D volume of plain numbers, has NaN or
            infinite voxels, is constant, or has an affine that cannot be inverted.
    """
    path = Path(path)
    stored, affine, header = _read(path)
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which is refused below
        data = stored.astype(np.float32)
    _check_finite(data, path)
    if data.min() == data.max():
        raise InputError(
            f"{path} has the same value ({data.flat[0]:g}) in every voxel: "
            "there is nothing to see in it, export the scan again"
        )
    return Volume(data, affine, path, header)


def load_label(path: str | Path) -> Volume:
    """Read a label map.

    Returns:
        Volume with data uint8, uint16 or int32 [D, H, W], the smallest that holds the values.

    Raises:
        InputError: as `load_image` (but a constant map is fine), or values that are not whole
            numbers or too large to be labels.
    """
    path = Path(path)
    stored, affine, header = _read(path)
    if stored.dtype.kind == "f":
        _check_finite(stored, path)
        whole = np.rint(stored)
        fractional = np.abs(stored - whole) > _WHOLE_NUMBER_TOLERANCE
        if fractional.any():
            examples = ", ".join(f"{value:.6g}" for value in np.unique(stored[fractional])[:5])
            raise InputError(
                f"{path} is not a label map, it has values that are not whole numbers ({examples}):"
                " give the label file, or resample it again with nearest-neighbour interpolation"
            )
        stored = whole
    return Volume(stored.astype(_label_dtype(stored, path)), affine, path, header)


def check_same_grid(
    image: Volume,
    other: Volume,
    interpolation: Literal["nearest-neighbour", "linear"] = "nearest-neighbour",
) -> Volume:
    """Check that a label map, or another image, lies voxel on voxel on an image.

    Args:
        image: what it should lie on.
        other: the label map or the other image.
        interpolation: what the sentence advises where it has to be resampled.

    Returns:
        The other with the image's affine. The two may differ by rounding, and only equal affines
        are sure to be conformed to equal grids.

    Raises:
        InputError: shapes or affines differ.
    """
    advice = f"pair the right files, or resample the first onto the second ({interpolation})"
    if image.data.shape != other.data.shape:
        raise InputError(
            f"{other.path} has shape {other.data.shape} but {image.path} has {image.data.shape}: "
            f"{advice}"
        )
    axes_differ = np.abs(image.affine[:3, :3] - other.affine[:3, :3]) > (
        AXIS_TOLERANCE * np.asarray(image.spacing_mm)
    )
    origins_differ = np.abs(image.affine[:3, 3] - other.affine[:3, 3]) > ORIGIN_TOLERANCE_MM
    if axes_differ.any() or origins_differ.any():
        raise InputError(
            f"{other.path} has the affine {_in_one_line(other.affine)} but {image.path} has "
            f"{_in_one_line(image.affine)}: {advice}"
        )
    return replace(other, affine=image.affine)


def save_label(path: str | Path, data: np.ndarray, like: Volume) -> None:
    """Write a label map on the very grid of a scan, in the smallest type that holds its values.

    Args:
        path: where to write, `.nii` or `.nii.gz`. An existing file is replaced.
        data: integers [D, H, W], shaped as the scan.
        like: the scan.

    Raises:
        InputError: the path does not end in .nii or .nii.gz or cannot be written.
    """
    _save(Path(path), data.astype(_label_dtype(data, Path(path))), like)


def save_image(path: str | Path, data: np.ndarray, like: Volume) -> None:
    """Write an image on the very grid of a scan, float32; the rest as `save_label`."""
    _save(Path(path), data.astype(np.float32), like)


def _save(path: Path, data: np.ndarray, like: Volume) -> None:
    """Write a volume on the very grid of a scan.

    The scan's header is kept (both forms and their codes, units, voxel sizes, byte order, NIfTI
    version), its text and extensions are not: they can name the person. A scan from an MGH file
    gives a NIfTI-1 file with the same affine.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path} cannot be written: results are NIfTI, name it .nii.gz or .nii")
    if data.shape != like.data.shape:
        raise ValueError(f"{data.shape} is not on the scan's grid {like.data.shape}")
    if isinstance(like.header, nib.Nifti1Header):
        image = _nifti(data, like.header)
    else:
        image = _nifti_from_affine(data, like.affine)
    with written_beside(path) as temporary:
        nib.save(image, temporary)


def stem(path: Path) -> str:
    """File name without the ending of an image file: sub-01_T1w.nii.gz gives sub-01_T1w."""
    ending = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(ending)]


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a name to write to in the folder of `path`; rename to `path` when the block succeeds.

    Whoever reads `path` finds the old file or the whole new one, never a part.

    Raises:
        InputError: the folder is missing or cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # its end still tells the format
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): "
            "give a folder that exists, with room and permission to write"
        ) from error
    finally:
        with suppress(OSError):  # not there, most often
            temporary.unlink()


# Reading


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, Any]:
    """Voxels [D, H, W] as stored (scaled, if the file scales them), affine [4, 4] in mm, header."""
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(
            f"{path} is not a file type that can be read ({', '.join(SUFFIXES)}): "
            "convert it to NIfTI, DICOM with dcm2niix"
        )
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file: check the path")
    with _nibabel_errors(path):
        image = nib.load(path, mmap=False)  # reads the header only
    if not isinstance(image, nib.Nifti1Pair | nib.MGHImage):
        raise InputError(
            f"{path} holds a {type(image).__name__}, not a NIfTI or MGH volume: convert it to NIfTI"
        )
    shape = _checked_shape(image, path)
    affine = _checked_affine(image, path)
    _check_size_on_disk(image, path)
    with _nibabel_errors(path):
        stored = np.asanyarray(_whole(image, path).dataobj)
    return stored.reshape(shape), affine, image.header


@contextmanager
def _nibabel_errors(path: Path) -> Iterator[None]:
    """Turn whatever nibabel raises on a broken file into a sentence, and keep its log quiet.

    It lets errors of a dozen unrelated kinds through (its own, OSError, EOFError, zlib.error,
    ValueError, KeyError, OverflowError, LinAlgError ...): a wide net, but only around its calls.
    """

    def mute(_: logging.LogRecord) -> bool:
        return False

    logger = nib.imageglobals.logger
    logger.addFilter(mute)
    try:
        with np.errstate(all="ignore"):  # noise in a header overflows; the checks come later
            yield
    except Exception as error:  # damaged files raise more kinds than can be listed
        reason = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
        raise InputError(
            f"{path} cannot be read ({reason}): it is damaged or not what its name says, "
            "copy or export it again"
        ) from error
    finally:
        logger.removeFilter(mute)


def _whole(image: Any, path: Path) -> Any:
    """The image, with a compressed file unpacked and its checksum verified.

    nibabel stops reading at the last voxel, before the checksum, and would not see a flipped bit.
    """
    if path.suffix.lower() not in (".gz", ".mgz"):
        return image
    trailer = 2**20  # what may follow the voxels in an MGH file
    with gzip.open(path) as stream:
        return type(image).from_bytes(stream.read(_claimed_bytes(image) + trailer))


def _checked_shape(image: Any, path: Path) -> tuple[int, int, int]:
    """The 3D shape of the image: trailing axes of length one fall away."""
    shape = tuple(int(n) for n in image.shape)
    kind = image.get_data_dtype().kind
    if kind not in "iuf":
        what = "complex numbers" if kind == "c" else "colours, not intensities"
        raise InputError(f"{path} holds {what}: save one real-valued volume as its own file")
    if len(shape) < 3 or min(shape) < 1:
        raise InputError(f"{path} has shape {shape}, not three axes of voxels: give a 3D volume")
    frames = math.prod(shape[3:])
    if frames > 1:
        raise InputError(f"{path} has {frames} frames: save the one to use as its own 3D file")
    if math.prod(shape) > MAX_VOXELS:
        raise InputError(
            f"{path} claims {math.prod(shape)} voxels {shape}, more than {MAX_VOXELS}: "
            "its header is damaged, export it again"
        )
    return shape[0], shape[1], shape[2]


def _checked_affine(image: Any, path: Path) -> np.ndarray:
    """float64 [4, 4] in mm. A NIfTI header may count in metres or micrometres."""
    affine = np.array(image.affine, np.float64)
    if isinstance(image, nib.Nifti1Pair):
        affine[:3] *= _MM_PER_UNIT.get(int(image.header["xyzt_units"]) & 7, 1.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    flat = not np.isfinite(directions).all() or abs(np.linalg.det(directions)) < AXIS_TOLERANCE
    if flat or not np.isfinite(affine).all():
        raise InputError(
            f"{path} has an affine that cannot be inverted {_in_one_line(affine)}: "
            "its geometry is lost, export it again"
        )
    return affine


def _claimed_bytes(image: Any) -> int:
    """Where the voxels end in the (unpacked) file, by its header."""
    voxels = math.prod(int(n) for n in image.shape)
    return int(image.dataobj.offset) + voxels * int(image.get_data_dtype().itemsize)


def _check_size_on_disk(image: Any, path: Path) -> None:
    """Compare with what the header claims before memory is taken for it."""
    holder = Path(image.file_map["image"].filename)  # the .img of a pair
    try:
        size = holder.stat().st_size
    except OSError as error:
        raise InputError(f"{holder} cannot be read ({error.strerror}): {path} needs it") from error
    compressed = holder.suffix.lower() in (".gz", ".mgz")
    if _claimed_bytes(image) > size * (_MAX_DEFLATE_RATIO if compressed else 1):
        raise InputError(
            f"{holder} is cut short, its {size} bytes cannot hold the {_claimed_bytes(image)} "
            "that its header claims: copy or export it again"
        )


def _check_finite(data: np.ndarray, path: Path) -> None:
    bad = data.size - np.count_nonzero(np.isfinite(data))
    if bad:
        raise InputError(
            f"{path} has {bad} voxels that are NaN or infinite: "
            "set them to the background value and save it again"
        )


def _label_dtype(data: np.ndarray, path: Path) -> type[np.integer]:
    """The smallest of uint8, uint16 and int32 that holds the values."""
    low, high = data.min(), data.max()
    for dtype in (np.uint8, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    raise InputError(f"{path} has values from {low} to {high}, too large for labels: renumber them")


def _in_one_line(affine: np.ndarray) -> str:
    rows = (" ".join(f"{value:.4f}".rstrip("0").rstrip(".") for value in row) for row in affine[:3])
    return f"[{'; '.join(rows)}]"


# Writing


def _nifti(data: np.ndarray, scan_header: Any) -> Any:
    """NIfTI image of data [D, H, W] under what of the scan's header describes the grid."""
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
    # No affine is given, so nibabel has no reason to touch the forms.
    return image_class(data, None, header)


def _nifti_from_affine(data: np.ndarray, affine: np.ndarray) -> Any:
    """NIfTI-1 image of data [D, H, W] at an affine, for a scan that was not NIfTI."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    if not np.allclose(image.get_qform(), affine, atol=AXIS_TOLERANCE):  # shear, beyond a qform
        image.set_qform(None, code="unknown")
    return image
