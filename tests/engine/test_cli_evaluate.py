"""`voxtune evaluate`: a table that is written once, and bad input that is one sentence."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voxtune.engine.cli import main


@pytest.fixture
def predictions(table: Path) -> Path:
    """Predictions of both subjects, as good as can be."""
    folder = table.parent / "predictions"
    folder.mkdir()
    for name in "ab":
        shutil.copy(table.parent / f"{name}_label.nii", folder / f"{name}.nii")
    return folder


def test_evaluate_writes_a_csv_once(
    refused: Callable[..., str],
    predictions: Path,
    table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    command = ["evaluate", str(predictions), str(table), "-o", str(tmp_path / "scores.csv")]
    assert main(command) == 0
    assert "1.000" in capsys.readouterr().out
    assert (tmp_path / "scores.csv").read_text().startswith("subject,value,class,dice")
    assert "scores.csv exists" in refused(*command)
    with (tmp_path / "scores.csv").open("a") as stream:
        stream.write("old")
    assert main([*command, "--overwrite"]) == 0
    assert "old" not in (tmp_path / "scores.csv").read_text()
    before = table.read_bytes()
    assert "no table that voxtune wrote" in refused(*command[:4], table, "--overwrite")
    assert table.read_bytes() == before


def test_evaluate_refuses(
    refused: Callable[..., str], predictions: Path, table: Path, tmp_path: Path, scans: Any
):
    assert "not a folder" in refused("evaluate", tmp_path / "nowhere", table)
    nowhere = tmp_path / "nowhere" / "scores.csv"
    assert str(nowhere) in refused("evaluate", predictions, table, "-o", nowhere)
    assert "split test" in refused("evaluate", predictions, table, "--split", "test")
    scans.save(predictions / "a.nii", scans.label, scans.oblique)
    sentence = refused("evaluate", predictions, table)
    assert "0 0 1 2.5" in sentence
    assert "0 0 1 0" in sentence
    (predictions / "b.nii").unlink()
    assert "no prediction of b" in refused("evaluate", predictions, table)


def test_a_folder_is_no_csv_file(
    refused: Callable[..., str], predictions: Path, table: Path, tmp_path: Path
):
    (tmp_path / "scores").mkdir()
    command = ("evaluate", predictions, table, "-o", tmp_path / "scores", "--overwrite")
    assert "is no file" in refused(*command)
