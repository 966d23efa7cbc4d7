"""Scans and label maps: NIfTI and MGH files in, labels and images on the scan's own grid out.

A file is checked before its voxels are believed: what it claims must fit what is on the disk, its
numbers must be finite, its affine invertible. What is wrong becomes one sentence (`InputError`).
No JAX here.

Where a scan lies is told by its sform; where its code is 0, by its qform; where that is 0 too, by
voxel sizes alone, and then as nibabel has it: centred, with the first axis to the left.
"""

import gzip
import io
import logging
import math
import secrets
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.fileholders import FileHolder

from voxtune.engine.nifti import at_affine, like_scan
from voxtune.models.errors import InputError

# Of odd extensions, which tell nothing here. Once: the filters are one list for all threads, so a
# `catch_warnings` round each read would leave those of another thread behind.
warnings.filterwarnings("ignore", module="nibabel")

SUFFIXES = (".nii.gz", ".nii", ".hdr.gz", ".hdr", ".img.gz", ".img", ".mgz", ".mgh")

# Two affines, or an affine and a straight grid, count as equal when no axis differs by more than
# this fraction of a voxel per voxel. A qform stores a rotation as three float32 of a quaternion and
# loses up to 7e-4 rad near half turns (every LAS scan is near one), so a smaller tolerance tells
# apart files that hold the same grid. At 1e-3 the far end of 256 voxels is a quarter voxel off.
AXIS_TOLERANCE = 1e-3
ORIGIN_TOLERANCE_MM = 0.01  # origins are stored as they are, not through a quaternion

MAX_VOXELS = 2**31  # 8 GiB as float32, eight times a 0.25 mm head; beyond it a header is broken
_MAX_DEFLATE_RATIO = 1032  # the format cannot compress better: 258 bytes in 2 bits
_CHUNK_BYTES = 2**20
_LARGEST = float(np.finfo(np.float32).max)
_WHOLE_NUMBER_TOLERANCE = 1e-4  # labels stored as scaled integers: 255 * 0.00392157 is 1.00000035
# Single files first: what ends in .nii is one, what ends in .hdr or .img is two.
_KINDS: Any = (nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.Nifti2Pair, nib.MGHImage)
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI codes of metre and micrometre; all else is mm


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D image or label map and where it lies.

    Attributes:
        data: [D, H, W] in the file's axis order. Images float32; labels uint8, uint16 or int32.
        affine: float64 [4, 4], voxel indices to millimetres in RAS+ world space.
        path: the file it came from.
        header: nibabel's header, kept to write outputs on the very same grid.
        replaced: voxels that were NaN or infinite in the file.
    """

    data: np.ndarray
    affine: np.ndarray
    path: Path
    header: Any
    replaced: int = 0

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel sizes along the three axes, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel, in ml."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    def without_voxels(self) -> "Volume":
        """Where it lies, to save others there: its voxels are all 0 and take no memory."""
        return replace(self, data=np.broadcast_to(np.float32(0), self.data.shape))


def load_image(path: str | Path, nonfinite: float | None = None) -> Volume:
    """Read a scan.

    Args:
        path: the file.
        nonfinite: value for voxels that are NaN or infinite; None refuses scans that have any.

    Returns:
        Volume with data float32 [D, H, W], the file's slope and intercept applied.

    Raises:
        InputError: the file is missing, damaged, not one 3D volume of plain numbers, has NaN or
            infinite voxels that are not to be replaced, is constant, or has an affine that cannot
            be inverted.
    """
    path = Path(path)
    check_nonfinite(nonfinite)
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which is refused below
        data, affine, header = _read(path, np.float32)
        data = data.astype(np.float32, copy=False)
    return _image(data, affine, path, header, nonfinite)


def from_nibabel(image: Any, nonfinite: float | None = None) -> Volume:
    """A scan that nibabel has read or made.

    Args:
        image: one 3D volume, such as a `nibabel.Nifti1Image`.
        nonfinite: see `load_image`.

    Raises:
        InputError: as `load_image`.
    """
    if not isinstance(image, nib.spatialimages.SpatialImage) or image.affine is None:
        raise InputError(
            f"A {type(image).__name__} without affine is no scan: give what nibabel.load returns"
        )
    path = Path(image.get_filename() or "the image")
    check_nonfinite(nonfinite)
    shape, affine = _checked_shape(image, path), _checked_affine(image, path)
    with _nibabel_errors(path), np.errstate(over="ignore"):  # it may be read only now
        data = np.asanyarray(image.dataobj).reshape(shape).astype(np.float32)  # a copy
    return _image(data, affine, path, image.header, nonfinite)


def to_nibabel(data: np.ndarray, like: Volume) -> Any:
    """A NIfTI image of `[D, H, W]` on the very grid of a scan; see `save_label`."""
    if isinstance(like.header, nib.Nifti1Header):
        return like_scan(data, like.header)
    return at_affine(data, like.affine, AXIS_TOLERANCE)


def _image(
    data: np.ndarray, affine: np.ndarray, path: Path, header: Any, nonfinite: float | None
) -> Volume:
    """A scan of float32 `[D, H, W]`, which are checked, and changed in place; see `load_image`."""
    bad = np.isfinite(data)
    np.logical_not(bad, out=bad)
    replaced = int(np.count_nonzero(bad))
    if replaced and nonfinite is None:
        raise InputError(
            f"{path} has {replaced} voxels that are NaN or infinite: "
            "give the value that stands for them with --nonfinite, 0 for most scans"
        )
    if replaced:
        data[bad] = nonfinite
    if data.min() == data.max():
        raise InputError(
            f"{path} has the same value ({data.flat[0]:g}) in every voxel: "
            "there is nothing to see in it, export the scan again"
        )
    return Volume(data, affine, path, header, replaced)


def check_nonfinite(value: float | None) -> None:
    """Makes sure that what stands for NaN and infinite voxels is a float32 itself.

    Raises:
        InputError: it is not.
    """
    if value is not None and not abs(value) <= _LARGEST:
        raise InputError(f"--nonfinite {value} is not finite itself: give a number such as 0")


def load_label(path: str | Path) -> Volume:
    """Read a label map.

    Returns:
        Volume with data uint8, uint16 or int32 [D, H, W], the smallest that holds the values.

    Raises:
        InputError: as `load_image` (but a constant map is fine), or values that are not whole
            numbers or too large to be labels.
    """
    path = Path(path)
    stored, affine, header = _read(path, np.float64)
    if stored.dtype.kind == "f":
        if bad := stored.size - np.count_nonzero(np.isfinite(stored)):
            raise InputError(
                f"{path} has {bad} voxels that are NaN or infinite, which no label is: set them to "
                "their label and save it again"
            )
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
    _save(Path(path), data.astype(_label_dtype(data, Path(path)), copy=False), like)


def save_image(path: str | Path, data: np.ndarray, like: Volume) -> None:
    """Write an image on the very grid of a scan, float32 `[D, H, W]` or `[D, H, W, K]`.

    The rest is as in `save_label`.
    """
    _save(Path(path), data.astype(np.float32, copy=False), like)


def _save(path: Path, data: np.ndarray, like: Volume) -> None:
    """Write a volume on the very grid of a scan.

    The scan's header is kept (both forms and their codes, units, voxel sizes, byte order, NIfTI
    version), its text and extensions are not: they can name the person. A scan from an MGH file
    gives a NIfTI-1 file with the same affine.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path} cannot be written: results are NIfTI, name it .nii.gz or .nii")
    if data.shape[:3] != like.data.shape:
        raise ValueError(f"{data.shape} is not on the scan's grid {like.data.shape}")
    with written_beside(path) as temporary:
        nib.save(to_nibabel(data, like), temporary)


