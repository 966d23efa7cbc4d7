"""Runs that were killed, damaged or changed, and gone on with: to the same bits, or a sentence."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import nibabel as nib
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

from voxtune.engine.config import Finetune, Resume
from voxtune.engine.contract import Contract
from voxtune.engine.meter import MEASURED
from voxtune.engine.model_dir import LabelClass, ModelSpec, read_model, write_model
from voxtune.engine.options import Training
from voxtune.engine.output import check_free
from voxtune.engine.run_dir import held, make_run_dir
from voxtune.engine.saved_config import saved_options
from voxtune.engine.train import finetune, resume
from voxtune.models.errors import InputError
from voxtune.models.parameters import shapes

# What Orbax's threads say of a damaged checkpoint, after its event loop was closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

EDGE = 10
ARGUMENTS = {
    "channels": 1,
    "outputs": 2,
    "filters": 2,
    "dilations": [1, 1],
    "activation": "relu",
    "norm": "batch",
}
CLASSES = (LabelClass(0, "background"), LabelClass(1, "blob"))
SPEC = ModelSpec(
    "meshnet",
    ARGUMENTS,
    "softmax",
    CLASSES,
    Contract("RAS", (1.0, 1.0, 1.0), "zscore", (8, 8, 8), 0.5),
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """All runs have the same program, which is compiled once: environment for other processes."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield {name.upper(): str(value) for name, value in options.items()}
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory and a table of three subjects with a bright blob."""
    folder, rng = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    parameters = {
        path: 1 + 0.1 * rng.random(shape, np.float32)
        if path.endswith(("scale", "var"))
        else 0.3 * rng.normal(size=shape).astype(np.float32)
        for path, shape in shapes("meshnet", ARGUMENTS).items()
    }
    write_model(folder / "pretrained", SPEC, parameters, history={})
    rows = ["subject,image,label,split"]
    for number, split in enumerate(("train", "train", "validation")):
        image = rng.normal(size=(EDGE,) * 3).astype(np.float32)
        blob = ((np.indices(image.shape) - 4 - number) ** 2).sum(axis=0) < 10
        image[blob] += 3
        for name, data in (("image", image), ("label", blob.astype(np.uint8))):
            nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{name}{number}.nii")
        rows.append(f"sub-{number},image{number}.nii,label{number}.nii,{split}")
    (folder / "subjects.csv").write_text("\n".join(rows))
    return folder


OPTIONS: dict[str, Any] = {
    "steps": 12,
    "validate_every": 4,
    "log_every": 3,
    "warmup": 2,
    "batch": 2,
    "augment": "none",
    "ema": 0.8,
    "anchor": 0.1,
    "unfreeze_every": 3,
    "head": "keep",
    "mesh": "data=1",
}


def begin(study: Path, name: str, **changes: Any) -> Path:
    """A run to its end."""
    place = {"model_dir": study / "pretrained", "subjects": str(study / "subjects.csv")}
    config = Finetune(**{**place, **OPTIONS, **changes, "run_dir": study / name})
    finetune(config, Console(quiet=True))
    return study / name


def go_on(run_dir: Path, **changes: Any) -> str:
    """Goes on with a run; what it said."""
    console = Console(file=io.StringIO(), record=True, width=1000)
    resume(Resume(run_dir=run_dir, **{**saved_options(run_dir), **changes}), console)
    return console.export_text()


@pytest.fixture(scope="module")
def whole(study: Path, compiled: dict[str, str]) -> Path:
    """An undisturbed run."""
    return begin(study, "whole")


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes copies of the undisturbed run, as if it had ended before its model was written."""

    def copy(without: int | None = None) -> Path:
        run = shutil.copytree(whole, tmp_path / "run")
        shutil.rmtree(run / "model")
        if without is not None:
            shutil.rmtree(run / "checkpoints" / str(without))
        return run

    return copy


