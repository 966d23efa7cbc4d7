"""Options and commands as a person would type them, without one machine's folders. No JAX here."""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from voxtune.engine.config import Finetune, Study
from voxtune.engine.recipes import RECIPES

_PLACES = ("model_dir", "subjects", "run_dir")  # that `voxtune finetune` has no names for
_OF_A_STUDY = ("model", "data", "out")
_CUT = ".../"  # in the place of folders in a command, which may be copied


def finetune_command(config: Finetune) -> str:
    """A command line of a run: what differs from the defaults of its recipe.

    Paths are as they were given, or `.../NAME` where they were absolute.
    """
    usual = {**_defaults(Finetune), **RECIPES[config.recipe], "recipe": "voxtune"}
    places = [_place(str(getattr(config, name))) for name in _PLACES]
    return shlex.join(["voxtune", "finetune", *places, *_options(config, usual, _PLACES)])


def study_command(config: Study, designed: Mapping[str, Any]) -> str:
    """A command line of a study: what differs from the defaults, and from what its design says.

    Args:
        config: of the study.
        designed: options of the design by name, see `voxtune.engine.arms.design_options`.
    """
    usual = {**_defaults(Study), **designed}
    given = [part for name in _OF_A_STUDY for part in _option(name, getattr(config, name))]
    options = _options(config, usual, (*_OF_A_STUDY, "shard"))
    return shlex.join(["voxtune", "study", *given, *options])


def shown_command(command: str) -> str:
    """A recorded command line, with `...` for the folders of the machine that it was given on."""
    try:
        first, *others = shlex.split(command)
    except ValueError:  # it was edited: nothing, or a quote that never ends
        return without_folders(command)
    return shlex.join(
        [PurePosixPath(first).name, *(without_folders(each, _CUT) for each in others)]
    )


def without_folders(text: str, cut: str = "") -> str:
    """An absolute path's last part; the same of `--option=PATH`; all else as it is.

    Of an address the name and password are left out, if it has them.

    Args:
        text: any.
        cut: what stands in the place of the folders.
    """
    if option := re.match(r"--?[\w-]+=", text):
        return option[0] + without_folders(text[option.end() :], cut)
    if "://" in text:
        return re.sub(r"://[^/@]*@", "://", text)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return cut + kind(text).name if kind(text).name else "."
    return text


def option_name(name: str) -> str:
    """Of a field, as the command line has it."""
    return name if name in _PLACES else f"--{name.replace('_', '-')}"


def shown_value(value: Any) -> str:
    """An option's value in a table, without folders."""
    if isinstance(value, tuple | list):
        return " ".join(map(shown_value, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else _word(value)


def _defaults(kind: type[Finetune] | type[Study]) -> dict[str, Any]:
    return {each.name: each.default for each in dataclasses.fields(kind)}


def _options(
    config: Finetune | Study, usual: Mapping[str, Any], without: Sequence[str]
) -> list[str]:
    """What differs from what is usual."""
    names = [each.name for each in dataclasses.fields(config) if each.name not in without]
    # A recipe goes first, as what follows differs from it.
    names.sort(key=lambda name: name != "recipe")
    found = []
    for name in names:
        value = getattr(config, name)
        if value != usual[name] or type(value) is not type(usual[name]):
            found += _option(name, value)
    return found


def _option(name: str, value: Any) -> list[str]:
    """An option and its values."""
    option = option_name(name)
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    values = value if isinstance(value, tuple) else (value,)
    return [option, *(_word(each, _CUT) for each in values)]


def _word(value: Any, cut: str = "") -> str:
    """Of numbers the shortest that means the same; see `without_folders`."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return without_folders(str(value), cut)


def _place(text: str) -> str:
    """A path that stands without an option before it, and so must not look like one."""
    shown = without_folders(text, _CUT)
    return f"./{shown}" if shown.startswith("-") else shown
