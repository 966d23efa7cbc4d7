"""MeshNet: a stack of dilated convolutions at full resolution."""

from collections.abc import Sequence

from flax import nnx

from voxtune.models.family import Chain
from voxtune.models.layers import ConvUnit, Head
from voxtune.models.norms import WIDE_NORMS, NormName

# Nobrainer's `meshnet` by its receptive field, voxels.
NOBRAINER_DILATIONS = {
    37: (1, 1, 1, 2, 4, 8, 1),
    67: (1, 1, 2, 4, 8, 16, 1),
    129: (1, 2, 4, 8, 16, 32, 1),
}


class MeshNet(Chain):
    """MeshNet (Fedorov et al. 2017, doi 10.1109/IJCNN.2017.7966333).

    Blocks of a dilated 3x3x3 convolution, batch normalisation, activation and dropout, then a
    1x1x1 convolution to logits. Nobrainer's `meshnet` has seven blocks with all four parts
    (`NOBRAINER_DILATIONS`; 71 filters, 21 for one class, dropout 0.25); brainchop's published
    networks have eight or nine of convolution and activation alone, their batch normalisation
    having been folded into the convolutions.

    Args:
        channels: input channels.
        outputs: logits for each voxel.
        filters: channels of every block.
        dilations: dilation of each block, voxels.
        activation: a Keras name, such as "relu", "elu" or "gelu".
        norm: normalisation of each block: "batch", "group", "instance" or none.
        dropout: share of values dropped in training.
        rngs: source of the initial values.
    """

    norm: NormName | None = None  # of a subclass without norms

    def __init__(
        self,
        *,
        channels: int = 1,
        outputs: int,
        filters: int = 21,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 8, 4, 2, 1),
        activation: str = "relu",
        norm: NormName | None = "batch",
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        self.dilations, self.norm = tuple(dilations), norm
        for number, dilation in enumerate(self.dilations, start=1):
            unit = ConvUnit(
                channels if number == 1 else filters,
                filters,
                activation=activation,
                dilation=dilation,
                norm=norm,
                dropout=dropout,
                rngs=rngs,
            )
            setattr(self, f"block{number}", unit)
        self.head: nnx.Module = Head(filters, outputs, rngs=rngs)

    @property
    def receptive_field(self) -> int | None:
        """Edge of the cube of input voxels that one output voxel depends on, voxels.

        None where the norms take their statistics from the whole input.
        """
        return None if self.norm in WIDE_NORMS else 1 + 2 * sum(self.dilations)

    def levels(self) -> tuple[str, ...]:
        """Names of the stages, from input to output."""
        return (*(f"block{number}" for number in range(1, len(self.dilations) + 1)), "head")

    @property
    def min_local_depth(self) -> int:
        """Fewest depth slices that a device can hold where depth is split, voxels."""
        return max(self.dilations)
