"""Spreads, rates, shares of the peak and ratios, with answers worked out by hand."""

import dataclasses

import pytest

from voxtune.benchmarks.measurement import Measurement, Spread, Work, ratio

OWN = Measurement("train", "case", "voxtune", seconds=(2.0, 4.0), work=Work(8, 800, 100))


def test_a_spread_of_several_turns() -> None:
    spread = Spread.of([5, 1, 3, 2, 4])
    assert spread == Spread(3, 2, 4, 5)
    assert spread.share == pytest.approx(2 / 3)
    assert spread.noisy


def test_a_spread_of_one_turn_has_no_width() -> None:
    assert Spread.of([7]) == Spread(7, 7, 7, 1)
    assert not Spread.of([7]).noisy


@pytest.mark.parametrize(("high", "noisy"), [(1.09, False), (1.11, True)])
def test_noise_begins_above_a_tenth(high: float, noisy: bool) -> None:
    assert Spread(1, 1, high, 5).noisy == noisy


def test_a_spread_round_nothing_is_not_divided_by_it() -> None:
    assert Spread.of([0, 0, 0]).share == 0


def test_rates_are_of_the_median() -> None:
    assert OWN.took == Spread(3, 2.5, 3.5, 2)
    assert OWN.rate(OWN.work.blocks) == pytest.approx(8 / 3)
    assert OWN.rate(0) is None
    assert dataclasses.replace(OWN, seconds=()).rate(8) is None


def test_the_share_of_the_peak_is_taken_turn_by_turn() -> None:
    """A turn in which the machine was half as fast has the same share."""
    found = dataclasses.replace(OWN, floors=(100.0, 50.0)).peak_share
    assert found == Spread(0.5, 0.5, 0.5, 2)


@pytest.mark.parametrize(
    "lacks", [{"floors": ()}, {"work": Work(8)}, {"seconds": (), "floors": ()}]
)
def test_without_floors_or_flops_there_is_no_share(lacks: dict) -> None:
    measured = dataclasses.replace(OWN, floors=(100.0, 50.0))
    assert dataclasses.replace(measured, **lacks).peak_share is None


def test_a_ratio_is_taken_turn_by_turn() -> None:
    """What slows one turn of both changes nothing; the medians alone would give 1.67."""
    own = dataclasses.replace(OWN, seconds=(1.0, 3.0, 10.0))
    peer = dataclasses.replace(OWN, program="peer", seconds=(2.0, 5.0, 20.0))
    found = ratio(own, peer)
    assert found is not None
    assert found.median == 2
    assert (found.low, found.high) == pytest.approx(((5 / 3 + 2) / 2, 2))


def test_a_ratio_needs_as_many_turns_of_both() -> None:
    assert ratio(OWN, dataclasses.replace(OWN, seconds=())) is None
    with pytest.raises(ValueError, match="2 and 1 turns"):
        ratio(OWN, dataclasses.replace(OWN, seconds=(1.0,)))
