"""The task of the pretrained model after fine-tuning, with networks whose weights are set by hand.

The network hands brightness on, and its head calls a voxel bright where that is above 1/2.
"""

from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from voxtune.engine import forgetting as module
from voxtune.engine.arms import Trial
from voxtune.engine.config import Finetune, Study
from voxtune.engine.contract import Contract
from voxtune.engine.forgetting import MEAN, Forgetting, check_source, compared, forgetting
from voxtune.engine.model_dir import LabelClass, ModelSpec, write_model
from voxtune.engine.score import Score
from voxtune.models.errors import InputError

SHAPE = (8, 8, 8)
ARGUMENTS = {
    "channels": 1,
    "outputs": 2,
    "filters": 1,
    "dilations": [1],
    "activation": "relu",
    "norm": None,
}
CLASSES = (LabelClass(0, "background"), LabelClass(1, "bright"))
SPEC = ModelSpec(
    "meshnet", ARGUMENTS, "softmax", CLASSES, Contract("RAS", (1.0, 1.0, 1.0), "minmax", SHAPE)
)
Make = Callable[..., Trial]


def weights(gain: float = 1.0, outputs: int = 2, filters: int = 1) -> dict[str, np.ndarray]:
    """A network that multiplies brightness by the gain; its head is bright above 1/2."""
    kernel = np.zeros((3, 3, 3, 1, filters), np.float32)
    kernel[1, 1, 1] = gain
    head = np.zeros((1, 1, 1, filters, outputs), np.float32)
    head[..., 1] = 8
    bias = np.zeros(outputs, np.float32)
    bias[1] = -4
    return {
        "block1/conv/kernel": kernel,
        "block1/conv/bias": np.zeros(filters, np.float32),
        "head/kernel": head,
        "head/bias": bias,
    }


def write_table(folder: Path, splits: str, name: str = "source.csv") -> Path:
    """Scans of random brightness with labels of what is bright, one for each letter: t(est), ..."""
    folder.mkdir(exist_ok=True)
    names = {"t": "test", "r": "train", "v": "validation"}
    lines = ["subject,image,label,split"]
    for index, split in enumerate(splits):
        image = np.random.default_rng(index).uniform(0, 1, SHAPE).astype(np.float32)
        image.flat[:2] = 0, 1
        for what, data in (("image", image), ("label", (image > 0.55).astype(np.uint8))):
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{what}{index}.nii")
        lines.append(f"s{index},image{index}.nii,label{index}.nii,{names[split]}")
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


@pytest.fixture
def config(tmp_path: Path) -> Study:
    """A study of a pretrained model, the table of its old task beside that of the new one."""
    write_model(tmp_path / "pretrained", SPEC, weights(), history={})
    source = write_table(tmp_path / "old", "ttttr")
    data = write_table(tmp_path / "new", "rvt", "subjects.csv")
    out = tmp_path / "study"
    return Study(model=tmp_path / "pretrained", data=str(data), out=out, source=source)


@pytest.fixture
def trial(config: Study) -> Make:
    """Makes a trial whose run is there: only its model, with another head of three classes."""

    def make(
        arm: str = "pretrained",
        seed: int = 0,
        gain: float = 1.0,
        spec: ModelSpec = SPEC,
        filters: int = 1,
        **options: Any,
    ) -> Trial:
        run_dir = config.out / "runs" / f"{arm}_n4_seed{seed}"
        run_dir.mkdir(parents=True, exist_ok=True)
        run = Finetune(config.model, config.data, run_dir, **options)
        arguments = {**spec.arguments, "outputs": 3, "filters": filters}
        classes = (*CLASSES, LabelClass(2, "new"))
        values = weights(gain, 3, filters)
        channels = spec.arguments["channels"]
        values["block1/conv/kernel"] = values["block1/conv/kernel"].repeat(channels, 3)
        values["head/kernel"] *= -1  # the new head must have no say
        trained = replace(spec, arguments=arguments, classes=classes)
        write_model(run_dir / "model", trained, values, history={}, overwrite=True)
        return Trial(arm, 4, seed, 1.0, run)

    return make


def quiet() -> Console:
    return Console(quiet=True)


def test_a_trunk_that_stayed_forgets_nothing_and_one_that_moved_does(config: Study, trial: Make):
    trials = [trial("pretrained"), trial("moved", gain=0.6), trial("random", init="random")]
    stayed, moved = forgetting(config, trials, quiet())
    assert (stayed.arm, stayed.size, stayed.name) == ("pretrained", 4, "bright")
    assert (stayed.subjects, stayed.seeds) == (4, 1)  # the row of the split train is not scored
    assert 0.9 < stayed.before < 1  # bright is from 0.5 on, but labels are from 0.55 on
    assert stayed.after == stayed.before
    assert (stayed.low, stayed.high) == (0, 0)
    # 0.6 x > 1/2 where x > 5/6: of labels above 0.55 that finds 0.37, Dice 0.54.
    assert moved.before == stayed.before
    assert moved.after == pytest.approx(0.54, abs=0.06)
    assert moved.high < -0.3
    assert not [each for each in (config.out / "source").iterdir() if each.name.endswith("model")]


