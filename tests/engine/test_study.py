"""A study: which networks are trained when and by which job, and what is refused before any is."""

import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from voxtune.engine import cli, sharing, study_work, tuning
from voxtune.engine import study as study_module
from voxtune.engine.arms import Trial
from voxtune.engine.config import Study
from voxtune.engine.loop import DivergedError, PreemptedError
from voxtune.engine.run_dir import HeldError
from voxtune.engine.sharing import claimed
from voxtune.engine.study import study
from voxtune.engine.study_inputs import check_unchanged
from voxtune.engine.study_results import Results, begin_document
from voxtune.engine.validation import Validation
from voxtune.models.errors import InputError


class Networks:
    """Stands for training and scoring: notes of which lie in the study's folder.

    Attributes:
        trained: names of networks in the order in which they were.
        dice: of a network in validation.
        reports: trials of each report that was written.
        notes: sentences of each about what it is without.
        disturb: called before a network is trained.
    """

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.reports: list[Sequence[Trial]] = []
        self.notes: list[Sequence[str]] = []
        self.dice: Callable[[Trial], float] = lambda trial: 0.5
        self.disturb: Callable[[Trial], object] = lambda trial: None

    def train(self, trial: Trial, _: Console) -> Validation:
        if (trial.config.run_dir / "model").is_dir():
            return self._validation(trial)
        self.disturb(trial)
        (trial.config.run_dir / "model").mkdir(parents=True)
        self.trained.append(trial.name)
        return self._validation(trial)

    def saved(self, trial: Trial) -> Any:
        if not trial.config.run_dir.is_dir():
            return None
        finished = (trial.config.run_dir / "model").is_dir()
        return SimpleNamespace(finished=finished, validation=self._validation(trial))

    def score(self, trial: Trial, config: Study, _: Console) -> None:
        (config.out / "scores").mkdir(exist_ok=True)
        (config.out / "scores" / trial.name).touch()

    def scored(self, trial: Trial, config: Study) -> bool:
        return (config.out / "scores" / trial.name).is_file()

    def report(self, results: Results) -> None:
        self.reports.append(results.trials)
        self.notes.append(results.notes)

    def diverge(self, wanted: Callable[[Trial], bool]) -> None:
        """Lets some come to nothing."""

        def disturb(trial: Trial) -> None:
            if wanted(trial):
                trial.config.run_dir.mkdir(parents=True)
                raise DivergedError("not finite.")

        self.disturb = disturb

    def _validation(self, trial: Trial) -> Validation:
        return Validation({"dice": {"lesion": self.dice(trial)}})


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Networks:
    found = Networks()
    monkeypatch.setattr(study_work, "train_trial", found.train)
    monkeypatch.setattr(study_work, "score_trial", found.score)
    monkeypatch.setattr(study_work, "is_scored", found.scored)
    for module in (study_work, tuning):
        monkeypatch.setattr(module, "saved_run", found.saved)
    monkeypatch.setattr(study_module, "check_inputs", lambda *_: {"subjects or scans": "a"})
    monkeypatch.setattr(Results, "write", lambda self, _: found.report(self))
    monkeypatch.setattr(sharing, "LOOK_EVERY", 0)
    return found


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., str]:
    """Calls a study; gives what it says."""

    def run(**options: Any) -> str:
        given = {"sizes": "4", "seeds": 1, **options}
        console = Console(record=True, file=io.StringIO(), width=500)
        study(Study(model=Path("m"), data="d.csv", out=tmp_path / "study", **given), console)
        return console.export_text()

    return run


