"""The page: what it holds, and what a browser makes of it."""

import base64
import html
import json
import re
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from voxtune.engine.colours import CLASS_COLOURS, class_colours
from voxtune.engine.viewer import MOST_VOXELS, Page
from voxtune.engine.volume import Volume
from voxtune.models.errors import InputError

NAMES = {0: "background", 1: "left & <b>front</b>", 7: "</script><script>alert(2)</script>"}
ODD = ("<script>alert(1)</script>", '"</script>', "sub-01/résumé.$x$")
SHAPE = (12, 14, 10)
RNG = np.random.default_rng(0)


def volume(data: np.ndarray, affine: np.ndarray) -> Volume:
    return Volume(data, affine, Path("/home/anna/secret.nii.gz"), nib.Nifti1Header())


def made() -> tuple[Volume, np.ndarray]:
    """A scan to the right, front and top; label 1 in front on the left, 7 behind on the right."""
    data = RNG.uniform(100, 200, SHAPE).astype(np.float32)
    data[0, 0, 0], data[-1, -1, -1] = 0, 510
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 10:13, 2:5] = 1
    labels[8, 2, 7] = 7
    affine = np.diag([2.0, 1, 3, 1])
    affine[:3, 3] = (-11, 5, -20)
    return volume(data, affine), labels


def turned(scan: Volume, labels: np.ndarray, axes: str) -> tuple[Volume, np.ndarray]:
    """The same in another order of voxels."""
    there = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes)
    )
    image, label = (
        nib.Nifti1Image(data, scan.affine).as_reoriented(there) for data in (scan.data, labels)
    )
    return volume(np.asarray(image.dataobj), image.affine), np.asarray(label.dataobj)


def parts(page: str) -> tuple[dict[str, Any], list[bytes]]:
    """The index of a page, and the voxels of its scans."""
    index = re.search(r'id="index">(.*?)</script>', page)
    assert index
    packed = re.findall(r'id="scan\d+">(.*?)</script>', page)
    return json.loads(index[1]), [zlib.decompress(base64.b64decode(each)) for each in packed]


