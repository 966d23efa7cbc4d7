"""Fine-tuning on blobs: what a run leaves behind, what it starts from, and that it repeats."""

import dataclasses
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import nibabel as nib
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console

from voxtune.engine.config import Finetune, Prepare
from voxtune.engine.contract import SHARES, Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec, read_model, write_model
from voxtune.engine.prepare import prepare as prepare_store
from voxtune.engine.setup import set_up
from voxtune.engine.step import TrainStep
from voxtune.engine.store import read_store
from voxtune.engine.subjects import read_subjects
from voxtune.engine.train import finetune
from voxtune.engine.trees import flat
from voxtune.engine.validation import Validation, validate
from voxtune.models.errors import InputError
from voxtune.models.parameters import shapes

EDGE, STEPS, WARMUP = 16, 40, 4
TRUNK_LR, HEAD_LR = 0.03, 0.1
ARGUMENTS = {
    "channels": 1,
    "outputs": 2,
    "filters": 2,
    "dilations": [1],
    "activation": "relu",
    "norm": None,
}
SPEC = ModelSpec(
    family="meshnet",
    arguments=ARGUMENTS,
    output_activation="softmax",
    classes=(LabelClass(0, "background"), LabelClass(1, "head")),
    contract=Contract("LIA", (1.0, 1.0, 1.0), "zscore", (EDGE,) * 3, 0.5),
)
RNG = np.random.default_rng(0)
PARAMETERS = {
    path: 0.3 * RNG.normal(size=shape).astype(np.float32)
    for path, shape in shapes("meshnet", ARGUMENTS).items()
}
TRUNK = {path for path in PARAMETERS if not path.startswith("head/")}
HEAD = PARAMETERS.keys() - TRUNK


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs that share a program share its compilation: it takes far longer than their steps."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory, and a table of subjects with a bright blob; the test subject is broken."""
    folder = tmp_path_factory.mktemp("study")
    write_model(folder / "pretrained", SPEC, PARAMETERS, history={})
    rng = np.random.default_rng(1)
    rows = ["subject,image,label,split"]
    for number, split in enumerate(["train", "train", "validation", "test"]):
        image = rng.normal(size=(EDGE,) * 3)
        offset = np.indices(image.shape) - rng.integers(5, 11, 3)[:, None, None, None]
        blob = (offset**2).sum(axis=0) < 16
        image[blob] += 4
        label = np.where(blob, 7, 0).astype(np.uint8)
        for name, data in (("image", image.astype(np.float32)), ("label", label)):
            path = folder / f"{name}{number}.nii"
            nib.save(nib.Nifti1Image(data, np.eye(4)), path)
            if split == "test":
                path.write_bytes(b"This is no scan.")
        rows.append(f"sub-{number},image{number}.nii,label{number}.nii,{split}")
    (folder / "subjects.csv").write_text("\n".join(rows))
    return folder


def options(folder: Path, name: str, **changes: Any) -> Finetune:
    config = Finetune(
        folder / "pretrained",
        folder / "subjects.csv",
        folder / name,
        steps=STEPS,
        batch=4,
        block=(12, 12, 12),
        trunk_lr=TRUNK_LR,
        head_lr=HEAD_LR,
        warmup=WARMUP,
        labels=("7=blob",),
        validate_every=20,
        log_every=1,
        mesh="data=1",
    )
    return dataclasses.replace(config, **changes)


def train(folder: Path, name: str, **changes: Any) -> Path:
    """Runs one fine-tuning; the run directory."""
    config = options(folder, name, **changes)
    finetune(config, Console(quiet=True))
    return config.run_dir


@pytest.fixture(scope="module")
def run_dir(folder: Path) -> Path:
    """A run of 40 steps."""
    return train(folder, "run")


def events(run_dir: Path, event: str) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


