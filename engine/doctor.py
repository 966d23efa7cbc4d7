"""What a machine has, how fast it is, and what is misconfigured."""

from collections import Counter
from collections.abc import Iterator

from rich.console import Console

from voxtune.engine.machine import SHOWN, Machine, this_machine
from voxtune.engine.misconfiguration import problems

_GIB = 2**30


def doctor(console: Console) -> bool:
    """Prints all that; whether nothing is misconfigured."""
    machine = this_machine()
    for line in lines(machine):
        console.print(line, highlight=False, soft_wrap=True)
    found = problems(machine)
    for sentence in found:
        console.print(f"misconfigured: {sentence}", highlight=False, soft_wrap=True)
    if not found:
        console.print("nothing is misconfigured", highlight=False)
    return not found


def lines(machine: Machine) -> list[str]:
    """What a machine has and how fast it is, for a person."""
    parts = (_versions, _host, _cards, _devices, _speeds)
    return [line for part in parts for line in part(machine)]


def _versions(machine: Machine) -> Iterator[str]:
    versions = {name: machine.versions[name] for name in SHOWN if name in machine.versions}
    named = [f"{name} {version}" for name, version in versions.items()]
    yield f"versions: {', '.join([f'python {machine.python}', *named])}"


def _host(machine: Machine) -> Iterator[str]:
    shared = "none" if machine.shared is None else f"{machine.shared / _GIB:.1f} GiB"
    memory = f"memory {machine.memory / _GIB:.1f} GiB"
    yield f"host: {machine.cores:g} cores, {memory}, /dev/shm {shared}"
    safe = "open to others" if machine.found.exposed else "private"
    yield "compiled programs: " + (
        f"{machine.found.cache} ({safe})" if machine.found.cache else "not kept"
    )
    tasks = machine.environment.get("SLURM_NTASKS", "1")
    if tasks not in ("", "1"):
        rank = machine.environment.get("SLURM_PROCID", "?")
        yield f"processes: {tasks} of Slurm's, and this is number {rank}, with devices of its own"


def _cards(machine: Machine) -> Iterator[str]:
    for number, card in enumerate(machine.cards):
        free = (card.memory - card.used) / _GIB
        yield (
            f"GPU {number}: {card.name}, {free:.1f} of {card.memory / _GIB:.1f} GiB free, driver "
            f"{machine.driver}"
        )


def _devices(machine: Machine) -> Iterator[str]:
    for device, number in Counter(machine.found.devices).items():
        memory = "" if device.memory is None else f", {device.memory / _GIB:.1f} GiB for JAX"
        yield f"devices: {number} x {device.kind} ({device.platform}){memory}"
    if not machine.found.devices:
        yield "devices: none"


def _speeds(machine: Machine) -> Iterator[str]:
    found = machine.found
    for dtype, flops in found.products.items():
        peak = found.peaks.get(dtype)
        share = "no peak is known" if peak is None else f"{flops / peak:.0%} of its peak"
        yield f"matrix products, {dtype}: {_of(flops)}FLOP/s ({share})"
    if found.copy is not None:
        yield f"memory, read and written: {found.copy / 1e9:.1f} GB/s"
    if found.transfer is not None:
        yield f"host to device: {found.transfer / 1e9:.1f} GB/s"


def _of(number: float) -> str:
    """With the prefix that suits: `1.2 T`, `340 G`."""
    return f"{number / 1e12:.1f} T" if number >= 1e12 else f"{number / 1e9:.0f} G"
