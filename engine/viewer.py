"""One page to look through scans and their labels, which needs nothing but itself and a browser.

It is for looking, not for measuring: scans are coarser than they were, in 8 bits. What it holds of
a scan is its name, voxels and volumes; no header text and no path. No JAX here.
"""

import base64
import itertools
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import from_matvec
from nibabel.orientations import io_orientation

from voxtune.engine.colours import class_colours
from voxtune.engine.conform import Interpolation, conform
from voxtune.engine.page import source_hash
from voxtune.engine.volume import Volume, written_beside

MOST_VOXELS = 160  # along the longest axis: heads of 1 mm are shown at 2 mm, parts of them at 1 mm
_LEVELS = 255  # of intensity
_ENDS = (0.05, 99.95)  # percentiles that are the darkest and the brightest of them
_WINDOW = (1.0, 99.5)  # percentiles that are black and white at first
_THUMBNAIL = 40  # pixels
_COPY_BYTES = 3 * 2**18  # a multiple of three, so that base64 of parts is base64 of the whole


class Page:
    """Scans and their labels, to be written as one HTML file.

    Scans wait compressed in a temporary file, not in memory. Calls must follow each other.
    """

    def __init__(self) -> None:
        self._scans: list[dict[str, Any]] = []
        self._names: dict[int, str] = {}
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the page)

    def add(
        self,
        name: str,
        image: Volume,
        labels: np.ndarray,
        names: Mapping[int, str],
        volumes_ml: Mapping[int, float],
    ) -> None:
        """Adds a scan.

        Args:
            name: as a person should read it.
            image: the scan.
            labels: its label values, integers `[D, H, W]` on the scan's grid; or floats, of a
                network that gives an image.
            names: label value → name of the class.
            volumes_ml: label value → ml, of the full result.
        """
        factors = _factors(image)
        small, spacing, origin = _upright(image, _mean, factors, "linear")
        low, high = np.percentile(small, _ENDS).tolist()
        grey, scale = _to_bytes(small, low, high)
        window = np.percentile(grey, _WINDOW).tolist()
        entry: dict[str, Any] = {
            "name": name,
            "shape": small.shape,
            "spacing": np.round(spacing, 4).tolist(),
            "of": np.round(np.take(image.spacing_mm, _axes(image)), 4).tolist(),
            "origin": np.round(origin, 3).tolist(),
            "scale": scale,
            "window": [window[0], max(window[1], window[0] + 1)],
            "thumbnail": _thumbnail(grey, spacing, window),
            "ml": {str(value): round(float(ml), 4) for value, ml in volumes_ml.items() if value},
        }
        parts = [grey]
        if labels.dtype.kind == "f":
            values, *_ = _upright(replace(image, data=labels), _mean, factors, "linear")
            result, entry["result"] = _to_bytes(values, float(values.min()), float(values.max()))
            parts.append(result)
        else:
            self._names.update(names)
            found, *_ = _upright(replace(image, data=labels), _most_frequent, factors, "nearest")
            self._names.update({v: str(v) for v in np.unique(found).tolist() if v not in names})
            parts.append(found.astype("<u2"))
        # The first axis varies fastest in the page.
        raw = b"".join(part.tobytes(order="F") for part in parts)
        entry["bytes"] = self._spool.write(zlib.compress(raw, 6))
        self._scans.append(entry)

    def write(self, path: Path) -> None:
        """Writes the page. An existing file is replaced.

        Raises:
            InputError: it cannot be written.
        """
        template = files("voxtune.engine").joinpath("viewer.html").read_text("utf-8")
        colours = class_colours(list(self._names))
        classes = [
            {"value": value, "name": self._names[value], "colour": colour}
            for value, colour in colours.items()
        ]
        index = {"classes": classes, "scans": self._scans}
        policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src {source_hash(template, 'script')}",
                f"style-src {source_hash(template, 'style')}",
                "base-uri 'none'",
                "form-action 'none'",
            )
        )
        before, after = template.replace("{policy}", policy).split("{data}")
        with written_beside(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.write(before)
            # "<" would end the element, or begin a comment, in a name that says so.
            text = json.dumps(index, ensure_ascii=True).replace("<", "\\u003c")
            stream.write(f'<script type="application/json" id="index">{text}</script>\n')
            self._spool.seek(0)
            for number, scan in enumerate(self._scans):
                stream.write(f'<script type="text/plain" id="scan{number}">')
                left = scan["bytes"]
                while left:
                    part = self._spool.read(min(_COPY_BYTES, left))
                    stream.write(base64.b64encode(part).decode("ascii"))
                    left -= len(part)
                stream.write("</script>\n")
            stream.write(after)


def _factors(image: Volume) -> tuple[int, int, int]:
    """How many voxels become one along each axis: as few as leave MOST_VOXELS of the longest."""
    extent = np.multiply(image.data.shape, image.spacing_mm)
    wanted = extent.max() / MOST_VOXELS
    first, second, third = np.ceil(wanted / np.asarray(image.spacing_mm) - 1e-3).astype(int)
    return max(1, int(first)), max(1, int(second)), max(1, int(third))


def _axes(volume: Volume) -> np.ndarray:
    """Which axes go to the right, front and top (or against), `[3]`."""
    return np.argsort(io_orientation(volume.affine)[:, 0])


def _upright(
    volume: Volume,
    join: Callable[[Iterator[np.ndarray]], np.ndarray],
    factors: tuple[int, int, int],
    interpolation: Interpolation,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A coarser volume `[X, Y, Z]` to the right, front and top, its voxel size and origin in mm."""
    data = join(_parts(volume.data, factors))
    middle = (np.asarray(factors) - 1) / 2
    affine = volume.affine @ from_matvec(np.diag(factors), middle)
    small = conform(replace(volume, data=data, affine=affine), "RAS", None, interpolation)
    return small.data, np.diag(small.affine)[:3], small.affine[:3, 3]


def _parts(data: np.ndarray, factors: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Of each block of voxels the first, then the second ...; the last plane stands for missing."""
    for place in itertools.product(*map(range, factors)):
        voxels = [
            np.minimum(np.arange(first, size + first, step)[: -(-size // step)], size - 1)
            for first, size, step in zip(place, data.shape, factors, strict=True)
        ]
        yield data[np.ix_(*voxels)]


def _mean(parts: Iterator[np.ndarray]) -> np.ndarray:
    total = next(parts).astype(np.float32)
    count = 1
    for part in parts:
        total += part
        count += 1
    total /= count
    return total


def _most_frequent(parts: Iterator[np.ndarray]) -> np.ndarray:
    """Label value of most voxels of each block; of equals the largest, which is not background."""
    values = np.stack(list(parts))
    values.sort(axis=0)
    found, longest = values[0].copy(), np.ones(values.shape[1:], np.uint16)
    run = longest.copy()
    for before, now in itertools.pairwise(values):
        run = np.where(before == now, run + 1, 1).astype(np.uint16)
        wins = run >= longest
        found[wins], longest[wins] = now[wins], run[wins]
    return found


def _to_bytes(values: np.ndarray, low: float, high: float) -> tuple[np.ndarray, list[float]]:
    """Values as uint8, and what 0 and 255 stand for."""
    step = max(high - low, 1e-6) / _LEVELS
    levels = np.clip(np.rint((values - low) / step), 0, _LEVELS).astype(np.uint8)
    return levels, [low, low + step * _LEVELS]


def _thumbnail(grey: np.ndarray, spacing: np.ndarray, window: list[float]) -> dict[str, Any]:
    """The middle axial plane `[X, Y]` in a few pixels, x fastest."""
    plane = grey[:, :, grey.shape[2] // 2]
    extent = np.multiply(plane.shape, spacing[:2])
    sizes = np.maximum(1, np.rint(_THUMBNAIL * extent / extent.max())).astype(int)
    picked = [np.arange(n) * size // n for n, size in zip(sizes, plane.shape, strict=True)]
    low, high = window
    shown = np.clip((plane[np.ix_(*picked)] - low) / max(high - low, 1) * 255, 0, 255)
    pixels = base64.b64encode(shown.astype(np.uint8).tobytes(order="F")).decode("ascii")
    return {"shape": sizes.tolist(), "pixels": pixels}
