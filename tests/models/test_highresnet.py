"""HighResNet: its settings, and how it is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from voxtune.converters.verify import QUICK_TO_COMPILE
from voxtune.models.errors import InputError
from voxtune.models.families import Network, abstract, build
from voxtune.models.highresnet import ResidualBlock
from voxtune.models.lowering import plain_lowerings
from voxtune.models.run import Run

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_the_receptive_field_is_that_of_the_paper():
    assert abstract("highresnet", {"outputs": 1}).receptive_field == 87  # Li et al., section 2


def test_odd_filters_are_a_sentence():
    with pytest.raises(InputError, match="'filters' is an even number, not 3"):
        abstract("highresnet", {"outputs": 1, "filters": 3})


@pytest.fixture(scope="module")
def network() -> Network:
    return build("highresnet", {"outputs": 2, "filters": 2, "blocks": 1})


def test_channels_are_padded_with_zeros_on_both_sides():
    block = ResidualBlock(4, 8, dilation=1, activation="relu", rngs=nnx.Rngs(0))
    found, x = {}, normal(1, 2, 2, 2, 4)
    block(x, Run(tap=lambda path, value: found.update({path: value})), "b")
    np.testing.assert_array_equal(found["b/pad"][..., 2:6], x)
    assert not found["b/pad"][..., :2].any()
    assert not found["b/pad"][..., 6:].any()


def test_remat_gives_the_same_gradients_and_statistics(network):
    graph, params, statistics = nnx.split(network, nnx.Param, nnx.BatchStat)
    x, weight = normal(1, 6, 6, 6, 1), normal(1, 6, 6, 6, 2)

    def total(params, remat):
        merged = nnx.merge(graph, params, statistics, copy=True)
        logits = merged(x, train=True, remat=remat)
        return (logits * weight).sum(), nnx.state(merged, nnx.BatchStat)

    gradient = jax.jit(
        jax.grad(total, has_aux=True), static_argnums=1, compiler_options=QUICK_TO_COMPILE
    )
    with plain_lowerings():
        (plain, moved), (again, also) = (gradient(params, remat) for remat in (False, True))
    largest = max(float(abs(each).max()) for each in jax.tree.leaves(plain))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * largest)
    for one, other in zip(jax.tree.leaves(moved), jax.tree.leaves(also), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    before = jax.tree.leaves(statistics)
    assert not any(
        np.allclose(one, other) for one, other in zip(before, jax.tree.leaves(also), strict=True)
    )


def test_bfloat16_gives_float32_logits_near_those_of_float32(network):
    graph, state = nnx.split(network)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x), compiler_options=QUICK_TO_COMPILE)
    x = normal(1, 6, 6, 6, 1)
    wanted, found = run(state, x), run(state, x.astype(jnp.bfloat16))
    assert found.dtype == jnp.float32
    error = float(abs(found - wanted).max() / abs(wanted).max())
    assert 1e-4 < error < 0.05  # bfloat16 has eight bits: other numbers, but near
