"""The suite `convert`: its file is Nobrainer's U-Net, and a conversion is timed and weighed."""

from pathlib import Path

import pytest

from voxtune.benchmarks import convert
from voxtune.benchmarks.conversion import converted
from voxtune.benchmarks.keras_unet import write_unet
from voxtune.converters import to_flax
from voxtune.converters.keras_file import read_keras_file
from voxtune.converters.keras_model import KerasModel
from voxtune.engine.config import Benchmark
from voxtune.engine.known_models import recognise


def test_the_file_that_is_written_is_nobrainers_network(tmp_path: Path) -> None:
    path = write_unet(tmp_path / "unet.h5")
    assert path.stat().st_size == pytest.approx(19.17e6, rel=0.01)  # Nobrainer's own file
    model = read_keras_file(path)
    assert isinstance(model, KerasModel)
    known, by = recognise(path, model.sha256, to_flax.convert(model))
    assert known is not None
    assert "Nobrainer" in known.citation
    assert by == "structure"


def test_seconds_and_memory_are_of_the_file_alone(tmp_path: Path) -> None:
    seconds, memory = converted(write_unet(tmp_path / "unet.h5", filters=2))
    assert seconds > 0
    assert 0 <= memory < 1e9


def test_each_turn_is_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter({"seconds": n, "memory": 1000 * n, "version": "jax 1"} for n in (3, 1, 2, 5))
    monkeypatch.setattr(convert, "turn", lambda path: next(told))
    packaged, written = convert.measure(Benchmark(turns=2), {})
    assert packaged.case == "the packaged U-Net, 0.8 MB"
    assert (packaged.seconds, packaged.memory) == ((3, 1), 3000)
    assert written.case == "Nobrainer U-Net, 19.2 MB"
    assert (written.seconds, written.memory) == ((2, 5), 5000)
    assert written.values["times_the_file"] == pytest.approx(5000 / 19.17e6, rel=0.01)


def test_a_conversion_that_fails_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "turn", lambda path: {"problem": "broke: a mistake"})
    for each in convert.measure(Benchmark(turns=2), {}):
        assert (each.problem, each.seconds) == ("broke: a mistake", ())


def test_a_process_converts_the_packaged_file() -> None:
    measured = convert.measured("packaged", convert.demo.PRETRAINED, turns=1)
    assert measured.seconds[0] > 0
    assert measured.version.startswith("jax ")
