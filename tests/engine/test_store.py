"""The store: what is written is read again, lazily, and nothing in it is believed unchecked."""

import functools
import http.server
import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.engine.case import Affine, Case, contents_of, quantised
from voxtune.engine.contract import Contract
from voxtune.engine.labels import LabelMap
from voxtune.engine.options import Labelling
from voxtune.engine.preparation import Preparation
from voxtune.engine.store import (
    Head,
    finish_store,
    is_store,
    read_head,
    read_store,
    start_store,
)
from voxtune.engine.stored_case import read_record, write_case
from voxtune.engine.subjects import Subject
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)
SHAPE = (9, 10, 11)
WHOLE = (slice(None),) * 3
CONTRACT = Contract("RAS", (1.0, 1.0, 1.0), "zscore", (8, 8, 8))
PREPARATION = replace(
    Preparation.of(CONTRACT, ("t1", "flair"), Labelling()), labels=LabelMap(names={1: "lesion"})
)
SOURCES = [{"file": "a.nii", "sha256": "0" * 64}]


def case_of(name: str, split: str | None) -> Case:
    """Two channels and a label with values 1 and 300."""
    label = RNG.choice(np.array([0, 1, 300], np.uint16), SHAPE)
    channels = [RNG.normal(size=SHAPE).astype(np.float32) for _ in range(2)]
    image = quantised(channels, [Affine(1.0, 2.0)] * 2)
    affine = np.diag([-1.0, 0.9, 3.0, 1.0])
    sizes = (18, 9, 11), (0.5, 1.0, 1.0)
    return Case(name, split, image, label, affine, *contents_of(label), *sizes, replaced=4)


CASES = (case_of("sub-b", "train"), case_of("a é%20", "validation"))


def files(folder: Path, name: str) -> dict[str, Path]:
    return {channel: folder / f"{name}_{channel}.nii" for channel in PREPARATION.channels}


def make_store(folder: Path, arrays: Any) -> Path:
    head = Head(PREPARATION, arrays)
    rows = [
        Subject(case.name, files(folder, case.name), folder / "z", case.split) for case in CASES
    ]
    start_store(folder, head)
    for case in CASES:
        assert not finish_store(folder, head, rows)
        write_case(folder, case, arrays, SOURCES)
    assert finish_store(folder, head, rows)
    return folder


