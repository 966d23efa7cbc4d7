"""Arrays that lie uncompressed somewhere in a file, read after all their places are checked."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.converters.errors import ConversionError, quoted

BFLOAT16 = "bfloat16"
_FLOATS = ("f2", "f4", "f8", BFLOAT16)


@dataclass(frozen=True)
class Stored:
    """One array.

    Attributes:
        file: where it is.
        offset: bytes before it; None if the file never got its values.
        dtype: NumPy's name with the byte order, or `bfloat16`, or anything else that was found.
        shape: as the file claims.
        inline: the bytes themselves, where something else has read them.
    """

    file: Path
    offset: int | None
    dtype: str
    shape: Sequence[int]
    inline: bytes | None = None


def is_number(dtype: str) -> bool:
    """Whether these are integers or truth values: seeds and counters, never weights."""
    return dtype.lstrip("<>=|")[:1] in ("i", "u", "b") and dtype != BFLOAT16


def read_stored(tensors: Mapping[str, Stored], path: Path) -> dict[str, np.ndarray]:
    """The values, read-only, in their floating type; bfloat16 becomes float32.

    Args:
        tensors: by name. They may not overlap, so that a file cannot fill the memory.
        path: the file that the user gave, for messages.

    Raises:
        ConversionError: an array is of another type, cut short, or shares its bytes.
        OSError: the system refuses to read.
    """
    for name, tensor in tensors.items():
        if tensor.dtype.lstrip("<>=|") not in _FLOATS:
            raise ConversionError(
                f"{path}: the tensor {quoted(name)} has the type {quoted(tensor.dtype)}; voxtune "
                "reads floating point weights, so save the model with floatx float32"
            )
    arrays: dict[str, np.ndarray] = {}
    ends: dict[Path, int] = {}
    with contextlib.ExitStack() as stack:
        files: dict[Path, Any] = {}
        # By their places, so that two that overlap follow each other.
        for name in sorted(tensors, key=lambda each: tensors[each].offset or 0):
            tensor, size = tensors[name], size_of(tensors[name])
            content = tensor.inline
            if content is None and size and tensor.offset is not None:
                if tensor.file not in files:
                    files[tensor.file] = stack.enter_context(tensor.file.open("rb"))
                if tensor.offset < ends.get(tensor.file, 0):
                    raise ConversionError(
                        f"{path}: the tensor {quoted(name)} lies on the bytes of another one; the "
                        "file is damaged or hostile, so get it again"
                    )
                ends[tensor.file] = tensor.offset + size
                if ends[tensor.file] <= tensor.file.stat().st_size:
                    files[tensor.file].seek(tensor.offset)
                    content = files[tensor.file].read(size)
            if not size or content is None or len(content) != size:
                raise ConversionError(
                    f"{path}: the tensor {quoted(name)} of shape {quoted(list(tensor.shape))} is "
                    "not in the file, or cut short; get the file again"
                )
            arrays[name] = _decoded(content, tensor)
    return arrays


def size_of(tensor: Stored) -> int:
    """Bytes, in Python's integers: a shape may be of any size."""
    return math.prod(tensor.shape) * (
        2 if tensor.dtype == BFLOAT16 else np.dtype(tensor.dtype).itemsize
    )


def _decoded(content: bytes, tensor: Stored) -> np.ndarray:
    if tensor.dtype == BFLOAT16:  # the upper half of a float32
        values = (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(content, tensor.dtype)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
    values = values.reshape(tensor.shape)
    values.flags.writeable = False
    return values