class TestOneJob:
    def test_it_does_what_is_left(self, networks: Networks, call: Callable[..., str]) -> None:
        said = call()
        assert networks.trained == ["pretrained_n4_seed0", "random_n4_seed0"]
        assert "random_n4_seed0  (2 of 2)" in said
        assert "Dice lesion 0.500 in validation" in said
        call(sizes="4,8")
        assert networks.trained[2:] == ["pretrained_n8_seed0", "random_n8_seed0"]
        call(sizes="4")
        assert len(networks.trained) == 4
        assert [len(each) for each in networks.reports] == [2, 4, 2]

    def test_each_arm_and_size_has_its_best_learning_rates(
        self, networks: Networks, call: Callable[..., str]
    ) -> None:
        best = {("pretrained", 4): 0.3, ("pretrained", 8): 3, ("random", 4): 1, ("random", 8): 3}
        networks.dice = lambda trial: -abs(trial.factor - best[trial.arm, trial.size])
        call(sizes="4,8", seeds=2, tune="0.3,1,3")
        assert len(networks.trained) == len(set(networks.trained)) == 12 + 4
        (trials,) = networks.reports
        assert {(each.arm, each.size): each.factor for each in trials} == best
        assert len(trials) == 8

    def test_one_factor_is_taken(self, networks: Networks, call: Callable[..., str]) -> None:
        call(tune="3")
        assert networks.trained == ["pretrained_n4_seed0_x3", "random_n4_seed0_x3"]

    def test_learning_rates_that_diverge_are_not_chosen(
        self, networks: Networks, call: Callable[..., str]
    ) -> None:
        networks.diverge(lambda trial: trial.factor == 3)
        networks.dice = lambda trial: trial.factor
        call(tune="1,3")
        assert {each.factor for each in networks.reports[0]} == {1}
        networks.disturb = lambda trial: pytest.fail("it was tried again")
        call(tune="1,3")

    def test_unless_they_are_tried_again_without_their_folder(
        self, networks: Networks, call: Callable[..., str], tmp_path: Path
    ) -> None:
        networks.diverge(lambda trial: trial.factor == 3)
        networks.dice = lambda trial: trial.factor
        call(tune="1,3")
        for each in (tmp_path / "study" / "runs").glob("*_x3"):
            shutil.rmtree(each)
        networks.disturb = lambda trial: None
        call(tune="1,3")
        assert {each.factor for each in networks.reports[-1]} == {3}

    def test_the_rest_is_reported_where_one_comes_to_nothing(
        self, networks: Networks, call: Callable[..., str]
    ) -> None:
        """At each call, until its folder is removed; it is not gone on with."""
        networks.diverge(lambda trial: (trial.arm, trial.seed) == ("random", 1))
        for _ in range(2):
            with pytest.raises(InputError, match=r"without random_n4_seed1; .*diverged\.txt says"):
                call(seeds=2)
            networks.disturb = lambda trial: pytest.fail("it was tried again")
        assert [len(each) for each in networks.reports] == [3, 3]
        assert "nothing above is of it: random_n4_seed1" in networks.notes[-1][0]

    def test_nothing_is_reported_where_nothing_is_left_to_compare(
        self, networks: Networks, call: Callable[..., str]
    ) -> None:
        networks.diverge(lambda trial: trial.arm == "pretrained")
        with pytest.raises(InputError, match="1 of 2 runs"):
            call()
        assert networks.trained == ["random_n4_seed0"]
        assert not networks.reports

    def test_runs_that_a_report_is_without_are_counted(
        self, networks: Networks, call: Callable[..., str], tmp_path: Path
    ) -> None:
        call(sizes="4,8")
        for each in (tmp_path / "study" / "runs").iterdir():
            (each / "config.json").touch()
        call(sizes="4")
        assert [list(each) for each in networks.notes] == [
            [],
            [
                "Runs of other designs in this folder, of which nothing is in this report: 2, "
                "pretrained_n8_seed0, random_n8_seed0."
            ],
        ]

    def test_it_can_be_told_to_end_between_networks(
        self, networks: Networks, call: Callable[..., str]
    ) -> None:
        networks.disturb = lambda _: os.kill(os.getpid(), signal.SIGTERM)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(PreemptedError):
            call()
        assert signal.getsignal(signal.SIGTERM) is before
        assert not networks.trained


