"""A subject's folder: whole or not there, and told to be whole only where it is."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.engine.case import Affine, Case, contents_of, quantised
from voxtune.engine.contract import Contract
from voxtune.engine.options import Labelling
from voxtune.engine.preparation import Preparation
from voxtune.engine.stored_case import (
    finished_cases,
    is_finished,
    remove_partial_cases,
    write_case,
)

SHAPE = (65, 5, 6)  # two chunks of a Zarr array
PREPARATION = Preparation.of(
    Contract("RAS", (1.0, 1.0, 1.0), "zscore", (8, 8, 8)), ("image",), Labelling()
)


def write(store: Path, name: str, arrays: Any, filled: bool = True) -> Path:
    """A subject of a store; where it is not filled, its label and half of its image are zeros."""
    label = np.zeros(SHAPE, np.uint8)
    label[3, 2, 1] = filled
    image = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.float32)
    image[64:] *= filled
    stored = quantised([image], [Affine()])
    sizes = SHAPE, (1.0, 1.0, 1.0)
    (store / "subjects").mkdir(exist_ok=True)
    write_case(
        store, Case(name, None, stored, label, np.eye(4), *contents_of(label), *sizes), arrays, []
    )
    return store / "subjects" / name


def finished(store: Path, arrays: Any, **change: Any) -> bool:
    return is_finished(store, "a", replace(PREPARATION, **change), arrays)


@pytest.fixture(params=["npy", "zarr"])
def arrays(request: pytest.FixtureRequest) -> str:
    return request.param


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


class TestWhole:
    @pytest.mark.parametrize("filled", [True, False])
    def test_what_was_written_is(self, tmp_path: Path, arrays: str, filled: bool) -> None:
        assert not finished(tmp_path, arrays)
        write(tmp_path, "a", arrays, filled)
        assert finished(tmp_path, arrays)
        assert not finished(tmp_path, "zarr" if arrays == "npy" else "npy")
        assert not finished(tmp_path, arrays, channels=("t1", "t2"))

    @pytest.mark.parametrize("damage", [cut, Path.unlink])
    def test_any_file_that_is_lost_or_cut_is_missed(
        self, tmp_path: Path, arrays: str, damage: Callable[[Path], None]
    ) -> None:
        folder = write(tmp_path, "a", arrays)
        files = [each for each in folder.rglob("*") if each.is_file()]
        assert len(files) == (4 if arrays == "npy" else 8)
        for file in files:
            content = file.read_bytes()
            damage(file)
            only_its_last_line_end = damage is cut and file.name == "case.json"
            assert finished(tmp_path, arrays) == only_its_last_line_end
            file.write_bytes(content)
        assert finished(tmp_path, arrays)

    def test_folders_of_arrays_that_are_lost(self, tmp_path: Path) -> None:
        folder = write(tmp_path, "a", "zarr")
        shutil.rmtree(folder / "image.zarr" / "c")
        assert not finished(tmp_path, "zarr")
        shutil.rmtree(folder / "image.zarr")
        assert not finished(tmp_path, "zarr")


class TestFolder:
    def test_what_has_its_place_goes(self, tmp_path: Path) -> None:
        (tmp_path / "subjects").mkdir()
        for name in ("a", ".a.partial"):
            (tmp_path / "subjects" / name).write_text("no folder")
        write(tmp_path, "a", "npy")
        assert [each.name for each in (tmp_path / "subjects").iterdir()] == ["a"]
        assert finished(tmp_path, "npy")

    def test_a_link_is_taken_out_not_what_it_leads_to(self, tmp_path: Path) -> None:
        mine = tmp_path / "mine"
        mine.mkdir()
        (mine / "file").touch()
        (tmp_path / "subjects").mkdir()
        (tmp_path / "subjects" / "a").symlink_to(mine)
        write(tmp_path, "a", "npy")
        assert not (tmp_path / "subjects" / "a").is_symlink()
        assert (mine / "file").exists()

    def test_names_are_those_of_folders_of_subjects(self, tmp_path: Path) -> None:
        assert finished_cases(tmp_path) == []
        for name in ("b", "a"):
            write(tmp_path, name, "npy")
        subjects = tmp_path / "subjects"
        shutil.copytree(subjects / "a", subjects / ".c.partial")
        (subjects / "notes").mkdir()
        (subjects / ".DS_Store").touch()
        assert finished_cases(tmp_path) == ["a", "b"]
        remove_partial_cases(tmp_path)
        assert {each.name for each in subjects.iterdir()} == {"a", "b", "notes", ".DS_Store"}
