"""Mutated scans of each format become volumes or sentences: see fuzz_volume.py."""

import subprocess
import sys
from pathlib import Path

SEEDS = (0, 1)
COUNT = 1200


def test_mutated_files() -> None:
    """Two processes of their own, whose memory and time are theirs alone."""
    script = Path(__file__).with_name("fuzz_volume.py")
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), "--count", str(COUNT), "--seed", str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in SEEDS
    ]
    reports = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), "\n".join(reports)
    for report in reports:
        assert f"{COUNT} mutations" in report
