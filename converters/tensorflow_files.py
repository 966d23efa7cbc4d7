"""TensorFlow's SavedModel folders and checkpoints, read without TensorFlow.

A SavedModel that Keras wrote has the model's configuration in keras_metadata.pb. Its program,
saved_model.pb, is never read. Formats: keras/protobuf/saved_metadata.proto of Keras 2, and
`tensor_bundle`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.converters.attach import attach, by_name, short_name
from voxtune.converters.digest import sha256_of
from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_config import MAX_CONFIG_BYTES, parse_graph, parse_json
from voxtune.converters.keras_h5 import natural
from voxtune.converters.keras_model import KerasModel, KerasWeights, Tensor
from voxtune.converters.protobuf import messages, text
from voxtune.converters.stored import is_number, read_stored
from voxtune.converters.tensor_bundle import Bundle, read_bundle

_METADATA = "keras_metadata.pb"
# Optimizer state and counters: of objects, and by the names that TensorFlow 1 gives them.
_TRAINING = re.compile(
    r"(^|/)(_?optimizer|\.OPTIMIZER_SLOT|save_counter|keras_api/metrics|beta\d_power|global_step)(/|$)"
    r"|/(Adam|Momentum|RMSProp|Adagrad)(_\d+)?$"
)
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def read_saved_model(path: Path, lambdas: Mapping[str, str]) -> KerasModel | KerasWeights:
    """Reads a SavedModel folder: a whole model if Keras 2.5 or later wrote it, else its weights.

    Raises:
        ConversionError: it is broken, or its variables are missing.
        OSError: the system refuses to read a file.
    """
    metadata = path / _METADATA
    bundle = read_bundle(path / "variables" / "variables", path)
    if not metadata.is_file():
        return _weights(bundle, path, "TensorFlow SavedModel")
    if metadata.stat().st_size > MAX_CONFIG_BYTES:
        raise ConversionError(
            f"{path}: {_METADATA} is larger than {MAX_CONFIG_BYTES >> 20} MB, too large for a "
            "Keras model; check where it comes from"
        )
    content = metadata.read_bytes()
    try:
        nodes = {text(node, 3): text(node, 5) for node in messages(memoryview(content), 1)}
    except ValueError as error:
        raise ConversionError(
            f"{path}: {_METADATA} is broken ({quoted(error)}); get the folder again"
        ) from error
    root = parse_json(nodes.get("root", "{}"), path)
    if not isinstance(root, dict) or not isinstance(root.get("config"), dict | list):
        # A model of a person's own class: its layers are in its code alone.
        return _weights(bundle, path, "TensorFlow SavedModel")
    config = _plain({"class_name": root.get("class_name"), "config": root["config"]})
    graph = parse_graph(config, path, lambdas)
    names = {"root": ""}
    for place in sorted(nodes, key=lambda each: each.count(".")):
        node = parse_json(nodes[place], path) if place != "root" else None
        name = node.get("name") if isinstance(node, dict) else None
        above = names.get(place.rpartition(".")[0])
        if isinstance(name, str) and above is not None:
            names[place] = f"{above}/{name}".lstrip("/")
    wanted, left_out = _wanted(bundle)
    arrays = read_stored({key: bundle.tensors[key] for key in wanted}, path)
    tensors = [Tensor(*_owner(key, bundle, names, path), arrays[key]) for key in wanted]
    version, backend = root.get("keras_version"), root.get("backend")
    return KerasModel(
        path=path,
        format="TensorFlow SavedModel",
        keras_version=version if isinstance(version, str) else "",
        backend=backend if isinstance(backend, str) else "",
        name=graph.name,
        layers=attach(graph.layers, by_name(tensors, graph, path), path),
        calls=graph.calls,
        inputs=graph.inputs,
        outputs=graph.outputs,
        sha256=sha256_of(metadata, *_files(bundle, path / "variables" / "variables")),
        left_out=left_out,
    )


def read_checkpoint(path: Path) -> KerasWeights:
    """Reads a checkpoint: its folder, one of its files, or their common name without the endings.

    Raises:
        ConversionError: it is broken or files are missing.
        OSError: the system refuses to read a file.
    """
    prefix = path
    if path.is_dir():
        content = (path / "checkpoint").read_bytes()[:65536]
        latest = re.search(rb'^model_checkpoint_path: "([^"\n]+)"', content, re.MULTILINE)
        if not latest:
            raise ConversionError(
                f"{path}: its file named checkpoint names no checkpoint; give the .index file"
            )
        # The path may be that of another machine; the files lie here.
        prefix = path / latest[1].decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
    else:
        prefix = path.with_name(re.sub(r"\.(index|data-\d+-of-\d+)$", "", path.name))
    return _weights(read_bundle(prefix, path), path, "TensorFlow checkpoint", prefix)


def _weights(bundle: Bundle, path: Path, kind: str, prefix: Path | None = None) -> KerasWeights:
    """Weights alone: layers in the model's order where the file knows it, under their names."""
    wanted, left_out = _wanted(bundle)
    arrays = read_stored({key: bundle.tensors[key] for key in wanted}, path)
    full = {key: _full_name(key, bundle) for key in wanted}
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for key in wanted:
        place = _layer_place(key, bundle)
        groups[place or (full[key].rpartition("/")[0],)].append(key)
    layers: dict[str, dict[str, np.ndarray]] = {}
    for keys in groups.values():
        scopes = [full[key].split("/")[:-1] for key in keys]
        shared = 0
        while all(len(scope) > shared and scope[shared] == scopes[0][shared] for scope in scopes):
            shared += 1
        layer = "/".join(scopes[0][:shared])
        own = layers.setdefault(layer, {})
        for key in keys:
            name = short_name(full[key], layer) if layer else full[key]
            own[full[key] if name in own else name] = arrays[key]
    return KerasWeights(
        path=path,
        format=kind,
        keras_version="",
        backend="tensorflow",
        layers=layers,
        sha256=sha256_of(*_files(bundle, prefix or path / "variables" / "variables")),
        left_out=left_out,
    )


