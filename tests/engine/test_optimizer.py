"""Learning rates and decay by hand."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxtune.engine.config import Finetune
from voxtune.engine.optimizer import groups, kernels, learning_rates, make_optimizer, schedule

CONFIG = Finetune(
    Path("model"),
    Path("subjects.csv"),
    Path("run"),
    steps=10,
    warmup=2,
    trunk_lr=0.1,
    head_lr=0.4,
    weight_decay=0.5,
)
RNG = np.random.default_rng(0)
PARAMS = {
    "block1": {
        "conv": {"kernel": RNG.normal(size=(2, 3)), "bias": RNG.normal(size=3)},
        "norm": {"scale": RNG.normal(size=3), "bias": RNG.normal(size=3)},
    },
    "head": {"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)},
}


def by_hand(peak: float, step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def leaf(tree: dict, path: Sequence[str]) -> np.ndarray:
    for name in path:
        tree = tree[name]
    return tree


def moves(gradients: dict, count: int) -> list[dict]:
    """What each of the first steps adds to the parameters."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    optimizer = make_optimizer(CONFIG, params, "head")
    update = jax.jit(optimizer.update)
    state, found = optimizer.init(params), []
    for _ in range(count):
        updates, state = update(gradients, state, params)
        found.append(jax.tree.map(np.asarray, updates))
    return found


@pytest.mark.parametrize(("steps", "warmup"), [(10, 2), (300, 20), (7, 0), (2, 1)])
def test_the_rate_rises_linearly_and_falls_as_a_cosine(steps: int, warmup: int):
    found = [float(schedule(0.3, steps, warmup)(step)) for step in range(steps + 1)]
    wanted = [by_hand(0.3, step, steps, warmup) for step in range(steps + 1)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    assert found[warmup] == pytest.approx(max(found)) == pytest.approx(0.3)
    assert found[-1] == pytest.approx(0, abs=1e-7)
    assert warmup == 0 or found[0] == 0


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0), (1, 0.5), (2, 1), (4, 0.5 * (1 + math.sqrt(0.5))), (6, 0.5), (10, 0)],
)
def test_logged_rates_by_hand(step: int, share: float):
    """Warm-up of 2 of 10 steps; a quarter of the cosine's way at step 4, half at step 6."""
    wanted = {"lr_trunk": 0.1 * share, "lr_head": 0.4 * share}
    assert learning_rates(CONFIG, step) == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def test_decay_takes_rate_times_decay_of_each_kernel_and_of_nothing_else():
    """Without a gradient, decoupled decay is all that moves: -rate * 0.5 * w."""
    zero = jax.tree.map(np.zeros_like, PARAMS)
    decayed = {("block1", "conv", "kernel"): 0.1, ("head", "kernel"): 0.4}
    for step, found in enumerate(moves(zero, 4)):
        for path, peak in decayed.items():
            wanted = -by_hand(peak, step, 10, 2) * 0.5 * leaf(PARAMS, path)
            np.testing.assert_allclose(leaf(found, path), wanted, rtol=1e-5)
        for path in (
            ("block1", "conv", "bias"),
            ("block1", "norm", "scale"),
            ("block1", "norm", "bias"),
            ("head", "bias"),
        ):
            assert not leaf(found, path).any()


def test_trunk_and_head_move_at_their_own_rates():
    """Adam's step on a constant gradient is the rate itself, against the gradient's sign."""
    gradients = jax.tree.map(lambda w: np.sign(w).astype(np.float32), PARAMS)
    for step, found in enumerate(moves(gradients, 4)):
        for path, peak in ((("block1", "norm", "scale"), 0.1), (("head", "bias"), 0.4)):
            wanted = -by_hand(peak, step, 10, 2) * np.sign(leaf(PARAMS, path))
            np.testing.assert_allclose(leaf(found, path), wanted, rtol=1e-4)


def test_a_gradient_beyond_a_norm_of_one_is_scaled_down_to_it():
    """After a step of norm 1, one of norm 1000 moves no further than another of norm 1."""
    small = jax.tree.map(lambda w: np.zeros_like(w, np.float32), PARAMS)
    small["head"]["bias"] = np.array([1.0, 0.0], np.float32)
    large = jax.tree.map(lambda g: 1000 * g, small)
    params = jax.tree.map(jnp.asarray, PARAMS)
    optimizer = make_optimizer(CONFIG, params, "head")
    update = jax.jit(optimizer.update)
    _, state = update(small, optimizer.init(params), params)
    found = [update(gradients, state, params)[0]["head"]["bias"] for gradients in (small, large)]
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert np.any(found[0])


def test_groups_and_kernels_name_each_parameter():
    assert groups(PARAMS, "head") == {
        "block1": {
            "conv": {"kernel": "trunk", "bias": "trunk"},
            "norm": {"scale": "trunk", "bias": "trunk"},
        },
        "head": {"kernel": "head", "bias": "head"},
    }
    assert kernels(PARAMS) == {
        "block1": {
            "conv": {"kernel": True, "bias": False},
            "norm": {"scale": False, "bias": False},
        },
        "head": {"kernel": True, "bias": False},
    }
