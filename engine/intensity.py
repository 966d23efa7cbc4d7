"""Intensity scaling, as the pretrained networks saw it."""

from typing import Literal

import numpy as np

from voxtune.models.errors import InputError

IntensityKind = Literal["zscore", "minmax", "quantile", "percentile", "none"]


def scale_intensity(
    data: np.ndarray, kind: IntensityKind, name: object = "the image"
) -> np.ndarray:
    """Scale a whole volume by its own statistics.

    Args:
        data: numbers [D, H, W].
        kind: "zscore", (x - mean) / standard deviation, as Nobrainer; "minmax", to [0, 1];
            "quantile", (x - q05) / (q95 - q05) without clipping, as brainchop; "percentile",
            clipped to the 0.5th and 99.5th percentile, then to [0, 1], as SynthSeg; "none".
        name: what a message should call the volume, its file at best.

    Returns:
        float32 [D, H, W].

    Raises:
        InputError: the spread to divide by is zero.
    """
    if kind == "none":
        return data.astype(np.float32)
    # float64 statistics: a float32 sum over 256^3 voxels has lost its last digits.
    if kind == "zscore":
        offset, spread = float(data.mean(dtype=np.float64)), float(data.std(dtype=np.float64))
    elif kind == "minmax":
        offset, spread = float(data.min()), float(data.max()) - float(data.min())
    elif kind == "quantile":
        offset, q95 = (float(q) for q in np.quantile(data, (0.05, 0.95)))
        spread = q95 - offset
    elif kind == "percentile":
        offset, top = (float(q) for q in np.quantile(data, (0.005, 0.995)))
        spread, data = top - offset, np.clip(data, offset, top)
    else:
        raise ValueError(f"no intensity scaling is called {kind!r}")
    if spread == 0:
        raise InputError(
            f"{name} cannot be scaled by {kind}, nearly all of its voxels have the value "
            f"{offset:g}: crop it closer to the head, or use another scaling"
        )
    return ((data.astype(np.float32) - np.float32(offset)) / np.float32(spread)).astype(np.float32)
