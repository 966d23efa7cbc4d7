"""Connected components of label maps: the largest, and holes. No JAX here.

Voxels of a component touch by a face, an edge or a corner (26 neighbours). Background is connected
by faces alone (6 neighbours), the other half of that pair: a surface that holds together through
corners also keeps the background on its two sides apart.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

_FACES_EDGES_CORNERS = np.ones((3, 3, 3), bool)
_FACES = ndimage.generate_binary_structure(3, 1)


def connected(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Components of a mask, of 26 neighbours.

    Args:
        mask: bool `[D, H, W]`.

    Returns:
        int32 `[D, H, W]`, 0 outside the mask and the number of its component, from 1, in it; and
        how many components there are.
    """
    labels = np.empty(mask.shape, np.int32)
    number = ndimage.label(mask, _FACES_EDGES_CORNERS, output=labels)
    return labels, int(number)


def largest(mask: np.ndarray) -> np.ndarray:
    """The largest component of a mask `[D, H, W]`, bool; of equals the first in C order."""
    labels, number = connected(mask)
    if number < 2:
        return mask.astype(bool)
    sizes = np.zeros(number + 1, np.int64)
    for plane in labels:  # of the whole, numpy would make a copy of 64 bits a voxel
        sizes += np.bincount(plane.ravel(), minlength=number + 1)
    sizes[0] = 0
    return labels == sizes.argmax()


def keep_largest(labels: np.ndarray, values: Sequence[int], by_class: bool) -> np.ndarray:
    """Labels of which only the largest component is left, the rest background (0).

    Args:
        labels: integers `[D, H, W]`.
        values: those that are classes, without 0.
        by_class: the largest of each class; else of all classes together.
    """
    kept = labels.copy()
    if not by_class:
        kept[~largest(labels != 0)] = 0
        return kept
    for value, box in _boxes(labels, values):
        mask = labels[box] == value
        mask &= ~largest(mask)
        kept[box][mask] = 0
    return kept


def fill_holes(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Labels whose enclosed background belongs to the class round it.

    Background is a hole of a class where no path of faces leads from it to the border of the volume
    without crossing that class. What several classes enclose, one round the other, goes to the one
    whose box is the smallest, the inner one; what only two together enclose stays.

    Args:
        labels: integers `[D, H, W]`.
        values: those that are classes, without 0.
    """
    filled = labels.copy()

    def size(found: tuple[int, tuple[slice, ...]]) -> int:
        return math.prod(part.stop - part.start for part in found[1])

    for value, box in sorted(_boxes(labels, values), key=size):
        mask = labels[box] == value
        # A background component of the box that does not touch its border is enclosed.
        np.logical_not(mask, out=mask)
        inverse, number = ndimage.label(mask, _FACES)
        open_to = np.zeros(number + 1, bool)
        open_to[0] = True
        for axis in range(3):
            for end in (0, -1):
                open_to[np.unique(inverse.take(end, axis))] = True
        if not open_to.all():
            for new, parts in zip(filled[box], inverse, strict=True):
                new[~open_to[parts] & (new == 0)] = value
        del inverse  # else the next class's would lie beside it
    return filled


def _boxes(labels: np.ndarray, values: Sequence[int]) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Where each of the values lies, of those that are there."""
    found = ndimage.find_objects(labels, max(values, default=0))
    for value in values:
        if found and (box := found[value - 1]) is not None:
            yield value, box
