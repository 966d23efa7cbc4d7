"""Names as plots show them, and plots as files."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from voxtune.engine.plots import Style, new_figure, save_plot, shown_names, wrapped
from voxtune.models.errors import InputError


def test_long_names_lose_their_middle_and_stay_different() -> None:
    names = ["short", "x" * 30, f"{'x' * 14}y{'x' * 15}", "a\x00\u202eb"]
    short, *alike, odd = shown_names(names, 10)
    assert (short, odd) == ("short", "a\ufffd\ufffdb")
    assert alike == ["2: xxxxx…xxxx", "3: xxxxx…xxxx"]
    assert shown_names(["0123456789"], 10) == ["0123456789"]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("random", ["random"]),
        ("random-matched", ["random-", "matched"]),
        ("a_b_c_d_e_f", ["a_b_c_d_", "e_f"]),
        ("abcdefghijkl", ["abcdefgh", "ijkl"]),
        ("重重重重重", ["重重重重", "重"]),
        ("", [""]),
    ],
)
def test_names_are_broken_where_they_may_be(name: str, lines: list[str]) -> None:
    assert wrapped(name, 8).split("\n") == lines


def test_styles_differ_in_grey_one_by_one() -> None:
    looks = {(style.marker, style.dashes) for style in map(Style.of, range(36))}
    assert len(looks) == 36


def test_styles_differ_at_a_glance() -> None:
    """In colour or dashes, as long as there are such."""
    looks = {(style.colour, style.dashes) for style in map(Style.of, range(28))}
    assert len(looks) == 28


def test_a_png_is_below_its_limit_at_whatever_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voxtune.engine.plots.MAX_BYTES", 60_000)
    figure = new_figure(4, 3)
    figure.subplots().imshow(np.random.default_rng(0).random((400, 400)), aspect="auto")
    save_plot(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 60_000
    assert 100 < imread(tmp_path / "a.png").shape[1] < 600


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.svg cannot be written"):
        save_plot(new_figure(2, 2), tmp_path / "no" / "a.svg")
