"""The plot of a run, from logs that are made up."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from voxtune.engine import run_account, run_plots
from voxtune.engine.config import Finetune
from voxtune.engine.run_account import Account
from voxtune.engine.run_plots import draw_training

Entry = dict[str, Any]


def account(entries: Sequence[Entry]) -> Account:
    known = [run_account._known(each) for each in entries if run_account._is_known(each)]
    config = Finetune(Path("m"), "s.csv", Path("r"))
    return Account("r", config, {}, {}, {}, known, "finished")


def train(step: int, loss: float | None = 1.0, **rates: float | None) -> Entry:
    return {"event": "train", "step": step, "loss": loss, "learning_rates": rates}


def validation(step: int, **dice: float | None) -> Entry:
    return {"event": "validation", "step": step, "dice": dice}


def drawn(entries: Sequence[Entry], panel: int) -> dict[str, dict[int, float]]:
    """Label → step → value, of the lines of a panel."""
    axes = run_plots._training(account(entries)).axes[panel]
    return {
        str(line.get_label()): dict(zip(*np.asarray(line.get_xydata()).T.tolist(), strict=True))
        for line in axes.lines
    }


def said(entries: Sequence[Entry]) -> list[list[str]]:
    return [
        [each.get_text() for each in axes.texts]
        for axes in run_plots._training(account(entries)).axes
    ]


def test_loss_dice_and_rates_are_drawn() -> None:
    entries = [
        {"event": "compiled", "step": 0, "seconds": 1.0},
        train(10, 1.5, trunk=1e-4, head=1e-3),
        validation(10, left=0.5, right=0.7, mean=0.6),
        train(20, 1.0, trunk=0.0, head=1e-4),
        validation(20, left=0.6, right=0.8, mean=0.7),
    ]
    (loss,) = drawn(entries, 0).values()
    assert loss == {10: 1.5, 20: 1.0}
    assert drawn(entries, 1) == {
        "mean of classes": {10: 0.6, 20: 0.7},
        "left": {10: 0.5, 20: 0.6},
        "right": {10: 0.7, 20: 0.8},
    }
    assert drawn(entries, 2) == {"trunk": {10: 1e-4, 20: 0.0}, "head": {10: 1e-3, 20: 1e-4}}
    assert said(entries) == [[], [], []]


def test_a_resumed_run_has_each_step_once_in_order() -> None:
    entries = [train(10, 3.0), train(20, 2.0), train(30, 9.0), train(20, 1.0), train(30, 0.5)]
    (loss,) = drawn(entries, 0).values()
    assert list(loss.items()) == [(10, 3.0), (20, 1.0), (30, 0.5)]


def test_what_is_null_or_no_number_is_a_gap() -> None:
    entries = [train(10, 3.0, head=1e-3), train(20, None, head=None), train(30, 1.0)]
    (loss,) = drawn(entries, 0).values()
    assert [math.isnan(value) for value in loss.values()] == [False, True, False]
    (rate,) = drawn(entries, 2).values()
    assert [math.isnan(value) for value in rate.values()] == [False, True, True]
    odd = [*entries, {"event": "train"}, {"step": 4}, {"event": "train", "step": 40, "loss": "x"}]
    assert list(next(iter(drawn(odd, 0).values()))) == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("entries", "panels"),
    [
        ([], ["not logged yet", "not validated yet", "not logged yet"]),
        ([train(5, head=1e-3)], [None, "not validated yet", None]),
        ([validation(5, lesion=None)], ["not logged yet", "not validated yet", "not logged yet"]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_missing_is_said(
    entries: list[Entry], panels: list[str | None], tmp_path: Path
) -> None:
    draw_training(account(entries), tmp_path / "a.png")
    assert said(entries) == [[text] if text else [] for text in panels]


def test_of_many_classes_the_best_and_the_worst_are_named() -> None:
    many = {f"class {n}": 0.1 + 0.02 * n for n in range(30)}
    axes = run_plots._training(account([validation(5, **many, mean=0.4)])).axes[1]
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["mean of classes", "class 29", "class 0", "28 others"]
    assert len(axes.lines) == 31


def test_networks_that_give_images_have_an_error() -> None:
    entries = [{"event": "validation", "step": 5, "mean_absolute_error": {"mean": 0.25}}]
    assert run_plots._training(account(entries)).axes[1].get_ylabel() == "mean absolute error"
    assert drawn(entries, 1) == {"mean": {5: 0.25}}


def test_skipped_steps_are_marked() -> None:
    entries = [train(10), train(20), {"event": "skipped", "step": 13, "subjects": ["a"]}]
    assert list(drawn(entries, 0)["step skipped"]) == [13]


def test_a_line_alone_is_named_too() -> None:
    entries = [train(10, head=1e-3), validation(10, lesion=0.5)]
    legends = [axes.get_legend() for axes in run_plots._training(account(entries)).axes]
    names = [[text.get_text() for text in each.get_texts()] for each in legends if each]
    assert names == [["lesion"], ["head"]]


def test_lines_differ_without_colours() -> None:
    axes = run_plots._training(
        account([validation(5, **{f"class {n}": 0.5 for n in range(8)})])
    ).axes[1]
    looks = {(str(x.get_marker()), str(x._unscaled_dash_pattern)) for x in axes.lines}
    assert len(looks) == 8


def test_names_are_text_and_files_are_the_same_again(tmp_path: Path) -> None:
    names = {"$x_1$": 0.5, "<i>&--\x00": 0.6, "x" * 300: 0.7}
    for name in "ab":
        entries = [train(10, head=1e-3), validation(10, **names)]
        draw_training(account(entries), tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    page = ElementTree.parse(tmp_path / "a.svg")
    text = "".join("".join(each.itertext()) for each in page.iter() if each.tag[-4:] == "text")
    assert "$x_1$" in text
    assert "<i>&--\ufffd" in text
    assert len(text) < 500


def test_nothing_is_cut_off(tmp_path: Path) -> None:
    """Beside long names, and numbers of five signs."""
    names = {f"{'left ' * 9}{n}": 0.5 + n / 1000 for n in range(8)}
    entries = [train(10, 1000.25, head=1e-3), validation(10, **names)]
    draw_training(account(entries), tmp_path / "a.png")
    pixels = imread(tmp_path / "a.png")[..., :3]
    for edge in (pixels[:, :4], pixels[:, -4:], pixels[:4], pixels[-4:]):
        assert edge.min() > 0.99
