"""What the tests of the engine share: made volumes, and for the command a model and its table."""

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxtune.engine.cli import main
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec, write_model
from voxtune.engine.volume import Volume
from voxtune.models.parameters import shapes

RNG = np.random.default_rng(0)
SHAPE = (8, 8, 8)


# Volumes


@pytest.fixture
def oriented_affine() -> Callable[[str, tuple[float, float, float]], np.ndarray]:
    """Makes an affine with axes in an orientation, by nibabel."""

    def make(orientation: str, spacing: tuple[float, float, float]) -> np.ndarray:
        transform = nib.orientations.axcodes2ornt(orientation)
        affine = np.diag([*spacing, 1.0]) @ np.eye(4)
        affine[:3, :3] = 0
        for axis, (world, sign) in enumerate(transform):
            affine[int(world), axis] = sign * spacing[axis]
        affine[:3, 3] = (-11, 7.5, 3)
        assert "".join(nib.aff2axcodes(affine)) == orientation
        return affine

    return make


@pytest.fixture
def volume() -> Callable[[np.ndarray, np.ndarray], Volume]:
    """Makes a volume of an array and its affine."""

    def make(data: np.ndarray, affine: np.ndarray) -> Volume:
        return Volume(data, affine, Path("made.nii.gz"), nib.Nifti1Header())

    return make


@pytest.fixture
def blob() -> Callable[[tuple[int, ...]], np.ndarray]:
    """Makes two smooth classes, uint8 [D, H, W]."""

    def make(shape: tuple[int, ...]) -> np.ndarray:
        grid = np.indices(shape) / (np.asarray(shape).reshape(3, 1, 1, 1) - 1) - 0.5
        radius = np.sqrt((grid**2).sum(axis=0))
        return np.where(radius < 0.35, np.where(grid[0] < 0.05, 1, 2), 0).astype(np.uint8)

    return make


# The command


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes | None]]:
    """Path → content of everything in a folder, hidden files too."""

    def read(folder: Path) -> dict[str, bytes | None]:
        return {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")
        }

    return read


@pytest.fixture
def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tree: Callable[..., dict]
) -> Callable[..., str]:
    """Runs a command that must be refused; gives its sentence."""

    def run(*arguments: str | Path) -> str:
        before = tree(tmp_path)
        capsys.readouterr()
        assert main([str(each) for each in arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("voxtune: ")
        assert error.endswith("\n")
        assert error.count("\n") == 1
        assert tree(tmp_path) == before
        return error

    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model directories `meshnet` and `unet`, not to be altered."""
    folder = tmp_path_factory.mktemp("models")
    for family, arguments in (
        ("meshnet", {"filters": 1, "dilations": [1], "activation": "relu", "norm": None}),
        ("unet", {"filters": 1, "depth": 1, "norm": None}),
    ):
        arguments = {"channels": 1, "outputs": 2, **arguments}
        classes = (LabelClass(0, "background"), LabelClass(1, "lesion"))
        contract = Contract("RAS", (1.0, 1.0, 1.0), "zscore", SHAPE, 0.5)
        spec = ModelSpec(family, arguments, "softmax", classes, contract)
        values = {
            path: RNG.normal(size=shape).astype(np.float32)
            for path, shape in shapes(family, arguments).items()
        }
        write_model(folder / family, spec, values, history={})
    return folder


@pytest.fixture
def model_dir(models: Path, tmp_path: Path) -> Path:
    """A model directory to be altered."""
    return shutil.copytree(models / "meshnet", tmp_path / "meshnet")


class Scans:
    """A scan's voxels and their labels, an affine that is not the scan's, and writing them."""

    image = RNG.normal(size=SHAPE).astype(np.float32)
    label = (image > 1).astype(np.uint8)
    oblique = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2.5], [0, 0, 0, 1.0]])

    @staticmethod
    def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> None:
        nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)


@pytest.fixture
def scans() -> Scans:
    return Scans()


@pytest.fixture
def table(tmp_path: Path, scans: Scans) -> Path:
    """A subjects table of two: a to train on, b to validate on."""
    for name in "ab":
        scans.save(tmp_path / f"{name}.nii", scans.image)
        scans.save(tmp_path / f"{name}_label.nii", scans.label)
    path = tmp_path / "subjects.csv"
    path.write_text("subject,image,label,split\na,a.nii,a_label.nii,train\n")
    with path.open("a") as stream:
        stream.write("b,b.nii,b_label.nii,validation\n")
    return path


@pytest.fixture
def finetune() -> Callable[..., list[str]]:
    """The command of a run as short as can be, should it not be refused."""

    def command(model_dir: Path, table: Path, *options: str) -> list[str]:
        short = ["--steps", "1", "--warmup", "0", "--mesh", "data=1", "--batch", "1"]
        given = [str(each) for each in (model_dir, table, table.parent / "run")]
        return ["finetune", *given, *short, *options]

    return command
