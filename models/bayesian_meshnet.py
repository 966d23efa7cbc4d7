"""The Bayesian MeshNet: dilated convolutions with a distribution for each weight."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.activations import ACTIVATIONS, check_activation
from voxtune.models.meshnet import MeshNet
from voxtune.models.run import Run
from voxtune.models.variational import (
    BernoulliDropout,
    ConcreteDropout,
    Convolution,
    Prior,
    make_conv,
)


def _make_dropout(
    dropout: float | Literal["concrete"], channels: int
) -> BernoulliDropout | ConcreteDropout | None:
    if dropout == "concrete":
        return ConcreteDropout(channels)
    return BernoulliDropout(dropout) if dropout else None


class VariationalUnit(nnx.Module):
    """A convolution with random weights, then dropout as asked, then activation.

    Args:
        channels: input channels.
        filters: output channels.
        dilation: distance of the kernel's taps, voxels.
        activation: a Keras name out of `ACTIVATIONS`.
        convolution: see `BayesianMeshNet`.
        prior: likewise.
        dropout: likewise.
        rngs: source of the initial values.

    Raises:
        ValueError: there is no such activation, or the convolution has no such prior.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        *,
        dilation: int,
        activation: str,
        convolution: Convolution,
        prior: Prior,
        dropout: float | Literal["concrete"],
        rngs: nnx.Rngs,
    ) -> None:
        check_activation(activation)
        self.conv = make_conv(
            convolution, channels, filters, dilation=dilation, prior=prior, rngs=rngs
        )
        self.dropout = _make_dropout(dropout, filters)
        self.activation = activation

    def __call__(self, x: Array, run: Run, path: str) -> Array:
        """`[B, D, H, W, C]` → `[B, D, H, W, O]`; taps `conv`, `dropout` and `activation`."""
        x = self.conv(x, run, f"{path}/conv")
        if self.dropout is not None:
            x = self.dropout(x, run)
            run.tap(f"{path}/dropout", x)
        x = ACTIVATIONS[self.activation](x)
        run.tap(f"{path}/activation", x)
        return x

    def kl(self) -> Array:
        """Divergence of all that is random from its prior."""
        shares = self.dropout.kl() if isinstance(self.dropout, ConcreteDropout) else 0.0
        return self.conv.kl() + shares


class BayesianMeshNet(MeshNet):
    """MeshNet with a distribution for each weight (McClure et al. 2019).

    doi 10.3389/fninf.2019.00067. Each block is a dilated 3x3x3 convolution, dropout as asked and
    an activation; a 1x1x1 convolution gives the logits. All convolutions have random weights.

    Called without `rngs` it computes with the means of all that is random and gives the same each
    time; TF Probability draws in prediction too. Called with `rngs` it is one draw;
    `voxtune.models.sampling.sampled` gives mean, variance and entropy over several. In training
    `kl` joins the loss: see `voxtune.models.variational.divergence`.

    Nobrainer's `variational_meshnet` has 71 filters, "flipout", the prior "learned" but in its
    last layer, and one of the dilations in `voxtune.models.meshnet.NOBRAINER_DILATIONS`; with the
    prior "normal" it has 1,637,758 parameters (one class). The networks of kwyk have 96 filters,
    dilations 1, 1, 1, 2, 4, 8, 1, "weight_norm", and no dropout, a share or "concrete".

    Args:
        channels: input channels.
        outputs: logits for each voxel.
        filters: channels of every block.
        dilations: dilation of each block, voxels.
        activation: a Keras name, such as "relu".
        convolution: "flipout" and "reparameterization" draw weights (`VariationalConv`),
            "weight_norm" draws results (`WeightNormConv`).
        prior: of the blocks' weights, "normal" (mean 0, standard deviation 1) or "learned".
        dropout: share of values dropped (`BernoulliDropout`), or "concrete" for shares that are
            learned (`ConcreteDropout`).
        rngs: source of the initial values.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        outputs: int,
        filters: int = 71,
        dilations: Sequence[int] = (1, 1, 2, 4, 8, 16, 1),
        activation: str = "relu",
        convolution: Convolution = "flipout",
        prior: Prior = "normal",
        dropout: float | Literal["concrete"] = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.dilations = tuple(dilations)
        for number, dilation in enumerate(self.dilations, start=1):
            unit = VariationalUnit(
                channels if number == 1 else filters,
                filters,
                dilation=dilation,
                activation=activation,
                convolution=convolution,
                prior=prior,
                dropout=dropout,
                rngs=rngs,
            )
            setattr(self, f"block{number}", unit)
        self.head = make_conv(convolution, filters, outputs, 1, rngs=rngs)

    def kl(self) -> Array:
        """Divergence of all random weights and shares from their priors: a scalar, float32, nats.

        See `voxtune.models.posterior` for the formulas.
        """
        return jnp.stack([getattr(self, name).kl() for name in self.levels()]).sum()
