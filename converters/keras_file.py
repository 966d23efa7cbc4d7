"""Each Keras file format → one KerasModel: the layers' configurations and named arrays.

A Keras file comes from a stranger. It is read, never executed or unpickled; sizes are checked
before memory is taken; links out of the file are not followed. TensorFlow and Keras stay outside.
"""

import stat
from pathlib import Path

from voxtune.converters.errors import ConversionError
from voxtune.converters.hdf5 import SIGNATURE, read_hdf5
from voxtune.converters.keras_model import KerasLayer, KerasModel
from voxtune.converters.tfjs import read_tfjs

__all__ = ["ConversionError", "KerasLayer", "KerasModel", "read_keras_file"]

_SUPPORTED = "a TF.js layers model or an .h5 file with the whole model"


def read_keras_file(path: Path) -> KerasModel:
    """Reads a TF.js layers model (its folder or its model.json) or a Keras whole-model .h5 file.

    The content decides which it is, not the file's name.

    Raises:
        ConversionError: the file is missing, broken, hostile or of a format that is not supported.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _read_folder(path)
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise ConversionError(f"{path} is not a regular file; give {_SUPPORTED}")
        return _read_regular(path)
    except FileNotFoundError:
        raise ConversionError(f"{path} does not exist; give {_SUPPORTED}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ConversionError(f"{path} cannot be read ({reason}); check the file") from error


def _read_folder(path: Path) -> KerasModel:
    if (path / "model.json").is_file():
        return read_tfjs(path / "model.json")
    if (path / "saved_model.pb").exists() or (path / "keras_metadata.pb").exists():
        raise ConversionError(
            f"{path} is a TensorFlow SavedModel, not supported yet; load it in TensorFlow and save "
            "it with model.save('model.h5')"
        )
    if (path / "config.json").exists() and (path / "model.weights.h5").exists():
        raise ConversionError(
            f"{path} is an unpacked .keras file, not supported yet; load it in Keras and save it "
            "with model.save('model.h5')"
        )
    raise ConversionError(f"{path} is a folder without a model.json; give {_SUPPORTED}")


def _read_regular(path: Path) -> KerasModel:
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(SIGNATURE):
        return read_hdf5(path)
    # JSON may begin with white space or a byte order mark; UTF-16 has a zero byte there.
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") or path.suffix == ".json":
        return read_tfjs(path)
    if head.startswith(b"PK\x03\x04"):
        what = "a Keras 3 .keras file" if path.suffix == ".keras" else "a zip archive"
        raise ConversionError(
            f"{path} is {what}, not supported yet; load it in Keras and save it with "
            "model.save('model.h5')"
        )
    if path.name in ("saved_model.pb", "keras_metadata.pb"):
        raise ConversionError(
            f"{path} is part of a TensorFlow SavedModel, not supported yet; load the folder in "
            "TensorFlow and save it with model.save('model.h5')"
        )
    if not head:
        raise ConversionError(f"{path} is empty; get the file again")
    what = "cut short or damaged" if path.suffix in (".h5", ".hdf5", ".keras") else "no Keras file"
    raise ConversionError(
        f"{path} is {what}: its first bytes are of no known format; give {_SUPPORTED}"
    )
