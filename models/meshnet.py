"""MeshNet: a stack of dilated convolutions at full resolution."""

from collections.abc import Sequence

from flax import nnx
from jax import Array

from voxtune.models.layers import Conv, ConvUnit, Tap, ignore


class MeshNet(nnx.Module):
    """MeshNet (Fedorov et al. 2017, doi 10.1109/IJCNN.2017.7966333).

    Blocks of a dilated 3x3x3 convolution, batch normalisation, activation and dropout, then a
    1x1x1 convolution to logits. Nobrainer's `meshnet` has seven blocks with all four parts;
    brainchop's published networks have eight or nine of convolution and activation alone, their
    batch normalisation having been folded into the convolutions.

    Args:
        channels: input channels.
        outputs: logits for each voxel.
        filters: channels of every block.
        dilations: dilation of each block, voxels.
        activation: "relu", "elu" or "gelu".
        batchnorm: whether blocks normalise.
        dropout: share of values dropped in training.
        rngs: source of the initial values.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        outputs: int,
        filters: int = 21,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 8, 4, 2, 1),
        activation: str = "relu",
        batchnorm: bool = True,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.dilations = tuple(dilations)
        for number, dilation in enumerate(self.dilations, start=1):
            unit = ConvUnit(
                channels if number == 1 else filters,
                filters,
                activation=activation,
                dilation=dilation,
                batchnorm=batchnorm,
                dropout=dropout,
                rngs=rngs,
            )
            setattr(self, f"block{number}", unit)
        self.head = Conv(filters, outputs, size=1, rngs=rngs)

    @property
    def min_multiple(self) -> int:
        """Spatial shapes must be multiples of this, voxels."""
        return 1

    @property
    def receptive_field(self) -> int:
        """Edge of the cube of input voxels that one output voxel depends on, voxels."""
        return 1 + 2 * sum(self.dilations)

    @property
    def head_path(self) -> str:
        """Path of the layer that gives the outputs."""
        return "head"

    def levels(self) -> tuple[str, ...]:
        """Names of the stages, from input to output."""
        return (*(f"block{number}" for number in range(1, len(self.dilations) + 1)), "head")

    def __call__(
        self, x: Array, *, train: bool = False, rngs: nnx.Rngs | None = None, tap: Tap = ignore
    ) -> Array:
        """Logits of each voxel.

        Args:
            x: `[B, D, H, W, C]`.
            train: whether statistics are taken from the batch and values dropped.
            rngs: source of dropout, needed where `train` and the network has any.
            tap: receives each intermediate result under its path.

        Returns:
            `[B, D, H, W, outputs]`.
        """
        for name in self.levels()[:-1]:
            x = getattr(self, name)(x, train=train, rngs=rngs, tap=tap, path=name)
        x = self.head(x)
        tap("head", x)
        return x
