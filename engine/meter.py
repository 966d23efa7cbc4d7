"""How fast a run is."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
from jax.sharding import Mesh

from voxtune.engine.dataset import Plan
from voxtune.engine.peaks import Peak

# What lines of metrics.jsonl have from here: not the same from one run to the next.
MEASURED = frozenset(
    {
        "examples_per_second",
        "voxels_per_second",
        "flops_per_second",
        "peak_share",
        "data_wait",
        "device_peak_bytes",
        "process_peak_bytes",
    }
)


class Meter:
    """Measures from line to line of metrics.jsonl; its clock stands in pauses.

    Args:
        plan: blocks and batches.
        flops: of a step in convolutions and products, on all devices together: a multiplication and
            an addition are two, those on zeros of a padding count, those that `--remat` does again
            do not. 0 where it is not known.
        mesh: the devices.
        peak: what they can do at most.
    """

    def __init__(self, plan: Plan, flops: int, mesh: Mesh, peak: Peak) -> None:
        self._batch, self._voxels = plan.batch, math.prod(plan.block)
        self._flops, self._peak = flops, peak
        self._devices = list(mesh.local_mesh.devices.flat)
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it the loop waits for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it nothing is trained: validations, checkpoints, the writing of a trace."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began

    def step(self) -> None:
        """Takes note of a step."""
        self._steps += 1

    def line(self) -> dict[str, float]:
        """What was measured since the last line, and begins the next.

        To be called when the last step is done on the devices. `examples_per_second` and
        `voxels_per_second` are of blocks; where the step's FLOPs are known, `flops_per_second` are
        of all devices together, and `peak_share` is what that is of their peak; `data_wait` is a
        share of the time. And what `peak_memory` gives.
        """
        now = time.perf_counter()
        seconds = now - self._since
        rate = self._steps / seconds
        values = {
            "examples_per_second": rate * self._batch,
            "voxels_per_second": rate * self._batch * self._voxels,
        }
        if self._flops:
            flops = rate * self._flops
            values |= {"flops_per_second": flops, "peak_share": flops / self._peak.flops}
        values |= {"data_wait": self._waited / seconds, **peak_memory(self._devices)}
        self._since, self._waited, self._steps = now, 0.0, 0
        return values


def peak_memory(devices: Sequence[jax.Device]) -> dict[str, float]:
    """The most memory that was in use at once since the process began, bytes.

    `device_peak_bytes` is the largest of these devices; where they do not tell, as CPUs do not,
    `process_peak_bytes` is of the whole process.
    """
    stats = [each.memory_stats() or {} for each in devices]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if peaks:
        return {"device_peak_bytes": max(peaks)}
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
