"""Phantoms: the same bytes for a seed, plausible anatomy, and a lesion that brightness misses."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from voxtune.engine.anatomy import Tissue
from voxtune.engine.phantom import Phantom, make_phantom, write_phantoms
from voxtune.models.errors import InputError

VOXEL_ML = 3.0**3 / 1000
SMALL = (24, 24, 24)


@pytest.fixture(scope="module")
def healthy() -> list[Phantom]:
    return [make_phantom("healthy", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def meningioma() -> list[Phantom]:
    return [make_phantom("meningioma", seed) for seed in range(4)]


def centroid_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


@pytest.mark.parametrize("kind", ["healthy", "meningioma"])
def test_a_seed_gives_the_same_bytes_and_another_seed_another_head(kind):
    first, again, other = (make_phantom(kind, seed, SMALL, 8.0) for seed in (5, 5, 6))
    for name in ("image", "label", "tissue", "affine"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    assert first.tissue.tobytes() != other.tissue.tobytes()


def test_arrays_are_centred_on_the_head_and_typed():
    phantom = make_phantom("healthy", 0, (30, 24, 20), 7.0)
    assert phantom.image.shape == phantom.label.shape == phantom.tissue.shape == (30, 24, 20)
    dtypes = (phantom.image.dtype, phantom.label.dtype, phantom.tissue.dtype)
    assert dtypes == (np.float32, np.uint8, np.uint8)
    centre = phantom.affine @ [14.5, 11.5, 9.5, 1]
    np.testing.assert_allclose(centre, [0, 0, 0, 1], atol=1e-9)
    assert nib.aff2axcodes(phantom.affine) == ("R", "A", "S")


def test_a_healthy_brain_is_one_piece_of_human_size(healthy):
    for phantom in healthy:
        assert 800 < phantom.label.sum() * VOXEL_ML < 1700  # the adult range, ml
        pieces, _ = ndimage.label(phantom.label)
        assert np.bincount(pieces.ravel())[1:].max() > 0.99 * phantom.label.sum()


def test_t1_contrast_orders_the_tissues(healthy):
    for phantom in healthy:
        fat, white, grey, fluid, air = (
            np.median(phantom.image[phantom.tissue == tissue])
            for tissue in (Tissue.FAT, Tissue.WHITE, Tissue.GREY, Tissue.VENTRICLE, Tissue.AIR)
        )
        assert min(fat, white) > grey > fluid > air


def test_axes_run_right_anterior_superior(healthy):
    for phantom in healthy:
        brain = centroid_mm(phantom.label > 0, phantom.affine)
        eyes = centroid_mm(phantom.tissue == Tissue.EYE, phantom.affine)
        assert eyes[1] > brain[1] + 40
        assert eyes[2] < brain[2]
        right, left = np.argwhere(phantom.tissue == Tissue.EYE)[:, 0].max(), 31.5
        assert right > left
        occupied = phantom.tissue != Tissue.AIR
        assert occupied[:, :, 0].any()  # the neck leaves the volume below
        assert not occupied[:, :, -1].any()  # the vertex does not leave it above


def test_the_lesion_is_one_mass_of_5_to_100_ml_on_the_inner_skull(meningioma):
    for phantom in meningioma:
        lesion = phantom.label > 0
        assert 5 < lesion.sum() * VOXEL_ML < 100
        pieces, _ = ndimage.label(lesion)
        assert np.bincount(pieces.ravel())[1:].max() > 0.95 * lesion.sum()
        bone = np.isin(phantom.tissue, (Tissue.BONE, Tissue.MARROW))
        # Dura lies between: two voxels, 6 mm, at most.
        touching = lesion & ndimage.binary_dilation(bone, iterations=2)
        assert touching.sum() * 3.0**2 > 100  # a base of at least 1 cm2


def test_brightness_does_not_separate_the_lesion(meningioma):
    for phantom in meningioma:
        lesion = phantom.label > 0
        # Whatever the threshold, Dice stays poor.
        best = max(
            2 * (lesion & bright).sum() / (lesion.sum() + bright.sum())
            for bright in (phantom.image > level for level in range(400, 1500, 50))
        )
        assert best < 0.5
        assert (phantom.image[~lesion] > np.median(phantom.image[lesion])).sum() > lesion.sum()


def test_the_table_lists_every_file_and_split(tmp_path: Path):
    table = write_phantoms(tmp_path / "data", "meningioma", 2, 1, 1, 7, SMALL, 8.0)
    rows = list(csv.DictReader(table.open()))
    assert [row["split"] for row in rows] == ["train", "train", "validation", "test"]
    for row in rows:
        image, label = (nib.load(table.parent / row[name]) for name in ("image", "label"))
        assert image.shape == label.shape == SMALL
        assert image.get_data_dtype() == np.int16
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.header["sform_code"] > 0
        assert image.header["qform_code"] > 0
        np.testing.assert_array_equal(image.affine, label.affine)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # no scratch folder left


def test_written_files_are_the_same_bytes_for_a_seed(tmp_path: Path):
    tables = [write_phantoms(tmp_path / n, "healthy", 1, 0, 1, 3, SMALL, 8.0) for n in "ab"]
    for path in tables[0].parent.rglob("*.*"):
        twin = tables[1].parent / path.relative_to(tables[0].parent)
        assert path.read_bytes() == twin.read_bytes()


def test_overwriting_needs_leave_and_a_folder_of_ours(tmp_path: Path):
    out, arguments = tmp_path / "data", ("healthy", 1, 0, 0, 0, SMALL, 8.0)
    out.mkdir()
    (out / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(InputError, match=r"data exists and was not written"):
        write_phantoms(out, *arguments)
    with pytest.raises(InputError, match=r"data exists and was not written by voxtune"):
        write_phantoms(out, *arguments, overwrite=True)
    assert (out / "thesis.txt").read_text() == "irreplaceable"
    (out / "thesis.txt").rename(out / "subjects.csv")  # a subjects table makes no phantoms
    with pytest.raises(InputError, match=r"data exists and was not written by voxtune"):
        write_phantoms(out, *arguments, overwrite=True)
    (out / "subjects.csv").unlink()
    write_phantoms(out, *arguments, overwrite=True)  # empty
    table = write_phantoms(out, *arguments, overwrite=True)
    assert table.read_text().startswith("subject,image,label,split\n")


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, arguments = tmp_path / "data", ("healthy", 1, 0, 1, 0, SMALL, 8.0)
    written = write_phantoms(out, *arguments).read_text()
    drawn = []

    def full_disk(*_):
        drawn.append(1)
        if len(drawn) == 2:
            raise OSError(28, "No space left on device")
        return make_phantom("healthy", 0, SMALL, 8.0)

    monkeypatch.setattr("voxtune.engine.phantom.make_phantom", full_disk)
    with pytest.raises(InputError, match=r"data.*No space left"):
        write_phantoms(out, *arguments, overwrite=True)
    assert (out / "subjects.csv").read_text() == written
    assert len(list((out / "images").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"train": -1}, "-1 subjects to train.*0 or more"),
        ({"validation": -2}, "-2 to validate"),
        ({"train": 0}, "at least one"),
        ({"seed": -1}, "seed -1"),
        ({"shape": (15, 24, 24)}, "15 x 24 x 24 voxels.*16 to 512"),
        ({"shape": (24, 24, 513)}, "24 x 24 x 513 voxels"),
        ({"spacing_mm": 0.49}, r"0\.49 mm.*0\.5 to 10 mm"),
        ({"spacing_mm": 10.1}, r"10\.1 mm"),
        ({"spacing_mm": -3.0}, "-3 mm"),
        ({"spacing_mm": float("nan")}, "nan mm"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(tmp_path: Path, changed, reason):
    arguments = {"kind": "healthy", "train": 1, "validation": 0, "test": 0, "seed": 0}
    with pytest.raises(InputError, match=reason):
        write_phantoms(tmp_path / "data", **(arguments | {"shape": SMALL} | changed))
    assert not list(tmp_path.iterdir())
    drawable = {name: changed[name] for name in ("seed", "shape", "spacing_mm") if name in changed}
    if drawable:
        with pytest.raises(InputError, match=reason):
            make_phantom(**({"kind": "healthy", "seed": 0} | drawable))


@pytest.mark.parametrize("spacing_mm", [0.5, 10.0])
def test_the_smallest_volume_is_drawn_at_either_spacing(spacing_mm):
    phantom = make_phantom("meningioma", 0, (16, 16, 16), spacing_mm)
    assert phantom.image.shape == (16, 16, 16)
    assert np.isfinite(phantom.image).all()
