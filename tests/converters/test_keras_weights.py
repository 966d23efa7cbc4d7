"""Files of weights alone are read to the last bit, in each layout that Keras has had."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from voxtune.converters.keras_file import KerasModel, KerasWeights, read_keras_file


def _same(found: Any, wanted: dict[str, dict[str, np.ndarray]]) -> None:
    assert {layer: {*own} for layer, own in found.items() if own} == {
        layer: {*own} for layer, own in wanted.items()
    }
    for layer, own in wanted.items():
        for name, value in own.items():
            np.testing.assert_array_equal(found[layer][name], value)


def test_weights_in_the_old_layout(tmp_path: Path, keras2: Any) -> None:
    """The same groups at the root. Those of a model inside the model are told by their names."""
    path = tmp_path / "weights.h5"
    tensors = {
        "input": {},
        "conv": {"conv_7/kernel:0": keras2.kernel, "conv_7/bias:0": keras2.bias},
        "inner": {"a/kernel:0": keras2.kernel + 1, "b/kernel:0": keras2.kernel + 2},
        "attention": {
            "attention/key/kernel": keras2.kernel + 3,
            "attention/query/kernel": keras2.kernel + 4,
        },
        "old": {"old_W_3:0": keras2.kernel + 5},
    }
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in tensors]
        file.attrs["backend"] = b"tensorflow"
        for name, arrays in tensors.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight in arrays]
            for weight, array in arrays.items():
                group[weight] = array
    found = read_keras_file(path)
    assert isinstance(found, KerasWeights)
    assert (found.format, found.backend) == ("Keras HDF5 weights", "tensorflow")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [*found.layers] == ["input", "conv", "inner/a", "inner/b", "attention", "old"]
    _same(
        found.layers,
        {
            "conv": {"kernel": keras2.kernel, "bias": keras2.bias},
            "inner/a": {"kernel": keras2.kernel + 1},
            "inner/b": {"kernel": keras2.kernel + 2},
            "attention": {"key/kernel": keras2.kernel + 3, "query/kernel": keras2.kernel + 4},
            "old": {"W": keras2.kernel + 5},
        },
    )


def test_weights_before_keras_1(tmp_path: Path, keras2: Any) -> None:
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["nb_layers"] = 11
        for number in range(11):
            group = file.create_group(f"layer_{number}")
            group.attrs["nb_params"] = 0
        file["layer_2/param_0"] = keras2.kernel
        file["layer_2/param_1"] = keras2.bias
        file["layer_10/param_0"] = keras2.bias
    found = read_keras_file(path)
    assert isinstance(found, KerasWeights)
    assert [*found.layers] == [f"layer_{number}" for number in range(11)]
    _same(
        found.layers,
        {
            "layer_2": {"param_0": keras2.kernel, "param_1": keras2.bias},
            "layer_10": {"param_0": keras2.bias},
        },
    )


@pytest.mark.parametrize("container", ["layers", "_layer_checkpoint_dependencies"])
@pytest.mark.parametrize("named", [True, False])
def test_weights_by_place(tmp_path: Path, keras2: Any, container: str, named: bool) -> None:
    path = tmp_path / "m.weights.h5"
    names = {
        f"{container}/conv3d": "first",
        f"{container}/conv3d_10": "last",
        f"{container}/functional/{container}/dense": "deep",
        f"{container}/functional": "inner",
        f"{container}/multi_head_attention": "att",
        f"{container}/multi_head_attention/query_dense": "query",
    }
    with h5py.File(path, "w") as file:
        file.create_group("vars")
        for place, name in names.items():
            group = file.create_group(f"{place}/vars")
            if named:
                group.attrs["name"] = name
        file[f"{container}/conv3d/vars/0"] = keras2.kernel
        file[f"{container}/conv3d/vars/1"] = keras2.bias
        file[f"{container}/conv3d_10/vars/0"] = keras2.bias + 1
        file[f"{container}/functional/{container}/dense/vars/0"] = keras2.bias + 2
        file[f"{container}/multi_head_attention/query_dense/vars/0"] = keras2.bias + 3
        file[f"{container}/dropout/seed_generator/vars/0"] = np.arange(2, dtype=np.uint32)
        file["optimizer/vars/1"] = keras2.bias
        file["metrics/mean/vars/0"] = np.float32(0)
    found = read_keras_file(path)
    assert isinstance(found, KerasWeights)
    assert found.format == "Keras .weights.h5"
    assert found.left_out == (
        f"{container}/dropout/seed_generator/vars/0",
        "metrics/mean/vars/0",
        "optimizer/vars/1",
    )
    first, last, deep, att = (
        ("first", "last", "inner/deep", "att")
        if named
        else ("conv3d", "conv3d_10", "functional/dense", "multi_head_attention")
    )
    layers = [name for name, own in found.layers.items() if own]
    assert layers.index(first) < layers.index(last)
    _same(
        found.layers,
        {
            first: {"0": keras2.kernel, "1": keras2.bias},
            last: {"0": keras2.bias + 1},
            deep: {"0": keras2.bias + 2},
            att: {"query_dense/0": keras2.bias + 3},
        },
    )


def test_weights_in_shards(tmp_path: Path, keras2: Any, refused: Callable[..., str]) -> None:
    shards = {
        "m_0.weights.h5": {"layers/conv3d/vars/0": keras2.kernel},
        "m_1.weights.h5": {"layers/conv3d_1/vars/0": keras2.bias},
    }
    for name, tensors in shards.items():
        with h5py.File(tmp_path / name, "w") as file:
            for place, array in tensors.items():
                file[place] = array
    path = tmp_path / "m.weights.json"
    table = {"/layers/conv3d/vars": ["m_0.weights.h5"], "/layers/conv3d_1/vars": "m_1.weights.h5"}
    path.write_text(json.dumps({"weight_map": table}))
    found = read_keras_file(path)
    assert isinstance(found, KerasWeights)
    _same(found.layers, {"conv3d": {"0": keras2.kernel}, "conv3d_1": {"0": keras2.bias}})
    for name in ("../m_0.weights.h5", "gone.h5", "/etc/passwd", "", "a\0b", 3):
        path.write_text(json.dumps({"weight_map": {"a": [name]}}))
        refused(path, "the shard", "missing")
    (tmp_path / "again.h5").write_bytes((tmp_path / "m_0.weights.h5").read_bytes())
    path.write_text(json.dumps({"weight_map": {"a": ["m_0.weights.h5", "again.h5"]}}))
    refused(path, "in two shards")


def test_weights_of_keras3_are_those_of_the_whole_model(shared_data: Path) -> None:
    for name in ("keras3/small", "keras3/sequential"):
        path = shared_data / "keras" / f"{name}.h5"
        whole = read_keras_file(path)
        alone = read_keras_file(path.with_name(f"{path.stem}.weights.h5"))
        assert isinstance(whole, KerasModel)
        assert isinstance(alone, KerasWeights)
        for layer in whole.layers:
            for own, other in zip(
                layer.weights.values(), alone.layers.get(layer.name, {}).values(), strict=True
            ):
                np.testing.assert_array_equal(own, other)
