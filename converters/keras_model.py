"""What a Keras file says, whatever its format: layers with their arrays, and their calls."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class KerasLayer:
    """One layer.

    Attributes:
        name: unique in the model. Layers of a model inside the model begin with its name and a
            slash: `encoder/conv3d`.
        class_name: the class as in the file, `Conv3D` or `Addons>InstanceNormalization`, say.
        config: the layer's configuration as in the file.
        weights: name → array in the layout of the file. Names are short (`kernel`, `moving_mean`,
            `query/kernel`, Keras 1's `W`), or the position ("0", "1", "query_dense/0") where the
            file gives no other.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class TensorRef:
    """Output number `index` of the call named `call`."""

    call: str
    index: int = 0


@dataclass(frozen=True)
class KerasCall:
    """One use of a layer.

    Attributes:
        name: unique: the layer's name, for further uses with `:1`, `:2`, ...
        layer: name of the layer.
        args: positional arguments: JSON values in which each tensor is a `TensorRef`. Layers that
            merge take one list of them.
        kwargs: named arguments, likewise; None and training=None are left out.
    """

    name: str
    layer: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class KerasModel:
    """A Keras file, read. Models inside the model are dissolved into their layers.

    Attributes:
        path: the file as given; for TF.js the model.json.
        format: `Keras HDF5`, `Keras .keras`, `TF.js layers model` or `TensorFlow SavedModel`.
        keras_version: the version that wrote the file, "" if it does not say.
        backend: the backend that wrote it ("tensorflow", "theano", ...), "" if it does not say.
        name: the model's name.
        layers: in file order, input layers included.
        calls: each after those that it reads; those of input layers have no arguments.
        inputs: names of the input layers (and of their calls), in the model's order.
        outputs: in the model's order.
        sha256: hex digest of the file; for TF.js of model.json followed by the shards in the
            order of the manifest.
        left_out: tensors recognised and not read: optimizer state, seeds of random layers.
    """

    path: Path
    format: str
    keras_version: str
    backend: str
    name: str
    layers: tuple[KerasLayer, ...]
    calls: tuple[KerasCall, ...]
    inputs: tuple[str, ...]
    outputs: tuple[TensorRef, ...]
    sha256: str
    left_out: tuple[str, ...]

    @property
    def by_name(self) -> dict[str, KerasLayer]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}


@dataclass(frozen=True)
class KerasWeights:
    """A Keras file of weights alone.

    Attributes:
        path: the file as given.
        format: `Keras HDF5 weights`, `Keras .weights.h5`, `TensorFlow checkpoint`, ...
        keras_version: as in `KerasModel`.
        backend: as in `KerasModel`.
        layers: layer (as the file calls it) → weight → array, in file order; names as in
            `KerasLayer.weights`. Layers without weights may be among them.
        sha256: as in `KerasModel`.
        left_out: as in `KerasModel`.
    """

    path: Path
    format: str
    keras_version: str
    backend: str
    layers: Mapping[str, Mapping[str, np.ndarray]]
    sha256: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Tensor:
    """One array of a file: the layer that holds it, its full name there, its values."""

    layer: str
    name: str
    value: np.ndarray
