"""How far a graph looks, and which sizes fit through it, told from the windows of its calls."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from voxtune.models.kind import Shape, Window, Windows

Interval = tuple[int, int]
_PLACES = 1024  # that are looked at: no U-Net has more kinds of them, and a stranger's file may


@dataclass(frozen=True)
class Step:
    """A call of a layer, as far as places are concerned.

    Attributes:
        inputs: names of the calls or inputs that it reads.
        windows: for each spatial axis; None where each place depends on the whole input.
        keeps: whether the result has the shape of the first input, as after a normalisation: then
            places are where they were, though they may depend on all.
    """

    inputs: tuple[str, ...]
    windows: Windows
    keeps: bool = False


def receptive_field(
    steps: Mapping[str, Step], outputs: Sequence[str], shapes: Mapping[str, Shape]
) -> int | None:
    """Largest edge of the box of input voxels that an output voxel depends on, voxels.

    The edge depends on where the voxel lies in the coarse voxels of the network, and the border
    of the volume cuts it off; this is the largest away from the border. Where a transposed
    convolution has gaps, it may be less in truth.

    Args:
        steps: call → step, each after those that it reads.
        outputs: the calls or inputs that are asked about.
        shapes: call or input → shape with batch and channels.

    Returns:
        None where an output voxel depends on the whole input.
    """
    needed = _ancestors(steps, outputs)
    if any(steps[name].windows is None for name in needed & steps.keys()):
        return None
    edges = [1] if all(len(shapes[name]) > 2 for name in outputs) else []
    for output in outputs:
        for axis in range(len(shapes[output]) - 2):
            scales = _scales(steps, axis)
            period = math.lcm(
                *(
                    (_scale(scales, name) / _scale(scales, output)).denominator
                    for name in _ancestors(steps, [output])
                )
            )
            for place in range(min(period, _PLACES)):
                reached = _reached(steps, output, axis, place, shapes)
                edges += [high - low + 1 for low, high in reached]
    return max(edges, default=None)


def min_multiple(steps: Mapping[str, Step], outputs: Sequence[str]) -> int:
    """Spatial shapes that are multiples of this go through all strides without a rest, voxels.

    A network that restores what its strides took then gives an output of the input's size, and
    its skips fit. Arguments as of `receptive_field`.
    """
    needed = _ancestors(steps, outputs)
    axes = max((len(step.windows or ()) for step in steps.values()), default=0)
    return math.lcm(
        *(
            scale.denominator
            for axis in range(axes)
            for name, scale in _scales(steps, axis).items()
            if name in needed and scale is not None
        )
    )


def min_local_depth(
    steps: Mapping[str, Step], outputs: Sequence[str], shapes: Mapping[str, Shape], depth: int
) -> int:
    """Fewest places along the first axis that one of several devices can hold, voxels.

    With these no window reaches beyond the neighbour's places, at no resolution, and each
    resolution has a place. Other arguments as of `receptive_field`.

    Args:
        depth: the input's places along the first axis, to which `shapes` belong.
    """
    needed, fewest = _ancestors(steps, outputs), 1
    for name, step in steps.items():
        if name not in needed or not step.windows:
            continue
        window = step.windows[0]
        for places in {shapes[source][1] for source in step.inputs} - {1}:  # 1: no resolution
            low, high = window.reach(0, places * window.up // window.stride - 1)
            beyond = max(-low, high - places + 1, 1)
            fewest = max(fewest, math.ceil(Fraction(beyond * depth, places)))
    return fewest


def _ancestors(steps: Mapping[str, Step], outputs: Sequence[str]) -> set[str]:
    """The outputs and all that they are computed from."""
    found = set(outputs)
    for name in reversed(list(steps)):
        if name in found:
            found.update(steps[name].inputs)
    return found


def _scales(steps: Mapping[str, Step], axis: int) -> dict[str, Fraction | None]:
    """Call → its places for each place of the input; None after the places have been mixed."""
    scales: dict[str, Fraction | None] = {}
    for name, step in steps.items():
        known = [scales.get(source, Fraction(1)) for source in step.inputs]
        scale = next((each for each in known if each is not None), None)
        if step.windows is None and step.keeps:
            scales[name] = scale
        elif step.windows is None or axis >= len(step.windows) or scale is None:
            scales[name] = None
        else:
            window = step.windows[axis]
            scales[name] = scale * window.up / window.stride
    return scales


def _scale(scales: Mapping[str, Fraction | None], name: str) -> Fraction:
    return scales.get(name) or Fraction(1)


def _reached(
    steps: Mapping[str, Step], output: str, axis: int, place: int, shapes: Mapping[str, Shape]
) -> Iterator[Interval]:
    """For each input that a place of the output depends on, the first and the last place."""
    needed: dict[str, Interval] = {output: (place, place)}
    for name in reversed(list(steps)):
        windows = steps[name].windows
        if name not in needed or windows is None:
            continue
        low, high = needed.pop(name)
        for source in steps[name].inputs:
            window = windows[axis]
            spread = shapes[source][axis + 1] == 1 != shapes[name][axis + 1]
            first, last = (0, 0) if spread and window == Window() else window.reach(low, high)
            if first <= last:
                before = needed.get(source, (first, last))
                needed[source] = min(first, before[0]), max(last, before[1])
    yield from needed.values()
