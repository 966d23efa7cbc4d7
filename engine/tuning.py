"""Learning rates of a study: for each arm and size the factor with the best validation Dice.

All of it is known from the run directories of the first seed.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from voxtune.engine.arms import Design, Trial
from voxtune.engine.config import Study
from voxtune.engine.trials import saved_run

Tuned = Mapping[tuple[str, int], Mapping[float, float]]


def tuning_scores(design: Design, config: Study) -> Tuned:
    """Arm and size → factor of learning rates → validation Dice, of the runs that are done.

    It is -inf where training diverged, or where validation has no Dice.
    """
    found: dict[tuple[str, int], dict[float, float]] = {}
    for trial in design.tuning(config):
        dice = validation_dice(trial)
        if dice is not None:
            found.setdefault((trial.arm, trial.size), {})[trial.factor] = dice
    return found


def chosen(design: Design, config: Study) -> dict[tuple[str, int], float]:
    """Arm and size → the factor with the best validation Dice, of those whose runs are all done."""
    keys = [(arm.name, size) for arm in design.arms for size in arm.sizes]
    if len(design.factors) == 1:
        return dict.fromkeys(keys, design.factors[0])
    scores = tuning_scores(design, config)
    return {
        key: max(found, key=found.__getitem__)  # of equal ones the first, the smallest
        for key, found in scores.items()
        if len(found) == len(design.factors)
    }


def validation_dice(trial: Trial) -> float | None:
    """Of a tuning run; None where it is not done."""
    saved = saved_run(trial)
    if saved is None or not saved.finished:
        return -math.inf if has_diverged(trial) else None
    dice = saved.validation.monitored("dice")
    return -math.inf if math.isnan(dice) else dice


def has_diverged(trial: Trial) -> bool:
    """Whether a run came to nothing, and will again."""
    if not diverged(trial).is_file():
        return False
    saved = saved_run(trial)
    return saved is not None and not saved.finished  # a person may have gone on with it


def diverged(trial: Trial) -> Path:
    """Where it says why a run came to nothing: in its folder, and so as long as that is there."""
    return trial.config.run_dir / "diverged.txt"
