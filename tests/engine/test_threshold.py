"""The threshold of a network: Dice by threshold, which is chosen, and what is written."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from voxtune.engine.cli import main
from voxtune.engine.config import Threshold
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec, read_model, write_model
from voxtune.engine.predict import load_model
from voxtune.engine.threshold import Curve, choose_threshold, dice_above
from voxtune.models.errors import InputError

QUIET = Console(quiet=True)
EDGE = 16
HUNDREDTHS = [round(number / 100, 2) for number in range(1, 100)]
SPEC = ModelSpec(
    family="meshnet",
    arguments={
        "channels": 1,
        "outputs": 1,
        "filters": 1,
        "dilations": [1],
        "activation": "relu",
        "norm": None,
    },
    output_activation="sigmoid",
    classes=(LabelClass(0, "background"), LabelClass(7, "lesion")),
    contract=Contract("RAS", (1.0, 1.0, 1.0), "none", (EDGE,) * 3, 0.9),
)


def write_network(folder: Path, **changes: Any) -> None:
    """A network that gives the probability sigmoid(4 (x - 1/2)) of brightness x."""
    kernel = np.zeros((3, 3, 3, 1, 1), np.float32)
    kernel[1, 1, 1] = 1
    outputs = max(1, len(changes.get("classes", ())))
    parameters = {
        "block1/conv/kernel": kernel,
        "block1/conv/bias": np.zeros(1, np.float32),
        "head/kernel": np.full((1, 1, 1, 1, outputs), 4, np.float32),
        "head/bias": np.full(outputs, -2, np.float32),
    }
    spec = dataclasses.replace(SPEC, arguments={**SPEC.arguments, "outputs": outputs}, **changes)
    write_model(folder, spec, parameters, history={"finetune": {"train": ["sub-9_ses-1"]}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, and a table of scans; the first two are to validate on, one is resampled."""
    folder = tmp_path_factory.mktemp("threshold")
    write_network(folder / "model")
    rng = np.random.default_rng(0)
    rows = ["subject,image,label,split"]
    for number, split in enumerate(["validation", "validation", "test"]):
        shape = (EDGE, EDGE - 2, EDGE + number)
        away = np.indices(shape) - np.array([7, 6, 8]).reshape(3, 1, 1, 1)
        label = (away**2).sum(axis=0) < 20 + 6 * number
        image = (0.3 * label + rng.uniform(0, 0.4, shape)).astype(np.float32)
        affine = np.diag([-1, 1, 1 + 0.2 * number, 1])
        for name, data in (("image", image), ("label", 7 * label.astype(np.uint8))):
            nib.save(nib.Nifti1Image(data, affine), folder / f"{name}{number}.nii")
        rows.append(f"sub-{number},image{number}.nii,label{number}.nii,{split}")
    (folder / "subjects.csv").write_text("\n".join(rows))
    return folder


def options(folder: Path, **changes: Any) -> Threshold:
    return dataclasses.replace(
        Threshold(folder / "model", folder / "subjects.csv", mesh="data=1"), **changes
    )


def said(config: Threshold) -> str:
    text = io.StringIO()
    choose_threshold(config, Console(file=text, width=120))
    return text.getvalue()


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())


class TestCurve:
    def test_it_is_the_dice_of_each_threshold(self) -> None:
        rng = np.random.default_rng(0)
        truth = rng.random((9, 8, 7)) < 0.2
        probability = np.clip(rng.normal(0.3 + 0.3 * truth, 0.2), 0, 1).astype(np.float32)
        probability[0, 0] = np.float32(0.3)  # not above 0.3
        found = dice_above(probability, truth, HUNDREDTHS)
        wanted = [dice(probability > np.float32(each), truth) for each in HUNDREDTHS]
        np.testing.assert_array_equal(found, wanted)
        assert found.max() > found[0] > 0

    def test_a_class_that_is_nowhere_counts_nothing_where_none_is_predicted(self) -> None:
        probability = np.array([0.1, 0.35], np.float32)
        found = dice_above(probability, np.zeros(2, bool), [0.2, 0.3, 0.4])
        np.testing.assert_array_equal(found, [0, 0, np.nan])
        curve = Curve([0.2, 0.3, 0.4], np.stack([found, np.array([0.8, 0.7, 0.6])]))
        np.testing.assert_allclose(curve.mean, [0.4, 0.35, 0.6])
        assert curve.best == 2

    @pytest.mark.parametrize(
        ("means", "best"),
        [
            ([0.1, 0.5, 0.2], 1),
            ([0.1, 0.5, 0.5, 0.5, 0.2], 2),
            ([0.5, 0.1, 0.5, 0.5, 0.5, np.nan], 3),
            ([0.5, 0.5, 0.1], 0),
        ],
    )
    def test_of_equals_the_middle_is_the_best(self, means: list[float], best: int) -> None:
        assert Curve(HUNDREDTHS[: len(means)], np.array([means])).best == best

    def test_one_at_the_end_of_the_range_is_said(self) -> None:
        inside, end = Curve([0.1, 0.2, 0.3], np.array([[1, 3, 2]]) / 4), [0.1, 0.2, 0.3]
        assert not any("at the end" in line for line in inside.lines(present=2))
        for means in ([3, 2, 1], [1, 2, 3]):
            lines = Curve(end, np.array([means]) / 4).lines(present=1)
            assert any("at the end" in line for line in lines)

    @pytest.mark.parametrize(
        ("present", "words"),
        [(0, "gain over 0.1 is below 0.005"), (1, "model's threshold is"), (2, "")],
    )
    def test_little_gain_is_said(self, present: int, words: str) -> None:
        lines = Curve([0.1, 0.2, 0.3], np.array([[0.5, 0.504, 0.4]])).lines(present)
        assert len(lines) == 1 + bool(words)
        assert words in lines[-1]


