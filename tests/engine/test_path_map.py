"""Where paths go: exactly where the map says, and a sentence where that is nowhere."""

from pathlib import Path

import pytest

from voxtune.engine.path_map import PathMap
from voxtune.models.errors import InputError

OTHER = Path("other")
PATHS = ["encoder1/conv/kernel", "encoder1/conv/bias", "encoder10/kernel", "head/kernel"]


def place(entries: list[str], wanted: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    return PathMap.parse(entries).place(PATHS, wanted, OTHER)


def test_without_entries_every_path_goes_to_itself() -> None:
    placed, left = place([], [*PATHS[:3], "bottom/kernel"])
    assert placed == {path: path for path in PATHS[:3]}
    assert left == {"head/kernel": "the network has no head/kernel"}


def test_an_entry_moves_whole_parts_of_paths() -> None:
    placed, left = place(["encoder1=down/first"], ["down/first/conv/kernel", "encoder10/kernel"])
    assert placed == {
        "down/first/conv/kernel": "encoder1/conv/kernel",
        "encoder10/kernel": "encoder10/kernel",
    }
    assert left["encoder1/conv/bias"] == "the network has no down/first/conv/bias"


def test_the_longest_entry_counts() -> None:
    entries = PathMap.parse(["encoder1=a", "encoder1/conv/bias=b/c", "encoder10/=d/"])
    moved = {path: entries.moved(path) for path in PATHS}
    assert list(moved.values()) == ["a/conv/kernel", "b/c", "d/kernel", "head/kernel"]


def test_nothing_after_the_sign_leaves_out() -> None:
    placed, left = place(["head="], PATHS)
    assert "head/kernel" not in placed
    assert left == {"head/kernel": "left out by --rename"}


@pytest.mark.parametrize("text", ["encoder1", "=encoder1", "/=a", ""])
def test_an_entry_that_is_none_is_a_sentence(text: str) -> None:
    with pytest.raises(InputError, match=f"--rename takes OLD=NEW.*'{text}' is not that"):
        PathMap.parse([text])


def test_a_path_goes_to_one_place() -> None:
    with pytest.raises(InputError, match="--rename says twice where encoder1 goes"):
        PathMap.parse(["encoder1=a", "encoder1/=b"])


def test_what_an_entry_moves_takes_the_place_of_what_stays() -> None:
    """Whichever of the two comes first."""
    for old, new in (("head", "encoder10"), ("encoder10", "head")):
        placed, left = place([f"{old}={new}"], PATHS)
        assert placed[f"{new}/kernel"] == f"{old}/kernel"
        assert left == {f"{new}/kernel": f"its place is taken by {old}/kernel"}


def test_two_entries_for_one_place_are_a_sentence() -> None:
    with pytest.raises(InputError, match=r"Both encoder10/kernel and head/kernel of other .*a/k"):
        place(["head=a", "encoder10=a"], ["a/kernel"])
    with pytest.raises(InputError, match="would go to head/kernel by --rename; change one"):
        place(["head=head", "encoder10=head"], PATHS)


def test_an_entry_that_matches_nothing_shows_the_nearest_paths() -> None:
    with pytest.raises(InputError, match=r"--rename encoder2=a: .* has no encoder2; .*encoder1\b"):
        place(["encoder2=a"], PATHS)
    # All that it would move is moved by longer ones.
    with pytest.raises(InputError, match="--rename encoder1=a: other has no"):
        place(["encoder1=a", "encoder1/conv=encoder1/conv"], PATHS)


def test_an_entry_that_goes_nowhere_shows_the_nearest_paths() -> None:
    with pytest.raises(InputError, match=r"the network has no dwn1/conv/kernel; .*down1"):
        place(["encoder1=dwn1"], ["down1/conv/kernel", "head/kernel"])