class TestSeveralJobs:
    def test_each_network_is_trained_once_and_the_last_job_reports(
        self, networks: Networks, call: Callable[..., str]
    ) -> None:
        options: dict[str, Any] = {"seeds": 3, "tune": "1,3"}
        said = call(**options, shard="1/2")
        # Those of its own by which learning rates are chosen, and those that nobody is at; then its
        # share: both arms with a seed.
        assert networks.trained[:2] == ["pretrained_n4_seed0", "random_n4_seed0"]
        assert len(networks.trained) == 2 + 2 + 2
        assert "pretrained_n4_seed0_x3  (learning rates, of another job)" in said
        assert "4 of 6 runs are done; missing: pretrained_n4_seed1, random_n4_seed1." in said
        assert "without --shard" in said
        assert not networks.reports
        call(**options, shard="2/2")
        assert len(networks.trained) == len(set(networks.trained)) == 8
        assert [len(each) for each in networks.reports] == [6]

    def test_it_goes_on_where_another_job_is_at_a_network(
        self, networks: Networks, call: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Which it comes back to."""
        asked: list[str] = []

        def claimed_later(out: Path, name: str, mine: bool) -> Any:
            asked.append(name)
            return claimed(out, name, mine) if asked.count(name) > 1 else _not_mine()

        monkeypatch.setattr(study_work, "claimed", claimed_later)
        said = call()
        assert "pretrained_n4_seed0: another job is at it" in said
        assert networks.trained == ["pretrained_n4_seed0", "random_n4_seed0"]
        assert networks.reports

    def test_a_run_directory_that_somebody_resumes_is_left_alone(
        self, networks: Networks, call: Callable[..., str]
    ) -> None:
        def disturb(trial: Trial) -> None:
            if trial.arm == "pretrained":
                raise HeldError("it is being written")

        networks.disturb = disturb
        assert "1 of 2 runs are done; missing: pretrained_n4_seed0." in call()
        assert networks.trained == ["random_n4_seed0"]

    def test_others_are_waited_for_and_not_for_ever(
        self, networks: Networks, call: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Learning rates of an arm are being chosen by another job, and then that is dead."""

        def claimed_else(out: Path, name: str, mine: bool) -> Any:
            return _not_mine() if name == "random_n4_seed0_x3" else claimed(out, name, mine)

        monkeypatch.setattr(study_work, "claimed", claimed_else)
        monkeypatch.setattr(sharing, "PATIENCE", 0.01)
        said = call(tune="1,3", seeds=2)
        assert "waiting for other jobs, which train random_n4_seed0_x3" in said
        assert "2 of 4 runs are done; missing: random_n4_seed0_x3." in said
        assert {"pretrained_n4_seed1", "random_n4_seed0"} < set(networks.trained)

    def test_a_job_that_is_killed_lets_its_network_go(self, tmp_path: Path) -> None:
        (tmp_path / ".locks").mkdir()
        hold = (
            "import fcntl, sys, time; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX);"
            "print(flush=True); time.sleep(99)"
        )
        other = subprocess.Popen(
            [sys.executable, "-c", hold, str(tmp_path / ".locks" / "a")], stdout=subprocess.PIPE
        )
        assert other.stdout is not None
        with other.stdout:
            other.stdout.readline()
            with claimed(tmp_path, "a", True) as mine, claimed(tmp_path, "b", False) as free:
                assert (mine, free) == (False, True)
            other.kill()
            other.wait()
        with claimed(tmp_path, "a", False) as mine:
            assert mine


class _not_mine:  # noqa: N801 - stands for a function
    def __enter__(self) -> bool:
        return False

    def __exit__(self, *_: object) -> None:
        pass


BEFORE = {"model of the arm a": "1", "batch of the arm a": "2", "model of the arm b": "3"}


class TestInputs:
    def test_more_and_fewer_arms_are_fine(self) -> None:
        check_unchanged(Path("o"), BEFORE, {"model of the arm a": "1", "model of arm c": "4"})

    def test_another_model(self) -> None:
        with pytest.raises(InputError, match="o was begun with another model of the arm b; put"):
            check_unchanged(Path("o"), BEFORE, {"model of the arm b": "4"})

    def test_what_was_none_or_is_none_now(self) -> None:
        before = {"rules file of the arm a": "none", "label map": "1"}
        with pytest.raises(InputError, match="begun with no rules file of the arm a; leave it out"):
            check_unchanged(Path("o"), before, {"rules file of the arm a": "2"})
        with pytest.raises(InputError, match="another label map; put"):
            check_unchanged(Path("o"), before, {"label map": "none"})

    @pytest.mark.parametrize(
        "text",
        [
            '{"format": "voxtune study 1", "inputs": {"weights": "1"}}',
            '{"format": "voxtune study 1", "inputs": {"label map": "\\u001b[2J"}}',
            '{"format": "voxtune study 1", "inputs": {"label map": 3}}',
            '{"format": "voxtune study 1", "inputs": {}, "runs": ' + 900 * "[" + 900 * "]" + "}",
            9000 * '{"a":' + "3" + 9000 * "}",
            "[]",
        ],
        ids=["unknown", "control", "number", "deep", "deeper", "list"],
    )
    def test_a_document_of_a_stranger(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(InputError, match=r"study.json .*; remove it"):
            begin_document(tmp_path, {"label map": "none"})

    def test_devices_that_ask_for_another_batch(self) -> None:
        with pytest.raises(InputError, match=r"arm a \(2, not 8\); give --batch 2"):
            check_unchanged(Path("o"), BEFORE, {"batch of the arm a": "8"})

    def test_they_may_be_others_until_a_network_is_trained(
        self, networks: Networks, call: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        networks.disturb = lambda _: (_ for _ in ()).throw(InputError("no"))
        with pytest.raises(InputError, match="no"):
            call()
        monkeypatch.setattr(study_module, "check_inputs", lambda *_: {"subjects or scans": "b"})
        networks.disturb = lambda _: None
        call()
        monkeypatch.setattr(study_module, "check_inputs", lambda *_: {"subjects or scans": "c"})
        with pytest.raises(InputError, match="another subjects or scans"):
            call()


@pytest.mark.parametrize(
    ("error", "status"), [(PreemptedError(0), 75), (KeyboardInterrupt(), 130)], ids=["told", "^C"]
)
def test_what_a_job_that_ends_early_leaves_to_be_gone_on_with(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
) -> None:
    def ends(*_: object) -> None:
        raise error

    monkeypatch.setattr(study_module, "study", ends)
    assert cli.main(["study", "--model", "m", "--data", "d", "--out", "o"]) == status
    assert "the same command goes on" in capsys.readouterr().err


def test_locks_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / ".locks" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written"), claimed(tmp_path, "a", True):
        pass
    # What goes wrong within is nothing of theirs.
    with pytest.raises(PermissionError), claimed(tmp_path, "b", True):
        raise PermissionError


# Before any network is trained


@pytest.fixture
def study_table(tmp_path: Path, scans: Any) -> Path:
    """Subjects a, b to train on, c to validate on, d to test on."""
    path = tmp_path / "subjects.csv"
    lines = ["subject,image,label,split"]
    for name, split in zip("abcd", ("train", "train", "validation", "test"), strict=True):
        scans.save(tmp_path / f"{name}.nii", scans.image)
        scans.save(tmp_path / f"{name}_label.nii", scans.label)
        lines.append(f"{name},{name}.nii,{name}_label.nii,{split}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def refused_study(
    refused: Callable[..., str], models: Path, study_table: Path
) -> Callable[..., str]:
    def run(*options: str, batch: Sequence[str] = ("--batch", "1")) -> str:
        places = ["--model", models / "meshnet", "--out", study_table.parent / "study"]
        short = ["--sizes", "1,2", "--steps", "2", "--mesh", "data=1", *batch]
        data = [] if "--data" in options else ["--data", study_table]
        return refused("study", *places, *data, *short, *options)

    return run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("b.nii,b_label.nii,train", "b.nii,b_label.nii,validation"), "wants 2 scans"),
        ((",test", ",train"), "no subject of the split test"),
        ((",validation", ",train"), "no subject of the split validation"),
        (("d,d.nii", "b_,d.nii"), None),
        (("\na,", "\nsub-1_ses-1,", "\nd,", "\nsub-1_ses-2,"), "same person"),
        (("d.nii,", "e.nii,"), "e.nii"),
    ],
)
def test_tables_that_do_not_suit(
    study_table: Path,
    refused_study: Callable[..., str],
    change: Sequence[str],
    words: str | None,
) -> None:
    text = study_table.read_text()
    for old, new in zip(change[::2], change[1::2], strict=True):
        text = text.replace(old, new)
    study_table.write_text(text)
    if words is not None:
        assert words in refused_study()
    else:  # all is well, but for an option
        assert "level" in refused_study("--freeze-until", "nowhere")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", "validation", "--tune", "1,3"], "--tune has chosen"),
        (["--split", "validation", "--patience", "2"], "--patience has chosen"),
        (["--loss", "mean_squared_error"], "no Dice to compare"),
        (["--data", "http://localhost/store"], "a store that lies here"),
        (["--warmup", "9"], "--warmup 9"),
        (["--labels", "1=a", "5=b"], "no voxel of 5 b"),
        (["--seeds", "2", "--seed", str(2**32 - 1)], "--seed 4294967295 is too large"),
    ],
)
def test_options_that_do_not_suit(
    refused_study: Callable[..., str], options: Sequence[str], words: str
) -> None:
    assert words in refused_study(*options)


