"""config.json of a run, read again: checked, as anybody may have changed it. No JAX here."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from voxtune.engine.config import Finetune
from voxtune.engine.options import Training
from voxtune.models.errors import InputError

_LARGEST = 2**26  # bytes of a JSON file; subjects by the hundred thousand fit
_LARGEST_BATCH = 2**20
CONFIG = "config.json"

# Files may have been moved; what they say is compared instead.
READ = ("model_dir", "subjects", "init_from", "rules", "label_map")
# By default they depend on the devices, or on the scans, and may not change.
SETTLED = ("batch", "block")
_AGAIN = "start the run again with 'voxtune finetune'"


def saved_options(run_dir: Path) -> dict[str, Any]:
    """How a run is trained: values of the fields of `Training`; none where there is no run.

    Paths are absolute, so that they mean the same in any folder.
    """
    try:
        return options_of(read_config(run_dir), Training)
    except InputError:
        return {}


def read_config(run_dir: Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
        InputError: it is not there, or is no run's of this version.
    """
    path = run_dir / CONFIG
    try:
        there = path.is_file()
    except OSError as error:  # a name that is too long, say
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    if not there:
        raise InputError(
            f"{run_dir} is no run directory: it has no {CONFIG}; name the folder of a run, or "
            f"{_AGAIN}."
        )
    try:
        document = read_json(path)
        if "folder" not in document:
            made = _object(document, "versions").get("voxtune", "?")
            raise InputError(
                f"{run_dir} was made by voxtune {made}, which could not go on with runs; {_AGAIN}."
            )
        _check_document(document)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {_AGAIN}.") from error
    return document


def _check_document(document: Mapping[str, Any]) -> None:
    """Makes sure that config.json holds what is read of it.

    Raises:
        ValueError: it does not.
    """
    for name, kind in (
        ("folder", str),
        ("command", str),
        ("options", dict),
        ("versions", dict),
        ("batch", int),
        ("block", list),
        ("classes", list),
        ("train", list),
        ("validation", list),
    ):
        if type(document.get(name)) is not kind:
            raise ValueError(f"it says nothing of the {name}")
    if not 1 <= document["batch"] <= _LARGEST_BATCH:
        raise ValueError(f"a batch of {document['batch']} makes no sense")
    if len(document["block"]) != 3 or not all(type(n) is int and n > 0 for n in document["block"]):
        raise ValueError("its block is not three sizes")
    past = document.get("resumed", [])
    if not isinstance(past, list) or not all(isinstance(each, dict) for each in past):
        raise ValueError("what it says of its past is no list of objects")


def _object(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def place_of(place: str, folder: Path) -> str:
    """Where something is that a run's options name: from the folder that it was started in, or,
    where it is not there any more, from this one."""
    if "://" in place:
        return place
    first, here = folder / place, Path.cwd() / place
    try:
        moved = not first.exists() and here.exists()
    except OSError:  # a name that is too long, say
        moved = False
    return str(here if moved else first)


def check_places(config: Finetune, document: Mapping[str, Any]) -> None:
    """Makes sure that what the run reads is somewhere, unless other places are given.

    Raises:
        InputError: it is not.
    """
    folder = Path(document["folder"])
    for name in READ:
        old, value = document["options"].get(name), getattr(config, name)
        if not isinstance(old, str) or "://" in old or str(value) != place_of(old, folder):
            continue
        if not Path(value).exists():
            raise InputError(
                f"{config.run_dir} reads {old}, which is neither in {folder}, where the run was "
                f"started, nor in {Path.cwd()}; go on where it is, or put it back."
            )


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST} bytes")
    try:
        found = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def options_of(document: Mapping[str, Any], kind: type[Training]) -> dict[str, Any]:
    """Values of the fields of a command, as far as config.json has them.

    Raises:
        InputError: one is not what the field takes.
    """
    hints = typing.get_type_hints(kind)
    saved, found = document["options"], dict[str, Any]()
    needed = {"model_dir", "subjects"} if kind is Finetune else set[str]()
    if needed - saved.keys():
        raise InputError(f"{CONFIG} does not say which {min(needed - saved.keys())}; {_AGAIN}.")
    for name in (each.name for each in dataclasses.fields(kind)):
        if name not in saved:  # younger than the run, whose value is the usual one
            continue
        value = document[name] if name in SETTLED else saved[name]
        if name in READ and isinstance(value, str):
            value = place_of(value, Path(document["folder"]))
        try:
            found[name] = typed(hints[name], value, Path(document["folder"]))
        except ValueError as error:
            raise InputError(
                f"{CONFIG} has '{name}': {value!r}, which is nothing that it can be; {_AGAIN}."
            ) from error
    return found


def typed(hint: Any, value: Any, folder: Path) -> Any:
    """A JSON value as the type of a field has it; paths start from a folder.

    Raises:
        ValueError: it is of another type.
    """
    inner = typing.get_args(hint)
    match typing.get_origin(hint):
        case typing.Union | types.UnionType:
            for each in inner:
                try:
                    return typed(each, value, folder)
                except ValueError:
                    continue
        case origin if origin is Literal:
            if any(value == each and type(value) is type(each) for each in inner):
                return value
        case origin if origin is tuple and isinstance(value, list):
            if inner[-1] is Ellipsis:
                inner = inner[:1] * len(value)
            pairs = zip(inner, value, strict=True)
            return tuple(typed(each, part, folder) for each, part in pairs)
        case None:
            if hint is Path and isinstance(value, str) and "\0" not in value:
                return folder / value
            if hint is float and type(value) in (int, float):
                try:
                    return float(value)
                except OverflowError as error:
                    raise ValueError(f"it is too large for a {hint}") from error
            if type(value) is hint:
                return value
    raise ValueError(f"it is no {hint}")
