"""What a training step does to its batch before the network sees it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jax import Array

from voxtune.engine.augment import PROFILES, Augmentation, augment
from voxtune.engine.config import Finetune
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass
from voxtune.engine.synthetic import FREESURFER_PAIRS, Generator
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
    pairs = swapped_values(config, tuple(index))
    return Augmented(
        PROFILES[config.augment],
        flip_axes=flip_axes(config, contract),
        left_right=_left_right(contract),
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
    pairs = swapped_values(config, values)
    flip = config.flip != "none"
    return Synthesised(Generator.of(contract, values, indices, pairs=pairs, flip=flip))


def swapped_values(config: Finetune, values: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs of `--swap`.

    Args:
        config: of the run.
        values: label values that there are.

    Raises:
        InputError: one is no pair, names a value that there is not, or a value is in two.
    """
    pairs, seen = list[tuple[int, int]](), set[int]()
    for text in config.swap:
        if text == "freesurfer":
            # A structure of which one side alone is there keeps it only if nothing is flipped.
            known = [pair for pair in FREESURFER_PAIRS if set(pair) & set(values)]
            if not known:
                raise InputError(
                    "--swap freesurfer finds none of FreeSurfer's structures that have a side "
                    f"among the label values {', '.join(map(str, values))}; leave it out."
                )
        elif found := re.fullmatch(r"\s*(\d+)\s*=\s*(\d+)\s*", text):
            known = [(int(found[1]), int(found[2]))]
        else:
            raise InputError(
                f"--swap takes LEFT=RIGHT, such as 3=42, or freesurfer; '{text}' is not that."
            )
        for left, right in known:
            absent = [value for value in (left, right) if value not in values]
            if absent:
                raise InputError(
                    f"--swap exchanges the label values {left} and {right}, but there is no "
                    f"{absent[0]}, only {', '.join(map(str, values))}; give both, or --flip none."
                )
            if 0 in (left, right):
                raise InputError(f"--swap: {left}={right} names 0, background, which has no side.")
            if left == right or {left, right} & seen:
                raise InputError(f"--swap: {left}={right} names a value that is in a pair already.")
            seen |= {left, right}
            pairs.append((left, right))
    if pairs and not _flips(config):
        how = "--flip none" if config.flip == "none" else f"--augment {config.augment}"
        raise InputError(f"--swap is for flips from left to right, which {how} leaves out.")
    return pairs


def mixed_sides(config: Finetune, classes: Sequence[LabelClass]) -> str | None:
    """A sentence where flips would exchange sides that are classes of their own; None elsewhere.

    They are known by FreeSurfer's values, or by names that differ in left and right alone.
    """
    if config.swap or not _flips(config):
        return None
    by_value = {each.value: each for each in classes}
    pairs = [(by_value[a], by_value[b]) for a, b in FREESURFER_PAIRS if {a, b} <= by_value.keys()]
    by_name: dict[str, LabelClass] = {}
    for each in classes:
        plain, found = re.subn(r"left|right|\blh\b|\brh\b", "", each.name.lower())
        other = by_name.setdefault(plain, each) if found else each
        pairs += [(other, each)] if other is not each else []
    if not pairs:
        return None
    left, right = pairs[0]
    return (
        f"the classes {left.value} {left.name} and {right.value} {right.name} look like two sides "
        "of one structure, and blocks are flipped from left to right: give such pairs to --swap "
        f"({left.value}={right.value}), or pass --flip none"
    )


def _flips(config: Finetune) -> bool:
    profile = PROFILES[config.augment]
    return config.flip != "none" and (config.synthetic or profile.flip > 0)


def flip_axes(config: Finetune, contract: Contract) -> tuple[int, ...]:
    """Spatial axes along which blocks may be flipped."""
    if config.flip == "all":
        return (0, 1, 2)
    return (_left_right(contract),) if config.flip == "left-right" else ()


def _left_right(contract: Contract) -> int:
    return next(axis for axis, code in enumerate(contract.orientation) if code in "LR")
