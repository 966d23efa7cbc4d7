"""A framework in a process of its own, which answers each line with a line of JSON."""

import json
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def start(python: str, script: str, *arguments: str) -> subprocess.Popen:
    """Starts a script of this folder by some interpreter, whose environment needs no voxtune."""
    # -P: the script's folder holds modules whose names others might look for.
    command = [python, "-P", str(Path(__file__).with_name(script)), *arguments]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class LateError(Exception):
    """A process did not answer in time, and was ended."""


@dataclass
class Child:
    """A framework in its process.

    Attributes:
        name: of the framework.
        process: see `start`.
        hello: what it says of itself.
    """

    name: str
    process: subprocess.Popen
    hello: dict[str, Any] = field(default_factory=dict)

    def listen(self, limit: float | None = None) -> dict[str, Any]:
        """Its next line.

        Args:
            limit: seconds that it may take.

        Raises:
            LateError: it took longer, and was ended.
            RuntimeError: it ended instead.
        """
        assert self.process.stdout
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(limit or threading.TIMEOUT_MAX, stop)
        timer.daemon = True
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        status = self.process.wait()
        if late.is_set():
            raise LateError(self.name)
        raise RuntimeError(f"{self.name} ended with status {status}")

    def ask(self, line: str, limit: float | None = None) -> dict[str, Any]:
        """Its answer to a line; arguments and errors as of `listen`."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # it has ended, which listening tells
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        return self.listen(limit)

    def end(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
