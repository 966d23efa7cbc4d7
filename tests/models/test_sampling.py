"""Mean, variance and entropy over draws, against all draws held at once."""

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from voxtune.models.families import abstract, build
from voxtune.models.lowering import plain_lowerings
from voxtune.models.parameters import by_path
from voxtune.models.sampling import sampled

X = jax.random.normal(jax.random.key(0), (2, 4, 4, 4, 1))
NETWORKS = {
    "random weights": ("bayesian_meshnet", {"outputs": 3}),
    "one logit": ("bayesian_meshnet", {"outputs": 1}),
    "dropout": ("meshnet", {"outputs": 3, "dropout": 0.5}),
}


@pytest.fixture(autouse=True)
def plain():
    """Convolutions as XLA has them, which compile faster."""
    with plain_lowerings():
        yield


@pytest.mark.parametrize("case", NETWORKS)
def test_moments_are_those_of_all_draws(case: str) -> None:
    family, arguments = NETWORKS[case]
    network = build(family, {**arguments, "filters": 3, "dilations": (1,)})
    before = {path: np.asarray(value) for path, value in by_path(network).items()}
    found = sampled(network, X, nnx.Rngs(dropout=1), samples=5)
    keys, draws = nnx.Rngs(dropout=1), []
    for _ in range(5):
        logits = np.asarray(network(X, rngs=nnx.Rngs(dropout=keys.dropout())), np.float64)
        if case == "one logit":
            logits = np.concatenate([0 * logits, logits], -1)
        draws.append(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    assert np.std(draws, axis=0).max() > 0.01
    mean = np.mean(draws, axis=0)
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.variance, np.var(draws, axis=0), atol=1e-6)
    np.testing.assert_allclose(found.entropy, stats.entropy(mean, axis=-1), atol=1e-5)
    assert not np.any(sampled(network, X, nnx.Rngs(1), samples=1).variance)
    assert all((before[path] == value).all() for path, value in by_path(network).items())


def test_one_draw_at_least() -> None:
    network = abstract("meshnet", {"outputs": 2})
    with pytest.raises(ValueError, match="0 draws are none"):
        sampled(network, X, nnx.Rngs(0), samples=0)
