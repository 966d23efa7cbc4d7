"""Groups of learning rates: their names, and their rates at a step."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from voxtune.engine import learning_rates
from voxtune.engine.config import Finetune
from voxtune.engine.learning_rates import MOST, LearningRates
from voxtune.engine.rules import Parameters, make_rules

PATHS = {
    "down1": ("down1/kernel", "down1/bias"),
    "down2": ("down2/kernel", "down2/bias"),
    "up1": ("up1/kernel", "up1/bias"),
    "head": ("head/kernel", "head/bias"),
}


def rates(paths: dict[str, tuple[str, ...]] = PATHS, **options: Any) -> LearningRates:
    usual = {"schedule": "constant", "warmup": 0, "steps": 40, "trunk_lr": 0.1, "head_lr": 0.4}
    config = Finetune(Path("model"), "data", Path("run"), **{**usual, **options})
    owners = {path: level for level, each in paths.items() for path in each}
    shapes = dict.fromkeys(owners, (1,))
    levels = list(paths)
    parameters = Parameters(shapes, frozenset(), levels, owners, levels[-1:], frozenset())
    return LearningRates(config, make_rules(parameters, config))


def test_trunk_and_head():
    assert rates()(3) == pytest.approx({"trunk": 0.1, "head": 0.4})


def test_the_schedule_moves_all():
    found = rates(schedule="cosine", warmup=10, steps=20)
    assert found(5) == pytest.approx({"trunk": 0.05, "head": 0.2})
    assert found(15) == pytest.approx({"trunk": 0.05, "head": 0.2})


def test_it_is_compiled_before_it_is_asked(monkeypatch: pytest.MonkeyPatch):
    """And runs as one program: what it does is traced once."""
    traced = []

    def schedule(config: Finetune) -> Any:
        return lambda step: (traced.append(config), jnp.float32(0.5))[1]

    monkeypatch.setattr(learning_rates, "schedule", schedule)
    found = rates()
    assert len(traced) == 1
    assert found(3) == found(4) == pytest.approx({"trunk": 0.05, "head": 0.2})
    assert len(traced) == 1


def test_a_frozen_trunk_has_no_rate():
    assert rates(freeze_until="head")(0) == pytest.approx({"head": 0.4})


def test_one_rate_for_all():
    assert rates(head_lr=0.1)(0) == pytest.approx({"all": 0.1})


def test_decay_by_level_has_a_rate_for_each():
    wanted = {"down1": 0.0125, "down2": 0.025, "up1": 0.05, "head": 0.4}
    assert rates(layer_decay=0.5)(0) == pytest.approx(wanted)


def test_what_is_frozen_now_has_zero():
    found = rates(unfreeze_every=10)
    assert found(9) == pytest.approx({"down1": 0, "down2": 0, "up1": 0, "head": 0.4})
    assert found(10) == pytest.approx({"down1": 0, "down2": 0, "up1": 0.1, "head": 0.4})
    assert found(30) == pytest.approx({"down1": 0.1, "down2": 0.1, "up1": 0.1, "head": 0.4})


def test_groups_of_the_same_levels_are_numbered():
    found = rates(rule=("down*/bias learning_rate=2",))(0)
    wanted = {"down1..up1": 0.1, "down1..down2": 0.2, "head": 0.4}
    assert found == pytest.approx(wanted)
    found = rates(rule=("*/bias learning_rate=2",), head_lr=0.1)(0)
    assert found == pytest.approx({"down1..head 1": 0.1, "down1..head 2": 0.2})


def test_of_many_some_are_kept_from_the_first_to_the_last():
    paths = {f"layer{each}": (f"layer{each}/kernel",) for each in range(50)}
    found = rates(paths, layer_decay=0.9)(0)
    assert len(found) == MOST
    assert {"layer0", "layer49"} < found.keys()
