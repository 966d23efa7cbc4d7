"""What is wrong with a machine, each in a sentence that says what to do."""

import re
from collections.abc import Iterator

from voxtune.engine.machine import PLUGINS, Machine

_LEAST_SHARED = 2**29  # bytes; a container of Docker's has 2**26 unless told otherwise
_LEAST_SHARE = 0.3  # of the table's peak that a product should reach
_MOST_USED = 0.1  # of a GPU's memory that others may use
_YES = ("1", "true", "yes", "on", "t", "y")


def problems(machine: Machine) -> list[str]:
    """All that is wrong."""
    return [
        sentence
        for check in (
            _versions,
            _nvidia,
            _tpu,
            _failure,
            _variables,
            _memory,
            _speed,
            _host,
            _cache,
        )
        for sentence in check(machine)
    ]


def _versions(machine: Machine) -> Iterator[str]:
    for name, wanted in machine.wanted.items():
        version = machine.versions.get(name)
        if version is not None and not _within(version, wanted):
            install = f"run pip install '{name}{wanted}'"
            yield f"{name} is {version}, but voxtune needs {wanted}; {install}."
    lib = machine.versions.get("jaxlib")
    if lib is None:
        return
    jax = machine.versions.get("jax", lib)
    if _numbers(lib) > _numbers(jax):
        yield f"jaxlib {lib} is newer than jax {jax}; run pip install jaxlib=={jax}."
    for name in PLUGINS:
        version = machine.versions.get(name)
        if version is not None and _numbers(version) != _numbers(lib):
            yield f"{name} {version} does not go with jaxlib {lib}; run pip install {name}=={lib}."
    majors = sorted({name.split("-")[1] for name in _plugins(machine)})
    if len(majors) > 1:
        yield (
            "JAX's plugins for CUDA 12 and 13 are both installed, and either may be taken; run pip "
            "uninstall jax-cuda12-plugin jax-cuda12-pjrt."
        )


def _nvidia(machine: Machine) -> Iterator[str]:
    """A GPU that JAX does not use."""
    used = {each.platform for each in machine.found.devices}
    if used & {"gpu", "cuda"}:
        return
    if machine.driver and not machine.nvidia:
        yield (
            f"NVIDIA's driver {machine.driver} is here, but no GPU can be reached; start the "
            "container with --gpus all, or ask the scheduler for a GPU (Slurm: --gpus 1)."
        )
    if not machine.nvidia:
        return
    name = f"a GPU ({machine.cards[0].name})" if machine.cards else "an NVIDIA GPU"
    visible = machine.environment.get("CUDA_VISIBLE_DEVICES")
    platforms = machine.environment.get("JAX_PLATFORMS", "")
    driver = _numbers(machine.driver)[:1]
    if platforms and not re.search(r"cuda|gpu", platforms):
        yield f"There is {name}, but JAX_PLATFORMS={platforms} hides it; unset JAX_PLATFORMS."
    elif visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        yield (
            f"There is {name}, but CUDA_VISIBLE_DEVICES={visible} hides it; unset it, or set it to "
            "0."
        )
    elif driver and driver < (525,):  # docs.jax.dev/en/latest/installation.html, as of CUDA 13
        yield (
            f"There is {name}, but its driver {machine.driver} is too old for JAX; install driver "
            "525 or later, better 580."
        )
    elif not _plugins(machine):
        if not _asks_in_vain(machine):
            yield f"There is {name}, but JAX cannot use it; run {_install(machine)}."
    elif "jax-cuda13-plugin" in _plugins(machine) and driver and driver < (580,):
        yield (
            f"There is {name}, but its driver {machine.driver} is too old for CUDA 13; install "
            "driver 580 or later, or run pip uninstall jax-cuda13-plugin jax-cuda13-pjrt and pip "
            "install 'voxtune[cuda12]'."
        )
    elif used:
        yield (
            f"There is {name}, and a plugin for it is installed, but JAX does not use it; "
            "python -c 'import jax; jax.devices()' says why."
        )


