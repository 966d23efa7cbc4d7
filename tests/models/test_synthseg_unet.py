"""SynthSeg's U-Net: how it is run. That it equals Keras's stands in tests/engine."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

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
