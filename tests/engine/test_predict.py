"""From scans to labels on their own grids, with networks whose weights are set by hand."""

import dataclasses
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest
from scipy import ndimage

from voxtune.engine import scan_grid
from voxtune.engine.config import Segmenting
from voxtune.engine.conform import conform
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec, write_model
from voxtune.engine.predict import Model, load_model
from voxtune.engine.preprocessing import network_image, pad_to_block
from voxtune.engine.volume import from_nibabel, load_image
from voxtune.models.errors import InputError
from voxtune.models.parameters import shapes

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


def labels_of(scan: Path) -> np.ndarray:
    name = scan.name.split(".")[0]
    return np.asanyarray(nib.load(scan.with_name(f"{name}_label.nii")).dataobj)


def centroid(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """In mm."""
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


ONE = Segmenting(mesh="data=1")


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Model:
    return load_model(model_dir, options=ONE)


@pytest.fixture(scope="module")
def segmented(model: Model, scans: dict[str, Path]) -> dict[str, nib.Nifti1Image]:
    """What all scans were segmented as, by name."""
    return {name: model.predict(nib.load(path)) for name, path in scans.items()}


def voxels(image: nib.Nifti1Image) -> np.ndarray:
    return np.asanyarray(image.dataobj)


class TestGrids:
    @pytest.mark.parametrize("name", GRIDS)
    def test_the_result_lies_on_the_scans_very_grid(
        self, scans: dict[str, Path], segmented: dict[str, nib.Nifti1Image], name: str
    ) -> None:
        scan, found = nib.load(scans[name]), segmented[name]
        assert found.shape == scan.shape
        np.testing.assert_array_equal(found.affine, scan.affine)
        for field in ("qform_code", "sform_code", "pixdim", "xyzt_units", "srow_x", "quatern_b"):
            np.testing.assert_array_equal(found.header[field], scan.header[field])
        assert found.get_data_dtype() == np.uint8

    @pytest.mark.parametrize(
        ("kind", "unit", "scale"),
        [
            (nib.Nifti1Image, "meter", 1e-3),
            (nib.Nifti1Image, "micron", 1e3),
            (nib.Nifti2Image, "mm", 1.0),
        ],
    )
    def test_it_keeps_units_codes_and_version(
        self, model: Model, tmp_path: Path, kind: Any, unit: str, scale: float
    ) -> None:
        affine = np.diag([scale] * 3 + [1]) @ affine_of("LIA", RAMP.shape)
        scan = kind(RAMP, affine)
        scan.set_sform(affine, code=4)
        scan.set_qform(affine, code=2)
        scan.header.set_xyzt_units(unit, "sec")
        nib.save(scan, tmp_path / "scan.nii")
        found = model.predict(nib.load(tmp_path / "scan.nii"))
        nib.save(found, tmp_path / "found.nii")
        wanted, saved = (nib.load(tmp_path / name) for name in ("scan.nii", "found.nii"))
        assert type(found) is type(saved) is kind
        for each in (found, saved):
            np.testing.assert_array_equal(each.affine, wanted.affine)
            for form in ("get_sform", "get_qform"):
                (kept, code), (form_of, wanted_code) = (
                    getattr(image, form)(coded=True) for image in (each, wanted)
                )
                np.testing.assert_array_equal(kept, form_of)
                assert code == wanted_code
            assert each.header.get_xyzt_units() == (unit, "sec")

    @pytest.mark.parametrize("name", ["ras", "lia", "psr", "bigendian", "small"])
    def test_reoriented_scans_are_labelled_to_the_voxel(
        self, scans: dict[str, Path], segmented: dict[str, nib.Nifti1Image], name: str
    ) -> None:
        found = voxels(segmented[name])
        np.testing.assert_array_equal(found, labels_of(scans[name]))
        assert set(np.unique(found)) == {0, 17, 53}

    @pytest.mark.parametrize("name", ["sheared", "coarse"])
    def test_resampled_scans_show_the_same_anatomy(
        self, scans: dict[str, Path], segmented: dict[str, nib.Nifti1Image], name: str
    ) -> None:
        found, truth = voxels(segmented[name]), labels_of(scans[name])
        assert dice(found > 0, truth > 0) > 0.9
        assert dice(found == 53, truth == 53) > 0.9

    @pytest.mark.parametrize("name", [name for name in GRIDS if name != "small"])
    def test_the_head_is_where_it_is_in_the_world(
        self, segmented: dict[str, nib.Nifti1Image], name: str
    ) -> None:
        """Its middle in mm, whatever the grid; half a voxel of the coarsest is 1 mm."""
        image = segmented[name]
        found = voxels(image)
        assert np.linalg.norm(centroid(found == 53, image.affine) - (6, -1, 4)) < 0.5
        assert np.linalg.norm(centroid(found > 0, image.affine) - (3, -2, 5)) < 1

    @pytest.mark.parametrize("orientation", ["LPI", "SAR", "IRP"])
    def test_a_reoriented_copy_is_segmented_alike(
        self,
        model: Model,
        scans: dict[str, Path],
        segmented: dict[str, nib.Nifti1Image],
        orientation: str,
    ) -> None:
        scan = nib.load(scans["ras"])
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(scan.affine), nib.orientations.axcodes2ornt(orientation)
        )
        found = model.predict(scan.as_reoriented(turn))
        wanted = segmented["ras"].as_reoriented(turn)
        np.testing.assert_array_equal(voxels(found), voxels(wanted))

    def test_a_resampled_copy_is_segmented_nearly_alike(
        self, model: Model, scans: dict[str, Path], segmented: dict[str, nib.Nifti1Image]
    ) -> None:
        """At 0.8 x 0.8 x 1.2 mm, and its labels back on the scan's grid."""
        scan = nib.load(scans["ras"])
        sizes = (0.8, 0.8, 1.2)
        copy = nibabel.processing.resample_to_output(scan, sizes, order=1)
        assert copy.shape != scan.shape
        back = nibabel.processing.resample_from_to(model.predict(copy), scan, order=0)
        found, wanted = voxels(back), voxels(segmented["ras"])
        assert dice(found > 0, wanted > 0) > 0.95
        assert dice(found == 53, wanted == 53) > 0.9

    def test_what_the_grid_cuts_off_is_background(
        self, scans: dict[str, Path], tmp_path: Path
    ) -> None:
        """Of 34 x 36 x 38 voxels the middle 26 x 40 x 24 is looked at."""
        contract = dataclasses.replace(SPEC.contract, grid=(26, 40, 24))
        spec = dataclasses.replace(SPEC, contract=contract)
        write_model(tmp_path / "model", spec, thresholds(3), history={})
        found = load_model(tmp_path / "model", options=ONE).predict(nib.load(scans["ras"]))
        label = labels_of(scans["ras"])
        inside = np.zeros(label.shape, bool)
        inside[4:30, :, 7:31] = True
        np.testing.assert_array_equal(voxels(found), np.where(inside, label, 0))
        assert label[~inside].any()

    def test_on_the_conformed_grid(self, model: Model, scans: dict[str, Path]) -> None:
        scan = nib.load(scans["lia"])
        conformed = dataclasses.replace(model, on_scan_grid=False, maps=("probabilities",))
        found, result = conformed.predict(scan), conformed.segment(scan)
        canonical = nib.as_closest_canonical(nib.Nifti1Image(labels_of(scans["lia"]), scan.affine))
        np.testing.assert_array_equal(voxels(found), voxels(canonical))
        np.testing.assert_allclose(found.affine, canonical.affine)
        np.testing.assert_array_equal(result.data, voxels(found))
        assert result.maps["probabilities"].shape == (*found.shape, 3)


