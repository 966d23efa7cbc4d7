"""Arrays to disk and back. The only file that knows Orbax."""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
from rich.console import Console

from voxtune.engine.damage import (
    NO_ROOM,
    UNREADABLE,
    but_closed_loops,
    damage,
    passing,
    reason,
    system_code,
    without_aftermath,
)
from voxtune.engine.processes import gathered, is_first, together
from voxtune.engine.trees import flat, nested
from voxtune.models.errors import InputError


def save_parameters(directory: Path, parameters: Mapping[str, np.ndarray | jax.Array]) -> None:
    """Writes arrays by path as an Orbax checkpoint; `directory` must not exist.

    Several processes have to call it together; one of them writes.

    Raises:
        OSError: the disk does not take it.
    """
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False  # nobody changes them before the call returns
    if jax.process_count() > 1:  # who of them has an array is for Orbax to say
        parameters = {path: np.asarray(each) for path, each in parameters.items()}
    try:
        with context:
            ocp.save(directory.absolute(), nested(parameters))
    except ValueError as error:
        code = system_code(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code)) from error


def load_parameters(
    directory: Path, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Reads arrays by path.

    Args:
        directory: an Orbax checkpoint as `save_parameters` writes it.
        shapes: path → shape of what must be there, no more and no less.

    Raises:
        InputError: the checkpoint is missing or broken, or holds other arrays.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} does not exist; is its parent a voxtune model directory?")
    try:
        with without_aftermath():
            return _load(directory, shapes)
    except UNREADABLE as error:
        raise InputError(
            f"{directory} cannot be read as a checkpoint ({reason(error)}); convert or train again."
        ) from error


