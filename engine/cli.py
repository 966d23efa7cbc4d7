"""The voxtune command: parses, calls, prints. No logic, and no JAX before it is needed."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Union, get_args

import tyro
from rich.console import Console

from voxtune.engine import config
from voxtune.engine.recipes import named_recipe
from voxtune.models.errors import InputError

LOST = 69  # exit status where another process of a run ended
PREEMPTED = 75  # exit status of a run that was told to end, and saved what it had
STOPPED = 130  # exit status after Ctrl-C
_SEVERAL = (
    "--rule",
    "--labels",
    "--rename",
    "--class-weights",
    "--classes",
    "--arguments",
    "--lambda",
    "--swap",
    "--keep",
    "--ensemble",
    "--maps",
    "--networks",
    "--blocks",
    "--batches",
    "--dtypes",
    "--remats",
)


def entry() -> None:
    """The command `voxtune`: `main`, then the end of the process."""
    try:
        status = main()
    except Exception:  # a fault of ours: shown whole, and the process ends at once all the same
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if status != 0:
        # Threads of XLA and Orbax may still be at work, and would crash or complain while Python
        # shuts down round them; and other processes of the run would be waited for.
        os._exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    0: done. 1: done, and what was checked does not hold. 2: the input cannot be used, said in one
    sentence. 69: another process of the run is gone. 75: the run was told to end and can be gone on
    with. 130: stopped by Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(version("voxtune"))
        return 0
    try:
        _check_once(given)
        commands = _commands(given)
    except InputError as error:
        print(f"voxtune: {error}", file=sys.stderr)
        return 2
    command = tyro.cli(
        commands,
        prog="voxtune",
        description="Fine-tune pretrained 3D brain-imaging networks in JAX.",
        args=given or ["--help"],
    )
    # Orbax and JAX warn of things that a person at the terminal can do nothing about.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Names come from people and files: none of them is markup. Tables need some width in a log.
    console = Console(markup=False, width=None if sys.stdout.isatty() else 120)
    try:
        return run(command, console)
    except InputError as error:
        print(f"voxtune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("voxtune: stopped.", file=sys.stderr)
        return STOPPED


def _check_once(given: Sequence[str]) -> None:
    """Makes sure that no option of several values is given twice: the second would replace the
    first in silence.

    Raises:
        InputError: one is.
    """
    options = [each.partition("=")[0].replace("_", "-") for each in given]
    twice = next((each for each in _SEVERAL if options.count(each) > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice; give all its values after one.")


def _commands(given: Sequence[str]) -> Any:
    """The commands, with the defaults of the recipe, or of the run, that a command line names."""
    places = dict.fromkeys(("model_dir", "subjects", "run_dir"), tyro.MISSING)
    usual = config.Finetune(**places, **named_recipe(given))
    saved = config.Resume(run_dir=tyro.MISSING, **_saved(given))
    places = dict.fromkeys(("model", "data", "out"), tyro.MISSING)
    designed = config.Study(**places, **_designed(given))
    defaults = {
        config.Study: Annotated[config.Study, tyro.conf.subcommand("study", default=designed)],
        config.Finetune: Annotated[
            config.Finetune, tyro.conf.subcommand("finetune", default=usual)
        ],
        config.Resume: Annotated[config.Resume, tyro.conf.subcommand("resume", default=saved)],
    }
    return Union[*(defaults.get(each, each) for each in get_args(config.Command))]


def _designed(given: Sequence[str]) -> dict[str, Any]:
    """Options of the design of a study that a command line names.

    Raises:
        InputError: it is bad.
    """
    if "study" not in given[:1]:
        return {}
    from voxtune.engine.arms import design_options

    found: dict[str, Any] = {}
    for number, argument in enumerate(given):
        option, equals, value = argument.partition("=")
        if option == "--design":
            name = value if equals else "".join(given[number + 1 : number + 2])
            found = design_options(Path(name))
    return found


def _saved(given: Sequence[str]) -> dict[str, Any]:
    """Options of the run that is to be gone on with; none where the command line names none.

    How its processes found each other is left out: that was another start's, of its first process.
    """
    if "resume" not in given[:1]:
        return {}
    from voxtune.engine.saved_config import saved_options

    folders = (Path(each) for each in given[1:] if not each.startswith("-"))
    options = next((found for each in folders if (found := saved_options(each))), {})
    return {name: value for name, value in options.items() if name != "distributed"}


def _trained(
    command: config.Finetune | config.Resume, train: Callable[[Any, Console], Any], console: Console
) -> int:
    """Runs one of the commands that may be one of several processes, and can be gone on with.

    Returns:
        Its exit status. What went wrong is said by the process that it went wrong in.
    """
    from voxtune.engine.loop import PreemptedError
    from voxtune.engine.processes import LEFT_WITHIN, LostError, is_first, leave, tag

    try:
        train(command, console)
    except PreemptedError as error:
        if is_first():
            print(
                f"voxtune: told to end; step {error.step} of {command.run_dir} is saved, "
                f"'voxtune resume {command.run_dir}' goes on.",
                file=sys.stderr,
            )
        leave()
        return PREEMPTED
    except LostError as error:
        again = _going_on(command.run_dir, " in all processes")
        print(f"voxtune: {tag()}{error}{again}.", file=sys.stderr)
        return LOST
    except InputError as error:
        print(f"voxtune: {tag()}{error}", file=sys.stderr, flush=True)
        # Most input is bad for all: each says so itself, before it loses the first that ends.
        leave(LEFT_WITHIN)
        return 2
    except KeyboardInterrupt:
        print(f"voxtune: {tag()}stopped{_going_on(command.run_dir)}.", file=sys.stderr)
        return STOPPED
    return 0


def _studied(command: config.Study, console: Console) -> int:
    """Runs a study, which the same command goes on with; its exit status."""
    from voxtune.engine.loop import PreemptedError
    from voxtune.engine.study import study

    again = "what is done is kept, the same command goes on"
    try:
        study(command, console)
    except PreemptedError:
        print(f"voxtune: told to end; {again}.", file=sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt:
        print(f"voxtune: stopped; {again}.", file=sys.stderr)
        return STOPPED
    return 0


def _going_on(run_dir: Path, where: str = "") -> str:
    """How, where a run has left something to go on with."""
    saved = run_dir / "checkpoints"
    if not saved.is_dir() or not any(each.name.isdecimal() for each in saved.iterdir()):
        return ""
    return f"; its checkpoints are whole, 'voxtune resume {run_dir}'{where} goes on"


def run(command: config.Command, console: Console) -> int:
    """Runs one parsed command; returns its exit status."""
    match command:
        case config.Inspect():
            from voxtune.engine.inspect import inspect

            inspect(command, console)
        case config.Convert():
            from voxtune.engine.convert import convert_file

            return 0 if convert_file(command, console) else 1
        case config.Create():
            from voxtune.engine.create import create

            create(command, console)
        case config.Export():
            from voxtune.engine.export import export

            return 0 if export(command, console) else 1
        case config.Prepare():
            from voxtune.engine.prepare import prepare

            prepare(command, console)
        case config.Summary():
            from voxtune.engine.summary import summarise

            summarise(command, console)
        case config.Finetune():
            from voxtune.engine.train import finetune

            return _trained(command, finetune, console)
        case config.Resume():
            from voxtune.engine.train import resume

            return _trained(command, resume, console)
        case config.Study():
            return _studied(command, console)
        case config.Report():
            from voxtune.engine.run_report import report

            report(command, console)
        case config.Doctor():
            from voxtune.engine.doctor import doctor

            return 0 if doctor(console) else 1
        case config.Predict():
            from voxtune.engine.job import predict

            return 0 if predict(command, console) else 1
        case config.Threshold():
            from voxtune.engine.threshold import choose_threshold

            choose_threshold(command, console)
        case config.Evaluate():
            from voxtune.engine.evaluate import evaluate

            evaluate(command, console)
        case config.Picture():
            from voxtune.engine.picture import draw_predictions
            from voxtune.engine.subjects import read_subjects

            subjects = read_subjects(command.subjects, split=command.split)
            subjects = subjects[: max(1, command.rows)]
            draw_predictions(command.predictions_dir, subjects, command.output, command.overwrite)
            console.print(f"wrote {command.output}", highlight=False, soft_wrap=True)
        case config.Benchmark():
            from voxtune.benchmarks.benchmark import benchmark

            return 0 if benchmark(command, console) else 1
        case config.Phantom():
            from voxtune.engine.phantom import write_phantoms

            table_path = write_phantoms(
                command.out_dir,
                command.kind,
                command.train,
                command.validation,
                command.test,
                command.seed,
                (command.size,) * 3,
                command.spacing,
                command.overwrite,
            )
            console.print(f"wrote {table_path}", highlight=False, soft_wrap=True)
        case config.Demo():
            from voxtune.engine.demo import demo

            demo(command, console)
    return 0


if __name__ == "__main__":
    entry()