class TestPython:
    def test_the_scan_stays_as_it_is_and_its_kind_does_not_matter(
        self, model: Model, scans: dict[str, Path], segmented: dict[str, nib.Nifti1Image]
    ) -> None:
        scan = nib.load(scans["ras"])
        data, affine = scan.get_fdata(dtype=np.float32), scan.affine
        before = data.copy()
        for made in (nib.Nifti1Image(data, affine), nib.MGHImage(data, affine)):
            found = model.predict(made)
            assert isinstance(found, nib.Nifti1Image)
            np.testing.assert_array_equal(voxels(found), voxels(segmented["ras"]))
            np.testing.assert_allclose(found.affine, affine)
            np.testing.assert_array_equal(data, before)

    def test_maps_lie_on_the_scans_grid(self, lesion_dir: Path, scans: dict[str, Path]) -> None:
        options = dataclasses.replace(ONE, flip="left-right")
        model = load_model(
            lesion_dir, options=options, maps=("probabilities", "entropy", "variance")
        )
        result = model.segment(nib.load(scans["sheared"]))
        shape = labels_of(scans["sheared"]).shape
        found = result.maps["probabilities"]
        assert (found.shape, found.dtype) == ((*shape, 2), np.float32)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(result.data, np.where(found[..., 1] > 0.3, 5, 0))
        assert 0.01 < (result.data > 0).mean() < 0.5
        assert result.maps["entropy"].shape == result.maps["variance"].shape == shape
        assert 0.3 < result.maps["entropy"].min() < result.maps["entropy"].max() < np.log(2) + 1e-5
        # The network looks at one voxel, so mirrored passes are the same but for rounding.
        np.testing.assert_allclose(result.maps["variance"], 0, atol=1e-6)
        np.testing.assert_allclose(result.highest, found.max((0, 1, 2)), atol=0.01)

    def test_values_take_the_smallest_type(self, scans: dict[str, Path], tmp_path: Path) -> None:
        for value, dtype in ((255, np.uint8), (256, np.uint16)):
            classes = (*SPEC.classes[:2], LabelClass(value, "core"))
            spec = dataclasses.replace(SPEC, classes=classes)
            write_model(tmp_path / "model", spec, thresholds(3), history={}, overwrite=True)
            model = load_model(tmp_path / "model", options=ONE)
            found = model.segment(nib.load(scans["small"])).data
            assert found.dtype == dtype
            assert found.max() == value

    def test_several_channels_in_their_order(self, tmp_path: Path) -> None:
        """The logit is 4 relu(t1 - t2) - 2: a lesion is where t1 - t2 is above 1/2."""
        kernel = np.zeros((3, 3, 3, 2, 1), np.float32)
        kernel[1, 1, 1, :, 0] = (1, -1)
        values = {
            "block1/conv/kernel": kernel,
            "block1/conv/bias": np.zeros(1, np.float32),
            "head/kernel": np.full((1, 1, 1, 1, 1), 4, np.float32),
            "head/bias": np.full(1, -2, np.float32),
        }
        contract = Contract("RAS", None, "minmax", (8, 8, 8), channels=("t1", "t2"))
        spec = dataclasses.replace(
            LESION, arguments={**LESION.arguments, "channels": 2}, contract=contract
        )
        write_model(tmp_path / "model", spec, values, history={})
        model = load_model(tmp_path / "model", options=ONE)
        images = np.random.default_rng(0).random((2, 8, 8, 8)).astype(np.float32)
        images[:, 0, 0, :2] = 0, 1  # their range
        t1, t2 = (nib.Nifti1Image(100 * each - 50, np.eye(4)) for each in images)
        wanted = images[0] - images[1] > 0.5
        np.testing.assert_array_equal(voxels(model.predict(t1, t2)), np.where(wanted, 5, 0))
        with pytest.raises(InputError, match="2 channels, but 1 images were given"):
            model.predict(t1)
        with pytest.raises(InputError, match="has the affine"):
            model.predict(t1, nib.Nifti1Image(images[1], np.diag([2, 1, 1, 1])))

    def test_what_is_no_scan_is_refused(self, model: Model, tmp_path: Path) -> None:
        for bad, what in (("scan.nii.gz", "str"), (RAMP, "ndarray"), (Path("a.nii"), "PosixPath")):
            with pytest.raises(InputError, match=f"A {what} without affine is no scan"):
                model.predict(bad)
        with pytest.raises(InputError, match="A Nifti1Image without affine is no scan"):
            model.predict(nib.Nifti1Image(RAMP, None))
        nib.save(nib.Nifti1Image(RAMP, np.eye(4)), tmp_path / "cut.nii")
        whole = (tmp_path / "cut.nii").read_bytes()
        (tmp_path / "cut.nii").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=r"cut\.nii cannot be read"):
            model.predict(nib.load(tmp_path / "cut.nii"))

    def test_lists_and_strings_are_options_too(self, lesion_dir: Path) -> None:
        block: Any = [24, 24, 24]
        ensemble: Any = [str(lesion_dir)]
        model = load_model(
            lesion_dir, options=dataclasses.replace(ONE, block=block, ensemble=ensemble)
        )
        assert (model.predict(nib.Nifti1Image(RAMP, np.eye(4))).get_fdata() > 0).any()
        assert len(model.members) == 2

    def test_classes_do_not_cost_host_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of 18 classes, nothing is as large as twice what the network is shown.

        Beside that some memory is taken whatever the scan: of a smaller one it would be too large
        a share.
        """
        monkeypatch.setattr(scan_grid, "_LOOKED_UP", 2**13)  # which take memory of their own,
        monkeypatch.setattr(scan_grid, "_INTERPOLATED", 2**11)  # whatever the scan
        edge = 64
        arguments = {**ARGUMENTS, "outputs": 18, "filters": 8}
        rng = np.random.default_rng(0)
        values = {
            path: rng.normal(size=shape).astype(np.float32)
            for path, shape in shapes("meshnet", arguments).items()
        }
        classes = tuple(LabelClass(value, str(value)) for value in range(18))
        spec = dataclasses.replace(
            SPEC,
            arguments=arguments,
            classes=classes,
            contract=dataclasses.replace(SPEC.contract, block=(32, 32, 32)),
        )
        write_model(tmp_path / "model", spec, values, history={})
        model = load_model(tmp_path / "model", options=ONE)
        data = ndimage.gaussian_filter(rng.random((edge,) * 3).astype(np.float32), 3)
        turned = np.eye(4)
        turned[:2, :2] = [[0.995, -0.1], [0.1, 0.995]]
        for affine in (np.diag([-1.0, 1, 1, 1]), turned):
            scan = from_nibabel(nib.Nifti1Image(data, affine))
            image, grid = network_image([scan], spec.contract)
            model(image, grid)  # compiles, which is not counted
            tracemalloc.start()
            result = model(image, grid)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert len(np.unique(result.data)) > 3
            assert peak < 1.5 * image.nbytes


LESION = dataclasses.replace(
    SPEC,
    arguments={**ARGUMENTS, "outputs": 1},
    output_activation="sigmoid",
    classes=(LabelClass(0, "background"), LabelClass(5, "lesion")),
)
RAMP = np.linspace(0, 1, 24**3).reshape(24, 24, 24).astype(np.float32)


@pytest.fixture(scope="module")
def lesion_dir(model_dir: Path) -> Path:
    """A network of one class, whose logit is 4 (x - 1/2)."""
    folder = model_dir.parent / "lesion"
    spec = dataclasses.replace(LESION, contract=dataclasses.replace(SPEC.contract, threshold=0.3))
    write_model(folder, spec, thresholds(1), history={})
    return folder


@pytest.mark.parametrize(("given", "used"), [(None, 0.3), (0.75, 0.75)])
def test_the_threshold_is_the_contracts_or_the_one_that_is_given(
    lesion_dir: Path, given: float | None, used: float
) -> None:
    """The probability is above p where x > 1/2 + logit(p) / 4."""
    model = load_model(lesion_dir, options=ONE, threshold=given)
    found = voxels(model.predict(nib.Nifti1Image(RAMP, affine_of("LAS", (24, 24, 24)))))
    wanted = 0.5 + np.log(used / (1 - used)) / 4 < RAMP
    assert 0.1 < wanted.mean() < 0.9
    np.testing.assert_array_equal(found, np.where(wanted, 5, 0))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "others", "sentence"),
        [
            ({"overlap": 1.0}, {}, "--overlap 1.0"),
            ({"overlap": float("nan")}, {}, "--overlap nan"),
            ({"samples": -1}, {}, "--samples -1"),
            ({"samples": 2}, {}, "in which nothing is"),
            ({"seed": -1}, {}, "--seed -1 is not from 0 to"),
            ({"seed": 2**63}, {}, "--seed 9223372036854775808 is not from 0 to"),
            ({"block": (0, 8, 8)}, {}, "--block 0 8 8 does not suit"),
            ({"block": (8, 8)}, {}, r"--block \(8, 8\) is no shape"),
            ({"block": "half"}, {}, "--block half is no shape"),
            ({"flip": "al"}, {}, "--flip al is not one of none, left-right, all"),
            ({"mesh": "data=1,spatial=8", "block": (20, 8, 8)}, {}, "20 slices cannot be split"),
            ({"swap": ("17=53",)}, {}, "--swap is for flips"),
            ({"flip": "all", "swap": ("1=2",)}, {}, "there is no 1"),
            ({}, {"maps": ("variance",)}, "--maps variance is over several passes"),
            ({}, {"maps": ("entropy", "foo")}, "--maps foo is no list of names of maps"),
            ({}, {"maps": "entropy"}, "--maps entropy is no list of names .* maps=\\("),
            ({}, {"threshold": 0.5}, "--threshold is for models of one class"),
        ],
    )
    def test_options_that_do_not_suit_the_model(
        self, model_dir: Path, options: dict[str, Any], others: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises(InputError, match=sentence):
            load_model(model_dir, options=dataclasses.replace(ONE, **options), **others)

    def test_a_threshold_that_is_no_probability(self, lesion_dir: Path) -> None:
        with pytest.raises(InputError, match=r"--threshold 1\.5 is no probability"):
            load_model(lesion_dir, threshold=1.5)

    def test_sides_are_not_mixed(self, tmp_path: Path) -> None:
        """Without --swap; flips along other axes are along that one too."""
        classes = (SPEC.classes[0], LabelClass(1, "left lobe"), LabelClass(2, "right lobe"))
        spec = dataclasses.replace(SPEC, classes=classes)
        write_model(tmp_path / "model", spec, thresholds(3), history={})
        load_model(tmp_path / "model", options=ONE)
        for flip in ("left-right", "all"):
            options = dataclasses.replace(ONE, flip=flip)
            with pytest.raises(InputError, match=r"^The classes 1 left lobe and 2 right lobe look"):
                load_model(tmp_path / "model", options=options)
            load_model(tmp_path / "model", options=dataclasses.replace(options, swap=("1=2",)))

    def test_a_network_of_fixed_blocks_takes_no_other(self, tmp_path: Path) -> None:
        arguments = {
            "channels": 1, "outputs": 2, "size": [16, 16, 16], "width": 4, "blocks": 2, "heads": 2,
            "patch": 4, "mlp": 4, "filters": 2,
        }  # fmt: skip
        write_random(tmp_path / "model", "unetr", arguments)
        for block, sentence in (((32, 16, 16), "--block 32 16 16"), ("full", "--block full")):
            with pytest.raises(InputError, match=f"{sentence} does not suit .*16 16 16; "):
                load_model(tmp_path / "model", options=dataclasses.replace(ONE, block=block))

    def test_a_network_that_drops_may_be_drawn_of(self, tmp_path: Path) -> None:
        arguments = {**ARGUMENTS, "outputs": 2, "dropout": 0.5, "filters": 8}
        write_random(tmp_path / "model", "meshnet", arguments)
        options = dataclasses.replace(ONE, samples=3)
        model = load_model(tmp_path / "model", options=options, maps=("variance",))
        scan = nib.Nifti1Image(RAMP, np.eye(4))
        found = [model.segment(scan) for _ in range(2)]
        assert found[0].maps["variance"].max() > 1e-4
        np.testing.assert_array_equal(found[0].maps["variance"], found[1].maps["variance"])


def write_random(folder: Path, family: str, arguments: Mapping[str, Any]) -> None:
    """A model directory of two classes with random weights, for blocks of 16 voxels."""
    rng = np.random.default_rng(0)
    values = {
        path: rng.normal(size=shape).astype(np.float32)
        for path, shape in shapes(family, arguments).items()
    }
    contract = dataclasses.replace(SPEC.contract, block=(16, 16, 16))
    spec = ModelSpec(family, arguments, "softmax", LESION.classes, contract)
    write_model(folder, spec, values, history={})


class TestEnsemble:
    def test_probabilities_are_averaged(self, lesion_dir: Path, tmp_path: Path) -> None:
        """Logits 4 (x - 1/2) and their negative: the mean is 1/2 everywhere."""
        values = thresholds(1)
        values["head/kernel"], values["head/bias"] = -values["head/kernel"], -values["head/bias"]
        other = dataclasses.replace(
            LESION, contract=dataclasses.replace(SPEC.contract, block=(8, 8, 8), threshold=0.9)
        )
        write_model(tmp_path / "other", other, values, history={})
        options = dataclasses.replace(ONE, ensemble=(tmp_path / "other",))
        model = load_model(lesion_dir, options=options, maps=("probabilities", "variance"))
        found = model.segment(nib.Nifti1Image(RAMP, affine_of("RAS", (24, 24, 24))))
        np.testing.assert_allclose(found.maps["probabilities"], 0.5, atol=1e-6)
        one = 1 / (1 + np.exp(-4 * (RAMP - 0.5)))
        np.testing.assert_allclose(found.maps["variance"], 2 * (one - 0.5) ** 2, atol=1e-6)
        assert (found.data == 5).all()  # above 0.3, the first one's threshold
        assert found.notes == (
            "the ensemble's models have the thresholds 0.3, 0.9; the first one's was used",
        )
        assert load_model(lesion_dir, options=options, threshold=0.5).notes == ()
        assert load_model(lesion_dir, options=ONE).notes == ()

    @pytest.mark.parametrize(
        ("changes", "what"),
        [
            ({"classes": (LabelClass(0, "background"), LabelClass(6, "lesion"))}, "classes;"),
            ({"classes": (LabelClass(0, "background"), LabelClass(5, "tumour"))}, "classes;"),
            ({"contract": {"spacing_mm": (1.0, 1.0, 2.0)}}, "spacing_mm;"),
            ({"contract": {"intensity": "zscore", "orientation": "LIA"}}, "orientation, intensity"),
            ({"contract": {"channels": ("flair",)}}, "channels;"),
            ({"arguments": {**LESION.arguments, "channels": 2}}, "number of channels;"),
        ],
    )
    def test_members_that_differ_are_refused(
        self, lesion_dir: Path, tmp_path: Path, changes: dict[str, Any], what: str
    ) -> None:
        if "contract" in changes:
            contract = dataclasses.replace(SPEC.contract, **changes["contract"])
            changes = {"contract": contract}
        spec = dataclasses.replace(LESION, **changes)
        values = {
            path: np.zeros(shape, np.float32)
            for path, shape in shapes("meshnet", spec.arguments).items()
        }
        write_model(tmp_path / "other", spec, values, history={})
        options = dataclasses.replace(ONE, ensemble=(tmp_path / "other",))
        with pytest.raises(InputError, match=f"other cannot be averaged .* they differ in {what}"):
            load_model(lesion_dir, options=options)


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


class TestImages:
    @pytest.fixture(scope="class")
    @classmethod
    def images(cls, image_model: Path) -> Model:
        return load_model(image_model, options=dataclasses.replace(ONE, overlap=0.0))

    @pytest.mark.parametrize("name", ["lia", "sheared"])
    def test_they_lie_on_the_scans_grid(
        self, images: Model, scans: dict[str, Path], name: str
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
        found = images.predict(nib.load(scans[name]))
        assert found.get_data_dtype() == np.float32
        np.testing.assert_array_equal(found.affine, nib.load(scans[name]).affine)
        np.testing.assert_allclose(found.get_fdata(), wanted.get_fdata(), atol=1e-4)
        assert np.ptp(wanted.get_fdata()) > 2

    def test_blocks_are_blended(self, scans: dict[str, Path], tmp_path: Path) -> None:
        """A network that looks at one voxel gives the same for it in each block: 4 x - 2."""
        contract = dataclasses.replace(SPEC.contract, block=(16, 24, 20))
        spec = dataclasses.replace(IMAGE_SPEC, contract=contract)
        write_model(tmp_path / "model", spec, thresholds(1), history={})
        scan = nib.load(scans["lia"])
        result = load_model(tmp_path / "model", options=ONE).segment(scan)
        np.testing.assert_allclose(result.data, 4 * scan.get_fdata() - 2, atol=1e-5)
        assert result.highest == pytest.approx([2.0], abs=1e-5)

    def test_several_outputs_that_are_no_classes_are_refused(self, tmp_path: Path) -> None:
        spec = dataclasses.replace(IMAGE_SPEC, arguments=ARGUMENTS)
        write_model(tmp_path / "model", spec, thresholds(3), history={})
        with pytest.raises(InputError, match="no classes that exclude each other, and no image"):
            load_model(tmp_path / "model")

    @pytest.mark.parametrize(
        "options", [{"maps": ("entropy",)}, {"maps": ("probabilities",)}, {"threshold": 0.5}]
    )
    def test_they_have_no_classes(self, image_model: Path, options: dict[str, Any]) -> None:
        ((name, value),) = options.items()
        said = f"--{name} {value[0] if name == 'maps' else value}"
        with pytest.raises(InputError, match=f"gives an image, not classes; leave out {said}"):
            load_model(image_model, **options)
