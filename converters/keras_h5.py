"""The two ways in which Keras lays out HDF5: a group for each layer, and `.weights.h5`."""

import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.converters.attach import CONTAINERS, attach, by_name, by_place, short_name
from voxtune.converters.digest import sha256_of
from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.hdf5 import Hdf5, open_hdf5
from voxtune.converters.keras_config import MAX_CONFIG_BYTES, parse_graph, parse_json
from voxtune.converters.keras_model import KerasLayer, KerasModel, KerasWeights, Tensor

_WEIGHTS, _OPTIMIZER = "model_weights/", "optimizer_weights/"
# What `.weights.h5` holds beside the layers, at its root.
_TRAINING = re.compile(r"_?(optimizer|metrics|compile_metrics|loss_tracker)/")
_SEED = re.compile(r"(^|/)seed_generator(_\d+)?/")


def read_h5(path: Path, lambdas: Mapping[str, str]) -> KerasModel | KerasWeights:
    """Reads a whole model, or weights alone in either layout.

    Raises:
        ConversionError: the file is broken, holds no Keras weights, or links elsewhere.
    """
    digest = sha256_of(path)
    with open_hdf5(path) as file:
        root = file.attributes[""]
        if "model_config" in root:
            return _whole_model(file, lambdas, digest)
        if "nb_layers" in root:
            listed = _numbered(file)
        elif "layer_names" in root or "layer_names0" in root:
            listed = _listed(file, "")
        elif any(group.rpartition("/")[2] == "vars" for group in file.groups):
            return _alone(WeightsByPlace([file]), path, digest)
        else:
            raise ConversionError(
                f"{path} is an HDF5 file but holds no Keras model; give a file written by "
                "model.save('model.h5') or model.save_weights('model.weights.h5')"
            )
        tensors, left_out = _read_listed(file, "", listed)
        return KerasWeights(
            path=path,
            format="Keras HDF5 weights",
            keras_version=file.text("", "keras_version"),
            backend=_backend(file, "", listed),
            layers=_by_scope(tensors, [layer for layer, _ in listed]),
            sha256=digest,
            left_out=left_out,
        )


def _whole_model(file: Hdf5, lambdas: Mapping[str, str], digest: str) -> KerasModel:
    path, root = file.path, _WEIGHTS.rstrip("/")
    if root not in file.groups:
        raise ConversionError(
            f"{path} holds a model's configuration without its weights; save the whole model with "
            "model.save('model.h5')"
        )
    config = file.text("", "model_config")
    if len(config) > MAX_CONFIG_BYTES:
        raise ConversionError(
            f"{path}: its model_config is larger than {MAX_CONFIG_BYTES >> 20} MB, too large for a "
            "Keras model; check where the file comes from"
        )
    graph = parse_graph(parse_json(config, path), path, lambdas)
    listed = _listed(file, root)
    tensors, left_out = _read_listed(file, _WEIGHTS, listed)
    return KerasModel(
        path=path,
        format="Keras HDF5",
        keras_version=file.text("", "keras_version") or file.text(root, "keras_version"),
        backend=_backend(file, root, listed),
        name=graph.name,
        layers=attach(graph.layers, by_name(tensors, graph, path), path),
        calls=graph.calls,
        inputs=graph.inputs,
        outputs=graph.outputs,
        sha256=digest,
        left_out=left_out,
    )


def _backend(file: Hdf5, root: str, listed: Iterable[tuple[str, list[str]]]) -> str:
    """What the file states, or betrays: Keras 1 does not state it, but only TensorFlow numbers the
    outputs of what it names (`conv_W:0`)."""
    stated = file.text("", "backend") or file.text(root, "backend")
    names = [name for _, own in listed for name in own]
    if stated or not names:
        return stated
    if any(re.search(r":\d+$", name) for name in names):
        return "tensorflow"
    return "theano" if not any("/" in name for name in names) else ""


# A group for each layer


