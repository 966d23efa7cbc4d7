"""A network of no named family on the whole way: converted, fine-tuned, predicting, refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import nibabel as nib
import numpy as np
import pytest
from keras import layers

from voxtune.engine.cli import main
from voxtune.engine.model_dir import read_model

SHORT = ["--steps", "2", "--warmup", "0", "--mesh", "data=1", "--batch", "2", "--trunk-lr", "1e-2"]


def write(path: Path, *made: Any, shape: tuple[int, ...] = (8, 8, 8, 1), outputs: int = 3) -> Path:
    """A chain of Keras layers that ends in a softmax, with random weights."""
    x = inputs = keras.Input(shape, name="image")
    for layer in made:
        x = layer(x)
    if outputs:
        x = layers.Conv3D(outputs, 1, activation="softmax", name="head")(x)
    keras.Model(inputs, x).save(path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Convolution, group norm, batch norm, dropout, up and down: no family has these."""
    return write(
        tmp_path / "net.keras",
        layers.Conv3D(4, 3, padding="same", strides=2, name="down"),
        layers.GroupNormalization(2, name="groups"),
        layers.BatchNormalization(name="norm"),
        layers.LeakyReLU(name="leaky"),
        layers.SpatialDropout3D(0.5, name="drop"),
        layers.Conv3DTranspose(4, 2, strides=2, name="levels"),
    )


def test_it_trains_as_well_as_it_predicts(source: Path, table: Path, tmp_path: Path) -> None:
    model, run, out = tmp_path / "model", tmp_path / "run", tmp_path / "out"
    assert main(["convert", str(source), str(model), "--block", "8", "8", "8", "--verify"]) == 0
    before, _ = read_model(model)
    assert (before.family, before.arguments["outputs"]) == ("graph", 3)
    assert main(["finetune", str(model), str(table), str(run), *SHORT]) == 0
    spec, after = read_model(run / "model")
    start = json.loads((run / "parameters.json").read_text())["parameters"]
    assert {path for path, origin in start.items() if origin != "loaded"} == {
        "head/bias",
        "head/kernel",
    }
    assert after["head/kernel"].shape[-1] == 2
    old = read_model(model)[1]
    for path in ("down/kernel", "groups/gamma", "levels_/kernel", "norm/moving_mean"):
        assert not np.array_equal(after[path], old[path]), path
    assert main(["predict", str(run / "model"), str(table), "-o", str(out)]) == 0
    image = nib.load(out / "a.nii.gz")
    assert image.shape == (8, 8, 8)
    assert set(np.unique(np.asarray(image.dataobj))) <= {each.value for each in spec.classes}
    assert main(["export", str(run / "model"), str(tmp_path / "back.keras")]) == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: write(path, shape=(8, 8, 8, 2)), "2 channels"),
        (
            lambda path: write(path, layers.Conv3D(2, 1), layers.GlobalMaxPooling3D(), outputs=0),
            "each voxel",
        ),
        (lambda path: write(path, layers.Conv2D(2, 3), shape=(8, 8, 1), outputs=0), "each voxel"),
        (lambda path: write(path, layers.Conv3D(2, 3), outputs=2), "each voxel"),
    ],
    ids=["channels", "one value", "2D", "shrinking"],
)
def test_what_gives_no_value_for_each_voxel_converts_and_does_not_train(
    make: Callable[[Path], Path],
    words: str,
    table: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    finetune: Callable[..., list[str]],
) -> None:
    model = tmp_path / "model"
    assert main(["convert", str(make(tmp_path / "net.keras")), str(model)]) == 0
    assert words in refused(*finetune(model, table))
    assert words in refused("predict", model, table, "-o", tmp_path / "out")


def test_a_network_without_weights_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = write(tmp_path / "net.keras", layers.MaxPooling3D(2), outputs=0)
    assert "without weights" in refused("convert", path, tmp_path / "model")


