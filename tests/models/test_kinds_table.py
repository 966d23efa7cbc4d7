"""The table of kinds: every one tested, Keras's defaults, refusals, layers of one's own."""

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from jax import Array

from voxtune.models.kinds import KINDS, Mode, register_layer, supported_table

_FILES = (
    "test_kinds.py",
    "test_kinds_definitions.py",
    "test_kinds_random.py",
    "test_operations.py",
    "test_variational.py",
)
_LINE, _PLANE, _VOLUME = (9, 3), (7, 6, 3), (5, 6, 7, 3)


def _module(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file, Path(__file__).with_name(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_kind_is_compared_with_keras_or_its_definition() -> None:
    tested = set().union(*(_module(file).TESTED for file in _FILES))
    assert set(KINDS) - tested == set()


def test_defaults_are_those_of_keras() -> None:
    import keras

    for name, kind in KINDS.items():
        keras_class = getattr(keras.layers, name, None)
        if keras_class is None or name in ("Flatten", "Identity"):
            continue
        parameters = inspect.signature(keras_class.__init__).parameters
        for setting, default in kind.settings.items():
            theirs = parameters[setting].default
            while isinstance(theirs, tuple) and len(set(theirs)) == 1:  # the same for each axis
                theirs = theirs[0]
            assert theirs in (default, inspect.Parameter.empty), f"{name}: {setting}"


REFUSED: list[tuple[str, dict[str, Any], tuple[int, ...], str]] = [
    ("Conv2D", {"filters": 2}, _PLANE, "'kernel_size' is missing"),
    ("Conv2D", {"filters": 2, "kernel_size": 3, "data_format": "channels_first"}, _PLANE, "data_f"),
    ("Conv2D", {"filters": 2, "kernel_size": 3, "padding": "reflect"}, _PLANE, "padding='reflect'"),
    ("Conv2D", {"filters": 2, "kernel_size": 3, "padding": "causal"}, _PLANE, "padding='causal'"),
    ("Conv2D", {"filters": 2, "kernel_size": 3, "groups": 2}, _PLANE, "3 channels"),
    ("Conv2D", {"filters": 2, "kernel_size": (3, 3, 3)}, _PLANE, "2 whole numbers"),
    ("Conv2D", {"filters": 2, "kernel_size": 9}, _PLANE, "smaller than the kernel"),
    ("Conv3D", {"filters": 2, "kernel_size": 3}, _PLANE, "needs 5 axes, not 4"),
    ("Conv2D", {"filters": 2, "kernel_size": 1, "activation": "zelu"}, _PLANE, "called 'zelu'"),
    ("Conv2DTranspose", {"filters": 2, "kernel_size": 3, "padding": "x"}, _PLANE, "padding='x'"),
    ("Conv2D", {"filters": 2, "kernel_size": 1, "lora_rank": 2}, _PLANE, "lora_rank=2"),
    ("BatchNormalization", {"renorm": True}, _PLANE, "renorm=True"),
    ("LayerNormalization", {"rms_scaling": True}, _PLANE, "rms_scaling=True"),
    ("LayerNormalization", {"axis": 4}, _PLANE, "axis=4 does not exist"),
    ("GroupNormalization", {"groups": 2}, _PLANE, "3 channels are not 2 groups"),
    ("GroupNormalization", {"groups": 1, "axis": 1}, _PLANE, "axis=1 is not supported"),
    ("SlabGroupNormalization", {"groups": 2}, _PLANE, "3 channels are not 2 groups"),
    ("InstanceNormalization", {"axis": 0}, _PLANE, "axis=0 is the batch"),
    ("MaxPooling2D", {"pool_size": 8}, _PLANE, "smaller than the window"),
    ("MaxPooling3D", {"pool_size": 8}, _VOLUME, "smaller than the window"),
    ("MaxPooling2D", {"padding": "full"}, _PLANE, "padding='full'"),
    ("UpSampling2D", {"interpolation": "bicubic"}, _PLANE, "interpolation='bicubic'"),
    ("ZeroPadding2D", {"padding": (1, 2, 3)}, _PLANE, "pair of places"),
    ("Cropping2D", {"cropping": (4, 0)}, _PLANE, "nothing is left of 7"),
    ("Reshape", {"target_shape": (5, -1)}, _PLANE, "does not become"),
    ("Subtract", {}, _PLANE, "takes 2 inputs, not 1"),
    ("MultiHeadAttention", {"num_heads": 1, "key_dim": 1}, _LINE, "takes a query"),
]


@pytest.mark.parametrize(("name", "config", "shape", "reason"), REFUSED)
def test_what_is_not_supported_is_refused(
    name: str, config: dict[str, Any], shape: tuple[int, ...], reason: str, one_layer: Any
) -> None:
    with pytest.raises(ValueError, match="does not fit what it reads") as caught:
        one_layer(name, config, (2, *shape))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_gate", True),
        ("use_causal_mask", True),
        ("return_attention_scores", True),
        ("attention_mask", 0),
        ("sliding_window", 2),
        ("attention_axes", [1]),
    ],
)
def test_attention_refuses_masks_scores_and_single_axes(
    setting: str, value: Any, one_layer: Any
) -> None:
    config = {"num_heads": 1, "key_dim": 2, setting: value}
    with pytest.raises(ValueError, match=setting):
        one_layer("MultiHeadAttention", config, (2, 3, 4, 5), (2, 3, 4, 5))


def test_registered_layer_computes_and_cannot_replace_another(one_layer: Any) -> None:
    def apply(config: Any, weights: Any, inputs: Any, mode: Mode) -> Array:
        (x,) = inputs
        return weights["factor"] * x + config["shift"]

    register_layer("Scale", apply, lambda config, shapes: {"factor": (shapes[0][-1],)})
    try:
        one = one_layer("Scale", {"shift": 2.0}, (2, 4, 3))
        np.testing.assert_allclose(one(), one.weights["factor"] * one.inputs[0] + 2, rtol=1e-6)
        with pytest.raises(ValueError, match="there is a layer 'Scale' already"):
            register_layer("Scale", apply)
    finally:
        del KINDS["Scale"]


def test_table_has_every_layer_once() -> None:
    rows = [line.split(" | ") for line in supported_table().splitlines()[2:]]
    names = []
    for row in rows:
        for each in row[1].split(", "):
            start, *axes = re.split("(?<=[a-z])(?=[123]D)", each, maxsplit=1)
            end = re.sub("^[123/D]+", "", axes[0]) if axes else ""
            found = re.findall("[123]D", each) if axes else [""]
            names += [f"{start}{axis}{end}" for axis in found]
    assert sorted(names) == sorted(KINDS)
    assert any("`output_padding`" in row[2] for row in rows)
