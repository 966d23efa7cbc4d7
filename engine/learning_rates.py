"""The learning rates of a run by groups of parameters, for its log."""

from collections.abc import Sequence

import jax

from voxtune.engine.config import Finetune
from voxtune.engine.optimizer import schedule
from voxtune.engine.rules import Row, Rules

MOST = 12  # groups


class LearningRates:
    """The learning rate of each group of parameters: those with the same peak, thawed together.

    A group is called by its levels, from the first to the last, as `down1..up2`; where the last
    level is one group and all others another, or frozen for good, `trunk` and `head`; `all` where
    there is one. Groups of the same levels are numbered. Of more than `MOST` as many are kept,
    spread evenly from input to output.

    Args:
        config: of the run.
        rules: what happens to each parameter.
    """

    def __init__(self, config: Finetune, rules: Rules) -> None:
        # One small program in the place of many, and compiled now: whoever asks measures time.
        self._share = jax.jit(schedule(config))
        self._share(0)
        rows = [row for row in rules.rows.values() if not row.statistic]
        levels = list(dict.fromkeys(row.level for row in rows))
        groups: dict[tuple[float, float], list[Row]] = {}
        for row in rows:
            if row.trained:
                groups.setdefault((row.learning_rate, row.until), []).append(row)
        names = _named([[row.level for row in each] for each in groups.values()], levels)
        kept = _spread(len(groups), MOST)
        found = list(zip(names, groups, strict=True))
        self._groups = [found[each] for each in kept]

    def __call__(self, step: int) -> dict[str, float]:
        """Group → learning rate at a step, counted from 0; 0 where it is frozen then."""
        share = float(self._share(step))
        return {name: peak * share * (step >= until) for name, (peak, until) in self._groups}


def _named(groups: Sequence[Sequence[str]], levels: Sequence[str]) -> list[str]:
    """A name for each group, of which the levels of its parameters are given."""
    if len(groups) == 1 and set(groups[0]) == set(levels):
        return ["all"]
    head = levels[-1]
    apart = all(head not in each or set(each) == {head} for each in groups)
    if apart and len({head in each for each in groups}) == len(groups):
        return ["head" if head in each else "trunk" for each in groups]
    found: list[str] = []
    for group in groups:
        places = sorted({levels.index(each) for each in group})
        first, last = levels[places[0]], levels[places[-1]]
        found.append(first if first == last else f"{first}..{last}")
    return [
        f"{name} {found[:place].count(name) + 1}" if found.count(name) > 1 else name
        for place, name in enumerate(found)
    ]


def _spread(number: int, most: int) -> list[int]:
    """Up to so many of the first whole numbers, evenly, the first and the last among them."""
    if number <= most:
        return list(range(number))
    return [round(each * (number - 1) / (most - 1)) for each in range(most)]
