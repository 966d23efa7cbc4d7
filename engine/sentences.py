"""Findings of a study in words, which claim no more than its statistics do. No JAX here."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from voxtune.engine.formats import counted, interval, number, p_value, signed
from voxtune.engine.statistics import FAILURE, FEWEST, FEWEST_OF_SPREAD

if TYPE_CHECKING:  # whose `find` writes them
    from voxtune.engine.findings import Cell, Comparison, Course, Reach, Worth

_LEVEL = 0.05  # of p after Holm's correction


def is_shown(comparison: "Comparison") -> bool:
    """Whether the arms differ: p < 0.05 after Holm's correction, and nothing is against it."""
    return comparison.p_holm < _LEVEL and not _against(comparison)


def _against(one: "Comparison") -> str:
    """Why a difference is not shown, whatever its p; nothing where it is."""
    if not (one.low > 0 or one.high < 0):
        return "the interval would have to be beside 0 too"
    if not _beside(one.difference, 0, 3):
        return "it is 0 to three decimals"
    if one.difference * one.rank_sum <= 0:
        kinds = ("better", "worse") if one.difference > 0 else ("worse", "better")
        return "mean and ranks disagree: {} on average, {} by the ranks that p is of".format(*kinds)
    return ""


def _beside(value: float, nothing: float, digits: int) -> bool:
    """Whether it is another number in print."""
    return number(value, digits) != number(nothing, digits)


def is_spread_shown(comparison: "Comparison") -> bool:
    """Whether their spreads differ: likewise, the interval beside 1, and subjects enough."""
    beside = comparison.sd_ratio_low > 1 or comparison.sd_ratio_high < 1
    enough = comparison.subjects >= FEWEST_OF_SPREAD and _beside(comparison.sd_ratio, 1, 2)
    return enough and comparison.sd_p_holm < _LEVEL and beside


def answer(arms: Sequence[str], comparisons: "Sequence[Comparison]") -> list[str]:
    """A sentence for each size: the first arm against the second, or that nothing was compared.

    Args:
        arms: names, in the design's order; the second is the first of the others that is compared.
        comparisons: by size.
    """
    other = _second(arms, comparisons)
    found = [_difference(each) for each in comparisons if each.other == other]
    return found or ["Nothing was compared: no two arms have networks of the same size and seed."]


def basis(comparisons: "Sequence[Comparison]") -> str:
    """On what all that is said rests; nothing where nothing was compared."""
    if not comparisons:
        return ""
    if max(each.seeds for each in comparisons) == 1:
        seeds = "of one seed alone, so that another seed might show something else"
    else:
        seeds = "and then over seeds, which are few to tell of other seeds"
    tested = sum(not math.isnan(each.p_holm) for each in comparisons)
    test = f"; p is of Wilcoxon's signed-rank test, Holm-corrected for {tested}" if tested else ""
    return (
        f"Dice of a subject is the mean over classes, {seeds}; intervals of 95 % are of the mean "
        f"over subjects{test}."
    )


def sentences(
    arms: Sequence[str],
    cells: "Sequence[Cell]",
    comparisons: "Sequence[Comparison]",
    courses: "Sequence[Course]",
    reaches: "Sequence[Reach]",
    worths: "Sequence[Worth]",
) -> list[str]:
    """What follows from the numbers, also where nothing does.

    First the answer and on what it rests, then where networks failed, then how the second arm's
    spread, training and data efficiency compare, then a sentence for each other arm.
    """
    said = answer(arms, comparisons)
    if not comparisons:
        return said + _failures(arms, cells)
    second = _second(arms, comparisons)
    by_place = {(each.arm, each.size): each for each in courses}
    pairs = [each for each in comparisons if each.other == second]
    said += [basis(comparisons), *_failures(arms, cells)]
    said += [text for each in pairs if (text := _spread(each))]
    if any(each.subjects < FEWEST_OF_SPREAD for each in pairs):
        said.append(
            f"Spreads are not compared in words with fewer than {FEWEST_OF_SPREAD} subjects."
        )
    said += [_course(each, _behind(each, by_place)) for each in pairs]
    said += [
        text
        for each in reaches
        if each.other == second and (text := _reach(each, by_place[each.arm, each.size].steps))
    ]
    better = {each.size for each in pairs if is_shown(each) and each.difference > 0}
    largest = max(each.size for each in cells if each.arm == second)
    said += [
        text
        for each in worths
        if each.other == second and each.size in better and (text := _worth(each, largest))
    ]
    for other in arms:
        own = [each for each in comparisons if each.other == other != second]
        if own:
            parts = "; ".join(_in_short(each, _behind(each, by_place)) for each in own)
            said.append(f"{own[0].arm} against {other}: {parts}.")
    return said