def _listed(file: Hdf5, root: str) -> list[tuple[str, list[str]]]:
    """Each layer and its tensors' names, as the file's own tables list them, in their order."""
    layers = file.names(root, "layer_names")
    groups, seen = set(file.groups), set()
    listed = []
    for layer in layers:
        group = f"{root}/{layer}".lstrip("/")
        if layer in seen:
            raise ConversionError(
                f"{file.path}: the file lists the layer {quoted(layer)} twice; save the model again"
            )
        if group not in groups:
            raise ConversionError(
                f"{file.path}: the layer {quoted(layer)} is listed but not in the file; the file "
                "is incomplete, so get it again"
            )
        seen.add(layer)
        listed.append((layer, file.names(group, "weight_names")))
    return listed


def _numbered(file: Hdf5) -> list[tuple[str, list[str]]]:
    """Keras before 1.0 numbers its layers and their tensors: `layer_3/param_0`."""
    listed: dict[str, list[str]] = {}
    for group in sorted(file.groups, key=natural):
        if re.fullmatch(r"layer_\d+", group):
            listed[group] = []
    for name in sorted(file.tensors, key=natural):
        layer, _, last = name.partition("/")
        if layer in listed and re.fullmatch(r"param_\d+", last):
            listed[layer].append(last)
    return list(listed.items())


def _read_listed(
    file: Hdf5, root: str, listed: Iterable[tuple[str, list[str]]]
) -> tuple[list[Tensor], tuple[str, ...]]:
    """The listed tensors, and the names of those that are recognised and left out.

    Every listed tensor is there, and every tensor there is listed once.
    """
    path = file.path
    # With Theano, Keras 2.0 names one of its optimizer's from the root: `/iterations`.
    optimizer = file.names(_OPTIMIZER.rstrip("/"), "weight_names")
    rooted = {name.lstrip("/") for name in optimizer if name.startswith("/")}
    left_out = [name for name in file.tensors if name.startswith(_OPTIMIZER) or name in rooted]
    skipped = set(left_out)
    unclaimed = dict.fromkeys(name for name in file.tensors if name not in skipped)
    places: dict[tuple[str, str], str] = {}
    for layer, names in listed:
        for name in names:
            full = f"{root}{layer}/{name}"
            if (layer, name) in places:
                raise ConversionError(
                    f"{path}: the layer {quoted(layer)} lists the tensor {quoted(name)} twice; "
                    "save the model again"
                )
            if full not in file.tensors:
                raise ConversionError(
                    f"{path}: the layer {quoted(layer)} lists the tensor {quoted(name)}, which is "
                    "not in the file; the file is incomplete, so get it again"
                )
            if full not in unclaimed:
                raise ConversionError(
                    f"{path}: two layers claim the tensor {quoted(full)}; save the model again"
                )
            del unclaimed[full]
            if file.is_number(full):
                left_out.append(full)
            else:
                places[layer, name] = full
    if unclaimed:
        raise ConversionError(
            f"{path}: the tensor {quoted(min(unclaimed))} belongs to no layer of the model; the "
            "file was altered or put together by hand, so save the model again from Keras"
        )
    arrays = file.read(places.values())
    tensors = [Tensor(layer, name, arrays[full]) for (layer, name), full in places.items()]
    return tensors, tuple(left_out)


def _by_scope(tensors: Iterable[Tensor], layers: Iterable[str]) -> dict[str, dict[str, np.ndarray]]:
    """Weights alone: layer → short name → array.

    Tensors that bear the names of several layers are those of a model inside the model; those of a
    model of a person's own class, which makes some outside of its layers, stay together.
    """
    groups: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for tensor in tensors:
        groups[tensor.layer].append(tensor)
    found: dict[str, dict[str, np.ndarray]] = {}
    for layer, group in groups.items():
        foreign = [tensor.name for tensor in group if not tensor.name.startswith(f"{layer}/")]
        scopes = {name.rpartition("/")[0] for name in foreign}
        whole = len(scopes) > 1 and "" in scopes  # such as Nobrainer's unetr
        several = len(scopes) > 1 and not whole
        if not several:
            found[layer] = {}
        for tensor in group:
            name = tensor.name.removesuffix(":0") if whole else short_name(tensor.name, layer)
            holder = layer
            if several and tensor.name in foreign:
                holder = f"{layer}/{tensor.name.rpartition('/')[0]}"
            own = found.setdefault(holder, {})
            own[tensor.name if name in own else name] = tensor.value
    return found


