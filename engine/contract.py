"""The preprocessing contract: what is done to a scan before its network sees it. No JAX here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from voxtune.engine.intensity import IntensityKind
from voxtune.engine.volume import MAX_VOXELS
from voxtune.models.errors import InputError

ImageInterpolation = Literal["linear", "cubic"]

# Shares of a scan's voxels that are darker than `Contract.quantiles`.
SHARES = (0.01, 0.25, 0.5, 0.75, 0.99)
LONGEST = 2**15 - 1  # voxels along an axis, as in NIfTI-1; a store's positions are int16 too


@dataclass(frozen=True)
class Contract:
    """What is done to a scan before the network sees it. Training and prediction both read this.

    Attributes:
        orientation: directions in which the three array axes run, "LIA" or "RAS" for example.
        spacing_mm: voxel size along those axes; None leaves a scan's own.
        intensity: scaling over the whole volume, see `voxtune.engine.intensity`.
        block: shape of the blocks that the network is given, voxels along those axes.
        threshold: probability above which a voxel belongs to the class of a one-class network.
        channels: what the network's channels are called, in its order; None where nobody knows.
        grid: shape of the grid that scans are conformed to, voxels along those axes, centred on
            the scan, whose border is cut off or padded; None is as large as the scan.
        interpolation: of images that have to be resampled.
        window: lowest and highest value, in the scan's own units, of the scaling "window".
        quantiles: what the network has been trained on: of `SHARES`, of the first channel after
            scaling, the mean over training scans; None where nobody knows. It says nothing of what
            is done to a scan.
    """

    orientation: str
    spacing_mm: tuple[float, float, float] | None
    intensity: IntensityKind
    block: tuple[int, int, int]
    threshold: float = 0.5
    channels: tuple[str, ...] | None = None
    grid: tuple[int, int, int] | None = None
    interpolation: ImageInterpolation = "linear"
    window: tuple[float, float] | None = None
    quantiles: tuple[float, ...] | None = None


def check_contract(contract: Contract) -> None:
    """Makes sure that a contract can be kept.

    Raises:
        InputError: a part of it makes no sense, or two do not fit each other.
    """
    check_target(contract.orientation, contract.spacing_mm)
    threshold, window = contract.threshold, contract.window
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise InputError(f"The threshold {threshold} is no probability; give 0 to 1.")
    for name, kinds in (("intensity", IntensityKind), ("interpolation", ImageInterpolation)):
        if (chosen := getattr(contract, name)) not in get_args(kinds):
            known = ", ".join(get_args(kinds))
            raise InputError(f"No {name} is called {chosen!r}; there are {known}.")
    if contract.intensity == "window" and window is None:
        raise InputError("The intensity scaling window needs its ends; give --window LOW HIGH.")
    if contract.intensity != "window" and window is not None:
        raise InputError(
            f"--window {window[0]:g} {window[1]:g} is for the intensity scaling window, not for "
            f"{contract.intensity}; give --intensity window, or leave it out."
        )
    if window is not None and not -math.inf < window[0] < window[1] < math.inf:
        raise InputError(
            f"--window {window[0]:g} {window[1]:g} is no window; give its lower end, then its upper"
            " end, in the scans' units."
        )
    if contract.quantiles is not None and not _rise(contract.quantiles):
        raise InputError(
            f"The quantiles {contract.quantiles} are not {len(SHARES)} finite numbers that rise; "
            "take them out."
        )
    grid, block = contract.grid, contract.block
    if grid is None:
        return
    if min(grid) < 1 or max(grid) > LONGEST or math.prod(grid) > MAX_VOXELS:
        raise InputError(
            f"--grid {' '.join(map(str, grid))} is no grid that a scan can have; give 1 to "
            f"{LONGEST} voxels along each axis, {MAX_VOXELS} in all at most."
        )
    if any(n < size for n, size in zip(grid, block, strict=True)):
        raise InputError(
            f"--grid {' '.join(map(str, grid))} is smaller than the block "
            f"{' '.join(map(str, block))}; give a grid at least as large, or smaller blocks."
        )


def _rise(quantiles: Sequence[float]) -> bool:
    """Whether numbers can be quantiles of `SHARES`."""
    finite = len(quantiles) == len(SHARES) and all(map(math.isfinite, quantiles))
    return finite and list(quantiles) == sorted(quantiles)


def check_target(orientation: str, spacing_mm: tuple[float, float, float] | None) -> None:
    """Makes sure that an orientation and voxel sizes make sense.

    Raises:
        InputError: they do not.
    """
    one_of_each = [sum(code in pair for code in orientation) == 1 for pair in ("LR", "PA", "IS")]
    if len(orientation) != 3 or not all(one_of_each):
        raise InputError(
            f"{orientation!r} is no orientation: give one letter of each of L or R, P or A, I or "
            "S, such as RAS"
        )
    if spacing_mm is not None and not all(0 < size < math.inf for size in spacing_mm):
        raise InputError(f"spacing {spacing_mm} is not three voxel sizes above 0: give them in mm")
