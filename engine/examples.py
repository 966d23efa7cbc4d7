"""Blocks as a training step sees them, after augmentation, as a picture for a person."""

from collections.abc import Callable
from pathlib import Path

import grain
import jax
import numpy as np
from jax import Array

from voxtune.engine.case import IGNORE
from voxtune.engine.changes import Batch
from voxtune.engine.conform import axis_directions
from voxtune.engine.contract import Contract
from voxtune.engine.picture import PictureRow, draw_contours
from voxtune.engine.volume import Volume

COUNT = 6


def draw_examples(
    batches: grain.MapDataset,
    change: Callable[[int, Batch], tuple[Array, Array]],
    contract: Contract,
    path: Path,
) -> None:
    """Writes a PNG of the first blocks of a run: their first channel, with the outlines of labels.

    Args:
        batches: of the run.
        change: number of a step and its batch → image and label that the network is given.
        contract: what blocks were prepared by.
        path: where to write. An existing file is replaced.

    Raises:
        InputError: the picture cannot be written.
    """
    affine = np.eye(4)
    spacing = contract.spacing_mm or (1.0, 1.0, 1.0)
    affine[:3, :3] = axis_directions(contract.orientation) * spacing
    jitted = jax.jit(change)
    rows: list[PictureRow] = []
    step = 0
    while len(rows) < COUNT:
        batch = dict(batches[step])
        names = batch.pop("name")
        images, labels = map(np.asarray, jitted(step, batch))
        for name, image, label in zip(names, images, labels, strict=True):
            # A target has no outlines.
            values = None if label.dtype.kind == "f" else np.where(label == IGNORE, 0, label)
            truth = None if values is None else Volume(values, affine, path, None)
            title = f"{str(name)[:24]}, step {step + 1}"
            rows.append((title, Volume(image[..., 0], affine, path, None), truth, None))
        step += 1
    draw_contours(rows[:COUNT], path)