def written(page: Page, folder: Path) -> str:
    page.write(folder / "index.html")
    return (folder / "index.html").read_text("utf-8")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three scans with odd names, the last one of a network that gives an image."""
    page = Page()
    scan, labels = made()
    ml = {0: 9.0, 1: 0.162, 7: 0.006}
    page.add(ODD[0], scan, labels, NAMES, ml)
    page.add(ODD[1], *turned(scan, labels, "PIL"), NAMES, ml)
    page.add(ODD[2], scan, scan.data / 1000, {}, {})
    path = tmp_path_factory.mktemp("page") / "index.html"
    page.write(path)
    return path


Chromium = Callable[..., str]
Browse = Callable[[str], dict[str, str]]


@pytest.fixture(scope="module")
def browse(chromium: Chromium, path: Path) -> Browse:
    """Opens the page at an address; gives the attributes of its body, and all of it as "dom"."""

    def open_at(address: str) -> dict[str, str]:
        dom = chromium(path, "--dump-dom", address=address)
        body = re.search(r"<body([^>]*)>", dom)
        assert body
        found = dict(re.findall(r'data-(\w+)="([^"]*)"', body[1]))
        assert found.get("ready") == "1", dom[:3000]
        return {**{name: html.unescape(value) for name, value in found.items()}, "dom": dom}

    return open_at


# What the page holds


@pytest.mark.parametrize("axes", ["RAS", "LIA", "PSR"])
def test_voxels_lie_to_the_right_front_and_top(tmp_path: Path, axes: str) -> None:
    scan, labels = made()
    page = Page()
    page.add("a", *turned(scan, labels, axes), NAMES, {1: 0.162})
    index, (raw,) = parts(written(page, tmp_path))
    (entry,) = index["scans"]
    assert (entry["shape"], entry["spacing"], entry["of"]) == (list(SHAPE), [2, 1, 3], [2, 1, 3])
    assert entry["origin"] == [-11, 5, -20]
    grey = np.frombuffer(raw, np.uint8, scan.data.size).reshape(SHAPE, order="F")
    low, high = entry["scale"]
    shown = low + grey / 255 * (high - low)
    inside = (scan.data > 90) & (scan.data < 210)
    assert np.abs(shown - scan.data)[inside].max() < (high - low) / 255
    found = np.frombuffer(raw, "<u2", offset=scan.data.size).reshape(SHAPE, order="F")
    np.testing.assert_array_equal(found, labels)


def test_large_scans_become_coarser_in_mm(tmp_path: Path) -> None:
    """Half a millimetre becomes one in plane, slices of 4 mm stay; the world does not move."""
    shape = (401, 302, 20)
    affine = np.diag([0.5, 0.5, 4.0, 1.0])
    data = np.broadcast_to(np.arange(401, dtype=np.float32)[:, None, None], shape)
    labels = np.zeros(shape, np.uint16)
    labels[200:, 5:, 3] = 300
    page = Page()
    page.add("a", volume(data, affine), labels, {300: "x"}, {})
    index, (raw,) = parts(written(page, tmp_path))
    (entry,) = index["scans"]
    nx, ny, nz = entry["shape"]
    assert max(nx, ny, nz) <= MOST_VOXELS
    assert (nx, ny, nz) == (134, 101, 20)
    assert entry["spacing"] == [1.5, 1.5, 4]
    assert entry["origin"] == [0.5, 0.5, 0]
    grey = np.frombuffer(raw, np.uint8, nx * ny * nz).reshape((nx, ny, nz), order="F")
    low, high = entry["scale"]
    assert low + grey[50, 4, 4] / 255 * (high - low) == pytest.approx(151, abs=2)
    found = np.frombuffer(raw, "<u2", offset=grey.size).reshape(grey.shape, order="F")
    assert np.flatnonzero(found[:, 50, 3])[0] == 67  # voxels 201 to 203, of which all
    assert np.flatnonzero(found[100, :, 3])[0] == 2  # voxels 6 to 8; of 3 to 5 one
    assert not found[:, :, 4].any()
    assert set(np.unique(found)) == {0, 300}


def test_of_a_block_the_label_of_most_voxels_is_shown(tmp_path: Path) -> None:
    """Of equals that which is not background, so small structures are not lost first."""
    labels = np.zeros((2 * MOST_VOXELS, 4, 4), np.uint8)
    labels[:2, :2, 0] = 2  # half of the eight
    labels[2:4, 0, 0] = 5  # two of eight
    labels[4:6, :2, :2] = 3
    labels[4, 0, 0] = 9
    page = Page()
    scan = volume(RNG.random(labels.shape, np.float32), np.eye(4))
    page.add("a", scan, labels, {}, {})
    index, (raw,) = parts(written(page, tmp_path))
    found = np.frombuffer(raw, "<u2", offset=MOST_VOXELS * 4).reshape((-1, 2, 2), order="F")
    assert found[:4, 0, 0].tolist() == [2, 0, 3, 0]
    assert {each["value"] for each in index["classes"]} == {2, 3}  # named by their values


def test_an_oblique_scan(tmp_path: Path) -> None:
    scan, labels = made()
    tilted = scan.affine.copy()
    tilted[:2, :2] = [[0.9, -0.436], [0.436, 0.9]]
    page = Page()
    page.add("a", volume(scan.data, tilted), labels, NAMES, {})
    index, (raw,) = parts(written(page, tmp_path))
    size = int(np.prod(index["scans"][0]["shape"]))
    assert len(raw) == 3 * size
    assert {1, 7} <= set(np.frombuffer(raw, "<u2", offset=size).tolist())


def test_nothing_of_the_scan_but_its_voxels_and_no_address(path: Path) -> None:
    page = path.read_text("utf-8")
    assert "anna" not in page
    assert "secret" not in page
    code = re.sub(r'id="scan\d+">.*?</script>', "", page)
    assert not re.search(r"\w+://|src=|@import|url\(|<link", code)
    assert "default-src 'none'" in page
    assert "unsafe" not in page
    for odd in (*ODD[:2], *list(NAMES.values())[1:]):
        assert odd not in page


def test_constant_scans_empty_labels_and_no_scan(tmp_path: Path) -> None:
    page = Page()
    assert parts(written(page, tmp_path))[0]["scans"] == []
    flat = volume(np.zeros((3, 4, 1), np.float32), np.eye(4))
    page.add("flat", flat, np.zeros((3, 4, 1), np.uint8), {0: "background"}, {})
    index, (raw,) = parts(written(page, tmp_path))
    assert index["classes"] == []
    assert len(raw) == 3 * 12
    with pytest.raises(InputError, match="cannot be written"):
        page.write(tmp_path / "no" / "index.html")


def test_memory_of_adding(tmp_path: Path) -> None:
    """Less than one and a half volumes beside the scan and its labels."""
    data = RNG.random((192, 192, 192), np.float32)
    labels = np.zeros(data.shape, np.uint8)
    labels[50:90, 50:90, 50:90] = 1
    scan = volume(data, np.eye(4))
    tracemalloc.start()
    Page().add("a", scan, labels, {1: "x"}, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * data.nbytes


def test_colours_differ() -> None:
    assert len(set(CLASS_COLOURS)) == len(CLASS_COLOURS) == 18
    colours = class_colours([5, 0, 3, *range(10, 40)])
    assert 0 not in colours
    assert [colours[3], colours[5]] == list(CLASS_COLOURS[:2])


# What a browser makes of it


@pytest.mark.parametrize("number", [1, 2])
def test_a_place_by_its_address(browse: Browse, number: int) -> None:
    """In mm, the same whatever the order of the scan's voxels; there lies the known label."""
    scan, labels = made()
    voxel = (2, 11, 3)
    x, y, z = nib.affines.apply_affine(scan.affine, voxel)
    seen = browse(f"#scan={number}&x={x}&y={y}&z={z}")
    assert (seen["scan"], seen["name"]) == (str(number), ODD[number - 1])
    assert seen["at"] == "2 11 3"
    assert seen["label"] == NAMES[1]
    dom = html.unescape(seen["dom"])
    assert "7.0 L, 16.0 A, 11.0 I" in dom
    assert labels[voxel] == 1
    assert 90 < float(seen["intensity"]) < 210


