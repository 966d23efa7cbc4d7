"""One row of a picture: three planes of a scan with the outlines of labels.

Radiological convention: see `voxtune.engine.picture`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from voxtune.engine.conform import Interpolation, conform, conformed_shape
from voxtune.engine.volume import Volume

_AIR = 0.1  # below this part of the window nothing is seen
_MARGIN_MM = 4
_MOST_FOR_WINDOW = 4_000_000  # voxels that tell what is black and white

# Name, the RAS axis it cuts, the axes shown across and up, and the letters at its left and right.
_PLANES = (
    ("axial", 2, (0, 1), "RL"),
    ("coronal", 1, (0, 2), "RL"),
    ("sagittal", 0, (1, 2), "AP"),
)


@dataclass(frozen=True, eq=False)
class Outline:
    """Labels `[X, Y, Z]` to the right, front and top, and the colour of each value, or of all."""

    labels: np.ndarray
    colours: str | Mapping[int, str]
    dashed: bool = False

    def colour(self, value: int) -> str:
        return self.colours if isinstance(self.colours, str) else self.colours[value]


def upright(volume: Volume, interpolation: Interpolation = "nearest") -> tuple[np.ndarray, ...]:
    """Voxels `[X, Y, Z]` to the right, front and top, and their size in mm; not to be changed.

    Only an oblique volume is copied, being resampled.
    """
    _, exact = conformed_shape(volume, "RAS", None)
    if not exact:
        straight = conform(volume, "RAS", None, interpolation)
        return straight.data, np.linalg.norm(straight.affine[:3, :3], axis=0)
    directions = nib.orientations.io_orientation(volume.affine)
    order = np.argsort(directions[:, 0])
    data = nib.orientations.apply_orientation(volume.data, directions)
    return data, np.asarray(volume.spacing_mm)[order]


def draw_row(
    title: str,
    image: Volume,
    outlines: Sequence[Outline],
    row_axes: Sequence[Axes],
    trim: bool = False,
) -> None:
    """Draw the axial, coronal and sagittal plane of a scan.

    Args:
        title: what stands above the first.
        image: the scan.
        outlines: labels on its grid; the first that are not empty tell where planes lie.
        row_axes: three.
        trim: whether planes end where the head does.
    """
    straight, spacing = upright(image, "linear")
    centre = _centre(straight.shape, [each.labels for each in outlines])
    every = max(1, round((straight.size / _MOST_FOR_WINDOW) ** (1 / 3)))
    low, high = np.percentile(straight[::every, ::every, ::every], (1, 99.5)).tolist()
    for axes, (plane, cut, (across, up), letters) in zip(row_axes, _PLANES, strict=True):
        shown = straight.take(centre[cut], axis=cut)
        width, height = shown.shape[0] * spacing[across], shown.shape[1] * spacing[up]
        axes.imshow(
            shown.T,
            cmap="gray",
            vmin=low,
            vmax=max(high, low + 1e-6),
            origin="lower",
            extent=(0, width, 0, height),
            aspect="equal",  # the extent is in mm
            interpolation="nearest",
        )
        for outline in outlines:
            _outline(axes, outline, cut, centre[cut], (spacing[across], spacing[up]))
        # Both the patient's right and the nose go to the left of the picture.
        left, right, bottom, top = 0.0, width, 0.0, height
        if trim:
            seen = shown > low + _AIR * (high - low)
            left, right = _ends(seen.any(axis=1), spacing[across])
            bottom, top = _ends(seen.any(axis=0), spacing[up])
        axes.set_xlim(right, left)
        axes.set_ylim(bottom, top)
        axes.set_axis_off()
        for x, letter in ((0.01, letters[0]), (0.99, letters[1])):
            axes.text(
                x,
                0.5,
                letter,
                transform=axes.transAxes,
                color="white",
                fontsize=7,
                ha="left" if x < 0.5 else "right",
                path_effects=[withStroke(linewidth=1.5, foreground="black")],  # legible on white
            )
        heading = f"{title}, {plane}" if plane == "axial" else plane
        axes.set_title(heading, color="white", fontsize=8, pad=3, loc="left", parse_math=False)


def _ends(seen: np.ndarray, step: float) -> tuple[float, float]:
    """From where to where something is seen along an axis, and a little more, in mm."""
    found = np.flatnonzero(seen)
    if not found.size:
        return 0.0, seen.size * step
    first, last = found[0] * step - _MARGIN_MM, (found[-1] + 1) * step + _MARGIN_MM
    return max(0.0, float(first)), min(seen.size * step, float(last))


def _outline(
    axes: Axes, outline: Outline, cut: int, place: int, steps: tuple[float, float]
) -> None:
    """Draw the border of each nonzero label value in one plane, with voxels of `steps` mm."""
    labels = outline.labels.take(place, axis=cut)
    # A rim of background closes outlines at the edge, and gives one voxel the width contours need.
    padded = np.pad(labels, 1)
    x, y = ((np.arange(size) - 0.5) * step for size, step in zip(padded.shape, steps, strict=True))
    for value in np.unique(labels[labels != 0]).tolist():
        lines = axes.contour(
            x,
            y,
            (padded == value).astype(np.float32).T,
            levels=[0.5],
            colors=[outline.colour(value)],
            linewidths=0.8,
            linestyles="dashed" if outline.dashed else "solid",
            zorder=3 if outline.dashed else 2,  # or a solid line of another class would hide it
        )
        # Else they are lost on bright tissue, in grey.
        lines.set_path_effects([withStroke(linewidth=1.8, foreground="black")])


def _centre(shape: tuple[int, ...], labels: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Voxel [3] to cut at: see `draw_contours`."""
    mask = next((data != 0 for data in labels if data.any()), np.ones(shape, bool))
    first, second, third = (_cut(mask, axis) for axis in range(3))
    return first, second, third


def _cut(mask: np.ndarray, axis: int) -> int:
    """The plane through the centre of mass along an axis, or the nearest that meets the mask."""
    voxels = mask.sum(axis=tuple(other for other in range(3) if other != axis))
    centre = float(voxels @ np.arange(voxels.size)) / float(voxels.sum())
    filled = np.flatnonzero(voxels)
    return int(filled[np.abs(filled - centre).argmin()])
