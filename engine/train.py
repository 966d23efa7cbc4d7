"""Fine-tuning: from a model directory and a subjects table to a run directory."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from rich.console import Console

from voxtune.engine.cache import DeviceCache, Volumes, cut
from voxtune.engine.case import IGNORE, Case
from voxtune.engine.changes import Batch, Changes, augmented, mixed_sides, synthesised
from voxtune.engine.checkpoint import Checkpoints
from voxtune.engine.config import Finetune
from voxtune.engine.dataset import Plan, batches, class_table, examples, host_cached
from voxtune.engine.display import Display
from voxtune.engine.dry_run import parameter_lines, totals
from voxtune.engine.examples import draw_examples
from voxtune.engine.feed import Feed
from voxtune.engine.label_maps import drawn_cases, drawn_of, to_draw
from voxtune.engine.loop import Job, train
from voxtune.engine.losses import REGRESSION
from voxtune.engine.mesh import check_batch, data_mesh, memory_errors, on_all, over_data
from voxtune.engine.model_dir import ModelSpec, check_trainable, read_model, write_model
from voxtune.engine.output import check_apart, check_free
from voxtune.engine.picture import check_picture
from voxtune.engine.predict import Predictor
from voxtune.engine.preparation import files_of
from voxtune.engine.rules import FOREVER, Parameters, Rules, make_rules, parse_rule, shortened
from voxtune.engine.run_dir import Log, finite, make_run_dir, record
from voxtune.engine.sanity import check_start
from voxtune.engine.start import Start, make_start
from voxtune.engine.step import (
    Metrics,
    TrainState,
    TrainStep,
    loss_of,
    make_step,
    step_keys,
)
from voxtune.engine.store import is_store
from voxtune.engine.subjects import write_subjects
from voxtune.engine.task import (
    check_labels,
    classes_of,
    contract_of,
    full_block,
    label_counts,
    listed,
    prevalence_of,
)
from voxtune.engine.training_data import TrainingData, read_training_data
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
        data: the subjects.
        train: those to train on, as blocks are cut from them.
        validation: those to validate on, with images.
        plan: how blocks are cut.
        table: label value → what the label of a block says, uint8; None for a target.
        changes: what a step does to its blocks first.
        mesh: the devices.
        warnings: sentences about how the pretrained network does on the scans.
    """

    config: Finetune
    start: Start
    rules: Rules
    data: TrainingData
    train: Sequence[Case]
    validation: Sequence[Case]
    plan: Plan
    table: np.ndarray | None
    changes: Changes
    mesh: Mesh
    warnings: Sequence[str]

    def step(self, network: Network) -> tuple[TrainStep, Any, Any]:
        """The training step, and the network's parameters and statistics."""
        return make_step(
            network,
            self.config,
            self.rules,
            changes=self.changes,
            voxels=self._voxels(),
        )

    def _voxels(self) -> int:
        """Of all training scans, as far as they are labelled."""
        if self.table is None:
            return sum(math.prod(case.shape) for case in self.train)
        return label_counts(self.train, self.config.ignore_label).total()

    @property
    def unknown(self) -> float:
        """What a label has beside its subject's scan."""
        if self.table is None:
            return math.nan
        return 0 if self.config.synthetic else IGNORE  # drawn as background

    def held(self) -> DeviceCache | None:
        """What each device has to hold, where blocks are cut there."""
        if self.config.cache != "device":
            return None
        return DeviceCache(self.train, self.plan.block, self.table, self.unknown)

    def batches(self, read: bool = True) -> grain.MapDataset:
        """Batches without end, or with `read` off where their blocks lie."""
        share = jax.process_index(), jax.process_count()
        return batches(self.train, self.plan, self.table, self.unknown, share, read)


@memory_errors()
def finetune(config: Finetune, console: Console) -> Validation:
    """Runs one fine-tuning, or with `dry_run` shows what it would do.

    Everything is read and checked before the run directory is made.

    Returns:
        The validation of the weights that are kept.

    Raises:
        InputError: the model, the data or an option is bad, or the run exists.
    """
    prepared = prepare(config, console)
    for line in _announcement(prepared):
        console.print(line, highlight=False, soft_wrap=True)
    if not config.dry_run:
        return _run(prepared, console)
    step, params, statistics = prepared.step(prepared.start.network())
    first_state = functools.partial(step.first_state, seed=config.seed)
    state = jax.eval_shape(first_state, params, statistics)
    first = {name: each for name, each in prepared.batches()[0].items() if name != "name"}
    held = prepared.held()
    if held is not None:
        held.check(prepared.mesh)
    cache = 0 if held is None else held.bytes
    blocks = examples(prepared.train, prepared.plan)
    for line in (
        *parameter_lines(prepared.rules, prepared.start.origin, config),
        *totals(prepared.rules, step, state, first, blocks, config.steps, cache),
    ):
        console.print(line, highlight=False, soft_wrap=True)
    if config.examples is not None:

        def change(step: int, batch: Batch) -> tuple[Array, Array]:
            to_change, _ = step_keys(jax.random.key(config.seed), step)
            return prepared.changes(to_change, batch)

        contract = prepared.start.spec.contract
        draw_examples(prepared.batches(), change, contract, config.examples)
        console.print(f"wrote {config.examples}", highlight=False, soft_wrap=True)
    return Validation({})


