"""`voxtune benchmark`: suites measured one after the other, kept, compared and drawn."""

import dataclasses
import datetime
import platform
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flax import nnx
from rich.console import Console

from voxtune.benchmarks import (
    checks,
    compile,
    convert,
    data,
    environments,
    history,
    predict,
    results,
    scaling,
    throughput_page,
    train,
)
from voxtune.benchmarks.comparisons import OWN
from voxtune.benchmarks.measurement import Measurement
from voxtune.benchmarks.nets import MAIN, NETS
from voxtune.benchmarks.program import CRASHES, ended_when_told
from voxtune.engine import config
from voxtune.engine.machine import Machine, this_machine
from voxtune.engine.record import revision
from voxtune.engine.store import read_store
from voxtune.models.errors import InputError
from voxtune.models.families import abstract
from voxtune.models.lowering import plain_lowerings
from voxtune.models.norms import InstanceNorm

# (options, kind of environment → its interpreter) → what was measured: of each case voxtune first,
# then its peers.
Suite = Callable[[config.Benchmark, Mapping[str, Path]], Iterator[Measurement]]
SUITES: dict[str, Suite] = {
    "train": train.measure,
    "predict": predict.measure,
    "data": data.measure,
    "scaling": scaling.measure,
    "compile": compile.measure,
    "convert": convert.measure,
}
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION", "NVIDIA_TF32_OVERRIDE")

# Options → the suites that heed them.
_OF_SUITES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("blocks", "batches", "dtypes"), ("train", "data", "scaling")),
    "maps": ("train", "scaling"),
    "remats": ("train",),
    "scan": ("predict",),
    "store": ("data",),
    "networks": ("train", "predict", "scaling", "compile"),
}


def benchmark(given: config.Benchmark, console: Console) -> bool:
    """Measures what is wanted, prints it and keeps it.

    Returns:
        Whether voxtune broke in no case and, with `check`, nothing has fallen behind what the
        history has.

    Raises:
        InputError: options make no sense, the history cannot be read or written, or a peer's
            environment cannot be made.
    """
    _check(given)
    before = [] if given.history is None else history.read(given.history)
    place = place_of(this_machine())
    if given.check and all(each.place.machine != place.machine for each in before):
        raise InputError(
            f"{given.history} has nothing to --check against on {place.machine}; run once without "
            "--check first."
        )
    console.print(f"{place.machine}; voxtune {place.revision}", highlight=False, soft_wrap=True)
    found: list[history.Entry] = []
    with ended_when_told():
        peers = environments.pythons(console) if given.peers else {}
        for suite in dict.fromkeys(given.suites):
            for each in SUITES[suite](given, peers):
                found.append(history.Entry(place, _kept(each)))
                if given.history is not None:  # at once: nothing is lost when it is stopped
                    history.append(given.history, found[-1])
                console.print(results.line(found), highlight=False, soft_wrap=True)
    for table in results.tables(found):
        console.print(table)
    if given.page is not None:
        throughput_page.write([*before, *found], given.page)
        said = f"wrote {given.page}, a picture and a table beside it"
        console.print(said, highlight=False, soft_wrap=True)
    broken = _broken(found)
    for line in broken:
        console.print(line, highlight=False, soft_wrap=True)
    if not given.check:
        return not broken
    check = checks.check(before, found)
    for line in check.lines():
        console.print(line, highlight=False, soft_wrap=True)
    return not (broken or check.fallen)


def _broken(found: Sequence[history.Entry]) -> list[str]:
    """Sentences on cases in which voxtune broke, which is a mistake of voxtune's and no result."""
    measured = (each.measurement for each in found)
    return [
        f"{each.suite}, {each.case}: voxtune {each.problem}"
        for each in measured
        if each.program == OWN and each.problem.startswith(CRASHES)
    ]


def _kept(measured: Measurement) -> Measurement:
    """As it is; with a problem instead of figures where the history would not take one of them."""
    odd = [name for name in history.unfit(dataclasses.asdict(measured)) if name != "values"]
    odd += [
        name for name, value in measured.values.items() if history.unfit({"values": {name: value}})
    ]
    if not odd:
        return measured
    problem = f"gave a figure that is no number, or out of bounds: {', '.join(odd)}"
    return Measurement(
        *(measured.suite, measured.case, measured.program, measured.settings),
        version=measured.version,
        problem=measured.problem or problem,
    )


