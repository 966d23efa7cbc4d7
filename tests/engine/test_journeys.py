"""From a model directory and a table to predictions, for each kind of task that there is."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from voxtune.engine.cli import main
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec, read_model, write_model
from voxtune.models.families import complete
from voxtune.models.parameters import shapes

EDGE = 8
QUICK = ("--steps", "3", "--warmup", "0", "--validate-every", "3", "--mesh", "data=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of one channel and one sigmoid class; scans with labels 0, 1, 2 and 9."""
    folder = tmp_path_factory.mktemp("journeys")
    rng = np.random.default_rng(0)
    small: Any = {"channels": 1, "outputs": 1, "filters": 2, "dilations": [1], "norm": None}
    arguments = complete("meshnet", small)
    values = {
        path: rng.normal(size=shape).astype(np.float32)
        for path, shape in shapes("meshnet", arguments).items()
    }
    contract = Contract("RAS", (1.0, 1.0, 1.0), "zscore", (EDGE,) * 3, 0.3)
    classes = (LabelClass(0, "background"), LabelClass(1, "brain"))
    spec = ModelSpec("meshnet", arguments, "sigmoid", classes, contract)
    write_model(folder / "model", spec, values, history={})
    for subject in "abc":
        image = rng.normal(size=(EDGE,) * 3).astype(np.float32)
        label = np.digitize(image, [0.5, 1.5]).astype(np.uint8)
        label[0] = 9
        pair = {"t1": image, "flair": 100 - image, "label": label}
        for name, data in pair.items():
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{subject}_{name}.nii")
    splits = {"a": "train", "b": "train", "c": "validation"}
    columns = {
        "one.csv": ("image,label", "{0}_t1.nii,{0}_label.nii"),
        "two.csv": ("image_t1,image_flair,label", "{0}_t1.nii,{0}_flair.nii,{0}_label.nii"),
        "target.csv": ("image,label", "{0}_t1.nii,{0}_flair.nii"),
    }
    for name, (header, cells) in columns.items():
        rows = [f"{subject},{cells.format(subject)},{split}" for subject, split in splits.items()]
        (folder / name).write_text("\n".join([f"subject,{header},split", *rows]))
    return folder


def journey(
    folder: Path, name: str, table: str, *options: str
) -> tuple[ModelSpec, nib.Nifti1Image]:
    """Fine-tunes and predicts the scan that was held out."""
    run, out = folder / name, folder / f"{name}_predicted"
    given = [folder / "model", folder / table, run, *QUICK, *options]
    assert main(["finetune", *map(str, given)]) == 0
    scans = [run / "model", folder / table, "-o", out, "--split", "validation"]
    assert main(["predict", *map(str, scans)]) == 0
    return read_model(run / "model")[0], nib.load(out / "c.nii.gz")


def test_more_channels_and_more_classes(folder: Path) -> None:
    spec, found = journey(
        folder, "more", "two.csv", "--head", "extend", "--ignore-label", "9", "--ema", "0.5"
    )
    assert (spec.channels, spec.contract.channels) == (2, ("t1", "flair"))
    assert [each.value for each in spec.classes] == [0, 1, 2]
    assert set(np.unique(np.asanyarray(found.dataobj))) <= {0, 1, 2}


def test_one_class_by_a_sigmoid_and_the_guides_recipe(folder: Path) -> None:
    options = ("--recipe", "nobrainer", "--labels", "0=air", "1=brain", "--ignore-label", "9")
    label = nib.load(folder / "a_label.nii")
    for subject in "abc":
        data = np.minimum(np.asanyarray(nib.load(folder / f"{subject}_label.nii").dataobj), 9)
        nib.save(
            nib.Nifti1Image(np.where(data == 2, 1, data), label.affine),
            folder / f"{subject}_one.nii",
        )
    (folder / "kept.csv").write_text((folder / "one.csv").read_text().replace("_label", "_one"))
    spec, found = journey(folder, "kept", "kept.csv", *options)
    assert (spec.output_activation, spec.arguments["outputs"]) == ("sigmoid", 1)
    assert [each.name for each in spec.classes] == ["air", "brain"]
    assert set(np.unique(np.asanyarray(found.dataobj))) <= {0, 1}


def test_an_image(folder: Path) -> None:
    spec, found = journey(folder, "image", "target.csv", "--loss", "mean_absolute_error")
    assert (spec.classes, spec.output_activation) == ((), "linear")
    assert found.get_data_dtype() == np.float32
    assert np.unique(np.asanyarray(found.dataobj)).size > 100


def test_weights_of_another_network(folder: Path) -> None:
    options = ("--init-from", str(folder / "model"), "--rename", "head=", "--freeze-until", "head")
    journey(folder, "other", "one.csv", *options)
    before, after = (read_model(folder / name)[1] for name in ("model", "other/model"))
    for path in ("block1/conv/kernel", "block1/conv/bias"):
        np.testing.assert_array_equal(after[path], before[path])