def test_arms_see_as_many_blocks(refused_study: Callable[..., str], study_table: Path) -> None:
    design = study_table.with_name("design.toml")
    design.write_text("[arms.a]\n[arms.b]\naccumulate = 4\n")
    assert "give --batch" in refused_study("--design", str(design), batch=())


@pytest.mark.parametrize("name", ["b", "d"])
def test_all_scans_are_read_before_any_network_is_trained(
    refused_study: Callable[..., str], study_table: Path, name: str
) -> None:
    """One of the larger size, and one that results are measured on."""
    label = study_table.with_name(f"{name}_label.nii")
    label.write_bytes(label.read_bytes()[:-20])
    assert str(label) in refused_study()


def test_a_class_that_the_first_network_does_not_see(
    refused_study: Callable[..., str], study_table: Path, scans: Any
) -> None:
    scans.save(study_table.with_name("b_label.nii"), scans.label + 3)
    scans.save(study_table.with_name("a_label.nii"), scans.label)
    assert "b_label.nii has the label value" in refused_study("--seed", "1")


def test_an_arm_that_cannot_be_trained_is_told_before_another_is(
    refused_study: Callable[..., str], study_table: Path
) -> None:
    design = study_table.with_name("design.toml")
    design.write_text('[arms.a]\n[arms.b]\nfreeze_until = "nowhere"\n')
    sentence = refused_study("--design", str(design))
    assert "nowhere" in sentence
    assert "arm b" in sentence
