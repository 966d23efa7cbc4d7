"""The folded join of a U-Net's decoder against its parts, in float64."""

from contextlib import nullcontext
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from voxtune.models import synthseg_unet
from voxtune.models.folded import conv_of_repeated_and_skip, conv_of_up_and_skip, repeated_pays
from voxtune.models.lowering import conv, conv_transpose_blocks, plain_lowerings
from voxtune.models.synthseg_unet import SynthSegUNet
from voxtune.models.unet import UNet
from voxtune.models.upsampling import repeat_voxels

RNG = np.random.default_rng(0)


def parts(x, skip, up_kernel, up_bias, kernel, bias):
    up = conv_transpose_blocks(x, up_kernel) + up_bias
    return conv(jnp.concatenate([skip, up], axis=-1), kernel) + bias


def repeated_parts(x, skip, kernel, bias):
    return conv(jnp.concatenate([skip, repeat_voxels(x)], axis=-1), kernel) + bias


def assert_same(folded, parts, *arrays):
    """Both give the same, and the same gradients."""
    weight = RNG.normal(size=(*arrays[1].shape[:-1], arrays[-1].size))

    def run(function):
        def total(*arrays):
            y = function(*arrays)
            return (y * weight).sum(), y

        return jax.jit(jax.grad(total, tuple(range(len(arrays))), has_aux=True))(*arrays)

    both = (jax.tree.leaves(run(each)) for each in (folded, parts))
    for found, wanted in zip(*both, strict=True):
        assert wanted.dtype == jnp.float64
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lowerings", [nullcontext, plain_lowerings])
@pytest.mark.parametrize("coarse", [(2, 3, 4), (1, 1, 2)])  # one voxel: two borders at once
def test_result_borders_and_gradients(coarse, lowerings):
    fine = [2 * size for size in coarse]
    shapes = (2, *coarse, 3), (2, *fine, 2), (2, 2, 2, 3, 4), (4,), (3, 3, 3, 6, 5), (5,)
    with jax.enable_x64(True), lowerings():
        arrays = [jnp.asarray(RNG.normal(size=shape)) for shape in shapes]
        assert_same(conv_of_up_and_skip, parts, *arrays)
        if coarse == (1, 1, 2):
            assert_same(jax.checkpoint(conv_of_up_and_skip), parts, *arrays)


@pytest.mark.parametrize("lowerings", [nullcontext, plain_lowerings])
def test_repeated_voxels_have_the_same_result_and_gradients(lowerings):
    shapes = (2, 2, 1, 3, 4), (2, 4, 2, 6, 2), (3, 3, 3, 6, 5), (5,)
    with jax.enable_x64(True), lowerings():
        arrays = (jnp.asarray(RNG.normal(size=shape)) for shape in shapes)
        assert_same(conv_of_repeated_and_skip, repeated_parts, *arrays)


def test_kernels_of_float32_fold_for_a_narrow_volume():
    """As the engine has them where it computes in bfloat16."""
    shapes = (1, 4, 4, 4, 8), (1, 8, 8, 8, 2), (2, 2, 2, 8, 4), (4,), (3, 3, 3, 6, 5), (5,)
    arrays = [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in shapes]

    def total(dtype, *arrays):
        volumes = (each.astype(dtype) for each in arrays[:2])
        y = conv_of_up_and_skip(*volumes, *arrays[2:])
        assert y.dtype == dtype
        return (y.astype(jnp.float32) ** 2).sum()

    narrow, wide = (
        jax.jit(jax.grad(partial(total, dtype), tuple(range(5))))(*arrays)
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    for found, wanted in zip(narrow, wide, strict=True):  # without the bias, which is just added
        assert found.dtype == jnp.float32
        assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)


@pytest.mark.parametrize("train", [False, True])
def test_a_large_block_is_folded_and_the_same(monkeypatch, train):
    folded = []

    def watched(*arrays):
        folded.append(arrays[0].shape)
        return conv_of_up_and_skip(*arrays)

    monkeypatch.setattr("voxtune.models.unet.conv_of_up_and_skip", watched)
    network = UNet(outputs=2, filters=1, depth=1, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(1, 8, 8, 8, 1)), jnp.float32)
    found = network(x, train=train)
    assert len(folded) == 1
    taken = {}
    tapped = network(x, train=train, tap=taken.__setitem__)
    np.testing.assert_allclose(found, tapped, rtol=0, atol=1e-5)
    assert "decoder1/concat" in taken  # who taps sees all
    network(x[:, :4, :4, :2], train=train)
    assert len(folded) == 1


@pytest.mark.parametrize("train", [False, True])
def test_repeated_voxels_are_folded_and_the_same(train):
    network = SynthSegUNet(outputs=2, filters=2, depth=1, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(1, 4, 4, 4, 1)), jnp.float32)
    taken = {}
    tapped = network(x, train=train, tap=taken.__setitem__)
    with mock.patch.object(synthseg_unet, "repeat_voxels", side_effect=AssertionError):
        found = network(x, train=train)
    np.testing.assert_allclose(found, tapped, rtol=0, atol=1e-5)
    assert "decoder1/concat" in taken


def test_of_few_voxels_with_many_channels_the_parts_are_faster():
    kernel = jnp.zeros((3, 3, 3, 1, 1))
    assert repeated_pays(jnp.zeros((1, 4, 4, 4, 192)), kernel)
    assert not repeated_pays(jnp.zeros((1, 2, 2, 2, 384)), kernel)
    with plain_lowerings():
        assert not repeated_pays(jnp.zeros((1, 4, 4, 4, 192)), kernel)


@pytest.mark.parametrize("norm", [None, "batch"])
def test_a_folded_unet_is_the_same_network(norm):
    settings = {"outputs": 2, "filters": 2, "depth": 2, "norm": norm}
    plain = UNet(**settings, rngs=nnx.Rngs(0))
    for path, each in nnx.to_flat_state(nnx.state(plain, nnx.Param)):
        if path[-1] == "bias":
            each.set_value(jnp.asarray(RNG.normal(size=each.shape), jnp.float32))
    folded = UNet(**settings, fold=True, rngs=nnx.Rngs(1))
    nnx.update(folded, nnx.state(plain))
    x = jnp.asarray(RNG.normal(size=(1, 8, 8, 8, 1)), jnp.float32)

    def run(network, x):
        taken = {}
        return network(x, tap=taken.__setitem__), taken

    (whole, parts_of), (joined, of_joined) = (
        jax.jit(partial(run, network))(x) for network in (plain, folded)
    )
    np.testing.assert_allclose(joined, whole, rtol=1e-4, atol=1e-4)
    assert set(parts_of) - set(of_joined) == {
        f"decoder{level}/{name}" for level in (1, 2) for name in ("up", "concat")
    }
    near = jax.jit(folded)(x.astype(jnp.bfloat16))
    assert near.dtype == jnp.float32
    assert np.abs(near - whole).mean() < 0.02 * np.abs(whole).mean()


@pytest.mark.parametrize("split", [P("data"), P(None, "data")])
def test_nothing_is_gathered(split):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    shapes = (4, 8, 4, 4, 3), (4, 16, 8, 8, 2), (2, 2, 2, 3, 4), (4,), (3, 3, 3, 6, 5), (5,)
    where = tuple(NamedSharding(mesh, split if n < 2 else P()) for n in range(6))

    def total(*arrays):
        return (conv_of_up_and_skip(*arrays) ** 2).sum()

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    gradient = jax.jit(jax.grad(total, tuple(range(6))), in_shardings=where, out_shardings=where)
    with plain_lowerings():
        assert "all-gather" not in gradient.lower(*arrays).compile().as_text()
