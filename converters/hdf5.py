"""A Keras whole-model .h5 file, as Keras 2, tf.keras and Keras 3 write it.

libhdf5 is asked for as little as possible: hard links, contiguous data, text attributes. Keras
writes nothing else, and the rest of HDF5 (links to other files, filters loaded as plug-ins,
virtual datasets) is a way into the reader's machine.
"""

# h5py carries no types and does not mark what it exports.
# mypy: disable-error-code="attr-defined, no-untyped-call"

import hashlib
import math
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_config import MAX_CONFIG_BYTES, parse_graph, parse_json
from voxtune.converters.keras_model import KerasModel, Tensor, attach

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_WEIGHTS, _OPTIMIZER = "model_weights", "optimizer_weights"
# Names of variable length may all point at one long text of the file, and HDF5 has no way to ask
# for their sizes: their number times the longest text must stay below this.
_MAX_NAMES_BYTES = 4 * 2**30


def read_hdf5(path: Path) -> KerasModel:
    """Reads a whole model; tensors must be float32, or float16 which becomes float32.

    Raises:
        ConversionError: the file is broken, holds no whole model, or links elsewhere.
        OSError: the system refuses to read the file.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    longest = _longest_text(path)
    with _libhdf5_errors(path), h5py.File(path, "r", locking=False) as file:
        datasets = _datasets(file, path)
        text = _model_config(file, path)
        version = _version(file, path)
        listed = _listed(file[_WEIGHTS], longest, path)
        _check_listed(listed, datasets, path)
        tensors = _read(listed, datasets, path)
    graph = parse_graph(parse_json(text, path), path)
    return KerasModel(
        path=path,
        format="Keras HDF5",
        keras_version=version,
        name=graph.name,
        layers=attach(graph.layers, tensors, graph.name, path),
        inputs=graph.inputs,
        outputs=graph.outputs,
        sha256=sha256,
        left_out=tuple(name for name in datasets if name.startswith(_OPTIMIZER + "/")),
    )


def _longest_text(path: Path) -> int:
    """Bytes of the longest text of variable length, after a walk through the heaps of such texts.

    libhdf5 (2.0.0 still) loops for ever on a heap with an entry of impossible size, so the heaps
    are checked before it sees them. Layout: "Global Heap" in the HDF5 file format specification.
    """
    longest = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        # Superblock 0 and 1 keep the widths of offsets and lengths at byte 13, 2 and 3 at byte 9.
        widths = 13 if data[8:9] in (b"\0", b"\1") else 9
        sane = data[widths : widths + 2] == b"\x08\x08"
        left = len(data)
        for heap in re.finditer(rb"GCOL\x01\0\0\0", data):
            size = int.from_bytes(data[heap.end() : heap.end() + 8], "little")
            position, end = heap.start() + 16, heap.start() + size
            left -= size  # heaps do not overlap: the walk takes no longer than the file
            sane = sane and left >= 0 and end <= len(data)
            while sane and position + 16 <= end:
                used = data[position : position + 2] != b"\0\0"
                length = int.from_bytes(data[position + 8 : position + 16], "little")
                # Free space counts its header, a text does not and is padded to 8 bytes.
                step = 16 + (length + 7) // 8 * 8 if used else length
                longest = max(longest, length if used else 0)
                position += step
                sane = step >= 16 and position <= end
    if not sane:
        raise ConversionError(f"{path} is a broken or truncated HDF5 file; get it again")
    if longest > MAX_CONFIG_BYTES:
        raise ConversionError(_too_large("longest text", path))
    return longest


@contextmanager
def _libhdf5_errors(path: Path) -> Iterator[None]:
    """What libhdf5 and h5py raise on a damaged file, as one sentence."""
    try:
        yield
    except (
        OSError,
        RuntimeError,
        LookupError,
        ValueError,
        TypeError,
        MemoryError,
        OverflowError,
    ) as error:
        raise ConversionError(
            f"{path} is a broken or truncated HDF5 file ({quoted(error)}); get it again"
        ) from error


def _datasets(file: Any, path: Path) -> dict[str, Any]:
    """Every dataset of the file under its full path, in the order of the file.

    A loop over links: `visititems` would follow a group that contains itself, and h5py's lookup a
    link into another file.
    """
    datasets: dict[str, Any] = {}
    seen: set[int] = set()
    queue: list[tuple[str, Any]] = [("", file)]
    while queue:
        prefix, group = queue.pop()
        for name in group:
            full = f"{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ConversionError(
                    f"{path}: {quoted(full)} is a link to another place or file, refused; save "
                    "the model again from Keras"
                )
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen or address == h5py.h5o.get_info(file.id).addr:
                raise ConversionError(
                    f"{path}: {quoted(full)} is stored under two names, refused; save the model "
                    "again from Keras"
                )
            seen.add(address)
            if isinstance(item, h5py.Dataset):
                datasets[full] = item
            elif isinstance(item, h5py.Group):
                queue.append((f"{full}/", item))
            else:
                raise ConversionError(
                    f"{path}: {quoted(full)} is neither a group nor a tensor; save the model "
                    "again from Keras"
                )
    return datasets


def _model_config(file: Any, path: Path) -> str | bytes:
    """The `model_config` attribute, JSON; its absence tells which other file this is."""
    if "model_config" not in file.attrs:
        if "layer_names" in file.attrs or "layer_names0" in file.attrs:
            what = "holds weights only, without the model"
        elif {"layers", "_layer_checkpoint_dependencies", "vars"} & set(file):
            what = "seems to be a .weights.h5 file, weights only, without the model"
        else:
            what = "is an HDF5 file but holds no Keras model"
        raise ConversionError(
            f"{path} {what}; give a file with the whole model, written by model.save('model.h5')"
        )
    if not isinstance(file.get(_WEIGHTS), h5py.Group):
        raise ConversionError(
            f"{path} holds a model's configuration without its weights; save the whole model with "
            "model.save('model.h5')"
        )
    return _text(file, "model_config", path)


def _version(file: Any, path: Path) -> str:
    for place in (file, file[_WEIGHTS]):
        if "keras_version" in place.attrs:
            version = _text(place, "keras_version", path)
            return version if isinstance(version, str) else version.decode("utf-8")
    return ""


def _too_large(attribute: str, path: Path) -> str:
    return (
        f"{path}: its {attribute} is larger than {MAX_CONFIG_BYTES >> 20} MB, too large for a "
        "Keras model; check where the file comes from"
    )


def _text(place: Any, attribute: str, path: Path) -> str | bytes:
    """A text attribute. If its length is variable it lies in a heap, where no text is too long."""
    stored = place.attrs.get_id(attribute)
    if stored.shape != () or h5py.check_string_dtype(stored.dtype) is None:
        raise ConversionError(
            f"{path}: its attribute {attribute} is not a text; save the model again from Keras"
        )
    if stored.get_storage_size() > MAX_CONFIG_BYTES:
        raise ConversionError(_too_large(attribute, path))
    return place.attrs[attribute]


def _names(place: Any, attribute: str, longest: int, path: Path) -> list[str]:
    """A list of names, which Keras splits over `attribute0`, `attribute1`, ... when it is long."""
    if attribute in place.attrs:
        parts = [attribute]
    else:
        parts = []
        while f"{attribute}{len(parts)}" in place.attrs:
            parts.append(f"{attribute}{len(parts)}")
    names: list[str] = []
    for part in parts:
        stored = place.attrs.get_id(part)
        if stored.shape in (None, (0,)):  # an empty list is written as zero float64 values
            continue
        kind = h5py.check_string_dtype(stored.dtype)
        if kind is None or len(stored.shape) != 1:
            raise ConversionError(
                f"{path}: its attribute {part} is not a list of names; save the model again"
            )
        size = stored.get_storage_size()
        if kind.length is None and stored.shape[0] * longest > _MAX_NAMES_BYTES:
            size = MAX_CONFIG_BYTES + 1
        if size > MAX_CONFIG_BYTES:
            raise ConversionError(_too_large(part, path))
        names += [n.decode("utf-8") if isinstance(n, bytes) else n for n in place.attrs[part]]
    return names


def _listed(weights: Any, longest: int, path: Path) -> list[tuple[str, str]]:
    """(layer, weight name) of every tensor that the file's own tables list, in their order."""
    listed: dict[tuple[str, str], None] = {}
    layers = _names(weights, "layer_names", longest, path)
    if len(set(layers)) != len(layers):
        twice = next(name for name in layers if layers.count(name) > 1)
        raise ConversionError(
            f"{path}: the file lists the layer {quoted(twice)} twice; save the model again"
        )
    for layer in layers:
        group = weights.get(layer)
        if not isinstance(group, h5py.Group):
            raise ConversionError(
                f"{path}: the layer {quoted(layer)} is listed but not in the file; the file is "
                "incomplete, so get it again"
            )
        for name in _names(group, "weight_names", longest, path):
            if (layer, name) in listed:
                raise ConversionError(
                    f"{path}: the layer {quoted(layer)} lists the tensor {quoted(name)} twice; "
                    "save the model again"
                )
            listed[layer, name] = None
    return list(listed)


