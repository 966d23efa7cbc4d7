"""From scans to labels on their own grids, with a network whose weights are set by hand."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest
from scipy import ndimage

from voxtune.engine.conform import conform
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec, write_model
from voxtune.engine.predict import predict, scans_of
from voxtune.engine.preprocessing import pad_to_block
from voxtune.engine.volume import load_image
from voxtune.models.errors import InputError

BLOCK = (24, 24, 24)
ARGUMENTS = {
    "channels": 1,
    "outputs": 3,
    "filters": 1,
    "dilations": [1],
    "activation": "relu",
    "norm": None,
}
SPEC = ModelSpec(
    family="meshnet",
    arguments=ARGUMENTS,
    output_activation="softmax",
    classes=(LabelClass(0, "background"), LabelClass(17, "shell"), LabelClass(53, "core")),
    contract=Contract("RAS", (1.0, 1.0, 1.0), "minmax", BLOCK, 0.5),
)


def thresholds(outputs: int, sharpness: float = 200.0) -> dict[str, np.ndarray]:
    """Weights that hand brightness x on and put its logits so that classes meet at thresholds.

    Three outputs: s * (0, x - 1/3, 2x - 1), which meet at 1/3 and 2/3. One: 4 (x - 1/2).
    """
    kernel = np.zeros((3, 3, 3, 1, 1))
    kernel[1, 1, 1] = 1
    slopes, offsets = (sharpness * np.array(each) for each in ([0, 1, 2], [0, -1 / 3, -1]))
    if outputs == 1:
        slopes, offsets = np.array([4.0]), np.array([-2.0])
    values = {
        "block1/conv/kernel": kernel,
        "block1/conv/bias": np.zeros(1),
        "head/kernel": slopes.reshape(1, 1, 1, 1, outputs),
        "head/bias": offsets,
    }
    return {path: value.astype(np.float32) for path, value in values.items()}


def head(affine: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels of a head in world space, sampled at a scan's voxels.

    A shell of 13 mm round (3, -2, 5) mm with brightness 0.5, a core of 8 mm beside its centre with
    brightness 1, and noise up to 0.1 around.
    """
    voxels = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ voxels + affine[:3, 3:]

    def within(centre: tuple[float, float, float], radius: float) -> np.ndarray:
        offset = world - np.array(centre)[:, None]
        return ((offset**2).sum(axis=0) <= radius**2).reshape(shape)

    image = np.random.default_rng(0).uniform(0, 0.1, shape)
    image.flat[0] = 0
    shell, core = within((3, -2, 5), 13), within((6, -1, 4), 8)
    image[shell], image[core] = 0.5, 1
    return image.astype(np.float32), np.where(core, 53, np.where(shell, 17, 0))