def _load(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    metadata = ocp.metadata(directory.absolute()).metadata
    if not isinstance(metadata, Mapping):
        raise ValueError("it has no readable metadata")
    held = {path: tuple(leaf.shape) for path, leaf in flat(metadata).items()}
    if held != dict(shapes):
        wrong = sorted(held.items() ^ shapes.items())[0]
        raise InputError(
            f"{directory} does not hold the parameters that model.json asks for: they differ "
            f"at {wrong[0]} {wrong[1]}."
        )
    wanted = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    return flat(ocp.load(directory.absolute(), nested(wanted)))


def _quality(metrics: Mapping[str, float]) -> float:
    return metrics.get("quality", -math.inf)


_LARGEST = 2**26  # bytes of a checkpoint's progress

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of a run, written in the background; the newest `keep` stay, and the best.

    What a process that was stopped had not finished writing is removed.

    Args:
        directory: where they go, one folder a step; it lies in the run directory.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        policies = ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False)
        self._policy = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
        self._checkpointer: ocp.training.Checkpointer | None = None

    def _opened(self) -> ocp.training.Checkpointer:
        """What writes them. Not before `newest`: it would stumble over damaged ones, or go on to
        list those that were moved aside.

        Raises:
            InputError: the folder cannot be made or read.
        """
        if self._checkpointer is None:
            try:
                self._checkpointer = ocp.training.Checkpointer(
                    self._directory.absolute(),
                    preservation_policy=self._policy,
                    cleanup_tmp_directories=True,
                )
            except (OSError, ValueError) as error:
                raise InputError(
                    f"The checkpoints in {self._directory} cannot be opened ({reason(error)})."
                ) from error
        return self._checkpointer

    def save(self, step: int, state: Any, progress: Mapping[str, Any], quality: float) -> None:
        """Starts writing a step's whole state; returns before it is on disk.

        Args:
            step: its number.
            state: all that the step changes.
            progress: how far the run is, JSON values; its "step" is the step.
            quality: of two checkpoints the better one has more; NaN where it is not known.

        Raises:
            InputError: this one or the one before it cannot be written.
        """
        metrics = {} if math.isnan(quality) else {"quality": quality}
        text = np.frombuffer(json.dumps(progress).encode(), np.uint8)
        parts = {"state": state, "progress": text}
        checkpointer = self._opened()
        with self._writing():
            # Forced, or Orbax leaves out a step while the one before is still being written.
            checkpointer.save_checkpointables_async(step, parts, metrics=metrics, force=True)

    def wait(self) -> None:
        """Returns once all is on disk.

        Raises:
            InputError: it cannot be written.
        """
        if self._checkpointer is not None:
            with self._writing():
                self._checkpointer.wait()

    def restore(self, like: Any, step: int) -> tuple[Any, dict[str, Any]]:
        """State and progress of a step.

        Args:
            like: a state of the same structure, shapes and shardings.
            step: its number.

        Raises:
            InputError: what is still being written cannot be, the checkpoint cannot be read, or
                it is of another network.
        """
        self.wait()  # what is still being written cannot be read
        damaged: dict[int, str] = {}
        found = self._tried(like, step, damaged)
        if found is None:
            raise InputError(
                f"Checkpoint {step} in {self._directory} cannot be read ({damaged[step]})."
            )
        return found

    def newest(self, like: Any, console: Console) -> tuple[Any, dict[str, Any]] | None:
        """State and progress of the newest checkpoint that can be read; None where there is none.

        Those that are damaged are reported, and moved to the run's folder "damaged" once one is
        found that can be read. To be called before any is saved.

        Args:
            like: a state of the same structure, shapes and shardings, the one before any step.
            console: told of what cannot be read.

        Raises:
            InputError: none of them can be read, one cannot be read now, or they are of another
                network.
        """
        steps = self._steps()
        damaged: dict[int, str] = {}
        for step in steps:  # all: Orbax reads the qualities of all of them
            self._agreed(step, partial(self._check_quality, step), damaged)
        for step in steps:
            found = None if step in damaged else self._tried(like, step, damaged)
            if found is None:
                continue
            with together():
                for each, why in damaged.items() if is_first() else ():
                    place = self._move_aside(each)
                    console.print(
                        f"checkpoint {each} cannot be read ({why}): moved to {place}, {step} is "
                        "used",
                        highlight=False,
                        soft_wrap=True,
                    )
            return found
        if damaged:
            raise InputError(
                f"No checkpoint in {self._directory} can be read: "
                f"{', '.join(f'{each} ({why})' for each, why in damaged.items())}; put back "
                "a copy of one, or start the run again with 'voxtune finetune'."
            )
        return None

    def _steps(self) -> list[int]:
        """Steps that have a folder, the newest first, as the first process sees them.

        Raises:
            InputError: the folder of all cannot be read.
        """
        found: list[int] = []
        with together():
            try:
                if is_first():
                    there = [each.name for each in self._directory.iterdir() if each.is_dir()]
                    found = [int(each) for each in there if each.isdecimal()]
            except OSError as error:
                raise InputError(
                    f"The checkpoints in {self._directory} cannot be listed ({reason(error)})."
                ) from error
        numbers = np.array(sorted(found, reverse=True), np.int64)
        sent = np.zeros(gathered(np.array(numbers.size))[0], np.int64)
        if is_first():
            sent = numbers
        return [int(each) for each in gathered(sent)[0]]

    def _tried(
        self, like: Any, step: int, damaged: dict[int, str]
    ) -> tuple[Any, dict[str, Any]] | None:
        """A checkpoint, or None and in `damaged` why it cannot be read, in all processes alike."""
        return self._agreed(step, lambda: self._read(like, step), damaged)

    def _agreed(self, step: int, read: Callable[[], T], damaged: dict[int, str]) -> T | None:
        """What `read` gives, or None and why in `damaged` if any process cannot read the files.

        Raises:
            InputError: in any of them it is not the files, and the next time it may go well.
        """
        found = None
        with together():
            try:
                found = read()
            except jax.errors.JaxRuntimeError:  # of the devices: memory, say
                raise
            except UNREADABLE as error:
                why = passing(error)
                if why is not None:
                    raise InputError(
                        f"Checkpoint {step} in {self._directory} cannot be read now ({why}); "
                        "nothing was changed, try again."
                    ) from error
                damaged[step] = damage(error)
        if gathered(np.array(step in damaged)).any():
            damaged.setdefault(step, "another process finds it damaged")
            return None
        return found

    def _check_quality(self, step: int) -> None:
        """Reads what Orbax reads of each checkpoint as it opens their folder.

        Raises:
            OSError, ValueError, TypeError: it cannot be read.
        """
        folder = self._directory / str(step) / "metrics"
        if not folder.exists():  # a step that was not validated has none
            return
        file = folder / "metrics"
        if file.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        float(json.loads(file.read_bytes()).get("quality", math.nan))

    @without_aftermath()
    def _read(self, like: Any, step: int) -> tuple[Any, dict[str, Any]]:
        """A checkpoint, once it is known to be of this network.

        Each process reads for itself: in a common read, all would wait for one that fails.

        Raises:
            InputError: it is of another network.
        """
        folder, me = self._directory.absolute() / str(step), jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        with ocp.Context(multiprocessing_options=alone):
            held = ocp.checkpointables_metadata(folder).metadata
            if held["state"] is not None:  # else it is damaged, and reading it says how
                _check_same(_shapes(held["state"]), _shapes(like), self._directory)
            if math.prod(held["progress"].shape) > _LARGEST:
                raise ValueError("its progress is too large")
            found = ocp.load_checkpointables(folder, {"state": like, "progress": None})
        progress = json.loads(found["progress"].tobytes())
        if progress["step"] != step:
            raise ValueError("it is of another step")
        return found["state"], progress

    def _move_aside(self, step: int) -> Path:
        """Moves a damaged checkpoint to where it stands in nobody's way; its place.

        Raises:
            InputError: it cannot be moved.
        """
        place = self._directory.with_name("damaged") / str(step)
        try:
            place.parent.mkdir(exist_ok=True)
            number = 2
            while place.exists():
                place, number = place.with_name(f"{step}-{number}"), number + 1
            (self._directory / str(step)).rename(place)
        except OSError as error:
            raise InputError(
                f"{self._directory / str(step)} is damaged and cannot be moved to {place} "
                f"({reason(error)})."
            ) from error
        return place

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Says in a sentence that a checkpoint cannot be written.

        Orbax raises what happens in the background when it is called the next time.

        Raises:
            InputError: it cannot.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            steps = [int(each.name) for each in self._directory.glob("*") if each.name.isdecimal()]
            run = self._directory.parent
            last = f"checkpoint {max(steps)} is whole" if steps else "there was none before it"
            mend = "Make room" if system_code(error) in NO_ROOM else "Mend that"
            raise InputError(
                f"A checkpoint of {run} cannot be written ({reason(error)}); {last}. {mend}, "
                f"then go on with 'voxtune resume {run}'."
            ) from error

    def __enter__(self) -> Self:
        """Makes the folder.

        Raises:
            InputError: it cannot be made.
        """
        with together():
            try:
                if is_first():
                    self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{self._directory} cannot be made ({reason(error)}).") from error
        # Threads of TensorStore that cannot write report themselves to loops that are gone.
        self._hook, sys.unraisablehook = sys.unraisablehook, but_closed_loops
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits until all is on disk.

        Raises:
            InputError: it cannot be written, and nothing else is being said already.
        """
        try:
            self.wait()
        except InputError:
            if error is None:
                raise
        else:
            sys.unraisablehook = self._hook
        finally:
            if self._checkpointer is not None:
                self._checkpointer.close()
            if is_first():
                self._remove_halves()

    def _remove_halves(self) -> None:
        """Removes checkpoints that could not be written, for as long as threads still try to."""
        for _ in range(20):
            halves = list(self._directory.glob("*.orbax-checkpoint-tmp"))
            if not halves:
                return
            for each in halves:
                shutil.rmtree(each, ignore_errors=True)
            time.sleep(0.05)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path → shape of each array; of keys, of the numbers that they are."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = (getattr(part, "name", getattr(part, "key", None)) for part in path)
        parts = (
            str(part.idx) if name is None else str(name)
            for name, part in zip(names, path, strict=True)
        )
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        found["/".join(parts)] = tuple(leaf.shape)
    return found


def _check_same(
    held: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], directory: Path
) -> None:
    """Makes sure that a checkpoint is of the network to be trained.

    Raises:
        InputError: it is not.
    """
    if held == wanted:
        return
    path = min(path for path, _ in held.items() ^ wanted.items())
    raise InputError(
        f"The checkpoints in {directory} are of another network or optimizer: {path} has the "
        f"shape {held.get(path, 'of nothing')}, and {wanted.get(path, 'of nothing')} is wanted; "
        "start a run of its own with 'voxtune finetune'."
    )
