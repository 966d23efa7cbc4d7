"""Layers whose weights are random, for networks that know how sure they are.

A layer draws where it is given a source of randomness; without one it computes with the means.
Parameters are float32, and so is all that makes a weight of them; what was drawn takes the type of
the input. Parameters bear the names that TF Probability and kwyk give them.
"""

from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.lowering import conv
from voxtune.models.posterior import (
    Keys,
    bernoulli_divergence,
    concretely_kept,
    drawn,
    flipout,
    kept,
    learned_divergence,
    locally_drawn,
    normal_divergence,
    scale_of,
    weight_norm,
)
from voxtune.models.run import Run

Convolution = Literal["flipout", "reparameterization", "weight_norm"]
Prior = Literal["normal", "learned"]


def keys_of(run: Run) -> Keys | None:
    """Where random keys come from, None where nothing is random.

    Raises:
        ValueError: the network is trained without a source of randomness.
    """
    if run.rngs is not None:
        return run.rngs.dropout
    if run.train:
        raise ValueError("its weights are random in training: it needs `rngs`")
    return None


class _Conv(nnx.Module):
    """3D convolution with a kernel that the caller has."""

    dilation: int

    def _linear(self, x: Array, kernel: Array) -> Array:
        """Padding "same"; 1x1x1 kernels are those of heads, whose result is float32."""
        kernel = kernel.astype(x.dtype)
        if kernel.shape[:3] != (1, 1, 1):
            return conv(x, kernel, self.dilation)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.matmul(x, kernel[0, 0, 0], preferred_element_type=wide)


class VariationalConv(_Conv):
    """Convolution with a normal distribution for each weight: TF Probability's.

    `Convolution3DFlipout` or `Convolution3DReparameterization`. The bias is not random. Means start
    normal with a standard deviation of 0.1; standard deviations start near softplus(-3) = 0.05.

    Args:
        channels: input channels.
        filters: output channels.
        size: edge of the kernel, voxels.
        dilation: distance of the kernel's taps, voxels.
        flip: whether by `flipout`; if not, all examples of a batch have the same weights.
        prior: "normal" is the standard normal distribution. "learned" is Nobrainer's: a mean for
            each weight and one standard deviation, all trained.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        size: int = 3,
        *,
        dilation: int = 1,
        flip: bool = True,
        prior: Prior = "normal",
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, size, channels, filters)

        def around(mean: float, shape: tuple[int, ...]) -> nnx.Param[Array]:
            values = nnx.initializers.normal(0.1)(rngs.params(), shape, jnp.float32)
            return nnx.Param(mean + values)

        self.kernel_posterior_loc = around(0.0, shape)
        self.kernel_posterior_untransformed_scale = around(-3.0, shape)
        self.bias_posterior_loc = around(0.0, (filters,))
        learned = prior == "learned"
        self.kernel_prior_untransformed_scale = around(-1.0, (1,)) if learned else None
        self.kernel_prior_loc = nnx.Param(jnp.zeros(shape)) if learned else None
        self.dilation, self.flip = dilation, flip

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, O]`; taps itself."""
        mean, keys = self.kernel_posterior_loc[...], keys_of(run)
        if keys is None:
            y = self._linear(x, mean)
        elif self.flip:
            y = flipout(self._linear, x, mean, self._scale(), keys)
        else:
            y = self._linear(x, drawn(mean, self._scale(), keys()))
        y = y + self.bias_posterior_loc[...].astype(y.dtype)
        run.tap(path, y)
        return y

    def _scale(self) -> Array:
        return scale_of(self.kernel_posterior_untransformed_scale[...])

    def kl(self) -> Array:
        """Divergence of the kernel from its prior."""
        mean, scale = self.kernel_posterior_loc[...], self._scale()
        if self.kernel_prior_loc is None or self.kernel_prior_untransformed_scale is None:
            return normal_divergence(mean, scale)
        raw = self.kernel_prior_untransformed_scale[...]
        return learned_divergence(mean, scale, self.kernel_prior_loc[...], raw)