def test_between_two_parts_the_nearest_labelled_voxel_is_shown(
    chromium: Chromium, tmp_path: Path
) -> None:
    """The right one is larger, and so the mean is nearer to it."""
    labels = np.zeros((20, 9, 9), np.uint8)
    labels[1:4, 3:6, 3:6] = labels[14:18, 3:6, 3:6] = 1
    page = Page()
    page.add("a", volume(RNG.random(labels.shape, np.float32), np.eye(4)), labels, {1: "x"}, {})
    written(page, tmp_path)
    dom = chromium(tmp_path / "index.html", "--dump-dom")
    found = re.search(r'data-at="([^"]*)"', dom)
    assert found
    assert found[1] == "14 4 4"


def test_sides_in_what_is_drawn(chromium: Chromium, path: Path, tmp_path: Path) -> None:
    """What is on the left, in front and below is drawn right and up, right and down, left and down.

    Its outline is orange. Planes are square: axial and coronal above, sagittal below.
    """
    picture = f"--screenshot={tmp_path / 'page.png'}"
    chromium(path, picture, address="#scan=2&x=-7&y=16&z=-11")
    rgb = imread(tmp_path / "page.png")[:, :, :3]
    orange = (rgb[..., 0] > rgb[..., 1] + 0.15) & (rgb[..., 1] > rgb[..., 2] + 0.15)
    edges = ((6, 376, 246, 622), (6, 376, 628, 1004), (403, 773, 246, 622))
    places = []
    for top, bottom, left, right in edges:
        found = np.argwhere(orange[top:bottom, left:right])
        assert len(found) > 50
        places.append((found.mean(axis=0) / (bottom - top, right - left)).tolist())
    (axial_y, axial_x), (coronal_y, coronal_x), (sagittal_y, sagittal_x) = places
    assert axial_x > 0.6
    assert axial_y < 0.4
    assert coronal_x > 0.6
    assert coronal_y > 0.55
    assert sagittal_x < 0.4
    assert sagittal_y > 0.55


def test_names_are_shown_as_text(browse: Browse) -> None:
    """Both the scans' and the classes'; nothing of them became an element."""
    dom = browse("")["dom"]
    body = dom[dom.index("<body") :]
    listed = re.findall(r"<button[^>]*><canvas[^>]*></canvas><span>(.*?)<small>", body)
    assert [html.unescape(each) for each in listed] == list(ODD)
    names = re.findall(r'<span class="name">(.*?)</span>', body)
    assert [html.unescape(each) for each in names] == [NAMES[1], NAMES[7]]
    assert body.count("<script") == 5  # the index, three scans and the program


def test_at_first_what_is_labelled_and_of_an_image_its_values(
    browse: Browse,
) -> None:
    assert browse("")["scan"] == "1"
    seen = browse("#scan=3&x=1&y=9&z=-11")
    scan, _ = made()
    assert seen["at"] == "6 4 3"
    assert float(seen["result"]) * 1000 == pytest.approx(float(seen["intensity"]), abs=4)
    assert seen["label"] == ""
    assert scan.data.max() == 510
