"""Random weights and shares: draws and divergences against closed forms in NumPy and SciPy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from voxtune.models.kinds import KINDS, Mode
from voxtune.models.lowering import conv_plain
from voxtune.models.posterior import (
    bernoulli_divergence,
    concretely_kept,
    flipout,
    kept,
    learned_divergence,
    locally_drawn,
    normal_divergence,
    scale_of,
    weight_norm,
)
from voxtune.models.run import Run
from voxtune.models.variational import VariationalConv, WeightNormConv, divergence

RNG = np.random.default_rng(0)
TESTED = {"VWNConv3D", "BernoulliDropout", "ConcreteDropout"}
DRAWS = 2000


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.1, 0.6, shape).astype(np.float32)


def filled(make: Callable[[nnx.Rngs], Any]) -> Any:
    """A layer with random parameters; its own would each compile a program."""
    layer = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    shapes = nnx.state(layer)
    nnx.update(layer, jax.tree.map(lambda each: jnp.asarray(normal(*each.shape)), shapes))
    return layer


# --- divergences -----------------------------------------------------------------------------


def test_normal_divergence_is_the_integral() -> None:
    """∫ q log(q / p), by numbers drawn from q, and by the formula in float64."""
    mean, scale, prior_mean, prior_scale = normal(5), positive(5), normal(5), positive(5)
    found = float(normal_divergence(mean, scale, prior_mean, prior_scale))
    m, s, m1, s1 = (each.astype(np.float64) for each in (mean, scale, prior_mean, prior_scale))
    wanted = (np.log(s1 / s) + (s**2 + (m - m1) ** 2) / (2 * s1**2) - 0.5).sum()
    assert found == pytest.approx(wanted, rel=1e-6)
    draws = RNG.normal(m, s, (100_000, 5))
    ratios = (stats.norm(m, s).logpdf(draws) - stats.norm(m1, s1).logpdf(draws)).sum(1)
    assert abs(found - ratios.mean()) < 4 * ratios.std() / np.sqrt(len(ratios))
    assert float(normal_divergence(np.zeros(3), np.ones(3))) == 0  # to N(0, 1), the default


def test_a_learned_prior_has_a_prior_of_its_own() -> None:
    """Nobrainer's `divergence_fn_bayesian`, with SciPy's log-normal distribution."""
    mean, scale, prior_mean, raw = normal(4, 3), positive(4, 3), normal(4, 3), normal(1)
    prior_scale = 1e-4 + np.log1p(np.exp(raw.astype(np.float64)))
    hyper = stats.lognorm(s=1.0, scale=1.0).logpdf(np.full((4, 3), prior_scale)).sum()
    wanted = float(normal_divergence(mean, scale, prior_mean, np.float32(prior_scale))) - hyper
    assert float(learned_divergence(mean, scale, prior_mean, raw)) == pytest.approx(wanted, 1e-6)


def test_bernoulli_divergence_is_scipys_entropy() -> None:
    shares = np.array([0.0, 0.05, 0.3, 0.5, 0.9, 1.0], np.float32)
    bounded = np.clip(shares.astype(np.float64), 0.05, 0.95)
    wanted = sum(stats.entropy([p, 1 - p], [0.5, 0.5]) for p in bounded)
    assert float(bernoulli_divergence(shares)) == pytest.approx(wanted, abs=1e-5)


def test_layers_sum_their_divergences() -> None:
    plain = filled(lambda rngs: VariationalConv(2, 3, rngs=rngs))
    mean = plain.kernel_posterior_loc[...]
    scale = scale_of(plain.kernel_posterior_untransformed_scale[...])
    assert float(divergence(plain)) == pytest.approx(float(normal_divergence(mean, scale)))
    learned = filled(lambda rngs: VariationalConv(2, 3, prior="learned", rngs=rngs))
    weights = [
        variable[...] for variable in (learned.kernel_posterior_loc, learned.kernel_prior_loc)
    ]
    spread = scale_of(learned.kernel_posterior_untransformed_scale[...])
    raw = learned.kernel_prior_untransformed_scale[...]
    wanted = float(learned_divergence(weights[0], spread, weights[1], raw))
    assert float(divergence(learned)) == pytest.approx(wanted)
    normed = filled(lambda rngs: WeightNormConv(2, 3, rngs=rngs))
    v, g = np.asarray(normed.v[...]), np.asarray(normed.g[...])
    kernel = g * v / np.linalg.norm(v.reshape(-1, 3), axis=0)
    parts = ((kernel, normed.kernel_a[...]), (normed.bias_m[...], normed.bias_a[...]))
    wanted = sum(float(normal_divergence(mean, abs(scale))) for mean, scale in parts)
    assert float(divergence(normed)) == pytest.approx(wanted, rel=1e-5)
    assert divergence(nnx.Dropout(0.5)) is None


# --- drawing ---------------------------------------------------------------------------------


def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return conv_plain(x, kernel)


def many(draw: Any) -> np.ndarray:
    """`draw(keys)` for many sources of keys."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return np.asarray(jax.jit(jax.vmap(lambda key: draw(nnx.Rngs(dropout=key).dropout)))(keys))


