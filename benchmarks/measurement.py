"""What was measured of one program in one case, and what follows from it. No JAX here."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NOISY = 0.10  # spread above which a figure is marked


@dataclass(frozen=True)
class Spread:
    """A figure of several turns.

    Attributes:
        median: of the turns.
        low: their lower quartile.
        high: their upper quartile.
        turns: how many there are.
    """

    median: float
    low: float
    high: float
    turns: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Of the values of all turns, in any order; at least one."""
        if len(values) == 1:
            return Spread(values[0], values[0], values[0], 1)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(statistics.median(values), low, high, len(values))

    @property
    def share(self) -> float:
        """Between the quartiles, of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    @property
    def noisy(self) -> bool:
        """Whether that is more than `NOISY`."""
        return self.share > NOISY


@dataclass(frozen=True)
class Work:
    """What is done in a turn; 0 where there is none of it, or nobody knows.

    Attributes:
        blocks: or scans, or examples.
        voxels: of all of them together.
        flops: in convolutions and matrix products: a multiplication and an addition are two, those
            on zeros of a padding count, and what is computed again to save memory does not
            (`voxtune.models.flops`). It is of the network, so the same for each program.
    """

    blocks: int = 0
    voxels: int = 0
    flops: int = 0


@dataclass(frozen=True)
class Measurement:
    """One program in one case.

    Attributes:
        suite: that it is of.
        case: what was measured, in words; the same from one revision to the next.
        program: `voxtune`, or a peer.
        settings: of the case, by name.
        seconds: of each turn, without those that warm up.
        work: of a turn.
        first: seconds of the first turn, which compiles; None where there is none such.
        floors: of each turn, FLOP/s that the device had in a matrix product just before or after;
            empty where the work has no FLOPs.
        memory: the most that the device held, or the process on a CPU, bytes; None where nothing
            tells.
        values: other figures, by name, `data_wait` for example.
        version: of the program.
        problem: why there are no figures; empty where there are.
    """

    suite: str
    case: str
    program: str
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    seconds: tuple[float, ...] = ()
    work: Work = Work()
    first: float | None = None
    floors: tuple[float, ...] = ()
    memory: int | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    version: str = ""
    problem: str = ""

    @property
    def took(self) -> Spread | None:
        """Seconds of a turn."""
        return Spread.of(self.seconds) if self.seconds else None

    def rate(self, amount: int) -> float | None:
        """So much of a turn's work a second: of `work.blocks` for example, blocks/s."""
        took = self.took
        return amount / took.median if took and amount else None

    @property
    def peak_share(self) -> Spread | None:
        """Of the FLOP/s that the device had in a matrix product in the same turn."""
        if not (self.seconds and self.floors and self.work.flops):
            return None
        turns = zip(self.seconds, self.floors, strict=True)
        return Spread.of([self.work.flops / seconds / floor for seconds, floor in turns])


def ratio(own: Measurement, peer: Measurement) -> Spread | None:
    """How many times faster one is than a peer, turn by turn; None where one has no figures.

    Turns that were taken one after the other are compared, so that what slows the machine for a
    while slows both.
    """
    if not own.seconds or not peer.seconds:
        return None
    if len(own.seconds) != len(peer.seconds):
        raise ValueError(f"{own.case}: {len(own.seconds)} and {len(peer.seconds)} turns")
    turns = zip(own.seconds, peer.seconds, strict=True)
    return Spread.of([theirs / ours for ours, theirs in turns])
