"""Transformer blocks: attention and a perceptron, over tokens `[B, N, C]`.

Parameters are float32; a layer computes in the type of what it is given. Paths and layouts of the
weights are those of Keras's `MultiHeadAttention`, `Dense` and `LayerNormalization`.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.layers import GLOROT
from voxtune.models.run import Run


class Dense(nnx.Module):
    """A product with a matrix, and a bias: Keras's `Dense`."""

    def __init__(self, channels: int, units: int, *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(GLOROT(rngs.params(), (channels, units), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(units))

    def __call__(self, x: Array) -> Array:
        """`[..., C]` → `[..., units]`."""
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.LayerNorm):
    """Keras's `LayerNormalization` over the channels, epsilon 1e-6; its statistics are float32."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(channels, epsilon=1e-6, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # not nnx's options
        """`[..., C]` → the same shape and type."""
        return super().__call__(x).astype(x.dtype)


class Heads(nnx.Module):
    """A `Dense` whose outputs, or inputs, are split into attention heads.

    Args:
        shape: of the kernel, `[C, heads, width]` or `[heads, width, C]`.
        entering: how many of its axes are those of the input.
        rngs: source of the initial values, which are those of the `Dense` without the split.
    """

    def __init__(self, shape: tuple[int, int, int], entering: int, *, rngs: nnx.Rngs) -> None:
        matrix = math.prod(shape[:entering]), math.prod(shape[entering:])
        kernel = GLOROT(rngs.params(), matrix, jnp.float32)
        self.kernel = nnx.Param(kernel.reshape(shape))
        self.bias = nnx.Param(jnp.zeros(shape[entering:]))
        self.entering = entering

    def __call__(self, x: Array) -> Array:
        """`[B, N, C]` → `[B, N, heads, width]`, or the way back."""
        y = jnp.tensordot(x, self.kernel[...].astype(x.dtype), self.entering)
        return y + self.bias[...].astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762), its softmax float32.

    Args:
        channels: of the tokens, a multiple of `heads`.
        heads: how many times tokens attend to each other.
        dropout: share of the attention weights dropped in training.
        rngs: source of the initial values.
    """

    def __init__(self, channels: int, heads: int, *, dropout: float, rngs: nnx.Rngs) -> None:
        width = channels // heads
        self.query = Heads((channels, heads, width), 1, rngs=rngs)
        self.key = Heads((channels, heads, width), 1, rngs=rngs)
        self.value = Heads((channels, heads, width), 1, rngs=rngs)
        self.attention_output = Heads((heads, width, channels), 2, rngs=rngs)
        self.dropout = nnx.Dropout(dropout) if dropout else None

    def __call__(self, x: Array, run: Run) -> Array:
        """`[B, N, C]` → `[B, N, C]`."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=dtype)
        shares = jax.nn.softmax(scores / math.sqrt(query.shape[-1]), axis=-1).astype(x.dtype)
        if self.dropout is not None:
            shares = self.dropout(shares, deterministic=not run.draws, rngs=run.rngs)
        return self.attention_output(jnp.einsum("bhqk,bkhc->bqhc", shares, value))


class TransformerBlock(nnx.Module):
    """Attention, then a perceptron of one hidden layer, each normalised before and added after.

    Args:
        channels: of the tokens.
        heads: of the attention.
        hidden: channels of the hidden layer, which ends in ReLU.
        dropout: share dropped in training of the attention weights and of the attention's result.
        mlp_dropout: share of the hidden layer dropped in training.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        *,
        dropout: float,
        mlp_dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.attention_norm = LayerNorm(channels, rngs=rngs)
        self.attention = Attention(channels, heads, dropout=dropout, rngs=rngs)
        self.mlp_norm = LayerNorm(channels, rngs=rngs)
        self.mlp_in = Dense(channels, hidden, rngs=rngs)
        self.mlp_out = Dense(hidden, channels, rngs=rngs)
        self.attention_dropout = nnx.Dropout(dropout) if dropout else None
        self.mlp_dropout = nnx.Dropout(mlp_dropout) if mlp_dropout else None

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, N, C]` → `[B, N, C]`; taps everything."""

        def tapped(name: str, value: Array) -> Array:
            run.tap(f"{path}/{name}", value)
            return value

        def dropped(name: str, value: Array) -> Array:
            layer: nnx.Dropout | None = getattr(self, name)
            if layer is None:
                return value
            return tapped(name, layer(value, deterministic=not run.draws, rngs=run.rngs))

        y = tapped("attention_norm", self.attention_norm(x))
        y = tapped("attention", self.attention(y, run))
        x = tapped("attention_add", dropped("attention_dropout", y) + x)
        y = tapped("mlp_norm", self.mlp_norm(x))
        y = tapped("mlp_in", self.mlp_in(y))
        y = dropped("mlp_dropout", tapped("mlp_activation", nnx.relu(y)))
        return tapped("add", tapped("mlp_out", self.mlp_out(y)) + x)