class WeightNormConv(_Conv):
    """Convolution with a normal distribution for each weight and bias: kwyk's.

    The means of a kernel are normalised (`weight_norm`), the standard deviations are |a|, and
    results are drawn in the place of weights (`locally_drawn`). The prior is the standard normal
    distribution; kwyk's was that of an earlier network, which its files do not hold. Directions
    start by He's uniform distribution, lengths at √2, standard deviations at 1e-4.

    Args:
        channels: input channels.
        filters: output channels.
        size: edge of the kernel, voxels.
        dilation: distance of the kernel's taps, voxels.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        size: int = 3,
        *,
        dilation: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, size, channels, filters)
        self.v = nnx.Param(nnx.initializers.he_uniform()(rngs.params(), shape, jnp.float32))
        self.g = nnx.Param(jnp.full((1, 1, 1, 1, filters), 2**0.5))
        self.kernel_a = nnx.Param(jnp.full(shape, 1e-4))
        self.bias_m = nnx.Param(jnp.zeros(filters))
        self.bias_a = nnx.Param(jnp.full(filters, 1e-4))
        self.dilation = dilation

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, O]`; taps itself."""
        mean, keys = weight_norm(self.v[...], self.g[...]), keys_of(run)
        if keys is None:
            y = self._linear(x, mean)
            y = y + self.bias_m[...].astype(y.dtype)
        else:
            kernel = mean, abs(self.kernel_a[...])
            bias = self.bias_m[...], abs(self.bias_a[...])
            y = locally_drawn(self._linear, x, kernel, bias, keys)
        run.tap(path, y)
        return y

    def kl(self) -> Array:
        """Divergence of kernel and bias from the prior."""
        # As in kwyk, 1e-8 keeps the logarithm of a standard deviation of zero finite.
        kernel = normal_divergence(
            weight_norm(self.v[...], self.g[...]), abs(self.kernel_a[...]) + 1e-8
        )
        return kernel + normal_divergence(self.bias_m[...], abs(self.bias_a[...]) + 1e-8)


def make_conv(
    convolution: Convolution,
    channels: int,
    filters: int,
    size: int = 3,
    *,
    dilation: int = 1,
    prior: Prior = "normal",
    rngs: nnx.Rngs,
) -> VariationalConv | WeightNormConv:
    """The convolution of that name; arguments as there.

    Raises:
        ValueError: it has no learned prior.
    """
    if convolution != "weight_norm":
        flip = convolution == "flipout"
        return VariationalConv(
            channels, filters, size, dilation=dilation, flip=flip, prior=prior, rngs=rngs
        )
    if prior == "learned":
        raise ValueError("the convolution weight_norm has no learned prior")
    return WeightNormConv(channels, filters, size, dilation=dilation, rngs=rngs)


class BernoulliDropout(nnx.Module):
    """Dropout that does not scale what it keeps; without randomness it scales all: Nobrainer's.

    Args:
        rate: share of values dropped.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, x: Array, run: Run) -> Array:
        """Any array → the same shape."""
        return kept(x, 1 - self.rate, keys_of(run))


class ConcreteDropout(nnx.Module):
    """Dropout that learns for each channel the share that it keeps, 0.9 at first: kwyk's.

    See `concretely_kept`.

    Args:
        channels: of its input.
    """

    def __init__(self, channels: int) -> None:
        self.p = nnx.Param(jnp.full(channels, 0.9))

    def __call__(self, x: Array, run: Run) -> Array:
        """`[..., C]` → the same shape."""
        return concretely_kept(x, self.p[...], keys_of(run))

    def kl(self) -> Array:
        """Divergence of the shares from a half."""
        return bernoulli_divergence(self.p[...])


def divergence(network: nnx.Module) -> Array | None:
    """Divergence of all random weights of a network from their priors, float32, nats.

    Added to the cross-entropy of all training voxels, or divided by their number and added to the
    mean, it makes the evidence lower bound, with its sign turned, that variational inference
    maximises (Blundell et al. 2015, arXiv 1505.05424). Nobrainer and kwyk divide it by the number
    of blocks, though their cross-entropy is a mean over voxels.

    Returns:
        A scalar, None where no weight is random.
    """
    return network.kl() if hasattr(network, "kl") else None
