"""`voxtune prepare`: from a table of scans to a store, and the same in memory. No JAX here.

Everything is checked before anything is written. Then each subject is one task, whose folder
appears whole, so that a run that was stopped goes on where it was.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from voxtune.engine.case import Case
from voxtune.engine.config import Prepare
from voxtune.engine.contract import Contract, check_contract
from voxtune.engine.folds import part_of
from voxtune.engine.lock import Part
from voxtune.engine.output import check_apart, check_free
from voxtune.engine.preparation import (
    Preparation,
    files_of,
    prepare_case,
    problems_of,
    sources_of,
)
from voxtune.engine.store import Head, finish_store
from voxtune.engine.store_folder import check_store, room, shown, what_stays
from voxtune.engine.stored_case import CASES, finished_cases, is_finished, read_record, write_case
from voxtune.engine.subjects import Problem, Subject, find_subjects
from voxtune.engine.workers import cores, processes, run_each
from voxtune.models.errors import InputError

State = Literal["finished", "changed", "missing"]

_MOST_THREADS = 8  # in memory: beyond it they wait for each other, and each takes up to a gigabyte
_OF_CONTRACT = ("orientation", "spacing", "grid", "interpolation", "intensity", "window")


def prepare(config: Prepare, console: Console) -> None:
    """Makes a store, or goes on with one whose making was stopped.

    Args:
        config: of the command.
        console: shows progress, the table of all problems, and at the end what was made.

    Raises:
        InputError: an option makes no sense; a file or a row of the table is bad; the store was
            prepared in another way, of other files or of subjects that the table lacks; another run
            is writing to it; it cannot be written.
    """
    begin = time.monotonic()
    store, part = config.store, _shard(config)
    first, step = part
    check_free(store, overwrite=True)
    every, problems = find_subjects(config.subjects, need_image=False)
    if not every:
        refuse(problems, every, console)
    head = Head(_preparation(config, every[0].channels), config.format)
    if config.overwrite:
        inputs = (config.subjects, config.model, config.label_map)
        check_apart(store, [*filter(None, inputs), *(path for s in every for path in files_of(s))])
    else:
        names = {*(each.name for each in every), *(each.subject for each in problems)}
        check_store(store, head, names, config.subjects)
    if head.preparation.channels:
        every = [each.taking(head.preparation.channels) for each in every]
    mine = every[first - 1 :: step]
    others = [each for index, each in enumerate(every) if index % step != first - 1]
    most = cores() if config.workers is None else config.workers
    if most < 1:
        raise InputError(f"--workers {most} is no number of processes; give 1 or more.")
    try:
        # What is half-written goes after the processes have ended.
        with ExitStack() as after, processes(max(1, min(most, len(mine)))) as pool:
            where = None if config.overwrite else store
            looks = run_each(pool, console, "checking", _look, mine, head, where)
            refuse([*problems, *(each for _, found in looks for each in found)], every, console)
            states = {each.name: state for each, (state, _) in zip(mine, looks, strict=True)}
            _check_unchanged(config, states)
            missing = [each for each in mine if states[each.name] == "missing"]
            after.enter_context(room(store, head, part, config.overwrite, bool(missing)))
            made = run_each(pool, console, "preparing", _make, missing, head, store)
            refuse([each for found in made for each in found], every, console, store)
            finished = _finish(config, head, every, others, pool, console)
    except OSError as error:
        raise InputError(
            f"{store} cannot be written ({error.strerror or error}); {what_stays(store)}."
        ) from error
    except (BrokenProcessPool, MemoryError) as error:
        raise InputError(
            f"{store} is not finished, since a process was ended for want of memory, most likely; "
            f"{what_stays(store)}, with fewer --workers."
        ) from error
    _report(store, mine, len(missing), finished, time.monotonic() - begin, console)


def prepare_in_memory(
    subjects: Sequence[Subject], preparation: Preparation, console: Console
) -> list[Case]:
    """The cases that a store would hold, in the order of the subjects.

    Threads do it: reading and resampling let others run, and nothing has to be sent back.

    Args:
        subjects: with labels.
        preparation: how.
        console: shows progress, and the table of all problems.

    Raises:
        InputError: a file is bad; with several problems, a table shows them all.
    """
    pool = ThreadPoolExecutor(min(cores(), _MOST_THREADS))
    try:
        made = run_each(pool, console, "preparing", _case_or_problems, subjects, preparation)
    finally:
        pool.shutdown(cancel_futures=True)
    refuse([each for found in made if isinstance(found, list) for each in found], subjects, console)
    return [each for each in made if isinstance(each, Case)]


# What is asked for


def _shard(config: Prepare) -> Part:
    first, step = part_of(config.shard, "--shard")
    if config.overwrite and step > 1:
        raise InputError(
            f"--overwrite with --shard {config.shard} would remove what other shards did; remove "
            f"{config.store} first."
        )
    return first, step


def _preparation(config: Prepare, channels: tuple[str, ...]) -> Preparation:
    given = [f"--{name}" for name in _OF_CONTRACT if getattr(config, name) is not None]
    if config.model is not None:
        if given:
            raise InputError(
                f"{config.model} says how scans are prepared; leave out {', '.join(given)}, or "
                "--model."
            )
        # These bring JAX along, which the workers can do without.
        from voxtune.engine.model_dir import gives_image, read_model, training_channels

        spec, _ = read_model(config.model)
        if channels:
            channels = training_channels(spec, config.model, channels)
        target = config.target or gives_image(spec)
        return Preparation.of(spec.contract, channels, config, target)
    spacing = (1.0, 1.0, 1.0) if config.spacing is None else config.spacing
    contract = Contract(
        config.orientation or "RAS",
        None if spacing == "own" else spacing,
        config.intensity or "zscore",
        (1, 1, 1),
        grid=config.grid,
        interpolation=config.interpolation or "linear",
        window=config.window,
    )
    check_contract(contract)
    return Preparation.of(contract, channels, config, config.target)


def _check_unchanged(config: Prepare, states: Mapping[str, State]) -> None:
    if changed := [name for name, state in states.items() if state == "changed"]:
        raise InputError(
            f"{config.store} was prepared of other files than those of {config.subjects} for "
            f"{len(changed)} subjects ({shown(changed)}); choose another folder, or remove the "
            "store to make it anew."
        )


def _finish(
    config: Prepare,
    head: Head,
    every: Sequence[Subject],
    others: Sequence[Subject],
    pool: Executor | None,
    console: Console,
) -> bool:
    """Finishes the store if all subjects are there, those of other shards of the files of now."""
    if not {each.name for each in every} <= {*finished_cases(config.store)}:
        return False
    states = run_each(pool, console, "checking others", _state, others, head, config.store)
    named = {each.name: state for each, state in zip(others, states, strict=True)}
    _check_unchanged(config, named)
    return "missing" not in states and finish_store(config.store, head, every)


# Tasks


def _look(subject: Subject, head: Head, store: Path | None) -> tuple[State, list[Problem]]:
    """Whether a subject is in the store already; if not, all that is wrong with it."""
    state = "missing" if store is None else _state(subject, head, store)
    return state, problems_of(subject, head.preparation) if state == "missing" else []


def _state(subject: Subject, head: Head, store: Path) -> State:
    if not is_finished(store, subject.name, head.preparation, head.arrays):
        return "missing"
    record = read_record(store, subject.name) or {}
    try:
        return "finished" if record.get("sources") == sources_of(subject) else "changed"
    except InputError:
        return "missing"


def _make(subject: Subject, head: Head, store: Path) -> list[Problem]:
    made = _case_or_problems(subject, head.preparation)
    if isinstance(made, list):
        return made
    write_case(store, made, head.arrays, sources_of(subject))
    return []


def _case_or_problems(subject: Subject, preparation: Preparation) -> Case | list[Problem]:
    try:
        return prepare_case(subject, preparation)
    except InputError as error:
        if every := problems_of(subject, preparation):
            return every
        # What shows only once scans are conformed.
        files = (each for each in files_of(subject) if str(error).startswith(f"{each} "))
        return [Problem(subject.name, next(files, None), str(error))]


# What is said


def refuse(
    problems: Sequence[Problem],
    subjects: Sequence[Subject],
    console: Console,
    store: Path | None = None,
) -> None:
    """Raises what is wrong, if anything is: one sentence, or the table of them all and another.

    Where some subjects were written to a store before it was found, it says what stays.
    """
    if not problems:
        return
    stays = "" if store is None else f"; {what_stays(store)}"
    if len(problems) == 1:
        raise InputError(problems[0].sentence + stays)
    table = Table(title="Problems")
    for name in ("subject", "file", "problem"):
        table.add_column(name, overflow="fold")
    for each in problems:
        file = "" if each.file is None else str(each.file)
        table.add_row(each.subject, file, each.sentence.removeprefix(f"{file} "))
    console.print(table)
    bad = {each.subject for each in problems}
    raise InputError(
        f"{len(problems)} problems in {len(bad)} of {len(bad | {each.name for each in subjects})} "
        "subjects, listed in the table above: correct the files, or take their rows out"
        f"{stays or '.'}"
    )


def _report(
    store: Path, mine: Sequence[Subject], new: int, finished: bool, seconds: float, console: Console
) -> None:
    records = [read_record(store, each.name) or {} for each in mine]
    folders = [store / CASES / each.name for each in mine]
    size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*"))
    were = f", {len(mine) - new} of them there already" if new < len(mine) else ""
    lines = [f"{store}: {len(mine)} subjects{were}, {size / 1e6:,.1f} MB, {seconds:.1f} s"]
    if not finished:
        lines.append(
            "other shards' subjects are not all there yet: the last to end finishes it, or run "
            "them again"
        )
    replaced = [each["replaced"] for each in records if each["replaced"]]
    if replaced:
        lines.append(
            f"{sum(replaced):,} voxels of {len(replaced)} subjects were NaN or infinite, and were "
            "replaced"
        )
    halves = [each for each in records if each.get("image", {}).get("dtype") == "float16"]
    if halves:
        lines.append(
            f"{len(halves)} subjects are kept as half floats, since a few of their voxels lie far "
            "outside the range of the others"
        )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