def _second(arms: Sequence[str], comparisons: "Sequence[Comparison]") -> str:
    """The first of the other arms that is compared with the first."""
    compared = {each.other for each in comparisons}
    return next((arm for arm in arms if arm in compared), "")


def _behind(one: "Comparison", courses: "Mapping[tuple[str, int], Course]") -> "Course":
    """How the arm that is worse was trained; where none was shown to be, the other arm."""
    return courses[one.arm if is_shown(one) and one.difference < 0 else one.other, one.size]


def _failures(arms: Sequence[str], cells: "Sequence[Cell]") -> list[str]:
    """Also those that a mean over seeds hides; nothing where there is none."""
    parts = []
    for arm in arms:
        own = [
            f"{each.failures_any} with {counted(each.size, 'scan')}"
            for each in cells
            if each.arm == arm and each.failures_any
        ]
        parts += [f"{arm} had {', '.join(own)}"] if own else []
    if not parts:
        return []
    return [
        f"Failures, which are a Dice below {FAILURE:g} of one network on one subject: "
        f"{'; '.join(parts)}."
    ]


def _difference(one: "Comparison") -> str:
    where = f"With {counted(one.size, 'scan')}"
    pair = f"{number(one.mean)} against {number(one.other_mean)}"
    if not one.subjects:
        return f"{where}, {one.arm} and {one.other} have no subject in common that has a Dice."
    if math.isnan(one.p_holm):
        return (
            f"{where}, nothing can be tested of {one.arm} and {one.other}, Dice {pair}: with "
            f"{counted(one.subjects, 'subject')}, fewer than {FEWEST}, no difference can be shown, "
            f"however large it is{_left_out(one)}."
        )
    ahead = f"ahead in {one.ahead} of {one.subjects} subjects"
    if one.seeds > 1:
        ahead += f" and {one.seeds_ahead} of {one.seeds} seeds"
    if is_shown(one):
        kind = "better" if one.difference > 0 else "worse"
        said = f"{one.arm} is {kind} than {one.other}"
    else:
        said = f"no difference between {one.arm} and {one.other} was shown"
    ahead += _left_out(one)
    return f"{where}, {said}: Dice {pair}, difference {_numbers(one)}; {one.arm} is {ahead}."


def _in_short(one: "Comparison", behind: "Course") -> str:
    """Of an arm that is not the second."""
    where = f"with {counted(one.size, 'scan')}"
    if math.isnan(one.p_holm):
        return f"{where} nothing can be tested ({counted(one.subjects, 'subject')})"
    numbers = f"{_numbers(one)}{_left_out(one)}"
    if not is_shown(one):
        return f"{where} no difference was shown ({numbers})"
    end = ""
    if math.isnan(behind.gain):
        end = f", and whether {behind.arm} had stopped improving cannot be told"
    elif not behind.settled:
        end = f", which may be speed alone, as {behind.arm} was still improving"
    return f"{where} {'better' if one.difference > 0 else 'worse'} ({numbers}){end}"


