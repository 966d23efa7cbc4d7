"""What a step does to its batch: which axes are flipped, what is swapped, and what is refused."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxtune.engine.augment import PROFILES
from voxtune.engine.changes import (
    UNCHANGED,
    augmented,
    mixed_in_training,
    synthesised,
)
from voxtune.engine.config import Finetune
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass
from voxtune.models.errors import InputError

CONTRACT = Contract("PIR", (2.0, 1.0, 1.5), "zscore", (8, 8, 8))
CLASSES = tuple(LabelClass(value, str(value)) for value in (0, 41, 2, 5))


def options(**changes: Any) -> Finetune:
    return Finetune(Path("model"), "subjects.csv", Path("run"), **changes)


def test_the_augmentation_is_the_options() -> None:
    found = augmented(options(augment="nnunet", swap=("2=41",)), CONTRACT, CLASSES)
    assert found.augmentation == PROFILES["nnunet"]
    assert (found.left_right, found.swap, found.spacing) == (2, ((2, 1),), (2.0, 1.0, 1.5))


def test_a_flip_exchanges_the_sides() -> None:
    """Of a block whose left half is 2 and whose right half 41, nothing moves when flipped."""
    label = np.repeat(np.array([2, 1], np.uint8), 4) * np.ones((1, 8, 8, 1), np.uint8)
    image = np.arange(8, dtype=np.float32) * np.ones((1, 8, 8, 1), np.float32)
    changes = augmented(options(swap=("2=41",)), CONTRACT, CLASSES)
    step = jax.jit(changes)
    flips = set()
    for seed in range(8):
        batch = {"image": jnp.asarray(image[..., None]), "label": jnp.asarray(label)}
        changed, moved = step(jax.random.split(jax.random.key(seed), 1), batch)
        np.testing.assert_array_equal(moved, label)
        flips.add(bool(changed[0, :, :, -1].mean() < changed[0, :, :, 0].mean()))
    assert flips == {True, False}


def test_nothing_is_changed_by_default() -> None:
    batch = {"image": jnp.ones((1, 2, 2, 2, 1)), "label": jnp.ones((1, 2, 2, 2), jnp.uint8)}
    image, label = UNCHANGED(jax.random.split(jax.random.key(0), 1), batch)
    np.testing.assert_array_equal(image, batch["image"])
    np.testing.assert_array_equal(label, batch["label"])


def test_sides_are_told_where_blocks_are_flipped_and_nothing_is_swapped() -> None:
    told = mixed_in_training(options(), CLASSES)
    assert told is not None
    assert "--swap (2=41), or pass --flip none" in told
    for quiet in ({"swap": ("2=41",)}, {"flip": "none"}, {"augment": "none"}):
        assert mixed_in_training(options(**quiet), CLASSES) is None
    assert mixed_in_training(options(augment="none", synthetic=True), CLASSES) is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"swap": ("2=3",)}, "there is no 3, only 0, 41, 2, 5"),
        ({"swap": ("2=41",), "flip": "none"}, "--flip none leaves out"),
        ({"swap": ("2=41",), "augment": "nobrainer"}, "--augment nobrainer leaves out"),
    ],
)
def test_pairs_that_cannot_be_are_a_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        augmented(options(**changes), CONTRACT, CLASSES)


def test_images_are_drawn_at_the_contracts_voxel_size() -> None:
    found = synthesised(options(swap=("2=41",)), CONTRACT, (0, 2, 41), (0, 1, 2))
    assert found.generator.spacing_mm == (2.0, 1.0, 1.5)
    assert found.generator.swap == ((1, 2),)
    assert found.generator.flip_axis == 2
    batch = {"label": jax.ShapeDtypeStruct((2, 8, 8, 8), jnp.uint8)}
    image, classes = jax.eval_shape(found, jax.random.split(jax.random.key(0), 2), batch)
    assert (image.shape, classes.shape) == ((2, 8, 8, 8, 1), (2, 8, 8, 8))
