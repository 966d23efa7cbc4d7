"""Names of classes beside predictions: read as they were written, and what is no list of them."""

from pathlib import Path

import pytest

from voxtune.engine.class_names import read_class_names, write_class_names
from voxtune.models.errors import InputError

NAMES = {0: "background", 1: "head, left", 65535: "Käse"}


def test_they_are_read_as_written(tmp_path: Path) -> None:
    assert read_class_names(tmp_path) == {}
    write_class_names(tmp_path, NAMES)
    assert read_class_names(tmp_path) == NAMES


def test_they_are_utf8_with_a_byte_order_mark_or_without(tmp_path: Path) -> None:
    write_class_names(tmp_path, NAMES)
    path = tmp_path / "classes.csv"
    assert "Käse".encode() in path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Excel writes
    assert read_class_names(tmp_path) == NAMES


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("value,name\n1,head\n2\n", "line 3 has no name"),
        ("value,name\none,head\n", "line 2 has no value between 0 and 65535"),
        ("value,name\n70000,head\n", "line 2 has no value between"),
        ("value,class\n1,head\n", "it has no column name"),
        ("", "it has no column value"),
        ("value,name\n1,\x1b[2J\n", "line 2 has control characters"),
        ("value,name\n1,\xff\n", "codec can't decode"),
        ("value,name\n" + "1,head\n" * 200_000, "it is larger than 1 MB"),
    ],
)
def test_what_is_no_list_of_names_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "classes.csv").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=f"not a list of class names .*{words}"):
        read_class_names(tmp_path)
