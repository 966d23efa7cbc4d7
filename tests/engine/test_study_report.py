"""The page of a study: all that was found is on it, and how it was done."""

import html
import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voxtune.engine.arms import Design, design_options, trial_of
from voxtune.engine.config import Study
from voxtune.engine.findings import Cell, Comparison, Course, Findings, Reach, Worth
from voxtune.engine.forgetting import Forgetting
from voxtune.engine.outcomes import Outcome
from voxtune.engine.sentences import answer
from voxtune.engine.study_report import write_report

ODD = "<script>alert(1)</script>"
DESIGN = """
[study]
sizes = [2, 4]
seeds = 2
steps = 7
tune = [0.3, 1, 3]
[arms.pretrained]
[arms.random]
init = "random"
[arms.other]
model = "{models}/older"
rule = ["*/bias learning_rate=2"]
sizes = [2]
"""
SIZES = {"pretrained": (2, 4), "random": (2, 4), "other": (2,)}
FACTORS = {"pretrained": 3.0, "random": 1.0, "other": 1.0}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="80" height="40"></svg>'


def findings() -> Findings:
    """Each number is another one, so that it can be found on the page."""
    cells = [
        Cell(
            arm, size, 2, 9, 0.811, 0.712, 0.913, 0.114, 0.815, 0.716, 0.917, 0.118, ODD, 5, 37,
            0.019, 2.31, 4,
        )
        for size in (2, 4)
        for arm in SIZES
        if size in SIZES[arm]
    ]  # fmt: skip
    comparison = Comparison(
        2,
        "pretrained",
        "random",
        9,
        43,
        0.771,
        0.65,
        0.121,
        -0.022,
        0.123,
        45.0,
        0.024,
        0.00002,
        8,
        1,
        2,
        0.56,
        0.47,
        0.68,
        0.026,
        0.052,
    )
    courses = [
        Course("pretrained", 2, (3, 7), (0.5, 0.631), (7,), -0.032, True),
        Course("random", 2, (7,), (0.632,), (7,), math.nan, False),
    ]
    reaches = [
        Reach(2, "pretrained", "random", 0.641, 4.4, 7),
        Reach(4, "pretrained", "random", 0.642, math.nan, 7),
        Reach(8, "pretrained", "random", math.nan, math.nan, 7),  # of different ends
    ]
    worths = [
        Worth(2, "pretrained", "random", math.inf, 3.25, math.inf),
        Worth(4, "pretrained", "random", 2, 2, 2.75),
    ]
    said = ["It helped & how.", f"On {ODD} it rests.", "A third thing."]
    return Findings(cells, [comparison], courses, reaches, worths, said)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The page of a study of three arms, in folders of a machine."""
    folder = tmp_path / "home" / "anna"
    folder.mkdir(parents=True)
    file = folder / "design.toml"
    file.write_text(DESIGN.format(models=folder))
    study = Study(
        model=folder / "brain",
        data=str(folder / "subjects.csv"),
        out=folder / "study",
        design=file,
        **design_options(file),
    )
    design = Design.of(study)
    arms = {arm.name: arm for arm in design.arms}
    outcomes, documents = [], dict[str, dict[str, Any]]()
    for arm, sizes in SIZES.items():
        for number, (size, seed) in enumerate((size, seed) for size in sizes for seed in (0, 1)):
            dice = {"carla": 0.421 + number / 100, ODD: 0.5}
            outcome = Outcome(arm, size, seed, FACTORS[arm], dice, {}, [], 3600.0 + number, 60.0)
            outcomes.append(outcome)
            name = trial_of(study, arms[arm], size, seed, FACTORS[arm]).name
            documents[name] = {
                "data": "da7a" * 16,
                "weights": f"{number}" * 64,
                "train": [f"{ODD}{size}-{seed}"],
                "validation": ["berta"],
                "versions": {"jax": "0.10.2", "voxtune": 3},
                "revision": "abc-dirty",
                "devices": "1 x cpu",
            }
    documents["random_n4_seed1"] = {"versions": [], "train": 5}  # of a run that was edited
    tried = folder / "study" / "runs" / "random_n2_seed0_x3"
    tried.mkdir(parents=True)
    log = '{"event": "compiled", "step": 0, "seconds": 120}\n'
    log += '{"event": "train", "step": 3600, "examples_per_second": 1}\n'
    (tried / "metrics.jsonl").write_text(log)
    config = {"folder": "", "command": "", "options": {}, "versions": {}, "classes": []}
    config |= {"batch": 2, "block": [8, 8, 8], "train": [], "validation": []}
    (tried / "config.json").write_text(json.dumps(config))
    figures = {name: folder / f"{name}.svg" for name in ("violins", "learning_curve", "courses")}
    for path in figures.values():
        path.write_text(SVG)
    write_report(
        folder / "report.html",
        study,
        design,
        findings(),
        outcomes,
        documents,
        figures=figures,
        tuned={("random", 2): {0.3: 0.551, 1.0: 0.552, 3.0: -math.inf}},
        forgetting=[Forgetting("pretrained", 2, ODD, 2, 9, 0.951, 0.752, -0.199, -0.253, -0.154)],
        inputs={"label map": "1abe1" * 12},
    )
    return folder / "report.html"


def test_all_that_was_found_is_there(made: Path) -> None:
    page = html.unescape(made.read_text("utf-8"))
    plain = re.sub(r"<[^>]+>", " ", page)
    for told in (
        *("It helped & how.", f"On {ODD} it rests.", "A third thing."),
        *("0.811", "0.712 to 0.913", "0.114", "0.815", "0.716 to 0.917", "0.118", "0.019", "2.31"),
        *("+0.121", "\N{MINUS SIGN}0.022 to 0.123", "0.024", "<0.001", "8 of 9", "1 of 2"),
        *(
            "0.56",
            "0.47 to 0.68",
            "0.631",
            "\N{MINUS SIGN}0.032",
            "0.641",
            "never",
            "0.951",
            "0.752",
        ),
        *("more than 4", "3.2 to more than 4", "at most 2", "at most 2 to 2.8"),
        *("\N{MINUS SIGN}0.199", "\N{MINUS SIGN}0.253 to \N{MINUS SIGN}0.154"),
        *("Wilcoxon 1945", "Holm 1979", "Hall 1988", "Efron 1981", "9 subjects of the split test"),
        *("12 h 00 min of training steps and 12 min of comp", "2 h 00 min of steps were of 1 run"),
        *("0.026", "0.052", "1abe1" * 12, "0.426", "folders are cut"),
        *(">37</td>", ">43</td>", "Dice 0.771 against 0.650"),
        *("0.551", "0.552", "training diverged", "--init random", "da7a" * 4, "berta", "0.10.2"),
        *("pretrained_n4_seed1_x3", "abc-dirty", "wider --tune"),
    ):
        assert told in page, told
        assert told in plain or "<" in told, told


def test_it_begins_with_the_answer(made: Path) -> None:
    page = html.unescape(made.read_text("utf-8"))
    assert "<h1>Did transfer help?</h1>" in page
    lead = re.search(r'<div class="lead">\n(.*?)\n</div>', page, re.DOTALL)
    assert lead
    first, about = lead[1].splitlines()
    assert first.startswith("<p>With 2 scans, no difference between pretrained and random was")
    assert about.startswith("<p>Compared are networks of 3 arms, pretrained, random, other")
    assert "Holm-corrected for 1" in about


def test_what_cannot_be_told_is_not_denied(made: Path) -> None:
    cells = re.findall(r"<th scope=.row.>random</th><td>(.*?)</td>", made.read_text("utf-8"))
    assert "\N{EN DASH}" in cells
    assert "no" not in cells
    assert made.read_text("utf-8").count(">never<") == 1


def test_it_tells_nothing_of_the_machine(made: Path) -> None:
    page = made.read_text("utf-8")
    assert "anna" not in page.replace("pretrained", "")
    assert ODD not in page
    assert html.escape(ODD) in page


def test_commands_can_be_given(made: Path) -> None:
    page = html.unescape(made.read_text("utf-8"))
    lines = re.findall(r"voxtune (?:study|finetune) [^<\n]+", page)
    given = [shlex.split(each)[1:] for each in lines]
    study = "study --model .../brain --data .../subjects.csv --out .../study"
    assert given[0] == [*study.split(), "--design", ".../design.toml"]
    run = ".../subjects.csv .../pretrained_n2_seed0_x3 --steps 7 --trunk-lr 0.003 --head-lr"
    assert given[1][:8] == ["finetune", ".../brain", *run.split()[:6]]
    assert given[1][-4:] == ["--train-subjects", "2", "--subject-seed", "0"]
    assert given[3][:4] == [
        "finetune",
        *(f".../{name}" for name in ("older", "subjects.csv", "other_n2_seed0")),
    ]
    assert "*/bias learning_rate=2" in given[3]


def test_figures_say_what_they_show(made: Path) -> None:
    page = html.unescape(made.read_text("utf-8"))
    alts = re.findall(r'<img alt="([^"]*)"', page)
    assert len(alts) == 3  # of a fourth there is no file
    assert "pretrained, 2 scans: median 0.815" in alts[0]
    assert "random, 4 scans: 0.811 (0.712 to 0.913)" in alts[1]
    assert "pretrained, 2 scans: 0.631 after step 7" in alts[2]


def test_a_browser_shows_it(made: Path, chromium: Callable[..., str]) -> None:
    dom = chromium(made, "--dump-dom")
    assert "<script" not in dom
    assert not re.search(r'(?:src|href)="(?!data:|#)', dom)
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", dom)
    assert headings == [
        *("In words", "Dice", "pretrained against the others", "Data efficiency"),
        *("Training curves", "Forgetting", "How it was done"),
    ]


def test_a_study_that_compared_nothing(tmp_path: Path) -> None:
    study = Study(model=Path("m"), data="s.csv", out=tmp_path, sizes="2", split="validation")
    nothing = Findings([], [], [], [], [], answer([], []))
    write_report(tmp_path / "report.html", study, Design.of(study), nothing, [], {})
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count("Nothing was compared") == 1
    assert "or chosen by" not in page  # the split validation may have chosen
    assert "<img" not in page


def test_arms_that_start_alike_are_no_transfer(tmp_path: Path) -> None:
    file = tmp_path / "design.toml"
    file.write_text('[arms.all]\n[arms.frozen]\nfreeze_until = "head"\n')
    study = Study(model=Path("m"), data="s.csv", out=tmp_path, sizes="2", design=file)
    nothing = Findings([], [], [], [], [], [])
    write_report(tmp_path / "report.html", study, Design.of(study), nothing, [], {})
    assert "<h1>Arms compared</h1>" in (tmp_path / "report.html").read_text("utf-8")
