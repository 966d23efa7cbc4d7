"""The demonstration, with one quick command in the place of its own, or with none run at all."""

from pathlib import Path

import pytest
from rich.console import Console

from voxtune.engine import config
from voxtune.engine.cli import main
from voxtune.engine.demo import COMMANDS, demo
from voxtune.engine.output import make_folder, make_folder_of


def test_a_demo_that_is_there_can_be_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("voxtune.engine.demo.COMMANDS", ("phantom {out}/p --train 1 --size 16",))
    command = ["demo", str(tmp_path / "demo"), "--overwrite"]
    assert [main(command), main(command)] == [0, 0]
    assert (tmp_path / "demo" / "p" / "subjects.csv").is_file()


def test_the_demo_ends_with_a_study_of_its_own_and_the_violins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ran: list[config.Command] = []

    def run(command: config.Command, console: Console) -> int:
        ran.append(command)
        return 0

    monkeypatch.setattr("voxtune.engine.cli.run", run)
    out = tmp_path / "demo"
    make_folder(out)
    make_folder_of(out / "study", "study")
    (out / "study" / "earlier").touch()
    demo(config.Demo(out, overwrite=True), Console(markup=False, width=None))
    assert len(ran) == len(COMMANDS)  # all of which are understood
    study = ran[-1]
    assert isinstance(study, config.Study)
    phantoms, finetune = (
        next(each for each in ran if isinstance(each, kind))
        for kind in (config.Phantom, config.Finetune)
    )
    assert isinstance(phantoms, config.Phantom)
    assert isinstance(finetune, config.Finetune)
    assert study.data == finetune.subjects == str(phantoms.out_dir / "subjects.csv")
    assert study.model == finetune.model_dir
    assert phantoms.test >= 8
    assert not (out / "study").exists()  # what an earlier one left is no part of it
    assert capsys.readouterr().out.strip().endswith(f"{out}/study/figures/violins.png")