def test_independent_outputs_are_no_classes(
    table: Path, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    last = layers.Conv3D(3, 1, activation="sigmoid")
    path = write(tmp_path / "net.keras", last, outputs=0)
    model = tmp_path / "model"
    assert main(["convert", str(path), str(model), "--block", "8", "8", "8"]) == 0
    assert "no classes" in capsys.readouterr().out
    assert "exclude each other" in refused("predict", model, table, "-o", tmp_path / "out")
    assert "no classes to keep" in refused(
        "finetune", model, table, tmp_path / "run", *SHORT, "--head", "keep"
    )


def test_a_graph_without_a_head_is_refused_a_new_one(
    table: Path, tmp_path: Path, refused: Callable[..., str], finetune: Callable[..., list[str]]
) -> None:
    made = (layers.Conv3D(2, 3, padding="same"), layers.LayerNormalization())
    model = tmp_path / "model"
    path = write(tmp_path / "net.keras", *made, outputs=0)
    assert main(["convert", str(path), str(model), "--block", "8", "8", "8"]) == 0
    sentence = refused(*finetune(model, table, "--labels", "0=air", "1=a", "2=b"))
    assert "no voxel of 2 b" in sentence or "no single convolution" in sentence


def test_weights_alone_need_their_network(
    tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    x = inputs = keras.Input((8, 8, 8, 1))
    for dilation in (1, 2):
        x = layers.Conv3D(3, 3, padding="same", dilation_rate=dilation)(x)
        x = layers.Activation("elu")(x)
    original = keras.Model(inputs, layers.Conv3D(2, 1)(x))
    weights, model = tmp_path / "net.weights.h5", tmp_path / "model"
    original.save_weights(weights)
    assert "--model" in refused("convert", weights, model)
    assert "--arguments" in refused("convert", weights, model, "--model", "meshnet")
    arguments = ["--arguments", "dilations=1,2", "activation=elu", "filters=4"]
    sentence = refused("convert", weights, model, "--model", "meshnet", *arguments)
    assert "would fit" in sentence
    arguments[-1] = "filters=3"
    given = [str(weights), str(model), "--model", "meshnet", *arguments]
    assert main(["convert", *given, "--verify"]) == 0
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("verified in part: ")
    assert "compare with --golden" in verdict
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 1)).astype(np.float32)
    spec, parameters = read_model(model)
    np.testing.assert_allclose(spec.network(parameters)(x), original(x), atol=1e-5)
    original.save(tmp_path / "net.keras")
    whole = refused("convert", tmp_path / "net.keras", tmp_path / "other", "--model", "meshnet")
    assert "leave them out" in whole


def test_a_lambda_is_what_the_person_says(tmp_path: Path, refused: Callable[..., str]) -> None:
    """Its code stays unread: here it would double, and is said to be ReLU."""
    x = inputs = keras.Input((8, 8, 8, 1))
    x = layers.Conv3D(2, 1, name="first")(x)
    x = layers.Lambda(lambda value: value * 2, name="twice")(x)
    original = keras.Model(inputs, layers.Conv3D(2, 1, name="last")(x))
    path, model = tmp_path / "net.keras", tmp_path / "model"
    original.save(path)
    sentence = refused("convert", path, model)
    assert "'twice'" in sentence
    assert "--lambda twice=" in sentence
    assert "LAYER=ACTIVATION" in refused("convert", path, model, "--lambda", "twice")
    assert "swoosh" in refused("convert", path, model, "--lambda", "twice=swoosh")
    assert main(["inspect", str(path), "--lambda", "twice=relu"]) == 0
    assert main(["convert", str(path), str(model), "--lambda", "twice=relu"]) == 0
    spec, parameters = read_model(model)
    given = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 1)).astype(np.float32)
    first, last = original.get_layer("first"), original.get_layer("last")
    wanted = last(keras.ops.relu(first(given)))
    np.testing.assert_allclose(spec.network(parameters)(given), wanted, atol=1e-5)
