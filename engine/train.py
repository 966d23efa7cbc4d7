"""Fine-tuning: from a model directory and a subjects table to a run directory."""

import dataclasses
import json
import math
import platform
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from voxtune.engine.checkpoint import Checkpoints, flat
from voxtune.engine.config import Finetune
from voxtune.engine.dataset import Case, batches, make_case, read_pairs
from voxtune.engine.display import Display
from voxtune.engine.evaluate import dice
from voxtune.engine.losses import IGNORE
from voxtune.engine.mesh import check_batch, data_mesh, memory_errors, on_all, over_data
from voxtune.engine.model_dir import (
    Contract,
    ModelSpec,
    check_trainable,
    read_model,
    write_model,
)
from voxtune.engine.optimizer import learning_rates, make_optimizer
from voxtune.engine.output import check_free, make_folder
from voxtune.engine.predict import Predictor, contested
from voxtune.engine.start import Start, classes_of, contract_of, listed, make_start
from voxtune.engine.step import TrainState, make_train_step, split
from voxtune.engine.subjects import Subject, read_subjects, write_subjects
from voxtune.models.errors import InputError


@memory_errors()
def finetune(config: Finetune, console: Console) -> dict[str, float]:
    """Runs one fine-tuning.

    Everything is read and checked before the run directory is made.

    Returns:
        The last validation's metrics, empty where there is no validation split.

    Raises:
        InputError: the model, the table, a scan or an option is bad, or the run exists.
    """
    _check_options(config)
    check_free(config.run_dir, config.overwrite)
    spec, parameters = read_model(config.model_dir)
    check_trainable(spec, config.model_dir)
    mesh = data_mesh(config.devices)
    batch = config.batch if config.batch is not None else max(2, mesh.size)
    check_batch(batch, mesh)
    config = dataclasses.replace(config, batch=batch)
    train, validation = split_subjects(read_subjects(config.subjects), config)
    train_pairs, validation_pairs = read_pairs(train), read_pairs(validation)
    classes = classes_of(config, spec, train_pairs)
    contract = contract_of(spec, config)
    start = make_start(spec, parameters, classes, contract, config)
    train_cases, validation_cases = (
        # A pair is let go as its case is made: scans take memory.
        [make_case(subject.name, *pairs.pop(0), contract, classes) for subject in subjects]
        for subjects, pairs in ((train, train_pairs), (validation, validation_pairs))
    )
    _announce(start, train, validation, mesh.size, config, console)

    network = start.spec.network(start.parameters)
    apply, params, statistics = split(network, config.compute_dtype, config.remat)
    optimizer = make_optimizer(config, params, start.head)
    state = TrainState(
        step=jax.numpy.zeros((), jax.numpy.int32),
        params=params,
        statistics=statistics,
        optimizer=optimizer.init(params),
        key=jax.random.key(config.seed),
    )
    state = jax.device_put(state, on_all(mesh))
    data = batches(train_cases, contract.block, batch, config.foreground, config.seed)
    voxels = sum(int((case.label != IGNORE).sum()) for case in train_cases)
    train_step = jax.jit(
        make_train_step(apply, optimizer, _flip_axes(config, contract), voxels),
        donate_argnums=0,
        out_shardings=on_all(mesh),
    )
    predictor = Predictor(apply, contract.block, 0.25, mesh)

    began = time.perf_counter()
    compiled = train_step.lower(state, _to_devices(data[0], mesh)).compile()
    seconds = time.perf_counter() - began
    console.print(f"step compiled in {seconds:.1f} s", highlight=False)

    _make_run_folder(config.run_dir, config.overwrite)
    _write_json(config.run_dir / "config.json", _record(config, train, validation, mesh))
    _write_json(config.run_dir / "parameters.json", start.origin)
    write_subjects(config.run_dir / "subjects.csv", {"train": train, "validation": validation})
    log = Log(config.run_dir / "metrics.jsonl")
    log.write(event="compiled", seconds=seconds)
    scores: dict[str, float] = {}
    feed = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
    checkpoints = Checkpoints(config.run_dir / "checkpoints")
    display = Display(console, config.steps, config.log_every)
    with checkpoints, display:
        since, waited, shown = time.perf_counter(), 0.0, ""
        for step in range(1, config.steps + 1):
            began = time.perf_counter()
            blocks = _to_devices(next(feed), mesh)
            waited += time.perf_counter() - began
            state, metrics = compiled(state, blocks)
            if step % config.log_every == 0 or step == config.steps:
                values = {name: float(value) for name, value in metrics.items()}
                now = time.perf_counter()
                steps = (step - 1) % config.log_every + 1
                values["examples_per_second"] = steps * batch / (now - since)
                values["data_wait"] = waited / (now - since)
                since, waited = now, 0.0
                log.write(event="train", step=step, **values, **learning_rates(config, step - 1))
                _check_finite(values["loss"], step, config)
                rate = values["examples_per_second"]
                shown = f"loss {values['loss']:.3f}  {rate:.2f} blocks/s"
            display.step(step, shown)
            if step % config.validate_every == 0 or step == config.steps:
                began = time.perf_counter()
                _check_finite(float(metrics["loss"]), step, config)
                scores = validate(predictor, state, validation_cases, start.spec)
                checkpoints.save(step, state, scores)
                if scores:
                    log.write(event="validation", step=step, dice=scores)
                    line = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
                    display.line(f"validation at step {step}: Dice {line}")
                since += time.perf_counter() - began  # validation is not training
    trained = flat(state.params) | flat(state.statistics)
    history = {"finetune": _record(config, train, validation, mesh)}
    history["finetune"]["validation"] = _finite(scores)  # JSON has no NaN
    write_model(config.run_dir / "model", start.spec, trained, history=history)
    console.print(f"wrote {config.run_dir / 'model'}", highlight=False, soft_wrap=True)
    return scores


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