@pytest.fixture(scope="module", params=["npy", "zarr"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, not to be altered."""
    return make_store(tmp_path_factory.mktemp("stores") / "store", request.param)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store to be altered."""
    return make_store(tmp_path / "store", "npy")


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Puts a folder on a server; gives its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    servers = []

    def start(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=folder.parent)
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, args=[0.01], daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/{folder.name}"

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


def assert_same(found: Case, wanted: Case) -> None:
    assert found.image is not None
    assert wanted.image is not None
    np.testing.assert_array_equal(found.image[WHOLE], wanted.image[WHOLE])
    np.testing.assert_array_equal(found.label[...], wanted.label[...])
    np.testing.assert_array_equal(found.affine, wanted.affine)
    assert list(found.positions) == list(wanted.positions)
    for value in wanted.positions:
        np.testing.assert_array_equal(found.positions[value], wanted.positions[value])
    for name in ("name", "split", "counts", "boxes", "scan_shape", "scan_spacing_mm", "replaced"):
        assert getattr(found, name) == getattr(wanted, name)


class TestReading:
    def test_the_cases_are_those_that_were_written(self, made: Path) -> None:
        found = read_store(made)
        assert (found.preparation, found.names) == (PREPARATION, {1: "lesion"})
        for case, wanted in zip(found.cases, CASES, strict=True):
            assert_same(case, wanted)
            assert_same(pickle.loads(pickle.dumps(case)), wanted)

    def test_no_array_is_read_before_it_is_asked_for(self, store: Path) -> None:
        for name in ("image.npy", "label.npy", "positions.npy"):
            path = store / "subjects" / "sub-b" / name
            path.write_bytes(bytes(path.stat().st_size))
        case, _ = read_store(store).cases
        for ask in (lambda: case.image[WHOLE], lambda: case.label[...], lambda: case.positions[1]):
            with pytest.raises(InputError, match="npy is not what its store says"):
                ask()

    def test_a_subject_is_cut_out_of_its_files(self, made: Path) -> None:
        case = read_store(made).cases[0]
        part = (slice(2, 5), slice(0, 3), slice(7, 11))
        assert case.image is not None
        assert CASES[0].image is not None
        np.testing.assert_array_equal(case.image[part], CASES[0].image[part])

    def test_rows_of_files_that_are_gone(self, made: Path) -> None:
        first, second = read_store(made).subjects
        assert (first.name, first.split, first.channels) == ("sub-b", "train", ("t1", "flair"))
        assert (second.name, second.label) == ("a é%20", made / "z")
        assert not first.image.exists()

    def test_without_its_table(self, store: Path) -> None:
        (store / "subjects.csv").unlink()
        assert read_store(store).subjects == ()

    def test_from_a_server(self, made: Path, serve: Callable[[Path], str]) -> None:
        address = serve(made)
        assert is_store(address)
        if (made / "subjects" / "sub-b" / "image.npy").exists():
            with pytest.raises(InputError, match="--format zarr"):
                read_store(address)
            return
        found = read_store(f"{address}/")
        assert found.subjects == ()
        for case, wanted in zip(found.cases, CASES, strict=True):
            assert_same(case, wanted)

    def test_a_server_without_a_store(self, tmp_path: Path, serve: Callable[[Path], str]) -> None:
        with pytest.raises(InputError, match="is not a store"):
            read_store(serve(tmp_path / "no"))


class TestRefused:
    def test_what_is_no_store(self, tmp_path: Path) -> None:
        assert not is_store(tmp_path)
        assert not is_store(str(tmp_path / "subjects.csv"))
        assert read_head(tmp_path) is None
        with pytest.raises(InputError, match="is not a store: it has no"):
            read_store(tmp_path)

    def test_one_that_is_not_finished(self, tmp_path: Path) -> None:
        start_store(tmp_path / "store", Head(PREPARATION, "zarr"))
        assert is_store(tmp_path / "store")
        assert read_head(tmp_path / "store") == Head(PREPARATION, "zarr")
        with pytest.raises(InputError, match="is not finished: run 'voxtune prepare'"):
            read_store(tmp_path / "store")

    @pytest.mark.parametrize("name", ["image.npy", "label.npy"])
    def test_arrays_that_are_cut_short(self, store: Path, name: str) -> None:
        path = store / "subjects" / "sub-b" / name
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(InputError, match=f"{name} does not have the size"):
            read_store(store)

    @pytest.mark.parametrize(
        "content", ["", "{}", "[]", "null", "\udce9", "[" * 10_000, '{"format": "voxtune model"}']
    )
    def test_documents_that_are_none(self, store: Path, content: str) -> None:
        (store / "store.json").write_text(content, errors="surrogateescape")
        with pytest.raises(
            InputError, match=r"store\.json cannot be read \(.*\): prepare"
        ) as caught:
            read_store(store)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            ("version", 2),
            ("arrays", "pickle"),
            ("preparation", {}),
            ("preparation.channels", ["t1"]),
            ("preparation.target", True),
            ("subjects", []),
            ("subjects", {"a": 1}),
            ("subjects.0", None),
            ("subjects.0.name", "../../etc"),
            ("subjects.0.name", "a/b"),
            ("subjects.0.name", ".."),
            ("subjects.0.name", 3),
            ("subjects.0.name", "a é%20"),
            ("subjects.0.split", "all"),
            ("subjects.0.split", ["train"]),
            ("subjects.0.shape", [9, 10]),
            ("subjects.0.shape", [9, 10, 11.0]),
            ("subjects.0.shape", [9, 10, 2**70]),
            ("subjects.0.shape", [-9, -10, 11]),
            ("subjects.0.shape", [9, 10, 12]),
            ("subjects.0.affine", [[0.0] * 4] * 4),
            ("subjects.0.affine", [[1.0]]),
            ("subjects.0.affine", [[float("nan")] * 4] * 4),
            ("subjects.0.image", None),
            ("subjects.0.image.dtype", "object"),
            ("subjects.0.image.dtype", "float64"),
            ("subjects.0.image.scale", [1.0]),
            ("subjects.0.image.scale", [1.0, 0.0]),
            ("subjects.0.image.scale", [1e60, 1.0]),
            ("subjects.0.image.offset", ["a", "b"]),
            ("subjects.0.label.dtype", ["uint8"]),
            ("subjects.0.counts", {"0": 990, "1": -1, "300": 1}),
            ("subjects.0.counts", {"0": 990}),
            ("subjects.0.counts", {"0": 990.0}),
            ("subjects.0.counts", {"70000": 990}),
            ("subjects.0.counts", {"x": 990}),
            ("subjects.0.boxes", {}),
            ("subjects.0.boxes.1", [[0, 0, 0], [9, 10, 99]]),
            ("subjects.0.boxes.1", [[-1, 0, 0], [9, 10, 11]]),
            ("subjects.0.boxes.1", [[5, 5, 5], [5, 6, 6]]),
            ("subjects.0.positions.1", 10**9),
            ("subjects.0.positions.1", True),
            ("subjects.0.scan_shape", "abc"),
            ("subjects.0.scan_spacing_mm", [1, 1, float("inf")]),
            ("subjects.0.replaced", None),
        ],
    )
    def test_parts_that_make_no_sense(self, store: Path, place: str, value: object) -> None:
        document = json.loads((store / "store.json").read_text())
        part: Any = document
        *steps, last = (int(each) if each == "0" else each for each in place.split("."))
        for step in steps:
            part = part[step]
        part[last] = value
        (store / "store.json").write_text(json.dumps(document))
        with pytest.raises(InputError) as caught:
            read_store(store)
        assert str(store) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_positions_that_leave_the_subject(self, store: Path) -> None:
        path = store / "subjects" / "sub-b" / "positions.npy"
        positions = np.load(path)
        for bad in (positions + 11, positions - 11, positions[1:], positions.astype(np.int32)):
            np.save(path, bad)
            with pytest.raises(InputError, match=r"positions\.npy (has voxels|is not what)"):
                read_store(store).cases[0].positions[1]
        path.unlink()
        with pytest.raises(InputError, match=r"positions\.npy cannot be read \(No such"):
            read_store(store).cases[0].positions[1]


