"""The content decides which reader a file goes to, and what is none ends in one sentence."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from voxtune.converters.keras_file import ConversionError, read_keras_file


def test_missing(tmp_path: Path, refused: Callable[..., str]) -> None:
    refused(tmp_path / "none.h5", "does not exist")


def test_unusable_name() -> None:
    with pytest.raises(ConversionError, match="cannot be read"):
        read_keras_file(Path("a\0b"))


def test_unreadable(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    write_h5: Callable[..., Path],
) -> None:
    path = write_h5(tmp_path / "m.h5")

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(path, "Permission denied")


def test_pipe_is_not_waited_for(tmp_path: Path, refused: Callable[..., str]) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    refused(tmp_path / "pipe.h5", "not a regular file")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.h5", b"", ("empty",)),
        ("cut.h5", b"\x89HDF", ("cut short",)),
        ("noise.bin", bytes(range(256)), ("no Keras file",)),
        ("x.index", b"\x08\x01", ("'x.index'", "no checkpoint's index")),
        ("model.pkl", pickle.dumps({"a": 1}), ("no Keras file",)),
    ],
)
def test_other_file(
    tmp_path: Path, name: str, content: bytes, words: tuple[str, ...], refused: Callable[..., str]
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, *words)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], ("holds no model",)),
        (["saved_model.pb"], ("'variables.index'", "missing")),
        (["config.json", "model.weights.h5"], ("JSON",)),
        (["checkpoint"], ("names no checkpoint",)),
        (["a.index"], ("'a.index'", "no checkpoint's index")),
        (["a.index", "b.index"], ("holds no model",)),
    ],
)
def test_folder(
    tmp_path: Path, files: list[str], words: tuple[str, ...], refused: Callable[..., str]
) -> None:
    for name in files:
        (tmp_path / name).touch()
    refused(tmp_path, *words)


def test_reading_imports_no_framework() -> None:
    """The reader must not drag in what could run a file, nor the accelerator."""
    code = (
        "import sys, voxtune.converters.keras_file;"
        "sys.exit(bool({'tensorflow', 'keras', 'jax', 'flax'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
