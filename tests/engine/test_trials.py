"""Networks of a study: what arms have in common, what is known again, and jobs that are killed."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from voxtune.engine.arms import Design, Trial
from voxtune.engine.config import Study
from voxtune.engine.resume import SavedRun
from voxtune.engine.setup import Setup, set_up
from voxtune.engine.trials import check_same, digest_of, is_scored
from voxtune.engine.validation import Validation
from voxtune.models.errors import InputError

QUIET = Console(quiet=True)
SPLITS = ("train", "train", "train", "validation", "test")
INITS = ("pretrained", "random", "shuffled", "matched")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five subjects, three of them to train on."""
    import nibabel as nib

    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    lines = ["subject,image,label,split"]
    for number, split in enumerate(SPLITS):
        image = rng.normal(size=(8, 9, 10)).astype(np.float32)
        for name, data in (("image", image), ("label", (image > 1).astype(np.uint8))):
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{name}{number}.nii")
        lines.append(f"s{number},image{number}.nii,label{number}.nii,{split}")
    (folder / "subjects.csv").write_text("\n".join(lines) + "\n")
    return folder / "subjects.csv"


@pytest.fixture(scope="module")
def setups(models: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Setup]:
    """An arm for each start, with two scans and one seed."""
    folder = tmp_path_factory.mktemp("study")
    design = folder / "design.toml"
    design.write_text("".join(f'[arms.{each}]\ninit = "{each}"\n' for each in INITS))
    study = Study(
        **{"model": models / "unet", "data": str(table), "out": folder / "out"},
        **{"design": design, "sizes": "2", "seeds": 1, "seed": 5, "mesh": "data=1", "steps": 2},
    )
    factors = {("random", 2): 3.0}
    trials = Design.of(study).trials(study, factors)
    return {each.arm: set_up(each.config, QUIET, new=False) for each in trials}


class TestArms:
    def test_they_see_the_same_blocks_in_the_same_order(self, setups: Mapping[str, Setup]) -> None:
        first = setups["pretrained"].batches()
        for name in INITS[1:]:
            other = setups[name].batches()
            for step in range(4):
                np.testing.assert_equal(other[step], first[step])
        # Which is no matter of course: another seed sees others.
        config = dataclasses.replace(setups["random"].config, seed=6)
        apart = dataclasses.replace(
            setups["random"], plan=dataclasses.replace(setups["random"].plan, seed=config.seed)
        ).batches()
        assert any((apart[step]["image"] != first[step]["image"]).any() for step in range(4))

    def test_which_are_changed_alike(self, setups: Mapping[str, Setup]) -> None:
        """The step draws from a key of its seed and number; what it draws is the same."""
        first = setups["pretrained"]
        for name in INITS[1:]:
            assert setups[name].changes == first.changes
            assert setups[name].config.seed == first.config.seed == 5
            assert setups[name].plan == first.plan

    def test_the_new_last_layer_is_the_same(self, setups: Mapping[str, Setup]) -> None:
        first = setups["pretrained"].start.parameters
        for name in INITS[1:]:
            other = setups[name].start.parameters
            assert other.keys() == first.keys()
            for path in first:
                same = np.array_equal(other[path], first[path])
                if path.endswith("kernel"):
                    assert same == path.startswith("head/"), (name, path)
            assert np.array_equal(other["head/bias"], first["head/bias"])

    def test_all_train_on_the_same_subjects(self, setups: Mapping[str, Setup]) -> None:
        names = {tuple(case.name for case in each.train) for each in setups.values()}
        assert len(names) == 1


# A run that is there


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(model=Path("m"), data="d.csv", out=tmp_path, sizes="2", seeds=1, label_map=None)


def trial_of(study: Study, **options: Any) -> Trial:
    found = Design.of(study).trials(study, {})[0]
    return dataclasses.replace(found, config=dataclasses.replace(found.config, **options))


def saved(trial: Trial, **changes: Any) -> SavedRun:
    """A finished run of a trial, as its config.json would have it."""
    options = json.loads(json.dumps(dataclasses.asdict(trial.config), default=str))
    document = {
        **{"options": options, "batch": 2, "block": [8, 8, 8], "classes": ["0=a", "1=b"]},
        **{"train": ["s2", "s0"], "validation": ["s3"], "folder": "/", "command": ""},
        **changes,
    }
    return SavedRun(trial.config, True, Validation({}), document, False, ())


