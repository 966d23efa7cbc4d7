"""Arrays on disks and servers: parts are those of the array, and nothing else is read."""

import functools
import http.server
import io
import json
import pickle
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from voxtune.engine import arrays
from voxtune.engine.arrays import (
    MappedArray,
    ZarrArray,
    inside,
    is_whole,
    read_bytes,
    read_npy,
    write_npy,
    write_zarr,
)
from voxtune.models.errors import InputError

DATA = np.random.default_rng(0).integers(-9, 9, (130, 70, 65, 2)).astype(np.int16)
PART = (slice(60, 70), slice(3, 9), slice(0, 65))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with DATA as a file and as a Zarr array, its name not one of an address."""
    folder = tmp_path_factory.mktemp("a b%20c")
    write_npy(folder / "image.npy", DATA)
    write_zarr(folder / "image.zarr", DATA)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of the folder, and a list that grows by each path that is asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path.split("/", 2)[2])

    handler = functools.partial(Handler, directory=folder.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield inside(f"http://127.0.0.1:{server.server_port}/", folder.name), asked
        server.shutdown()


def mapped(folder: Path) -> MappedArray:
    return MappedArray(str(folder / "image.npy"), DATA.shape, DATA.dtype)


def zarr(location: object) -> ZarrArray:
    return ZarrArray(inside(str(location), "image.zarr"), DATA.shape, DATA.dtype)


@pytest.mark.parametrize("make", [mapped, zarr])
def test_parts_are_those_of_the_array(make: functools.partial, folder: Path) -> None:
    array = make(folder)
    np.testing.assert_array_equal(array[PART], DATA[PART])
    np.testing.assert_array_equal(array[...], DATA)
    again = pickle.loads(pickle.dumps(array))
    assert len(pickle.dumps(array)) < 1000
    np.testing.assert_array_equal(again[PART], DATA[PART])


def test_a_server_is_asked_for_the_chunks_of_a_part_alone(
    server: tuple[str, list[str]],
) -> None:
    address, asked = server
    asked.clear()
    np.testing.assert_array_equal(zarr(address)[PART], DATA[PART])
    chunks = [f"image.zarr/c/{i}/0/{k}/0" for i in (0, 1) for k in (0, 1)]
    assert sorted(asked) == sorted([*chunks, "image.zarr/zarr.json"])


def test_a_file_far_away(server: tuple[str, list[str]], folder: Path) -> None:
    address, _ = server
    for place in (address, str(folder)):
        content = read_bytes(place, "image.npy")
        assert content == (folder / "image.npy").read_bytes()
        assert read_bytes(place, "no.npy") is None


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    once = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    monkeypatch.setattr(arrays, "_REMOTE", {"http_request_retries": once})
    for ask in (lambda: read_bytes("http://127.0.0.1:9/x", "y"), lambda: zarr("http://[::1]:9")[0]):
        with pytest.raises(InputError, match=r"cannot be read \(.*\): check the address") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_what_no_store_can_be_read_from() -> None:
    with pytest.raises(InputError, match="unsupported URL scheme"):
        read_bytes("ftp://x", "y")


@pytest.mark.parametrize(
    ("shape", "dtype"), [((65, 70, 130, 2), np.int16), (DATA.shape, np.float16)]
)
def test_an_array_that_is_not_what_its_store_says(
    folder: Path, shape: tuple[int, ...], dtype: type
) -> None:
    for array in (
        MappedArray(str(folder / "image.npy"), shape, np.dtype(dtype)),
        ZarrArray(str(folder / "image.zarr"), shape, np.dtype(dtype)),
    ):
        with pytest.raises(InputError, match="is not what its store says"):
            array[PART]


def test_a_file_that_is_cut_short_or_missing(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "image.npy").read_bytes()
    for name, content in (("short.npy", whole[:-1000]), ("head.npy", whole[:20])):
        (tmp_path / name).write_bytes(content)
    for name in ("short.npy", "head.npy", "no.npy"):
        array = MappedArray(str(tmp_path / name), DATA.shape, DATA.dtype)
        with pytest.raises(InputError, match=name):
            array[PART]
        with pytest.raises(InputError, match=name):
            array.check_size()
    mapped(folder).check_size()


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (32767,) * 3 + (128,)])
def test_headers_are_numpys(shape: tuple[int, ...]) -> None:
    """To the last bit for all that a store holds."""
    for dtype in (np.dtype(np.int16), np.dtype(np.uint8), np.dtype(np.float16)):
        fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        expected = io.BytesIO()
        np.lib.format.write_array_header_1_0(expected, fields)
        assert arrays._npy_header(shape, dtype) == expected.getvalue()


def test_no_other_header_is_believed(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    """Neither a number that is changed, nor a pickle, nor an archive of the right size."""
    path, data = tmp_path / "a.npy", np.arange(6, dtype=np.int16).reshape(2, 3)
    write_npy(path, data)
    good = path.read_bytes()
    heads = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 : 128] for at in range(128)]
    heads += [b"PK\x03\x04" + good[4:128], good[:128].replace(b"(2, 3)", b"(-2,[")]
    for head in heads:
        path.write_bytes(head + good[128:])
        assert not is_whole(path, data.shape, data.dtype)
        with pytest.raises(InputError, match=r"a\.npy is not what its store says, int16 \(2, 3\)"):
            MappedArray(str(path), data.shape, data.dtype)[0]
    path.write_bytes(good)
    np.testing.assert_array_equal(read_npy(str(tmp_path), "a.npy", data.shape, data.dtype), data)
    with path.open("r+b") as stream:
        stream.truncate(2**40)  # no disk has that much
    with pytest.raises(InputError, match="is not what its store says"):
        read_npy(str(tmp_path), "a.npy", data.shape, data.dtype)
    address, _ = server
    np.testing.assert_array_equal(read_npy(address, "image.npy", DATA.shape, DATA.dtype), DATA)
    for name, words in (("image.npy", "is not what its store says"), ("no.npy", "does not exist")):
        with pytest.raises(InputError, match=words):
            read_npy(address, name, data.shape, data.dtype)


def test_what_is_whole(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    npy, zarr = (tmp_path / "copy" / name for name in ("image.npy", "image.zarr"))
    chunk = zarr / "c" / "2" / "1" / "0" / "0"
    for path, damaged in ((npy, npy), (zarr, chunk), (zarr, zarr / "zarr.json")):
        assert is_whole(path, DATA.shape, DATA.dtype)
        assert not is_whole(path, (*DATA.shape[:3], 1), DATA.dtype)
        assert not is_whole(path, DATA.shape, np.dtype(np.float16))
        good = damaged.read_bytes()
        for content in (b"", b"[]", good[:-1], bytes(len(good))):
            damaged.write_bytes(content)
            assert not is_whole(path, DATA.shape, DATA.dtype)
        damaged.unlink()
        assert not is_whole(path, DATA.shape, DATA.dtype)
        damaged.write_bytes(good)
    shutil.rmtree(zarr)
    assert not is_whole(zarr, DATA.shape, DATA.dtype)


def test_a_chunk_that_is_gone_is_not_zeros(tmp_path: Path) -> None:
    zeros = np.zeros((70, 4, 4), np.uint8)
    write_zarr(tmp_path / "label.zarr", zeros)
    assert is_whole(tmp_path / "label.zarr", zeros.shape, zeros.dtype)
    array = ZarrArray(str(tmp_path / "label.zarr"), zeros.shape, zeros.dtype)
    np.testing.assert_array_equal(array[...], zeros)
    (tmp_path / "label.zarr" / "c" / "1" / "0" / "0").unlink()
    assert not is_whole(tmp_path / "label.zarr", zeros.shape, zeros.dtype)
    with pytest.raises(InputError, match=r"missing\): prepare its store again"):
        ZarrArray(array.location, zeros.shape, zeros.dtype)[...]


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
GZIP = {"name": "gzip", "configuration": {"level": 1}}


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [128, 128, 128]}}},
        {"codecs": [BYTES, GZIP]},
    ],
)
def test_chunks_that_no_store_has_are_not_unpacked(tmp_path: Path, change: dict) -> None:
    """A few bytes of them may stand for all of the memory."""
    write_zarr(tmp_path / "a.zarr", np.ones((4, 4, 4), np.int16))
    path = tmp_path / "a.zarr" / "zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=r"a\.zarr has chunks of \d+ voxels, packed by bytes and"):
        ZarrArray(str(path.parent), (4, 4, 4), np.dtype(np.int16))[0]


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_zarr(tmp_path / "image.zarr", DATA[:20])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.strerror == "File too large"


def test_zarr_is_written_alike_each_time(folder: Path, tmp_path: Path) -> None:
    write_zarr(tmp_path / "image.zarr", DATA)
    files = sorted((folder / "image.zarr").rglob("*"))
    assert sum(file.is_file() for file in files) == 1 + 3 * 2 * 2
    for file in files:
        other = tmp_path / file.relative_to(folder)
        assert file.is_dir() or file.read_bytes() == other.read_bytes()
