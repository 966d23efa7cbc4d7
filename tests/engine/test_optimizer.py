"""What moves parameters, by hand and against Keras's optimizers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxtune.engine.config import Finetune
from voxtune.engine.optimizer import make_optimizer, schedule
from voxtune.engine.rules import Parameters, Rules, make_rules
from voxtune.engine.trees import flat, nested

RNG = np.random.default_rng(0)
PARAMS = {
    path: RNG.normal(size=shape).astype(np.float32)
    for path, shape in {
        "block1/conv/kernel": (2, 3),
        "block1/conv/bias": (3,),
        "block1/norm/scale": (3,),
        "head/kernel": (3, 2),
        "head/bias": (2,),
    }.items()
}
GRADIENTS = {
    path: RNG.normal(size=value.shape).astype(np.float32) for path, value in PARAMS.items()
}
ZEROS = {path: np.zeros_like(value) for path, value in PARAMS.items()}
PLAIN: dict[str, Any] = {"schedule": "constant", "warmup": 0, "clip": 0.0, "weight_decay": 0.0}
Arrays = Mapping[str, np.ndarray]


def options(**changed: Any) -> Finetune:
    usual: dict[str, Any] = {"steps": 100, "trunk_lr": 0.1, "head_lr": 0.4, **PLAIN}
    return Finetune(Path("model"), "subjects.csv", Path("run"), **usual | changed)


def rules_of(config: Finetune) -> Rules:
    shapes = {path: value.shape for path, value in PARAMS.items()}
    owners = {path: path.split("/")[0] for path in shapes}
    levels, heads = ("block1", "head"), ("head",)
    parameters = Parameters(shapes, frozenset(), levels, owners, heads, frozenset(shapes))
    return make_rules(parameters, config)


class Mover:
    """An optimizer with its state, on arrays by path."""

    def __init__(self, **changed: Any) -> None:
        config = options(**changed)
        rules = rules_of(config)
        trained, _ = rules.separate(nested(PARAMS))
        self.paths = tuple(flat(trained))
        self._optimizer = make_optimizer(config, rules)
        self._update = jax.jit(self._optimizer.update)
        self.state = self._optimizer.init(jax.tree.map(jnp.asarray, trained))

    def __call__(self, gradients: Arrays, step: int, params: Arrays = PARAMS) -> Arrays:
        """What a step adds."""
        given, at = (
            nested({path: each[path] for path in self.paths}) for each in (gradients, params)
        )
        updates, self.state = self._update(given, self.state, at, step=jnp.int32(step))
        return {path: np.asarray(value) for path, value in flat(updates).items()}


class TestSchedules:
    @pytest.mark.parametrize(("steps", "warmup"), [(10, 2), (300, 20), (7, 0), (2, 1)])
    def test_by_hand(self, steps: int, warmup: int) -> None:
        """Linear from zero; then a cosine, nnU-Net's polynomial `(1 - t)^0.9`, or nothing."""
        after = {
            "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
            "polynomial": lambda t: (1 - t) ** 0.9,
            "constant": lambda t: 1.0,
        }
        for name, shape in after.items():
            share = schedule(options(steps=steps, warmup=warmup, schedule=name))
            for step in range(steps):
                rising = step < warmup
                left = (step - warmup) / (steps - warmup)
                wanted = step / warmup if rising else shape(left)
                np.testing.assert_allclose(share(step), wanted, rtol=1e-5, atol=1e-7)

    def test_a_step_moves_by_the_rate_of_its_own_number(self) -> None:
        """Whatever came before: a skipped step does not hold the schedule back."""
        changed = {"optimizer": "lion", "schedule": "cosine", "steps": 10}
        found = Mover(**changed)(GRADIENTS, step=5)
        np.testing.assert_allclose(np.abs(found["head/bias"]), 0.4 * 0.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion"])
def test_three_steps_are_those_of_keras(name: str):
    keras = pytest.importorskip("keras")
    decay = 0.0 if name == "adam" else 0.02
    rate: Any = 0.01
    # Where gradients are small, an epsilon shows where it is added.
    scale = 1e-6 if name == "adam" else 1.0
    theirs = {
        "adamw": lambda: keras.optimizers.AdamW(rate, weight_decay=decay, epsilon=1e-8),
        "adam": lambda: keras.optimizers.Adam(rate),
        "sgd": lambda: keras.optimizers.SGD(rate, momentum=0.99, nesterov=True, weight_decay=decay),
        "lion": lambda: keras.optimizers.Lion(rate, beta_1=0.9, beta_2=0.99, weight_decay=decay),
    }[name]()
    rule = (f"* weight_decay={decay}",) if decay else ()
    mover = Mover(optimizer=name, trunk_lr=rate, head_lr=rate, rule=rule)
    variable = keras.Variable(PARAMS["block1/conv/kernel"])
    theirs.build([variable])
    params = dict(PARAMS)
    for step in range(3):
        gradients = {path: scale * value * (step - 1.5) for path, value in GRADIENTS.items()}
        moved = mover(gradients, step, params)
        params = {path: params[path] + moved[path] for path in params}
        theirs.apply([keras.ops.convert_to_tensor(gradients["block1/conv/kernel"])], [variable])
    found, start = params["block1/conv/kernel"], PARAMS["block1/conv/kernel"]
    wanted = np.asarray(keras.ops.convert_to_numpy(variable))
    np.testing.assert_allclose(found - start, wanted - start, rtol=2e-4, atol=1e-7)


class TestProperties:
    def test_a_multiplier_scales_a_step_of_sgd_exactly(self) -> None:
        once = Mover(optimizer="sgd")(GRADIENTS, 0)
        found = Mover(optimizer="sgd", rule=("*/bias learning_rate=0.25",))(GRADIENTS, 0)
        for path, value in once.items():
            factor = 0.25 if path.endswith("bias") else 1
            np.testing.assert_array_equal(found[path], factor * value)

    def test_trunk_and_head_have_rates_of_their_own(self) -> None:
        found = Mover(optimizer="sgd")(GRADIENTS, 0)
        for path, value in found.items():
            rate = 0.4 if path.startswith("head") else 0.1
            # Nesterov's first step: the gradient, and the momentum of it.
            np.testing.assert_allclose(value, -rate * 1.99 * GRADIENTS[path], rtol=1e-6)

    @pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
    def test_decay_takes_learning_rate_times_decay_of_kernels_and_of_nothing_else(self, name):
        """Without gradients nothing else moves."""
        found = Mover(optimizer=name, weight_decay=0.5)(ZEROS, 0)
        for path, value in found.items():
            rate = 0.4 if path.startswith("head") else 0.1
            wanted = -rate * 0.5 * PARAMS[path] if path.endswith("kernel") else ZEROS[path]
            np.testing.assert_allclose(value, wanted, rtol=1e-6)

    def test_the_anchor_pulls_to_the_start_and_not_at_it(self) -> None:
        mover = Mover(rule=("block1/* anchor=2",))
        assert not any(value.any() for value in mover(ZEROS, 0).values())
        away = {path: value + 0.5 for path, value in PARAMS.items()}
        for path, value in mover(ZEROS, 1, away).items():
            wanted = -0.1 * 2 * 0.5 if path.startswith("block1") else 0.0
            np.testing.assert_allclose(value, wanted, rtol=1e-5)

    def test_what_is_always_frozen_is_not_there(self) -> None:
        mover = Mover(freeze_until="head")
        assert set(mover(GRADIENTS, 0)) == {"head/kernel", "head/bias"}

    def test_moments_are_of_trained_parameters_alone(self) -> None:
        """Two moments, float32, and Adam's count."""
        size = {path: value.nbytes for path, value in PARAMS.items()}

        def moments(mover: Mover) -> int:
            arrays = [each for each in jax.tree.leaves(mover.state) if each.ndim]
            return sum(each.nbytes for each in arrays)

        head = size["head/kernel"] + size["head/bias"]
        assert moments(Mover()) == 2 * sum(size.values())
        assert moments(Mover(freeze_until="head")) == 2 * head
        assert moments(Mover(unfreeze_every=5)) == 2 * sum(size.values())
        assert moments(Mover(optimizer="sgd", freeze_until="head")) == head


class TestThawing:
    def test_nothing_moves_before_and_adam_begins_then(self) -> None:
        """Adam's first step is the learning rate in the gradient's direction."""
        mover = Mover(rule=("block1/* from_step=3",))
        for step in range(3):
            found = mover(GRADIENTS, step)
            assert not any(value.any() for path, value in found.items() if "block1" in path)
            assert found["head/bias"].all()
        found = mover(GRADIENTS, 3)["block1/conv/kernel"]
        np.testing.assert_allclose(
            found, -0.1 * np.sign(GRADIENTS["block1/conv/kernel"]), rtol=1e-4
        )

    def test_decay_and_anchor_wait_too(self) -> None:
        mover = Mover(rule=("block1/* from_step=3 weight_decay=1 anchor=1",))
        away = {path: value + 1 for path, value in PARAMS.items()}
        assert not mover(ZEROS, 2, away)["block1/conv/kernel"].any()
        assert mover(ZEROS, 3, away)["block1/conv/kernel"].all()


class TestClipping:
    def test_the_norm_of_all_together_is_held(self) -> None:
        found = Mover(optimizer="sgd", clip=0.5, head_lr=0.1)(GRADIENTS, 0)
        norm = math.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in found.values()))
        assert norm == pytest.approx(0.1 * 1.99 * 0.5, rel=1e-5)

    def test_a_small_gradient_is_left_alone(self) -> None:
        free, held = (Mover(optimizer="sgd", clip=clip)(GRADIENTS, 0) for clip in (0.0, 100.0))
        for path, value in free.items():
            # Not to the bit: with the clip XLA fuses otherwise.
            np.testing.assert_allclose(held[path], value, rtol=1e-6)

    @pytest.mark.parametrize("rule", ["block1/* freeze", "block1/* from_step=1"])
    def test_what_is_frozen_now_does_not_count(self, rule: str) -> None:
        huge = {path: value * (1e6 if "block1" in path else 1) for path, value in GRADIENTS.items()}
        found = Mover(optimizer="sgd", clip=0.5, rule=(rule,))(huge, 0)
        head = np.concatenate([GRADIENTS[path].ravel() for path in ("head/bias", "head/kernel")])
        wanted = -0.4 * 1.99 * GRADIENTS["head/bias"] * (0.5 / np.linalg.norm(head))
        np.testing.assert_allclose(found["head/bias"], wanted, rtol=1e-5)