def _tpu(machine: Machine) -> Iterator[str]:
    """A TPU that JAX does not use."""
    if not machine.tpus or any(each.platform == "tpu" for each in machine.found.devices):
        return
    platforms = machine.environment.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms:
        yield f"There is a TPU, but JAX_PLATFORMS={platforms} hides it; unset JAX_PLATFORMS."
    elif "libtpu" not in machine.versions:
        yield "There is a TPU, but JAX cannot use it; run pip install 'voxtune[tpu]'."
    else:
        yield (
            "There is a TPU and its library, but JAX does not use it; end other processes that "
            "hold it, if they are yours (sudo lsof -w /dev/accel* /dev/vfio/*)."
        )


def _failure(machine: Machine) -> Iterator[str]:
    """JAX came to an end before it found or measured everything."""
    error, found = machine.found.error, machine.found
    if not error:
        return
    unknown = re.search(r"Unknown flags? in XLA_FLAGS: (.*?)(, signal \w+)?$", error)
    if unknown is not None:
        yield (
            f"XLA_FLAGS holds {unknown[1].strip()}, which jaxlib "
            f"{machine.versions.get('jaxlib', '')} does not know, so every run would end; take it "
            "out."
        )
    elif not found.devices and _asks_in_vain(machine):
        yield (
            f"JAX_PLATFORMS={machine.environment['JAX_PLATFORMS']} asks for a GPU, but JAX's CUDA "
            f"plugin is not installed; run {_install(machine)}, or unset JAX_PLATFORMS."
        )
    elif not found.devices:
        platforms = machine.environment.get("JAX_PLATFORMS")
        asked = f" with JAX_PLATFORMS={platforms}, which may be unset" if platforms else ""
        yield (
            f"JAX finds no device{asked} ({error}); python -c 'import jax; jax.devices()' says "
            "more."
        )
    else:
        yield f"A product or a copy on the first device fails ({error})."


def _variables(machine: Machine) -> Iterator[str]:
    """Variables that change how JAX works."""
    variable = machine.environment.get
    simulated = re.search(
        r"--xla_force_host_platform_device_count=(\d+)", variable("XLA_FLAGS", "")
    )
    number = simulated[1] if simulated else variable("JAX_NUM_CPU_DEVICES", "1")
    if number.isdigit() and int(number) > 1:
        name = "XLA_FLAGS" if simulated else "JAX_NUM_CPU_DEVICES"
        yield (
            f"{name} has the CPU simulate {number} devices, which is for tests and slower than "
            "one; take it out."
        )
    if variable("JAX_ENABLE_X64", "").lower() in _YES:
        yield "JAX_ENABLE_X64 doubles memory and time of what is not float32 by name; unset it."
    if not machine.nvidia:
        return
    share = variable("XLA_PYTHON_CLIENT_MEM_FRACTION")
    if share is not None and not _is_share(share):
        yield (
            f"XLA_PYTHON_CLIENT_MEM_FRACTION={share} is no share of a GPU's memory from 0.5 to 1; "
            "unset it (0.75 is usual)."
        )
    allocate = variable("XLA_PYTHON_CLIENT_PREALLOCATE", "true").lower()
    if allocate not in ("true", "false", "1", "0"):
        yield (
            f"XLA_PYTHON_CLIENT_PREALLOCATE={allocate} is neither true nor false, and counts as "
            "true; set it to one of them, or unset it."
        )
    if variable("XLA_PYTHON_CLIENT_ALLOCATOR") == "platform":
        yield "XLA_PYTHON_CLIENT_ALLOCATOR=platform makes every allocation slow; unset it."
    if machine.libraries and _plugins(machine):
        yield (
            f"LD_LIBRARY_PATH has other libraries of CUDA ({', '.join(machine.libraries)}) in the "
            "place of those that came with JAX; unset it."
        )