def test_what_is_done_is_not_done_again_but_what_was_trained_anew_is(
    config: Study, trial: Make, monkeypatch: pytest.MonkeyPatch
):
    first = forgetting(config, [trial()], quiet())
    calls: list[Path] = []
    predict = module.predict

    def counted(job: Any, console: Console) -> bool:
        calls.append(job.output)
        return predict(job, console)

    monkeypatch.setattr(module, "predict", counted)
    trials = [Trial("pretrained", 4, 0, 1.0, trial().config)]  # trained anew, to the same weights
    assert forgetting(config, trials, quiet()) == first
    assert [each.name for each in calls] == ["pretrained_n4_seed0"]
    assert forgetting(config, trials, quiet()) == first
    assert len(calls) == 1


def test_a_scoring_that_was_killed_is_done_again(config: Study, trial: Make):
    trials = [trial()]
    first = forgetting(config, trials, quiet())
    source = config.out / "source"
    (source / "pretrained_n4_seed0.json").write_text('{"format": "voxtune forgetting"')
    (source / "pretrained_n4_seed0" / "s0.nii.gz").write_bytes(b"half")
    write_model(source / ".pretrained_n4_seed0.model", SPEC, weights(0.1), history={})
    assert forgetting(config, trials, quiet()) == first
    assert not (source / ".pretrained_n4_seed0.model").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head": "keep"}, "it trained the old last layer too"),
        ({"init_from": Path("other")}, "the weights of another model, other"),
        ({"filters": 2}, "its network is another: block1/conv/"),
        (
            {"spec": replace(SPEC, arguments={**ARGUMENTS, "channels": 2})},
            "its network reads other channels",
        ),
    ],
)
def test_what_the_old_head_does_not_fit_is_left_out_and_named(
    config: Study, trial: Make, changes: dict[str, Any], reason: str
):
    console = Console(record=True, width=200, file=StringIO())
    assert forgetting(config, [trial("odd", **changes)], console) == []
    said = console.export_text()
    assert "odd left out" in said
    assert reason in said


def row(subject: str, name: str, dice: float) -> Score:
    return Score(subject, 1 + (name == "b"), name, dice)


def test_seeds_are_averaged_before_subjects_are_compared():
    before = [row(name, "a", 0.8) for name in "uvwxz"]
    one = [
        row(name, "a", dice)
        for name, dice in zip("uvwxz", (0.6, 0.5, 0.4, 0.7, np.nan), strict=True)
    ]
    two = [
        row(name, "a", dice) for name, dice in zip("uvwxz", (0.4, 0.5, 0.6, 0.3, 1.0), strict=True)
    ]
    (found,) = compared("arm", 4, before, [one, two])
    assert (found.subjects, found.seeds) == (4, 2)  # z has no Dice with one seed
    assert (found.before, found.after) == (pytest.approx(0.8), pytest.approx(0.5))
    assert found.difference == pytest.approx(-0.3)
    # Each subject has 0.5 as the mean of its seeds, so that the difference does not vary.
    assert (found.low, found.high) == (pytest.approx(-0.3), pytest.approx(-0.3))


def test_of_several_classes_the_mean_comes_first():
    before = [row("x", "a", 0.8), row("x", "b", 0.6)]
    found = compared("arm", 4, before, [[row("x", "a", 0.4), row("x", "b", 0.6)]])
    expected = [(MEAN, 0.7, 0.5), ("a", 0.8, 0.4), ("b", 0.6, 0.6)]
    assert [each.name for each in found] == [name for name, _, _ in expected]
    for each, (_, was, became) in zip(found, expected, strict=True):
        assert (each.before, each.after) == (pytest.approx(was), pytest.approx(became))
    assert np.isnan(found[0].low)  # of one subject there is no interval
    assert isinstance(found[0], Forgetting)


def test_scans_that_the_study_trains_on_are_left_out_and_named(config: Study, trial: Make):
    old, new = config.source, Path(config.data).parent
    assert old is not None
    text = old.read_text().replace("image0.nii", f"{new}/image0.nii")
    old.write_text(text.replace("s2,image2", f"s2,{new}/image2"))
    console = Console(record=True, width=200, file=StringIO())
    (found,) = forgetting(config, [trial()], console)
    assert found.subjects == 3  # s2 is the study's test scan, which no run trains on
    assert "s0 left out (1 of 4)" in console.export_text()


def refused(config: Study) -> str:
    with pytest.raises(InputError) as error:
        check_source(config)
    return str(error.value)


def test_a_source_that_cannot_be_scored_is_refused_before_training(config: Study):
    check_source(config)
    check_source(replace(config, source=None))
    assert config.source is not None
    folder = config.source.parent
    assert "does not exist" in refused(replace(config, source=folder / "none.csv"))
    on_training = replace(config, source=Path(config.data).parent / "subjects.csv")
    check_source(on_training)
    on_training.source.write_text(on_training.source.read_text().replace("test", "train"))
    assert "no scan on which the study does not train" in refused(on_training)
    for number in (0, 2, 3):
        nib.save(
            nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), folder / f"label{number}.nii"
        )
    check_source(config)  # another has some
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), folder / "label1.nii")
    assert "nothing but background" in refused(config)
    nib.save(nib.Nifti1Image(np.full(SHAPE, 17, np.uint8), np.eye(4)), folder / "label1.nii")
    said = refused(config)
    assert "label1.nii of --source has the label values 17" in said
    assert "0 background, 1 bright" in said
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), folder / "label1.nii")
    assert "has shape (4, 4, 4)" in refused(config)
