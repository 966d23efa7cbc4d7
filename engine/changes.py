"""What a training step does to its batch before the network sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jax import Array

from voxtune.engine.augment import PROFILES, Augmentation, augment
from voxtune.engine.config import Finetune
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass
from voxtune.engine.sides import flip_axes, left_right, mixed_sides, swapped_values
from voxtune.engine.synthetic import Generator
from voxtune.models.errors import InputError

Batch = dict[str, Array]
# A key for each block, [B], and a batch → image float32 [B, D, H, W, C] and label [B, D, H, W].
Changes = Callable[[Array, Batch], tuple[Array, Array]]


@dataclass(frozen=True)
class Augmented:
    """Blocks of scans, changed at random.

    Attributes:
        augmentation: how.
        flip_axes: spatial axes along which blocks may be flipped.
        left_right: the axis whose flip exchanges sides; None where nothing has a side.
        swap: class indices that it exchanges, as pairs.
        spacing: of the voxels, in any unit.
    """

    augmentation: Augmentation
    flip_axes: tuple[int, ...] = ()
    left_right: int | None = None
    swap: tuple[tuple[int, int], ...] = ()
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, keys: Array, batch: Batch) -> tuple[Array, Array]:
        """Image and label of a batch that has both."""
        return augment(
            keys,
            batch["image"],
            batch["label"],
            augmentation=self.augmentation,
            flip_axes=self.flip_axes,
            left_right=self.left_right,
            swap=self.swap,
            spacing=self.spacing,
        )


UNCHANGED = Augmented(PROFILES["none"])


@dataclass(frozen=True)
class Synthesised:
    """Images drawn from label maps.

    Attributes:
        generator: how.
    """

    generator: Generator

    def __call__(self, keys: Array, batch: Batch) -> tuple[Array, Array]:
        """Image and label of a batch whose label says which of the generator's values there is."""
        return self.generator(keys, batch["label"])


def augmented(config: Finetune, contract: Contract, classes: Sequence[LabelClass]) -> Augmented:
    """The augmentation of a run.

    Raises:
        InputError: `--swap` names no pairs of classes.
    """
    index = {each.value: position for position, each in enumerate(classes)}
    pairs = swapped_in_training(config, tuple(index))
    return Augmented(
        PROFILES[config.augment],
        flip_axes=flip_axes(config.flip, contract),
        left_right=left_right(contract),
        swap=tuple((index[left], index[right]) for left, right in pairs),
        spacing=contract.spacing_mm or (1.0, 1.0, 1.0),
    )


def synthesised(
    config: Finetune, contract: Contract, values: Sequence[int], indices: Sequence[int]
) -> Synthesised:
    """The generator of a run.

    Args:
        config: of the run.
        contract: of the network.
        values: label values that images are drawn from, in the order that the batch's label counts.
        indices: class that is learned of each.

    Raises:
        InputError: the contract has no voxel size, or `--swap` names no pairs of values.
    """
    pairs = swapped_in_training(config, values)
    flip = config.flip != "none"
    return Synthesised(Generator.of(contract, values, indices, pairs=pairs, flip=flip))


def swapped_in_training(config: Finetune, values: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs of `--swap`.

    Raises:
        InputError: as `voxtune.engine.sides.swapped_values`, or nothing is flipped.
    """
    pairs = swapped_values(config.swap, values)
    if pairs and not _flips(config):
        how = "--flip none" if config.flip == "none" else f"--augment {config.augment}"
        raise InputError(f"--swap is for flips from left to right, which {how} leaves out.")
    return pairs


def mixed_in_training(config: Finetune, classes: Sequence[LabelClass]) -> str | None:
    """A sentence where a run would mix sides that are classes of their own; None elsewhere."""
    return None if config.swap or not _flips(config) else mixed_sides(classes)


def _flips(config: Finetune) -> bool:
    profile = PROFILES[config.augment]
    return config.flip != "none" and (config.synthetic or profile.flip > 0)