def stem(path: Path) -> str:
    """File name without the ending of an image file: sub-01_T1w.nii.gz gives sub-01_T1w."""
    ending = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(ending)]


def files_of_volume(path: Path) -> list[Path]:
    """The files that a volume is read from: both halves of a pair, else the one that is given."""
    if path.name.lower().removesuffix(".gz").endswith((".hdr", ".img")):
        halves: Any = nib.Nifti1Pair.filespec_to_file_map(path)
        return [Path(half.filename) for half in halves.values()]
    return [path]


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a name to write to in the folder of `path`; rename to `path` when the block succeeds.

    Whoever reads `path` finds the old file or the whole new one, never a part.

    Raises:
        InputError: the folder is missing or cannot be written to, or the disk is full.
    """
    # Its end still tells the format. Jobs in containers that share a disk share process numbers.
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
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


def _read(path: Path, dtype: type[np.floating]) -> tuple[np.ndarray, np.ndarray, Any]:
    """Voxels [D, H, W] as stored, affine [4, 4] in mm, header.

    Where the file scales its voxels they are of the given type, rounded once from float64.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(
            f"{path} is not a file type that can be read ({', '.join(SUFFIXES)}): "
            "convert it to NIfTI, DICOM with dcm2niix"
        )
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file: check the path")
    with _nibabel_errors(path):
        kind = next((each for each in _KINDS if each.path_maybe_image(path)[0]), None)
    if kind is None:
        raise InputError(
            f"{path} is no NIfTI or MGH volume, whatever its name says: convert it to NIfTI, or put"
            " the .hdr of a .img beside it"
        )
    files = {part: Path(file.filename) for part, file in kind.filespec_to_file_map(path).items()}
    with ExitStack() as stack:
        streams: dict[str, Any] = {
            part: _Stream(stack.enter_context(_open(file, path))) for part, file in files.items()
        }
        with _nibabel_errors(path):  # reads the header only
            held = {part: FileHolder(fileobj=stream) for part, stream in streams.items()}
            image = kind.from_file_map(held, mmap=False)
        shape = _checked_shape(image, path)
        affine = _checked_affine(image, path)
        _check_size_on_disk(image, files["image"], path)
        with _nibabel_errors(path):
            stored = _scaled(image.dataobj, dtype, shape)
            for stream in streams.values():
                # nibabel stops at the last voxel, before the checksum of a compressed file, and
                # would not see a flipped bit. Text may come between them in an MGH file.
                stream.read(_CHUNK_BYTES)
    return stored, affine, image.header