def log(run_dir: Path) -> list[dict[str, Any]]:
    """All of metrics.jsonl but timings, and that a step was compiled."""
    entries = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in each.items() if name not in MEASURED}
        for each in entries
        if each["event"] != "compiled"
    ]


def steps(run_dir: Path) -> set[str]:
    return {each.name for each in (run_dir / "checkpoints").iterdir()}


def assert_same(run_dir: Path, whole: Path) -> None:
    """All that a run leaves is that of the undisturbed one, to the last bit."""
    assert log(run_dir) == log(whole)
    found, wanted = (read_model(each / "model")[1] for each in (run_dir, whole))
    assert found.keys() == wanted.keys()
    assert all(found[path].tobytes() == wanted[path].tobytes() for path in wanted)
    assert steps(run_dir) == steps(whole)
    about = [json.loads((each / "model/finetune.json").read_text()) for each in (run_dir, whole)]
    for each in about:
        for place in ("model_dir", "subjects", "run_dir"):
            del each["options"][place]
    assert about[0] == about[1]


# Killed


@pytest.fixture(scope="module")
def killed(study: Path, whole: Path, compiled: dict[str, str]) -> dict[str, tuple[Path, int]]:
    """Runs that ended at chosen moments: their folders, and how they ended."""
    names = ("folder", "first", "save", "line", "term")
    options = [
        text
        for name, value in OPTIONS.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    script = Path(__file__).with_name("killed.py")
    moments = [f"{each}:killed/{each}" for each in names]
    done = subprocess.run(
        [sys.executable, script, *moments, "--", "pretrained", "subjects.csv", *options],
        cwd=study,
        env={**os.environ, **compiled},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=True,
    )
    ended = dict(each.split()[1:] for each in done.stdout.splitlines() if each.startswith("ended "))
    assert ended.keys() == set(names), done.stdout
    return {name: (study / "killed" / name, int(status)) for name, status in ended.items()}


@pytest.mark.parametrize(
    ("moment", "left"),
    [("first", set()), ("save", {"4"}), ("line", {"4"})],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    killed: dict[str, tuple[Path, int]], whole: Path, moment: str, left: set[str]
) -> None:
    run, status = killed[moment]
    assert status == -9
    whole_ones = {each for each in steps(run) if each.isdigit()}
    assert whole_ones <= left
    assert moment != "save" or steps(run) > whole_ones  # and half a one
    go_on(run)
    assert_same(run, whole)


def test_a_run_told_to_end_saves_its_step_and_goes_on_to_the_same_bits(
    killed: dict[str, tuple[Path, int]], whole: Path
) -> None:
    run, status = killed["term"]
    assert status == 75
    assert steps(run) == {"4", "5"}
    go_on(run)
    assert_same(run, whole)


def test_a_run_killed_before_its_folder_is_there_leaves_nothing_in_the_way(
    killed: dict[str, tuple[Path, int]], study: Path
) -> None:
    run, status = killed["folder"]
    assert (status, run.exists()) == (-9, False)
    with pytest.raises(InputError, match=r"killed/folder is no run directory: .* 'voxtune finetu"):
        go_on(run)
    check_free(run, overwrite=False)


# Damaged


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_used(
    copied: Callable[..., Path], whole: Path
) -> None:
    run = copied()
    (run / ".model.partial").mkdir()  # killed while it wrote its model
    file = max((run / "checkpoints/12/state/d").iterdir(), key=lambda each: each.stat().st_size)
    file.write_bytes(file.read_bytes()[:-20])
    said = go_on(run)
    assert said.count("checkpoint 12 cannot be read (") == 1
    assert f"moved to {run}/damaged/12, 8 is used" in said
    assert_same(run, whole)


def test_where_all_are_damaged_nothing_is_removed(copied: Callable[..., Path]) -> None:
    run = copied()
    for step in ("8", "12"):
        (run / "checkpoints" / step / "state" / "manifest.ocdbt").write_bytes(b"")
        (run / "checkpoints" / step / "state" / "_METADATA").unlink()
    with pytest.raises(InputError, match=r"No checkpoint in .*: 12 \(.*\), 8 \(.*\); put back"):
        go_on(run)
    assert steps(run) == {"8", "12"}


# Changed


def test_a_change_is_shown_and_refused_unless_it_is_allowed(
    copied: Callable[..., Path], whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(without=12)
    before = (run / "config.json").read_text()
    with pytest.raises(InputError, match=r"\(head_lr: 0.003 → 0.03\); .* --allow-change"):
        go_on(run, head_lr=0.03)
    assert (run / "config.json").read_text() == before
    with monkeypatch.context() as patched:
        # Killed before its first checkpoint; then it goes on by itself, as schedulers do it.
        patched.setattr("voxtune.engine.train.Feed", stopped)
        with pytest.raises(StoppedError):
            go_on(run, head_lr=0.03, allow_change=True)
    go_on(run)
    assert log(run)[:4] == log(whole)[:4]
    assert log(run)[4]["learning_rates"] != log(whole)[4]["learning_rates"]
    record = json.loads((run / "config.json").read_text())
    assert record["options"]["head_lr"] == 0.03
    assert [each["step"] for each in record["resumed"]] == [8, 8]
    assert record["resumed"][0]["changed"] == ["head_lr: 0.003 → 0.03"]


class StoppedError(Exception):
    pass


def stopped(*_: Any, **__: Any) -> Any:
    raise StoppedError


def test_an_edited_config_does_not_pass_for_what_was_trained(copied: Callable[..., Path]) -> None:
    run = copied(without=12)
    record = json.loads((run / "config.json").read_text())
    record["options"]["ema"] = 0.5
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"\(ema: 0.8 → 0.5\)"):
        go_on(run)


@pytest.mark.parametrize("what", ["model", "subject", "label"])
def test_what_it_starts_from_may_not_change(
    copied: Callable[..., Path], study: Path, tmp_path: Path, what: str
) -> None:
    """Found by what is in it: the folder may have been moved."""
    run = copied(without=12)
    moved = shutil.copytree(study, tmp_path / "moved", ignore=lambda _, names: {"whole", "killed"})
    record = json.loads((run / "config.json").read_text())
    record["options"] |= {"model_dir": "pretrained", "subjects": "subjects.csv"}
    record["folder"] = str(moved)
    (run / "config.json").write_text(json.dumps(record))
    if what == "model":
        spec, parameters = read_model(study / "pretrained")
        parameters["head/bias"] = parameters["head/bias"] + 1
        write_model(moved / "pretrained", spec, parameters, history={}, overwrite=True)
        words = "other pretrained weights"
    elif what == "subject":
        table = (moved / "subjects.csv").read_text()
        (moved / "subjects.csv").write_text(table.replace("sub-1,", "sub-9,"))
        words = "other subjects to train on"
    else:
        label = np.zeros((EDGE,) * 3, np.uint8)
        label[4:6] = 1
        nib.save(nib.Nifti1Image(label, np.eye(4)), moved / "label0.nii")
        words = "other shapes or labels of the subjects"
    with pytest.raises(InputError, match=words):
        go_on(run)


def test_where_it_runs_may_change(copied: Callable[..., Path], whole: Path) -> None:
    """Equal to rounding."""
    run = copied(without=12)
    said = go_on(run, mesh="data=2", shard_optimizer=True)
    assert "devices: 1 x cpu → 2 x cpu; mesh: data=1 → data=2; what follows" in said
    found, wanted = (read_model(each / "model")[1] for each in (run, whole))
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-3, atol=1e-4)


