"""What was measured beside what: a peer's figures and voxtune's of the same turns. No JAX here."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from voxtune.benchmarks import measurement
from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.measurement import Measurement, Spread

OWN = "voxtune"
LEAST_RATIO = "least_ratio"  # of `Measurement.values`, see `Figure.least_ratio`
Item = TypeVar("Item")


@dataclass(frozen=True)
class Figure:
    """An entry, and voxtune's own that it is compared with.

    Attributes:
        entry: what was measured.
        own: of the same case, of the same run of the benchmark; None of voxtune's entries, and
            where voxtune was not measured.
    """

    entry: Entry
    own: Entry | None = None

    @property
    def measured(self) -> Measurement:
        """Without where it was."""
        return self.entry.measurement

    @property
    def is_own(self) -> bool:
        """Whether it is voxtune's."""
        return self.measured.program == OWN

    @property
    def case(self) -> tuple[str, str, str]:
        """Machine, suite and case: what is the same of figures that can be compared."""
        return self.entry.place.machine, self.measured.suite, self.measured.case

    @property
    def ratio(self) -> Spread | None:
        """How many times as fast voxtune is; None where nothing says so."""
        if self.own is None:
            return None
        own = self.own.measurement
        if len(own.seconds) != len(self.measured.seconds):  # one of them was stopped
            return None
        return measurement.ratio(own, self.measured)

    @property
    def least_ratio(self) -> float | None:
        """The same of a peer that was stopped: voxtune is at least so many times as fast."""
        return self.measured.values.get(LEAST_RATIO)


def figures_of(entries: Iterable[Entry]) -> list[Figure]:
    """Entries, each peer's with voxtune's: of each case that comes first.

    Args:
        entries: in the order in which they were measured on each machine.
    """
    own: dict[tuple[str, ...], Entry] = {}
    found = []
    for entry in entries:
        figure = Figure(entry)
        # Of two runs at once, whose lines are mixed, each has a place of its own.
        case = (*figure.case, repr(entry.place))
        if figure.is_own:
            own[case] = entry
        else:
            figure = Figure(entry, own.get(case))
        found.append(figure)
    return found


def newest(figures: Iterable[Figure]) -> list[Figure]:
    """The last of each program in each case, in the order in which cases and programs came."""
    last = {(*each.case, each.measured.program): each for each in figures}
    return list(last.values())


def of_each_machine(items: Iterable[Item], machine: Callable[[Item], str], most: int) -> list[Item]:
    """The first so many of each machine, in their order.

    Args:
        items: figures for example.
        machine: of an item.
        most: of a machine.
    """
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(machine(item), []).append(item)
    return [item for own in found.values() for item in own[:most]]
