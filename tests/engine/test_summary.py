"""What is said of a store is what is in it."""

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from voxtune.engine.config import Prepare, Summary
from voxtune.engine.prepare import prepare
from voxtune.engine.store import read_store
from voxtune.engine.summary import ClassSummary, class_summaries, suggested_block, summarise
from voxtune.models.errors import InputError


def make_store(folder: Path, **options: object) -> Path:
    """Three subjects of known shapes; value 2 is a cube in the first two, 9 two voxels in one."""
    rng = np.random.default_rng(0)
    lines = ["subject,image,label,split"]
    for index, depth in enumerate((20, 24, 40)):
        shape = depth, 30, 18
        label = np.zeros(shape, np.uint8)
        if index < 2:
            label[2 : 6 + index, 3:9, 4:12] = 2
        if index == 1:
            label[0, 0, :2] = 9
        image = rng.normal(size=shape).astype(np.float32) + label
        for kind, data in (("image", image), ("label", label)):
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{index}_{kind}.nii.gz")
        split = "test" if index else "train"
        lines.append(f"[s]{index},{index}_image.nii.gz,{index}_label.nii.gz,{split}")
    (folder / "subjects.csv").write_text("\n".join(lines))
    (folder / "names.csv").write_text("0,0\n2,2,grey [bold]\n9,9\n")
    store = folder / "store"
    config = Prepare(folder / "subjects.csv", store, workers=1, **options)
    prepare(config, Console(quiet=True))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("summary")
    return make_store(folder, label_map=folder / "names.csv", orientation="LIA")


def test_classes(store: Path) -> None:
    background, two, nine = class_summaries(read_store(store))
    total = (20 + 24 + 40) * 30 * 18
    assert [each.name for each in (background, two, nine)] == ["background", "grey [bold]", ""]
    assert [each.subjects for each in (background, two, nine)] == [3, 2, 1]
    assert two.share == (4 + 5) * 6 * 8 / total
    assert nine.share == 2 / total
    assert background.share == 1 - two.share - nine.share
    assert two.boxes.tolist() == [[4, 8, 6], [5, 8, 6]]  # in LIA


def test_what_is_said(store: Path) -> None:
    console = Console(record=True, width=140, markup=False)
    summarise(Summary(str(store)), console)
    text = console.export_text()
    for words in (
        "3 subjects (1 train, 2 test); image; LIA, zscore",
        "20 x 30 x 18",
        "24 x 18 x 30",
        "grey [bold]",
        "4.5 x 8 x 6",
        "suggested --block 16 16 16",
        "the median shape in multiples of 16",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("shapes", "spacing", "block"),
    [
        ([(256, 256, 256)], (1, 1, 1), (128, 128, 128)),
        ([(10, 10, 10), (20, 40, 50), (300, 300, 300)], (1, 1, 1), (16, 32, 48)),
        ([(8, 200, 200)], (1, 1, 1), (16, 192, 192)),
        ([(176, 256, 256)], (1, 1, 1), (128, 128, 128)),
        ([(112, 256, 160)], (1, 1, 1), (112, 128, 144)),
        ([(512, 512, 120)], (0.5, 0.5, 1), (160, 160, 80)),
        ([(512, 512, 40)], (0.5, 0.5, 20), (352, 368, 16)),
    ],
)
def test_the_suggested_block(
    shapes: list[tuple[int, int, int]],
    spacing: tuple[float, float, float],
    block: tuple[int, int, int],
) -> None:
    """With the voxels of the last, no axis is below 16, however long."""
    assert suggested_block(shapes, [spacing] * len(shapes)) == block


class TestPicture:
    def test_it_is_drawn_and_not_replaced(self, store: Path, tmp_path: Path) -> None:
        path = tmp_path / "summary.png"
        summarise(Summary(str(store), path), Console(quiet=True))
        image = imread(path)
        assert np.ptp(image[..., :3]) > 0.9
        with pytest.raises(InputError, match="exists"):
            summarise(Summary(str(store), path), Console(quiet=True))
        summarise(Summary(str(store), path, overwrite=True), Console(quiet=True))
        np.testing.assert_array_equal(imread(path), image)

    def test_what_is_no_picture(self, store: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"must end in \.png"):
            summarise(Summary(str(store), tmp_path / "summary.jpg"), Console(quiet=True))

    @pytest.mark.parametrize("kind", ["labels", "target"])
    def test_without_images_or_without_labels(self, kind: str, tmp_path: Path) -> None:
        (tmp_path / "scans").mkdir()
        store = make_store(tmp_path / "scans")
        table = tmp_path / "scans" / f"{kind}.csv"
        rows = ["subject,label", "a,0_label.nii.gz"]
        if kind == "target":
            rows = ["subject,image,label", "a,0_label.nii.gz,0_image.nii.gz"]
        table.write_text("\n".join(rows))
        store = tmp_path / "store"
        prepare(Prepare(table, store, workers=1, target=kind == "target"), Console(quiet=True))
        console = Console(record=True, width=100, markup=False)
        summarise(Summary(str(store), tmp_path / "summary.png"), console)
        assert (tmp_path / "summary.png").stat().st_size > 1000
        assert ("Label values" in console.export_text()) == (kind == "labels")


def test_shares_that_are_alike_have_legible_ticks() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from voxtune.engine.summary_picture import _draw_shares

    figure = Figure(figsize=(4, 3))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    classes = [ClassSummary(value, "", 1, 0.5, np.empty((0, 3))) for value in (0, 1)]
    _draw_shares(axes, classes, 2)
    figure.canvas.draw()
    labels = [each for each in axes.get_xticklabels(which="both") if each.get_text()]
    boxes = sorted((each.get_window_extent().extents for each in labels), key=lambda box: box[0])
    assert boxes
    assert all(left[2] < right[0] for left, right in itertools.pairwise(boxes))


def test_right_is_on_the_left(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plane of a subject with a bright right front, in any orientation."""
    from matplotlib.figure import Figure

    from voxtune.engine.case import Affine, Case, quantised
    from voxtune.engine.summary_picture import _draw_plane

    world = np.zeros((8, 10, 6), np.float32)  # RAS
    world[6:, 8:, :] = 1
    for orientation in ("RAS", "LIA", "PSR", "ASL"):
        start = nib.orientations.io_orientation(np.eye(4))
        end = nib.orientations.axcodes2ornt(orientation)
        change = nib.orientations.ornt_transform(start, end)
        data = nib.orientations.apply_orientation(world, change)
        label = np.zeros(data.shape, np.uint8)
        image = quantised([data], [Affine()])
        case = Case(
            "a", None, image, label, np.eye(4), {0: label.size}, {}, {}, data.shape, (1, 1, 1)
        )
        figure = Figure(figsize=(2, 2.5), dpi=40)
        axes = figure.add_axes((0, 0, 1, 1))
        _draw_plane(axes, case, orientation)
        for text in [*axes.texts, axes.title]:
            text.set_visible(False)
        axes.set_axis_off()
        figure.savefig(tmp_path / "plane.png")
        shown = imread(tmp_path / "plane.png")[..., 0]
        assert shown[10, 8] > 0.9  # front is up, right is on the left
        assert max(shown[10, -8], shown[-10, 8], shown[-10, -8]) < 0.1