def _wanted(bundle: Bundle) -> tuple[list[str], tuple[str, ...]]:
    """Keys of the weights, in the order of the model's layers, and of what is left out."""
    known = [key for key in bundle.variables if _layer_place(key, bundle)]
    order = dict.fromkeys([*known, *sorted(bundle.tensors, key=natural)])
    wanted, left_out = [], []
    for key in order:
        if key not in bundle.tensors:
            continue
        place = "/".join(bundle.variables[key].place) if key in bundle.variables else ""
        training = _TRAINING.search(key.removesuffix(_VALUE)) or _TRAINING.search(place)
        if training or is_number(bundle.tensors[key].dtype):
            left_out.append(key)
        else:
            wanted.append(key)
    return wanted, tuple(left_out)


def _full_name(key: str, bundle: Bundle) -> str:
    own = bundle.variables[key].name if key in bundle.variables else ""
    return own or key.removesuffix(_VALUE)


def _layer_place(key: str, bundle: Bundle) -> tuple[str, ...]:
    """The attributes that lead from the model to the layer; () where no layer is told."""
    place = bundle.variables[key].place if key in bundle.variables else ()
    ends = [i + 1 for i, part in enumerate(place) if part.startswith("layer_with_weights-")]
    return place[: ends[-1]] if ends else ()


def _owner(key: str, bundle: Bundle, names: Mapping[str, str], path: Path) -> tuple[str, str]:
    """Layer and name of a variable of a SavedModel."""
    layer = names.get(".".join(("root", *_layer_place(key, bundle))))
    if not layer:
        raise ConversionError(
            f"{path}: the variable {quoted(_full_name(key, bundle))} belongs to no layer of the "
            "model; save it from Keras as a .h5 file"
        )
    return layer, _full_name(key, bundle)


def _files(bundle: Bundle, prefix: Path) -> Iterator[Path]:
    yield prefix.with_name(f"{prefix.name}.index")
    yield from sorted({tensor.file for tensor in bundle.tensors.values()})


def _plain(value: Any) -> Any:
    """Tuples and shapes as the lists that they are in .h5 files."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") in ("__tuple__", "TensorShape") and "items" in value:
        return _plain(value["items"])
    return {key: _plain(item) for key, item in value.items()}
