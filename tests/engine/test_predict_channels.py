"""Scans of several channels, with a network that finds a lesion where t1 - t2 is above 1/2."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from voxtune.engine.config import Predict
from voxtune.engine.contract import Contract
from voxtune.engine.job import predict
from voxtune.engine.model_dir import LabelClass, ModelSpec, write_model
from voxtune.models.errors import InputError

SHAPE = (8, 8, 8)
LAS = np.array([[-1, 0, 0, 8], [0, 1, 0, -5], [0, 0, 1, 0], [0, 0, 0, 1.0]])
SPEC = ModelSpec(
    family="meshnet",
    arguments={
        "channels": 2,
        "outputs": 1,
        "filters": 1,
        "dilations": [1],
        "activation": "relu",
        "norm": None,
    },
    output_activation="sigmoid",
    classes=(LabelClass(0, "background"), LabelClass(5, "lesion")),
    contract=Contract("RAS", None, "minmax", SHAPE, 0.5, channels=("t1", "t2")),
)


def segment(model: Path, scans: list[Path], folder: Path) -> bool:
    return predict(Predict(model_dir=model, scans=tuple(scans), output=folder), Console())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its logit is 4 relu(t1 - t2) - 2."""
    kernel = np.zeros((3, 3, 3, 2, 1))
    kernel[1, 1, 1, :, 0] = (1, -1)
    values = {
        "block1/conv/kernel": kernel,
        "block1/conv/bias": np.zeros(1),
        "head/kernel": np.full((1, 1, 1, 1, 1), 4),
        "head/bias": np.full(1, -2),
    }
    folder = tmp_path_factory.mktemp("models") / "difference"
    parameters = {path: value.astype(np.float32) for path, value in values.items()}
    write_model(folder, SPEC, parameters, history={})
    return folder


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    """By channel, from 0 to 1 each."""
    found = {}
    for seed, name in enumerate(("t1", "t2")):
        data = np.random.default_rng(seed).random(SHAPE)
        found[name] = ((data - data.min()) / np.ptp(data)).astype(np.float32)
    return found


@pytest.fixture
def folder(images: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """Where t1.nii and t2.nii are, with 100 times the brightness less 50."""
    for name, data in images.items():
        nib.save(nib.Nifti1Image(100 * data - 50, LAS), tmp_path / f"{name}.nii")
    return tmp_path


def listed(folder: Path, *channels: str) -> Path:
    """A table with a column for each channel; t1.nii is pd too."""
    path = folder / "subjects.csv"
    header = ",".join(f"image_{name}" for name in channels)
    cells = ",".join("t1.nii" if name == "pd" else f"{name}.nii" for name in channels)
    path.write_text(f"subject,{header}\none,{cells}\n")
    return path


@pytest.mark.parametrize("columns", [("t1", "t2"), ("t2", "pd", "t1")])
def test_they_are_taken_by_name(
    model: Path, images: dict[str, np.ndarray], folder: Path, columns: tuple[str, ...]
) -> None:
    """Whatever the order of a table's columns, and whatever else it has."""
    wanted = images["t1"] - images["t2"] > 0.5
    assert 0.05 < wanted.mean() < 0.3
    assert segment(model, [listed(folder, *columns)], folder / "out")
    found = nib.load(folder / "out" / "one.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), np.where(wanted, 5, 0))
    np.testing.assert_array_equal(found.affine, LAS)


@pytest.mark.parametrize("columns", [("t1",), ("t1", "pd")])
def test_one_that_is_missing_is_named(model: Path, folder: Path, columns: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"channels t1, t2, .* have no image_t2;"):
        segment(model, [listed(folder, *columns)], folder / "out")
    assert not (folder / "out").exists()


def test_a_bare_scan_is_answered_with_the_columns_of_a_table(model: Path, folder: Path) -> None:
    given = [folder / "t1.nii", folder / "t2.nii"]
    with pytest.raises(InputError, match=r"2 channels.* table with .* image_t1, image_t2"):
        segment(model, given, folder / "out")


def test_two_grids_are_a_failure_of_that_scan(
    model: Path, images: dict[str, np.ndarray], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nib.save(nib.Nifti1Image(images["t2"], np.eye(4)), folder / "t2.nii")
    assert not segment(model, [listed(folder, "t1", "t2")], folder / "out")
    said = capsys.readouterr().out.replace("\n", " ")
    assert "1 failed" in said
    assert "t2.nii has the affine" in said
