"""Head-like T1 volumes drawn from a seed: test data with known truth that nobody has to consent to.

A "healthy" phantom has no contrast agent and its label is the brain. A "meningioma" phantom has
contrast agent and one mass on the inner skull; scalp, dura, sinuses and mucosa are as bright as the
mass, so a threshold does not find it. `voxtune.engine.anatomy` draws the head; here it is scanned
and written. Volumes are RAS.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter

from voxtune.engine.anatomy import (
    BRAIN,
    Array,
    Canvas,
    Head,
    Lesion,
    Tissue,
    paint_head,
    smooth_noise,
)
from voxtune.engine.output import new_folder
from voxtune.models.errors import InputError

Kind = Literal["healthy", "meningioma"]

TABLE = "subjects.csv"
SIZES = (16, 512)  # voxels along an axis, fewest and most
SPACINGS_MM = (0.5, 10.0)

# Scanner units. T1 without contrast: fat > white > grey > muscle > fluid > bone > air.
PLAIN: dict[Tissue, float] = {
    Tissue.AIR: 10,
    Tissue.SKIN: 560,
    Tissue.FAT: 1120,
    Tissue.MUSCLE: 520,
    Tissue.BONE: 110,
    Tissue.MARROW: 520,
    Tissue.EYE: 260,
    Tissue.MUCOSA: 560,
    Tissue.DURA: 330,
    Tissue.SINUS: 300,
    Tissue.FLUID: 210,
    Tissue.SULCUS: 210,
    Tissue.GREY: 620,
    Tissue.WHITE: 900,
    Tissue.NUCLEUS: 720,
    Tissue.VENTRICLE: 200,
    Tissue.FALX: 360,
    Tissue.OEDEMA: 600,
    Tissue.LESION: 1150,
}

# What takes up contrast agent: everything without a blood-brain barrier.
ENHANCED: dict[Tissue, float] = PLAIN | {
    Tissue.SKIN: 820,
    Tissue.FAT: 1180,
    Tissue.MUSCLE: 620,
    Tissue.MUCOSA: 1080,
    Tissue.DURA: 1000,
    Tissue.SINUS: 1260,
    Tissue.FALX: 950,
    Tissue.GREY: 650,
}


@dataclass(frozen=True)
class Phantom:
    """One drawn head, RAS.

    Attributes:
        image: float32 [D, H, W], scanner units, 0 to about 1500.
        label: uint8 [D, H, W]: brain (healthy) or lesion (meningioma).
        tissue: uint8 [D, H, W], codes of `Tissue`.
        affine: float64 [4, 4], voxel indices to millimetres, the volume's centre at the origin.
    """

    image: Array
    label: Array
    tissue: Array
    affine: Array


def make_phantom(
    kind: Kind,
    seed: int,
    shape: tuple[int, int, int] = (64, 64, 64),
    spacing_mm: float = 3.0,
) -> Phantom:
    """Draws one head; the same arguments give the same bytes.

    Args:
        kind: "healthy" (no contrast agent, label is the brain) or "meningioma" (contrast agent,
            label is the lesion).
        seed: 0 or more; selects anatomy, contrast, bias field and noise.
        shape: voxels along left-right, posterior-anterior, inferior-superior, 16 to 512 of each. A
            head needs about 190 mm of each; a smaller volume crops it.
        spacing_mm: edge of the cubic voxels, 0.5 to 10 mm.

    Raises:
        InputError: seed, shape or spacing is out of range.
    """
    _check_drawable(seed, shape, spacing_mm)
    rng = np.random.default_rng([seed, 0 if kind == "healthy" else 1])
    affine = _centred_affine(shape, spacing_mm)
    head = Head.draw(rng, _points(shape, affine))
    lesion = Lesion.draw(rng, head) if kind == "meningioma" else None
    levels = _contrast(rng, PLAIN if lesion is None else ENHANCED)
    canvas = Canvas.blank(shape, spacing_mm, levels)
    paint_head(canvas, head, lesion, rng)
    wanted = BRAIN if lesion is None else (Tissue.LESION,)
    return Phantom(
        image=_scan(rng, canvas.image, head.points),
        label=np.isin(canvas.tissue, wanted).astype(np.uint8),
        tissue=canvas.tissue,
        affine=affine,
    )


def _check_drawable(seed: int, shape: tuple[int, int, int], spacing_mm: float) -> None:
    if seed < 0:
        raise InputError(f"The seed {seed} cannot be used: give 0 or more.")
    fewest, most = SIZES
    if not all(fewest <= size <= most for size in shape):
        raise InputError(
            f"A phantom of {' x '.join(map(str, shape))} voxels cannot be drawn: "
            f"give a size of {fewest} to {most} voxels."
        )
    finest, coarsest = SPACINGS_MM
    if not finest <= spacing_mm <= coarsest:
        raise InputError(
            f"A phantom with a spacing of {spacing_mm:g} mm cannot be drawn: "
            f"give {finest:g} to {coarsest:g} mm."
        )


# Scanner ------------------------------------------------------------------------------------------


def _centred_affine(shape: tuple[int, int, int], spacing_mm: float) -> Array:
    """Voxel indices to mm, float64 [4, 4]; the volume's centre is the origin."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing_mm
    return affine


