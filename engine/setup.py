"""All that a run needs, read and checked: the network, the data, what is done to each."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console

from voxtune.engine.cache import DeviceCache, Volumes
from voxtune.engine.case import IGNORE, Case
from voxtune.engine.changes import Changes, augmented, mixed_in_training, synthesised
from voxtune.engine.config import Finetune
from voxtune.engine.dataset import Plan, batches, class_table, host_cached
from voxtune.engine.folds import fold_of
from voxtune.engine.label_maps import drawn_cases, drawn_of, to_draw
from voxtune.engine.losses import REGRESSION
from voxtune.engine.mesh import DATA, check_batch, make_mesh, share_of
from voxtune.engine.model_dir import ModelSpec, check_trainable, read_model
from voxtune.engine.output import check_apart, check_free
from voxtune.engine.picture import check_picture
from voxtune.engine.preparation import files_of
from voxtune.engine.profile import steps_to_trace
from voxtune.engine.rules import FOREVER, Parameters, Rules, make_rules, parse_rule, shortened
from voxtune.engine.sanity import check_start
from voxtune.engine.start import Start, make_start
from voxtune.engine.step import TrainStep, loss_of, make_step
from voxtune.engine.store import is_store
from voxtune.engine.task import (
    check_labels,
    classes_of,
    contract_of,
    full_block,
    label_counts,
    listed,
    prevalence_of,
)
from voxtune.engine.tensorboard import check_tensorboard
from voxtune.engine.training_data import TrainingData, read_training_data
from voxtune.models.errors import InputError
from voxtune.models.families import Network, abstract
from voxtune.models.lowering import SPATIAL
from voxtune.models.sharding import check_depth_split
from voxtune.models.variational import divergence


@dataclass(frozen=True)
class Setup:
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
        share = share_of(self.mesh)
        return batches(self.train, self.plan, self.table, self.unknown, share, read)

    def cached(self) -> tuple[grain.MapDataset, Volumes | None]:
        """Batches to feed, and what they are cut from on the devices, where that is there."""
        held = self.held()
        if held is not None:
            return self.batches(read=False), held.load(self.mesh)
        if self.config.cache == "host":
            return dataclasses.replace(self, train=host_cached(self.train)).batches(), None
        return self.batches(), None


def set_up(
    config: Finetune,
    console: Console,
    new: bool = True,
    reader: Callable[[Finetune, ModelSpec, Console], TrainingData] = read_training_data,
) -> Setup:
    """Reads and checks everything.

    Args:
        config: of the run.
        console: told what takes a while.
        new: whether the run directory is to be made.
        reader: what gives the scans, as `read_training_data` does.

    Raises:
        InputError: the model, the data or an option is bad, or the run exists.
    """
    check_options(config)
    if new and not config.dry_run:
        check_free(config.run_dir, config.overwrite)
        read = [config.model_dir, *(each for each in (config.init_from, config.rules) if each)]
        check_apart(config.run_dir, [*read, Path(config.subjects)])
    spec, parameters = read_model(config.model_dir)
    check_trainable(spec, config.model_dir)
    mesh = make_mesh(config.mesh)
    check_mapping(config, mesh)
    batch = _batch(config, mesh)
    block = config.block or spec.contract.block
    if block != "full":  # which is made to split
        network = abstract(spec.family, spec.arguments)
        check_depth_split(network, block[0], mesh.shape[SPATIAL])
    _check_cache(config)
    data = reader(config, spec, console)
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
    contract = contract_of(spec, config, data.channels, train, mesh.shape[SPATIAL])
    prevalence = prevalence_of(counts, classes)
    start = make_start(spec, parameters, classes, contract, prevalence, config)
    rules = make_rules(Parameters.of(start.network(), start.pretrained), config)
    _check_loss(config, start)
    table = None if target else class_table(classes)
    changes: Changes
    if drawn is None:
        changes = augmented(config, contract, classes)
        known = dataclasses.replace(spec, contract=contract)
        warnings = _warnings(known, parameters, train, config) if new else []  # said before
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
    sides = mixed_in_training(config, classes)
    warnings += [] if sides is None else [sides]
    plan = Plan(contract.block, config.sampling, config.foreground, batch, config.seed)
    return Setup(
        config, start, rules, data, train, validation, plan, table, changes, mesh, warnings
    )


def check_mapping(config: Finetune, mesh: Mesh) -> None:
    """Makes sure that the step can be mapped as asked for.

    Raises:
        InputError: it cannot.
    """
    if config.map != "pmap":
        return
    if mesh.shape[SPATIAL] > 1:
        raise InputError(
            f"--map pmap gives each device whole blocks, but --mesh {config.mesh} splits their "
            "depth; leave out spatial, or pass --map jit."
        )
    if config.shard_optimizer:
        raise InputError(
            "--map pmap keeps the optimizer whole on each device, so --shard-optimizer has no "
            "meaning there; leave it out, or pass --map jit."
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
    "checkpoints",
)
_FINITE = ("trunk_lr", "head_lr", "weight_decay", "l2", "anchor", "clip")
_SHARES = ("foreground", "hold_out")


def check_options(config: Finetune) -> None:
    """Makes sure that options make sense, as far as they tell without model, data and devices.

    Raises:
        InputError: one does not.
    """

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
        (("seed", "subject_seed"), 0, 2**32 - 1, "a whole number from 0 to 4294967295"),
        (("warmup", "workers"), 0, 2**31 - 1, "a whole number of at least 0"),
    ):
        for name in wrong(names, low, high):
            option = name.replace("_", "-")
            raise InputError(f"--{option} {getattr(config, name)} makes no sense; give {advice}.")
    if config.fold is not None:
        fold_of(config.fold)
        if config.hold_out != Finetune.hold_out:
            raise InputError(
                f"--fold {config.fold} says who is kept for validation, and so does --hold-out "
                f"{config.hold_out:g}; leave one out."
            )
    loss_of(config)  # raises where its options make no sense, as these do
    steps_to_trace(config.profile, config.steps)
    if config.tensorboard:
        check_tensorboard()
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
    parts = mesh.shape[DATA] * config.accumulate
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
    if fresh or config.init != "pretrained" or config.init_from is not None:
        return []
    images = [case.image[:, :, :] for case in cases[:2] if case.image is not None]
    return check_start(spec, parameters, [each[..., : spec.channels] for each in images])


def announcement(setup: Setup) -> list[str]:
    """What is about to happen, in lines for a person."""
    config, spec = setup.config, setup.start.spec
    block = " x ".join(map(str, spec.contract.block))
    learned = f"classes: {listed(spec.classes)}" if spec.classes else "an image is learned"
    train, validation = len(setup.train), len(setup.validation)
    drawn = ", images drawn from their label maps" if config.synthetic else ""
    fold = "subjects" if config.fold is None else "fold " + config.fold.replace("/", " of ")
    parts = f", in {config.accumulate} parts" if config.accumulate > 1 else ""
    lines = [
        *setup.start.lines(),
        learned,
        f"{fold}: {train} to train on, {validation} to validate on{drawn}",
        f"blocks: {setup.plan.batch} of {block} voxels a step{parts}, "
        f"devices: {_devices(setup.mesh)}",
        *(f"warning: {each}" for each in setup.warnings),
    ]
    rows = setup.rules.rows.values()
    anchors = (parse_rule(each).anchor for each in setup.rules.given)
    if (config.anchor or any(anchors)) and not any(row.anchor for row in rows):
        lines.append("note: nothing that is trained is pretrained, so anchors pull nothing")
    full = full_block(setup.start.network(), setup.train, setup.mesh.shape[SPATIAL])
    if all(n > size for n, size in zip(spec.contract.block, full, strict=True)):
        lines.append(
            "warning: blocks are larger than every scan, which costs time and memory; pass --block "
            f"full ({' '.join(map(str, full))}), or sizes"
        )
    late = [row for row in rows if config.steps <= row.until < FOREVER]
    if late:
        levels = shortened(list(dict.fromkeys(row.level for row in late)))
        lines.append(f"warning: these thaw after the last step only, so never: {levels}")
    if not setup.validation:
        lines.append("no subject is of the split validation: nothing is measured on the way")
    return lines


def _devices(mesh: Mesh) -> str:
    """How many devices there are, of which kind, and how the work is split over them."""
    data, spatial = mesh.devices.shape
    processes = jax.process_count()
    split = f" ({data} x {spatial} along depth)" if spatial > 1 else ""
    of = f" of {processes} processes" if processes > 1 else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{split}{of}"