def _run(prepared: Prepared, console: Console) -> Validation:
    """Trains and writes the run directory."""
    config, start, mesh = prepared.config, prepared.start, prepared.mesh
    step, params, statistics = prepared.step(start.spec.network(start.parameters))
    state = step.first_state(params, statistics, config.seed)
    state = jax.device_put(state, on_all(mesh))
    data, volumes = _cached(prepared)
    with Feed(data, mesh, workers=config.workers) as feed:  # reads while the step is compiled
        began = time.perf_counter()
        compiled = _compiled(prepared, step, state, data, volumes)
        seconds = time.perf_counter() - began
        console.print(f"step compiled in {seconds:.1f} s", highlight=False)

        about = record(config, prepared.train, prepared.validation, mesh)
        documents = {
            "config": about,
            "parameters": start.to_json(),
            "rules": prepared.rules.to_json(),
        }
        make_run_dir(config.run_dir, config.overwrite, documents)
        if any(prepared.data.subjects.values()):
            write_subjects(config.run_dir / "subjects.csv", prepared.data.subjects)
        log = Log(config.run_dir / "metrics.jsonl")
        log.write(event="compiled", seconds=seconds)
        classes = tuple(each.name for each in start.spec.classes)
        validated = _validation(prepared, step)
        job = Job(config, prepared.plan.batch, classes, compiled, feed, validated)
        checkpoints = Checkpoints(config.run_dir / "checkpoints")
        display = Display(console, config.steps, config.log_every)
        with checkpoints, display:
            state, validation = train(job, state, checkpoints, log, display)
    trained = flat(state.averaged()) | flat(state.statistics)
    about["validation"] = finite(validation.scores)
    write_model(config.run_dir / "model", start.spec, trained, history={"finetune": about})
    console.print(f"wrote {config.run_dir / 'model'}", highlight=False, soft_wrap=True)
    return validation


def _validation(prepared: Prepared, step: TrainStep) -> Callable[[TrainState], Validation]:
    """What measures a state on the subjects to validate on."""
    spec = prepared.start.spec
    table = class_table(spec.classes) if spec.classes else None
    block, image = spec.contract.block, not spec.classes
    predictor = Predictor(step.apply, block, 0.25, prepared.mesh, image)

    def validated(state: TrainState) -> Validation:
        arrays = state.averaged(), state.statistics
        return validate(predictor, *arrays, prepared.validation, spec, table)

    return validated


def _cached(prepared: Prepared) -> tuple[grain.MapDataset, Volumes | None]:
    """Batches to feed, and what they are cut from on the devices, where that is there."""
    held = prepared.held()
    if held is not None:
        return prepared.batches(read=False), held.load(prepared.mesh)
    if prepared.config.cache == "host":
        prepared = dataclasses.replace(prepared, train=host_cached(prepared.train))
    return prepared.batches(), None


