"""Pictures: size, place and side of what is drawn, read back from the pixels."""

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from voxtune.engine import picture, plots
from voxtune.engine.colours import class_colours
from voxtune.engine.picture import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    draw_contours,
    draw_predictions,
    draw_scan,
)
from voxtune.engine.plots import MAX_BYTES
from voxtune.engine.subjects import Subject
from voxtune.engine.volume import Volume, load_image, load_label
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)


def volume(data: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    place = np.eye(4) if affine is None else affine
    return Volume(data, place, Path("made.nii.gz"), nib.Nifti1Header())


def noise(*shape: int) -> np.ndarray:
    return RNG.random(shape).astype(np.float32)


def ball(shape: tuple[int, ...], centre: tuple[int, ...], radius: float) -> np.ndarray:
    distance = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return ((distance**2).sum(axis=0) < radius**2).astype(np.uint8)


def pixels(path: Path, colour: str, panel: int | None = None) -> np.ndarray:
    """Where a colour is, [n, 2] rows and columns; of one of the three panels, as fractions."""
    rgb = imread(path)[:, :, :3]
    wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    places = np.argwhere(np.abs(rgb - wanted).max(axis=2) < 0.1) / rgb.shape[:2]
    if panel is None:
        return places
    places = places[places[:, 0] < 0.75]  # the legend is below
    return places[(places[:, 1] > panel / 3) & (places[:, 1] < (panel + 1) / 3)]


def test_truth_and_prediction_have_their_colours(tmp_path: Path) -> None:
    image = volume(noise(30, 30, 30))
    truth, prediction = (volume(ball((30, 30, 30), (15, 15, 15), r)) for r in (9, 5))
    draw_contours([("both", image, truth, prediction)], tmp_path / "a.png")
    for panel in range(3):
        outer = pixels(tmp_path / "a.png", TRUTH_COLOUR, panel)
        inner = pixels(tmp_path / "a.png", PREDICTION_COLOUR, panel)
        assert len(outer) > 50
        assert (outer.min(axis=0) < inner.min(axis=0)).all()
        assert (outer.max(axis=0) > inner.max(axis=0)).all()


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LIA", "PSR"])
def test_sides(tmp_path: Path, axes: str) -> None:
    """A ball on the left, in front, below: radiological, so on the right; the nose to the left."""
    affine = np.diag([1.0, 1, 1, 1])
    truth = nib.Nifti1Image(ball((40, 40, 40), (8, 32, 8), 5), affine)
    image = nib.Nifti1Image(noise(40, 40, 40), affine)
    there = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)
    )
    turned = [file.as_reoriented(there) for file in (image, truth)]
    scan, label = (volume(np.asarray(file.dataobj), file.affine) for file in turned)
    draw_contours([("side", scan, label, None)], tmp_path / "a.png")
    axial, coronal, sagittal = (
        pixels(tmp_path / "a.png", TRUTH_COLOUR, panel).mean(axis=0) for panel in range(3)
    )
    middle = 0.4  # rows: the panels end above the legend
    assert axial[1] > 1 / 6  # columns: patient's left is right
    assert axial[0] < middle  # front is up
    assert coronal[1] > 3 / 6
    assert coronal[0] > middle
    assert sagittal[1] < 5 / 6
    assert sagittal[0] > middle


def test_voxel_sizes_give_the_aspect(tmp_path: Path) -> None:
    """A ball in mm stays round although its voxels are 1 x 1 x 3 mm."""
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    data = ball((60, 60, 60), (30, 30, 30), 15)[:, :, ::3]
    image = volume(noise(60, 60, 20), affine)
    draw_contours([("ball", image, volume(data, affine), None)], tmp_path / "a.png")
    shape = imread(tmp_path / "a.png").shape
    for panel in range(3):
        extent = np.ptp(pixels(tmp_path / "a.png", TRUTH_COLOUR, panel), axis=0) * shape[:2]
        assert extent[0] == pytest.approx(extent[1], rel=0.12)


def test_labels_in_two_halves_are_met(tmp_path: Path) -> None:
    """The centre of mass of two balls lies between them."""
    data = ball((40, 40, 40), (6, 20, 20), 4) + 2 * ball((40, 40, 40), (34, 20, 20), 4)
    draw_contours([("two", volume(noise(40, 40, 40)), volume(data), None)], tmp_path / "a.png")
    assert len(pixels(tmp_path / "a.png", TRUTH_COLOUR, 2))


@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 9, 9)])
@pytest.mark.parametrize("value", [0, 3])
def test_labels_empty_or_everywhere_and_constant_scans(
    tmp_path: Path, shape: tuple[int, ...], value: int
) -> None:
    label = volume(np.full(shape, value, np.uint8))
    scan = volume(np.zeros(shape, np.float32))
    draw_contours([("none", scan, None, None), ("label", scan, label, label)], tmp_path / "a.png")
    assert imread(tmp_path / "a.png").size


def test_an_oblique_scan(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:2, :2] = [[0.9, -0.436], [0.436, 0.9]]
    label = volume(ball((20, 20, 20), (10, 10, 10), 5), affine + 1e-5)
    draw_contours([("tilted", volume(noise(20, 20, 20), affine), label, None)], tmp_path / "a.png")
    assert len(pixels(tmp_path / "a.png", TRUTH_COLOUR, 0))


def test_resolution_falls_to_stay_below_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"scan {n}", volume(noise(60, 60, 60)), None, None) for n in range(3)]
    draw_contours(rows, tmp_path / "fine.png")
    assert 60_000 < (tmp_path / "fine.png").stat().st_size < MAX_BYTES == 1_000_000
    monkeypatch.setattr(plots, "MAX_BYTES", 60_000)
    draw_contours(rows, tmp_path / "coarse.png")
    assert (tmp_path / "coarse.png").stat().st_size < 60_000