# `.weights.h5`


class WeightsByPlace:
    """The tensors of `.weights.h5` files, under their full names.

    Args:
        files: one, or the shards of one.
    """

    def __init__(self, files: Iterable[Hdf5]) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.left_out: list[str] = []
        self.names: dict[str, str] = {}
        for file in files:
            wanted = []
            for name in sorted(file.tensors, key=natural):
                if _TRAINING.match(name) or _SEED.search(name) or file.is_number(name):
                    self.left_out.append(name)
                else:
                    wanted.append(name)
            arrays = file.read(wanted)
            for name in wanted:
                if name in self.arrays:
                    raise ConversionError(
                        f"{file.path}: the tensor {quoted(name)} is in two shards; save the "
                        "weights again"
                    )
                self.arrays[name] = arrays[name]
            for group in file.groups:
                if group.endswith("/vars") and not _TRAINING.match(group):
                    self.names[group] = file.text(group, "name")

    def layers(self) -> dict[str, dict[str, np.ndarray]]:
        """Layer → position → array, without a configuration.

        A layer bears its own name where the file says it, else its class and number.
        """
        found: dict[str, dict[str, np.ndarray]] = {}
        places = {*self.names, *(name.rpartition("/")[0] for name in self.arrays)}
        for place in sorted(places, key=natural):
            found.setdefault(self._split(place)[0], {})
        for full, array in self.arrays.items():
            layer, inner, number = self._split(full)
            found[layer][f"{inner}{number}"] = array
        return found

    def _split(self, full: str) -> tuple[str, str, str]:
        """`layers/a/layers/b/query/vars/0` → layer `a/b`, inside it `query/`, number `0`."""
        holder, _, number = f"/{full}/".rpartition("/vars/")
        parts = holder.strip("/").split("/")
        layer: list[str] = []
        position = 0
        while position + 1 < len(parts) and parts[position] in CONTAINERS:
            place = "/".join(parts[: position + 2])
            layer.append(self.names.get(f"{place}/vars") or parts[position + 1])
            position += 2
        if not layer:  # a model of a person's own class: its attributes' names
            return "/".join(parts), "", number.strip("/")
        return "/".join(layer), "".join(f"{part}/" for part in parts[position:]), number.strip("/")


def read_shards(document: Mapping[str, Any], path: Path) -> KerasWeights:
    """Reads the shards of a `.weights.json` file: `weight_map` is group → files beside it.

    Raises:
        ConversionError: a shard is missing, broken, or elsewhere.
    """
    names = [name for value in document["weight_map"].values() for name in _as_list(value)]
    files = []
    for name in dict.fromkeys(str(each) for each in names):
        file = path.with_name(name) if re.fullmatch(r"[^/\\\0]{1,255}", name) else path.parent
        if file.is_symlink() or not file.is_file():
            raise ConversionError(
                f"{path}: the shard {quoted(name)} is missing, or a link or elsewhere; put all "
                "shards beside the .json file"
            )
        files.append(file)
    with ExitStack() as stack:
        weights = WeightsByPlace([stack.enter_context(open_hdf5(path, file)) for file in files])
    return _alone(weights, path, sha256_of(path, *files))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _alone(weights: WeightsByPlace, path: Path, digest: str) -> KerasWeights:
    return KerasWeights(
        path=path,
        format="Keras .weights.h5",
        keras_version="",
        backend="",
        layers=weights.layers(),
        sha256=digest,
        left_out=tuple(weights.left_out),
    )


def placed(
    config: Any, layers: tuple[KerasLayer, ...], weights: WeightsByPlace, path: Path
) -> tuple[KerasLayer, ...]:
    """The layers of a configuration with the arrays of a `.weights.h5` file."""
    owners = by_place(weights.arrays, weights.names, config, path)
    tensors = [Tensor(*owners[name], array) for name, array in weights.arrays.items()]
    return attach(layers, tensors, path)


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts `conv3d_10` after `conv3d_9`."""
    return [
        (len(digits.lstrip("0")), digits) if digits else (0, text)
        for text, digits in re.findall(r"([^\d]+)|(\d+)", name)
    ]
