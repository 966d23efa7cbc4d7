"""HighResNet: its settings, and how it is run."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from voxtune.models.errors import InputError
from voxtune.models.families import abstract
from voxtune.models.highresnet import ResidualBlock
from voxtune.models.run import Run

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_the_receptive_field_is_that_of_the_paper():
    assert abstract("highresnet", {"outputs": 1}).receptive_field == 87  # Li et al., section 2


def test_odd_filters_are_a_sentence():
    with pytest.raises(InputError, match="'filters' is an even number, not 3"):
        abstract("highresnet", {"outputs": 1, "filters": 3})


def test_channels_are_padded_with_zeros_on_both_sides():
    block = ResidualBlock(4, 8, dilation=1, activation="relu", rngs=nnx.Rngs(0))
    found, x = {}, normal(1, 2, 2, 2, 4)
    block(x, Run(tap=lambda path, value: found.update({path: value})), "b")
    np.testing.assert_array_equal(found["b/pad"][..., 2:6], x)
    assert not found["b/pad"][..., :2].any()
    assert not found["b/pad"][..., 6:].any()
