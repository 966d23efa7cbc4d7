"""Folders appear whole or not at all, and only voxtune's own are ever replaced."""

from pathlib import Path

import pytest

from voxtune.engine.output import MARKER, check_free, new_folder, remove_folder, replace_folder
from voxtune.models.errors import InputError


def tree(folder: Path) -> dict[str, str | None]:
    """Path → content of everything in a folder, hidden files too."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A folder that voxtune wrote."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / MARKER).write_text("old")
    (tmp_path / "ours" / "stale").write_text("old")
    return tmp_path / "ours"


def test_a_folder_appears_with_all_that_was_put_into_it(tmp_path: Path):
    folder = tmp_path / "not" / "there" / "yet"
    with new_folder(folder, False) as beside:
        (beside / MARKER).write_text("new")
        (beside / "sub").mkdir()
        assert not folder.exists()
    assert tree(folder.parent) == {"yet": None, f"yet/{MARKER}": "new", "yet/sub": None}


def fill_and_fail(folder: Path, overwrite: bool, error: type[BaseException]) -> None:
    with new_folder(folder, overwrite) as beside:
        (beside / MARKER).write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]):
    with pytest.raises(error):
        fill_and_fail(tmp_path / "new", False, error)
    assert tree(tmp_path) == {}


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path):
    with (
        pytest.raises(InputError, match=r"new cannot be written: No space left"),
        new_folder(tmp_path / "new", False),
    ):
        raise OSError(28, "No space left on device")
    assert tree(tmp_path) == {}


def test_the_old_folder_stays_when_the_new_one_fails(ours: Path):
    before = tree(ours.parent)
    with pytest.raises(RuntimeError):
        fill_and_fail(ours, True, RuntimeError)
    assert tree(ours.parent) == before


def test_the_new_folder_replaces_the_old_one_whole(ours: Path):
    with new_folder(ours, True) as beside:
        (beside / MARKER).write_text("new")
        assert (ours / MARKER).read_text() == "old"
    assert tree(ours.parent) == {"ours": None, f"ours/{MARKER}": "new"}


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path):
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "stale").write_text("killed")
    (tmp_path / ".new.old").mkdir()
    with new_folder(tmp_path / "new", False) as beside:
        (beside / MARKER).write_text("new")
    assert tree(tmp_path) == {"new": None, f"new/{MARKER}": "new"}


def test_removing_a_folder_takes_what_a_killed_process_left_too(ours: Path):
    for _ in range(2):  # also where it is gone already
        old = ours.with_name(".ours.old")
        old.mkdir()
        (old / "half").touch()
        remove_folder(ours)
        assert tree(ours.parent) == {}


def test_a_folder_that_is_there_needs_overwrite(ours: Path):
    with pytest.raises(InputError, match="exists; choose another folder or pass --overwrite"):
        check_free(ours, False)
    check_free(ours, True)


def test_a_strangers_folder_or_file_is_never_deleted(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("years")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for name in ("thesis", "file"):
        with (
            pytest.raises(InputError, match=f"{name} exists and was not written by voxtune"),
            new_folder(tmp_path / name, True),
        ):
            pytest.fail("the folder was given out")
    assert tree(tmp_path) == before


def test_an_empty_folder_may_be_replaced(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / "empty", True)
    with pytest.raises(InputError, match="--overwrite"):
        check_free(tmp_path / "empty", False)


def test_a_parent_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        check_free(tmp_path / "file" / "new", False)


def test_a_link_is_refused_and_what_it_leads_to_stays(ours: Path):
    link = ours.with_name("link")
    link.symlink_to(ours)
    before = tree(ours.parent)
    with pytest.raises(InputError, match="link is a link"):
        check_free(link, True)
    assert tree(ours.parent) == before


def test_the_current_folder_is_refused(ours: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ours)
    for name in (Path(), ours, Path("../ours")):
        with pytest.raises(InputError, match="the current folder"):
            check_free(name, True)


def test_replace_folder_takes_a_place_that_is_free(tmp_path: Path):
    (tmp_path / "new").mkdir()
    replace_folder(tmp_path / "new", tmp_path / "place")
    assert tree(tmp_path) == {"place": None}