def check_moments(draws: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> None:
    """Each result's mean to 5 standard errors, its variance likewise (it is normal)."""
    error = np.sqrt(variance / DRAWS)
    assert (abs(draws.mean(0) - mean) < 5 * error + 1e-5).all()
    assert (abs(draws.var(0) / variance - 1) < 5 * np.sqrt(2 / DRAWS)).all()


def test_flipout_has_the_mean_and_variance_of_drawn_weights() -> None:
    x, mean, scale = normal(2, 3, 3, 3, 2), normal(3, 3, 3, 2, 3), positive(3, 3, 3, 2, 3)
    x[1] = x[0]
    draws = many(lambda keys: flipout(linear, x, mean, scale, keys))
    check_moments(draws, linear(x, mean), np.asarray(linear(x**2, scale**2)))
    # The same input twice: with weights drawn once for both, their noise would be the same.
    noise = draws - draws.mean(0)
    together = (noise[:, 0] * noise[:, 1]).mean(0) / noise[:, 0].var(0)
    assert abs(together).max() < 5 / np.sqrt(DRAWS)


def test_results_drawn_in_place_of_weights_have_their_mean_and_variance() -> None:
    x, mean, scale = normal(1, 3, 3, 3, 2), normal(3, 3, 3, 2, 3), positive(3, 3, 3, 2, 3)
    bias = normal(3), positive(3)
    draws = many(lambda keys: locally_drawn(linear, x, (mean, scale), bias, keys))
    variance = np.asarray(linear(x**2, scale**2)) + bias[1] ** 2
    check_moments(draws, linear(x, mean) + bias[0], variance)
    # kwyk's: the places of a filter share one number.
    numbers = (draws - np.asarray(linear(x, mean)) - bias[0]) / np.sqrt(variance)
    np.testing.assert_allclose(numbers, numbers[:, :, :1, :1, :1] + 0 * numbers, atol=1e-4)
    assert np.std(numbers[0, 0, 0, 0, 0]) > 0.01


@pytest.mark.parametrize("flip", [True, False])
def test_convolutions_draw_with_softplus_of_the_scale(flip: bool) -> None:
    layer = filled(lambda rngs: VariationalConv(1, 3, flip=flip, rngs=rngs))
    raw = np.linspace(-3, 0, 27 * 3).reshape(3, 3, 3, 1, 3).astype(np.float32)
    layer.kernel_posterior_untransformed_scale.set_value(jnp.asarray(raw))
    x = np.zeros((2, 3, 3, 3, 1), np.float32)
    x[:, 1, 1, 1] = 1  # its neighbours receive one weight each

    def draw(keys: Any) -> jax.Array:
        return layer(jnp.asarray(x), Run(rngs=nnx.Rngs(dropout=keys())), "")

    draws, mean = many(draw), np.asarray(layer(jnp.asarray(x), Run(), ""))
    scale = np.log1p(np.exp(raw))[::-1, ::-1, ::-1, 0]
    check_moments(draws, mean, np.broadcast_to(scale**2, mean.shape))
    assert (draws[:, 0] == draws[:, 1]).all() != flip


def test_weight_norm_is_salimans_and_kingmas() -> None:
    v, g = normal(3, 3, 3, 2, 4), positive(1, 1, 1, 1, 4)
    found = np.asarray(weight_norm(jnp.asarray(v), jnp.asarray(g)))
    np.testing.assert_allclose(np.sqrt((found**2).sum((0, 1, 2, 3))), g[0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found, g * v / np.linalg.norm(v.reshape(-1, 4), axis=0), rtol=1e-5)


def test_concrete_dropout_is_gals() -> None:
    """`sigmoid((logit p + logit u) / 0.02)` of each value, in float64."""
    x, key = normal(2, 5, 5, 5, 4), jax.random.key(3)
    shares = np.array([0.01, 0.3, 0.9, 0.99], np.float32)  # the ends are beyond the bounds
    bounded = np.clip(shares, 0.05, 0.95)
    found = np.asarray(concretely_kept(x, shares, lambda: key))
    u = np.asarray(jax.random.uniform(key, x.shape), np.float64)
    raised = np.log(bounded / (1.0 - bounded)) + np.log((u + 1e-7) / (1 - u + 1e-7))
    np.testing.assert_allclose(found, x / (1 + np.exp(-raised / 0.02)), atol=2e-4)
    np.testing.assert_allclose(concretely_kept(x, shares, None), x * bounded, rtol=1e-6)
    many_ones = np.ones((50_000, 4), np.float32)
    mean = np.asarray(concretely_kept(many_ones, shares, lambda: key)).mean(0)
    assert (abs(mean - bounded) < 5 * np.sqrt(0.25 / 50_000)).all()
    gradient = jax.grad(lambda p: concretely_kept(x, p, lambda: key).sum())(shares)
    assert (np.asarray(gradient) != 0).tolist() == [False, True, True, False]


def test_bernoulli_dropout_does_not_scale() -> None:
    x = normal(40, 10, 10, 10)
    found = np.asarray(kept(x, 0.3, lambda: jax.random.key(0)))
    stays = found != 0
    np.testing.assert_array_equal(found[stays], x[stays])
    assert abs(stays.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / x.size)
    np.testing.assert_allclose(kept(x, 0.3, None), 0.3 * x, rtol=1e-6)


def test_training_needs_randomness() -> None:
    layer = filled(lambda rngs: VariationalConv(1, 1, rngs=rngs))
    with pytest.raises(ValueError, match="needs `rngs`"):
        layer(jnp.zeros((1, 3, 3, 3, 1)), Run(train=True), "")


# --- the same as layers of graphs ------------------------------------------------------------


def test_the_graphs_layer_of_kwyk_is_the_familys(one_layer: Any) -> None:
    config = {"filters": 3, "kernel_size": 3, "padding": "same", "dilation_rate": 2}
    one = one_layer("VWNConv3D", config, (2, 4, 5, 4, 2))
    layer = filled(lambda rngs: WeightNormConv(2, 3, dilation=2, rngs=rngs))
    assert list(one.weights) == ["v", "g", "kernel_a", "bias_m", "bias_a"]
    for name, value in one.weights.items():
        getattr(layer, name).set_value(value)
    (x,) = one.inputs
    np.testing.assert_allclose(one(), layer(x, Run(), ""), rtol=1e-5)
    drawn = one(mode=Mode(False, nnx.Rngs(dropout=5)))
    np.testing.assert_allclose(drawn, layer(x, Run(rngs=nnx.Rngs(dropout=5)), ""), rtol=1e-5)
    assert not np.allclose(drawn, one())
    kind = KINDS["VWNConv3D"]
    assert kind.divergence is not None
    assert float(kind.divergence(config, one.weights)) == pytest.approx(float(layer.kl()))


def test_the_graphs_dropouts_are_nobrainers(one_layer: Any) -> None:
    """nobrainer/layers/dropout.py, `call` of both classes."""
    shape, rate = (2, 4, 4, 4, 3), 0.25
    settings = {"rate": rate, "is_monte_carlo": True, "scale_during_training": False}
    for changed, quiet, loud in (
        ({}, 1 - rate, [0.0, 1.0]),
        ({"scale_during_training": True}, 1.0, [0.0, 1 / (1 - rate)]),
        ({"is_monte_carlo": False}, 1 - rate, [1 - rate]),
        ({"is_monte_carlo": False, "scale_during_training": True}, 1.0, [1.0]),
    ):
        one = one_layer("BernoulliDropout", {**settings, **changed}, shape)
        ones = (jnp.ones(shape),)
        np.testing.assert_allclose(one(inputs=ones), quiet)
        drawn = one(inputs=ones, mode=Mode(False, nnx.Rngs(0)))
        np.testing.assert_allclose(np.unique(drawn), loud, rtol=1e-6)
    one = one_layer("ConcreteDropout", {}, shape)
    (x,) = one.inputs
    np.testing.assert_allclose(one(), x * np.clip(one.weights["p"], 0.05, 0.95), rtol=1e-6)
    rngs = nnx.Rngs(dropout=1)
    wanted = concretely_kept(x, one.weights["p"], nnx.Rngs(dropout=1).dropout)
    np.testing.assert_array_equal(one(mode=Mode(True, rngs)), wanted)
