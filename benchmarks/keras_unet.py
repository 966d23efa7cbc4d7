"""Nobrainer's U-Net with random weights, in a file as Keras 2 writes one. No Keras, no JAX here."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write_unet(path: Path, filters: int = 16) -> Path:
    """A file of 19 MB with 16 filters in the first layer, which is what Nobrainer has."""
    layers, weights = _unet(filters)
    content = {
        "name": "unet",
        "layers": layers,
        "input_layers": [["image", 0, 0]],
        "output_layers": [[layers[-1]["name"], 0, 0]],
    }
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "2.14.0", "tensorflow"
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": content})
        held = file.create_group("model_weights")
        held.attrs["layer_names"] = [each["name"].encode() for each in layers]
        for each in layers:
            layer, arrays = held.create_group(each["name"]), weights.get(each["name"], {})
            layer.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, array in arrays.items():
                layer[name] = array
    return path


def _unet(filters: int) -> tuple[list[dict[str, Any]], dict[str, dict[str, np.ndarray]]]:
    """Layers as Keras 2 describes them, and the weights of each by name."""
    random = np.random.default_rng(0)
    layers: list[dict[str, Any]] = []
    weights: dict[str, dict[str, np.ndarray]] = {}

    def add(kind: str, *inputs: str, **settings: Any) -> str:
        name = settings.pop("name", f"{kind.lower()}_{len(layers)}")
        nodes = [[[each, 0, 0, {}] for each in inputs]] if inputs else []
        about = {"class_name": kind, "name": name, "inbound_nodes": nodes}
        layers.append({**about, "config": {"name": name, **settings}})
        return name

    def convolved(
        x: str, read: int, made: int, edge: int = 3, kind: str = "Conv3D", stride: int = 1
    ) -> str:
        name = add(
            kind,
            x,
            filters=made,
            kernel_size=[edge] * 3,
            strides=[stride] * 3,
            padding="same",
            activation="linear",
        )
        # The kernel of a transposed convolution has what it makes before what it reads.
        channels = (read, made) if kind == "Conv3D" else (made, read)
        kernel = random.normal(0, 1 / math.sqrt(edge**3 * read), (edge,) * 3 + channels)
        arrays = {"kernel": kernel.astype("<f4"), "bias": np.zeros(made, "<f4")}
        weights[name] = {f"{name}/{part}:0": array for part, array in arrays.items()}
        return name

    def twice(x: str, read: int, made: Sequence[int]) -> str:
        for each in made:
            x = add("Activation", convolved(x, read, each), activation="relu")
            read = each
        return x

    x, read = add("InputLayer", name="image", batch_input_shape=[None, 32, 32, 32, 1]), 1
    skips: list[tuple[str, int]] = []
    for first in (filters, 2 * filters, 4 * filters, 8 * filters):
        if skips:
            x = add("MaxPooling3D", x, pool_size=[2] * 3, strides=[2] * 3, padding="valid")
        x = twice(x, read, (first, 2 * first))
        read = 2 * first
        skips.append((x, read))
    for skip, beside in reversed(skips[:-1]):
        up = convolved(x, read, read, edge=2, kind="Conv3DTranspose", stride=2)
        x = twice(add("Concatenate", skip, up, axis=-1), beside + read, (beside, beside))
        read = beside
    add("Activation", convolved(x, read, 1, edge=1), activation="sigmoid")
    return layers, weights
