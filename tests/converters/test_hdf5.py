"""What a hostile HDF5 file does to libhdf5 happens in another process, within limits."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import voxtune.converters.hdf5 as reader
from voxtune.converters.errors import ConversionError
from voxtune.converters.hdf5 import open_hdf5


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.h5"
    with h5py.File(path, "w") as file:
        file["group/tensor"] = np.arange(3, dtype=np.float32)
        file["group"].attrs["name"] = "a name"
        file["group"].attrs["of no meaning"] = 3
    return path


def test_contents(small: Path) -> None:
    with open_hdf5(small) as file:
        assert file.groups == ("", "group")
        assert file.attributes["group"] == {"name": "a name"}
        (array,) = file.read(["group/tensor"]).values()
    np.testing.assert_array_equal(array, [0, 1, 2])
    assert not array.flags.writeable


def test_offsets_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "shifted.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["tensor"] = np.arange(3, dtype=np.float32)
    with open_hdf5(path) as file:
        np.testing.assert_array_equal(file.read(["tensor"])["tensor"], [0, 1, 2])


def test_a_killed_process_is_started_again(small: Path) -> None:
    with open_hdf5(small):
        pass
    process = reader._server.process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(ConversionError, match="ended"), open_hdf5(small):
        pass
    with open_hdf5(small) as file:
        assert file.groups == ("", "group")


def test_a_fork_has_a_process_of_its_own(small: Path) -> None:
    with open_hdf5(small):
        pass
    code = f"""
        import os
        from pathlib import Path
        from voxtune.converters.hdf5 import _server, open_hdf5
        path = Path({str(small)!r})
        with open_hdf5(path):
            first = _server.process.pid
        fork = os.fork()
        with open_hdf5(path) as file:
            assert file.groups == ("", "group")
            assert (_server.process.pid == first) == bool(fork)
        if fork:
            assert os.waitpid(fork, 0)[1] == 0
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import os; os.abort()", "crashes"),
        ("while True: pass", "too long"),
        ("import time; time.sleep(60)", "too long"),
        ("raise RecursionError('deep')", "RecursionError"),
    ],
)
def test_whatever_happens_is_an_answer_within_limits(small: Path, body: str, words: str) -> None:
    """The time of computing is bounded tightly, that of waiting loosely."""
    answer, seconds = _answer_with(body, small)
    assert words in answer["broken"]
    assert seconds < 15


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs a limit of memory")
def test_memory_is_bounded(small: Path) -> None:
    answer, _ = _answer_with("numpy.ones(2**29)", small)  # 4 GB
    assert "MemoryError" in answer["broken"]


def _answer_with(body: str, path: Path) -> tuple[dict[str, Any], float]:
    """What the process answers where reading a file does this instead."""
    code = f"""
        import sys, time, numpy
        import voxtune.converters.hdf5_child as child
        child._PATIENCE = 2
        def contents(path, scratch):
            {body}
        child._contents = contents
        sys.stdout.buffer.write(child._forked({{"path": {str(path)!r}, "scratch": ""}}))
    """
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60, capture_output=True
    )
    return json.loads(done.stdout), time.monotonic() - start


def test_memory_beside_a_large_file(tmp_path: Path) -> None:
    """Reading takes the bytes of the tensors once, not several times."""
    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as file:
        file["tensor"] = np.ones(2**24, np.float32)
    code = f"""
        import resource
        from pathlib import Path
        from voxtune.converters.hdf5 import open_hdf5
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        with open_hdf5(Path({str(path)!r})) as file:
            assert file.read(["tensor"])["tensor"].sum() == 2**24
        unit = 1 if __import__("sys").platform == "darwin" else 1024
        assert (peak() - before) * unit < 1.5 * 2**26, peak() - before
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_names_repeated_many_times(tmp_path: Path, refused: Callable[..., str]) -> None:
    """Names of variable length may all point at one long text of the file."""
    path, count, size = tmp_path / "names.h5", 2**16, 2**20
    with h5py.File(path, "w", libver="latest") as file:
        names = ["x" * size, *["y"] * count]
        file.attrs.create("layer_names", names, dtype=h5py.string_dtype())
    content = path.read_bytes()
    # A name is the size, the address of a heap and the index 1 in it. All become the first.
    start = content.index(size.to_bytes(4, "little"))
    while content[start + 12 : start + 16] != (1).to_bytes(4, "little"):
        start = content.index(size.to_bytes(4, "little"), start + 1)
    assert content[start + 16 : start + 20] == (1).to_bytes(4, "little")  # the size of "y"
    end = start + 16 * (count + 1)
    path.write_bytes(content[:start] + content[start : start + 16] * (count + 1) + content[end:])
    begin = time.monotonic()
    refused(path, "broken")
    assert time.monotonic() - begin < 10  # seconds; it is one on an idle machine
