"""Sets of defaults for fine-tuning."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from voxtune.engine.options import RecipeName

_NOBRAINER = {
    "loss": "jaccard",
    "optimizer": "adam",
    "schedule": "constant",
    "warmup": 0,
    "trunk_lr": 1e-5,
    "head_lr": 1e-5,
    "clip": 0.0,
    "l2": 1e-3,
    "head": "keep",
    "activation": "sigmoid",
    "sampling": "grid",
    "augment": "none",
}

# Options of `voxtune.engine.config.Finetune` by name, as far as its own defaults are not meant.
# Nobrainer's guide to transfer learning sets regularizers.l2(0.001) for the kernels of a model that
# is built already, where Keras ignores it; here it is in the loss, as the guide meant it. The
# guide's blocks lie side by side, and are not augmented.
RECIPES: Mapping[RecipeName, Mapping[str, Any]] = MappingProxyType(
    {"voxtune": {}, "nobrainer": {"recipe": "nobrainer", **_NOBRAINER}}
)


def named_recipe(arguments: Sequence[str]) -> Mapping[str, Any]:
    """What the recipe named on a command line sets, nothing if none is or it is not known.

    From Python, `Finetune(..., **RECIPES[name])`: the option `recipe` alone sets nothing.
    """
    named: Mapping[str, Any] = {}
    for number, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option == "--recipe":  # of several the last, as for every option
            name = value if equals else "".join(arguments[number + 1 : number + 2])
            named = next((RECIPES[known] for known in RECIPES if known == name), {})
    return named