def _numbers(one: "Comparison") -> str:
    """The difference with its interval and p."""
    within = "no interval can be told"
    if not math.isnan(one.low):
        within = f"95 % interval {interval(one.low, one.high)}"
    against = _against(one) if one.p_holm < _LEVEL else ""
    but = f", but {against}" if against else ""
    return f"{signed(one.difference)}, {within}, {_p(one.p_holm)}{but}"


def _left_out(one: "Comparison") -> str:
    if not one.left_out:
        return ""
    return f"; left out: {counted(one.left_out, 'subject')} with a Dice in one arm alone"


def _spread(one: "Comparison") -> str:
    """Of the second arm; nothing where there is no interval, or subjects are few."""
    where = f"With {counted(one.size, 'scan')}"
    if one.subjects < FEWEST_OF_SPREAD or math.isnan(one.sd_ratio_low):
        return ""
    numbers = (
        f"SD {number(one.sd_ratio, 2)} times that of {one.other}, 95 % interval "
        f"{interval(one.sd_ratio_low, one.sd_ratio_high, 2)}, {_p(one.sd_p_holm)}"
    )
    if not is_spread_shown(one):
        return f"{where}, no difference of spread over subjects was shown: {numbers}."
    kind = "narrower" if one.sd_ratio < 1 else "wider"
    return f"{where}, the spread of {one.arm} over subjects is {kind}: {numbers}."


def _course(one: "Comparison", behind: "Course") -> str:
    """Whether faster convergence and a better end can be told apart, by the arm that is behind."""
    who = f"{behind.arm} with {counted(behind.size, 'scan')}"
    if math.isnan(behind.gain):
        why = "it was validated too rarely"
        if len(behind.ends) > 1:
            why = "its seeds were last validated at different steps"
        return f"Whether {who} had stopped improving cannot be told: {why}."
    ahead = one.other if behind.arm == one.arm else one.arm
    begins = ", interpolated" if 0.75 * behind.steps[-1] not in behind.steps else ""
    gain = (
        f"{signed(behind.gain)} validation Dice over the last quarter of {behind.steps[-1]} steps"
        f"{begins}"
    )
    if not behind.settled:
        end = f": what {ahead} is ahead by may be speed alone" if is_shown(one) else ""
        return f"At its end {who} was still improving ({gain}){end}."
    end = f": what {ahead} is ahead by is more than speed, for a schedule of that length"
    return f"At its end {who} had stopped improving ({gain}){end if is_shown(one) else ''}."


def _reach(one: "Reach", validations: Sequence[int]) -> str:
    """Nothing where one of both has no course."""
    if math.isnan(one.target) or not one.of:
        return ""
    what = (
        f"the final validation Dice of {one.other} with {counted(one.size, 'scan')} "
        f"({number(one.target)})"
    )
    if math.isnan(one.steps):
        return f"{one.arm} never had {what} in {one.of} steps."
    if one.steps in validations[:1]:
        return f"{one.arm} had {what} at its first validation, at step {one.steps:.0f} of {one.of}."
    return f"{one.arm} had {what} after about {one.steps:.0f} of {one.of} steps."


def _worth(one: "Worth", largest: int) -> str:
    """Nothing where its interval, as printed, does not say that more scans would be needed."""
    if not (one.low > one.size and _beside(one.low, one.size, 1)):
        return ""
    if math.isinf(one.low):
        within = f"above {largest}"
    elif math.isinf(one.high):
        within = f"from {number(one.low, 1)} to more than {largest}"
    else:
        within = interval(one.low, one.high, 1)
    about = f"more than {largest}" if math.isinf(one.scans) else f"about {number(one.scans, 1)}"
    most = f", the most that {one.other} was trained on" if math.isinf(one.scans) else ""
    return (
        f"For the Dice that {one.arm} has with {counted(one.size, 'scan')}, {one.other} needs "
        f"{about} scans{most} (95 % interval {within})."
    )


def _p(value: float) -> str:
    return f"p = {p_value(value)}".replace("= <", "< ")