def _scaled(proxy: Any, dtype: type[np.floating], shape: tuple[int, int, int]) -> np.ndarray:
    """What a file holds, scaled a plane at a time: in float64 the whole would be twice as large."""
    stored = proxy.get_unscaled().reshape(shape)  # from [D, H, W, 1] too
    slope, inter = float(proxy.slope), float(proxy.inter)
    if (slope, inter) == (1.0, 0.0):
        return np.asarray(stored)
    scaled = np.empty_like(stored, dtype)
    for new, old in zip(np.moveaxis(scaled, -1, 0), np.moveaxis(stored, -1, 0), strict=True):
        new[...] = old.astype(np.float64) * slope + inter
    return scaled


def _open(file: Path, path: Path) -> Any:
    """One file of a volume, unpacked as it is read.

    Raises:
        InputError: the half of a pair that was not given is missing.
    """
    try:
        return gzip.open(file) if _is_compressed(file) else file.open("rb")
    except OSError as error:
        raise InputError(
            f"{path} needs {file}, which cannot be read ({error.strerror}): put both in one folder"
        ) from error


def _is_compressed(file: Path) -> bool:
    return file.suffix.lower() in (".gz", ".mgz")


class _Stream:
    """A file to read, which takes no memory for bytes that are not there.

    Python's own streams take it for all that is asked for, so a header that claims an extension of
    2 GiB would get them. nibabel takes for files only what can also be written to.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytearray:
        content = bytearray()
        while size < 0 or len(content) < size:
            wanted = _CHUNK_BYTES if size < 0 else min(_CHUNK_BYTES, size - len(content))
            chunk = self._stream.read(wanted)
            if not chunk:
                break
            content += chunk
        return content

    def write(self, _: bytes) -> int:
        raise io.UnsupportedOperation("this file is read only")


@contextmanager
def _nibabel_errors(path: Path) -> Iterator[None]:
    """Turn whatever nibabel raises on a broken file into a sentence, and keep it quiet otherwise.

    It lets errors of a dozen unrelated kinds through (its own, OSError, EOFError, zlib.error,
    ValueError, KeyError, OverflowError, LinAlgError ...): a wide net, but only around its calls.
    """

    def mute(_: logging.LogRecord) -> bool:
        return False

    logger = nib.imageglobals.logger
    logger.addFilter(mute)
    try:
        # Noise in a header overflows; the checks come later.
        with np.errstate(all="ignore"):
            yield
    except Exception as error:  # damaged files raise more kinds than can be listed
        reason = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
        raise InputError(
            f"{path} cannot be read ({reason}): it is damaged or not what its name says, "
            "copy or export it again"
        ) from error
    finally:
        logger.removeFilter(mute)


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
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if isinstance(image, nib.Nifti1Pair):
            affine[:3] *= _MM_PER_UNIT.get(int(image.header["xyzt_units"]) & 7, 1.0)
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


def _check_size_on_disk(image: Any, file: Path, path: Path) -> None:
    """Compare with what the header claims before memory is taken for it."""
    size, claimed = file.stat().st_size, _claimed_bytes(image)
    if claimed > size * (_MAX_DEFLATE_RATIO if _is_compressed(file) else 1):
        raise InputError(
            f"{path} is cut short, {size} bytes cannot hold the {claimed} that its header claims: "
            "copy or export it again"
        )


def _label_dtype(data: np.ndarray, path: Path) -> type[np.integer]:
    """The smallest of uint8, uint16 and int32 that holds the values."""
    low, high = data.min(), data.max()
    for dtype in (np.uint8, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    raise InputError(f"{path} has values from {low} to {high}, too large for labels: renumber them")


def _in_one_line(affine: np.ndarray) -> str:
    rows = (" ".join(f"{round(value, 4):.7g}" for value in row) for row in affine[:3].tolist())
    return f"[{'; '.join(rows)}]"
