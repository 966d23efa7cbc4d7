"""Levels that are computed again in the backward pass: what changes, and that nothing else does.

XLA on CPUs undoes it, so what it saves is measured for a TPU: tests/soak/tpu.py.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import pytest

from voxtune.models.families import FAMILIES, Network
from voxtune.models.graph_net import GraphNet, segments
from voxtune.models.lowering import plain_lowerings

Small = Callable[[str], Network]
StepOf = Callable[..., tuple[Any, Any]]
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.normal(size=(2, 8, 8, 8, 1)).astype(np.float32),
    "label": RNG.integers(0, 3, (2, 8, 8, 8)).astype(np.uint8),
}


def parts(network: Network) -> int:
    """What is computed again one at a time: the levels, of a graph the segments."""
    if isinstance(network, GraphNet):
        return len(segments(network.graph))
    return len(network.levels())


@pytest.mark.parametrize("family", FAMILIES)
def test_each_level_is_computed_again_and_nothing_else_changes(
    family: str, small: Small, step_of: StepOf
) -> None:
    network = small(family)
    steps = [step_of(network, optax.sgd(1.0), remat=remat) for remat in (False, True)]
    with plain_lowerings():
        traced = [jax.jit(step).trace(state, BATCH) for step, state in steps]
        (once, once_metrics), (again, again_metrics) = (
            each.lower().compile()(state, BATCH)
            for each, (_, state) in zip(traced, steps, strict=True)
        )
    found = [len(re.findall(r"\b(?:remat2?|checkpoint)\[", str(each.jaxpr))) for each in traced]
    assert found == [0, parts(network)]
    assert float(once_metrics["loss"]) == pytest.approx(float(again_metrics["loss"]), rel=1e-6)
    before = steps[0][1]
    moved = partial(jax.tree.map, lambda old, new: np.asarray(new - old))
    for one, other, old in (
        (once.params, again.params, before.params),
        (once.statistics, again.statistics, before.statistics),
    ):
        wanted, found = moved(old, one), moved(old, other)
        if not jax.tree.leaves(wanted):
            continue  # it has no statistics
        largest = max(abs(each).max() for each in jax.tree.leaves(wanted))
        assert largest > 1e-4
        for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * largest)


def test_a_graphs_segments_are_its_calls_in_order_and_hand_on_what_is_read(small: Small) -> None:
    network = small("graph")
    assert isinstance(network, GraphNet)
    graph = network.graph
    found = segments(graph)
    assert tuple(call for part in found for call in part.calls) == graph.calls
    assert len(found) == 3  # the root of seven calls with weights, rounded
    assert [part.calls[0].name for part in found] == ["first", "shared", "up"]
    assert [part.reads for part in found] == [("image",), ("pool",), ("shared:1", "norm")]
    assert [part.gives for part in found] == [("norm", "pool"), ("shared:1",), ("head",)]
