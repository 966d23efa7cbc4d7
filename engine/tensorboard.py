"""What metrics.jsonl gets, for TensorBoard."""

import importlib.util
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from voxtune.models.errors import InputError


def check_tensorboard() -> None:
    """Makes sure that TensorBoard is installed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard needs TensorBoard, which is not installed; run "
            "pip install 'voxtune[tensorboard]', or leave it out."
        )


class TensorBoard:
    """Writes numbers for TensorBoard, none of which needs TensorFlow.

    Args:
        folder: of the files; each writer adds one.
        step: that the run goes on from. What an earlier writer said of later ones, TensorBoard
            forgets.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        # What PyTorch's SummaryWriter is made of.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(folder))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=step + 1, session_log=start)

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds the numbers among the values: as `event/name`, and deeper where they are nested."""
        scalars = [
            self._summary.Value(tag=f"{event}/{name}", simple_value=value)
            for name, value in numbers(values)
        ]
        if scalars:
            self._write(step=step, summary=self._summary(value=scalars))

    def _write(self, **content: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), **content))
        # A run that is killed goes on from its newest checkpoint: nothing before may be missing.
        self._writer.flush()

    def close(self) -> None:
        """Ends the writer's thread, and closes its file."""
        self._writer.close()


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Path → number, of nested values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
