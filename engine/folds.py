"""Folds: parts of a set of subjects, each of which validates a run of its own. No JAX here."""

import hashlib
import re
from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from voxtune.engine.lock import Part
from voxtune.models.errors import InputError


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str | None: ...


Item = TypeVar("Item", bound=_Named)


def part_of(text: str, option: str) -> Part:
    """Which part of how many, both from 1 on: "2/5" is the second of five.

    Args:
        text: what was given.
        option: to which option, for the sentence.

    Raises:
        InputError: it is not that.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    number, parts = (int(each) for each in found.groups()) if found else (0, 0)
    if not 1 <= number <= parts:
        raise InputError(f"{option} {text} is no part of a whole; give 1/4 for the first of four.")
    return number, parts


def fold_of(text: str) -> Part:
    """What `--fold` says.

    Raises:
        InputError: it is no part of a whole, or the whole itself.
    """
    number, parts = part_of(text, "--fold")
    if parts == 1:
        raise InputError(
            f"--fold {text} leaves no subject to train on; give 1/5 for the first of five."
        )
    return number, parts


def split_by_fold(items: Sequence[Item], fold: str, place: str) -> tuple[list[Item], list[Item]]:
    """Subjects to train on, and those of a fold to validate on; no person is of the split test.

    All scans of a person are in one fold. Which one it is depends on the names of all that are
    shared out alone: not on their order, nor on a seed. Folds differ by one person at most.

    Args:
        items: subjects or cases, in the order of their table.
        fold: which, as "2/5".
        place: of the subjects, for the sentence.

    Raises:
        InputError: `fold` is no such thing, or there are fewer people than folds.
    """
    number, parts = fold_of(fold)
    away = people_of_test(items)
    used = [each for each in items if person_of(each.name) not in away]
    people = _shuffled({person_of(each.name) for each in used})
    if len(people) < parts:
        left = " that are not in the split test" * (len(used) < len(items))
        raise InputError(
            f"--fold {fold} needs {parts} people at least, but {place} has {len(people)}{left}; "
            "give fewer folds."
        )
    held = set(people[number - 1 :: parts])
    train = [each for each in used if person_of(each.name) not in held]
    return train, [each for each in used if person_of(each.name) in held]


def people_of_test(items: Sequence[Item]) -> frozenset[str]:
    """Who has a scan in the split test."""
    return frozenset(person_of(each.name) for each in items if each.split == "test")


def person_of(name: str) -> str:
    """Whose scan a subject's name means: of BIDS's names "sub-01_ses-2" the part "sub-01"."""
    found = re.match(r"sub-[^_]+(?=_|$)", name)
    return found[0] if found else name


def _shuffled(names: Collection[str]) -> list[str]:
    """In an order that has nothing to do with sites, sides or dates that names may begin with."""
    return sorted(names, key=lambda name: (hashlib.sha256(name.encode()).digest(), name))
