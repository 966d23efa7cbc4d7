"""What a person reads of a Keras file before converting it; nothing is written."""

from collections.abc import Callable
from pathlib import Path

import keras
import pytest
from keras import layers

from voxtune.engine.cli import main


@pytest.fixture
def look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Inspects; gives what is printed, and makes sure that nothing is written."""

    def run(*arguments: str | Path) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(["inspect", *map(str, arguments)]) == 0
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().out

    return run


def saved(folder: Path, data_format: str = "channels_last") -> Path:
    """A small network with a strided convolution, as Keras 3 writes it."""
    shape = (16, 16, 16, 2) if data_format == "channels_last" else (2, 16, 16, 16)
    settings = {"padding": "same", "data_format": data_format}
    x = inputs = keras.Input(shape, name="image")
    x = layers.Conv3D(3, 3, strides=2, name="down", **settings)(x)
    x = layers.UpSampling3D(2, data_format=data_format, name="up")(x)
    x = layers.Conv3D(4, 1, activation="softmax", name="last", data_format=data_format)(x)
    model = keras.Model(inputs, x)
    model.save(folder / "net.keras")
    model.save_weights(folder / "net.weights.h5")
    return folder / "net.keras"


def test_a_whole_network(look: Callable[..., str], tmp_path: Path) -> None:
    text = look(saved(tmp_path))
    for words in (
        f"Keras .keras, written by Keras {keras.__version__}",
        "sha256: ",
        "input: image 16x16x16x2",
        "parameters: 181 in 4 tensors",  # 27 * 2 * 3 + 3, and 3 * 4 + 4
        "receptive field: 3 voxels; sizes must be multiples of 2",
        "convert: a graph under its Keras layer names; as a ",
        "output activation: softmax",
        "contract: RAS",
    ):
        assert words in text
    rows = {row.split("│")[1].strip(): row for row in text.splitlines() if row.startswith("│")}
    assert [each.strip() for each in rows["down"].split("│")[2:6]] == [
        "Conv3D",
        "image",
        "8x8x8x3",
        "165",
    ]


def test_weights_alone_say_what_is_missing(look: Callable[..., str], tmp_path: Path) -> None:
    saved(tmp_path)
    text = look(tmp_path / "net.weights.h5")
    assert "Keras .weights.h5" in text
    assert "fits --model meshnet --arguments dilations=1 activation=relu" in text
    assert "3x3x3x2x3" in text


def test_a_file_that_is_none_is_a_sentence(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "net.keras").write_bytes(b"PK\x03\x04 and no more")
    assert "net.keras" in refused("inspect", tmp_path / "net.keras")
    assert "does not exist" in refused("inspect", tmp_path / "none.h5")
