"""Fine-tuning: from a model directory and a subjects table to a run directory."""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console

from voxtune.engine.checkpoint import Checkpoints
from voxtune.engine.config import Finetune
from voxtune.engine.dataset import Case, Pair, batches, make_case, make_target_case, read_pairs
from voxtune.engine.display import Display
from voxtune.engine.dry_run import parameter_lines, totals
from voxtune.engine.loop import Job, train
from voxtune.engine.losses import IGNORE, REGRESSION
from voxtune.engine.mesh import check_batch, data_mesh, memory_errors, on_all, over_data
from voxtune.engine.model_dir import (
    Contract,
    ModelSpec,
    check_trainable,
    read_model,
    training_channels,
    write_model,
)
from voxtune.engine.output import check_free
from voxtune.engine.predict import Predictor
from voxtune.engine.rules import FOREVER, Parameters, Rules, make_rules, parse_rule, shortened
from voxtune.engine.run_dir import Log, finite, make_run_dir, record
from voxtune.engine.sanity import check_start
from voxtune.engine.start import Start, make_start
from voxtune.engine.step import TrainState, TrainStep, loss_of, make_step
from voxtune.engine.subjects import Subject, read_subjects, write_subjects
from voxtune.engine.task import classes_of, contract_of, label_counts, listed, prevalence_of
from voxtune.engine.trees import flat
from voxtune.engine.validation import Validation, validate
from voxtune.models.errors import InputError
from voxtune.models.families import Network
from voxtune.models.variational import divergence


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, read and checked.

    Attributes:
        config: of the run.
        start: the network to train.
        rules: what happens to each of its parameters.
        train: subjects to train on.
        validation: subjects to validate on.
        train_cases: those as the network sees them.
        validation_cases: likewise.
        batch: blocks a step.
        mesh: the devices.
        warnings: sentences about how the pretrained network does on the scans.
    """

    config: Finetune
    start: Start
    rules: Rules
    train: Sequence[Subject]
    validation: Sequence[Subject]
    train_cases: Sequence[Case]
    validation_cases: Sequence[Case]
    batch: int
    mesh: Mesh
    warnings: Sequence[str]

    def step(self, network: Network) -> tuple[TrainStep, Any, Any]:
        """The training step, and the network's parameters and statistics."""
        return make_step(
            network,
            self.config,
            self.rules,
            flip_axes=_flip_axes(self.config, self.start.spec.contract),
            voxels=sum(int(_known(case.label).sum()) for case in self.train_cases),
        )

    def data(self) -> grain.MapDataset:
        """Batches without end."""
        block, config = self.start.spec.contract.block, self.config
        return batches(self.train_cases, block, self.batch, config.foreground, config.seed)


@memory_errors()
def finetune(config: Finetune, console: Console) -> Validation:
    """Runs one fine-tuning, or with `dry_run` shows what it would do.

    Everything is read and checked before the run directory is made.

    Returns:
        The validation of the weights that are kept.

    Raises:
        InputError: the model, the table, a scan or an option is bad, or the run exists.
    """
    prepared = prepare(config)
    for line in _announcement(prepared):
        console.print(line, highlight=False, soft_wrap=True)
    data = prepared.data()
    first = {name: each for name, each in data[0].items() if name != "name"}
    if not config.dry_run:
        return _run(prepared, data, first, console)
    step, params, statistics = prepared.step(prepared.start.network())
    first_state = functools.partial(step.first_state, seed=config.seed)
    state = jax.eval_shape(first_state, params, statistics)
    cases = len(prepared.train_cases)
    for line in (
        *parameter_lines(prepared.rules, prepared.start.origin, config),
        *totals(prepared.rules, step, state, first, cases, config.steps),
    ):
        console.print(line, highlight=False, soft_wrap=True)
    return Validation({})


