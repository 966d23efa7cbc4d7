"""Layers with Keras semantics.

Arrays are channels-last, `[B, D, H, W, C]`. Parameters are float32; a layer computes in the type of
what it is given, so that a network given bfloat16 computes in bfloat16. How operations are put to
XLA stands in `voxtune.models.lowering`.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn.initializers import Initializer

from voxtune.models.activations import ACTIVATIONS, check_activation
from voxtune.models.lowering import conv, conv_transpose_blocks
from voxtune.models.norms import make_norm
from voxtune.models.run import Run

GLOROT = nnx.initializers.glorot_uniform()  # Keras's default


class Kernel(nnx.Module):
    """Kernel and bias of a 3D convolution, stride 1, padding "same".

    Args:
        channels: input channels.
        filters: output channels.
        size: edge of the kernel, voxels.
        dilation: distance of the kernel's taps, voxels.
        use_bias: whether a bias, at first zero, is added.
        initialise: how the kernel starts.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        size: int = 3,
        *,
        dilation: int = 1,
        use_bias: bool = True,
        initialise: Initializer = GLOROT,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, size, channels, filters)
        self.kernel = nnx.Param(initialise(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(filters)) if use_bias else None
        self.dilation = dilation

    def linear(self, x: Array) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, O]`, without bias."""
        return conv(x, self.kernel[...].astype(x.dtype), self.dilation)

    def convolved(self, x: Array) -> Array:
        """`linear`, and the bias added if there is one."""
        y = self.linear(x)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class Conv(Kernel):
    """3D convolution, stride 1, padding "same": Keras's `Conv3D`."""

    def __call__(self, x: Array) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, O]`."""
        return self.convolved(x)


class Head(Kernel):
    """The 1x1x1 convolution that ends a network: logits, float32 also from bfloat16."""

    def __init__(
        self, channels: int, outputs: int, *, initialise: Initializer = GLOROT, rngs: nnx.Rngs
    ) -> None:
        super().__init__(channels, outputs, size=1, initialise=initialise, rngs=rngs)

    def linear(self, x: Array) -> Array:
        """As in `Kernel`, summed and given in float32 at least."""
        wide = jnp.promote_types(x.dtype, jnp.float32)
        kernel = self.kernel[...][0, 0, 0].astype(x.dtype)
        return jnp.matmul(x, kernel, preferred_element_type=wide)

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, outputs]`; taps itself."""
        y = self.convolved(x)
        run.tap(path, y)
        return y


class ConvTranspose(Conv):
    """3D transposed convolution whose kernel equals its stride: Keras's `Conv3DTranspose`.

    The kernel is `[kD, kH, kW, C, O]`; Keras stores `[kD, kH, kW, O, C]`.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        size: int = 2,
        *,
        initialise: Initializer = GLOROT,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(channels, filters, size, initialise=initialise, rngs=rngs)

    def linear(self, x: Array) -> Array:
        """`[B, D, H, W, C]` → `[B, size D, size H, size W, O]`, without bias."""
        return conv_transpose_blocks(x, self.kernel[...].astype(x.dtype))


class ConvUnit(nnx.Module):
    """Convolution, then normalisation, activation and dropout as asked.

    Args:
        channels: input channels.
        filters: output channels.
        activation: a Keras name out of `ACTIVATIONS`.
        dilation: distance of the kernel's taps, voxels.
        norm: a name in `voxtune.models.norms.NORMS`, or None.
        dropout: share of values dropped where the run draws, see `Run.draws`.
        rngs: source of the initial values.

    Raises:
        ValueError: there is no such activation or norm.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        *,
        activation: str = "relu",
        dilation: int = 1,
        norm: str | None = None,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        check_activation(activation)
        self.conv = Conv(channels, filters, dilation=dilation, rngs=rngs)
        self.norm = make_norm(norm, filters, rngs=rngs)
        self.dropout = nnx.Dropout(dropout) if dropout else None
        self.activation = activation

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, O]`; taps `conv`, `norm` and `activation`."""
        return self.finish(self.conv(x), run, path)

    def finish(self, x: Array, run: Run, path: str) -> Array:
        """What follows the convolution, whose result is given; taps as the whole."""
        run.tap(f"{path}/conv", x)
        if self.norm is not None:
            x = self.norm(x, run)
            run.tap(f"{path}/norm", x)
        x = ACTIVATIONS[self.activation](x)
        run.tap(f"{path}/activation", x)
        if self.dropout is not None:
            x = self.dropout(x, deterministic=not run.draws, rngs=run.rngs)
        return x
