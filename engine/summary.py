"""`voxtune summary`: what a store holds, as tables and a picture. No JAX here."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from voxtune.engine.case import Case
from voxtune.engine.config import Summary
from voxtune.engine.picture import check_picture
from voxtune.engine.store import Store, read_store

_MULTIPLE = 16  # four halvings, as the usual U-shaped networks have
_MOST_VOXELS = 128**3
_RULE = (
    "the median shape in multiples of 16 voxels, 16 taken off the axis that is longest in mm until "
    "it has at most 128^3"
)


@dataclass(frozen=True)
class ClassSummary:
    """One label value over all subjects.

    Attributes:
        value: the label value.
        name: its name, "" where it has none.
        subjects: how many have it.
        share: of all voxels of all subjects.
        boxes: edges of the boxes that hold it, voxels `[N, 3]`; none for 0.
    """

    value: int
    name: str
    subjects: int
    share: float
    boxes: np.ndarray


def summarise(config: Summary, console: Console) -> None:
    """Prints what a store holds, and draws it if asked to.

    Raises:
        InputError: the store cannot be read, or the picture not be written.
    """
    path = config.output
    if path is not None:
        check_picture(path, config.overwrite)
    store = read_store(config.store)
    console.print(_headline(store), highlight=False, soft_wrap=True)
    console.print(_geometry_table(store.cases))
    classes = class_summaries(store)
    if classes:
        console.print(_class_table(classes))
    spacings = [case.spacing_mm for case in store.cases]
    block = suggested_block([case.shape for case in store.cases], spacings)
    words = f"suggested --block {' '.join(map(str, block))}: {_RULE}"
    console.print(words, highlight=False, soft_wrap=True)
    if path is not None:
        from voxtune.engine.summary_picture import draw_summary

        draw_summary(store, classes, path)
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def suggested_block(
    shapes: Sequence[tuple[int, int, int]], spacings_mm: Sequence[tuple[float, float, float]]
) -> tuple[int, int, int]:
    """A block shape that suits subjects.

    As nnU-Net's (Isensee et al. 2021), it is at most the median shape, within a budget, and as far
    as that allows of one length in mm along all axes: it starts from the median, and the axis that
    is longest in mm gets smaller until the block has at most 128^3 voxels. Sizes are multiples of
    16, and at least 16.

    Args:
        shapes: of the conformed subjects, voxels.
        spacings_mm: their voxel sizes.
    """
    median, spacing = np.median(shapes, axis=0), np.median(spacings_mm, axis=0)
    block = np.maximum(median // _MULTIPLE, 1).astype(int) * _MULTIPLE
    while block.prod() > _MOST_VOXELS:
        block[np.where(block > _MULTIPLE, block * spacing, 0).argmax()] -= _MULTIPLE
    depth, height, width = block.tolist()
    return depth, height, width


def class_summaries(store: Store) -> list[ClassSummary]:
    """Each label value that a subject has; none where the labels are images."""
    cases = store.cases
    total = sum(sum(case.counts.values()) for case in cases)
    found = []
    for value in sorted({value for case in cases for value in case.counts}):
        having = [case for case in cases if value in case.counts]
        boxes = [np.subtract(*case.boxes[value][::-1]) for case in having if value in case.boxes]
        share = sum(case.counts[value] for case in having) / total
        name = store.names.get(value, "background" if value == 0 else "")
        edges = np.array(boxes, int).reshape(-1, 3)
        found.append(ClassSummary(value, name, len(having), share, edges))
    return found


def _headline(store: Store) -> str:
    splits = Counter(case.split for case in store.cases)
    parts = ", ".join(f"{number} {split}" for split, number in splits.items() if split)
    channels = ", ".join(store.preparation.channels) or "label maps alone"
    within = f" ({parts})" if parts else ""
    return (
        f"{store.path}: {len(store.cases)} subjects{within}; {channels}; "
        f"{store.preparation.orientation}, {store.preparation.intensity}"
    )


def _geometry_table(cases: Sequence[Case]) -> Table:
    table = Table(title="Shapes and voxel sizes, each axis by itself")
    table.add_column("")
    for name in ("least", "median", "most"):
        table.add_column(name, justify="right")
    rows: dict[str, Sequence[Sequence[float]]] = {
        "scans, voxels": [case.scan_shape for case in cases],
        "scans, mm": [case.scan_spacing_mm for case in cases],
        "stored, voxels": [case.shape for case in cases],
        "stored, mm": [case.spacing_mm for case in cases],
    }
    for name, values in rows.items():
        statistics = np.quantile(np.array(values), (0, 0.5, 1), axis=0)
        table.add_row(name, *(" x ".join(f"{n:.4g}" for n in each) for each in statistics))
    return table


def _class_table(classes: Sequence[ClassSummary]) -> Table:
    table = Table(title="Label values")
    table.add_column("value", justify="right")
    table.add_column("name", overflow="fold")
    for name in ("subjects", "share of voxels", "box, median voxels", "box, largest"):
        table.add_column(name, justify="right")
    for each in classes:
        boxes = ["", ""]
        if len(each.boxes):
            statistics = np.quantile(each.boxes, (0.5, 1), axis=0)
            boxes = [" x ".join(f"{n:.4g}" for n in edges) for edges in statistics]
        share = f"{100 * each.share:.3g} %"
        table.add_row(str(each.value), each.name, str(each.subjects), share, *boxes)
    return table
