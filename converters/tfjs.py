"""A TF.js layers model: model.json with topology and manifest, and binary shards beside it."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.converters.attach import attach, by_name
from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_config import MAX_CONFIG_BYTES, parse_graph, parse_json
from voxtune.converters.keras_h5 import read_shards
from voxtune.converters.keras_model import KerasModel, KerasWeights, Tensor

_MAX_NAME = 1024
_MAX_RANK = 32
# Bytes of one stored value; all are little-endian whatever the machine.
_STORED = {"float32": "<f4", "float16": "<f2", "uint8": "u1", "uint16": "<u2"}


def read_tfjs(path: Path, lambdas: Mapping[str, str]) -> KerasModel | KerasWeights:
    """Reads the layers model whose model.json is `path`, or the shards of Keras's own .json.

    Raises:
        ConversionError: the JSON or a shard is missing, broken, cut short or hostile.
        OSError: the system refuses to read a file.
    """
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConversionError(
            f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MB, too large for a model.json; "
            "check that it is the right file"
        )
    content = path.read_bytes()
    document = parse_json(content, path)
    if not isinstance(document, dict):
        raise ConversionError(f"{path} is JSON but no model; give the model.json of a TF.js model")
    if isinstance(document.get("weight_map"), dict):
        return read_shards(document, path)
    if document.get("format") == "graph-model":
        raise ConversionError(
            f"{path} is a TF.js graph model, whose layers are lost; give the layers model or "
            "the Keras file that it was made from"
        )
    topology, manifest = document.get("modelTopology"), document.get("weightsManifest")
    if not isinstance(topology, dict):
        what = "a Keras architecture without weights" if "class_name" in document else "no model"
        raise ConversionError(
            f"{path} is JSON but {what}: it has no modelTopology; give the model.json of a TF.js "
            "layers model or an .h5 file with the whole model"
        )
    if not isinstance(manifest, list) or not manifest:
        raise ConversionError(
            f"{path} has no weightsManifest, so no weights; save the model with its weights"
        )
    graph = parse_graph(topology.get("model_config", topology), path, lambdas)
    digest = hashlib.sha256(content)
    tensors: list[Tensor] = []
    left_out: list[str] = []
    seen: set[str | Path] = set()
    for group in manifest:
        shards, entries = _group(group, path)
        data = _shard_bytes(shards, sum(map(_size, entries)), seen, path)
        digest.update(data)
        offset = 0
        for entry in entries:
            name = entry["name"]
            if name in seen:
                raise ConversionError(
                    f"{path}: the manifest lists the tensor {quoted(name)} twice; convert again"
                )
            seen.add(name)
            if entry.get("group") == "optimizer":
                left_out.append(name)
            else:
                tensors.append(Tensor("", name, _decode(entry, data, offset)))
            offset += _size(entry)
    version, backend = topology.get("keras_version"), topology.get("backend")
    return KerasModel(
        path=path,
        format="TF.js layers model",
        keras_version=version if isinstance(version, str) else "",
        backend=backend if isinstance(backend, str) else "",
        name=graph.name,
        layers=attach(graph.layers, by_name(tensors, graph, path), path),
        calls=graph.calls,
        inputs=graph.inputs,
        outputs=graph.outputs,
        sha256=digest.hexdigest(),
        left_out=tuple(left_out),
    )


def _group(group: Any, path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """A manifest group's shard names and its entries, each of them checked."""
    shards = group.get("paths") if isinstance(group, dict) else None
    entries = group.get("weights") if isinstance(group, dict) else None
    if (
        not isinstance(shards, list)
        or not isinstance(entries, list)
        or not all(isinstance(shard, str) for shard in shards)
        or not all(isinstance(entry, dict) for entry in entries)
    ):
        raise ConversionError(
            f"{path}: a group of its weightsManifest is not paths and weights; convert again"
        )
    for entry in entries:
        _check_entry(entry, path)
    return shards, entries


