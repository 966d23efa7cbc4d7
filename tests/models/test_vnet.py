"""VNet: its norm, its upsampling, its dropout, and how it is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from voxtune.models.errors import InputError
from voxtune.models.families import abstract
from voxtune.models.kinds import KINDS, Mode
from voxtune.models.lowering import conv_plain
from voxtune.models.norms import normalise_slabs
from voxtune.models.run import Run
from voxtune.models.upsampling import conv_repeated, repeat_voxels
from voxtune.models.vnet import Stage

RNG = np.random.default_rng(0)
ARGUMENTS = {"outputs": 2, "filters": 4, "depth": 1}


def normal(*shape: int) -> Array:
    return jnp.asarray(RNG.normal(size=shape))


def agree(ours, definition, arrays, weight):
    """Results and gradients of two functions are the same to float64 rounding."""

    def computed(function):
        def total(*arrays):
            y = function(*arrays)
            return (y * weight).sum(), y

        return jax.jit(jax.grad(total, tuple(range(len(arrays))), has_aux=True))(*arrays)

    found, wanted = (jax.tree.leaves(computed(each)) for each in (ours, definition))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 8, 3, 5, 8),  # slabs of whole slices
        (2, 2, 6, 3, 8),  # of whole rows
        (1, 2, 1, 2, 8),  # of whole voxels
        (1, 3, 3, 3, 8),  # slabs that end inside a voxel
    ],
)
@pytest.mark.usefixtures("float64")
def test_slabs_equal_the_definition(shape):
    """The graph's layer, which tests/models/test_kinds_definitions.py compares with Nobrainer's."""

    def definition(x, scale, bias):
        weights = {"gamma": scale, "beta": bias}
        return KINDS["SlabGroupNormalization"].apply({}, weights, (x,), Mode(False))

    arrays = normal(*shape), normal(shape[-1]), normal(shape[-1])
    agree(normalise_slabs, definition, arrays, normal(*shape))


def test_slab_statistics_are_float32():
    """In bfloat16 a mean of 300 would leave nothing of deviations of 1."""
    x = normal(1, 4, 4, 4, 4).astype(jnp.bfloat16)
    scale, bias = jnp.full(4, 2.0), jnp.full(4, 3.0)
    found = normalise_slabs(x, scale, bias)
    assert found.dtype == jnp.bfloat16
    wanted = normalise_slabs(x.astype(jnp.float32), scale, bias)
    np.testing.assert_array_equal(found, wanted.astype(jnp.bfloat16))


@pytest.mark.usefixtures("float64")
def test_repeating_and_convolving_in_one_equals_the_two():
    arrays = normal(2, 2, 3, 4, 3), normal(2, 2, 2, 3, 5)
    agree(
        conv_repeated,
        lambda x, kernel: conv_plain(repeat_voxels(x), kernel),
        arrays,
        normal(2, 4, 6, 8, 5),
    )


def test_filters_are_multiples_of_four_with_slabs():
    with pytest.raises(InputError, match="2 channels are not 4 groups"):
        abstract("vnet", {**ARGUMENTS, "filters": 2})
    abstract("vnet", {**ARGUMENTS, "filters": 2, "norm": "group"})


def test_channels_are_dropped_where_rngs_are_given():
    settings = {"activation": "relu", "norm": "slab", "dropout": 0.5}
    graph, state = nnx.split(Stage(4, 16, **settings, rngs=nnx.Rngs(0)))
    x = normal(2, 4, 2, 2, 4)

    @jax.jit
    def run(key):
        """What is given without rngs, and with the same in prediction and in training."""
        stage = nnx.merge(graph, state)
        runs = [Run(), *(Run(train, nnx.Rngs(dropout=key)) for train in (False, True))]
        return [stage(x, each, "") for each in runs]

    kept, dropped, also_dropped = map(np.asarray, run(jax.random.key(1)))
    np.testing.assert_array_equal(dropped, also_dropped)
    gone = (dropped == 0).all(axis=(1, 2, 3), keepdims=True)
    assert 8 <= gone.sum() <= 24  # of 32; fewer or more in 0.4 % of all seeds
    np.testing.assert_allclose(dropped, np.where(gone, 0, 2 * kept), rtol=1e-6)
    assert not np.array_equal(dropped, run(jax.random.key(2))[1])
