"""What a run is: options, subjects, what it starts from, and on what it runs."""

import dataclasses
import hashlib
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from voxtune.engine.resume import digest
from voxtune.engine.setup import Setup

_LIBRARIES = ("voxtune", "jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint")
_SOURCE = Path(__file__).resolve().parents[1]


def record(setup: Setup) -> dict[str, Any]:
    """All of that, as JSON values."""
    options = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(setup.config).items()
    }
    mesh = setup.mesh
    return {
        "options": options,
        "batch": setup.plan.batch,
        "block": list(setup.plan.block),
        "classes": [f"{each.value}={each.name}" for each in setup.start.spec.classes],
        "train": [each.name for each in setup.train],
        "validation": [each.name for each in setup.validation],
        "data": _data_digest(setup),
        "weights": _weights_digest(setup),
        "rules": digest(setup.rules.to_json()),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
        "revision": revision(),
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "processes": jax.process_count(),
    }


def origin() -> dict[str, str]:
    """From where a run was started, and by which command line, which its model does not tell."""
    return {"folder": str(Path.cwd()), "command": shlex.join(sys.argv)}


def _weights_digest(setup: Setup) -> str:
    """Of all pretrained values that are started from."""
    digest = hashlib.sha256()
    for path in sorted(setup.start.pretrained):
        value = np.ascontiguousarray(setup.start.parameters[path])
        digest.update(f"{path} {value.shape} {value.dtype}\n".encode())
        digest.update(value.data)
    return digest.hexdigest()


def _data_digest(setup: Setup) -> str:
    """Of the subjects: names, shapes, and how many voxels each label value has."""
    lines = [
        f"{case.name} {case.shape} {sorted(case.counts.items())}"
        for cases in (setup.data.train, setup.data.validation)
        for case in cases
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def revision() -> str | None:
    """The git revision of voxtune's own source, where that is a checkout."""
    if not (_SOURCE / ".git").exists():  # installed, perhaps inside a checkout of somebody's
        return None
    command = ["git", "-C", str(_SOURCE), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
