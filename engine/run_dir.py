"""The run directory: what a run was told, what it was made of, and what happened."""

import dataclasses
import json
import math
import platform
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from voxtune.engine.case import Case
from voxtune.engine.config import Finetune
from voxtune.engine.output import check_free, make_folder
from voxtune.models.errors import InputError


def make_run_dir(folder: Path, overwrite: bool, documents: Mapping[str, Any]) -> None:
    """Makes the folder anew, with a JSON file of each document.

    Raises:
        InputError: it exists, or cannot be made.
    """
    check_free(folder, overwrite)
    try:
        if folder.exists():
            shutil.rmtree(folder)
        make_folder(folder)
        for name, content in documents.items():
            (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from error


def record(
    config: Finetune, train: Sequence[Case], validation: Sequence[Case], mesh: Mesh
) -> dict[str, Any]:
    """What a run is: options, subjects, versions and devices, as JSON values."""
    options = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(config).items()
    }
    return {
        "options": options,
        "train": [each.name for each in train],
        "validation": [each.name for each in validation],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("voxtune", "jax", "flax", "optax", "grain")},
        },
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
    }


class Log:
    """metrics.jsonl: one JSON object a line.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **entry: Any) -> None:
        """Appends an entry; numbers that JSON lacks (NaN) become null."""
        with self._path.open("a") as stream:
            stream.write(json.dumps(finite(entry)) + "\n")


def finite(value: Any) -> Any:
    """JSON values, with null for the numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
