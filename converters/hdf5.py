"""An HDF5 file as groups, attributes and arrays.

Its structure is told by another process (`hdf5_child.py`), because libhdf5 is no match for hostile
files. The arrays are read here, straight from their places in the file.
"""

import atexit
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.stored import Stored, is_number, read_stored

SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Hdf5:
    """An HDF5 file.

    Attributes:
        path: the file that the user gave, for messages.
        file: the HDF5 file itself; another one where it lay in a zip archive.
        scratch: holds the values of those tensors that were compressed.
        groups: full names, the root is "".
        attributes: full name → attribute → value, those that Keras gives a meaning to.
        tensors: full name → shape, dtype and place; see `hdf5_child`.
    """

    path: Path
    file: Path
    scratch: Path
    groups: tuple[str, ...]
    attributes: Mapping[str, Mapping[str, Any]]
    tensors: Mapping[str, Mapping[str, Any]]

    def text(self, place: str, attribute: str) -> str:
        """A text attribute; "" if there is none."""
        value = self.attributes.get(place, {}).get(attribute, "")
        if not isinstance(value, str):
            raise ConversionError(
                f"{self.path}: its attribute {attribute} is not a text; save the model again from "
                "Keras"
            )
        return value

    def names(self, place: str, attribute: str) -> list[str]:
        """A list of names, which Keras splits over `attribute0`, ... when it is long."""
        own = self.attributes.get(place, {})
        parts = [attribute] if attribute in own else []
        while not parts or parts[0] != attribute:
            if f"{attribute}{len(parts)}" not in own:
                break
            parts.append(f"{attribute}{len(parts)}")
        names: list[str] = []
        for part in parts:
            if not isinstance(own[part], list):
                raise ConversionError(
                    f"{self.path}: its attribute {part} is not a list of names; save the model "
                    "again"
                )
            names += own[part]
        return names

    def is_number(self, name: str) -> bool:
        """Whether a tensor holds integers or truth values: seeds and counters, never weights."""
        return is_number(self.tensors[name]["dtype"])

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The values of tensors: see `read_stored`."""
        return read_stored({name: self._stored(name) for name in names}, self.path)

    def _stored(self, name: str) -> Stored:
        tensor = self.tensors[name]
        if "why" in tensor:
            raise ConversionError(
                f"{self.path}: the tensor {quoted(name)} {tensor['why']}; save the model again, or "
                "run h5repack -f NONE -l CONTI on the file"
            )
        return Stored(
            file=self.scratch if "unpacked" in tensor else self.file,
            offset=tensor.get("offset"),
            dtype=tensor["dtype"],
            shape=tensor["shape"],
            inline=bytes.fromhex(tensor["inline"]) if "inline" in tensor else None,
        )


@contextmanager
def open_hdf5(path: Path, file: Path | None = None) -> Iterator[Hdf5]:
    """The contents of an HDF5 file, as long as the context lasts.

    Args:
        path: the file that the user gave.
        file: the HDF5 file, if it is another one.

    Raises:
        ConversionError: the file is broken, or links elsewhere.
    """
    file = file or path
    scratch = Path(tempfile.gettempdir()) / f"voxtune-{secrets.token_hex(16)}"
    try:
        answer = _server.ask(file, scratch)
        if "refused" in answer:
            raise ConversionError(
                f"{path}: {quoted(answer['name'])} {answer['refused']}, refused; save the model "
                "again from Keras"
            )
        if "broken" in answer:
            raise ConversionError(
                f"{path} is a broken or truncated HDF5 file ({quoted(answer['broken'])}); get it "
                "again"
            )
        yield Hdf5(
            path, file, scratch, tuple(answer["groups"]), answer["attributes"], answer["tensors"]
        )
    finally:
        scratch.unlink(missing_ok=True)


class _Server:
    """The process that runs libhdf5: started at the first file, and again if it is gone."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.owner = 0
        self.lock = threading.Lock()

    def ask(self, file: Path, scratch: Path) -> dict[str, Any]:
        """The answer to one request."""
        request = json.dumps({"path": str(file.resolve()), "scratch": str(scratch)})
        with self.lock:
            try:
                process = self._running()
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(request.encode() + b"\n")
                process.stdin.flush()
                return json.loads(process.stdout.read(int(process.stdout.readline())))
            except (OSError, ValueError):  # it was killed, or cannot start
                self.close()
                return {"broken": "the process that reads HDF5 files ended"}
            except BaseException:  # Ctrl-C: the answer must not be taken for that of the next file
                self.close()
                raise

    def _running(self) -> subprocess.Popen:
        # A fork of the process that started it must not share its pipes.
        if self.process is None or self.owner != os.getpid():
            # No filter is loaded as a program, and no thread of a linear algebra that nobody calls.
            private = {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("hdf5_child.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | private,
            )
            self.owner = os.getpid()
        return self.process

    def close(self) -> None:
        """Ends the process."""
        process, self.process = self.process, None
        if process is not None and self.owner == os.getpid():
            process.kill()
            process.communicate()


_server = _Server()
atexit.register(_server.close)
