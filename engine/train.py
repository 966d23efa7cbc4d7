"""Fine-tuning: from a model directory and a subjects table to a run directory."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import jax
from jax import Array
from rich.console import Console

from voxtune.engine.changes import Batch
from voxtune.engine.checkpoint import Checkpoints
from voxtune.engine.config import Finetune, Resume
from voxtune.engine.dataset import class_table, examples
from voxtune.engine.display import Display
from voxtune.engine.dry_run import parameter_lines, totals
from voxtune.engine.examples import draw_examples
from voxtune.engine.feed import Feed
from voxtune.engine.learning_rates import LearningRates
from voxtune.engine.loop import Job, train
from voxtune.engine.mapping import compile_step, first_state, whole_batch
from voxtune.engine.mesh import here, memory_errors
from voxtune.engine.meter import Meter
from voxtune.engine.model_dir import ModelSpec, write_model
from voxtune.engine.peaks import peak_of
from voxtune.engine.predictor import Member, Predictor
from voxtune.engine.preemption import Preemption
from voxtune.engine.processes import is_first, losses, together, wait_for_all
from voxtune.engine.profile import Profile, steps_to_trace
from voxtune.engine.progress import Progress
from voxtune.engine.record import origin, record
from voxtune.engine.resume import SavedRun, made_of
from voxtune.engine.run_dir import Log, finite, held, make_run_dir
from voxtune.engine.runtime import begin
from voxtune.engine.setup import Setup, announcement, check_options, set_up
from voxtune.engine.step import TrainState, TrainStep
from voxtune.engine.training_data import expected_quantiles
from voxtune.engine.trees import flat
from voxtune.engine.validation import Validation, validate


@memory_errors()
@losses()
def finetune(config: Finetune, console: Console) -> Validation:
    """Runs one fine-tuning, or with `dry_run` shows what it would do.

    Everything is read and checked before the run directory is made.

    Returns:
        The validation of the weights that are kept.

    Raises:
        InputError: the model, the data or an option is bad, or the run exists.
        PreemptedError: the run was told to end; `resume` goes on with it.
        LostError: another process of the run is gone.
    """
    check_options(config)  # before others are waited for
    begin(config)
    console = console if is_first() else Console(quiet=True)
    setup = set_up(config, console)
    for line in announcement(setup):
        console.print(line, highlight=False, soft_wrap=True)
    if config.dry_run:
        _dry_run(setup, console)
        return Validation({})
    with ExitStack() as until_the_end:
        return _run(setup, _documents(setup), console, None, until_the_end)


@memory_errors()
@losses()
def resume(command: Resume, console: Console) -> Validation:
    """Goes on with a run from its newest checkpoint that can be read, or from its start.

    Returns:
        The validation of the weights that are kept.

    Raises:
        InputError: the folder holds no run, or what is trained has changed.
        PreemptedError: the run was told to end, again.
        LostError: another process of the run is gone.
    """
    saved = SavedRun.read(command)
    check_options(saved.config)
    begin(saved.config)
    console = console if is_first() else Console(quiet=True)
    if saved.finished:
        console.print(saved.finished_line, highlight=False, soft_wrap=True)
        return saved.validation
    with ExitStack() as until_the_end:
        until_the_end.enter_context(held(command.run_dir))
        setup = set_up(saved.config, console, new=False)
        documents = saved.check(_documents(setup), console)
        for line in announcement(setup):
            console.print(line, highlight=False, soft_wrap=True)
        return _run(setup, documents, console, saved, until_the_end)


def _documents(setup: Setup) -> dict[str, Any]:
    """What the run directory says of a run, by the name of the file."""
    return {
        "config": record(setup),
        "parameters": setup.start.to_json(),
        "rules": setup.rules.to_json(),
    }


def _run(
    setup: Setup,
    documents: Mapping[str, Any],
    console: Console,
    saved: SavedRun | None,
    until_the_end: ExitStack,
) -> Validation:
    """Trains and writes the run directory, or goes on with the one that is there and held."""
    config, start, mesh = setup.config, setup.start, setup.mesh
    folder = config.run_dir
    learned = _learned(setup)  # now, as it reads data: at the end that could cost the model
    step, params, statistics = setup.step(start.spec.network(start.parameters))
    state = first_state(step, params, statistics, config, mesh)
    data, volumes = setup.cached()
    compiled = compile_step(step, setup, state, data[0], volumes)
    for line in compiled.lines():
        console.print(line, highlight=False, soft_wrap=True)
    wait_for_all("compiled")  # and so everyone has seen that the run directory may be made
    if saved is None:
        with together():
            if is_first():
                told = {**documents, "config": {**documents["config"], **origin()}}
                make_run_dir(folder, config.overwrite, told, setup.data.subjects)
        until_the_end.enter_context(held(folder))
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoints)
    with Preemption() as preemption, checkpoints, losses():
        progress = Progress()
        if saved is not None:
            found = checkpoints.newest(state, console)
            if found is not None:
                state, progress = found[0], Progress.of_json(found[1], len(start.spec.classes))
            saved.go_on(documents, progress, origin())
            console.print(f"goes on after step {progress.step} of {config.steps}", highlight=False)
        progress.made_of = made_of(documents)
        peak = peak_of(mesh, config.compute_dtype)
        log = Log(folder / "metrics.jsonl", config.tensorboard, progress.step)
        log.write(
            event="compiled",
            step=progress.step,
            seconds=compiled.seconds,
            step_flops=compiled.flops,
            peak_flops_per_second=peak.flops,
            peak=peak.source,
        )
        display = Display(console, config.steps, config.log_every)
        learning_rates = LearningRates(config, setup.rules)
        meter = Meter(setup.plan, compiled.flops, mesh, peak)
        traced = steps_to_trace(config.profile, config.steps)
        profile = Profile(traced, folder / "profile", display.line, meter.paused)
        feed = Feed(data, mesh, progress.step, config.workers, mapped=config.map == "pmap")
        with log, feed, display, profile:
            job = Job(
                config=config,
                classes=tuple(each.name for each in start.spec.classes),
                step=compiled.step,
                feed=feed,
                validate=_validation(setup, step),
                meter=meter,
                profile=profile,
                learning_rates=learning_rates,
                stops=preemption.stops,
            )
            state, validation = train(job, state, progress, checkpoints, log, display)
    about = documents["config"] | {"validation": finite(validation.scores)}
    trained = flat(here(state.averaged(), mesh)) | flat(here(state.statistics, mesh))
    write_model(
        folder / "model",
        learned,
        trained,
        history={"finetune": about},
        overwrite=saved is not None,
    )
    wait_for_all("model")
    console.print(f"wrote {folder / 'model'}", highlight=False, soft_wrap=True)
    return validation


def _learned(setup: Setup) -> ModelSpec:
    """What the new model directory says of the network."""
    spec = setup.start.spec
    quantiles = expected_quantiles(setup.train) if is_first() else None  # who writes it
    return dataclasses.replace(
        spec, contract=dataclasses.replace(spec.contract, quantiles=quantiles)
    )


def _validation(setup: Setup, step: TrainStep) -> Callable[[TrainState], Validation]:
    """What measures a state on the subjects to validate on."""
    spec = setup.start.spec
    table = class_table(spec.classes) if spec.classes else None
    block, image = spec.contract.block, not spec.classes
    predictor = Predictor(block, 0.25, setup.mesh.local_mesh, values=image)

    def validated(state: TrainState) -> Validation:
        params, statistics = here((state.averaged(), state.statistics), setup.mesh)
        member = Member(step.apply, params, statistics)
        return validate(predictor, member, setup.validation, spec, table)

    return validated


def _dry_run(setup: Setup, console: Console) -> None:
    """Shows what a run would do, and draws examples where that is asked for."""
    config = setup.config
    step, params, statistics = setup.step(setup.start.network())
    make_state = functools.partial(step.first_state, seed=config.seed)
    state = jax.eval_shape(make_state, params, statistics)
    batch = whole_batch(setup.batches()[0], setup)
    on_devices = setup.held()
    if on_devices is not None:
        on_devices.check(setup.mesh)
    cache = 0 if on_devices is None else on_devices.bytes
    blocks = examples(setup.train, setup.plan)
    for line in (
        *parameter_lines(setup.rules, setup.start.origin, config),
        *totals(setup.rules, step, state, batch, blocks, config.steps, cache),
    ):
        console.print(line, highlight=False, soft_wrap=True)
    if config.examples is not None and is_first():

        def change(number: int, batch: Batch) -> tuple[Array, Array]:
            return step.changed(jax.random.key(config.seed), number, batch)

        draw_examples(setup.batches(), change, setup.start.spec.contract, config.examples)
        console.print(f"wrote {config.examples}", highlight=False, soft_wrap=True)
