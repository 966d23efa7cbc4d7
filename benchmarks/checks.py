"""Whether what was measured has fallen behind the history. No JAX here."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from voxtune.benchmarks.comparisons import OWN, Figure, figures_of, newest
from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.measurement import Spread
from voxtune.benchmarks.results import said_least, said_share, said_times
from voxtune.engine.formats import counted
from voxtune.models.errors import InputError

FALL = 0.10  # of the best before, beyond the quartiles of both
FEWEST = 3  # turns of a figure of the history that later ones are held against
DIFFERS = "does not compute what voxtune does"  # begins the problem of a peer with other results

_NOT_MEASURED = "not measured this time"
_NO_PEER = "of peers that were not measured (--peers)"
_NO_FIGURE = "that gave no figure this time"
_ANOTHER = "of another version of the peer"

Key = tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """What was measured, held against the history.

    Attributes:
        fallen: sentences on what is worse than it was.
        compared: figures of the history that something was held against.
        left: why nothing was → how many figures.
    """

    fallen: Sequence[str]
    compared: int
    left: Mapping[str, int]

    def lines(self) -> list[str]:
        """To print."""
        figures = counted(self.compared + sum(self.left.values()), "figure")
        total = f"compared {self.compared} of {figures} of the history with this machine"
        rest = [f"not compared: {_listed(self.left)}"] if self.left else []
        end = "" if self.fallen else "; nothing has fallen behind"
        return [*self.fallen, total + end, *rest]


def check(before: Iterable[Entry], found: Iterable[Entry]) -> Check:
    """What is more than 10 % worse than it was, beyond the noise.

    What is held are ratios to peers, each of the same version as before, and but on a CPU
    voxtune's share of the measured peak. What else a CPU does slows a turn of seconds and the
    product of a moment beside it unlike each other: between two runs of an idle and of a busy
    machine shares of faster steps were half as large. One has fallen where its upper
    quartile is below 0.9 times the best lower quartile of the history, of the same case on the same
    kind of machine, of three turns or more, or below 0.9 times a bound: the best that was known of
    a peer that was stopped. That voxtune can no longer do a case at all is told as well, and that
    it no longer computes what a peer does.

    Args:
        before: the history.
        found: what was measured now.

    Raises:
        InputError: nothing could be compared.
    """
    measured = {_key(each): each for each in newest(figures_of(found))}
    machines = {each.case[0] for each in measured.values()}
    earlier = [each for each in figures_of(before) if each.case[0] in machines]
    lost = _lost(earlier, measured)
    bars = _bars(earlier)
    fallen, left = [], Counter[str]()
    for key, versions in bars.items():
        if key in lost:
            continue
        why = _why_not(key, versions, measured)
        if why:
            left[why] += 1
            continue
        figure = measured[key]
        best = versions[_version(figure)]
        if _sure(figure).high < (1 - FALL) * _low(best):
            fallen.append(_sentence(figure, best))
    compared = len(bars) - left.total()
    if not compared and not lost:
        why = f" ({_listed(left)})" if left else ""
        raise InputError(
            "--check finds nothing in the history that it can compare with, of the same cases on "
            f"the same kind of machine{why}; run once with --history, without --check, first."
        )
    return Check([*lost.values(), *fallen], compared, left)


def _bars(earlier: Iterable[Figure]) -> dict[Key, dict[str, Figure]]:
    """The best of each figure of the history, of each version of a peer."""
    bars: dict[Key, dict[str, Figure]] = {}
    for figure in earlier:
        held = _held(figure)
        if figure.least_ratio is None and (held is None or held.turns < FEWEST):
            continue
        versions = bars.setdefault(_key(figure), {})
        best = versions.get(_version(figure))
        if best is None or _low(figure) > _low(best):
            versions[_version(figure)] = figure
    return bars


def _lost(earlier: Iterable[Figure], measured: Mapping[Key, Figure]) -> dict[Key, str]:
    """Sentences on what voxtune could do once, and not now."""
    lost = {}
    for then in earlier:
        figure = measured.get(_key(then))
        if figure is None:
            continue
        problem = figure.measured.problem
        if figure.is_own and problem and then.measured.seconds:
            lost[_key(then)] = f"{_place(figure)} voxtune has no figures: {problem}."
        elif not figure.is_own and problem.startswith(DIFFERS) and _said(then):
            lost[_key(then)] = (
                f"{_place(figure)} {figure.measured.program} {problem}; with {_past(then)} voxtune "
                f"was {_said(then)} as fast."
            )
    return lost


def _why_not(
    key: Key, versions: Mapping[str, Figure], measured: Mapping[Key, Figure]
) -> str | None:
    """Why a figure of the history cannot be compared; None where it can."""
    figure = measured.get(key)
    if figure is None:
        return _NO_PEER if (*key[:-1], OWN) in measured else _NOT_MEASURED
    if _held(figure) is None:
        return _NO_FIGURE
    return None if _version(figure) in versions else _ANOTHER


def _held(figure: Figure) -> Spread | None:
    """What must not fall; None where there is none such."""
    if not figure.is_own:
        return figure.ratio
    return None if figure.entry.place.platform == "cpu" else figure.measured.peak_share


def _sure(figure: Figure) -> Spread:
    held = _held(figure)
    assert held is not None
    return held


def _low(figure: Figure) -> float:
    """What later ones must reach, but for `FALL`."""
    return _sure(figure).low if figure.least_ratio is None else figure.least_ratio


def _said(figure: Figure) -> str:
    """How many times as fast as a peer voxtune is; empty where nothing says so."""
    if figure.least_ratio is not None:
        return f"{said_least(figure.least_ratio)} times"
    return "" if figure.ratio is None else said_times(figure.ratio)


def _key(figure: Figure) -> Key:
    """What is the same of figures that are compared, but for a peer's version."""
    return (*figure.case, figure.measured.program)


def _version(figure: Figure) -> str:
    """Of a peer: another one is not the same measure."""
    return "" if figure.is_own else figure.measured.version


def _listed(left: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {why}" for why, count in left.items())


def _place(figure: Figure) -> str:
    return f"{figure.measured.suite}, {figure.measured.case}:"


def _past(figure: Figure) -> str:
    return f"{figure.entry.place.revision} of {figure.entry.place.date}"


def _sentence(figure: Figure, best: Figure) -> str:
    """That one has fallen behind another."""
    past = _past(best)
    if figure.is_own:
        return (
            f"{_place(figure)} voxtune reaches {said_share(_sure(figure))} of the measured peak; "
            f"with {past} it reached {said_share(_sure(best))}."
        )
    return (
        f"{_place(figure)} voxtune is {_said(figure)} as fast as {figure.measured.program}; "
        f"with {past} it was {_said(best)}."
    )
