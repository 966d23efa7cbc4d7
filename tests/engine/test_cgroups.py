"""Control groups: made-up machines, each with limits of memory and cores somewhere."""

from pathlib import Path

import pytest

from voxtune.engine.cgroups import core_limit, memory_left, memory_limit

NESTED = {
    "proc/self/cgroup": "0::/a/b\n",
    "sys/fs/cgroup/a/memory.max": "5000",  # of the two the less is left here
    "sys/fs/cgroup/a/memory.current": "4900",
    "sys/fs/cgroup/a/memory.stat": (
        "anon 2000\ninactive_file 500\nactive_file 2000\nslab_reclaimable 30\nshmem 300\n"
    ),
    "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/a/b/memory.max": "max",
    "sys/fs/cgroup/a/b/memory.current": "3000",
    "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
}
FIRST = {
    "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/job\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "4000",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "5000",
    "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "4000",
    "sys/fs/cgroup/memory/job/memory.stat": (
        "inactive_file 1\nactive_file 2\ntotal_inactive_file 7\ntotal_active_file 80\n"
    ),
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "400000\n",
    "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
}
CONTAINER = {  # it sees its own group as the top
    "proc/self/cgroup": "0::/../elsewhere\n",
    "sys/fs/cgroup/memory.max": "5000",
    "sys/fs/cgroup/memory.current": "6000",
    "sys/fs/cgroup/cpu.max": "50000 100000\n",
}


@pytest.mark.parametrize(
    ("files", "limit", "left", "cores"),
    [
        ({}, None, None, None),
        ({"proc/self/cgroup": "0::/a\n"}, None, None, None),
        (NESTED, 5000, 2630, 1.5),
        (FIRST, 5000, 1087, 4),
        (CONTAINER, 5000, 0, 0.5),
    ],
)
def test_limits(
    tmp_path: Path,
    files: dict[str, str],
    limit: int | None,
    left: int | None,
    cores: float | None,
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory_limit(tmp_path) == limit
    assert memory_left(tmp_path) == left
    assert core_limit(tmp_path) == cores