def test_hippocampus(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "mri" / "hippocampus"
    rows = []
    for name in ("hippocampus_001", "hippocampus_004"):
        image = load_image(folder / "images" / f"{name}.nii.gz")
        label = load_label(folder / "labels" / f"{name}.nii.gz")
        rows.append((name, image, label, None))
    draw_contours(rows, tmp_path / "a.png")
    assert len(pixels(tmp_path / "a.png", TRUTH_COLOUR)) > 100


def test_the_first_channel_is_drawn(tmp_path: Path) -> None:
    """As when it were the only one; a prediction that is an image has no outlines to draw."""
    files = {name: tmp_path / f"{name}.nii" for name in ("t1", "t2", "label")}
    for name, path in files.items():
        data = ball((9, 9, 9), (4, 4, 4), 3) if name == "label" else noise(9, 9, 9)
        nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    predictions = tmp_path / "out"
    predictions.mkdir()
    nib.save(nib.load(files["label"]), predictions / "a.nii.gz")
    both = {"t1": files["t1"], "t2": files["t2"]}
    for name, images in (("two", both), ("one", {"image": files["t1"]})):
        subject = Subject("a", images, files["label"], None)
        draw_predictions(predictions, (subject,), tmp_path / f"{name}.png")
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    nib.save(nib.load(files["t2"]), predictions / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz is not a label map"):
        draw_predictions(predictions, (subject,), tmp_path / "image.png")


def test_classes_of_predictions_have_colours(tmp_path: Path) -> None:
    """And the truth's are the same; a single class keeps the two colours of the two sides."""
    image = volume(noise(30, 30, 30))
    first, second = (ball((30, 30, 30), (x, 15, 15), 6) for x in (8, 22))
    truth = volume(first + 2 * second)
    draw_contours([("a", image, truth, volume(2 * first + second))], tmp_path / "a.png")
    colours = class_colours([1, 2])
    half = 1 / 6  # of the axial panel: the first ball is on the left, so to the right
    for value in (1, 2):
        seen = pixels(tmp_path / "a.png", colours[value], 0)
        assert (seen[:, 1] > half).sum() > 20
        assert (seen[:, 1] < half).sum() > 20
    draw_contours([("a", image, None, truth)], tmp_path / "b.png", {1: "one", 2: "two"})
    assert (pixels(tmp_path / "b.png", colours[1], 0)[:, 1] > half).all()
    assert (pixels(tmp_path / "b.png", colours[2], 0)[:, 1] < half).all()
    draw_contours([("a", image, None, volume(first))], tmp_path / "c.png")
    assert not len(pixels(tmp_path / "c.png", TRUTH_COLOUR))


# One result


def chunks(path: Path) -> set[bytes]:
    content, at, found = path.read_bytes(), 8, set()
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        found.add(content[at + 4 : at + 8])
        at += 12 + size
    return found


def test_a_result_in_colours_without_words_about_its_making(tmp_path: Path) -> None:
    labels = ball((30, 30, 30), (8, 15, 15), 6) + 7 * ball((30, 30, 30), (22, 15, 15), 6)
    names = {0: "background", 1: "one", 5: "not there", 7: r"odd $\x$ name"}
    draw_scan(tmp_path / "sub-01.png", volume(noise(30, 30, 30)), labels, names)
    colours = class_colours(list(names))
    for value, others in ((1, False), (7, False), (5, True)):
        assert (len(pixels(tmp_path / "sub-01.png", colours[value], 0)) < 20) is others
    assert chunks(tmp_path / "sub-01.png") <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}
    content = (tmp_path / "sub-01.png").read_bytes()
    assert b"atplotlib" not in content
    assert str(tmp_path).encode() not in content


def test_many_classes_are_named_by_their_size() -> None:
    labels = np.zeros((9, 9, 9), np.uint16)
    for value in range(1, 31):
        labels.flat[value * 20 : value * 20 + (value if value < 20 else 1)] = value * 10
    counts = picture._counts(labels)
    names = {value: f"part {value}" for value in counts}
    lines = picture._class_lines(counts, class_colours(list(counts)), names)
    shown = [str(line.get_label()) for line in lines]
    assert shown == [*(f"part {10 * value}" for value in range(8, 20)), "and 18 smaller structures"]


def test_results_without_labels_and_images(tmp_path: Path) -> None:
    image = volume(noise(20, 20, 20))
    draw_scan(tmp_path / "none.png", image, np.zeros((20, 20, 20), np.uint8), {1: "lesion"})
    draw_scan(tmp_path / "image.png", image, noise(20, 20, 20), {})
    tall, wide = (imread(tmp_path / f"{name}.png").shape for name in ("image", "none"))
    assert tall[0] > 1.5 * wide[0]


def test_a_result_ends_where_the_head_does(tmp_path: Path) -> None:
    """A small head in much air is drawn large: its outline spans the panel."""
    labels = ball((90, 90, 90), (30, 40, 50), 8)
    head = 100 * ball((90, 90, 90), (30, 40, 50), 12) + noise(90, 90, 90)
    draw_scan(tmp_path / "a.png", volume(head.astype(np.float32)), labels, {1: "x"})
    seen = pixels(tmp_path / "a.png", class_colours([1])[1], 0)
    assert np.ptp(seen[:, 1]) > 0.12  # of a third


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        draw_contours([("a", volume(noise(5, 5, 5)), None, None)], tmp_path / "no" / "a.png")
