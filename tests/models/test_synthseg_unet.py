"""SynthSeg's U-Net: how it is run. That it equals Keras's stands in tests/engine."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from voxtune.converters.verify import QUICK_TO_COMPILE
from voxtune.models.families import Network, build

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def network() -> Network:
    return build("synthseg_unet", {"outputs": 2, "filters": 2, "depth": 1})


def test_the_skip_leaves_before_the_norm(network: Network) -> None:
    found: dict[str, Array] = {}
    network(normal(1, 4, 4, 4, 1), tap=lambda path, value: found.update({path: value}))
    joined = found["decoder1/concat"]
    np.testing.assert_array_equal(joined[..., :2], found["encoder1/unit2/activation"])
    np.testing.assert_array_equal(joined[:, ::2, ::2, ::2, 2:], found["bottom/norm"])
    np.testing.assert_array_equal(joined[:, 1::2, 1::2, 1::2, 2:], found["bottom/norm"])


def test_remat_gives_the_same_gradients_and_statistics(network: Network) -> None:
    graph, params, statistics = nnx.split(network, nnx.Param, nnx.BatchStat)
    x, weight = normal(1, 6, 6, 6, 1), normal(1, 6, 6, 6, 2)

    def total(params: nnx.State, remat: bool) -> tuple[Array, nnx.State]:
        merged = nnx.merge(graph, params, statistics, copy=True)
        logits = merged(x, train=True, remat=remat)
        return (logits * weight).sum(), nnx.state(merged, nnx.BatchStat)

    gradient = jax.jit(
        jax.grad(total, has_aux=True), static_argnums=1, compiler_options=QUICK_TO_COMPILE
    )
    (plain, moved), (again, also) = (gradient(params, remat) for remat in (False, True))
    largest = max(float(abs(each).max()) for each in jax.tree.leaves(plain))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * largest)
    before = jax.tree.leaves(statistics)
    for old, one, other in zip(before, jax.tree.leaves(moved), jax.tree.leaves(also), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
        assert not np.allclose(old, other)
    traced = str(jax.make_jaxpr(lambda params: total(params, True)[0])(params))
    assert len(re.findall(r"\b(?:remat2?|checkpoint)\[", traced)) == len(network.levels())


def test_bfloat16_gives_float32_logits_near_those_of_float32(network: Network) -> None:
    graph, state = nnx.split(network)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x), compiler_options=QUICK_TO_COMPILE)
    x = normal(1, 8, 8, 8, 1)
    wanted, found = run(state, x), run(state, x.astype(jnp.bfloat16))
    assert found.dtype == jnp.float32
    error = float(abs(found - wanted).max() / abs(wanted).max())
    assert 1e-4 < error < 0.05  # bfloat16 has eight bits: other numbers, but near