def _check(given: config.Benchmark) -> None:
    """Makes sure that options make sense, before anything is measured.

    Raises:
        InputError: they do not.
    """
    if (given.check or given.page is not None) and given.history is None:
        raise InputError("--check and --page are of a history; name its folder with --history.")
    numbers = {
        "--blocks": given.blocks,
        "--batches": given.batches,
        "--scan": () if given.scan is None else (given.scan,),
        "--turns": (given.turns,),
    }
    for option, values in numbers.items():
        if values and min(values) < 1:
            raise InputError(f"{option} {min(values)} is too small; 1 is the least.")
    usual = config.Benchmark()
    for option, suites in _OF_SUITES.items():
        is_given = getattr(given, option) != getattr(usual, option)
        if is_given and not {*suites} & {*given.suites}:
            raise InputError(
                f"--{option} is of {', '.join(suites)}, not of {', '.join(given.suites)}; leave it "
                "out, or measure what it is of."
            )
    _check_networks(given)
    if given.scan is not None:
        predict.check_scan(given.scan)
    if given.store is not None:
        read_store(given.store)
    if given.history is not None:
        try:
            given.history.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--history {given.history} is no folder, nor can it be made ({error.strerror}); "
                "name another."
            ) from error
    if given.page is not None:
        throughput_page.check_place(given.page)


def _check_networks(given: config.Benchmark) -> None:
    """Makes sure that suites measure the networks that are named, and can train them on blocks.

    Raises:
        InputError: one does not.
    """
    lacking = [each for each in _OF_SUITES["networks"] if each in given.suites and each != "train"]
    for network in given.networks:
        if network not in MAIN and lacking:
            raise InputError(
                f"--networks {network} is of train, not of {', '.join(lacking)}; name the suites "
                f"to measure, as in: voxtune benchmark train --networks {network}."
            )
    if not {"train", "scaling"} & {*given.suites}:
        return
    networks: Sequence[str] = given.networks or MAIN
    for net in map(NETS.__getitem__, networks):
        with plain_lowerings():  # others would open the device, of which this process has no need
            built = abstract(net.family, dict(net.arguments))
            multiple = built.min_multiple
        assert isinstance(built, nnx.Module)
        # Of one voxel they leave nothing, and of what lies before them no gradient.
        norms = any(isinstance(each, InstanceNorm) for _, each in nnx.iter_modules(built))
        for edge in given.blocks:
            if edge % multiple:
                raise InputError(f"--blocks {edge}: {net.title} takes multiples of {multiple}.")
            if norms and edge == multiple:
                raise InputError(
                    f"--blocks {edge}: {net.title} leaves one voxel to the instance norms of its "
                    f"lowest resolution; give {2 * multiple} or more."
                )


def place_of(machine: Machine) -> history.Place:
    """Where and by what something is measured now.

    Raises:
        InputError: JAX finds no device.
    """
    found = machine.found
    if not found.devices:
        raise InputError(f"JAX finds no device ({found.error}); run 'voxtune doctor'.")
    first = found.devices[0]
    kind = _processor() if first.platform == "cpu" else first.kind
    cores = f"{machine.cores:g} core{'s' * (machine.cores != 1)}"
    return history.Place(
        revision=revision() or machine.versions.get("voxtune", "unknown"),
        date=datetime.date.today().isoformat(),
        machine=f"{len(found.devices)} x {kind}, {cores}",
        versions={"python": machine.python, **machine.versions},
        flags={
            name: _without_places(machine.environment[name])
            for name in _FLAGS
            if machine.environment.get(name)
        },
        copy=found.copy,
        products=found.products,
        platform=first.platform,
    )


def _processor() -> str:
    """The CPU's name: JAX calls all of them cpu."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return " ".join(re.sub(r"\((R|TM)\)", "", name, flags=re.IGNORECASE).split()) or "cpu"


def _without_places(value: str) -> str:
    """A variable without folders, files and hosts, which are nobody's business.

    Args:
        value: a word, or flags as `--xla_gpu_autotune_level=4 --xla_dump_to=/home/me/dump`.
    """
    try:
        parts = shlex.split(value)
    except ValueError:  # quotes that do not end
        parts = value.split()
    found = []
    for part in parts:
        name, equals, said = part.partition("=") if part.startswith("--") else ("", "", part)
        plain = re.fullmatch(r"[\w,=+-]*|-?[\d.]+(e[+-]?\d+)?", said)
        found.append(f"{name}{equals}{said if plain else '...'}")
    return " ".join(found)
