"""Intensity scaling, as the pretrained networks saw it. No JAX here."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from voxtune.models.errors import InputError

IntensityKind = Literal[
    "zscore", "zscore_nonzero", "minmax", "quantile", "percentile", "window", "none"
]


@dataclass(frozen=True)
class Scaling:
    """What is done to each voxel: (value clipped to low and high - offset) / spread.

    Attributes:
        low: value that lower ones become first; None leaves them.
        high: likewise of higher ones.
        offset: becomes 0.
        spread: becomes 1 above that; never 0.
        keeps_zero: whether voxels that are 0 stay 0 instead.
    """

    low: float | None = None
    high: float | None = None
    offset: float = 0.0
    spread: float = 1.0
    keeps_zero: bool = False

    def __call__(self, data: np.ndarray) -> np.ndarray:
        """Numbers of any shape, scaled, float32."""
        return self.in_place(np.array(data, np.float32))

    def in_place(self, data: np.ndarray) -> np.ndarray:
        """The same of float32, which are changed."""
        zero = data == 0 if self.keeps_zero else None
        if self.low is not None or self.high is not None:
            np.clip(data, self.low, self.high, out=data)
        data -= np.float32(self.offset)
        data /= np.float32(self.spread)
        if zero is not None:
            data[zero] = 0
        return data


def scaling_of(
    data: np.ndarray,
    kind: IntensityKind,
    window: tuple[float, float] | None = None,
    name: object = "the image",
) -> Scaling:
    """How a whole volume is scaled, by its own statistics.

    Args:
        data: numbers [D, H, W].
        kind: "zscore", (x - mean) / standard deviation, as Nobrainer; "zscore_nonzero", the same
            over the voxels that are not 0, which stay 0, as nnU-Net and MONAI do with
            skull-stripped scans; "minmax", to [0, 1]; "quantile", (x - q05) / (q95 - q05) without
            clipping, as brainchop; "percentile", clipped to the 0.5th and 99.5th percentile, then
            to [0, 1], as SynthSeg; "window", clipped to a window, which becomes [0, 1], as for CT;
            "none".
        window: lowest and highest value, for "window" alone.
        name: what a message should call the volume, its file at best.

    Raises:
        InputError: the spread to divide by is zero, or all values are outside the window.
    """
    if kind == "none":
        return Scaling()
    if kind == "window":
        assert window is not None  # a contract has one, see `check_contract`
        least, most = float(data.min()), float(data.max())
        if most <= window[0] or least >= window[1]:
            raise InputError(
                f"{name} has values from {least:g} to {most:g}, all outside the window "
                f"{window[0]:g} to {window[1]:g}: give it in the units of that window, or another "
                "window"
            )
        return Scaling(*window, offset=window[0], spread=window[1] - window[0])
    low = high = None
    # float64 statistics: a float32 sum over 256^3 voxels has lost its last digits.
    if kind in ("zscore", "zscore_nonzero"):
        offset, spread = _moments(data, without_zero=kind == "zscore_nonzero")
    elif kind == "minmax":
        offset, spread = float(data.min()), float(data.max()) - float(data.min())
    elif kind == "quantile":
        offset, q95 = (float(q) for q in np.quantile(data, (0.05, 0.95)))
        spread = q95 - offset
    elif kind == "percentile":
        low, high = (float(q) for q in np.quantile(data, (0.005, 0.995)))
        offset, spread = low, high - low
    else:
        raise ValueError(f"no intensity scaling is called {kind!r}")
    if spread == 0:
        raise InputError(
            f"{name} cannot be scaled by {kind}, nearly all of its voxels have the value "
            f"{offset:g}: crop it closer to the head, or use another scaling"
        )
    return Scaling(low, high, offset, spread, keeps_zero=kind == "zscore_nonzero")


def _moments(data: np.ndarray, without_zero: bool) -> tuple[float, float]:
    """Mean and standard deviation, 0 of nothing, a plane at a time.

    Of the whole, numpy would make a float64 copy, which is twice as large as the volume.
    """

    def planes() -> Iterator[np.ndarray]:
        for plane in data:
            yield (plane[plane != 0] if without_zero else plane).astype(np.float64)

    count = int(np.count_nonzero(data)) if without_zero else data.size
    if not count:
        return 0.0, 0.0
    mean = sum(float(plane.sum()) for plane in planes()) / count
    return mean, math.sqrt(sum(float(np.square(plane - mean).sum()) for plane in planes()) / count)
