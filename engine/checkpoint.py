"""Arrays to disk and back. The only file that knows Orbax."""

import gc
import logging
import math
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from voxtune.engine.trees import flat, nested
from voxtune.models.errors import InputError

# What Orbax and its storage libraries raise on files that are missing, cut short or no checkpoint.
_BROKEN = (OSError, ValueError, KeyError, TypeError, RuntimeError, ocp.errors.InvalidLayoutError)


def save_parameters(directory: Path, parameters: Mapping[str, np.ndarray | jax.Array]) -> None:
    """Writes arrays by path as an Orbax checkpoint; `directory` must not exist."""
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False  # nobody changes them before the call returns
    with context:
        ocp.save(directory.absolute(), nested(parameters))


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
        with _without_aftermath():
            return _load(directory, shapes)
    except _BROKEN as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{directory} cannot be read as a checkpoint ({reason}); convert or train again."
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


def _but_closed_loops(unraisable: Any) -> None:
    """Reports an error that nobody can catch, unless it is that Orbax's event loop has ended."""
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


@contextmanager
def _without_aftermath() -> Iterator[None]:
    """Keeps Orbax's abandoned tasks quiet: on a damaged file they report themselves when they are
    collected, as dozens of lines round the one sentence that a person needs."""
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold the tasks
        # For good: TensorStore's threads and asyncio's tasks may report themselves later.
        hook, level = _but_closed_loops, logging.CRITICAL + 1
        raise
    finally:
        gc.collect()
        sys.unraisablehook = hook
        logger.setLevel(level)


def _quality(metrics: Mapping[str, float]) -> float:
    return metrics.get("quality", -math.inf)


class Checkpoints:
    """The checkpoints of a run, written in the background; the newest `keep` stay, and the best.

    Args:
        directory: where they go, one folder a step.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        policies = ocp.training.preservation_policies
        policy = policies.AnyPreservationPolicy(
            [policies.LatestN(keep), policies.BestN(get_metric_fn=_quality, n=1)]
        )
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(), preservation_policy=policy
        )

    def save(self, step: int, state: Any, data: Mapping[str, int], quality: float) -> None:
        """Starts writing a step's whole state; returns before it is on disk.

        Args:
            step: its number.
            state: all that the step changes.
            data: where the data goes on, see `voxtune.engine.feed.Feed.state`.
            quality: of two checkpoints the better one has more; NaN where it is not known.
        """
        metrics = {} if math.isnan(quality) else {"quality": quality}
        parts = {"state": state, "data": dict(data)}
        # Forced, or Orbax leaves out a step while the one before is still being written.
        self._checkpointer.save_checkpointables_async(step, parts, metrics=metrics, force=True)

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, int]]:
        """State and data of a step (the newest by default).

        Args:
            like: a state of the same structure, shapes and shardings.
            step: its number.
        """
        self._checkpointer.wait()  # what is still being written cannot be read
        found = self._checkpointer.load_checkpointables(step, {"state": like, "data": None})
        return found["state"], found["data"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits until all is on disk."""
        self._checkpointer.close()
