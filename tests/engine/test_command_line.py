"""A command as a person would type it: it means the same, and tells nothing of the machine."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from voxtune.engine import cli
from voxtune.engine.command_line import (
    finetune_command,
    shown_command,
    shown_value,
    study_command,
    without_folders,
)
from voxtune.engine.config import Finetune, Study
from voxtune.engine.recipes import RECIPES

PLACES = (Path("my model"), "gs://bucket/store", Path("runs/1"))


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """What the command line of the program makes of a line."""

    def parse(line: str) -> object:
        found: list[object] = []
        monkeypatch.setattr(cli, "run", lambda command, _: found.append(command) or 0)
        program, *arguments = shlex.split(line)
        assert program == "voxtune"
        assert cli.main(arguments) == 0
        return found[0]

    return parse


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "steps": 5,
            "block": (8, 9, 10),
            "batch": 3,
            "nonfinite": -1.5,
            "class_weights": (1.0, 0.1 + 0.2),
            "rule": ("encoder*/* freeze", "*/bias learning_rate=2"),
            "labels": ("0=background", "1=it's é"),
            "keep": (1, 2),
            "rename": ("a=",),
            "trunk_lr": 1e-5,
            "weight_decay": 0.0,
            "init_from": Path("other"),
            "patience": 2,
            "deterministic": True,
            "profile": "1:2",
            "map": "pmap",
        },
        {"block": "full", **RECIPES["nobrainer"]},
        {**RECIPES["nobrainer"], "l2": 0.0, "head": "new", "warmup": None, "clip": 1.0},
        {"recipe": "nobrainer"},
    ],
)
def test_a_run_comes_back(options: dict, parsed: Callable[[str], object]) -> None:
    run = Finetune(*PLACES, **options)
    assert parsed(finetune_command(run)) == run


def test_only_what_differs_is_said() -> None:
    run = Finetune(Path("m"), "s.csv", Path("r"), steps=5, **RECIPES["nobrainer"])
    assert finetune_command(run) == "voxtune finetune m s.csv r --recipe nobrainer --steps 5"


def test_a_study_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parsed: Callable[[str], object]
) -> None:
    """What its design says is not said again."""
    monkeypatch.chdir(tmp_path)
    design = Path("design.toml")
    design.write_text("[study]\nsteps = 7\nseeds = 2\n")
    study = Study(
        model=Path("m"),
        data="s.csv",
        out=Path("o"),
        design=design,
        steps=7,
        seeds=3,
        sizes="2,3",
        tune="1,3",
    )
    line = study_command(study, {"steps": 7, "seeds": 2})
    assert "--steps" not in line
    assert parsed(line) == study


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/anna/scans/subjects.csv", "subjects.csv"),
        ("--init-from=/home/anna/model", "--init-from=model"),
        (r"C:\Users\anna\model", "model"),
        ("scans/subjects.csv", "scans/subjects.csv"),
        ("gs://bucket/store", "gs://bucket/store"),
        ("https://anna:secret@host/store", "https://host/store"),
        ("encoder*/* freeze", "encoder*/* freeze"),
        ("/", "."),
    ],
)
def test_folders_of_a_machine_are_left_out(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_in_commands_too() -> None:
    command = "/home/anna/.venv/bin/voxtune finetune /home/anna/m 'a b.csv' r --rule 'a/* freeze'"
    assert shown_command(command) == "voxtune finetune .../m 'a b.csv' r --rule 'a/* freeze'"
    assert shown_command("voxtune study --out=/home/anna/s") == "voxtune study --out=.../s"
    assert shown_command("") == ""
    assert shown_command("it's") == "it's"
    run = Finetune(Path("/home/anna/m"), "/home/anna/s.csv", Path("/home/anna/-r"), profile="1:2")
    assert "anna" not in finetune_command(run)
    assert " .../m .../s.csv .../-r " in finetune_command(run)
    assert " ./-r" in finetune_command(Finetune(Path("m"), "s.csv", Path("-r")))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.001, "0.001"),
        (1.0, "1"),
        (0.00012345678, "0.00012345678"),
        (1e-05, "1e-05"),
        (True, "yes"),
        (None, "none"),
        ((), "none"),
        ((1, 0.5), "1 0.5"),
        (Path("/home/anna/m"), "m"),
    ],
)
def test_values_are_short_and_exact(value: object, shown: str) -> None:
    assert shown_value(value) == shown