def parameters(run_dir: Path) -> dict[str, np.ndarray]:
    return read_model(run_dir / "model")[1]


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether all arrays are equal to the last bit."""
    assert one.keys() == other.keys()
    return all(one[path].tobytes() == other[path].tobytes() for path in one)


class TestRunDirectory:
    def test_all_of_it_is_there(self, run_dir: Path) -> None:
        names = {path.name for path in run_dir.iterdir()}
        assert names == {
            "config.json",
            "parameters.json",
            "rules.json",
            "subjects.csv",
            "metrics.jsonl",
            ".voxtune",
            "checkpoints",
            "model",
        }
        steps = {path.name for path in (run_dir / "checkpoints").iterdir() if path.is_dir()}
        assert steps == {"20", "40"}

    def test_config_json_says_what_the_run_is(self, run_dir: Path) -> None:
        record = json.loads((run_dir / "config.json").read_text())
        assert record["options"]["seed"] == 0
        assert record["options"]["model_dir"] == str(run_dir.parent / "pretrained")
        assert record["options"]["block"] == [12, 12, 12]
        assert (record["train"], record["validation"]) == (["sub-0", "sub-1"], ["sub-2"])
        assert {"voxtune", "jax", "python"} <= record["versions"].keys()

    def test_every_parameter_is_loaded_or_initialised(self, run_dir: Path) -> None:
        origin = json.loads((run_dir / "parameters.json").read_text())["parameters"]
        assert origin.keys() == PARAMETERS.keys()
        assert all(origin[path] == "loaded" for path in TRUNK)
        assert all(origin[path].startswith("initialised") for path in HEAD)

    def test_each_step_is_logged_with_a_finite_loss(self, run_dir: Path) -> None:
        entries = events(run_dir, "train")
        assert [entry["step"] for entry in entries] == list(range(1, STEPS + 1))
        for entry in entries:
            assert math.isfinite(entry["loss"])
            wanted = entry["dice_loss"] + entry["cross_entropy"]
            assert entry["loss"] == pytest.approx(wanted, rel=1e-6)

    def test_learning_rates_rise_and_fall_as_by_hand(self, run_dir: Path) -> None:
        for entry in events(run_dir, "train"):
            done = entry["step"] - 1
            way = max(0, done - WARMUP) / (STEPS - WARMUP)
            share = min(1, done / WARMUP) * 0.5 * (1 + math.cos(math.pi * way))
            wanted = {"trunk": TRUNK_LR * share, "head": HEAD_LR * share}
            assert entry["learning_rates"] == pytest.approx(wanted, rel=1e-4, abs=1e-8)

    def test_the_model_has_the_new_classes_and_the_training_block(self, run_dir: Path) -> None:
        spec, values = read_model(run_dir / "model")
        assert spec.classes == (LabelClass(0, "background"), LabelClass(7, "blob"))
        quantiles = spec.contract.quantiles
        assert spec.contract == dataclasses.replace(
            SPEC.contract, block=(12, 12, 12), quantiles=quantiles
        )
        scans = [nib.load(run_dir.parent / f"image{n}.nii").get_fdata() for n in (0, 1)]
        scaled = [(scan - scan.mean()) / scan.std() for scan in scans]
        wanted = np.mean([np.quantile(scan, SHARES) for scan in scaled], axis=0)
        np.testing.assert_allclose(quantiles, wanted, atol=1e-3)
        assert values.keys() == PARAMETERS.keys()
        record = json.loads((run_dir / "model" / "finetune.json").read_text())
        assert record["train"] == ["sub-0", "sub-1"]

    def test_all_parameters_were_trained(self, run_dir: Path) -> None:
        values = parameters(run_dir)
        assert all(np.isfinite(value).all() for value in values.values())
        assert not any((values[path] == PARAMETERS[path]).all() for path in TRUNK)

    def test_the_network_learns_the_blob(self, run_dir: Path) -> None:
        entries = events(run_dir, "validation")
        assert [entry["step"] for entry in entries] == [20, 40]
        assert entries[-1]["dice"]["blob"] > 0.5
        losses = [entry["loss"] for entry in events(run_dir, "train")]
        assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])

    def test_its_table_says_who_was_trained_on(self, run_dir: Path) -> None:
        written = read_subjects(run_dir / "subjects.csv")
        assert [(each.name, each.split) for each in written] == [
            ("sub-0", "train"),
            ("sub-1", "train"),
            ("sub-2", "validation"),
        ]


class TestRepeating:
    def test_the_same_seed_gives_the_same_bits_and_overwrite_replaces(
        self, folder: Path, run_dir: Path
    ) -> None:
        (folder / "again").mkdir()
        (folder / "again" / ".voxtune").touch()
        (folder / "again" / "stale").write_text("of an older run")
        again = train(folder, "again", overwrite=True)
        assert same(parameters(again), parameters(run_dir))
        losses = [[entry["loss"] for entry in events(each, "train")] for each in (again, run_dir)]
        assert losses[0] == losses[1]
        assert not (again / "stale").exists()

    def test_another_seed_gives_another_network(self, folder: Path, run_dir: Path) -> None:
        other = train(folder, "other", seed=1)
        assert not same(parameters(other), parameters(run_dir))

    def test_devices_do_not_matter(self, folder: Path, run_dir: Path) -> None:
        """The warm-up does not depend on the number of steps, so four compare with forty."""
        four = train(folder, "four", mesh="data=4", steps=WARMUP + 1, validate_every=100)
        wanted = [entry["loss"] for entry in events(run_dir, "train")][:WARMUP]
        found = [entry["loss"] for entry in events(four, "train")][:WARMUP]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.fixture(scope="module")
def store(folder: Path) -> Path:
    """The store of the subjects that are no test subjects, whose scan is broken."""
    rows = (folder / "subjects.csv").read_text().splitlines()
    (folder / "sound.csv").write_text("\n".join(rows[:-1]))
    made = Prepare(folder / "sound.csv", folder / "store", model=folder / "pretrained", workers=1)
    prepare_store(made, Console(quiet=True))
    return folder / "store"


class TestData:
    """Where blocks are read from does not matter, and images need not be there at all."""

    def test_a_store_gives_the_bits_that_its_table_gives(
        self, folder: Path, store: Path, run_dir: Path
    ) -> None:
        stored = train(folder, "stored", subjects=str(store))
        assert same(parameters(stored), parameters(run_dir))
        written = read_subjects(stored / "subjects.csv")
        assert [(each.name, each.split) for each in written] == [
            ("sub-0", "train"),
            ("sub-1", "train"),
            ("sub-2", "validation"),
        ]

    def test_a_cache_on_the_devices_gives_the_same_but_for_its_rounding(
        self, folder: Path, store: Path, run_dir: Path
    ) -> None:
        """Blocks are rounded to bfloat16, three digits, and each device cuts its own."""
        cached = train(
            folder, "cached", subjects=str(store), cache="device", mesh="data=2", steps=5
        )
        wanted = [entry["loss"] for entry in events(run_dir, "train")][:WARMUP]
        found = [entry["loss"] for entry in events(cached, "train")][:WARMUP]
        np.testing.assert_allclose(found, wanted, rtol=5e-3)
        assert not np.array_equal(found, wanted)

    @pytest.mark.parametrize("run", ["store", "pretrained", "."])
    def test_what_a_run_is_made_of_is_not_replaced(
        self, folder: Path, store: Path, run: str
    ) -> None:
        (folder / ".voxtune").touch()
        changes = {"subjects": str(store), "run_dir": folder / run, "overwrite": True}
        with pytest.raises(InputError, match=r"would be removed with .*; choose another folder"):
            finetune(options(folder, "never", **changes), Console(quiet=True))
        assert read_store(store).cases[0].label[:1].shape == (1, EDGE, EDGE)
        assert (folder / "pretrained" / "model.json").is_file()

    def test_a_target_has_voxels_for_the_divergence(self, folder: Path) -> None:
        """The divergence of random weights is divided by them; targets have no labels to count."""
        arguments = {"channels": 1, "outputs": 1, "filters": 2, "dilations": [1]}
        spec = dataclasses.replace(
            SPEC,
            family="bayesian_meshnet",
            arguments=arguments,
            output_activation="linear",
            classes=(),
        )
        made = {
            path: np.full(shape, 0.1, np.float32)
            for path, shape in shapes("bayesian_meshnet", arguments).items()
        }
        write_model(folder / "bayesian", spec, made, history={})
        changes = {"model_dir": folder / "bayesian", "loss": "mean_squared_error", "labels": None}
        setup = set_up(options(folder, "never", **changes), Console(quiet=True))
        step, _, _ = setup.step(setup.start.network())
        assert step.voxels == 2 * EDGE**3

    def test_label_maps_alone_are_enough(self, folder: Path) -> None:
        rows = [row.split(",") for row in (folder / "subjects.csv").read_text().splitlines()]
        table = "\n".join(",".join((name, label, split)) for name, _, label, split in rows[:-1])
        (folder / "labels.csv").write_text(table)
        drawn = {"subjects": str(folder / "labels.csv"), "synthetic": True, "steps": 30}
        run = train(folder, "drawn", head_lr=0.03, **drawn)
        losses = [entry["loss"] for entry in events(run, "train")]
        assert np.isfinite(losses).all()
        assert losses[-1] < losses[0]
        assert events(run, "validation")[-1]["dice"].keys() == {"blob"}
        assert read_model(run / "model")[0].contract.quantiles is None  # of nothing but drawings

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"cache": "disk"}, "reads blocks from a store"),
            ({"workers": 2}, "processes that read blocks from a store"),
            ({"swap": ("7=8",)}, "there is no 8, only 0, 7"),
            ({"synthetic": True, "loss": "mean_squared_error", "labels": None}, "--synthetic"),
            ({"synthetic": True, "augment": "strong"}, "--synthetic changes blocks in its own way"),
            ({"workers": -1}, "--workers -1 makes no sense"),
            ({"fold": "1/1"}, "--fold 1/1 leaves no subject to train on"),
            ({"fold": "1/4"}, "needs 4 people at least, but .* has 3 that are not in the split"),
            ({"fold": "1/3", "hold_out": 0.3}, "says who is kept .* --hold-out 0.3; leave one"),
        ],
    )
    def test_what_does_not_go_together(self, folder: Path, changes: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            finetune(options(folder, "never", **changes), Console(quiet=True))


def test_a_loss_that_is_never_finite_ends_the_run_without_a_model(folder: Path):
    """Weights so large that every step overflows; the program is that of the other runs."""
    huge = {path: np.full_like(value, 3e38) for path, value in PARAMETERS.items()}
    write_model(folder / "huge", SPEC, huge, history={})
    with pytest.raises(InputError, match=r"steps in a row, .* \(sub-\d.* lower --trunk-lr"):
        train(folder, "diverged", model_dir=folder / "huge")
    run = folder / "diverged"
    assert not (run / "model").exists()
    assert len(events(run, "skipped")) == 10
    assert (run / "checkpoints" / "10").is_dir()


class TestRecipe:
    def test_a_dry_run_shows_each_parameter_and_writes_nothing(self, folder: Path) -> None:
        before = set(folder.iterdir())
        console = Console(width=200, record=True, file=io.StringIO())
        recipe = {"rule": ("block1/*kernel freeze",), "anchor": 0.1, "ema": 0.9}
        config = options(folder, "dry", dry_run=True, **recipe)
        assert finetune(config, console).scores == {}
        shown = console.export_text()
        assert all(path in shown for path in PARAMETERS)
        assert "GFLOP" in shown
        assert "an epoch: 0.5 steps" in shown
        assert set(folder.iterdir()) == before

    def test_it_counts_the_step_of_all_processes(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also where this one reads half of a batch."""

        def shown() -> list[str]:
            console = Console(width=200, record=True, file=io.StringIO())
            finetune(options(folder, "dry", dry_run=True), console)
            return console.export_text().splitlines()

        wanted = shown()
        monkeypatch.setattr("voxtune.engine.setup.share_of", lambda mesh: (1, 2))
        assert shown() == wanted
        kind = jax.devices()[0].device_kind
        assert any(line.endswith(f"devices: 1 x {kind}") for line in wanted)

    def test_its_examples_are_the_first_blocks_of_the_run(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is drawn is what the step makes of its batch, to the bit."""
        drawn: list[Any] = []
        draw = "voxtune.engine.examples.draw_contours"
        monkeypatch.setattr(draw, lambda rows, path: drawn.extend(rows))
        config = options(folder, "dry", dry_run=True, examples=folder / "blocks.png")
        finetune(config, Console(quiet=True))
        setup = set_up(config, Console(quiet=True))
        step, params, statistics = setup.step(setup.start.spec.network(PARAMETERS))
        state = step.first_state(params, statistics, config.seed)
        batch = {name: each for name, each in setup.batches()[0].items() if name != "name"}
        seen: list[Any] = []

        def spied(self: Any, *given: Any) -> Any:
            seen.append(given[3:5])
            return loss_of(self, *given)

        loss_of = TrainStep.loss_of
        monkeypatch.setattr(TrainStep, "loss_of", spied)
        with jax.disable_jit():
            step(state, batch)
        assert len(drawn) == 6
        assert drawn[0][0].endswith("step 1")
        np.testing.assert_allclose(drawn[0][1].data, seen[0][0][0, ..., 0], atol=1e-5)
        np.testing.assert_array_equal(drawn[0][2].data, seen[0][1][0])

    def test_what_is_frozen_comes_out_as_it_went_in(self, folder: Path) -> None:
        frozen = parameters(train(folder, "frozen", freeze_until="head", steps=5, warmup=0))
        assert all(frozen[path].tobytes() == PARAMETERS[path].tobytes() for path in TRUNK)
        assert not any(np.array_equal(frozen[path], PARAMETERS[path]) for path in HEAD)

    def test_no_better_validation_stops_the_run_and_the_best_weights_are_kept(
        self, folder: Path
    ) -> None:
        """At a huge learning rate Dice jumps about; what is kept is what scored best."""
        run = train(folder, "early", head_lr=30.0, trunk_lr=30.0, validate_every=1, patience=3)
        dice = [entry["dice"]["blob"] or 0.0 for entry in events(run, "validation")]
        best = max(range(len(dice)), key=lambda step: (dice[step], step))
        assert len(dice) < STEPS
        assert all(value <= dice[best] for value in dice[-3:])
        kept = json.loads((run / "model" / "finetune.json").read_text())["validation"]
        assert kept["dice"]["blob"] == dice[best]

    def test_the_average_is_what_is_validated_and_kept(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It lags behind the weights: what the predictor is given and what is written is it."""
        seen: list[Any] = []

        def spied(predictor: Any, member: Any, *rest: Any) -> Validation:
            seen.append({path: np.array(value) for path, value in flat(member.params).items()})
            return validate(predictor, member, *rest)

        monkeypatch.setattr("voxtune.engine.train.validate", spied)
        plain = parameters(train(folder, "plain", steps=6, warmup=0))
        averaged = parameters(train(folder, "averaged", ema=0.5, steps=6, warmup=0))
        assert not same(plain, averaged)
        for path, value in averaged.items():
            np.testing.assert_array_equal(seen[-1][path], value)
            assert not np.array_equal(value, plain[path])

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"optimizer": "adam", "weight_decay": 0.1}, "adam has no decay"),
            ({"patience": 1, "subjects": None}, "no subject to validate on"),
            ({"loss": "dice", "class_weights": (1.0, 2.0)}, "--class-weights"),
            ({"loss": "cross_entropy", "class_weights": (1.0,)}, "--class-weights"),
            ({"label_smoothing": 1.0}, "--label-smoothing"),
            ({"loss": "elbo"}, "random"),
            ({"accumulate": 3}, "in 3 parts; pass --batch 6"),
            ({"layer_decay": math.nan}, "--layer-decay nan"),
            ({"clip": -1.0}, "--clip -1.0"),
            ({"ema": 1.0}, "--ema 1.0"),
            ({"patience": 0}, "--patience 0"),
            ({"rule": ("encoder/* freeze",)}, "matches no parameter"),
            ({"examples": Path("a.png")}, "pass --dry-run with it"),
            ({"examples": Path("a.jpg"), "dry_run": True}, "must end in .png"),
        ],
    )
    def test_options_that_make_no_sense(self, folder: Path, changes: Any, words: str) -> None:
        if "subjects" in changes:  # a table without a split for validation
            table = (folder / "subjects.csv").read_text().replace("validation", "train")
            (folder / "all.csv").write_text(table)
            changes = changes | {"subjects": folder / "all.csv"}
        with pytest.raises(InputError, match=words):
            finetune(options(folder, "never", **changes), Console(quiet=True))
        assert not (folder / "never").exists()
