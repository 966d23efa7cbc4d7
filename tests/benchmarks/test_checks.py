"""`--check`: what has fallen, with known answers."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from types import ModuleType

import pytest

from voxtune.benchmarks import data, predict, train
from voxtune.benchmarks.checks import DIFFERS, FEWEST, check
from voxtune.benchmarks.history import Entry
from voxtune.models.errors import InputError

Make = Callable[..., Entry]
# Factors of times: of several turns, whose quartiles are little or much apart.
NARROW, WIDE = (0.99, 0.995, 1.0, 1.005, 1.01), (0.6, 0.8, 1.0, 1.2, 1.4)


def fallen(before: list[Entry], found: list[Entry]) -> list[str]:
    return list(check(before, found).fallen)


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


def test_a_bound_of_a_peer_that_was_stopped_is_a_bar(run: Callable, entry: Make) -> None:
    late = {"seconds": (), "problem": "stopped after 10 s", "values": {"least_ratio": 5.0}}
    known = {"version": "1.0", "revision": "good", "date": "2026-01-01"}
    before = [*run(1.0)[:1], entry("PyTorch", **late, **known)]
    (sentence,) = fallen(before, run(1.0))
    assert sentence.endswith(
        "voxtune is 2.00 times (1.99 to 2.01) as fast as PyTorch; with good of 2026-01-01 it was "
        "over 5.0 times."
    )
    assert fallen(before, run(0.42)) == []  # 4.8 times
    (sentence,) = fallen([*before, *run(0.3, revision="best")], run(1.0))
    assert "with best of" in sentence
    differs = entry("PyTorch", seconds=(), problem=f"{DIFFERS}: losses 7.0 and 0.7")
    (sentence,) = fallen(before, [*run(1.0)[:1], differs])
    assert sentence.endswith("with good of 2026-01-01 voxtune was over 5.0 times as fast.")


def test_a_fall_of_the_share_of_the_peak_is_told(entry: Make) -> None:
    before = [entry(seconds=times(1.0), revision="good", date="2026-01-01")]
    (sentence,) = fallen(before, [entry(seconds=times(1 / 0.8))])
    assert sentence == (
        "train, net, 16³, batch 1, float32: voxtune reaches 16.0 % (15.9 to 16.1) of the measured "
        "peak; with good of 2026-01-01 it reached 20.0 % (19.9 to 20.1)."
    )


def test_a_share_of_a_cpu_is_not_held_but_ratios_are(run: Callable, entry: Make) -> None:
    before = run(1.0, platform="cpu")
    after = run(1 / 0.85, platform="cpu")
    slow = entry(seconds=times(1 / 0.8), platform="cpu")
    found = check(before, [slow, after[1]])
    assert found.compared == 1
    assert len(found.fallen) == 1
    with pytest.raises(InputError, match="nothing in the history"):
        check(before[:1], [slow])


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
    with pytest.raises(InputError):
        fallen([broken], [broken])


def test_a_peer_that_once_computed_the_same_and_now_does_not_is_told(run: Callable) -> None:
    """It may be voxtune that computes something else."""
    before = run(1.0, revision="good", date="2026-01-01")
    own, peer = run(1.0)
    differs = dataclasses.replace(
        peer.measurement, seconds=(), problem=f"{DIFFERS}: losses 7.0 and 0.7", version="2.0"
    )
    (sentence,) = fallen(before, [own, Entry(peer.place, differs)])
    assert sentence == (
        "train, net, 16³, batch 1, float32: PyTorch does not compute what voxtune does: losses 7.0 "
        "and 0.7; with good of 2026-01-01 voxtune was 2.00 times (1.99 to 2.01) as fast."
    )
    assert fallen(before[:1], [own, Entry(peer.place, differs)]) == []  # it never had a ratio
    for other in ("out of memory", "missing"):
        left = Entry(peer.place, dataclasses.replace(differs, problem=other))
        assert fallen(before, [own, left]) == []


@pytest.mark.parametrize("suite", [data, predict, train])
def test_suites_say_so_in_these_words(suite: ModuleType) -> None:
    assert DIFFERS in inspect.getsource(suite.difference)


def test_it_tells_how_much_was_compared(run: Callable, entry: Make) -> None:
    keras = entry("Keras-JAX", case="another", seconds=(2.0,) * len(NARROW))
    before = [*run(1.0), *run(1.0, case="another"), keras]
    assert check(before, before).lines() == [
        "compared 5 of 5 figures of the history with this machine; nothing has fallen behind"
    ]
    peers = [*run(1.0)[:1], *run(1.0, case="another", version="2.0")]
    assert check(before, peers).lines() == [
        "compared 2 of 5 figures of the history with this machine; nothing has fallen behind",
        "not compared: 2 of peers that were not measured (--peers), 1 of another version of the "
        "peer",
    ]
    late = {"problem": "stopped after 10 s", "values": {"least_ratio": 5.0}}
    assert check(run(1.0), [*run(1.0)[:1], entry("PyTorch", seconds=(), **late)]).left == {
        "that gave no figure this time": 1
    }
    broken = [*run(1 / 0.85)[:1], entry("PyTorch", seconds=(), problem="out of memory")]
    assert check(before, broken).lines() == [
        "compared 1 of 5 figures of the history with this machine; nothing has fallen behind",
        "not compared: 1 that gave no figure this time, 3 not measured this time",
    ]
    sentence, total, left = check(before, run(1 / 0.85)).lines()
    assert sentence.startswith("train, net")
    assert total == "compared 2 of 5 figures of the history with this machine"
    assert left == "not compared: 3 not measured this time"


def test_other_machines_do_not_count(run: Callable) -> None:
    """Nor do older versions of a peer beside the one that is compared."""
    before = [*run(1.0), *run(1.0, version="0.9"), *run(1.0, machine="8 x H200")]
    found = check(before, run(1.0))
    assert (found.compared, found.left) == (2, {})


def test_why_nothing_was_compared_is_told(run: Callable) -> None:
    with pytest.raises(InputError, match=r"kind of machine \(2 not measured this time\); run once"):
        check(run(1.0), run(1.0, case="another"))


def test_figures_of_few_turns_are_no_bar(run: Callable) -> None:
    with pytest.raises(InputError):
        check(run(1.0, NARROW[: FEWEST - 1]), run(2.0))
    assert len(fallen(run(1.0, NARROW[:FEWEST]), run(2.0))) == 1
