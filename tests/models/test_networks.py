"""Parameter counts as published, and what the networks say of themselves against what they do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxtune.models.errors import InputError
from voxtune.models.families import FAMILIES, abstract, build
from voxtune.models.meshnet import NOBRAINER_DILATIONS
from voxtune.models.parameters import assemble, by_path, count, shapes


@pytest.mark.parametrize(
    ("family", "arguments", "parameters"),
    [
        # Nobrainer 1.2.1, counted by Keras.
        ("unet", {"outputs": 1}, 4_768_289),
        ("unet", {"outputs": 1, "norm": "batch"}, 4_772_961),
        ("meshnet", {"outputs": 1, "filters": 71, "dilations": (1, 1, 2, 4, 8, 16, 1)}, 821_116),
        ("meshnet", {"outputs": 1, "filters": 21, "dilations": (1, 1, 2, 4, 8, 16, 1)}, 72_766),
        ("highresnet", {"outputs": 1}, 874_785),
        ("highresnet", {"outputs": 50}, 877_970),
        ("vnet", {"outputs": 1}, 1_403_059),
        ("vnet", {"outputs": 50}, 1_426_824),
        # SynthSeg 1.0 and 2.0: 25 more for a label more, 24 weights and a bias.
        ("synthseg_unet", {"outputs": 32}, 13_242_824),
        ("synthseg_unet", {"outputs": 33}, 13_242_849),
        # All but the 512 x 768 values that Nobrainer makes and never reads.
        ("unetr", {"outputs": 2}, 147_359_234 - 512 * 768),
        # brainchop's model18cls: 385,632 bytes of float32.
        ("meshnet", {"outputs": 18, "norm": None}, 385_632 // 4),
    ],
)
def test_parameter_counts_are_the_originals(family, arguments, parameters):
    assert count(abstract(family, arguments)) == parameters


@pytest.mark.parametrize("field", NOBRAINER_DILATIONS)
def test_nobrainers_meshnets_see_what_they_are_named_after(field):
    arguments = {"outputs": 1, "dilations": NOBRAINER_DILATIONS[field]}
    assert abstract("meshnet", arguments).receptive_field == field


@pytest.mark.parametrize(
    ("family", "arguments", "size"),
    [
        ("meshnet", {"filters": 2, "dilations": (1, 3, 1), "norm": None}, 16),
        ("bayesian_meshnet", {"filters": 2, "dilations": (1, 3, 1)}, 16),
        ("unet", {"filters": 1, "depth": 1}, 40),
        ("highresnet", {"filters": 2, "blocks": 1}, 40),
        ("synthseg_unet", {"filters": 1, "depth": 1}, 40),
    ],
)
def test_the_receptive_field_bounds_what_a_voxel_reaches(family, arguments, size):
    arguments = {"outputs": 1, **arguments}
    # All weights are positive: whatever can be reached is.
    ones = {path: jnp.ones(shape) for path, shape in shapes(family, arguments).items()}
    network = assemble(family, arguments, ones)
    x = jnp.linspace(1, 2, size)[:, None, None, None] * jnp.ones((1, size, 2, 2, 1))
    gradient_at = jax.jit(jax.grad(lambda x, at: network(x)[0, at, 0, 0, 0]))
    reached = [
        np.flatnonzero(np.asarray(gradient_at(x, size // 2 + offset)[0]).any(axis=(1, 2, 3)))
        for offset in range(network.min_multiple)
    ]
    widest = max(each[-1] - each[0] + 1 for each in reached)
    # A max-pool passes its gradient to one voxel of each block: up to the others are not seen.
    assert network.receptive_field - network.min_multiple < widest <= network.receptive_field


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_name_every_parameter_from_input_to_output(family, small):
    network = small(family)
    levels = network.levels()
    assert {network.level_of(path) for path in by_path(network)} == set(levels)
    assert network.level_of("head/kernel") == levels[-1]
    assert (levels[-1],) == network.head_paths == ("head",)
    decoders = [name for name in levels if name.startswith("decoder")]
    assert decoders == sorted(decoders, reverse=True)


def test_dropout_and_statistics_belong_to_training_alone():
    network = build("meshnet", {"outputs": 2, "filters": 3, "dilations": (1,), "dropout": 0.5})
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 4, 1)) + 3
    before = {path: np.asarray(value) for path, value in by_path(network).items()}
    np.testing.assert_array_equal(network(x), network(x))
    assert all((before[path] == value).all() for path, value in by_path(network).items())
    one = network(x, train=True, rngs=nnx.Rngs(dropout=1))
    other = network(x, train=True, rngs=nnx.Rngs(dropout=2))
    assert not np.allclose(one, other)
    moved = by_path(network)["block1/norm/mean"]
    assert not np.allclose(moved, before["block1/norm/mean"])


def test_assembling_refuses_what_does_not_fit():
    arguments = {"outputs": 2, "filters": 3, "dilations": (1,)}
    values = {path: jnp.zeros(shape) for path, shape in shapes("meshnet", arguments).items()}
    with pytest.raises(ValueError, match="parameters missing: head/bias"):
        assemble("meshnet", arguments, {k: v for k, v in values.items() if k != "head/bias"})
    with pytest.raises(ValueError, match="head/bias is"):
        assemble("meshnet", arguments, {**values, "head/bias": jnp.zeros(7)})


def test_fresh_networks_follow_their_seed_and_glorot():
    arguments = {"outputs": 2, "filters": 8, "dilations": (1, 2)}
    one, same, other = (by_path(build("meshnet", arguments, seed)) for seed in (1, 1, 2))
    kernel = "block2/conv/kernel"
    np.testing.assert_array_equal(one[kernel], same[kernel])
    assert not np.allclose(one[kernel], other[kernel])
    limit = np.sqrt(6 / (27 * (8 + 8)))  # Glorot and Bengio 2010, Keras's default
    assert 0.95 * limit < float(abs(one[kernel]).max()) <= limit
    assert not np.any(one["block2/conv/bias"])


def test_an_unknown_family_or_argument_is_a_sentence():
    with pytest.raises(InputError, match=r"'resnet' is not known; voxtune knows .*graph, .*unet"):
        build("resnet", {})
    with pytest.raises(InputError, match="cannot be built"):
        build("unet", {"outputs": 1, "wings": 2})
    for family in ("bayesian_meshnet", "highresnet", "meshnet", "vnet"):
        with pytest.raises(InputError, match="activation 'sinus' is none of linear, relu"):
            abstract(family, {"outputs": 1, "activation": "sinus"})
