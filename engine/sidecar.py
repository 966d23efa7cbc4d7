"""What lies beside each result of `voxtune predict`, `NAME.json`: what it was made of, and how.

A rerun knows by it what is done. It holds no path and nothing of a scan's header. No JAX here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtune.engine.config import Predict
from voxtune.engine.volume import written_beside
from voxtune.models.errors import InputError

_FORMAT, _VERSION = "voxtune prediction", 1
_CHUNK_BYTES = 2**20
_MOST_BYTES = 10**6  # of a sidecar; one with hundreds of classes has some ten thousand
_OPTIONS = (
    "block",
    "overlap",
    "flip",
    "swap",
    "samples",
    "seed",
    "nonfinite",
    "largest",
    "fill_holes",
    "grid",
)  # which change labels; --mesh changes no more than their rounding, --maps adds files


def model_hash(folder: Path) -> str:
    """Of the names and bytes of model.json and of all files of the parameters, SHA-256.

    A copy of a model directory has the same; one that was converted or trained anew has another,
    since Orbax notes when it wrote.

    Raises:
        InputError: they cannot be read.
    """
    found = hashlib.sha256()
    try:
        files = [each for each in (folder / "params").rglob("*") if each.is_file()]
        for path in (folder / "model.json", *sorted(files)):
            found.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
            with path.open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    found.update(chunk)
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}); copy the model again."
        ) from error
    return found.hexdigest()


def made_by(config: Predict, threshold: float | None) -> dict[str, Any]:
    """What decides what the result of a scan is, beside the scan, as JSON values.

    Args:
        config: of the job.
        threshold: that of the model, where it has one, or the one in its place.

    Raises:
        InputError: see `model_hash`.
    """
    options = {name: getattr(config, name) for name in _OPTIONS}
    content = {
        "models": [model_hash(each) for each in (config.model_dir, *config.ensemble)],
        "threshold": threshold,
        **options,
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))  # tuples become lists, as in the file
    return plain


def state_of(images: Mapping[str, Path]) -> dict[str, dict[str, int]]:
    """Size and time of change of each of a scan's files, by channel.

    Raises:
        OSError: one cannot be looked at.
    """
    found = {}
    for channel, path in images.items():
        status = path.stat()
        found[channel] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    return found


def write_sidecar(path: Path, content: Mapping[str, Any]) -> None:
    """Writes one, whole or not at all.

    Raises:
        InputError: the disk does not take it.
    """
    document = {"format": _FORMAT, "version": _VERSION, **content}
    with written_beside(path) as beside:
        beside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_sidecar(path: Path) -> dict[str, Any]:
    """What one holds; empty where there is none that can be read, so that its scan is done anew."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        document = json.loads(path.read_bytes())
        if (document["format"], document["version"]) != (_FORMAT, _VERSION):
            return {}
        if not isinstance(document["made_by"], dict):
            return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    assert isinstance(document, dict)
    return document


def check_same_job(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Makes sure that a result which is there was made as others are to be made.

    Args:
        path: its sidecar.
        found: what made it.
        wanted: see `made_by`.

    Raises:
        InputError: it was not.
    """
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        raise InputError(
            f"{path} is of a result that was made with {_said(differing, found, wanted)}; choose "
            "another folder, or pass --overwrite to do all again."
        )


def _said(names: Sequence[str], found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if "models" in names:
        return "another model, or an older state of it"
    name = names[0]
    option = f"--{name.replace('_', '-')}"
    return f"{option} {_plain(found.get(name))}, not {_plain(wanted[name])}"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "without values"
    if value is None:
        return "not given"
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
