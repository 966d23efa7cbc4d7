"""Layers at values worked out otherwise; how they are put to XLA is in test_lowering.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array, lax

from voxtune.models.activations import ACTIVATIONS
from voxtune.models.layers import ConvTranspose

RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return jnp.asarray(RNG.normal(size=shape))


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


def test_activations_at_points_worked_out_by_hand():
    names = ("relu", "linear", "elu", "gelu")
    at = {name: float(ACTIVATIONS[name](jnp.float32(-1.0))) for name in names}
    assert at["relu"] == 0
    assert at["linear"] == -1
    assert at["elu"] == pytest.approx(np.exp(-1) - 1)
    assert at["gelu"] == pytest.approx(-0.158655254)  # -Φ(-1), the exact form