def affine_of(orientation: str, shape: Sequence[int], spacing: float = 1.0) -> np.ndarray:
    """An affine with axes in an orientation and the middle of the scan near the head's."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(nib.orientations.axcodes2ornt(orientation)):
        affine[int(world), axis] = sign * spacing
    return centred(affine, shape)


def centred(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    affine = affine.copy()
    affine[:3, 3] = np.round(np.array([4, -1, 4]) - affine[:3, :3] @ (np.array(shape) // 2))
    return affine


SHEAR = np.array([[0.9, 0.15, 0.0, 0], [0.0, 1.1, -0.1, 0], [0.1, 0.0, 1.2, 0], [0, 0, 0, 1]])
LARGE = (34, 36, 38)
GRIDS = {
    "ras": affine_of("RAS", LARGE),
    "lia": affine_of("LIA", LARGE),
    "psr": affine_of("PSR", LARGE),
    "bigendian": affine_of("AIL", LARGE),
    "small": affine_of("LIA", (21, 20, 22)),
    "sheared": centred(SHEAR, (44, 36, 36)),
    "coarse": affine_of("SPL", (20, 20, 20), spacing=2.0),
}
SHAPES = {"small": (21, 20, 22), "sheared": (44, 36, 36), "coarse": (20, 20, 20)}
CODES = {"lia": (1, 2), "psr": (0, 4), "sheared": (0, 3)}  # qform, sform


def write_scan(path: Path, affine: np.ndarray, shape: Sequence[int]) -> Path:
    """A scan of the head, and its labels beside it."""
    image, label = head(affine, shape)
    name = path.name.split(".")[0]
    qform, sform = CODES.get(name, (1, 1))
    header = nib.Nifti1Header(endianness=">" if name == "bigendian" else "<")
    scan = nib.Nifti1Image(image, affine, header)
    scan.set_sform(affine, code=sform)
    scan.set_qform(affine if qform else None, code=qform)
    scan.header.set_xyzt_units("mm")
    nib.save(scan, path)
    nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), path.with_name(f"{name}_label.nii"))
    return path


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of three thresholds."""
    folder = tmp_path_factory.mktemp("models") / "thresholds"
    write_model(folder, SPEC, thresholds(3), history={})
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scans of one head on several grids, by name."""
    folder = tmp_path_factory.mktemp("scans")
    return {
        name: write_scan(
            folder / f"{name}.nii{'.gz' if name == 'lia' else ''}", affine, SHAPES.get(name, LARGE)
        )
        for name, affine in GRIDS.items()
    }


@pytest.fixture(scope="module")
def predicted(model_dir: Path, scans: dict[str, Path]) -> dict[str, Path]:
    """What all scans were segmented as, by name."""
    folder = model_dir.parent / "predicted"
    told: list[str] = []
    outputs = predict(
        model_dir,
        scans_of(list(scans.values()), None),
        folder,
        overlap=0.25,
        overwrite=False,
        report=told.append,
    )
    assert outputs == [folder / f"{name}.nii.gz" for name in scans]
    assert [line.split()[0] for line in told] == [str(output) for output in outputs]
    return dict(zip(scans, outputs, strict=True))


def labels_of(scan: Path) -> np.ndarray:
    name = scan.name.split(".")[0]
    return np.asanyarray(nib.load(scan.with_name(f"{name}_label.nii")).dataobj)


def centroid(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """In mm."""
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


class TestGrids:
    @pytest.mark.parametrize("name", GRIDS)
    def test_the_result_lies_on_the_scans_very_grid(
        self, scans: dict[str, Path], predicted: dict[str, Path], name: str
    ) -> None:
        scan, found = nib.load(scans[name]), nib.load(predicted[name])
        assert found.shape == scan.shape
        np.testing.assert_array_equal(found.affine, scan.affine)
        for field in ("qform_code", "sform_code", "pixdim", "xyzt_units", "srow_x", "quatern_b"):
            np.testing.assert_array_equal(found.header[field], scan.header[field])
        assert found.header.endianness == scan.header.endianness
        assert (found.header.endianness == ">") == (name == "bigendian")
        assert found.get_data_dtype() == np.uint8

    @pytest.mark.parametrize("name", ["ras", "lia", "psr", "bigendian", "small"])
    def test_reoriented_scans_are_labelled_to_the_voxel(
        self, scans: dict[str, Path], predicted: dict[str, Path], name: str
    ) -> None:
        found = np.asanyarray(nib.load(predicted[name]).dataobj)
        np.testing.assert_array_equal(found, labels_of(scans[name]))
        assert set(np.unique(found)) == {0, 17, 53}

    @pytest.mark.parametrize("name", ["sheared", "coarse"])
    def test_resampled_scans_show_the_same_anatomy(
        self, scans: dict[str, Path], predicted: dict[str, Path], name: str
    ) -> None:
        found, truth = np.asanyarray(nib.load(predicted[name]).dataobj), labels_of(scans[name])
        assert dice(found > 0, truth > 0) > 0.9
        assert dice(found == 53, truth == 53) > 0.9

    @pytest.mark.parametrize("name", [name for name in GRIDS if name != "small"])
    def test_the_head_is_where_it_is_in_the_world(
        self, predicted: dict[str, Path], name: str
    ) -> None:
        """Its middle in mm, whatever the grid; half a voxel of the coarsest is 1 mm."""
        image = nib.load(predicted[name])
        found = np.asanyarray(image.dataobj)
        assert np.linalg.norm(centroid(found == 53, image.affine) - (6, -1, 4)) < 0.5
        assert np.linalg.norm(centroid(found > 0, image.affine) - (3, -2, 5)) < 1


class TestFolder:
    def test_classes_are_named(self, predicted: dict[str, Path]) -> None:
        with (predicted["ras"].parent / "classes.csv").open(newline="") as stream:
            assert list(csv.reader(stream)) == [
                ["value", "name"],
                ["0", "background"],
                ["17", "shell"],
                ["53", "core"],
            ]

    def test_nothing_else_is_written(self, predicted: dict[str, Path]) -> None:
        names = {path.name for path in predicted["ras"].parent.iterdir()}
        assert names == {".voxtune", "classes.csv", *(f"{name}.nii.gz" for name in GRIDS)}

    def test_two_scans_of_one_name_are_refused(
        self, model_dir: Path, scans: dict[str, Path], tmp_path: Path
    ) -> None:
        (tmp_path / "b").mkdir()
        other = write_scan(tmp_path / "b" / "ras.nii.gz", GRIDS["ras"], LARGE)
        given = scans_of([scans["ras"], other], None)
        with pytest.raises(InputError, match=r"would both be written as .*ras\.nii\.gz") as caught:
            predict_quietly(model_dir, given, tmp_path / "out")
        assert str(scans["ras"]) in str(caught.value)
        assert str(other) in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_a_scan_that_cannot_be_scaled_leaves_nothing(
        self, model_dir: Path, scans: dict[str, Path], tmp_path: Path
    ) -> None:
        """Between its 5th and 95th percentile the second scan is all zero."""
        contract = dataclasses.replace(SPEC.contract, intensity="quantile")
        spec = dataclasses.replace(SPEC, contract=contract)
        write_model(tmp_path / "model", spec, thresholds(3), history={})
        dark = np.zeros((24, 24, 24), np.float32)
        dark[:2, :2, :2] = 1
        nib.save(nib.Nifti1Image(dark, np.eye(4)), tmp_path / "dark.nii")
        given = scans_of([scans["ras"], tmp_path / "dark.nii"], None)
        with pytest.raises(InputError, match=r"dark\.nii cannot be scaled"):
            predict_quietly(tmp_path / "model", given, tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} == {"model", "dark.nii"}

    @pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
    def test_an_overlap_that_makes_no_sense(
        self, model_dir: Path, scans: dict[str, Path], tmp_path: Path, overlap: float
    ) -> None:
        given = scans_of([scans["ras"]], None)
        with pytest.raises(InputError, match="--overlap"):
            predict_quietly(model_dir, given, tmp_path / "out", overlap=overlap)


def test_what_the_grid_cuts_off_is_background_and_nan_is_replaced(
    model_dir: Path, scans: dict[str, Path], tmp_path: Path
) -> None:
    """Of 34 x 36 x 38 voxels the middle 26 x 40 x 24 is looked at."""
    contract = dataclasses.replace(SPEC.contract, grid=(26, 40, 24))
    write_model(
        tmp_path / "model", dataclasses.replace(SPEC, contract=contract), thresholds(3), history={}
    )
    scan = nib.load(scans["ras"])
    data = scan.get_fdata(dtype=np.float32)
    data[4, 0, 7:9] = np.nan, np.inf
    nib.save(nib.Nifti1Image(data, scan.affine), tmp_path / "nan.nii")
    given, told = scans_of([tmp_path / "nan.nii"], None), []
    with pytest.raises(InputError, match=r"nan\.nii has 2 voxels .*--nonfinite"):
        predict_quietly(tmp_path / "model", given, tmp_path / "out")
    (output,) = predict(
        *(tmp_path / "model", given, tmp_path / "out"),
        overlap=0.25,
        overwrite=False,
        report=told.append,
        nonfinite=0.0,
    )
    assert told[0].endswith(", 2 voxels replaced")
    found, label = np.asanyarray(nib.load(output).dataobj), labels_of(scans["ras"])
    inside = np.zeros(label.shape, bool)
    inside[4:30, :, 7:31] = True
    np.testing.assert_array_equal(found, np.where(inside, label, 0))
    assert label[~inside].any()


def predict_quietly(
    model_dir: Path,
    given: Sequence[tuple[str, Mapping[str, Path]]],
    folder: Path,
    overlap: float = 0.25,
    overwrite: bool = False,
) -> list[Path]:
    return predict(
        model_dir, given, folder, overlap=overlap, overwrite=overwrite, report=lambda line: None
    )


class TestScans:
    def test_a_table_names_the_results(self, scans: dict[str, Path], tmp_path: Path) -> None:
        table = tmp_path / "subjects.csv"
        rows = [f"sub-{name},{path},{split}" for (name, path), split in zip(
            scans.items(), ["train", "test", "test", *["validation"] * 4], strict=True
        )]  # fmt: skip
        table.write_text("\n".join(["subject,image,split", *rows]))
        every = scans_of([table], None)
        assert every == [(f"sub-{name}", {"image": path}) for name, path in scans.items()]
        assert scans_of([table], "test") == every[1:3]

    def test_scans_are_called_as_their_files_are(self) -> None:
        given = [Path("a/one.nii.gz"), Path("b/two.T1.nii"), Path("three.mgz")]
        assert [name for name, _ in scans_of(given, None)] == ["one", "two.T1", "three"]

    def test_a_split_needs_a_table(self) -> None:
        with pytest.raises(InputError, match="--split needs a subjects table"):
            scans_of([Path("one.nii"), Path("two.nii")], "test")


def test_a_one_output_network_obeys_the_threshold_and_overwrite_replaces(tmp_path: Path):
    """Its logit is 4 (x - 1/2), so it is above a probability p where x > 1/2 + logit(p) / 4."""
    affine = affine_of("LAS", (24, 24, 24))
    ramp = np.linspace(0, 1, 24**3).reshape(24, 24, 24)
    nib.save(nib.Nifti1Image(ramp.astype(np.float32), affine), tmp_path / "ramp.nii")
    for threshold in (0.3, 0.75):
        spec = dataclasses.replace(
            SPEC,
            arguments={**ARGUMENTS, "outputs": 1},
            output_activation="sigmoid",
            classes=(LabelClass(0, "background"), LabelClass(5, "lesion")),
            contract=dataclasses.replace(SPEC.contract, threshold=threshold),
        )
        write_model(tmp_path / "one", spec, thresholds(1), history={}, overwrite=True)
        given = scans_of([tmp_path / "ramp.nii"], None)
        (output,) = predict_quietly(tmp_path / "one", given, tmp_path / "out", overwrite=True)
        found = np.asanyarray(nib.load(output).dataobj)
        wanted = ramp > 0.5 + np.log(threshold / (1 - threshold)) / 4
        assert 0.1 < wanted.mean() < 0.9
        np.testing.assert_array_equal(found, np.where(wanted, 5, 0))
        (tmp_path / "out" / "notes.txt").write_text("mine")  # stays, whatever is overwritten
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        ".voxtune",
        "classes.csv",
        "notes.txt",
        "ramp.nii.gz",
    }


IMAGE_SPEC = dataclasses.replace(
    SPEC,
    arguments={**ARGUMENTS, "outputs": 1},
    output_activation="linear",
    classes=(),
    contract=Contract("RAS", (1.0, 1.0, 1.0), "zscore", (52, 52, 52)),
)
NEIGHBOURS = ndimage.generate_binary_structure(3, 1) / 7  # a voxel and the six beside it


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that gives an image: 2 * relu(mean of a voxel and its six neighbours) - 1."""
    values = {
        "block1/conv/kernel": NEIGHBOURS.reshape(3, 3, 3, 1, 1),
        "block1/conv/bias": np.zeros(1),
        "head/kernel": np.full((1, 1, 1, 1, 1), 2),
        "head/bias": np.full(1, -1),
    }
    folder = tmp_path_factory.mktemp("models") / "image"
    write_model(
        folder,
        IMAGE_SPEC,
        {path: value.astype(np.float32) for path, value in values.items()},
        history={},
    )
    return folder