class TestChoosing:
    def test_predictions_have_the_dice_that_is_shown(self, folder: Path) -> None:
        text = said(options(folder))
        best = choose_threshold(options(folder), QUIET)
        for threshold in (best, 0.9):
            model = load_model(folder / "model", threshold=threshold)
            found = []
            for number in (0, 1):
                image, label = (
                    nib.load(folder / f"{name}{number}.nii") for name in ("image", "label")
                )
                predicted = np.asarray(model.predict(image).dataobj)
                found.append(dice(predicted == 7, np.asarray(label.dataobj) == 7))
            assert f"{threshold:g}: mean Dice {np.mean(found):.4f} of 2 scans" in text or (
                f"the model's {threshold:g}: {np.mean(found):.4f}" in text
            )
        assert 0.3 < best < 0.6

    def test_nothing_is_written_unless_asked_for(self, folder: Path, tmp_path: Path) -> None:
        before = (folder / "model" / "model.json").read_bytes()
        best = choose_threshold(options(folder), QUIET)
        assert (folder / "model" / "model.json").read_bytes() == before
        write_network(tmp_path / "model")
        text = said(options(folder, model_dir=tmp_path / "model", save=True))
        assert f"wrote it to {tmp_path / 'model' / 'model.json'}\n" in text
        after = (tmp_path / "model" / "model.json").read_bytes()
        assert after == before.replace(b'"threshold": 0.9', f'"threshold": {best}'.encode())
        assert read_model(tmp_path / "model")[0].threshold == best
        again = said(options(folder, model_dir=tmp_path / "model"))
        assert "the model's threshold is the best" in again

    def test_one_at_the_end_of_the_range_is_not_written(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("voxtune.engine.threshold._HUNDREDTHS", (0.1, 0.2))
        write_network(
            tmp_path / "model", contract=dataclasses.replace(SPEC.contract, threshold=0.3)
        )
        before = (tmp_path / "model" / "model.json").read_bytes()
        config = options(folder, model_dir=tmp_path / "model", save=True)
        with pytest.raises(InputError, match=r"0.3 is at the end .* it is not saved; look"):
            choose_threshold(config, QUIET)
        assert (tmp_path / "model" / "model.json").read_bytes() == before

    def test_an_ensemble_has_its_own(self, folder: Path, tmp_path: Path) -> None:
        """Of folds, which have seen other scans: what they expect of scans is not the same."""
        for name, quantiles in (("one", (0.0, 0.1, 0.2, 0.3, 0.9)), ("two", None)):
            contract = dataclasses.replace(SPEC.contract, quantiles=quantiles)
            write_network(tmp_path / name, contract=contract)
        one, two = tmp_path / "one", tmp_path / "two"
        before = (two / "model.json").read_bytes()
        text = said(options(folder, model_dir=one, ensemble=(two,), save=True))
        assert "model.json, for the ensemble\n" in text
        assert read_model(one)[0].threshold == choose_threshold(options(folder), QUIET)
        assert (two / "model.json").read_bytes() == before

    def test_a_table_without_splits_is_used_whole(self, folder: Path) -> None:
        rows = (folder / "subjects.csv").read_text().splitlines()
        whole = folder / "whole.csv"
        whole.write_text("\n".join(row.rpartition(",")[0] for row in rows))
        assert "of 3 scans" in said(options(folder, subjects=whole))
        assert "of 3 scans" in said(options(folder, split=None))
        assert "of 1 scan;" in said(options(folder, split="test"))
        with pytest.raises(InputError, match="no subject in the split train"):
            choose_threshold(options(folder, split="train"), QUIET)

    def test_scans_that_were_trained_on_are_said(self, folder: Path) -> None:
        assert "was trained on" not in said(options(folder))
        seen = folder / "seen.csv"
        seen.write_text("subject,image,label\nsub-9_ses-2,image0.nii,label0.nii\n")
        text = said(options(folder, subjects=seen))
        assert "was trained on scans of the people of 1 of the 1 scans" in text

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"binarise": True}, r"no class \(1\); the model's are 0 background and 7 lesion"),
            ({"keep": (3,)}, "Nothing that is lesion by the labels of .* is predicted"),
        ],
    )
    def test_labels_of_something_else_are_a_sentence(
        self, folder: Path, changes: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(InputError, match=words):
            choose_threshold(options(folder, **changes), QUIET)

    def test_a_network_of_more_classes_has_none(self, folder: Path, tmp_path: Path) -> None:
        classes = tuple(LabelClass(value, str(value)) for value in range(3))
        write_network(tmp_path / "model", classes=classes, output_activation="softmax")
        with pytest.raises(InputError, match="has 3 classes, of which the most probable wins"):
            choose_threshold(options(folder, model_dir=tmp_path / "model"), QUIET)
        write_network(tmp_path / "image", classes=(), output_activation="linear")
        with pytest.raises(InputError, match="has no classes; a threshold is for"):
            choose_threshold(options(folder, model_dir=tmp_path / "image"), QUIET)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["threshold", str(folder / "model"), str(folder / "subjects.csv")]
    assert main([*given, "--mesh", "data=1"]) == 0
    assert "of 2 scans; the model's 0.9: 0.0000" in capsys.readouterr().out
    assert main([*given, "--split", "train"]) == 2
    assert "voxtune: " in capsys.readouterr().err
