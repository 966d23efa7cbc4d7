"""Programs in processes of their own, which take turns.

A program is a script of this folder that answers each line on its standard input with a line of
JSON. First it says of itself `version`, or `missing` (why it cannot run). Then it does one turn for
each line, and says `seconds`, and whatever else the suite wants of it; or `problem`, in words,
where it cannot do this case: too little memory, for example. When its standard input ends, it ends.

That one breaks, voxtune's too, is a problem of its case: others are measured all the same.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

PAUSE = 0.3  # seconds between turns, for threads that wait for work to fall asleep
STARTING = 900.0  # seconds that a program may take to load, and to compile in its first turn
SOONEST = 1.0  # seconds before which none is stopped for being late
GRACE = 5.0  # seconds in which a program ends that waits for a line, when no more will come
TIDYING = 1.0  # seconds that what it has started has to end, and to free what it shares
# How problems begin of programs that neither said what is wrong nor ran out of memory.
CRASHES = ("broke", "ended by signal")
_LONGEST = 200  # letters of a problem
_FOLDERS = r"/[^\s'\"]*/"


class LateError(Exception):
    """A process did not answer in time, and was ended."""


@dataclass
class Program:
    """A program in its process.

    Attributes:
        name: of the program.
        process: that runs it, see `start`.
        hello: what it says of itself.
        turns: what it said of each turn.
        problem: why it takes no further turns; empty as long as it does.
        errors: file that holds what it writes to its standard error; None where that is elsewhere.
        waits: whether it has answered all, and waits for a line.
        stopped: seconds after which it was ended for want of an answer; None where it was not.
    """

    name: str
    process: subprocess.Popen[str]
    hello: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    errors: IO[bytes] | None = None
    waits: bool = False
    stopped: float | None = None

    @staticmethod
    def start(
        name: str,
        python: str | Path,
        script: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
    ) -> "Program":
        """Starts a script of this folder by an interpreter, whose environment needs no voxtune.

        Args:
            name: of the program.
            python: the interpreter.
            script: file name in this folder.
            arguments: of the script.
            environment: all variables of the process; by default this process's.
        """
        # -P: the script's folder holds modules whose names others might look for.
        command = [str(python), "-P", str(Path(__file__).with_name(script)), *arguments]
        pipe = subprocess.PIPE
        # A file takes warnings without end; a pipe that nobody reads would stop the program.
        errors = tempfile.TemporaryFile()  # noqa: SIM115  # `end` closes it
        process = subprocess.Popen(
            command,
            text=True,
            stdin=pipe,
            stdout=pipe,
            stderr=errors,
            env=environment,
            process_group=0,  # Ctrl-C is this process's to hear; and `end` reaches its workers
        )
        return Program(name, process, errors=errors)

    def load(self, limit: float = STARTING) -> None:
        """Waits until it is ready."""
        self._heard(None, limit, self.hello)
        self.problem = self.problem or self.hello.get("missing", "")
        if self.problem:
            self.end()

    def turn(self, limit: float | None = None) -> None:
        """Has it do one turn; where that fails, it takes no further ones."""
        said: dict[str, Any] = {}
        self._heard("turn", limit, said)
        if "problem" in said:
            self.problem = said["problem"]
            self.end()
        if not self.problem:
            self.turns.append(said)

    def _heard(self, line: str | None, limit: float | None, said: dict[str, Any]) -> None:
        """Says a line to it, and adds its answer to what was said."""
        try:
            said |= self.listen(limit) if line is None else self.ask(line, limit)
        except LateError:
            self.stopped, self.problem = limit, f"stopped after {limit:.0f} s"
        except RuntimeError as error:
            status = self.process.wait()
            if status >= 0:
                # That is a result; where its files are is not.
                words = str(error).partition(": ")[2] or f"status {status}"
                self.problem = f"broke: {re.sub(_FOLDERS, '.../', words)}"[:_LONGEST]
                return
            # Linux ends what takes too much memory with 9; some end themselves, with 6.
            self.problem = "out of memory" if status == -9 else f"ended by signal {-status}"

    def listen(self, limit: float | None = None) -> dict[str, Any]:
        """Its next line.

        Args:
            limit: seconds that it may take.

        Raises:
            LateError: it took longer, and was ended.
            RuntimeError: it ended instead.
        """
        assert self.process.stdout
        self.waits = False
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._kill()

        timer = threading.Timer(limit or threading.TIMEOUT_MAX, stop)
        timer.daemon = True
        timer.start()
        try:
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
        if line:
            self.waits = True
            return json.loads(line)
        status = self.process.wait()
        said = self._last_line()
        self.end()
        if late.is_set():
            raise LateError(self.name)
        raise RuntimeError(f"{self.name} ended with status {status}{said}")

    def ask(self, line: str, limit: float | None = None) -> dict[str, Any]:
        """Its answer to a line; arguments and errors as of `listen`."""
        assert self.process.stdin
        with suppress(BrokenPipeError):  # it has ended, which listening tells
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        return self.listen(limit)

    def let_go(self) -> None:
        """Tells it that no more lines will come, upon which it ends, unless it is at work."""
        assert self.process.stdin
        with suppress(OSError):  # of a line that it did not read any more
            self.process.stdin.close()

    def end(self) -> None:
        """Ends it, and what it has started; it may have ended.

        Where it waits, it may end by itself, and close what it has opened; at work it is killed.
        """
        assert self.process.stdout
        if self.process.stdout.closed:  # done before: its number may be another process's by now
            return
        self.let_go()
        try:
            if self.waits:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(GRACE)
        finally:
            self.process.kill()
            self.process.wait()
            self._end_group()
            self.process.stdout.close()
            if self.errors is not None:
                self.errors.close()

    def _end_group(self) -> None:
        """Ends what it has started and left behind.

        Python's resource tracker, which frees the shared memory of processes that were killed,
        heeds no SIGTERM, and ends when they have.
        """
        if sys.platform == "win32":
            return
        # None of its group is left, or it has none of its own; macOS says it differently.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGTERM)
            ends = time.monotonic() + TIDYING
            while time.monotonic() < ends:
                os.killpg(self.process.pid, 0)
                time.sleep(0.01)
            os.killpg(self.process.pid, signal.SIGKILL)

    def _kill(self) -> None:
        """Ends it and what it has started, at once."""
        if sys.platform != "win32":
            with suppress(ProcessLookupError, PermissionError):  # as in `_end_group`
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def _last_line(self) -> str:
        """The last that it wrote to its standard error, after a colon; empty where that is lost."""
        if self.errors is None:
            return ""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


@contextmanager
def running(programs: Iterable[Program] = ()) -> Iterator[list[Program]]:
    """Programs, all of which have ended afterwards, whatever happens meanwhile.

    Args:
        programs: may start them one by one; those that are added to the list end too.
    """
    started: list[Program] = []
    try:
        for each in programs:
            started.append(each)  # at once: it has to end where the next cannot be started
        yield started
    finally:
        with ExitStack() as ends:  # all of them, also where one is interrupted
            for each in started:
                each.let_go()
                ends.callback(each.end)


@contextmanager
def ended_when_told() -> Iterator[None]:
    """SIGTERM, and the end of the terminal, raise: no program is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {each: signal.getsignal(each) for each in numbers}
    try:
        for each in numbers:
            if before[each] is not signal.SIG_IGN:  # as nohup has it
                signal.signal(each, end)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler or signal.SIG_DFL)


def take_turns(
    programs: Sequence[Program], turns: int, warm: int = 1, late: float | None = None
) -> None:
    """Has programs that are ready take turns; each stops at its first problem.

    Their first turn, which compiles, and those that warm up are among their `turns`.

    Args:
        programs: the first is the one that others are compared with.
        turns: of each that count.
        warm: turns after the first that do not count.
        late: a program is stopped that takes so many times as long as the first did at its fastest,
            and no less than `SOONEST`; the first turns aside.
    """
    for number in range(1 + warm + turns):
        for program in programs:
            if program.problem:
                continue
            limit = STARTING
            own = [each["seconds"] for each in programs[0].turns[1:]]
            if late is not None and number and own and program is not programs[0]:
                limit = max(late * min(own), SOONEST)
            program.turn(limit)
            time.sleep(PAUSE)