class TestRunsThatAreThere:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"log_every": 3, "mesh": "data=4", "checkpoints": 5, "tensorboard": True},
            {"batch": 2, "block": (8, 8, 8)},
            {"trunk_lr": 1e-3 * (1 + 1e-15)},
            {"model_dir": Path("elsewhere/m"), "subjects": "elsewhere/d.csv"},
        ],
        ids=["same", "where it runs", "as they were settled", "rounding", "places"],
    )
    def test_the_same(self, study: Study, options: dict[str, Any]) -> None:
        check_same(saved(trial_of(study)), trial_of(study, **options))

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"steps": 9}, "steps=300, not 9"),
            ({"trunk_lr": 1.0}, "trunk_lr=0.001, not 1.0"),
            ({"labels": ("1=a",)}, r"labels=None, not \['1=a'\]"),
            ({"batch": 4}, "batch=2, not 4"),
            ({"block": (8, 8, 16)}, r"block=\[8, 8, 8\], not \[8, 8, 16\]"),
            ({"init": "matched"}, "init='pretrained', not 'matched'"),
        ],
    )
    def test_others(self, study: Study, options: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            check_same(saved(trial_of(study)), trial_of(study, **options))

    def test_whole_scans_stay_whole(self, study: Study) -> None:
        full = trial_of(study, block="full")
        check_same(saved(full, block=[16, 16, 16]), full)

    def test_an_option_that_is_younger_than_the_run(self, study: Study) -> None:
        old = saved(trial_of(study))
        options = {name: x for name, x in old.document["options"].items() if name != "rename"}
        check_same(
            dataclasses.replace(old, document={**old.document, "options": options}), trial_of(study)
        )

    def test_other_subjects(self, study: Study) -> None:
        trial = trial_of(study)  # subject seed 0 takes these two of three, in this order
        check_same(saved(trial), trial, ["s0", "s1", "s2"])
        with pytest.raises(InputError, match="other subjects"):
            check_same(saved(trial), trial, ["s0", "s1", "s3"])


class TestScores:
    @pytest.fixture
    def scored(self, study: Study) -> Trial:
        """A network with predictions and scores."""
        trial = trial_of(study)
        model = trial.config.run_dir / "model"
        (model / "params").mkdir(parents=True)
        (model / "model.json").write_text("{}")
        self.predict(study, trial)
        scores = {"split": "test", "ignore_label": None, "unlisted": "error", "keep": []}
        (study.out / "scores").mkdir()
        (study.out / "scores" / f"{trial.name}.json").write_text(
            json.dumps({**scores, "binarise": False})
        )
        return trial

    @staticmethod
    def predict(study: Study, trial: Trial) -> None:
        from voxtune.engine.sidecar import model_hash, write_sidecar

        folder = study.out / "predictions" / trial.name
        folder.mkdir(parents=True, exist_ok=True)
        models = [model_hash(trial.config.run_dir / "model")]
        write_sidecar(folder / "s4.json", {"made_by": {"models": models}})

    def test_they_are_known_again(self, study: Study, scored: Trial) -> None:
        assert is_scored(scored, study)

    @pytest.mark.parametrize(
        "options",
        [{"split": "validation"}, {"keep": (1,)}, {"binarise": True}, {"ignore_label": 3}],
    )
    def test_not_those_of_other_options(
        self, study: Study, scored: Trial, options: dict[str, Any]
    ) -> None:
        assert not is_scored(scored, dataclasses.replace(study, **options))

    def test_not_those_of_another_label_map(
        self, study: Study, scored: Trial, tmp_path: Path
    ) -> None:
        path = tmp_path / "map.csv"
        path.write_text("original,new\n1,2\n")
        mapped = dataclasses.replace(study, label_map=path)
        assert not is_scored(scored, mapped)
        scores = study.out / "scores" / f"{scored.name}.json"
        document = json.loads(scores.read_text()) | {"label_map_sha256": digest_of(path)}
        scores.write_text(json.dumps(document))
        assert is_scored(scored, mapped)
        path.write_text("original,new\n1,3\n")
        assert not is_scored(scored, mapped)
        assert not is_scored(scored, study)

    def test_not_those_of_weights_before(self, study: Study, scored: Trial) -> None:
        (scored.config.run_dir / "model" / "model.json").write_text('{"trained": "again"}')
        assert not is_scored(scored, study)
        self.predict(study, scored)
        assert is_scored(scored, study)

    def test_not_half_of_them(self, study: Study, scored: Trial) -> None:
        (study.out / "scores" / f"{scored.name}.json").write_text('{"split": "te')
        assert not is_scored(scored, study)


# Killed


def test_a_study_that_was_killed_comes_to_the_same_end(
    models: Path, table: Path, tmp_path: Path
) -> None:
    """Its jobs are killed at several moments, one is told to end; and nothing is left half."""

    options = [
        *("--model", models / "meshnet", "--data", table, "--sizes", "2", "--seeds", "1"),
        *("--steps", "4", "--warmup", "0", "--validate-every", "2", "--mesh", "data=1"),
        *("--block", "8", "8", "8", "--batch", "1", "--augment", "none"),
    ]
    moments = [f"{each}:killed" for each in ("term", "training", "scoring", "end")]
    script = [
        sys.executable,
        Path(__file__).with_name("killed_study.py"),
        *moments,
        "reporting:whole",
    ]
    done = subprocess.run(
        [str(each) for each in (*script, "--", *options)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    ended = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("ended ")]
    assert ended == ["75", "-9", "-9", "0", "-9"], done.stdout + done.stderr
    killed, whole = (read_all(tmp_path / name) for name in ("killed", "whole"))
    assert killed == whole
    assert len(whole) == 2
    log = [
        json.loads(line)
        for line in (tmp_path / "killed/runs/pretrained_n2_seed0/metrics.jsonl")
        .read_text()
        .splitlines()
    ]
    assert [each["step"] for each in log if each["event"] == "validation"] == [2, 4]
    assert (tmp_path / "killed" / "report.html").is_file()
    assert not [path for path in (tmp_path / "killed").rglob(".*") if "partial" in path.name]


def read_all(study: Path) -> dict[str, Any]:
    """Scores of a study's networks."""
    return {path.name: json.loads(path.read_text()) for path in (study / "scores").glob("*.json")}