def _run(
    prepared: Prepared,
    data: grain.MapDataset,
    first: dict[str, np.ndarray],
    console: Console,
) -> Validation:
    """Trains and writes the run directory."""
    config, start, mesh = prepared.config, prepared.start, prepared.mesh
    step, params, statistics = prepared.step(start.spec.network(start.parameters))
    state = step.first_state(params, statistics, config.seed)
    state = jax.device_put(state, on_all(mesh))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=on_all(mesh))
    began = time.perf_counter()
    compiled = jitted.lower(state, jax.device_put(first, over_data(mesh))).compile()
    seconds = time.perf_counter() - began
    console.print(f"step compiled in {seconds:.1f} s", highlight=False)

    about = record(config, prepared.train, prepared.validation, mesh)
    documents = {
        "config": about,
        "parameters": start.to_json(),
        "rules": prepared.rules.to_json(),
    }
    make_run_dir(config.run_dir, config.overwrite, documents)
    splits = {"train": prepared.train, "validation": prepared.validation}
    write_subjects(config.run_dir / "subjects.csv", splits)
    log = Log(config.run_dir / "metrics.jsonl")
    log.write(event="compiled", seconds=seconds)
    predictor = Predictor(step.apply, start.spec.contract.block, 0.25, mesh, not start.spec.classes)

    def validated(state: TrainState) -> Validation:
        cases = prepared.validation_cases
        return validate(predictor, state.averaged(), state.statistics, cases, start.spec)

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    feed = iter(data.to_iter_dataset(options))
    names = tuple(each.name for each in start.spec.classes)
    job = Job(config, prepared.batch, names, compiled, feed, validated, mesh)
    checkpoints = Checkpoints(config.run_dir / "checkpoints")
    display = Display(console, config.steps, config.log_every)
    with checkpoints, display:
        state, validation = train(job, state, checkpoints, log, display)
    trained = flat(state.averaged()) | flat(state.statistics)
    about["validation"] = finite(validation.scores)
    write_model(config.run_dir / "model", start.spec, trained, history={"finetune": about})
    console.print(f"wrote {config.run_dir / 'model'}", highlight=False, soft_wrap=True)
    return validation


def prepare(config: Finetune) -> Prepared:
    """Reads and checks everything.

    Raises:
        InputError: the model, the table, a scan or an option is bad, or the run exists.
    """
    _check_options(config)
    if not config.dry_run:
        check_free(config.run_dir, config.overwrite)
    spec, parameters = read_model(config.model_dir)
    check_trainable(spec, config.model_dir)
    mesh = data_mesh(config.devices)
    batch = _batch(config, mesh)
    every = read_subjects(config.subjects)
    channels = training_channels(spec, config.model_dir, every[0].channels)
    subjects, validation = split_subjects([each.taking(channels) for each in every], config)
    target = config.loss in REGRESSION
    if config.patience is not None and not validation:
        raise InputError(
            "--patience stops a run by its validations, but there is no subject to validate on; "
            f"give {config.subjects} a split validation, or leave it out."
        )
    train_pairs, validation_pairs = (
        read_pairs(each, target=target) for each in (subjects, validation)
    )
    counts: Mapping[int, int] = {} if target else label_counts(train_pairs, config.ignore_label)
    classes = classes_of(config, spec, counts)
    if any(each.value == config.ignore_label for each in classes):
        raise InputError(f"--ignore-label {config.ignore_label} is one of the classes.")
    contract = contract_of(spec, config, channels)
    prevalence = prevalence_of(counts, classes)
    start = make_start(spec, parameters, classes, contract, prevalence, config)
    rules = make_rules(Parameters.of(start.network(), start.pretrained), config)
    _check_loss(config, start)

    def case(subject: Subject, pair: Pair) -> Case:
        if target:
            return make_target_case(subject.name, *pair, contract)
        return make_case(subject.name, *pair, contract, classes, config.ignore_label)

    train_cases, validation_cases = (
        # A pair is let go as its case is made: scans take memory.
        [case(subject, pairs.pop(0)) for subject in each]
        for each, pairs in ((subjects, train_pairs), (validation, validation_pairs))
    )
    here = dataclasses.replace(spec, contract=contract)
    warnings = _warnings(here, parameters, train_cases, config)
    return Prepared(
        config,
        start,
        rules,
        subjects,
        validation,
        train_cases,
        validation_cases,
        batch,
        mesh,
        warnings,
    )


def split_subjects(
    subjects: Sequence[Subject], config: Finetune
) -> tuple[list[Subject], list[Subject]]:
    """Subjects to train on and to validate on; those of the split test are never touched.

    Raises:
        InputError: none is left to train on.
    """
    if any(each.split for each in subjects):
        train = [each for each in subjects if each.split == "train"]
        validation = [each for each in subjects if each.split == "validation"]
    else:
        order = np.random.default_rng(config.seed).permutation(len(subjects))
        held = {int(index) for index in order[: round(config.hold_out * len(subjects))]}
        train = [each for index, each in enumerate(subjects) if index not in held]
        validation = [each for index, each in enumerate(subjects) if index in held]
    train = train[: config.train_subjects]
    if not train:
        raise InputError(f"{config.subjects} leaves no subject to train on; check its splits.")
    return train, validation


_AT_LEAST_ONE = (
    "steps",
    "validate_every",
    "log_every",
    "train_subjects",
    "batch",
    "accumulate",
    "unfreeze_every",
    "patience",
)
_FINITE = ("trunk_lr", "head_lr", "weight_decay", "l2", "anchor", "clip")
_SHARES = ("foreground", "hold_out")


