"""What control groups let this process have of a machine, on Linux. No JAX here."""

from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")

# Limit and use of memory, by version.
_MEMORY = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("memory.max", "memory.current"),
}
# Of memory.stat: files that can be read again, and what the kernel can give back.
_FREED = ("inactive_file", "active_file", "slab_reclaimable")


def memory_limit(root: Path = _ROOT) -> int | None:
    """Bytes that the groups of this process may take; None where there is no limit.

    Args:
        root: where /proc and /sys lie.
    """
    found = []
    for version, folder in _groups("memory", root):
        found += _number(folder / _MEMORY[version][0])
    return min(found, default=None)


def memory_left(root: Path = _ROOT) -> int | None:
    """Bytes that the groups of this process may still take; None where there is no limit.

    Files that are kept in memory only to be read again soon fill a group up to its limit, and make
    room when asked, so they count as free.
    """
    found = []
    for version, folder in _groups("memory", root):
        values = [each for name in _MEMORY[version] for each in _number(folder / name)]
        if len(values) == 2:
            told = dict(line.split() for line in lines_of(folder / "memory.stat"))
            # Where groups lie in one another the whole is total_ in version 1.
            freed = sum(int(told.get(f"total_{name}", told.get(name, "0"))) for name in _FREED)
            found.append(max(0, values[0] - values[1] + freed))
    return min(found, default=None)


def core_limit(root: Path = _ROOT) -> float | None:
    """Cores that the groups of this process may keep busy; None where there is no limit."""
    found = []
    for version, folder in _groups("cpu", root):
        if version == 2:
            words = " ".join(lines_of(folder / "cpu.max")).split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = [line for name in names for line in lines_of(folder / name)]
        if len(words) == 2 and all(each.isdecimal() for each in words):  # no limit is "max" or -1
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def lines_of(path: Path) -> list[str]:
    """Of a file; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _groups(kind: str, root: Path) -> Iterator[tuple[int, Path]]:
    """Version and folder of this process's groups and of each that they lie in.

    A container sees its own as the top, whatever its path says.
    """
    for line in lines_of(root / "proc/self/cgroup"):
        number, kinds, path = line.split(":", 2)
        if number == "0":
            version, top = 2, root / "sys/fs/cgroup"
        elif kind in kinds.split(","):
            version, top = 1, root / "sys/fs/cgroup" / kind
        else:
            continue
        folder = top / path.lstrip("/")
        for each in (folder, *folder.parents):
            if not each.is_relative_to(top):
                break
            yield version, each


def _number(path: Path) -> list[int]:
    """What a file says; nothing where it is not there, or says "max"."""
    return [int(line) for line in lines_of(path) if line.isdecimal()]
