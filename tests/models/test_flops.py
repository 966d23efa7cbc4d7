"""Operations counted by hand, and the same whatever the lowering."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from voxtune.models.catalog import CATALOG, flops_of
from voxtune.models.flops import flops
from voxtune.models.lowering import conv, conv_plain


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_and_convolutions_by_hand() -> None:
    assert flops(jnp.matmul, array(4, 5), array(5, 6)) == 2 * 4 * 5 * 6
    assert flops(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), array(3, 4, 5), array(3, 5, 6)) == (
        3 * 2 * 4 * 5 * 6
    )
    voxels, taps = 2 * 8 * 8 * 8, 27
    x, kernel = array(2, 8, 8, 8, 3), array(3, 3, 3, 3, 5)
    assert flops(conv_plain, x, kernel) == 2 * voxels * taps * 3 * 5
    assert flops(lambda x: x + 1, x) == 0


@pytest.mark.parametrize(("channels", "dilation"), [(3, 1), (1, 1), (3, 2)])
def test_the_lowering_has_no_say(channels: int, dilation: int) -> None:
    x, kernel = array(2, 8, 8, 8, channels), array(3, 3, 3, channels, 5)

    def gradients(lowering):
        def total(x, kernel):
            return lowering(x, kernel, dilation).sum()

        return lambda *given: jax.value_and_grad(total, (0, 1))(*given)

    # Forward, input gradient and kernel gradient cost the same.
    assert flops(gradients(conv_plain), x, kernel) == 3 * flops(conv_plain, x, kernel)
    assert flops(gradients(conv), x, kernel) == flops(gradients(conv_plain), x, kernel)


def test_a_loop_counts_as_often_as_it_runs() -> None:
    square = array(4, 4)
    once = 2 * 4**3
    assert flops(lambda x: lax.fori_loop(0, 7, lambda _, y: y @ x, x), square) == 7 * once
    assert flops(jax.jit(lambda x: jax.checkpoint(lambda y: y @ x)(x)), square) == once
    with pytest.raises(ValueError, match="loop"):
        flops(lambda x: lax.while_loop(lambda y: y.sum() < 1, lambda y: y @ x, x), square)


def test_published_figures() -> None:
    """A training step of two blocks of 128³ costs three forward passes a block.

    Nobrainer's U-Net 5.87 TFLOP, its MeshNet of 71 filters 20.6, counted by XLA.
    """
    figures = {each.name: 6 * flops_of(each.network(), each.edge) / 1e12 for each in CATALOG[:2]}
    assert figures["U-Net"] == pytest.approx(5.87, abs=0.005)
    assert figures["MeshNet, 71 filters"] == pytest.approx(20.6, abs=0.05)