def _memory(machine: Machine) -> Iterator[str]:
    """GPUs that others use, of those that this process may."""
    for number, card in enumerate(machine.cards):
        if number in _visible(machine) and card.used > _MOST_USED * card.memory:
            yield (
                f"{card.used / 2**30:.1f} of {card.memory / 2**30:.1f} GiB of GPU {number} "
                f"({card.name}) are in use by other processes; end them if they are yours "
                "(nvidia-smi shows them), or choose another GPU by CUDA_VISIBLE_DEVICES."
            )


def _visible(machine: Machine) -> list[int]:
    """Numbers of the cards that CUDA_VISIBLE_DEVICES leaves, by numbers or beginnings of UUIDs.

    As CUDA reads it: what comes after one that is not there does not count, and parts of a card
    (MIG), whose memory is their own, are not among these.
    """
    asked = machine.environment.get("CUDA_VISIBLE_DEVICES")
    everything = range(len(machine.cards))
    if asked is None:
        return list(everything)
    found = []
    for each in asked.split(","):
        text = each.strip()
        if text.isdecimal():
            numbers = [number for number in everything if number == int(text)]
        else:
            cards = enumerate(machine.cards)
            numbers = [number for number, card in cards if text and card.uuid.startswith(text)]
        if len(numbers) != 1:
            break
        found += numbers
    return found


def _speed(machine: Machine) -> Iterator[str]:
    """Products far below what the device can do."""
    for dtype, flops in machine.found.products.items():
        kind, peak = machine.found.devices[0].kind, machine.found.peaks.get(dtype)
        if peak is not None and flops < _LEAST_SHARE * peak:
            yield (
                f"Products of {dtype} run at {flops / 1e12:.1f} TFLOP/s on {kind}, "
                f"{flops / peak:.0%} of its peak; see whether another process uses it, or heat or "
                "a power limit slows it (nvidia-smi -q -d PERFORMANCE)."
            )


def _host(machine: Machine) -> Iterator[str]:
    if machine.cores < 2:
        yield (
            f"There is {machine.cores:g} core for reading, placing and starting steps, so devices "
            "will wait; ask for at least 2 (Slurm: --cpus-per-task)."
        )
    if machine.shared is not None and machine.shared < _LEAST_SHARED:
        yield (
            f"/dev/shm has {machine.shared / 2**20:.0f} MiB, too few for the batches of --workers; "
            "start the container with --shm-size=8g."
        )


def _cache(machine: Machine) -> Iterator[str]:
    """Compiled programs, which runs execute, where others could put theirs."""
    found = machine.found
    if found.exposed:
        state = "not safe" if found.cache else "not kept"
        yield f"Compiled programs are {state}: {found.exposed.rstrip('.')}."


def _asks_in_vain(machine: Machine) -> bool:
    """Whether JAX finds no device because it is told to use GPUs and has no plugin for them."""
    asked = re.search(r"cuda|gpu", machine.environment.get("JAX_PLATFORMS", ""))
    return asked is not None and not _plugins(machine) and not machine.found.devices


def _install(machine: Machine) -> str:
    """What installs a plugin for GPUs that suits the driver."""
    driver = _numbers(machine.driver)
    return f"pip install 'voxtune[{'cuda13' if not driver or driver >= (580,) else 'cuda12'}]'"


def _plugins(machine: Machine) -> list[str]:
    return [name for name in PLUGINS if name in machine.versions]


def _is_share(text: str) -> bool:
    try:
        return 0.5 <= float(text) <= 1
    except ValueError:
        return False


def _within(version: str, wanted: str) -> bool:
    """Whether a version is one that is asked for, as `>=1.0,<2`."""
    own = _numbers(version)
    for part in wanted.split(","):
        found = re.fullmatch(r"\s*(>=|<)\s*([\d.]+)\s*", part)
        if found is not None and (own >= _numbers(found[2])) != (found[1] == ">="):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    """Of a version, without zeros at the end: 1.2 and 1.2.0 are the same."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(each) for each in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