def validate(
    predictor: Predictor, state: TrainState, cases: Sequence[Case], spec: ModelSpec
) -> dict[str, float]:
    """Mean Dice over cases of each class but background, and their mean, by name.

    Measured on the conformed grid. A case that has a class neither in label nor in prediction is
    left out of that class's mean.
    """
    found: list[list[float]] = []
    for case in cases:
        inside = case.label != IGNORE
        probabilities = predictor(state.params, state.statistics, case.image)
        predicted = contested(probabilities, spec).argmax(axis=-1)
        found.append(
            [
                dice((predicted == index) & inside, case.label == index)
                for index in range(1, len(spec.classes))
            ]
        )
    if not found:
        return {}
    scores = {
        each.name: float(np.nanmean(column)) if np.isfinite(column).any() else float("nan")
        for each, column in zip(spec.classes[1:], np.array(found).T, strict=True)
    }
    if len(scores) > 1 and not np.isnan(list(scores.values())).all():
        scores["mean"] = float(np.nanmean(list(scores.values())))
    return scores


class Log:
    """metrics.jsonl: one JSON object a line.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **entry: Any) -> None:
        """Appends an entry; numbers that JSON lacks (NaN) become null."""
        with self._path.open("a") as stream:
            stream.write(json.dumps(_finite(entry)) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_options(config: Finetune) -> None:
    at_least_one = ("steps", "validate_every", "log_every", "train_subjects", "batch")
    wrong = [
        name
        for name in at_least_one
        if getattr(config, name) is not None and getattr(config, name) < 1
    ]
    wrong += [
        name
        for name in ("trunk_lr", "head_lr", "weight_decay")
        if not 0 <= getattr(config, name) < math.inf
    ]
    wrong += [name for name in ("foreground", "hold_out") if not 0 <= getattr(config, name) <= 1]
    if config.warmup_steps < 0:
        wrong.append("warmup")
    if not 0 <= config.seed < 2**32:
        wrong.append("seed")
    if wrong:
        name = wrong[0]
        option = name.replace("_", "-")
        raise InputError(f"--{option} {getattr(config, name)} makes no sense; see --help.")
    if config.warmup_steps >= config.steps:
        raise InputError(f"--warmup {config.warmup} must be below --steps {config.steps}.")


def _flip_axes(config: Finetune, contract: Contract) -> tuple[int, ...]:
    if config.flip == "all":
        return (0, 1, 2)
    if config.flip == "left-right":
        return tuple(axis for axis, code in enumerate(contract.orientation) if code in "LR")
    return ()


def _to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    return jax.device_put(batch, over_data(mesh))


def _check_finite(loss: float, step: int, config: Finetune) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"The loss is {loss} at step {step} of {config.run_dir}; "
            "lower --trunk-lr and --head-lr and start again."
        )


def _make_run_folder(folder: Path, overwrite: bool) -> None:
    check_free(folder, overwrite)
    try:
        if folder.exists():
            shutil.rmtree(folder)
        make_folder(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from error


def _record(
    config: Finetune, train: Sequence[Subject], validation: Sequence[Subject], mesh: Mesh
) -> dict[str, Any]:
    """What a run is: options, subjects, versions and devices."""
    options = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(config).items()
    }
    return {
        "options": options,
        "train": [each.name for each in train],
        "validation": [each.name for each in validation],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("voxtune", "jax", "flax", "optax", "grain")},
        },
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _announce(
    start: Start,
    train: Sequence[Subject],
    validation: Sequence[Subject],
    devices: int,
    config: Finetune,
    console: Console,
) -> None:
    loaded = [path for path, origin in start.origin.items() if origin == "loaded"]
    fresh = [path for path in start.origin if path not in loaded]
    new = f", initialised {', '.join(fresh)}" if len(fresh) <= 4 else f", initialised {len(fresh)}"
    block = " x ".join(map(str, start.spec.contract.block))
    for line in (
        f"{start.spec.family}: loaded {len(loaded)} tensors{new if fresh else ''}",
        f"classes: {listed(start.spec.classes)}",
        f"subjects: {len(train)} to train on, {len(validation)} to validate on",
        f"blocks: {config.batch} of {block} voxels a step, devices: {devices}",
    ):
        console.print(line, highlight=False, soft_wrap=True)
    if not validation:
        console.print("no subject is of the split validation: no Dice is measured on the way")
