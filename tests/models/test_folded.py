"""The folded join of a U-Net's decoder against its parts, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from voxtune.models.folded import conv_of_up_and_skip
from voxtune.models.lowering import conv, conv_transpose_blocks, plain_lowerings
from voxtune.models.unet import UNet

RNG = np.random.default_rng(0)


def parts(x, skip, up_kernel, up_bias, kernel, bias):
    up = conv_transpose_blocks(x, up_kernel) + up_bias
    return conv(jnp.concatenate([skip, up], axis=-1), kernel) + bias


@pytest.mark.parametrize("coarse", [(2, 3, 4), (1, 1, 2)])  # one voxel: two borders at once
def test_result_borders_and_gradients(coarse):
    fine = [2 * size for size in coarse]
    shapes = (2, *coarse, 3), (2, *fine, 2), (2, 2, 2, 3, 4), (4,), (3, 3, 3, 6, 5), (5,)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(RNG.normal(size=shape)) for shape in shapes]
        weight = RNG.normal(size=(2, *fine, 5))

        def run(function):
            def total(*arrays):
                y = function(*arrays)
                return (y * weight).sum(), y

            return jax.jit(jax.grad(total, tuple(range(6)), has_aux=True))(*arrays)

        for found, wanted in zip(
            *(jax.tree.leaves(run(f)) for f in (conv_of_up_and_skip, parts)), strict=True
        ):
            assert wanted.dtype == jnp.float64
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


def test_slices_give_the_same():
    shapes = (2, 3, 2, 4, 3), (2, 6, 4, 8, 2), (2, 2, 2, 3, 4), (4,), (3, 3, 3, 6, 5), (5,)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(RNG.normal(size=shape)) for shape in shapes]
        found = jax.jit(partial(conv_of_up_and_skip, slices=True))(*arrays)
        np.testing.assert_allclose(found, jax.jit(parts)(*arrays), rtol=0, atol=1e-9)


def test_a_prediction_of_a_large_block_is_folded_and_the_same(monkeypatch):
    folded = []

    def watched(*arrays, slices):
        folded.append(slices)
        return conv_of_up_and_skip(*arrays, slices=slices)

    monkeypatch.setattr("voxtune.models.unet.conv_of_up_and_skip", watched)
    network = UNet(outputs=2, filters=1, depth=1, rngs=nnx.Rngs(0))
    x = jnp.asarray(RNG.normal(size=(1, 8, 8, 8, 1)), jnp.float32)
    found = network(x)
    assert folded == [True]
    taken = {}
    np.testing.assert_allclose(found, network(x, tap=taken.__setitem__), rtol=0, atol=1e-5)
    assert "decoder1/concat" in taken  # who taps sees all
    network(x[:, :4, :4, :2])
    network(x, train=True)
    assert folded == [True]


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
