"""Structures that have a side: which are exchanged, and along which axis."""

import pytest

from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass
from voxtune.engine.sides import flip_axes, left_right, mixed_sides, swapped_values
from voxtune.models.errors import InputError

CONTRACT = Contract("PIR", (2.0, 1.0, 1.5), "zscore", (8, 8, 8))
VALUES = (0, 41, 2, 5)
CLASSES = tuple(LabelClass(value, str(value)) for value in VALUES)


def test_the_axis_of_the_sides_is_the_contracts() -> None:
    assert left_right(CONTRACT) == 2
    assert left_right(Contract("LIA", None, "zscore", (8, 8, 8))) == 0
    assert flip_axes("left-right", CONTRACT) == (2,)
    assert flip_axes("all", CONTRACT) == (0, 1, 2)
    assert flip_axes("none", CONTRACT) == ()


def test_pairs_are_those_that_are_given() -> None:
    assert swapped_values((), VALUES) == []
    assert swapped_values(("2=41", " 5 = 7 "), (*VALUES, 7)) == [(2, 41), (5, 7)]


def test_freesurfers_pairs_are_those_that_there_are() -> None:
    assert swapped_values(("freesurfer",), (0, 2, 41, 24)) == [(2, 41)]
    with pytest.raises(InputError, match="there is no 41, only 0, 2"):
        swapped_values(("freesurfer",), (0, 2))
    with pytest.raises(InputError, match="finds none of FreeSurfer's structures"):
        swapped_values(("freesurfer",), (0, 1))


@pytest.mark.parametrize(
    ("swap", "words"),
    [
        (("2",), "LEFT=RIGHT, such as 3=42, or freesurfer; '2'"),
        (("2=2",), "in a pair already"),
        (("2=41", "5=41"), "5=41 names a value that is in a pair already"),
        (("2=3",), "there is no 3, only 0, 41, 2, 5"),
        (("2=0",), "names 0, background, which has no side"),
    ],
)
def test_pairs_that_cannot_be_are_a_sentence(swap: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        swapped_values(swap, VALUES)


def test_sides_that_flips_would_mix_up_are_told() -> None:
    told = mixed_sides(CLASSES)
    assert told is not None
    assert "2 2 and 41 41 look like two sides" in told
    assert "--swap (2=41)" in told
    assert mixed_sides(CLASSES[:1]) is None
    named = [LabelClass(0, "background"), LabelClass(1, "lh cortex"), LabelClass(2, "rh cortex")]
    assert mixed_sides(named) is not None
    assert mixed_sides(named[:2]) is None