def _check_entry(entry: dict[str, Any], path: Path) -> None:
    name, shape, packing = entry.get("name"), entry.get("shape"), entry.get("quantization")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise ConversionError(f"{path}: a tensor of the manifest has no usable name; convert again")
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_RANK
        or not all(type(size) is int and size > 0 for size in shape)
    ):
        raise ConversionError(
            f"{path}: the tensor {quoted(name)} has the impossible shape {quoted(shape)}; "
            "convert again"
        )
    if packing is not None and not isinstance(packing, dict):
        raise ConversionError(
            f"{path}: the quantization of the tensor {quoted(name)} is broken; convert again"
        )
    stored = packing.get("dtype") if packing else "float32"
    if entry.get("dtype") != "float32" or not isinstance(stored, str) or stored not in _STORED:
        kind = stored if entry.get("dtype") == "float32" else entry.get("dtype")
        raise ConversionError(
            f"{path}: the tensor {quoted(name)} has the type {quoted(kind)}; voxtune reads "
            "float32, also quantised to uint8, uint16 or float16, so convert to one of these"
        )
    if packing and stored.startswith("uint"):
        for key in ("scale", "min"):
            value = packing.get(key)
            # Written so that NaN, and an integer too large for a float, fail the comparison.
            if not isinstance(value, int | float) or not abs(value) < 3.5e38:
                raise ConversionError(
                    f"{path}: the quantization of the tensor {quoted(name)} has no usable "
                    f"{key}; convert again"
                )


def _stored_dtype(entry: dict[str, Any]) -> np.dtype:
    return np.dtype(_STORED[(entry.get("quantization") or {}).get("dtype", "float32")])


def _size(entry: dict[str, Any]) -> int:
    """Bytes of an entry in the shards, in Python's integers: a shape may be of any size."""
    return math.prod(entry["shape"]) * _stored_dtype(entry).itemsize


def _shard_bytes(shards: list[str], expected: int, seen: set[str | Path], path: Path) -> bytes:
    """The shards of one group, concatenated, after all their sizes are known to add up.

    Shards stay inside the folder of model.json: their names come from a stranger, and must not
    reach another file of the reader's.
    """
    folder = path.parent.resolve()
    files: list[Path] = []
    for shard in shards:
        try:
            file = (folder / shard).resolve()
            inside = file.is_relative_to(folder)
            present = inside and file.is_file()
        except (OSError, ValueError, RuntimeError):  # a NUL, an endless name, a loop of links
            inside, present, file = True, False, folder
        if not inside:
            raise ConversionError(
                f"{path}: the shard {quoted(shard)} lies outside the model's folder, refused; "
                "put model.json and its shards into one folder, without links"
            )
        if not present:
            raise ConversionError(
                f"{path}: the shard {quoted(shard)} is missing; put it beside model.json"
            )
        if file in seen:
            raise ConversionError(
                f"{path}: the manifest lists the shard {quoted(shard)} twice; convert again"
            )
        seen.add(file)
        files.append(file)
    found = sum(file.stat().st_size for file in files)
    if found == expected:
        data = b"".join(file.read_bytes() for file in files)
        if len(data) == expected:
            return data
    raise ConversionError(
        f"{path}: the shards {quoted(', '.join(shards))} hold {found} bytes where the manifest "
        f"needs {quoted(expected)}; they are cut short or of another model, so get them again"
    )


def _decode(entry: dict[str, Any], data: bytes, offset: int) -> np.ndarray:
    """The entry's float32 values, shaped; quantised ones are `stored * scale + min`."""
    shape = entry["shape"]
    dtype = _stored_dtype(entry)
    stored = np.frombuffer(data, dtype, math.prod(shape), offset)
    if dtype.kind == "u":
        packing = entry["quantization"]
        # TF.js computes in doubles and rounds once.
        stored = stored * float(packing["scale"]) + float(packing["min"])
    with np.errstate(over="ignore"):  # what is not finite is refused later
        return stored.astype(np.float32).reshape(shape)
