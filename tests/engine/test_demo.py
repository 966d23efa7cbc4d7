"""The demonstration, with one quick command in the place of its own."""

from pathlib import Path

import pytest

from voxtune.engine.cli import main


def test_a_demo_that_is_there_can_be_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("voxtune.engine.demo.COMMANDS", ("phantom {out}/p --train 1 --size 16",))
    command = ["demo", str(tmp_path / "demo"), "--overwrite"]
    assert [main(command), main(command)] == [0, 0]
    assert (tmp_path / "demo" / "p" / "subjects.csv").is_file()
