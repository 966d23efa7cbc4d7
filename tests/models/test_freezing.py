"""Norms that are frozen, for good or until a step."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxtune.models.families import Network, build
from voxtune.models.freezing import freeze_statistics
from voxtune.models.norms import BatchNorm
from voxtune.models.parameters import statistics_of
from voxtune.models.run import Run

Small = Callable[[str], Network]
NORMED = ("unet", "meshnet", "graph")  # with BatchNormalization, of a family and of a graph
IMAGE = np.random.default_rng(0).normal(2, 3, (2, 8, 8, 8, 1)).astype(np.float32)


def in_training(network: Network, until: float | None, **options: Any) -> Any:
    """A jitted function of a step's number: logits and statistics after a pass in training."""
    traces = []
    if until is not None:
        freeze_statistics(network, dict.fromkeys(statistics_of(network), until))
    graph, *states = nnx.split(network, nnx.Param, nnx.BatchStat)

    @jax.jit
    def run(step: jax.Array) -> tuple[jax.Array, Any]:
        traces.append(None)
        merged = nnx.merge(graph, *states, copy=True)
        x = jnp.asarray(IMAGE, options.get("dtype", jnp.float32))
        rngs, remat = nnx.Rngs(dropout=1), options.get("remat", False)
        logits = merged(x, train=True, rngs=rngs, remat=remat, step=step)
        return logits, nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat))

    def called(step: int) -> tuple[np.ndarray, list[np.ndarray]]:
        logits, statistics = run(jnp.int32(step))
        assert len(traces) == 1
        return np.asarray(logits), [np.asarray(each) for each in jax.tree.leaves(statistics)]

    return called


@pytest.mark.parametrize("family", NORMED)
def test_always(family: str, small: Small) -> None:
    network = small(family)
    before = [np.asarray(each) for each in jax.tree.leaves(nnx.state(network, nnx.BatchStat))]
    moved, found = in_training(network, None)(0)
    assert any((mine != old).any() for mine, old in zip(found, before, strict=True))
    frozen, kept = in_training(network, math.inf)(0)
    for mine, old in zip(kept, before, strict=True):
        np.testing.assert_array_equal(mine, old)
    assert abs(frozen - moved).max() > 1e-3
    if family == "unet":  # which drops nothing
        np.testing.assert_allclose(frozen, network(jnp.asarray(IMAGE)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("meshnet", {}),
        ("meshnet", {"remat": True}),
        ("meshnet", {"dtype": jnp.bfloat16}),
        ("graph", {}),
        ("graph", {"remat": True}),
    ],
    ids=str,
)
def test_until_a_step_in_one_program(family: str, options: dict, small: Small) -> None:
    network = small(family)
    moved, frozen = (in_training(network, until, **options)(0) for until in (0.0, math.inf))
    until = in_training(network, 3, **options)
    for step, (logits, statistics) in ((2, frozen), (3, moved), (9, moved), (0, frozen)):
        mine, kept = until(step)
        np.testing.assert_allclose(mine, logits, rtol=1e-5, atol=1e-6)
        same = np.testing.assert_array_equal if step < 3 else np.testing.assert_allclose
        for one, other in zip(kept, statistics, strict=True):
            same(one, other)


@pytest.mark.parametrize("until", [0.0, math.inf])
def test_a_norm_is_keras_s_layer_whose_trainable_is_false(until: float, close: Any) -> None:
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(1)
    arrays = [rng.uniform(0.5, 2, 3).astype(np.float32) for _ in range(4)]
    x = rng.normal(1, 2, (2, 4, 4, 4, 3)).astype(np.float32)
    theirs = keras.layers.BatchNormalization()
    theirs.build(x.shape)
    theirs.set_weights(arrays)
    theirs.trainable = until == 0
    wanted = keras.ops.convert_to_numpy(theirs(x, training=True))
    norm = BatchNorm(3, rngs=nnx.Rngs(0))
    for name, value in zip(("scale", "bias", "mean", "var"), arrays, strict=True):
        getattr(norm, name).set_value(jnp.asarray(value))
    norm.until = until
    found = norm(jnp.asarray(x), Run(train=True))
    close(np.asarray(found), wanted)
    statistics = [np.asarray(each[...]) for each in (norm.mean, norm.var)]
    close(statistics, [np.asarray(each) for each in theirs.get_weights()[-2:]])


def test_a_graph_s_call_that_says_training_stays_frozen_in_training(small: Small) -> None:
    """Keras: `trainable=False` wins over `training=True`."""
    graph = small("graph").graph.to_json()
    for call in graph["calls"]:
        if call["layer"] == "norm":
            call["training"] = True
    network = build("graph", {"graph": graph})
    before = [np.asarray(each) for each in jax.tree.leaves(nnx.state(network, nnx.BatchStat))]
    _, kept = in_training(network, math.inf)(0)
    for mine, old in zip(kept, before, strict=True):
        np.testing.assert_array_equal(mine, old)


class TestMistakes:
    def test_a_path_that_is_no_statistic(self, small: Small) -> None:
        for path in ("encoder1/unit1/norm/scale", "encoder9/unit1/norm/mean", "mean"):
            with pytest.raises(ValueError, match=f"no statistic {path}"):
                freeze_statistics(small("unet"), {path: 1})

    def test_the_statistics_of_a_norm_go_together(self, small: Small) -> None:
        norm = "encoder1/unit1/norm"
        with pytest.raises(ValueError, match=f"statistics of {norm} are frozen until different"):
            freeze_statistics(small("unet"), {f"{norm}/mean": 1, f"{norm}/var": 2})

    def test_the_step_must_be_told(self, small: Small) -> None:
        network = small("unet")
        freeze_statistics(network, dict.fromkeys(statistics_of(network), 3))
        with pytest.raises(ValueError, match="needs its `step`"):
            network(jnp.asarray(IMAGE), train=True)
