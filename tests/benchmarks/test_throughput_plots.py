"""Plots of throughput: what is drawn where, and that files stay small."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from voxtune.benchmarks.comparisons import figures_of
from voxtune.benchmarks.floor_plots import MOST_NETS, against_floors
from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.roofline import Reach, reaches
from voxtune.benchmarks.throughput_plots import (
    MOST_BARS,
    MOST_CASES,
    Drawing,
    against_peers,
    nothing,
    over_revisions,
    save_drawings,
    short_revision,
)
from voxtune.engine.plots import MAX_BYTES, new_figure

Make = Callable[..., Entry]


def drawn(drawing: Drawing | None) -> list[Axes]:
    """The panels of a drawing."""
    assert drawing is not None
    figure: Canvas = new_figure(10, drawing.height)
    drawing.draw(figure)
    return list(figure.axes)


def of_network(reach: Reach, network: str) -> Reach:
    """The same, said to be of another network."""
    measured = reach.entry.measurement
    settings = {**measured.settings, "network": network}
    entry = replace(reach.entry, measurement=replace(measured, settings=settings))
    return replace(reach, entry=entry)


def texts(axes: Axes) -> str:
    return " ".join(each.get_text() for each in axes.texts)


def test_ratios_shares_and_rates_over_revisions(entry: Make) -> None:
    entries = []
    for number in range(3):
        revision = f"{number}bcdef0123"
        entries.append(entry(seconds=(2.0 - number / 2,) * 3, revision=revision))
        entries.append(entry("PyTorch", seconds=(3.0,) * 3, revision=revision))
    ratios, shares, rates, products, copies, rest = drawn(over_revisions(figures_of(entries)))
    assert ratios.get_yscale() == "log"
    assert ratios.containers[0].lines[0].get_ydata().tolist() == pytest.approx([1.5, 2, 3])
    assert shares.containers[0].lines[0].get_ydata().tolist() == pytest.approx([10, 40 / 3, 20])
    assert rates.containers[0].lines[0].get_ydata().tolist() == pytest.approx([0.5, 2 / 3, 1])
    assert [each.get_text() for each in rates.get_xticklabels()] == [
        "0bcdef0",
        "1bcdef0",
        "2bcdef0",
    ]
    assert ratios.get_title(loc="left") == "train: net, 16³, batch 1, float32"
    assert products.containers[0].lines[0].get_ydata().tolist() == [100] * 3
    assert copies.containers[0].lines[0].get_ydata().tolist() == [10] * 3
    assert not rest.axison


def test_a_revision_with_changes_is_another() -> None:
    assert short_revision("0123456789abcdef") == "0123456"
    assert short_revision("0123456789abcdef-dirty") == "0123456+"


def test_quartiles_are_drawn(entry: Make) -> None:
    entries = [entry(seconds=(1.0, 2.0, 4.0), floors=())]
    _, _, rates, *_ = drawn(over_revisions(figures_of(entries)))
    (bars,) = rates.containers[0].lines[2]
    (((_, low), (_, high)),) = bars.get_segments()
    assert (low, high) == pytest.approx((1 / 3, 1 / 1.5))


def test_a_line_ends_where_the_version_of_a_peer_does(entry: Make) -> None:
    entries = []
    for number, version in enumerate(("1", "1", "2")):
        entries += [entry(revision=str(number))]
        entries += [entry("PyTorch", seconds=(3.0,) * 3, revision=str(number), version=version)]
    ratios, *_ = drawn(over_revisions(figures_of(entries)))
    lines = [each.lines[0] for each in ratios.containers]
    assert [each.get_xdata().tolist() for each in lines] == [[0, 1], [2]]
    assert len({each.get_color() for each in lines}) == 1
    legend = ratios.get_legend()
    assert legend is not None
    assert [each.get_text() for each in legend.get_texts()] == ["PyTorch"]


def test_what_was_not_measured_is_said(entry: Make) -> None:
    found = entry(floors=(), products={}, copy=None)
    ratios, shares, _, products, copies, _ = drawn(over_revisions(figures_of([found])))
    assert texts(ratios) == "no peer measured"
    assert {texts(each) for each in (shares, products, copies)} == {"not measured"}


def test_cases_that_were_measured_most_often_are_drawn(entry: Make) -> None:
    rare = [entry(case=f"rare {number}") for number in range(MOST_CASES + 3)]
    often = [entry(case="often", revision=each) for each in "abc"]
    panels = drawn(over_revisions(figures_of([*rare, *often])))
    assert len(panels) == 3 * (MOST_CASES + 1)
    assert "train: often" in [each.get_title(loc="left") for each in panels]


def test_cases_are_chosen_of_each_machine(entry: Make) -> None:
    """Or one that was measured often would leave no place to another."""
    often = [entry(case=str(n), revision=each) for n in range(MOST_CASES + 1) for each in "ab"]
    other = entry(machine="H200", case="rare")
    panels = drawn(over_revisions(figures_of([*often, other])))
    assert len(panels) == 3 * (MOST_CASES + 1 + 2)
    assert "train: rare" in [each.get_title(loc="left") for each in panels]


def test_each_machine_has_revisions_of_its_own(entry: Make) -> None:
    entries = [entry(revision="a"), entry(revision="b"), entry(machine="H200", revision="b")]
    panels = drawn(over_revisions(figures_of(entries)))
    assert len(panels) == 3 * 4
    assert panels[0].get_xlim() == (-0.5, 1.5)
    assert panels[6].get_xlim() == (-0.5, 0.5)


@pytest.mark.parametrize("draw", [over_revisions, against_peers])
def test_nothing_to_draw(entry: Make, draw: Callable) -> None:
    broken = entry(seconds=(), problem="out of memory")
    for entries in ([], [broken], [entry(suite="data")]):
        assert draw(figures_of(entries)) is None
    assert against_floors([]) is None
    (axes,) = drawn(nothing())
    assert "has been measured yet" in texts(axes)


def test_bars_begin_at_one(entry: Make) -> None:
    entries = [
        entry(seconds=(1.0,) * 5),
        entry("PyTorch", seconds=(0.5,) * 5),
        entry("Keras", seconds=(3.0, 3.5, 4.0, 4.5, 5.0)),
    ]
    (axes,) = drawn(against_peers(figures_of(entries)))
    assert axes.get_xscale() == "log"
    slower, faster = (each.patches[0] for each in axes.containers)
    assert (slower.get_x(), slower.get_x() + slower.get_width()) == (1, 0.5)
    assert (faster.get_x(), faster.get_x() + faster.get_width()) == (1, 4)
    assert slower.get_hatch()
    assert not faster.get_hatch()
    names = [each.get_text() for each in axes.get_yticklabels()]
    assert names == ["", "PyTorch", "Keras"]
    assert "4.00 (noisy)" in texts(axes)
    low, high = axes.get_xlim()
    assert low < 0.5 < 4.5 < high


def test_not_more_bars_than_can_be_read(entry: Make) -> None:
    entries = [entry(), *(entry(f"peer {number}") for number in range(MOST_BARS + 5))]
    (axes,) = drawn(against_peers(figures_of(entries)))
    assert len(axes.containers) == MOST_BARS
    entries += [entry(machine="H200"), entry("peer", machine="H200")]
    (axes,) = drawn(against_peers(figures_of(entries)))
    assert len(axes.containers) == MOST_BARS + 1


def test_a_step_lies_below_the_roof(entry: Make) -> None:
    (reach,) = reaches([entry(seconds=(1.0,) * 3, copy=1e9)])
    roof, layers = drawn(against_floors([reach] * 1))
    line, points, measured, best = roof.lines
    assert line.get_ydata().max() == pytest.approx(100)  # GFLOP/s of the floors
    intensities, rates = points.get_data()
    assert rates == pytest.approx([min(each, 100) for each in intensities])  # times 1 GB/s
    assert measured.get_ydata()[0] < best.get_ydata()[0] <= 100
    assert measured.get_xdata() == best.get_xdata()
    assert f"{reach.times.median:.3g}"[:3] in roof.get_title(loc="left")
    names = [each.get_text() for each in layers.get_yticklabels()]
    assert names == [*(f"block{number}" for number in range(1, 10)), "head"]
    widths = [each.patches[0].get_width() for each in layers.containers]
    assert sum(widths) == pytest.approx(1000 * reach.floor)


def test_not_more_networks_than_can_be_read(entry: Make) -> None:
    (reach,) = reaches([entry()])
    assert len(drawn(against_floors([reach] * 2))) == 2
    others = [of_network(reach, str(number)) for number in range(MOST_NETS)]
    assert len(drawn(against_floors([reach, *others]))) == 2 * MOST_NETS


def test_a_picture_of_all_is_small(tmp_path: Path, entry: Make) -> None:
    """Names that could be taken for mathematics are shown as they are."""
    case = "a $case_{} with\\dollars$"
    entries = [entry(case=case), entry("Py$T$orch", case=case, seconds=(3.0,) * 3)]
    figures = figures_of(entries)
    drawings = [over_revisions(figures), against_peers(figures), against_floors(reaches(entries))]
    path = tmp_path / "throughput.png"
    save_drawings([each for each in drawings if each is not None], path)
    assert 10_000 < path.stat().st_size < MAX_BYTES
    save_drawings([each for each in drawings if each is not None], path.with_suffix(".svg"))
    assert case in path.with_suffix(".svg").read_text()


def test_figures_at_the_ends_of_what_the_history_takes_can_be_drawn(
    tmp_path: Path, entry: Make
) -> None:
    short, long = (1e-9,) * 3, (1e9,) * 3
    entries = [
        entry(seconds=short, floors=(1.0,) * 3, copy=1e30, products={"float32": 1e30}),
        entry("PyTorch", seconds=long, copy=1e30, products={"float32": 1e30}),
        entry(seconds=long, floors=(1e30,) * 3, copy=1.0, case="b", revision="b"),
        entry("PyTorch", seconds=short, copy=1.0, case="b", revision="b"),
    ]
    assert [Entry.of(each.to_json()) for each in entries] == entries
    figures = figures_of(entries)
    drawings = [over_revisions(figures), against_peers(figures), against_floors(reaches(entries))]
    save_drawings([each for each in drawings if each is not None], tmp_path / "far.svg")