def _points(shape: tuple[int, int, int], affine: Array) -> Array:
    """Voxel centres, float32 [3, D, H, W] mm."""
    index = np.indices(shape, dtype=np.float32)
    corner = affine[:3, 3].astype(np.float32)
    return index * affine[0, 0].astype(np.float32) + corner.reshape(3, 1, 1, 1)


def _contrast(rng: np.random.Generator, levels: dict[Tissue, float]) -> dict[Tissue, float]:
    """Each tissue's brightness varies by a few percent, and the whole scan's gain by more."""
    gain = rng.uniform(0.85, 1.1)
    return {tissue: gain * level * rng.normal(1, 0.035) for tissue, level in levels.items()}


def _scan(rng: np.random.Generator, image: Array, points: Array) -> Array:
    """Blur, bias field and Rician noise: the magnitude of a complex signal with Gaussian noise."""
    blurred = gaussian_filter(image, rng.uniform(0.2, 0.4))
    bias = np.exp(rng.uniform(0.04, 0.10) * smooth_noise(rng, points, 90.0, 16))
    sigma = rng.uniform(12, 35)
    real = blurred * bias + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.hypot(real, imaginary).astype(np.float32)


# Files --------------------------------------------------------------------------------------------


def write_phantoms(
    out_dir: Path,
    kind: Kind,
    train: int,
    validation: int,
    test: int,
    seed: int,
    shape: tuple[int, int, int] = (64, 64, 64),
    spacing_mm: float = 3.0,
    overwrite: bool = False,
) -> Path:
    """Writes a folder of phantoms and its subjects table; returns the table's path.

    Args:
        out_dir: gets `images/`, `labels/` and `subjects.csv`. It appears whole or not at all.
        kind: "healthy" or "meningioma".
        train: subjects in the split of that name, 0 or more; so are `validation` and `test`.
        seed: 0 or more; the same seed gives the same bytes.
        shape: voxels, as in `make_phantom`.
        spacing_mm: edge of the cubic voxels, as in `make_phantom`.
        overwrite: replaces `out_dir`, if it is empty or holds a subjects table.

    Raises:
        InputError: there are no subjects to make, an argument is out of range, or `out_dir` exists
            or cannot be written.
    """
    counts = (train, validation, test)
    if min(counts) < 0 or not any(counts):
        raise InputError(
            f"{train} subjects to train, {validation} to validate and {test} to test cannot be "
            "made: give 0 or more of each and at least one in all."
        )
    _check_drawable(seed, shape, spacing_mm)
    splits = ["train"] * train + ["validation"] * validation + ["test"] * test
    with new_folder(out_dir, overwrite) as beside:
        _fill(beside, kind, splits, seed, shape, spacing_mm)
    return out_dir / TABLE


def _fill(
    folder: Path,
    kind: Kind,
    splits: list[str],
    seed: int,
    shape: tuple[int, int, int],
    spacing_mm: float,
) -> None:
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    rows = []
    for index, split in enumerate(splits):
        subject = f"{kind}_{index:03d}"
        # A seed of its own for each subject: folders with nearby seeds share no head.
        own_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
        phantom = make_phantom(kind, own_seed, shape, spacing_mm)
        image, label = f"images/{subject}.nii.gz", f"labels/{subject}.nii.gz"
        _write_nifti(folder / image, np.rint(phantom.image).astype(np.int16), phantom.affine)
        _write_nifti(folder / label, phantom.label, phantom.affine)
        rows.append((subject, image, label, split))
    with (folder / TABLE).open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("subject", "image", "label", "split"))
        writer.writerows(rows)


def _write_nifti(path: Path, data: Array, affine: Array) -> None:
    """NIfTI-1 whose bytes depend on the content alone: gzip's own time stamp is set to zero."""
    untyped: Any = nib.Nifti1Image
    nifti = untyped(data, affine)
    nifti.header.set_xyzt_units("mm", "sec")
    nifti.set_sform(affine, code="scanner")
    nifti.set_qform(affine, code="scanner")
    path.write_bytes(gzip.compress(nifti.to_bytes(), compresslevel=6, mtime=0))
