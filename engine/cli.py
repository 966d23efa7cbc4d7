"""The voxtune command: parses, calls, prints. No logic, and no JAX before it is needed."""

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, Union, get_args

import tyro
from rich.console import Console

from voxtune.engine import config
from voxtune.engine.recipes import named_recipe
from voxtune.models.errors import InputError

STOPPED = 130  # exit status after Ctrl-C
_SEVERAL = (
    "--rule",
    "--labels",
    "--map",
    "--class-weights",
    "--classes",
    "--arguments",
    "--lambda",
    "--swap",
    "--keep",
)


def entry() -> None:
    """The command `voxtune`: `main`, then the end of the process."""
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if status in (2, STOPPED):
        # Threads of XLA and Orbax may still be at work, and would crash or complain while Python
        # shuts down round them.
        os._exit(status)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status.

    0: done. 1: done, and what was checked does not hold. 2: the input cannot be used, said in one
    sentence.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(version("voxtune"))
        return 0
    try:
        _check_once(given)
    except InputError as error:
        print(f"voxtune: {error}", file=sys.stderr)
        return 2
    command = tyro.cli(
        _commands(given),
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
    """The commands, with the defaults of the recipe that a command line names."""
    places = dict.fromkeys(("model_dir", "subjects", "run_dir"), tyro.MISSING)
    usual = config.Finetune(**places, **named_recipe(given))
    finetune = Annotated[config.Finetune, tyro.conf.subcommand("finetune", default=usual)]
    commands = get_args(config.Command)
    return Union[*(finetune if each is config.Finetune else each for each in commands)]


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

            finetune(command, console)
        case config.Predict():
            from voxtune.engine.predict import predict, scans_of

            predict(
                command.model_dir,
                scans_of(command.scans, command.split),
                command.output,
                overlap=command.overlap,
                overwrite=command.overwrite,
                report=lambda line: console.print(line, highlight=False, soft_wrap=True),
                nonfinite=command.nonfinite,
            )
        case config.Evaluate():
            from voxtune.engine.evaluate import evaluate, table, write_csv
            from voxtune.engine.subjects import read_subjects

            subjects = read_subjects(command.subjects, split=command.split)
            rows = evaluate(command.predictions_dir, subjects)
            if command.output is not None:
                write_csv(rows, command.output, command.overwrite)
            console.print(table(rows))
        case config.Picture():
            from voxtune.engine.picture import draw_predictions
            from voxtune.engine.subjects import read_subjects

            subjects = read_subjects(command.subjects, split=command.split)
            subjects = subjects[: max(1, command.rows)]
            draw_predictions(command.predictions_dir, subjects, command.output, command.overwrite)
            console.print(f"wrote {command.output}", highlight=False, soft_wrap=True)
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