def _check_listed(listed: list[tuple[str, str]], datasets: dict[str, Any], path: Path) -> None:
    """Every listed tensor is there, and every tensor there is listed once."""
    unclaimed = {name for name in datasets if not name.startswith(_OPTIMIZER + "/")}
    for layer, name in listed:
        full = f"{_WEIGHTS}/{layer}/{name}"
        if full not in datasets:
            raise ConversionError(
                f"{path}: the layer {quoted(layer)} lists the tensor {quoted(name)}, which is not "
                "in the file; the file is incomplete, so get it again"
            )
        if full not in unclaimed:
            raise ConversionError(
                f"{path}: two layers claim the tensor {quoted(full)}; save the model again"
            )
        unclaimed.remove(full)
    if unclaimed:
        raise ConversionError(
            f"{path}: the tensor {quoted(min(unclaimed))} belongs to no layer of the model; the "
            "file was altered or put together by hand, so save the model again from Keras"
        )


def _read(listed: list[tuple[str, str]], datasets: dict[str, Any], path: Path) -> list[Tensor]:
    """The listed tensors. Together they may claim no more bytes than the file has."""
    left = path.stat().st_size
    tensors = []
    for layer, name in listed:
        dataset = datasets[f"{_WEIGHTS}/{layer}/{name}"]
        left -= _check_dataset(dataset, name, path)
        if left < 0:
            raise ConversionError(
                f"{path}: its tensors claim more bytes than the file has; get it again"
            )
        value = np.asarray(dataset[()]).astype(np.float32)
        tensors.append(Tensor(layer, name, value))
    return tensors


def _check_dataset(dataset: Any, name: str, path: Path) -> int:
    """Bytes that the dataset takes, after its type, layout and size are known to be harmless."""
    kind = dataset.dtype
    if kind.kind != "f" or kind.itemsize not in (2, 4):
        raise ConversionError(
            f"{path}: the tensor {quoted(name)} has the type {quoted(kind)}; voxtune reads float32 "
            "and float16 weights, so save the model with floatx float32"
        )
    plan = dataset.id.get_create_plist()
    plain = plan.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    if not plain or plan.get_external_count():
        raise ConversionError(
            f"{path}: the tensor {quoted(name)} is compressed, chunked, virtual or kept in another "
            "file, which Keras does not write; save the model again, or run h5repack -f NONE "
            "-l CONTI on the file"
        )
    size = math.prod(dataset.shape or (0,)) * dataset.id.get_type().get_size()
    if size == 0 or size != dataset.id.get_storage_size():
        raise ConversionError(
            f"{path}: the tensor {quoted(name)} of shape {quoted(dataset.shape)} has "
            f"{dataset.id.get_storage_size()} bytes in the file; it is cut short, so get it again"
        )
    return size
