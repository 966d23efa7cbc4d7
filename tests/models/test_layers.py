"""Each lowering against plain XLA operations in float64: result and both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from voxtune.models.layers import (
    ACTIVATIONS,
    ConvTranspose,
    conv,
    conv_depth_slices,
    conv_plain,
    max_pool,
)

RNG = np.random.default_rng(0)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def normal(*shape: int) -> Array:
    return jnp.asarray(RNG.normal(size=shape))


@pytest.mark.parametrize(
    ("shape", "filters", "dilation"),
    [((2, 5, 6, 7, 3), 4, 1), ((1, 4, 9, 8, 1), 2, 2), ((1, 5, 6, 7, 2), 3, 8)],
)
@pytest.mark.usefixtures("float64")
def test_depth_slices_equal_the_plain_convolution(shape, filters, dilation):
    x, kernel = normal(*shape), normal(3, 3, 3, shape[-1], filters)
    weight = normal(*shape[:-1], filters)

    def total(lowering):
        return lambda x, kernel: (lowering(x, kernel, dilation) * weight).sum()

    np.testing.assert_allclose(
        conv_depth_slices(x, kernel, dilation), conv_plain(x, kernel, dilation), atol=1e-11
    )
    ours = jax.grad(total(conv_depth_slices), argnums=(0, 1))(x, kernel)
    plain = jax.grad(total(conv_plain), argnums=(0, 1))(x, kernel)
    for found, wanted in zip(ours, plain, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_a_kernel_of_one_voxel_is_a_product():
    x, kernel = normal(2, 3, 4, 5, 6), normal(1, 1, 1, 6, 2)
    np.testing.assert_allclose(conv(x, kernel), conv_plain(x, kernel), atol=1e-12)


def test_a_batch_over_devices_stays_where_it_is():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    x, kernel = jnp.float32(RNG.normal(size=(4, 6, 6, 6, 2))), jnp.ones((3, 3, 3, 2, 3))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def loss(x: Array, kernel: Array) -> Array:
        return (conv_depth_slices(x, kernel, 2) ** 2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), in_shardings=(split, whole))
    assert "all-gather" not in gradient.lower(x, kernel).compile().as_text()
    for found, wanted in zip(
        gradient(x, kernel), jax.grad(loss, argnums=(0, 1))(x, kernel), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-3)


@pytest.mark.usefixtures("float64")
def test_transposed_convolution_is_the_gradient_of_a_strided_one():
    # Keras defines Conv3DTranspose so, with its kernel [kD, kH, kW, out, in].
    layer = nnx.eval_shape(lambda: ConvTranspose(3, 2, rngs=nnx.Rngs(0)))
    keras_kernel, x = normal(2, 2, 2, 2, 3), normal(1, 2, 3, 4, 3)
    layer.kernel.set_value(keras_kernel.swapaxes(-1, -2))
    layer.bias.set_value(jnp.zeros(2))

    def strided(y: Array) -> Array:
        names = ("NDHWC", "DHWIO", "NDHWC")
        return lax.conv_general_dilated(
            y, keras_kernel, (2, 2, 2), "VALID", dimension_numbers=names
        )

    _, transposed = jax.vjp(strided, jnp.zeros((1, 4, 6, 8, 2)))
    np.testing.assert_allclose(layer(x), transposed(x)[0], atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_max_pool_equals_reduce_window():
    x = normal(2, 5, 4, 7, 3)  # odd sizes: the last plane fills no block
    wanted = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 2, 1), (1, 2, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(max_pool(x), wanted)
    weight = normal(*wanted.shape)
    found = jax.grad(lambda x: (max_pool(x) * weight).sum())(x)
    plain = jax.grad(
        lambda x: (
            lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 2, 1), (1, 2, 2, 2, 1), "VALID")
            * weight
        ).sum()
    )(x)
    np.testing.assert_array_equal(found, plain)


def test_a_tie_sends_its_gradient_to_the_first_voxel():
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.zeros((1, 2, 2, 2, 1)))
    assert gradient.ravel().tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_activations_at_points_worked_out_by_hand():
    names = ("relu", "linear", "elu", "gelu")
    at = {name: float(ACTIVATIONS[name](jnp.float32(-1.0))) for name in names}
    assert at["relu"] == 0
    assert at["linear"] == -1
    assert at["elu"] == pytest.approx(np.exp(-1) - 1)
    assert at["gelu"] == pytest.approx(-0.158655254)  # -Φ(-1), the exact form
