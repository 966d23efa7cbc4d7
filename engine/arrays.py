"""Arrays that a block can be read from without the rest, on a disk or in an object store. No JAX.

Both kinds can be pickled as their addresses, so that worker processes open them for themselves.
"""

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from voxtune.models.errors import InputError

CHUNK = 64  # edge of a Zarr chunk, voxels: a block of 128^3 needs 8 to 27 of them
_SECONDS = 120.0  # after which a server that does not answer is given up
_RETRIES = {"max_retries": 4, "initial_delay": "500ms", "max_delay": "8s"}
_REMOTE = {f"{kind}_request_retries": _RETRIES for kind in ("http", "gcs", "s3")}
# Writers are processes of their own, as many as there are cores. A sync a chunk would cost more
# than all the rest; `is_whole` tells most of what a power cut leaves.
_WRITER = {
    "file_io_sync": False,
    "file_io_concurrency": {"limit": 1},
    "data_copy_concurrency": {"limit": 1},
}
_TENSORSTORE = (ValueError, OSError, TimeoutError)  # what it raises


class MappedArray:
    """A .npy file, mapped into memory on first use.

    Args:
        path: the file.
        shape: what its header must say.
        dtype: likewise.
    """

    def __init__(self, path: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self._mapped: np.ndarray | None = None

    def __getitem__(self, where: Any) -> np.ndarray:
        """A part, read from the disk when it is looked at.

        Raises:
            InputError: the file cannot be read, or is not what it should be.
        """
        if self._mapped is None:
            self._mapped = self._map()
        return self._mapped[where]

    def _map(self) -> np.ndarray:
        header = _npy_header(self.shape, self.dtype)
        try:
            with Path(self.path).open("rb") as stream:
                found, size = stream.read(len(header)), os.fstat(stream.fileno()).st_size
                if (found, size) != (header, _npy_size(self.shape, self.dtype)):
                    raise _other_array(self.path, self.shape, self.dtype)
                return np.memmap(stream, self.dtype, "r", len(header), self.shape)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read ({error.strerror}): prepare its store again"
            ) from error

    def check_size(self) -> None:
        """Makes sure that the file is there, as long as its array, without opening it.

        Raises:
            InputError: it is not.
        """
        try:
            size = Path(self.path).stat().st_size
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read ({error.strerror}): prepare its store again"
            ) from error
        if size != _npy_size(self.shape, self.dtype):
            raise InputError(
                f"{self.path} does not have the size of {self.shape} voxels: prepare its store "
                "again"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedArray, (self.path, self.shape, self.dtype)


class ZarrArray:
    """A Zarr v3 array, read through TensorStore, which fetches the chunks that a part needs.

    Args:
        location: its folder, or its address: gs://, s3://, http:// or https://.
        shape: what its metadata must say.
        dtype: likewise.
    """

    def __init__(self, location: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.location, self.shape, self.dtype = location, shape, dtype
        self._opened: Any = None

    def __getitem__(self, where: Any) -> np.ndarray:
        """A part, fetched now.

        Raises:
            InputError: the array cannot be read, or is not what it should be.
        """
        if self._opened is None:
            self._opened = self._open()
        try:
            return np.asarray(self._opened[where].read().result(timeout=_SECONDS))
        except _TENSORSTORE as error:
            raise _unreadable(self.location, error) from error

    def _open(self) -> Any:
        import tensorstore

        try:
            opened = tensorstore.open(
                {
                    "driver": "zarr3",
                    "kvstore": _kvstore(self.location),
                    "fill_missing_data_reads": False,  # every chunk is written
                },
                open=True,
                read=True,
                # A store never changes.
                recheck_cached_metadata="open",
                recheck_cached_data="open",
                context=tensorstore.Context(_REMOTE),
            ).result(timeout=_SECONDS)
        except _TENSORSTORE as error:
            raise _unreadable(self.location, error) from error
        if opened.dtype.numpy_dtype != self.dtype or opened.shape != self.shape:
            raise _other_array(self.location, self.shape, self.dtype)
        # A chunk is unpacked whole, however little of it is asked for or in the file.
        metadata = opened.spec().to_json()["metadata"]
        voxels = math.prod(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        codecs = [each["name"] for each in metadata["codecs"]]
        if voxels > math.prod(_chunks(self.shape)) or codecs != ["bytes", "blosc"]:
            raise InputError(
                f"{self.location} has chunks of {voxels} voxels, packed by {' and '.join(codecs)}, "
                "which no store has: prepare its store again"
            )
        return opened

    def __reduce__(self) -> tuple[Any, ...]:
        return ZarrArray, (self.location, self.shape, self.dtype)


def write_npy(path: Path, data: np.ndarray) -> None:
    """Writes a .npy file.

    Raises:
        OSError: the disk does not take it.
    """
    data = np.ascontiguousarray(data)
    with path.open("wb") as stream:
        stream.write(_npy_header(data.shape, data.dtype))
        stream.write(data.reshape(-1).view(np.uint8).data)  # numpy's own hides that a disk is full


def write_zarr(folder: Path, data: np.ndarray) -> None:
    """Writes a Zarr v3 array `[D, H, W]` or `[D, H, W, C]`, chunks of 64^3 voxels, compressed.

    Raises:
        OSError: the disk does not take it.
    """
    import tensorstore

    blosc = {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle", "typesize": data.itemsize}
    metadata = {
        **_zarr_grid(data.shape, data.dtype),
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": blosc},
        ],
        "fill_value": 0,
    }
    try:
        tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": _kvstore(str(folder)),
                "metadata": metadata,
                # Or a chunk that is lost could not be told from one of zeros.
                "store_data_equal_to_fill_value": True,
            },
            create=True,
            context=tensorstore.Context(_WRITER),
        ).result().write(data).result()
    except ValueError as error:  # TensorStore's for whatever goes wrong, a full disk too
        reason = _first_line(error).rpartition(": ")[2]
        raise OSError(None, reason, str(folder)) from error


def is_whole(path: str | Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether all of an array is on the disk, as `write_npy` or `write_zarr` left it.

    Of a .npy file the header and the size are looked at, of a .zarr folder the metadata, and of
    each chunk there whether it is as long as it says; no voxel is read.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            MappedArray(str(path), shape, dtype)[...]
            return True
        metadata = json.loads((path / "zarr.json").read_bytes())
        if not metadata.items() >= _zarr_grid(shape, dtype).items():
            return False
        counts = (range(-(-n // size)) for n, size in zip(shape, _chunks(shape), strict=True))
        chunks = (path.joinpath("c", *map(str, index)) for index in itertools.product(*counts))
        return all(map(_is_whole_chunk, chunks))
    except (InputError, OSError, ValueError, AttributeError, RecursionError):
        return False


def read_npy(folder: str, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """All of a .npy file in a folder, which may be far away.

    Args:
        folder: its path, or its address.
        name: of the file.
        shape: what its header must say.
        dtype: likewise.

    Raises:
        InputError: it cannot be read, or is not what it should be.
    """
    location = inside(folder, name)
    if not is_remote(folder):
        return np.array(MappedArray(location, shape, dtype)[...])
    content, header = read_bytes(folder, name), _npy_header(shape, dtype)
    if content is None:
        raise InputError(f"{location} does not exist: check the address")
    if not content.startswith(header) or len(content) != _npy_size(shape, dtype):
        raise _other_array(location, shape, dtype)
    return np.frombuffer(content, dtype, offset=len(header)).reshape(shape)


def is_remote(location: str) -> bool:
    """Whether a location is an address, not a path."""
    return "://" in location


def inside(location: str, *names: str) -> str:
    """A file's location in a folder's, quoted where that is an address."""
    if is_remote(location):
        return "/".join((location.rstrip("/"), *(quote(name) for name in names)))
    return str(Path(location, *names))


def read_bytes(folder: str, name: str) -> bytes | None:
    """The content of a file in a folder, which may be far away; None where it is not there.

    Raises:
        InputError: it cannot be read.
    """
    if not is_remote(folder):
        try:
            return Path(folder, name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(
                f"{inside(folder, name)} cannot be read ({error.strerror}): check the path"
            ) from error
    import tensorstore

    try:
        found = (
            tensorstore.KvStore.open(_kvstore(folder), context=tensorstore.Context(_REMOTE))
            .result(timeout=_SECONDS)
            .read(name)
            .result(timeout=_SECONDS)
        )
    except _TENSORSTORE as error:
        raise _unreadable(folder, error) from error
    return found.value if found.state == "value" else None


def _kvstore(location: str) -> Any:
    """TensorStore's word for a folder."""
    if is_remote(location):
        return location.rstrip("/") + "/"
    return {"driver": "file", "path": f"{Path(location).absolute()}/"}


def _npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What a .npy file begins with: version 1.0 of NumPy's format, for an array in C order.

    Made here, since NumPy pads it otherwise from version to version.
    """
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    begin = b"\x93NUMPY\x01\x00"
    length = -(-(len(begin) + 2 + len(text) + 1) // 64) * 64 - len(begin) - 2
    return begin + length.to_bytes(2, "little") + text.encode().ljust(length - 1) + b"\n"


def _npy_size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of a .npy file."""
    return len(_npy_header(shape, dtype)) + math.prod(shape) * dtype.itemsize


def _zarr_grid(shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
    """As much of a Zarr array's metadata as says where its numbers are."""
    return {
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": _chunks(shape)}},
    }


def _chunks(shape: tuple[int, ...]) -> list[int]:
    """Shape of a chunk."""
    return [CHUNK] * 3 + list(shape[3:])


def _is_whole_chunk(path: Path) -> bool:
    with path.open("rb") as stream:
        head, size = stream.read(16), os.fstat(stream.fileno()).st_size
    return len(head) == 16 and int.from_bytes(head[12:], "little") == size  # Blosc's own size


def _other_array(location: str, shape: tuple[int, ...], dtype: np.dtype) -> InputError:
    return InputError(
        f"{location} is not what its store says, {dtype} {shape}: prepare the store again"
    )


def _unreadable(location: str, error: Exception) -> InputError:
    advice = "prepare its store again"
    if is_remote(location):
        advice = "check the address, the connection and that you may read it"
    return InputError(f"{location} cannot be read ({_first_line(error)}): {advice}")


def _first_line(error: Exception) -> str:
    """What an error says, without TensorStore's account of where in its code."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].split(" [")[0].strip()