class TestCheck:
    def test_the_network_it_was_prepared_for(self, made: Path) -> None:
        contract = replace(CONTRACT, block=(4, 4, 4), threshold=0.3)
        read_store(made).check(contract, ("t1", "flair"))

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"orientation": "LIA"}, "orientation RAS, not LIA"),
            ({"spacing_mm": None}, "spacing 1 x 1 x 1, not none"),
            ({"grid": (256, 256, 256)}, "grid none, not 256 x 256 x 256"),
            ({"interpolation": "cubic"}, "interpolation linear, not cubic"),
            ({"intensity": "window", "window": (-5.0, 80.0)}, "window none, not -5 x 80"),
        ],
    )
    def test_others(self, made: Path, change: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            read_store(made).check(replace(CONTRACT, **change), ("t1", "flair"))
        assert str(made) in str(caught.value)

    def test_other_channels_or_targets(self, made: Path) -> None:
        with pytest.raises(InputError, match="channels t1, flair, not flair, t1"):
            read_store(made).check(CONTRACT, ("flair", "t1"))
        with pytest.raises(InputError, match="target False, not True"):
            read_store(made).check(CONTRACT, ("t1", "flair"), target=True)

    def test_label_maps_alone_suit_any_image(self, made: Path) -> None:
        alone = replace(read_store(made), preparation=replace(PREPARATION, channels=()))
        alone.check(replace(CONTRACT, intensity="minmax"), ("image",))
        with pytest.raises(InputError, match="orientation RAS, not LIA"):
            alone.check(replace(CONTRACT, orientation="LIA"), ("image",))


def test_a_subject_that_fails_leaves_nothing(
    store: Path, monkeypatch: pytest.MonkeyPatch, tree: Callable[[Path], dict]
) -> None:
    before = tree(store)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("voxtune.engine.stored_case.write_npy", full)
    with pytest.raises(OSError, match="No space"):
        write_case(store, case_of("c", None), "npy", SOURCES)
    assert tree(store) == before
    assert read_record(store, "c") is None


def test_the_same_bytes_each_time(made: Path, tmp_path: Path, tree: Callable[[Path], dict]) -> None:
    arrays = "npy" if (made / "subjects" / "sub-b" / "image.npy").exists() else "zarr"
    again = make_store(tmp_path / "store", arrays)
    assert tree(again) == tree(made)
    shutil.rmtree(again)
