"""`voxtune study`: did transfer help? Networks from pretrained and random weights, compared."""

import math
from collections.abc import Mapping

from rich.console import Console

from voxtune.engine.arms import Design
from voxtune.engine.config import Study
from voxtune.engine.folds import part_of
from voxtune.engine.output import check_free_or_of, make_folder_of
from voxtune.engine.trials import score_trial, train_trial

_KIND = "study"


def study(config: Study, console: Console) -> None:
    """Trains and scores what is left of a study, then compares.

    Raises:
        InputError: the design, the data or an option is bad, or the folder is of something else.
        PreemptedError: it was told to end; the same command goes on.
    """
    design = Design.of(config)
    number, parts = part_of(config.shard, "--shard")
    check_free_or_of(config.out, _KIND)
    make_folder_of(config.out, _KIND)
    factors = _tuned(design, config, console)
    trials = design.trials(config, factors)[number - 1 :: parts]
    for count, trial in enumerate(trials, 1):
        console.print(f"{trial.name}: {count} of {len(trials)}", style="bold", highlight=False)
        train_trial(trial, console)
        score_trial(trial, config, console)


def _tuned(design: Design, config: Study, console: Console) -> Mapping[tuple[str, int], float]:
    """Arm and size → the factor of learning rates with the best validation Dice."""
    best: dict[tuple[str, int], tuple[float, float]] = {}
    for trial in design.tuning(config):
        console.print(f"{trial.name}: choosing learning rates", style="bold", highlight=False)
        found = train_trial(trial, console).monitored("dice")
        score = -math.inf if math.isnan(found) else found
        key = trial.arm, trial.size
        if key not in best or score > best[key][0]:
            best[key] = score, trial.factor
    return {key: factor for key, (_, factor) in best.items()}
