"""`voxtune report`: the page of one run, finished or not. No JAX here.

All that it reads may have been edited: it is checked, and shown as text.
"""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from voxtune.engine.command_line import finetune_command, shown_command
from voxtune.engine.config import Report
from voxtune.engine.formats import number
from voxtune.engine.output import MARKER
from voxtune.engine.page import (
    Html,
    Section,
    code,
    details,
    figure,
    is_page,
    page,
    paragraph,
    subheading,
    table,
    write_page,
)
from voxtune.engine.run_account import Account
from voxtune.engine.run_tables import (
    course,
    data_tables,
    made_with,
    option_tables,
    rule_tables,
    speed_table,
    start_tables,
)
from voxtune.engine.saved_config import CONFIG
from voxtune.models.errors import InputError

_PAGE = "report.html"
_METRICS = {
    "dice": "Dice",
    "jaccard": "Jaccard",
    "precision": "Precision",
    "recall": "Recall",
    "mean_absolute_error": "Mean absolute error",
}


def report(config: Report, console: Console) -> None:
    """Writes the page.

    Raises:
        InputError: the folder is no run directory or a broken one, a file is in the way, or the
            page cannot be written.
    """
    _check_run(config.run_dir)
    path = config.run_dir / _PAGE if config.output is None else config.output
    _check_place(path, config.overwrite or config.output is None)
    account = Account.read(config.run_dir)
    write_page(path, run_page(account))
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _check_run(folder: Path) -> None:
    """Makes sure that it is none of the folders that a run's is easily taken for.

    Raises:
        InputError: it is a study's, or a model directory.
    """
    try:
        kind = (folder / MARKER).read_text().strip()
    except (OSError, ValueError):
        kind = ""
    if kind == "study":
        raise InputError(
            f"{folder} is a study, whose page is {folder / _PAGE}; name one of its runs, which are "
            f"in {folder / 'runs'}."
        )
    if (folder / "model.json").is_file():
        run = folder.resolve().parent
        named = f", {run}" if (run / CONFIG).is_file() else ""
        raise InputError(
            f"{folder} is a model directory, of which there is no page; name the run that made "
            f"it{named}."
        )


def _check_place(path: Path, overwrite: bool) -> None:
    """Makes sure that a page may be written.

    Raises:
        InputError: it is not named as one, something else is there, or it may not be replaced.
    """
    if path.suffix.lower() != ".html":
        raise InputError(f"{path} must end in .html; name the page so.")
    if path.exists() and not (path.is_file() and is_page(path)):
        raise InputError(
            f"{path} exists and is no page of voxtune, so it is left alone; give another name "
            "with -o."
        )
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; give another name with -o, or pass --overwrite.")
    if path.parent.exists() and not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.parent} is no folder.")


def run_page(account: Account) -> str:
    """All of it."""
    sections = [
        Section("Curves", _curves(account)),
        Section("Validation", _validation(account)),
        Section("What was trained", [*start_tables(account), *rule_tables(account)]),
        Section("Data", data_tables(account)),
        Section("Speed", speed_table(account)),
        Section("Interruptions", course(account)),
        Section("How it was done", _how(account)),
    ]
    return page(f"Run {account.name}", _lead(account), sections)


def _lead(account: Account) -> list[str]:
    """How far the run is, and how good."""
    done = f"step {account.step} of {account.config.steps}"
    match account.state:
        case "finished":
            early = account.step < account.config.steps
            first = f"Finished{', before its time,' if early else ''} after {done}."
        case "running":
            first = f"Still being trained; this page was made after {done}."
        case _:
            first = f"Stopped after {done}; 'voxtune resume {account.name}' goes on with it."
    best = account.best
    if best is None:
        return [first, "It was not validated yet."]
    metric, value, step = account.metric, account.monitored(best), best["step"]
    name = _METRICS[metric]
    lines = [f"The best validation was at step {step}: {name} {number(value)}"]
    classes = [each for each in best[metric] if each != "mean"]
    if len(classes) > 1:
        lines.append(f", the mean of {len(classes)} classes")
    last = account.validations[-1]
    if last is not best:
        lines.append(f"; the last, at step {last['step']}, has {number(account.monitored(last))}")
    return [first, f"{''.join(lines)}."]


def _curves(account: Account) -> list[Html]:
    from voxtune.engine.run_plots import draw_training

    if not account.entries:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.svg"
        draw_training(account, path)
        losses = [each["loss"] for each in account.trained if "loss" in each]
        fell = f"The loss went from {number(losses[0])} to {number(losses[-1])}. " if losses else ""
        alt = f"Training loss, validation Dice and learning rates over steps. {fell}".strip()
        caption = "Loss, Dice of the validation subjects by class, and learning rates over steps."
        return [figure(path, alt, caption)]


def _validation(account: Account) -> list[Html]:
    if account.best is None:
        return []
    entries = {"The best": account.best, "The last": account.validations[-1]}
    if account.best is account.validations[-1]:
        entries = {"The last and best": account.best}
    found = [_scores(f"{what}, at step {each['step']}", each) for what, each in entries.items()]
    if len(account.validations) > 1:
        rows = [
            (str(each["step"]), number(account.monitored(each))) for each in account.validations
        ]
        name = _METRICS[account.metric]
        found.append(
            details("All validations", table(f"{name}, mean of classes", ("Step", name), rows, ()))
        )
    kept = "best" if account.config.patience is not None else "last"
    found.append(
        paragraph(
            f"The run keeps the weights of its {kept} validation. Scores are means over "
            f"{len(account.validation)} subjects that it was not trained on; if anything was "
            "chosen by them, they are no measure of how good the network is on others."
        )
    )
    return found


def _scores(caption: str, entry: Mapping[str, Any]) -> Html:
    metrics = [each for each in _METRICS if each in entry]
    names = dict.fromkeys(name for each in metrics for name in entry[each])
    rows = [
        (name, *(number(entry[each].get(name, math.nan)) for each in metrics)) for name in names
    ]
    return table(caption, ("Class", *(_METRICS[each] for each in metrics)), rows)


def _how(account: Account) -> list[Html]:
    command = shown_command(account.document["command"])
    again = finetune_command(account.config)
    found = [subheading("Command"), code(command)]
    if command.split()[1:2] != ["finetune"]:
        found += [paragraph("The run by itself, as a command of its own:"), code(again)]
    return [*found, *option_tables(account), *made_with(account)]
