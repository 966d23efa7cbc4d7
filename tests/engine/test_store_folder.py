"""The folder of a store: one run at a time, and nothing of those that were stopped."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from voxtune.engine.contract import Contract
from voxtune.engine.lock import Part
from voxtune.engine.options import Labelling
from voxtune.engine.output import MARKER
from voxtune.engine.preparation import Preparation
from voxtune.engine.store import Head, read_head, start_store
from voxtune.engine.store_folder import check_store, room, what_stays
from voxtune.models.errors import InputError

HEAD = Head(
    Preparation.of(Contract("RAS", (1.0, 1.0, 1.0), "zscore", (8, 8, 8)), ("image",), Labelling()),
    "npy",
)
WHOLE = (1, 1)
TABLE = Path("t.csv")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """One with a subject a, as far as a look at its folder tells."""
    start_store(tmp_path / "store", HEAD)
    add(tmp_path / "store", "a")
    return tmp_path / "store"


def add(store: Path, name: str) -> None:
    (store / "subjects" / name).mkdir()
    (store / "subjects" / name / "case.json").touch()


def leave(store: Path) -> None:
    """What runs leave that are killed as they write."""
    (store / "subjects" / ".b.partial").mkdir()
    (store / "subjects" / ".b.partial" / "case.json").touch()
    (store / ".0a.store.json").touch()
    (store / ".12.subjects.csv").touch()


def names(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*")}


def in_room(
    store: Path, part: Part = WHOLE, error: BaseException | None = None, **options: bool
) -> None:
    with room(store, HEAD, part, **{"overwrite": False, "new": True, **options}):
        if error:
            raise error


@contextmanager
def another(store: Path, part: Part) -> Iterator[None]:
    """Another process that has a part of a store."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from voxtune.engine.store_folder import _claim\n"
        "with Path(sys.argv[1], '.voxtune').open('r+b') as marker:\n"
        "    _claim(marker, (int(sys.argv[2]), int(sys.argv[3])), Path())\n"
        "    print('has it', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, store, *map(str, part)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"has it\n"
        yield
        process.kill()


class TestCheck:
    def test_what_stopped_runs_leave_is_gone_on_with(self, tmp_path: Path, store: Path) -> None:
        check_store(tmp_path / "none", HEAD, ["a"], TABLE)
        leave(store)
        check_store(store, HEAD, ["a", "b"], TABLE)

    @pytest.mark.parametrize("left", [(), (MARKER,), (MARKER, "subjects/", ".12.store.json")])
    def test_one_that_was_stopped_in_its_first_moments(
        self, tmp_path: Path, left: tuple[str, ...]
    ) -> None:
        store = tmp_path / "store"
        store.mkdir()
        for each in left:
            (store / each).mkdir() if each.endswith("/") else (store / each).touch()
        check_store(store, HEAD, ["a"], TABLE)
        in_room(store, part=(1, 2))
        assert names(store) == {MARKER, "subjects", "store.json"}

    def test_what_is_no_store(self, store: Path) -> None:
        (store / "store.json").unlink()
        with pytest.raises(InputError, match="exists; choose another folder"):
            check_store(store, HEAD, ["a"], TABLE)  # how its subject was prepared nobody knows

    def test_one_of_other_subjects(self, store: Path) -> None:
        add(store, "b")
        (store / "subjects" / "notes").mkdir()
        with pytest.raises(InputError, match=r"holds 1 subjects that t\.csv does not list \(b\)"):
            check_store(store, HEAD, ["a", "c"], TABLE)


class TestRoom:
    @pytest.mark.parametrize("part", [WHOLE, (2, 3)])
    @pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
    def test_what_was_left_goes_and_the_rest_stays(
        self, store: Path, part: Part, error: BaseException | None
    ) -> None:
        (store / "subjects" / ".DS_Store").touch()
        before = names(store)
        leave(store)
        if error is None:
            in_room(store, part)
        else:
            with pytest.raises(KeyboardInterrupt):
                in_room(store, part, error)
        assert names(store) == before

    def test_a_finished_store_stays_finished_where_nothing_is_new(self, store: Path) -> None:
        content = (store / "store.json").read_text().replace('"subjects": null', '"subjects": [1]')
        (store / "store.json").write_text(content)
        in_room(store, new=False)
        assert (store / "store.json").read_text() == content
        in_room(store)
        assert read_head(store) == HEAD
        assert (store / "store.json").read_text() != content

    def test_only_a_folder_of_its_own_goes_with_its_failure(self, tmp_path: Path) -> None:
        store, empty = tmp_path / "store", tmp_path / "empty"
        empty.mkdir()
        for folder, part, stays in (
            (store, WHOLE, False),
            (empty, WHOLE, True),
            (store, (1, 2), True),
        ):
            with pytest.raises(ValueError, match="no"):
                in_room(folder, part, ValueError("no"))
            assert folder.exists() == stays
            assert "nothing was written" in what_stays(folder)

    def test_one_that_was_meanwhile_made_in_another_way(self, store: Path) -> None:
        other = Head(replace(HEAD.preparation, orientation="LIA"), "npy")
        before = names(store)
        with pytest.raises(InputError, match="meanwhile"), room(store, other, WHOLE, False, True):
            pass
        assert (names(store), read_head(store)) == (before, HEAD)

    def test_overwrite(self, store: Path) -> None:
        old = store.with_name(".store.old")
        (store / "mine").touch()
        in_room(store, overwrite=True)
        assert not store.exists()  # since it has no subjects
        # Of a run that was killed as it removed the store.
        old.mkdir()
        (old / "half").touch()
        in_room(store, overwrite=True, part=(1, 2))
        assert not old.exists()
        assert names(store) == {MARKER, "subjects", "store.json"}


@pytest.mark.skipif(sys.platform == "win32", reason="it has no locks of parts of files")
def test_one_run_at_a_time(store: Path, tree: Callable[[Path], dict]) -> None:
    leave(store)
    before = tree(store)
    with another(store, (2, 3)):
        for part in (WHOLE, (2, 3)):
            with pytest.raises(InputError, match="written by another run"):
                in_room(store, part)
        with pytest.raises(InputError, match="written by another run"):
            in_room(store, overwrite=True)
        assert tree(store) == before
        in_room(store, (1, 3))  # which leaves to the other what it may be at
        assert tree(store) == before
    in_room(store)  # that one is killed
    assert ".0a.store.json" not in names(store)
