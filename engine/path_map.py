"""Where the tensors of one network go in another, by the beginnings of their paths."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxtune.engine.rules import nearest, shortened
from voxtune.models.errors import InputError

LEFT_OUT = "left out by --rename"


@dataclass(frozen=True)
class PathMap:
    """Where the tensors of one network go in another.

    Attributes:
        entries: beginnings of paths, whole parts of them → what stands in their place; "" leaves
            the tensors out.
    """

    entries: Mapping[str, str]

    @staticmethod
    def parse(texts: Iterable[str]) -> "PathMap":
        """Of OLD=NEW, as a person writes it.

        Raises:
            InputError: it is not written so, or says of one path two things.
        """
        entries = dict[str, str]()
        for text in texts:
            old, equals, new = (each.strip().strip("/") for each in text.partition("="))
            if not old or not equals:
                raise InputError(
                    "--rename takes OLD=NEW, such as encoder1=encoder2, or OLD= to leave it out; "
                    f"'{text}' is not that."
                )
            if old in entries:
                raise InputError(f"--rename says twice where {old} goes; leave one out.")
            entries[old] = new
        return PathMap(entries)

    def entry(self, path: str) -> str | None:
        """The longest entry that a path begins with, None where there is none."""
        found = [old for old in self.entries if f"{path}/".startswith(f"{old}/")]
        return max(found, key=len, default=None)

    def moved(self, path: str) -> str | None:
        """Where a path goes, None for nowhere."""
        old = self.entry(path)
        if old is None:
            return path
        new = self.entries[old]
        return f"{new}{path[len(old) :]}" if new else None

    def place(
        self, paths: Sequence[str], wanted: Sequence[str], folder: Path
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Which tensor goes where.

        Args:
            paths: of the tensors that there are.
            wanted: of the network that takes them.
            folder: where they come from, for sentences.

        Returns:
            Path in the network → path of the tensor; and of those that go nowhere → why.

        Raises:
            InputError: an entry moves nothing, or two move tensors to one place.
        """
        known, placed, left = set(wanted), dict[str, str](), dict[str, str]()
        # What an entry moves comes before what merely stays where it is.
        for path in sorted(paths, key=lambda path: self.entry(path) is None):
            target = self.moved(path)
            if target is None:
                left[path] = LEFT_OUT
            elif target not in known:
                left[path] = f"the network has no {target}"
            elif target not in placed:
                placed[target] = path
            elif self.entry(path) is None:
                left[path] = f"its place is taken by {placed[target]}"
            else:
                raise InputError(
                    f"Both {placed[target]} and {path} of {folder} would go to {target} by "
                    "--rename; change one of the two entries."
                )
        for old, new in self.entries.items():
            mine = [path for path in paths if self.entry(path) == old]
            if not mine:
                raise InputError(
                    f"--rename {old}={new}: {folder} has no {old}; the nearest are "
                    f"{shortened(nearest(old, prefixes(paths)))}."
                )
            if new and not set(mine).intersection(placed.values()):
                raise InputError(
                    f"--rename {old}={new}: the network has no {self.moved(mine[0])}; the nearest "
                    f"are {shortened(nearest(new, prefixes(wanted)))}."
                )
        return placed, left


def prefixes(paths: Iterable[str]) -> list[str]:
    """Everything that a path may begin with, itself included, each once."""
    found = dict[str, None]()
    for path in paths:
        parts = path.split("/")
        found |= dict.fromkeys("/".join(parts[:end]) for end in range(1, len(parts) + 1))
    return list(found)
