"""Whether what was measured has fallen behind the history. No JAX here."""

from collections.abc import Sequence

from voxtune.benchmarks.comparisons import Figure, figures_of
from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.measurement import Spread
from voxtune.benchmarks.results import said_share, said_times
from voxtune.models.errors import InputError

FALL = 0.10  # of the best before, beyond the quartiles of both


def fallen(before: Sequence[Entry], found: Sequence[Entry]) -> list[str]:
    """Sentences on what is more than 10 % worse than it was, beyond the noise.

    What is held are ratios to peers, each of the same version as before, and voxtune's share of
    the measured peak: those do not tell how busy the machine was. One has fallen where its upper
    quartile is below 0.9 times the best lower quartile of the history, of the same case on the same
    kind of machine. That voxtune can no longer do a case at all is told as well.

    Args:
        before: the history.
        found: what was measured now.

    Raises:
        InputError: the history has nothing that can be compared.
    """
    best: dict[tuple[str, ...], Figure] = {}
    for figure in figures_of(before):
        held, key = _held(figure), _key(figure)
        if held is not None and (key not in best or held.low > _sure(best[key]).low):
            best[key] = figure
    done = {_key(each) for each in figures_of(before) if each.is_own and each.measured.seconds}
    sentences, compared = [], False
    for figure in figures_of(found):
        held, key = _held(figure), _key(figure)
        if figure.is_own and figure.measured.problem and key in done:
            compared = True
            sentences.append(f"{_place(figure)} voxtune has no figures: {figure.measured.problem}.")
        elif held is not None and key in best:
            compared = True
            if held.high < (1 - FALL) * _sure(best[key]).low:
                sentences.append(_sentence(figure, best[key]))
    if not compared:
        raise InputError(
            "--check finds nothing in the history that it can compare with, of the same cases on "
            "the same kind of machine; run once with --history, without --check, first."
        )
    return sentences


def _held(figure: Figure) -> Spread | None:
    """What must not fall; None where there is none such."""
    return figure.measured.peak_share if figure.is_own else figure.ratio


def _sure(figure: Figure) -> Spread:
    held = _held(figure)
    assert held is not None
    return held


def _key(figure: Figure) -> tuple[str, ...]:
    """What is the same of figures that are compared."""
    version = "" if figure.is_own else figure.measured.version
    return (*figure.case, figure.measured.program, version)


def _place(figure: Figure) -> str:
    return f"{figure.measured.suite}, {figure.measured.case}:"


def _sentence(figure: Figure, best: Figure) -> str:
    """That one has fallen behind another."""
    now, then = _sure(figure), _sure(best)
    past = f"{best.entry.place.revision} of {best.entry.place.date}"
    if figure.is_own:
        return (
            f"{_place(figure)} voxtune reaches {said_share(now)} of the measured peak; with "
            f"{past} it reached {said_share(then)}."
        )
    return (
        f"{_place(figure)} voxtune is {said_times(now)} as fast as {figure.measured.program}; "
        f"with {past} it was {said_times(then)}."
    )
