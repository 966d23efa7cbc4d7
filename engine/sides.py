"""Structures that have a side, which a flip from left to right exchanges."""

import re
from collections.abc import Sequence
from typing import Literal

from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass
from voxtune.engine.synthetic import FREESURFER_PAIRS
from voxtune.models.errors import InputError

Flip = Literal["none", "left-right", "all"]


def swapped_values(swap: Sequence[str], values: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs of `--swap`.

    Args:
        swap: LEFT=RIGHT each, or freesurfer.
        values: label values that there are.

    Raises:
        InputError: one is no pair, names a value that there is not, or a value is in two.
    """
    pairs, seen = list[tuple[int, int]](), set[int]()
    for text in swap:
        if text == "freesurfer":
            # A structure of which one side alone is there keeps it only if nothing is flipped.
            known = [pair for pair in FREESURFER_PAIRS if set(pair) & set(values)]
            if not known:
                raise InputError(
                    "--swap freesurfer finds none of FreeSurfer's structures that have a side "
                    f"among the label values {', '.join(map(str, values))}; leave it out."
                )
        elif found := re.fullmatch(r"\s*(\d+)\s*=\s*(\d+)\s*", str(text)):
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
    return pairs


def mixed_sides(classes: Sequence[LabelClass]) -> str | None:
    """A sentence where flips would mix sides that are classes of their own; None elsewhere.

    They are known by FreeSurfer's values, or by names that differ in left and right alone.
    """
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
        "of one structure, and flips from left to right would mix them: give such pairs to --swap "
        f"({left.value}={right.value}), or pass --flip none"
    )


def flip_axes(flip: Flip, contract: Contract) -> tuple[int, ...]:
    """Spatial axes that `--flip` names."""
    if flip == "all":
        return (0, 1, 2)
    return (left_right(contract),) if flip == "left-right" else ()


def left_right(contract: Contract) -> int:
    """The axis that runs from left to right, or from right to left."""
    return next(axis for axis, code in enumerate(contract.orientation) if code in "LR")
