"""Files of the structure of published ones: recognised, proven, fine-tuned and written back.

The published files are too large to be at hand; these have their structure and random weights.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import nibabel as nib
import numpy as np
import pytest
from keras import layers

from voxtune.engine.cli import main
from voxtune.engine.known_models import KNOWN
from voxtune.engine.model_dir import read_model
from voxtune.models.lowering import plain_lowerings

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def quick() -> Any:
    """XLA's own convolution compiles in a fifth of the time; the result is the same to rounding."""
    with plain_lowerings():
        yield


def randomised(model: Any) -> Any:
    """Weights small enough that the logits stay near 1."""
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            fan_in = float(np.prod(weight.shape[:-1]))
            weight.assign(RNG.normal(0, fan_in**-0.5, weight.shape))
        else:
            low = 0.5 if weight.name in ("gamma", "moving_variance") else -0.1
            weight.assign(RNG.uniform(low, low + 0.2, weight.shape))
    return model


# `randomised` gives values; Keras's own would be drawn in vain, slowly.
conv3d = partial(layers.Conv3D, kernel_initializer="zeros")
conv3d_up = partial(layers.Conv3DTranspose, kernel_initializer="zeros")


def nobrainer_unet() -> Any:
    """The brain-extraction U-Net: 4,768,289 parameters."""

    def double(x: Any, first: int, second: int) -> Any:
        for filters in (first, second):
            x = conv3d(filters, 3, padding="same")(x)
            x = layers.Activation("relu")(x)
        return x

    x = inputs = layers.Input((128, 128, 128, 1))
    skips = []
    for width in (16, 32, 64):
        skips.append(double(x, width, 2 * width))
        x = layers.MaxPooling3D(2)(skips[-1])
    x = double(x, 128, 256)
    for width in (128, 64, 32):
        up = conv3d_up(2 * width, 2, strides=2, padding="same")(x)
        x = double(layers.Concatenate()([skips.pop(), up]), width, width)
    x = conv3d(1, 1)(x)
    return randomised(keras.Model(inputs, layers.Activation("sigmoid")(x)))


def ams() -> Any:
    """The same net, with Adam's moments beside it."""
    model = nobrainer_unet()
    model.compile(keras.optimizers.Adam(1e-5), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def synthseg(labels: int, activation: str) -> Any:
    """SynthSeg's U-Net: 13,242,824 parameters for 32 labels, under the names of its files."""
    x = inputs = layers.Input((None, None, None, 1), name="unet_input")
    skips = []
    for level in range(5):
        for conv in range(2):
            name = f"unet_conv_downarm_{level}_{conv}"
            x = conv3d(24 * 2**level, 3, padding="same", activation="elu", name=name)(x)
        skips.append(x)
        x = layers.BatchNormalization(name=f"unet_bn_down_{level}")(x)
        if level < 4:
            x = layers.MaxPooling3D(2, name=f"unet_maxpool_{level}", padding="same")(x)
    for level in range(4):
        x = layers.UpSampling3D(2, name=f"unet_up_{5 + level}")(x)
        x = layers.Concatenate(name=f"unet_merge_{5 + level}")([skips[3 - level], x])
        for conv in range(2):
            name = f"unet_conv_uparm_{5 + level}_{conv}"
            width = 24 * 2 ** (3 - level)
            x = conv3d(width, 3, padding="same", activation="elu", name=name)(x)
        x = layers.BatchNormalization(name=f"unet_bn_up_{level}")(x)
    x = conv3d(labels, 1, name="unet_likelihood")(x)
    x = layers.Activation(activation, name="unet_prediction")(x)
    return randomised(keras.Model(inputs, x))


@pytest.fixture
def subjects(tmp_path: Path) -> Path:
    """A table of one scan of 16³ voxels to train on."""
    image = RNG.normal(size=(16, 16, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image((image > 1).astype(np.uint8), np.eye(4)), tmp_path / "a_label.nii")
    (tmp_path / "subjects.csv").write_text("subject,image,label,split\na,a.nii,a_label.nii,train\n")
    return tmp_path / "subjects.csv"


@pytest.mark.parametrize(
    ("make", "name", "parameters", "intensity", "classes"),
    [
        (nobrainer_unet, "brainy", 4_768_289, "zscore", ("background", "brain")),
        (ams, "ams", 4_768_289, "zscore", ("background", "meningioma")),
        (lambda: synthseg(32, "softmax"), "SynthSeg 1.0", 13_242_824, "percentile", 32),
        (lambda: synthseg(1, "linear"), "SynthSR", None, "minmax", ()),
    ],
    ids=["brainy", "ams", "SynthSeg", "SynthSR"],
)
def test_a_file_of_a_published_structure_goes_the_whole_way(
    make: Callable[[], Any],
    name: str,
    parameters: int | None,
    intensity: str,
    classes: Any,
    tmp_path: Path,
    subjects: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = make()
    assert parameters in (None, original.count_params())
    original.save(tmp_path / "original.h5")
    model, run = tmp_path / "model", tmp_path / "run"
    assert main(["convert", str(tmp_path / "original.h5"), str(model), "--verify"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("verified: ")
    assert f"of the structure of {name}" in printed
    spec, _ = read_model(model)
    assert (spec.contract.orientation, spec.contract.intensity) == ("RAS", intensity)
    names = tuple(spec.names.values())
    assert names == classes or len(names) == classes
    record = json.loads((model / "conversion.json").read_text())
    assert max(layer["relative"] for layer in record["keras"]["layers"]) <= 1e-5
    assert len(record["keras"]["layers"]) >= len(original.layers) - 1

    if name in ("ams", "SynthSeg 1.0"):
        return  # but for their heads, which training replaces, they are the others' networks
    options = ["--steps", "1", "--warmup", "0", "--batch", "1", "--mesh", "data=1"]
    block = ["--block", "16", "16", "16"]
    assert main(["finetune", str(model), str(subjects), str(run), *options, *block]) == 0
    before, after = read_model(model)[1], read_model(run / "model")[1]
    moved = [path for path, value in after.items() if not np.array_equal(value, before[path])]
    assert len(moved) > 0.9 * len(after)
    assert main(["export", str(run / "model"), str(tmp_path / "back.keras")]) == 0
    assert "bit-identical" in capsys.readouterr().out
    exported = keras.models.load_model(tmp_path / "back.keras")
    assert exported.output_shape[-1] == 2


def test_every_published_network_says_where_it_comes_from() -> None:
    for known in KNOWN:
        assert known.citation
        assert known.source
        assert len(known.digest) in (0, 32, 64)


@pytest.mark.parametrize("name", ["model5_gw_ae", "model11_gw_ae", "model18cls", "model20chan3cls"])
def test_brainchops_networks_are_known_by_their_hash(
    name: str, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shared_data / "keras" / "brainchop" / name
    assert main(["inspect", str(source)]) == 0
    assert f"the very file of brainchop {name}" in capsys.readouterr().out
    assert main(["convert", str(source), str(tmp_path / "model")]) == 0
    spec, _ = read_model(tmp_path / "model")
    wanted = "quantile" if name == "model20chan3cls" else "minmax"
    assert spec.contract.intensity == wanted
    assert spec.classes[0].value == 0
    assert len(spec.classes) == spec.arguments["outputs"]