@pytest.fixture(scope="module")
def made(image_model: Path, scans: dict[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """The images that three scans were turned into, by name, and what was reported."""
    names, told = ("lia", "sheared", "small"), []
    outputs = predict(
        image_model,
        scans_of([scans[name] for name in names], None),
        image_model.parent / "made",
        overlap=0,
        overwrite=False,
        report=told.append,
    )
    return dict(zip(names, outputs, strict=True)), told


class TestImages:
    @pytest.mark.parametrize("name", ["lia", "sheared"])
    def test_they_lie_on_the_scans_grid(
        self, scans: dict[str, Path], made: tuple[dict[str, Path], list[str]], name: str
    ) -> None:
        """The block holds the whole volume."""
        scan = load_image(scans[name])
        grid = conform(scan, "RAS", (1.0, 1.0, 1.0), "linear")
        assert grid.exact == (name == "lia")
        padded, inside = pad_to_block((grid.data - grid.data.mean()) / grid.data.std(), (52,) * 3)
        mean = ndimage.convolve(padded, NEIGHBOURS, mode="constant")[inside]
        image = nib.Nifti1Image(2 * np.maximum(mean, 0) - 1, grid.affine)
        wanted = nibabel.processing.resample_from_to(
            image, (scan.data.shape, scan.affine), order=1, mode="nearest"
        )
        found = nib.load(made[0][name])
        assert found.get_data_dtype() == np.float32
        np.testing.assert_array_equal(found.affine, nib.load(scans[name]).affine)
        np.testing.assert_allclose(found.get_fdata(), wanted.get_fdata(), atol=1e-4)
        assert np.ptp(wanted.get_fdata()) > 2

    def test_no_names_of_classes_are_written(self, made: tuple[dict[str, Path], list[str]]) -> None:
        files = {path.name for path in made[0]["lia"].parent.iterdir()}
        assert files == {".voxtune", "lia.nii.gz", "sheared.nii.gz", "small.nii.gz"}

    def test_what_is_reported_is_the_range(self, made: tuple[dict[str, Path], list[str]]) -> None:
        for output, line in zip(made[0].values(), made[1], strict=True):
            data = nib.load(output).get_fdata()
            assert line == f"{output}  values from {data.min():.4g} to {data.max():.4g}"

    def test_blocks_are_blended(self, scans: dict[str, Path], tmp_path: Path) -> None:
        """A network that looks at one voxel gives the same for it in each block: 4 x - 2."""
        contract = dataclasses.replace(SPEC.contract, block=(16, 24, 20))
        spec = dataclasses.replace(IMAGE_SPEC, contract=contract)
        write_model(tmp_path / "model", spec, thresholds(1), history={})
        given = scans_of([scans["lia"]], None)
        (output,) = predict_quietly(tmp_path / "model", given, tmp_path / "out")
        brightness = nib.load(scans["lia"]).get_fdata()
        np.testing.assert_allclose(nib.load(output).get_fdata(), 4 * brightness - 2, atol=1e-5)

    def test_several_outputs_that_are_no_classes_are_refused(
        self, scans: dict[str, Path], tmp_path: Path
    ) -> None:
        spec = dataclasses.replace(IMAGE_SPEC, arguments=ARGUMENTS)
        write_model(tmp_path / "model", spec, thresholds(3), history={})
        with pytest.raises(InputError, match="no classes that exclude each other, and no image"):
            predict_quietly(tmp_path / "model", scans_of([scans["ras"]], None), tmp_path / "out")
