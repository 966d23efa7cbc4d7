"""The history: what is written is read again, and what is none is one sentence."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voxtune.benchmarks import history
from voxtune.benchmarks.history import Entry, append, file_of, read
from voxtune.models.errors import InputError

Make = Callable[..., Entry]


def written(folder: Path, *lines: str | bytes) -> Path:
    """A history of such lines."""
    whole = [each.encode() if isinstance(each, str) else each for each in lines]
    (folder / "machine.jsonl").write_bytes(b"".join(whole))
    return folder


def edited(entry: Entry, **changes: Any) -> str:
    return json.dumps({**entry.to_json(), **changes}) + "\n"


def test_entries_are_read_as_they_were_written(tmp_path: Path, entry: Make) -> None:
    """In the order of time, machine by machine."""
    first = entry(settings={"block": 32, "remat": False, "dtype": "float32"}, values={"wait": 0.5})
    other = entry(machine="8 x H200, 64 cores", copy=None, memory=None, first=None)
    peer = entry("PyTorch", problem="out of memory", seconds=(), flags={"XLA_FLAGS": "--a=b"})
    for each in (first, other, peer):
        append(tmp_path / "history", each)
    assert read(tmp_path / "history") == [first, peer, other]
    names = {each.name for each in (tmp_path / "history").iterdir()}
    assert names == {"1-x-cpu-2-cores.jsonl", "8-x-h200-64-cores.jsonl"}


def test_all_fields_are_checked(entry: Make) -> None:
    """A field that is added needs to be read, too."""
    assert set(entry().to_json()) == set(history._FIELDS)


def test_a_machine_is_no_path(tmp_path: Path) -> None:
    assert file_of(tmp_path, "../../etc/É x").parent == tmp_path


def test_a_history_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == []


def test_what_has_a_default_may_be_missing(tmp_path: Path, entry: Make) -> None:
    """An earlier version did not have it."""
    content = entry().to_json()
    del content["copy"], content["products"], content["values"], content["version"]
    (found,) = read(written(tmp_path, json.dumps(content) + "\n", "\n"))
    assert found.place.copy is None
    assert found.measurement.values == {}


BROKEN: list[tuple[str | bytes, str]] = [
    ("{\n", "line 1, is no line of a history; remove it"),
    (b"\xff\xfe\n", "line 1, is no line of a history"),
    ("[" * 100_000 + "\n", "line 1, is no line of a history"),
    ("[1]\n", "line 1, is no JSON object"),
    ("7" * 5000 + "\n", "line 1, "),
    ("{}\n", "line 1, lacks a field"),
    ("{}", "line 1, is not written to its end; remove it"),
]


@pytest.mark.parametrize(("line", "sentence"), BROKEN)
def test_lines_that_are_none(tmp_path: Path, line: str | bytes, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        read(written(tmp_path, line))
    assert str(tmp_path / "machine.jsonl") in str(caught.value)
    assert sentence in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("revision", 5),
        ("machine", None),
        ("versions", ["jax"]),
        ("flags", {"a": 1}),
        ("copy", 0),
        ("copy", 1e299),
        ("products", {"float32": 1e-300}),
        ("copy", "fast"),
        ("products", {"float32": -1.0}),
        ("settings", {"block": [16]}),
        ("seconds", 1.0),
        ("seconds", [0.0, 1.0, 1.0]),
        ("seconds", [1e-300, 1.0, 1.0]),
        ("seconds", [1e299, 1.0, 1.0]),
        ("seconds", [True, 1.0, 1.0]),
        ("seconds", [float("nan"), 1.0, 1.0]),
        ("seconds", [float("inf"), 1.0, 1.0]),
        ("seconds", [10**400, 1.0, 1.0]),
        ("floors", [1e11]),
        ("floors", [1e11, 1e11, 1e299]),
        ("work", {"blocks": 1, "bricks": 2}),
        ("work", {"blocks": -1}),
        ("work", {"flops": 10**300}),
        ("work", 5),
        ("first", "soon"),
        ("first", 1e-300),
        ("memory", 1.5),
        ("values", {"data_wait": None}),
        ("problem", 0),
    ],
)
def test_fields_that_are_none(tmp_path: Path, entry: Make, field: str, value: Any) -> None:
    good = edited(entry())
    assert len(read(written(tmp_path, good))) == 1
    with pytest.raises(InputError, match="line 2, ") as caught:
        read(written(tmp_path, good, edited(entry(), **{field: value})))
    assert field in str(caught.value)


def test_a_field_of_a_later_version(tmp_path: Path, entry: Make) -> None:
    with pytest.raises(InputError, match="has the field 'watts', which this version") as caught:
        read(written(tmp_path, edited(entry(), watts=700)))
    assert "update voxtune" in str(caught.value)
    with pytest.raises(InputError) as caught:
        read(written(tmp_path, edited(entry(), **{"x" * 1000: 1})))
    assert len(str(caught.value)) < 300


def test_a_file_that_is_far_too_large(tmp_path: Path) -> None:
    with (written(tmp_path, "") / "machine.jsonl").open("r+b") as stream:
        stream.truncate(history.LARGEST + 1)
    with pytest.raises(InputError, match="larger than 100,000,000 bytes"):
        read(tmp_path)


def test_places_that_hold_no_history(tmp_path: Path, entry: Make) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder"):
        read(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        append(tmp_path / "file", entry())


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("missing"),
    ],
)
def test_what_is_no_file_is_not_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """It might never end."""
    make(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"a\.jsonl is no file; move it away\."):
        read(tmp_path)


def test_a_file_that_is_a_link_is_read(tmp_path: Path, entry: Make) -> None:
    append(tmp_path / "there", entry())
    (tmp_path / "here").mkdir()
    (file,) = (tmp_path / "there").iterdir()
    (tmp_path / "here" / file.name).symlink_to(file)
    assert read(tmp_path / "here") == [entry()]


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, entry: Make) -> None:
    broken = entry(values={"data_wait": float("nan")})
    with pytest.raises(ValueError, match="values"):
        append(tmp_path, broken)
    append(tmp_path, dataclasses.replace(broken, measurement=entry().measurement))
    assert len(read(tmp_path)) == 1
