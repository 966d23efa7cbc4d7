"""Environments of the peers: of Python's own kind, in the user's folder of caches, made once.

A folder that is removed is made anew, of the newest releases.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from voxtune.benchmarks.device import environment
from voxtune.engine.lock import WHOLE, locked
from voxtune.engine.machine import PLUGINS
from voxtune.engine.user_caches import cache_folder, exposed
from voxtune.models.errors import InputError

_FINISHED = "voxtune.json"  # what is in it; written last
# Variables that are meant for voxtune's processes, or put others' modules before an environment's.
_NOT_THEIRS = ("PYTHONPATH", "PYTHONHOME", "XLA_FLAGS", "TF_XLA_FLAGS")
_NVIDIA = ("/dev/nvidiactl", "/dev/dxg")  # where there is such a GPU; the latter on WSL


def pythons(console: Console) -> dict[str, Path]:
    """The interpreters of the peers: "torch" has PyTorch and MONAI, "keras" Keras and its backends.

    pip heeds its own configuration: another index for example.

    Raises:
        InputError: one cannot be made, or others could put programs of theirs there.
    """
    if sys.platform == "win32":
        raise InputError(
            "--peers needs Linux or macOS, as nobody can say on Windows whose a folder is; measure "
            "without it, or in WSL."
        )
    try:
        caches = cache_folder("peers")
        reason = exposed(caches)
    except (OSError, RuntimeError) as error:
        told = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        raise InputError(
            f"There is no cache folder for the peers that can be written{told}; set XDG_CACHE_HOME "
            "to one."
        ) from error
    if reason is not None:
        raise InputError(f"No environments of peers are made: {reason}")
    cuda = _on_cuda()
    return {
        # Machines that share a home may differ in what they have.
        kind: _python(caches / (f"{kind}-cuda" if cuda else kind), packages, console)
        for kind, packages in requirements(cuda).items()
    }


def requirements(cuda: bool) -> dict[str, tuple[str, ...]]:
    """What pip installs for each kind of environment.

    Args:
        cuda: for NVIDIA's GPUs.
    """
    # Keras on JAX is to have the JAX that voxtune has. Its CUDA is 12 even where voxtune's is 13:
    # TensorFlow has no other, and cuDNN's files for both have the same names.
    major, minor, *_ = version("jax").split(".")
    jax = f"jax{'[cuda12]' * cuda}=={major}.{minor}.*"
    plain = platform.system() == "Linux" and platform.machine() == "x86_64"
    tensorflow = "tensorflow[and-cuda]" if cuda else "tensorflow-cpu" if plain else "tensorflow"
    return {
        "torch": ("torch>=2.6", "monai>=1.4", "nibabel>=5.3"),
        "keras": ("keras>=3.10", f"{tensorflow}>=2.18", jax, "nibabel>=5.3"),
    }


def peer_environment(platform: str, folder: Path) -> dict[str, str]:
    """Variables of a peer's process, which is to find nothing but its environment.

    Args:
        platform: as of `voxtune.benchmarks.device.environment`.
        folder: that is removed afterwards, for the settings that Keras keeps of its user.
    """
    found = {
        name: value for name, value in environment(platform).items() if name not in _NOT_THEIRS
    }
    return {**found, "KERAS_HOME": str(folder / "keras")}


def _on_cuda() -> bool:
    """Whether JAX has what an NVIDIA GPU needs here, and there is one."""
    if not any(Path(each).exists() for each in _NVIDIA):
        return False
    for plugin in PLUGINS:
        try:
            version(plugin)
        except PackageNotFoundError:
            continue
        return True
    return False


def _python(folder: Path, packages: Sequence[str], console: Console) -> Path:
    """The interpreter of an environment, which is made where it is not there as it should be.

    Raises:
        InputError: it cannot be made, or another process is at it.
    """
    python = folder / "bin" / "python"
    wanted = {"python": "{}.{}".format(*sys.version_info), "packages": [*packages]}
    if _has(folder, wanted):
        return python
    try:
        with folder.with_suffix(".lock").open("wb") as marker:
            if not locked(marker, WHOLE, True):
                raise InputError(
                    f"Another run of 'voxtune benchmark' is making {folder}; wait until that has "
                    "ended."
                )
            if not _has(folder, wanted):  # another run may just have ended
                said = f"making {folder} of {', '.join(packages)}; this takes minutes"
                console.print(said, highlight=False, soft_wrap=True)
                _make(folder, packages)
                (folder / _FINISHED).write_text(json.dumps(wanted), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}).") from error
    return python


def _has(folder: Path, wanted: Mapping[str, object]) -> bool:
    """Whether an environment is whole, and what is wanted."""
    try:
        found = json.loads((folder / _FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    # The interpreter is a link, to one that may be gone.
    return bool(found == wanted) and (folder / "bin" / "python").exists()


def _make(folder: Path, packages: Sequence[str]) -> None:
    """Makes an environment anew; where that fails or is stopped, nothing is left.

    Raises:
        InputError: it fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    install = (str(folder / "bin" / "python"), "-I", "-m", "pip", "install", "--no-input")
    try:
        _run("venv", (sys.executable, "-I", "-m", "venv", str(folder)), packages)
        _run("pip", (*install, "--quiet", *packages), packages)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _run(name: str, command: Sequence[str], packages: Sequence[str]) -> None:
    """Runs a module of Python's that takes part in making an environment.

    Raises:
        InputError: it fails.
    """
    done = subprocess.run(
        command,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("ERROR:")] or lines
    said = telling[-1].removeprefix("ERROR: ") if telling else f"exit status {done.returncode}"
    raise InputError(
        f"{', '.join(packages)} cannot be installed for --peers ({name}: {said}); mend that, or "
        "measure without --peers."
    )