def _compiled(
    prepared: Prepared,
    step: TrainStep,
    state: TrainState,
    data: grain.MapDataset,
    volumes: Volumes | None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step, compiled; with a device cache it cuts its own blocks."""
    mesh, block = prepared.mesh, prepared.plan.block

    def cutting(state: TrainState, choice: Batch, volumes: Volumes) -> tuple[TrainState, Metrics]:
        return step(state, cut(volumes, choice, block))

    first = {
        name: jax.make_array_from_process_local_data(over_data(mesh), each)
        for name, each in data[0].items()
        if name != "name"
    }
    jitted = functools.partial(jax.jit, donate_argnums=0, out_shardings=on_all(mesh))
    if volumes is None:
        return jitted(step).lower(state, first).compile()
    compiled = jitted(cutting).lower(state, first, volumes).compile()
    return lambda state, choice: compiled(state, choice, volumes)


def prepare(config: Finetune, console: Console) -> Prepared:
    """Reads and checks everything.

    Raises:
        InputError: the model, the data or an option is bad, or the run exists.
    """
    _check_options(config)
    if not config.dry_run:
        check_free(config.run_dir, config.overwrite)
        read = [config.model_dir, *(each for each in (config.init_from, config.rules) if each)]
        check_apart(config.run_dir, [*read, Path(config.subjects)])
    spec, parameters = read_model(config.model_dir)
    check_trainable(spec, config.model_dir)
    mesh = data_mesh(config.devices)
    batch = _batch(config, mesh)
    _check_cache(config)
    data = read_training_data(config, spec, console)
    train, validation, ignored = data.train, data.validation, config.ignore_label
    if config.patience is not None and not validation:
        raise InputError(
            "--patience stops a run by its validations, but there is no subject to validate on; "
            f"give {config.subjects} a split validation, or leave it out."
        )
    rows = [each for subjects in data.subjects.values() for each in subjects]
    if not config.dry_run:
        check_apart(config.run_dir, [file for each in rows for file in files_of(each)])
    drawn = drawn_of(config, [*train, *validation]) if config.synthetic else None
    names = data.names if drawn is None else {**data.names, **drawn.names}
    learned, also = (
        each if drawn is None else drawn.as_learned(each) for each in (train, validation)
    )
    target = config.loss in REGRESSION
    counts = label_counts(learned, ignored)
    classes = classes_of(config, spec, counts, names)
    if any(each.value == ignored for each in classes):
        raise InputError(f"--ignore-label {ignored} is one of the classes.")
    if not target:
        files = {each.name: each.label for each in rows}
        check_labels([*learned, *also], classes, ignored, files)
    contract = contract_of(spec, config, data.channels, train)
    prevalence = prevalence_of(counts, classes)
    start = make_start(spec, parameters, classes, contract, prevalence, config)
    rules = make_rules(Parameters.of(start.network(), start.pretrained), config)
    _check_loss(config, start)
    table = None if target else class_table(classes)
    changes: Changes
    if drawn is None:
        changes = augmented(config, contract, classes)
        warnings = _warnings(
            dataclasses.replace(spec, contract=contract), parameters, train, config
        )
    else:
        assert table is not None
        indices = drawn.indices(table)
        changes = synthesised(config, contract, drawn.values, indices)
        by_value = dict(zip(drawn.values, indices, strict=True))
        train = to_draw(train, by_value)
        if not config.dry_run:
            validation = drawn_cases(
                validation, drawn, changes.generator, classes, ignored, config.seed
            )
        table, warnings = drawn.table(), []
    sides = mixed_sides(config, classes)
    warnings += [] if sides is None else [sides]
    plan = Plan(contract.block, config.sampling, config.foreground, batch, config.seed)
    return Prepared(
        config, start, rules, data, train, validation, plan, table, changes, mesh, warnings
    )


def _check_cache(config: Finetune) -> None:
    """Makes sure that blocks can be read from where they are asked to be.

    Raises:
        InputError: they cannot.
    """
    stored = is_store(config.subjects)
    if config.cache == "disk" and not stored:
        raise InputError(
            f"--cache disk reads blocks from a store, but {config.subjects} is a table; make one "
            "with 'voxtune prepare', or pass --cache host."
        )
    if config.workers and (not stored or config.cache in ("host", "device")):
        raise InputError(
            "--workers are processes that read blocks from a store; with a table, --cache host or "
            "--cache device there is nothing for them to do, leave it out."
        )


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
        (("warmup", "workers"), 0, 2**31 - 1, "a whole number of at least 0"),
    ):
        for name in wrong(names, low, high):
            option = name.replace("_", "-")
            raise InputError(f"--{option} {getattr(config, name)} makes no sense; give {advice}.")
    loss_of(config)  # raises where its options make no sense
    if config.examples is not None:
        if not config.dry_run:
            raise InputError("--examples draws what a run would see; pass --dry-run with it.")
        check_picture(config.examples, config.overwrite)
    if config.synthetic and config.loss in REGRESSION:
        raise InputError(
            f"--synthetic draws images of classes, but --loss {config.loss} learns an image; leave "
            "one out."
        )
    if config.synthetic and (config.augment not in ("light", "none") or config.flip == "all"):
        raise InputError(
            "--synthetic changes blocks in its own way; leave out --augment and --flip all."
        )
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
    images = [case.image[:, :, :] for case in cases[:2] if case.image is not None]
    return check_start(spec, parameters, [each[..., : spec.channels] for each in images])


def _announcement(prepared: Prepared) -> list[str]:
    """What is about to happen, in lines for a person."""
    config, spec = prepared.config, prepared.start.spec
    block = " x ".join(map(str, spec.contract.block))
    learned = f"classes: {listed(spec.classes)}" if spec.classes else "an image is learned"
    train, validation = len(prepared.train), len(prepared.validation)
    drawn = ", images drawn from their label maps" if config.synthetic else ""
    parts = f", in {config.accumulate} parts" if config.accumulate > 1 else ""
    lines = [
        *prepared.start.lines(),
        learned,
        f"subjects: {train} to train on, {validation} to validate on{drawn}",
        f"blocks: {prepared.plan.batch} of {block} voxels a step{parts}, "
        f"devices: {prepared.mesh.size}",
        *(f"warning: {each}" for each in prepared.warnings),
    ]
    rows = prepared.rules.rows.values()
    anchors = (parse_rule(each).anchor for each in prepared.rules.given)
    if (config.anchor or any(anchors)) and not any(row.anchor for row in rows):
        lines.append("note: nothing that is trained is pretrained, so anchors pull nothing")
    full = full_block(prepared.start.network(), prepared.train)
    if all(n > size for n, size in zip(spec.contract.block, full, strict=True)):
        lines.append(
            "warning: blocks are larger than every scan, which costs time and memory; pass --block "
            f"full ({' '.join(map(str, full))}), or sizes"
        )
    late = [row for row in rows if config.steps <= row.until < FOREVER]
    if late:
        levels = shortened(list(dict.fromkeys(row.level for row in late)))
        lines.append(f"warning: these thaw after the last step only, so never: {levels}")
    if not prepared.validation:
        lines.append("no subject is of the split validation: nothing is measured on the way")
    return lines