def _check_options(config: Finetune) -> None:
    def wrong(names: Sequence[str], low: float, high: float) -> list[str]:
        found = ((name, getattr(config, name)) for name in names)
        return [name for name, value in found if value is not None and not low <= value <= high]

    largest = float(np.finfo(np.float32).max)
    for names, low, high, advice in (
        (_AT_LEAST_ONE, 1, 2**31 - 1, "a whole number of at least 1"),
        (_FINITE, 0, largest, "a finite number of at least 0"),
        (_SHARES, 0, 1, "a share from 0 to 1"),
        (("ema",), 0, np.nextafter(1, 0), "a share from 0 to below 1"),
        (("layer_decay",), np.nextafter(0, 1), 1, "a factor above 0, up to 1"),
        (("seed",), 0, 2**32 - 1, "a whole number from 0 to 4294967295"),
        (("warmup",), 0, 2**31 - 1, "a whole number of at least 0"),
    ):
        for name in wrong(names, low, high):
            option = name.replace("_", "-")
            raise InputError(f"--{option} {getattr(config, name)} makes no sense; give {advice}.")
    loss_of(config)  # raises where its options make no sense
    if config.warmup_steps >= config.steps:
        raise InputError(f"--warmup {config.warmup} must be below --steps {config.steps}.")


def _check_loss(config: Finetune, start: Start) -> None:
    """Makes sure that the loss is one for the network and its classes.

    Raises:
        InputError: it is not.
    """
    loss_of(config).check(start.spec.arguments["outputs"])
    if config.loss != "elbo":
        return
    network = start.spec.network(start.parameters)
    assert isinstance(network, nnx.Module)
    if jax.eval_shape(lambda: divergence(network)) is None:
        raise InputError(
            f"--loss elbo is for networks whose weights are random, which {config.model_dir} does "
            "not hold; pass --loss cross_entropy."
        )


def _batch(config: Finetune, mesh: Mesh) -> int:
    """Blocks a step: what is asked for, or the least that suits.

    Raises:
        InputError: the batch does not split evenly.
    """
    parts = mesh.size * config.accumulate
    if config.batch is None:
        return max(2, parts)
    check_batch(config.batch, mesh, config.accumulate)
    return config.batch


def _known(label: np.ndarray) -> np.ndarray:
    """Where a label or a target says something."""
    return np.isfinite(label) if label.dtype.kind == "f" else label != IGNORE


def _warnings(
    spec: ModelSpec,
    parameters: Mapping[str, np.ndarray],
    cases: Sequence[Case],
    config: Finetune,
) -> list[str]:
    """What is odd about how the pretrained network does on the first two training scans."""
    fresh = (config.model_dir / "creation.json").is_file()
    if fresh or config.init == "random" or config.init_from is not None:
        return []
    images = [case.image[..., : spec.channels] for case in cases[:2]]
    return check_start(spec, parameters, images)


def _flip_axes(config: Finetune, contract: Contract) -> tuple[int, ...]:
    if config.flip == "all":
        return (0, 1, 2)
    if config.flip == "left-right":
        return tuple(axis for axis, code in enumerate(contract.orientation) if code in "LR")
    return ()


def _announcement(prepared: Prepared) -> list[str]:
    """What is about to happen, in lines for a person."""
    config, spec = prepared.config, prepared.start.spec
    block = " x ".join(map(str, spec.contract.block))
    learned = f"classes: {listed(spec.classes)}" if spec.classes else "an image is learned"
    train, validation = len(prepared.train), len(prepared.validation)
    parts = f", in {config.accumulate} parts" if config.accumulate > 1 else ""
    lines = [
        *prepared.start.lines(),
        learned,
        f"subjects: {train} to train on, {validation} to validate on",
        f"blocks: {prepared.batch} of {block} voxels a step{parts}, devices: {prepared.mesh.size}",
        *(f"warning: {each}" for each in prepared.warnings),
    ]
    rows = prepared.rules.rows.values()
    anchors = (parse_rule(each).anchor for each in prepared.rules.given)
    if (config.anchor or any(anchors)) and not any(row.anchor for row in rows):
        lines.append("note: nothing that is trained is pretrained, so anchors pull nothing")
    late = [row for row in rows if config.steps <= row.until < FOREVER]
    if late:
        levels = shortened(list(dict.fromkeys(row.level for row in late)))
        lines.append(f"warning: these thaw after the last step only, so never: {levels}")
    if not prepared.validation:
        lines.append("no subject is of the split validation: nothing is measured on the way")
    return lines
