"""Layers that are random in training: what they draw, and that they rest in prediction."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxtune.models.kinds import Mode

_MANY = (40, 10, 10, 10)
RANDOM: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("Dropout", {"rate": 0.3}, _MANY),
    ("SpatialDropout1D", {"rate": 0.3}, (40, 5, 60)),
    ("SpatialDropout2D", {"rate": 0.3}, (40, 5, 6, 70)),
    ("SpatialDropout3D", {"rate": 0.3}, (40, 3, 2, 4, 70)),
    ("GaussianNoise", {"stddev": 0.5}, _MANY),
    ("GaussianDropout", {"rate": 0.3}, _MANY),
    ("AlphaDropout", {"rate": 0.3}, _MANY),
]
TESTED = {name for name, *_ in RANDOM}


def training(seed: int = 0) -> Mode:
    return Mode(True, nnx.Rngs(seed))


@pytest.mark.parametrize(("kind", "config", "shape"), RANDOM)
def test_nothing_happens_in_prediction(
    kind: str, config: dict[str, Any], shape: tuple[int, ...], one_layer: Any
) -> None:
    one = one_layer(kind, config, shape)
    assert not one.weights
    np.testing.assert_array_equal(one(), one.inputs[0])
    nothing = dict.fromkeys(config, 0)
    rests = one_layer(kind, nothing, shape)
    np.testing.assert_array_equal(rests(mode=training()), one.inputs[0])
    with pytest.raises(ValueError, match="random in training"):
        one(mode=Mode(True))


@pytest.mark.parametrize("kind", ["Dropout", "AlphaDropout", "SpatialDropout3D"])
def test_dropped_and_kept_values_are_those_of_keras(kind: str, one_layer: Any) -> None:
    import keras

    x = jnp.full((4, 3, 2, 2, 50), 1.5)
    theirs = getattr(keras.layers, kind)(0.3)(x, training=True)
    ours = one_layer(kind, {"rate": 0.3}, x.shape)(inputs=(x,), mode=training())
    assert len(np.unique(theirs)) == 2
    np.testing.assert_allclose(np.unique(ours), np.unique(theirs), rtol=1e-6)
    assert abs(float((ours == ours.min()).mean()) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / (4 * 50))


def test_share_and_mean_are_kept(one_layer: Any) -> None:
    one = one_layer("Dropout", {"rate": 0.3}, _MANY)
    ones = jnp.ones(_MANY)
    dropped = one(inputs=(ones,), mode=training())
    spread = np.sqrt(0.3 * 0.7 / ones.size)
    assert abs(float((dropped == 0).mean()) - 0.3) < 4 * spread
    assert abs(float(dropped.mean()) - 1) < 4 * spread / 0.7
    assert bool((dropped != one(inputs=(ones,), mode=training(1))).any())
    everything = one_layer("Dropout", {"rate": 1.0}, _MANY)
    assert not everything(mode=training()).any()


@pytest.mark.parametrize(
    ("kind", "config", "shape"),
    [
        ("SpatialDropout1D", {"rate": 0.5}, (4, 5, 70)),
        ("SpatialDropout2D", {"rate": 0.5}, (4, 5, 6, 70)),
        ("SpatialDropout3D", {"rate": 0.5}, (4, 3, 2, 4, 70)),
        ("Dropout", {"rate": 0.5, "noise_shape": [None, 1, 1, 70]}, (4, 5, 6, 70)),
        ("AlphaDropout", {"rate": 0.5, "noise_shape": [None, 1, 70]}, (4, 5, 70)),
    ],
)
def test_whole_channels_are_dropped(
    kind: str, config: dict[str, Any], shape: tuple[int, ...], one_layer: Any
) -> None:
    one = one_layer(kind, config, shape)
    result = np.asarray(one(inputs=(jnp.ones(shape),), mode=training()))
    per_channel = result.reshape(shape[0], -1, shape[-1])
    assert (per_channel == per_channel[:, :1]).all()
    assert 0 < (per_channel[:, 0] == per_channel.min()).mean() < 1
    assert len({row.tobytes() for row in per_channel[:, 0]}) == shape[0]  # each example its own


def test_noise_has_the_spread_that_is_asked_for(one_layer: Any) -> None:
    x = jnp.full(_MANY, 2.0)
    for kind, config, spread in (
        ("GaussianNoise", {"stddev": 0.5}, 0.5),
        ("GaussianDropout", {"rate": 0.2}, 2 * np.sqrt(0.2 / 0.8)),
    ):
        result = one_layer(kind, config, _MANY)(inputs=(x,), mode=training())
        assert abs(float(result.mean()) - 2) < 4 * spread / np.sqrt(x.size)
        assert abs(float(result.std()) / spread - 1) < 4 / np.sqrt(2 * x.size)


def test_alpha_dropout_keeps_mean_and_variance(one_layer: Any) -> None:
    one = one_layer("AlphaDropout", {"rate": 0.3}, _MANY)  # its input has mean 0 and variance 1
    result = one(mode=training())
    assert abs(float(result.mean())) < 4 / np.sqrt(result.size)
    assert abs(float(result.var()) - 1) < 8 / np.sqrt(result.size)


# --- variational layers ----------------------------------------------------------------------


def _noise(one: Any, weights: dict[str, Any], x: Any, seed: int = 0) -> np.ndarray:
    """What drawing the weights adds to the result."""
    mean = one(weights, (x,))
    return np.asarray(one(weights, (x,), training(seed)) - mean)


@pytest.mark.parametrize("kind", ["DenseFlipout", "DenseReparameterization"])
def test_weights_are_drawn_with_softplus_of_the_scale(kind: str, one_layer: Any) -> None:
    one = one_layer(kind, {"units": 100, "use_bias": False}, (50, 50))
    raw = -1.5
    spread = np.log1p(np.exp(raw))
    weights = dict(one.weights)
    weights["kernel_posterior_untransformed_scale"] = jnp.full((50, 100), raw)
    noise = _noise(one, weights, jnp.eye(50))  # the noise of the kernel, row by row
    assert abs(noise.mean()) < 4 * spread / np.sqrt(noise.size)
    assert abs(noise.std() / spread - 1) < 4 / np.sqrt(2 * noise.size)
    assert (noise != _noise(one, weights, jnp.eye(50), seed=1)).any()


@pytest.mark.parametrize(
    ("kind", "per_example", "per_place"),
    [
        ("Conv2DReparameterization", False, False),
        ("DenseReparameterization", False, False),
        ("Conv2DFlipout", True, False),
        ("DenseFlipout", True, True),
    ],
)
def test_flipout_gives_each_example_signs_of_its_own(
    kind: str, per_example: bool, per_place: bool, one_layer: Any
) -> None:
    """One draw for the batch, of which Flipout flips the signs; TF Probability's dense layer flips
    them for each place too."""
    size = {"units": 40} if "Dense" in kind else {"filters": 40, "kernel_size": 1}
    one = one_layer(kind, {**size, "use_bias": False}, (6, 3, 4, 2))
    x = jnp.zeros((6, 3, 4, 2)).at[..., 0].set(1.0)
    noise = _noise(one, dict(one.weights), x)
    np.testing.assert_allclose(np.abs(noise), np.abs(noise[:1, :1, :1]) + 0 * noise, atol=1e-5)
    signs = np.sign(noise)
    assert (signs != signs[:1]).any() == per_example
    assert (signs != signs[:, :1]).any() == per_place


def test_bias_is_drawn_where_it_has_a_distribution(one_layer: Any) -> None:
    for random in (False, True):
        config = {"units": 30, "random_bias": random}
        one = one_layer("DenseReparameterization", config, (2, 3))
        noise = _noise(one, dict(one.weights), jnp.zeros((2, 3)))
        assert noise.any() == random
