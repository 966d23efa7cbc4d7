"""A `.keras` file: config.json, metadata.json and model.weights.h5 in a zip archive or a folder."""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from voxtune.converters.digest import sha256_of
from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.hdf5 import open_hdf5
from voxtune.converters.keras_config import MAX_CONFIG_BYTES, parse_graph, parse_json
from voxtune.converters.keras_h5 import WeightsByPlace, placed
from voxtune.converters.keras_model import KerasModel

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_MAX_MEMBERS = 10_000
# Weights shrink little when they are compressed; a bomb of zeros to a thousandth.
_MAX_RATIO, _FREE_BYTES = 20, 64 * 2**20


def read_keras_zip(path: Path, lambdas: Mapping[str, str]) -> KerasModel:
    """Reads a `.keras` file.

    Raises:
        ConversionError: it is no such file, broken, or unpacks to far more than it should.
        OSError: the system refuses to read or to unpack the file.
    """
    with _zip_errors(path), zipfile.ZipFile(path) as archive:
        members = _members(archive, path)
        # No more comes out than the directory says: `zipfile` stops there.
        config, metadata = archive.read(members[CONFIG]), archive.read(members[METADATA])
        # libhdf5 reads files, not members of an archive.
        with tempfile.TemporaryDirectory(prefix="voxtune-") as folder:
            weights = Path(folder) / WEIGHTS
            with archive.open(members[WEIGHTS]) as source, weights.open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
            return _model(config, metadata, weights, path, sha256_of(path), lambdas)


def read_keras_folder(path: Path, lambdas: Mapping[str, str]) -> KerasModel:
    """Reads a `.keras` file that was unpacked into a folder.

    Raises:
        ConversionError: it is broken.
        OSError: the system refuses to read a file.
    """
    files = [path / name for name in (CONFIG, METADATA, WEIGHTS)]
    for file in files[:2]:
        if file.exists() and file.stat().st_size > MAX_CONFIG_BYTES:
            raise _too_large(file.name, path)
    for file in files:
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise ConversionError(
                f"{path}: {file.name} is a link or no file, refused; put the files themselves there"
            )
    config = files[0].read_bytes()
    metadata = files[1].read_bytes() if files[1].exists() else b"{}"
    digest = sha256_of(*(file for file in files if file.exists()))
    return _model(config, metadata, files[2], path, digest, lambdas)


def _model(
    config_text: bytes,
    metadata_text: bytes,
    weights: Path,
    path: Path,
    digest: str,
    lambdas: Mapping[str, str],
) -> KerasModel:
    config = parse_json(config_text, path)
    metadata = parse_json(metadata_text, path)
    graph = parse_graph(config, path, lambdas)
    with open_hdf5(path, weights) as file:
        held = WeightsByPlace([file])
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    return KerasModel(
        path=path,
        format="Keras .keras",
        keras_version=version if isinstance(version, str) else "",
        backend="",
        name=graph.name,
        layers=placed(config, graph.layers, held, path),
        calls=graph.calls,
        inputs=graph.inputs,
        outputs=graph.outputs,
        sha256=digest,
        left_out=tuple(held.left_out),
    )


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's directory, after all that it claims is known to be harmless."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename
        if name in members or len(members) >= _MAX_MEMBERS:
            raise ConversionError(
                f"{path}: the archive has {quoted(name)} twice or more than {_MAX_MEMBERS:,} "
                "files, refused; save the model again from Keras"
            )
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ConversionError(
                f"{path}: the archive names {quoted(name)}, a place outside of it, refused; save "
                "the model again from Keras"
            )
        members[name] = info
    missing = [name for name in (CONFIG, METADATA, WEIGHTS) if name not in members]
    if missing:
        raise ConversionError(
            f"{path} is a zip archive without {missing[0]}, so no .keras file; save the model "
            "again with model.save('model.keras')"
        )
    for name in (CONFIG, METADATA, WEIGHTS):
        # Keras compresses with nothing else, and others take memory as their headers say.
        if members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ConversionError(
                f"{path}: {name} is compressed in a way that Keras does not write, refused; save "
                "the model again from Keras"
            )
    for name, most in (
        (CONFIG, MAX_CONFIG_BYTES),
        (METADATA, MAX_CONFIG_BYTES),
        (WEIGHTS, _FREE_BYTES + _MAX_RATIO * path.stat().st_size),
    ):
        if members[name].file_size > most:
            raise _too_large(name, path)
    return members


def _too_large(name: str, path: Path) -> ConversionError:
    return ConversionError(
        f"{path}: {name} would unpack to more bytes than a Keras model has; check where the file "
        "comes from"
    )


@contextmanager
def _zip_errors(path: Path) -> Iterator[None]:
    """What `zipfile` raises on a damaged archive, as one sentence."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,  # an archive of a later version of zip
        RuntimeError,  # a password
        ValueError,
    ) as error:
        raise ConversionError(
            f"{path} is a broken or truncated .keras file ({quoted(error)}); get it again"
        ) from error
