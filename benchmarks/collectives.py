"""What devices send each other in a step, read from the text of its compiled program."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# Of a pair that starts and ends it later, the end is counted: its result is what was sent.
_OPERATION = re.compile(
    rf"^(?:ROOT )?%?[\w.\-]+ = (?P<result>.+?) (?P<kind>{'|'.join(KINDS)})(?:-done)?\("
)
_ARRAY = re.compile(r"\b(pred|(?:[a-z]+)(\d+)\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-<>]+) \(.*\{$")
# One computation, or several in braces: those of a conditional, for example.
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|(?:true|false)_computation"
    r"|(?:branch|called)_computations)=(\{[^}]*\}|[^,\s]+)"
)
_NAME = re.compile(r"[\w.\-]+")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")


@dataclass(frozen=True)
class Sent:
    """An array that takes part: its data type as XLA names it, its shape, and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Collective:
    """An operation of a program in which devices send each other something.

    Attributes:
        kind: one of `KINDS`.
        arrays: of its result on a device, several where XLA combined operations.
        looped: whether it stands in a loop, and so is done more than once.
    """

    kind: str
    arrays: tuple[Sent, ...]
    looped: bool

    @property
    def bytes(self) -> int:
        """Of its result on a device."""
        return sum(each.bytes for each in self.arrays)

    def sums_a(self, kernels: Collection[int]) -> bool:
        """Whether it sums a kernel's gradient over devices.

        Moments of a batch and sums of a loss have one axis, or as many values as channels.

        Args:
            kernels: how many values each kernel has.
        """
        return self.kind == "all-reduce" and any(
            each.dtype[0] in "bf" and len(each.shape) > 1 and math.prod(each.shape) in kernels
            for each in self.arrays
        )


def collectives(text: str) -> list[Collective]:
    """Those of a compiled program, in its order.

    Args:
        text: of `jax.stages.Compiled.as_text()`.
    """
    looped = _in_loops(text)
    found = []
    for computation, line in _lines(text):
        match = _OPERATION.match(line)
        if match is not None:
            arrays = tuple(_sent(*each) for each in _ARRAY.findall(match["result"]))
            found.append(Collective(match["kind"], arrays, computation in looped))
    return found


def counted(found: Sequence[Collective], kernels: Collection[int]) -> dict[str, float]:
    """How many there are and what they send, by name, for a measurement.

    Args:
        found: of a program.
        kernels: how many values each kernel has that is trained.

    Returns:
        Of each kind the number, as `all_reduce`, and the bytes that a device has of them, as
        `all_reduce_bytes`; `gradient_all_reduces`, those that sum gradients of kernels;
        `count_all_reduces`, those of whole numbers, which XLA never combines with others; and
        `looped`, how many stand in loops, where each counts once.
    """
    values: dict[str, float] = {}
    for kind in KINDS:
        of_kind = [each for each in found if each.kind == kind]
        name = kind.replace("-", "_")
        values |= {name: len(of_kind), f"{name}_bytes": sum(each.bytes for each in of_kind)}
    whole = [each for each in found if all(array.dtype[0] in "su" for array in each.arrays)]
    return values | {
        "gradient_all_reduces": sum(each.sums_a(kernels) for each in found),
        "count_all_reduces": sum(each.kind == "all-reduce" for each in whole),
        "looped": sum(each.looped for each in found),
    }


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Each line of a program, with the computation that it is of."""
    computation = ""
    for line in map(str.strip, text.splitlines()):
        begins = _COMPUTATION.match(line)
        if begins is not None:
            computation = begins[1]
        yield computation, line


def _in_loops(text: str) -> set[str]:
    """Computations that are bodies of loops, or called by such."""
    called: dict[str, set[str]] = {}
    wanted: list[str] = []
    for computation, line in _lines(text):
        of_line = _NAME.findall(" ".join(_CALLED.findall(line)))
        called.setdefault(computation, set()).update(of_line)
        wanted += _BODY.findall(line)
    return _reached(wanted, called)


def _reached(start: Sequence[str], called: Mapping[str, Collection[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += called.get(name, ())
    return found


def _sent(dtype: str, bits: str, sizes: str) -> Sent:
    shape = tuple(int(size) for size in sizes.split(",") if size)
    return Sent(dtype, shape, math.prod(shape) * max(1, int(bits or 8) // 8))
