"""Each Keras file format → one KerasModel, or the KerasWeights of a file of weights alone.

A Keras file comes from a stranger. It is read, never executed or unpickled; sizes are checked
before memory is taken; links out of the file are not followed. TensorFlow and Keras stay outside.
"""

import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from voxtune.converters.errors import ConversionError
from voxtune.converters.hdf5 import SIGNATURE
from voxtune.converters.keras_h5 import read_h5
from voxtune.converters.keras_model import KerasModel, KerasWeights
from voxtune.converters.keras_zip import CONFIG, WEIGHTS, read_keras_folder, read_keras_zip
from voxtune.converters.tensorflow_files import read_checkpoint, read_saved_model
from voxtune.converters.tfjs import read_tfjs

__all__ = ["ConversionError", "KerasModel", "KerasWeights", "read_keras_file"]

_SUPPORTED = (
    "a .keras or .h5 file, a .weights.h5 file, a TF.js layers model, a SavedModel folder or a "
    "TensorFlow checkpoint"
)


def read_keras_file(
    path: Path, lambdas: Mapping[str, str] = MappingProxyType({})
) -> KerasModel | KerasWeights:
    """Reads a file or folder of any format that Keras has written.

    The content decides which it is, not the file's name.

    Args:
        path: the file; for TF.js, SavedModel and unpacked .keras also the folder; for a TensorFlow
            checkpoint its folder, its .index file or both without the ending.
        lambdas: layer that holds Python code → what it computes: "identity" or an activation.

    Raises:
        ConversionError: the file is missing, broken, hostile or of a format that is not supported.
    """
    try:
        if not path.exists() and path.with_name(f"{path.name}.index").is_file():
            return read_checkpoint(path)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _read_folder(path, lambdas)
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise ConversionError(f"{path} is not a regular file; give {_SUPPORTED}")
        return _read_regular(path, lambdas)
    except RecursionError:  # of code that walks JSON; its depth is the stranger's choice
        raise ConversionError(
            f"{path}: its JSON nests too deep to be a Keras model; check where the file comes from"
        ) from None
    except FileNotFoundError:
        raise ConversionError(f"{path} does not exist; give {_SUPPORTED}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ConversionError(f"{path} cannot be read ({reason}); check the file") from error


def _read_folder(path: Path, lambdas: Mapping[str, str]) -> KerasModel | KerasWeights:
    if (path / "model.json").is_file():
        return read_tfjs(path / "model.json", lambdas)
    if (path / "saved_model.pb").is_file():
        return read_saved_model(path, lambdas)
    if (path / CONFIG).exists() and (path / WEIGHTS).exists():
        return read_keras_folder(path, lambdas)
    if (path / "checkpoint").is_file():
        return read_checkpoint(path)
    indices = [*path.glob("*.index")]
    if len(indices) == 1:
        return read_checkpoint(indices[0])
    raise ConversionError(f"{path} is a folder that holds no model; give {_SUPPORTED}")


def _read_regular(path: Path, lambdas: Mapping[str, str]) -> KerasModel | KerasWeights:
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(SIGNATURE):
        return read_h5(path, lambdas)
    # JSON may begin with white space or a byte order mark; UTF-16 has a zero byte there.
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") or path.suffix == ".json":
        return read_tfjs(path, lambdas)
    if head.startswith(b"PK\x03\x04"):
        return read_keras_zip(path, lambdas)
    if path.name in ("saved_model.pb", "keras_metadata.pb"):
        return read_saved_model(path.parent, lambdas)
    if path.suffix == ".index" or ".data-" in path.name:
        return read_checkpoint(path)
    if not head:
        raise ConversionError(f"{path} is empty; get the file again")
    what = "cut short or damaged" if path.suffix in (".h5", ".hdf5", ".keras") else "no Keras file"
    raise ConversionError(
        f"{path} is {what}: its first bytes are of no known format; give {_SUPPORTED}"
    )
