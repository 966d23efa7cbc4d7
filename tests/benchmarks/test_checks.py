"""`--check`: what has fallen, with known answers."""

from collections.abc import Callable, Sequence

import pytest

from voxtune.benchmarks.checks import fallen
from voxtune.benchmarks.history import Entry
from voxtune.models.errors import InputError

Make = Callable[..., Entry]
# Factors of times: of several turns, whose quartiles are little or much apart.
NARROW, WIDE = (0.99, 0.995, 1.0, 1.005, 1.01), (0.6, 0.8, 1.0, 1.2, 1.4)


def times(seconds: float, spread: Sequence[float] = NARROW) -> tuple[float, ...]:
    return tuple(seconds * each for each in spread)


@pytest.fixture
def run(entry: Make) -> Callable[..., list[Entry]]:
    """What is measured in one run: voxtune, and a peer that always takes 2 s a turn.

    Floors are as fast as voxtune, so that its share of the peak stays.
    """

    def make(
        seconds: float, spread: Sequence[float] = NARROW, version: str = "1.0", **fields: object
    ) -> list[Entry]:
        own = times(seconds, spread)
        floors = tuple(1e11 / each for each in own)
        peer = entry("PyTorch", seconds=(2.0,) * len(own), version=version, **fields)
        return [entry(seconds=own, floors=floors, **fields), peer]

    return make


def test_a_fall_of_a_ratio_is_told(run: Callable) -> None:
    before = run(1.0, revision="good", date="2026-01-01")
    (sentence,) = fallen(before, run(1 / 0.85))
    assert sentence == (
        "train, net, 16³, batch 1, float32: voxtune is 1.70 times (1.69 to 1.71) as fast as "
        "PyTorch; with good of 2026-01-01 it was 2.00 times (1.99 to 2.01)."
    )


@pytest.mark.parametrize(
    ("seconds", "spread"),
    [
        (1 / 0.95, NARROW),  # 5 %
        (1 / 0.85, WIDE),  # 15 %, and the quartiles are 40 % apart
        (0.5, NARROW),  # faster
    ],
)
def test_what_has_not_fallen(run: Callable, seconds: float, spread: Sequence[float]) -> None:
    assert fallen(run(1.0), run(seconds, spread)) == []


def test_a_wide_spread_of_the_past_is_no_bar(run: Callable) -> None:
    assert fallen(run(1.0, WIDE), run(1 / 0.85)) == []


def test_the_best_of_the_past_is_the_bar(run: Callable) -> None:
    before = [*run(1.0, revision="best"), *run(1.3, revision="last")]
    (sentence,) = fallen(before, run(1.25))
    assert "with best of" in sentence
    assert fallen(run(1.3), run(1.25)) == []


def test_a_fall_of_the_share_of_the_peak_is_told(entry: Make) -> None:
    before = [entry(seconds=times(1.0), revision="good", date="2026-01-01")]
    (sentence,) = fallen(before, [entry(seconds=times(1 / 0.8))])
    assert sentence == (
        "train, net, 16³, batch 1, float32: voxtune reaches 16.0 % (15.9 to 16.1) of the measured "
        "peak; with good of 2026-01-01 it reached 20.0 % (19.9 to 20.1)."
    )


def test_a_machine_that_is_slower_as_a_whole_is_no_fall(entry: Make) -> None:
    slow = entry(seconds=times(2.0), floors=(0.5e11,) * 5)
    assert fallen([entry(seconds=times(1.0))], [slow]) == []


def test_a_peer_of_another_version_is_not_compared(run: Callable) -> None:
    assert fallen(run(1.0), run(1 / 0.85, version="2.0")) == []  # the share of the peak is
    with pytest.raises(InputError, match="finds nothing in the history"):
        fallen(run(1.0)[1:], run(1 / 0.85, version="2.0"))


@pytest.mark.parametrize(
    "other", [{"machine": "2 x cpu"}, {"case": "another"}, {"suite": "predict"}]
)
def test_others_are_not_compared(run: Callable, other: dict[str, str]) -> None:
    for before in ([], run(1.0, **other)):
        with pytest.raises(InputError, match="run once with --history, without --check, first"):
            fallen(before, run(2.0))


def test_a_case_that_voxtune_can_no_longer_do_is_told(entry: Make) -> None:
    broken = entry(seconds=(), problem="out of memory")
    (sentence,) = fallen([entry()], [broken])
    assert sentence.endswith("voxtune has no figures: out of memory.")
    assert fallen([entry()], [entry(), entry("PyTorch", seconds=(), problem="missing")]) == []
    with pytest.raises(InputError):
        fallen([broken], [broken])
