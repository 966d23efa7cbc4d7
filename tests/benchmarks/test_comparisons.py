"""Which of voxtune's figures a peer's is compared with."""

from collections.abc import Callable

from voxtune.benchmarks.comparisons import Figure, figures_of, newest, of_each_machine
from voxtune.benchmarks.history import Entry

Make = Callable[..., Entry]


def ratios(figures: list[Figure]) -> list[float | None]:
    return [each.ratio and each.ratio.median for each in figures]


def test_a_peer_is_compared_within_its_run(entry: Make) -> None:
    old = {"revision": "old", "date": "2026-01-01"}
    entries = [
        entry(seconds=(4.0,) * 3, **old),
        entry("PyTorch", seconds=(8.0,) * 3, **old),
        entry("Keras", seconds=(12.0,) * 3, **old),
        entry(seconds=(2.0,) * 3),
        entry("PyTorch", seconds=(8.0,) * 3),
    ]
    assert ratios(figures_of(entries)) == [None, 2, 3, None, 4]
    assert ratios(newest(figures_of(entries))) == [None, 4, 3]


def test_what_is_not_of_the_same_case_and_run_is_not_compared(entry: Make) -> None:
    peer = {"program": "PyTorch", "seconds": (8.0,) * 3}
    entries = [
        entry("PyTorch"),  # before voxtune
        entry(seconds=(2.0,) * 3),
        entry(case="another", **peer),
        entry(suite="predict", **peer),
        entry(machine="another", **peer),
        entry(revision="another", **peer),
        entry(**peer),
    ]
    assert ratios(figures_of(entries)) == [None] * 6 + [4]


def test_of_two_runs_at_once_each_has_its_own(entry: Make) -> None:
    """Their lines are mixed in one file."""
    entries = [
        entry(seconds=(2.0,) * 3, copy=1e10),
        entry(seconds=(4.0,) * 3, copy=2e10),
        entry("PyTorch", seconds=(8.0,) * 3, copy=1e10),
        entry("PyTorch", seconds=(8.0,) * 3, copy=2e10),
    ]
    assert ratios(figures_of(entries)) == [None, None, 4, 2]


def test_the_first_of_each_machine() -> None:
    items = ["a1", "a2", "b1", "a3", "b2"]
    assert of_each_machine(items, lambda item: item[0], 2) == ["a1", "a2", "b1", "b2"]


def test_programs_that_were_stopped_have_no_ratio(entry: Make) -> None:
    broken = {"seconds": (), "problem": "out of memory"}
    found = figures_of([entry(), entry("PyTorch", **broken)])
    assert ratios(found) == [None, None]
    assert found[1].least_ratio is None
    late = entry("PyTorch", **broken, values={"least_ratio": 5.0})
    assert figures_of([entry(), late])[1].least_ratio == 5
    assert ratios(figures_of([entry(**broken), entry("PyTorch")])) == [None, None]
    assert ratios(figures_of([entry(), entry("PyTorch", seconds=(8.0,) * 2)])) == [None, None]
