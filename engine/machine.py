"""What a machine has, as it is read without JAX. No JAX here."""

import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from voxtune.engine.cgroups import core_limit, memory_limit
from voxtune.engine.workers import cores

PLUGINS = tuple(f"jax-cuda{major}-{part}" for major in (12, 13) for part in ("plugin", "pjrt"))
SHOWN = (
    *("jax", "jaxlib", *PLUGINS, "libtpu"),
    *("flax", "optax", "orbax-checkpoint", "grain", "numpy"),
)
_TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}  # PCI, v3 to 7x
_GOOGLE = "0x1ae0"
_SECONDS = 120.0  # in which JAX has to find its devices and measure them
_CUDA_LIBRARIES = ("libcudart.so*", "libcublas.so*", "libcudnn.so*", "libcudnn_*.so*")


@dataclass(frozen=True)
class Card:
    """An NVIDIA GPU as the driver tells of it; memory in bytes, what others use of it too."""

    name: str
    memory: int
    used: int
    uuid: str = ""


@dataclass(frozen=True)
class Device:
    """A device as JAX tells of it; memory in bytes, None where it does not say."""

    kind: str
    platform: str
    memory: int | None = None


@dataclass(frozen=True)
class Found:
    """What JAX found, as far as it came.

    Attributes:
        devices: of this process.
        cache: folder of compiled programs; None where they are not kept.
        exposed: why others could put programs of theirs there; empty where they cannot.
        products: data type → FLOP/s in matrix products on the first device.
        peaks: data type → FLOP/s of which it is capable, where that is known.
        copy: bytes/s that the first device reads and writes of its memory.
        transfer: bytes/s from the host to it.
        error: why it came no further, in words of JAX's; empty where it did.
    """

    devices: tuple[Device, ...] = ()
    cache: str | None = None
    exposed: str = ""
    products: Mapping[str, float] = field(default_factory=dict)
    peaks: Mapping[str, float] = field(default_factory=dict)
    copy: float | None = None
    transfer: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Machine:
    """What a machine has.

    Attributes:
        environment: variables.
        versions: package → version, of those that are installed.
        wanted: package → versions that voxtune works with, as `>=1.0,<2`.
        python: version.
        cores: that this process may use, those of a container's limit too.
        memory: of the host or the container's limit, bytes.
        shared: size of /dev/shm, bytes; None where there is none.
        driver: version of NVIDIA's; empty where there is none.
        nvidia: whether device files of NVIDIA's are there.
        cards: NVIDIA's GPUs.
        tpus: chips.
        libraries: folders of LD_LIBRARY_PATH that hold libraries of CUDA.
        found: what JAX found.
    """

    environment: Mapping[str, str]
    versions: Mapping[str, str]
    wanted: Mapping[str, str]
    python: str
    cores: float
    memory: int
    shared: int | None
    driver: str
    nvidia: bool
    cards: tuple[Card, ...]
    tpus: int
    libraries: tuple[str, ...]
    found: Found


def this_machine() -> Machine:
    """The machine that this runs on."""
    wanted = _wanted()
    cards = _cards()  # before JAX takes its share of their memory
    return Machine(
        environment=dict(os.environ),
        versions=_versions(dict.fromkeys((*SHOWN, *wanted))),
        wanted=wanted,
        python=platform.python_version(),
        cores=min(float(cores()), core_limit() or math.inf),
        memory=min(_host_memory(), memory_limit() or sys.maxsize),
        shared=_shared_memory(),
        driver=_driver(),
        nvidia=any(Path(each).exists() for each in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")),
        cards=cards,
        tpus=_tpus(),
        libraries=_libraries(os.environ.get("LD_LIBRARY_PATH", "")),
        found=ask_jax(),
    )


def ask_jax(seconds: float = _SECONDS) -> Found:
    """What JAX finds, in a process of its own: the library of a device may end it, or hang.

    Args:
        seconds: after which it is given up.
    """
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    # -P: the current folder may hold modules whose names others look for.
    command = [sys.executable, "-P", "-m", "voxtune.engine.accelerators"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        text = said.decode(errors="replace") if isinstance(said, bytes) else said
        return found_of(text, f"it does not answer within {seconds:.0f} s")
    return found_of(done.stdout, _why(done.returncode, done.stderr))


def found_of(said: str, error: str) -> Found:
    """What the other process told, a JSON object a line, and why it told no more."""
    content: dict[str, Any] = {}
    for line in said.splitlines():
        if line.startswith("{"):
            content |= json.loads(line)
    devices = tuple(Device(**each) for each in content.pop("devices", ()))
    return Found(**{"error": error, **content, "devices": devices})


def _why(status: int, said: str) -> str:
    """Why a process ended: the last line that is no part of a stack, and the signal."""
    if status == 0:
        return ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"Error|Unknown flag|^F\d{4} ", line)] or lines
    last = telling[-1] if telling else "it says nothing"
    ended = f", signal {signal.Signals(-status).name}" if status < 0 else ""
    return f"{last}{ended}"


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _wanted() -> dict[str, str]:
    """What voxtune asks for, extras aside."""
    found = {}
    for each in metadata.requires("voxtune") or []:
        match = re.fullmatch(r"([\w.-]+)\s*([<>=!~][^;]*)", each)
        if match is not None:
            found[match[1]] = match[2].strip()
    return found


def _run(*command: str) -> str:
    """What a program prints; nothing where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _cards() -> tuple[Card, ...]:
    query = "--query-gpu=uuid,name,memory.total,memory.used"
    found = []
    for line in _run("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines():
        uuid, name, *numbers = (each.strip() for each in line.split(","))
        if len(numbers) == 2 and all(each.isdigit() for each in numbers):  # MiB
            memory, used = (int(each) * 2**20 for each in numbers)
            found.append(Card(name, memory, used, uuid))
    return tuple(found)


def _driver() -> str:
    found = re.search(r"Module\D*(\d+\.\d+(\.\d+)?)", _text("/proc/driver/nvidia/version"))
    if found is not None:
        return found[1]
    told = _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split()
    return told[0] if told else ""


def _tpus() -> int:
    """Chips on PCI, of the kinds that JAX looks for too."""
    folders = [each.parent for each in Path("/sys/bus/pci/devices").glob("*/vendor")]
    return sum(
        _text(each / "vendor").strip() == _GOOGLE and _text(each / "device").strip() in _TPUS
        for each in folders
    )


def _libraries(path: str) -> tuple[str, ...]:
    folders = [Path(each) for each in path.split(":") if each]
    return tuple(
        str(each) for each in folders if any(any(each.glob(name)) for name in _CUDA_LIBRARIES)
    )


def _shared_memory() -> int | None:
    return shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _text(path: str | Path) -> str:
    """Of a file; empty where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
