"""Why a network may have found nothing: the intensities it was given, and those it expects.

No JAX here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxtune.engine.contract import SHARES, Contract

_LOOKED_AT = 100_000  # voxels; enough for percentages, and no copy of the volume
_BINS = 32
_BARS = " ▁▂▃▄▅▆▇█"
_BY_DEFINITION = {
    "zscore": "mean 0, standard deviation 1",
    "zscore_nonzero": "mean 0, standard deviation 1 of what is not 0",
    "minmax": "0 to 1",
    "quantile": "0 and 1 at 5 and 95 %",
    "percentile": "0 to 1, clipped at 0.5 and 99.5 %",
    "window": "0 to 1, clipped",
    "none": "the scan's own values",
}


@dataclass(frozen=True)
class Intensities:
    """What the values of an image are.

    Attributes:
        quantiles: of `SHARES`.
        counts: voxels in bins of equal width from the lowest to the highest value.
        low: that.
        high: likewise.
    """

    quantiles: tuple[float, ...]
    counts: tuple[int, ...]
    low: float
    high: float


def intensities_of(image: np.ndarray) -> Intensities:
    """Of an image `[D, H, W]` or its part: every second voxel along each axis, or every third..."""
    step = max(1, int(np.ceil((image.size / _LOOKED_AT) ** (1 / 3))))
    values = image[::step, ::step, ::step].ravel().astype(np.float64)  # widths of bins overflow
    low, high = float(values.min()), float(values.max())
    counts, _ = np.histogram(values, _BINS, (low, high))
    return Intensities(
        tuple(float(each) for each in np.quantile(values, SHARES)),
        tuple(int(each) for each in counts),
        low,
        high,
    )


def explanation(
    highest: np.ndarray,
    names: Sequence[str],
    threshold: float | None,
    found: Intensities,
    contract: Contract,
) -> list[str]:
    """Lines that say how far an empty prediction was from one.

    Args:
        highest: the highest probability of each class, background first, `[K]`.
        names: of the classes.
        threshold: above which a voxel is of the second of two classes; None elsewhere.
        found: intensities of the scan as the network saw it, of its first channel.
        contract: what the network expects.
    """
    best = 1 + int(np.argmax(highest[1:]))
    against = "" if threshold is None else f", below the threshold of {threshold:g}"
    if threshold is not None and highest[best] > threshold:
        against = f", above the threshold of {threshold:g}, but at none of the scan's own voxels"
    shares = "".join(f"{f'{share:.0%}':>9}" for share in SHARES)
    lines = [
        f"nothing was found: the highest probability of {names[best]} is {highest[best]:.3g}"
        + against,
        f"intensities of voxels {shares}",
        f"  of this scan        {_row(found.quantiles)}",
    ]
    if contract.quantiles is not None:
        lines.append(f"  of training scans   {_row(contract.quantiles)}")
    else:
        lines.append(f"  expected            {_BY_DEFINITION[contract.intensity]}")
    lines.append(f"  {found.low:.3g} |{_bars(found.counts)}| {found.high:.3g}")
    return lines


def to_json(found: Intensities, contract: Contract) -> dict[str, Any]:
    """The same, for a program."""
    return {
        "shares": list(SHARES),
        "quantiles": list(found.quantiles),
        "expected_quantiles": None if contract.quantiles is None else list(contract.quantiles),
        "expected": _BY_DEFINITION[contract.intensity],
        "histogram": {"low": found.low, "high": found.high, "counts": list(found.counts)},
    }


def _row(values: Sequence[float]) -> str:
    return "".join(f"{value:>9.3g}" for value in values)


def _bars(counts: Sequence[int]) -> str:
    """A block for each bin, of the logarithm of its voxels: most of a head scan is air."""
    heights = np.log1p(np.array(counts, float))
    steps = np.ceil(heights / heights.max() * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[step] for step in steps)
