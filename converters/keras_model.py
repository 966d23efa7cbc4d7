"""What a Keras file says, whatever its format: layers in file order, each with its arrays."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.converters.errors import ConversionError, quoted


@dataclass(frozen=True)
class KerasLayer:
    """One layer of the graph.

    Attributes:
        name: the layer's name, unique in the model.
        class_name: the Keras class, for example `Conv3D`.
        config: the layer's configuration as in the file.
        inputs: names of the layers it reads, in the graph's order (for Concatenate it matters).
        weights: short name (`kernel`, `moving_mean`, ...) → float32 array in Keras's layout.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    inputs: tuple[str, ...]
    weights: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class KerasModel:
    """A Keras file, read.

    Attributes:
        path: the file as given; for TF.js the model.json.
        format: `TF.js layers model` or `Keras HDF5`.
        keras_version: the version that wrote the file, "" if it does not say.
        name: the model's name.
        layers: in file order, input layers included. Not always a topological order.
        inputs: names of the input layers.
        outputs: names of the layers whose outputs are the model's.
        sha256: hex digest of the file; for TF.js of model.json followed by the shards in the
            order of the manifest.
        left_out: tensors recognised and not read: the optimizer's state.
    """

    path: Path
    format: str
    keras_version: str
    name: str
    layers: tuple[KerasLayer, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sha256: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Tensor:
    """One array of a file: the layer that holds it, its full name there, its float32 values."""

    layer: str
    name: str
    value: np.ndarray


def attach(
    layers: Iterable[KerasLayer], tensors: Iterable[Tensor], model_name: str, path: Path
) -> tuple[KerasLayer, ...]:
    """Gives each layer its tensors under their short names; the arrays become read-only.

    Raises:
        ConversionError: a tensor belongs to no layer, or a layer has two of the same short name.
    """
    weights: dict[str, dict[str, np.ndarray]] = {layer.name: {} for layer in layers}
    for tensor in tensors:
        if tensor.layer not in weights:
            raise ConversionError(
                f"{path}: the tensor {quoted(tensor.name)} belongs to no layer of the model's "
                "configuration; the file was altered or put together by hand, so save the model "
                "again from Keras"
            )
        short = short_name(tensor.name, tensor.layer, model_name)
        if short in weights[tensor.layer]:
            raise ConversionError(
                f"{path}: the layer {quoted(tensor.layer)} has two tensors named {quoted(short)}; "
                "save the model again from Keras"
            )
        tensor.value.flags.writeable = False
        weights[tensor.layer][short] = tensor.value
    return tuple(replace(layer, weights=weights[layer.name]) for layer in layers)


def short_name(tensor: str, layer: str, model_name: str) -> str:
    """`conv3d/kernel:0` → `kernel`, and `attention/query/kernel` → `query/kernel`.

    Keras 3 puts a Sequential model's name before the layer's. Keras 2 may name a weight after
    another scope than its layer (`conv3d_1/kernel:0` in layer `conv3d`): then the last part counts.
    """
    name = re.sub(r":\d+$", "", tensor)
    for prefix in (f"{model_name}/{layer}/", f"{layer}/"):
        if name.startswith(prefix) and len(name) > len(prefix):
            return name.removeprefix(prefix)
    return name.rsplit("/", 1)[-1]