# Finished, and none at all


def test_a_finished_run_is_left_alone_until_it_is_to_be_longer(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    assert "is finished" in go_on(run)
    with pytest.raises(InputError, match="steps: 12 → 14"):
        go_on(run, steps=14)
    go_on(run, steps=14, allow_change=True)
    assert log(run)[-1]["step"] == 14
    assert json.loads((run / "model" / "finetune.json").read_text())["options"]["steps"] == 14
    assert "is finished" in go_on(run)


def test_early_stopping_goes_on_as_it_was(study: Path, whole: Path, tmp_path: Path) -> None:
    """The best checkpoint is kept over a restart, and its weights at the end."""
    wild = {"trunk_lr": 30.0, "head_lr": 30.0, "patience": 2, "validate_every": 1, "clip": 0.0}
    early = begin(study, "early", **wild)
    run = shutil.copytree(early, tmp_path / "run")
    shutil.rmtree(run / "model")
    last = max(map(int, steps(run)))
    shutil.rmtree(run / "checkpoints" / str(last))
    go_on(run)
    assert_same(run, early)


def test_a_fold_stays_the_same(study: Path, compiled: dict[str, str]) -> None:
    run = begin(study, "fold", fold="2/3")
    before = json.loads((run / "config.json").read_text())
    assert before["options"]["fold"] == "2/3"
    assert (len(before["train"]), len(before["validation"])) == (2, 1)
    assert json.loads((run / "model" / "finetune.json").read_text())["options"]["fold"] == "2/3"
    model = (run / "model" / "model.json").read_bytes()
    shutil.rmtree(run / "model")
    with pytest.raises(InputError, match="fold: 2/3 → 1/3; other subjects to train on"):
        go_on(run, fold="1/3")
    assert "fold 2 of 3: 2 to train on, 1 to validate on" in go_on(run)
    after = json.loads((run / "config.json").read_text())
    for name in ("options", "train", "validation"):
        assert after[name] == before[name]
    assert (run / "model" / "model.json").read_bytes() == model


def test_of_a_finished_run_options_are_not_used(whole: Path) -> None:
    assert go_on(whole, trunk_lr=5.0, ema=0.8) == (
        f"{whole} is finished: its model is there; not used: --trunk-lr; "
        "--steps N --allow-change makes it longer\n"
    )


def test_fewer_steps_than_it_has_done(copied: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"has done 12 steps already, more than --steps 9"):
        go_on(copied(), steps=9, allow_change=True)


def test_a_change_of_options_hides_no_other_one(copied: Callable[..., Path]) -> None:
    run = copied(without=12)
    record = json.loads((run / "config.json").read_text())
    edited = {**record, "weights": "", "data": "", "rules": ""}
    (run / "config.json").write_text(json.dumps(edited))
    with pytest.raises(InputError, match=r"\(ema: 0.8 → 0.5; other pretrained weights; other sha"):
        go_on(run, ema=0.5)
    (run / "config.json").write_text(json.dumps({**record, "rules": ""}))
    with pytest.raises(InputError, match=r"\(other rules of the parameters\)"):
        go_on(run)


def test_a_hostile_log_is_no_trouble(copied: Callable[..., Path], whole: Path) -> None:
    run = copied(without=12)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write("[" * 100_000)
    go_on(run)
    assert_same(run, whole)


def test_a_moved_study_is_found_from_the_current_folder(
    copied: Callable[..., Path],
    whole: Path,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = copied(without=12)
    record = json.loads((run / "config.json").read_text())
    record["options"] |= {"model_dir": "pretrained", "subjects": "subjects.csv"}
    record["folder"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"reads pretrained, which is neither in .*gone, .* nor"):
        go_on(run)
    monkeypatch.chdir(study)
    go_on(run)
    assert log(run) == log(whole)


def test_a_run_is_written_by_one_at_a_time(
    copied: Callable[..., Path], study: Path, tmp_path: Path
) -> None:
    """And the lock of a process that is killed stands in nobody's way."""
    run = copied(without=12)
    script = (
        "import sys; from pathlib import Path; from voxtune.engine.run_dir import held\n"
        "with held(Path(sys.argv[1])): print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match="run is being written by another run; wait"):
            go_on(run)
        with pytest.raises(InputError, match="run is being written by another run; wait"):
            make_run_dir(run, True, {}, {})
        other.kill()
    with held(run):
        pass
    make_run_dir(run, True, {}, {})
    assert not (run / "checkpoints").exists()


def test_full_blocks_stay_as_they_are_on_other_devices(
    study: Path, compiled: dict[str, str], tmp_path: Path
) -> None:
    """Split over four devices they are deeper than the scans are."""
    short = {"steps": 1, "validate_every": 1, "block": "full", "warmup": 0}
    for name, mesh, other, depth in (
        ("split", "data=1,spatial=4", "data=1", 12),
        ("unsplit", "data=1", "data=1,spatial=4", EDGE),
    ):
        run = begin(study, f"full {name}", **short, mesh=mesh)
        record = json.loads((run / "config.json").read_text())
        assert record["block"] == [depth, EDGE, EDGE]
        if name == "unsplit":
            with pytest.raises(InputError, match=r"10 slices cannot be split .* --mesh with anoth"):
                go_on(run, mesh=other, steps=2, allow_change=True)
            continue
        assert "changed: steps: 1 → 2\n" in go_on(run, mesh=other, steps=2, allow_change=True)
        after = json.loads((run / "config.json").read_text())
        assert (after["block"], after["options"]["block"]) == (record["block"], "full")


PLACES = {"model_dir": "pretrained", "subjects": "subjects.csv"}


class TestSavedOptions:
    def test_a_name_that_is_too_long_has_none(self) -> None:
        assert saved_options(Path("a" * 300)) == {}
        with pytest.raises(InputError, match="File name too long"):
            go_on(Path("a" * 300))

    def test_they_are_those_of_the_run(self, whole: Path, study: Path) -> None:
        found = saved_options(whole)
        assert found.keys() == {each.name for each in dataclasses.fields(Training)}
        assert all(found[name] == value for name, value in OPTIONS.items())
        assert Resume(run_dir=whole, **found).steps == 12

    def test_each_has_its_type_and_paths_are_absolute(self, whole: Path, tmp_path: Path) -> None:
        given = {
            "block": [4, 4, 4],
            "rule": ["a freeze", "b freeze"],
            "rules": "rules.txt",
            "class_weights": [1, 2.5],
            "clip": 1,
            "patience": None,
        }
        record = json.loads((whole / "config.json").read_text())
        record["options"] |= given
        record["block"] = given["block"]
        (tmp_path / "config.json").write_text(json.dumps(record))
        found = saved_options(tmp_path)
        assert found["block"] == (4, 4, 4)
        assert found["rule"] == ("a freeze", "b freeze")
        assert found["rules"] == Path(record["folder"]) / "rules.txt"
        assert found["class_weights"] == (1.0, 2.5)
        assert isinstance(found["clip"], float)
        assert found["patience"] is None

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "is no run directory"),
            ("", "cannot be read"),
            ("[" * 100_000, "nested too deeply"),
            ("[]", "no JSON object"),
            ('{"options": {}, "versions": {"voxtune": "0.1"}}', "made by voxtune 0.1, which could"),
            ('{"versions": 3}', "made by voxtune \\?, which could"),
            ({"batch": "2"}, "nothing of the batch"),
            ({"batch": 10**9}, "a batch of 1000000000 makes no sense"),
            ({"versions": 3}, "nothing of the versions"),
            ({"train": None}, "nothing of the train"),
            ({"block": [8, 8]}, "its block is not three sizes"),
            ({"resumed": [1]}, "of its past"),
            ({"options": {}}, "does not say which model_dir"),
            ({"options": {**PLACES, "steps": "3"}}, "'steps': '3', which is nothing that it can"),
            ({"options": {**PLACES, "loss": "none"}}, "'loss': 'none', which"),
        ],
    )
    def test_what_is_no_run_has_none(
        self, whole: Path, tmp_path: Path, content: str | dict[str, Any] | None, words: str
    ) -> None:
        if isinstance(content, dict):
            content = json.dumps({**json.loads((whole / "config.json").read_text()), **content})
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        assert saved_options(tmp_path) == {}
        with pytest.raises(InputError, match=words):
            go_on(tmp_path)
