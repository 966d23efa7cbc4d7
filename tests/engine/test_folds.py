"""Folds: who validates which run."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from voxtune.engine.folds import fold_of, part_of, person_of, split_by_fold
from voxtune.engine.subjects import Subject
from voxtune.models.errors import InputError


def subjects(names: Sequence[str], split: str | None = None) -> list[Subject]:
    return [Subject(name, {"image": Path("image")}, Path("label"), split) for name in names]


def names_of(items: Sequence[Subject]) -> list[str]:
    return [each.name for each in items]


NAMES = [f"sub-{number:02}" for number in range(23)]


def test_each_validates_once_and_sizes_are_even() -> None:
    given = subjects(NAMES)
    found = [split_by_fold(given, f"{number}/5", "t.csv") for number in range(1, 6)]
    assert sorted(name for _, held in found for name in names_of(held)) == NAMES
    assert sorted(len(held) for _, held in found) == [4, 4, 5, 5, 5]
    for train, held in found:
        assert not set(names_of(train)) & set(names_of(held))
        assert len(train) + len(held) == len(NAMES)
        assert names_of(train) == [name for name in NAMES if name not in names_of(held)]


def test_folds_are_those_of_the_names_alone() -> None:
    train, held = split_by_fold(subjects(NAMES), "2/5", "t.csv")
    # Which must never change: a run that is gone on with, or a fold made later, relies on it.
    assert names_of(held) == ["sub-07", "sub-08", "sub-12", "sub-16", "sub-17"]
    shuffled = list(NAMES)
    random.Random(0).shuffle(shuffled)
    again, held_again = split_by_fold(subjects(shuffled, "train"), "2/5", "other.csv")
    assert set(names_of(held_again)) == set(names_of(held))
    assert set(names_of(again)) == set(names_of(train))


def test_neighbours_are_not_in_one_fold_by_rule() -> None:
    """Names that take turns, as left and right sides do, do not make the folds."""
    given = subjects([f"case{number}{side}" for number in range(20) for side in "lr"])
    _, held = split_by_fold(given, "1/2", "t.csv")
    assert {name[-1] for name in names_of(held)} == {"l", "r"}


def test_scans_of_a_person_stay_together() -> None:
    given = subjects([f"sub-{number}_ses-{ses}" for number in range(6) for ses in (1, 2)])
    for number in (1, 2, 3):
        train, held = split_by_fold(given, f"{number}/3", "t.csv")
        assert len(held) == 4
        assert not set(map(person_of, names_of(train))) & set(map(person_of, names_of(held)))


def test_the_split_test_is_left_out() -> None:
    given = [*subjects(NAMES[:4], "train"), *subjects(NAMES[4:6], "validation")]
    train, held = split_by_fold([*given, *subjects(NAMES[6:], "test")], "1/2", "t.csv")
    assert set(names_of([*train, *held])) == set(NAMES[:6])


def test_who_is_in_the_split_test_is_in_no_fold() -> None:
    given = [*subjects(NAMES[:4]), *subjects(["sub-x_ses-2"], "train")]
    train, held = split_by_fold([*given, *subjects(["sub-x_ses-1"], "test")], "1/2", "t.csv")
    assert set(names_of([*train, *held])) == set(NAMES[:4])


@pytest.mark.parametrize(
    ("name", "person"),
    [
        ("sub-01", "sub-01"),
        ("sub-01_ses-2", "sub-01"),
        ("sub-01_ses-2_T1w", "sub-01"),
        ("sub-010_ses-2", "sub-010"),
        ("sub-OAS1-0001_MR1", "sub-OAS1-0001"),
        ("IXI002-Guys", "IXI002-Guys"),
        ("my_sub-01", "my_sub-01"),
        ("sub-", "sub-"),
    ],
)
def test_persons(name: str, person: str) -> None:
    assert person_of(name) == person


def test_parts() -> None:
    assert part_of("2/5", "--fold") == fold_of("2/5") == (2, 5)
    assert part_of("1/1", "--shard") == (1, 1)


@pytest.mark.parametrize("text", ["0/5", "6/5", "5", "1/5/2", "-1/5", "a/b", "", "1/0", "1.5/3"])
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(InputError, match=r"^--fold .*is no part of a whole; give 1/4"):
        fold_of(text)


def test_the_whole_is_no_fold() -> None:
    with pytest.raises(InputError, match="--fold 1/1 leaves no subject to train on"):
        fold_of("1/1")


def test_fewer_people_than_folds() -> None:
    given = subjects(["sub-1_ses-1", "sub-1_ses-2", "sub-2"])
    with pytest.raises(InputError, match=r"needs 3 people at least, but t.csv has 2; give fewer"):
        split_by_fold(given, "1/3", "t.csv")
