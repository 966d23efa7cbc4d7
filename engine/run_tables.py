"""Tables of the page of a run: weights, rules, data, speed, options. No JAX here."""

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from voxtune.engine.command_line import option_name, shown_value, without_folders
from voxtune.engine.config import Finetune
from voxtune.engine.formats import NOTHING, counted, duration, number, rounded, size
from voxtune.engine.page import Html, details, pairs, paragraph, subheading, table
from voxtune.engine.recipes import RECIPES
from voxtune.engine.run_account import Account

_MOST = 2000  # rows of a table, or names in a line, that a person might read
_NUMBERS = ("learning_rate", "weight_decay", "anchor", "l2")
_PULLS = (
    "A step takes its learning rate times the decay times the value away, and the same of the "
    "anchor and the distance from the pretrained value; L2 times the sum of squares joins the loss."
)
_KINDS = ("loaded", "adapted", "initialised", "dropped")


def start_tables(account: Account) -> list[Html]:
    """What the weights of the run came from."""
    place = str(account.config.init_from)
    origin = _texts(account.parameters.get("parameters"), place)
    dropped = _texts(account.parameters.get("dropped"), place)
    told = [*origin.values(), *dict.fromkeys(dropped, "dropped")]
    counts = {kind: sum(each.startswith(kind) for each in told) for kind in _KINDS}
    counts["dropped"] = len(dropped)
    rows = [(path, text) for path, text in origin.items()]
    rows += [(path, f"dropped, {reason}") for path, reason in dropped.items()]
    if not rows:
        return []
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return [
        pairs(
            {
                "Model": shown_value(account.config.model_dir),
                "Start": account.config.init,
                "Tensors": shown,
            }
        ),
        details(
            "Where each tensor came from",
            table("Tensors", ("Tensor", "First value"), _first(rows), words=(0, 1)),
        ),
    ]


def rule_tables(account: Account) -> list[Html]:
    """How the parameters are trained, by level and each."""
    parameters = account.rules.get("parameters")
    if not isinstance(parameters, dict):
        return []
    rows = {
        path: row
        for path, row in parameters.items()
        if isinstance(row, dict) and _NUMBERS[0] in row
    }
    levels: dict[str, dict[str, Mapping[str, Any]]] = {}
    for path, row in rows.items():
        levels.setdefault(path.split("/")[0], {})[path] = row
    header = ("Parameters", "Frozen", "Tensors", "Learning rate", "Decay", "Anchor", "L2")
    by_level = [(name, *_joined(own)) for name, own in levels.items()]
    by_path = [(path, *_joined({path: row})) for path, row in rows.items()]
    words = (0, 1)
    found = [table("How they are trained, by level", header, _first(by_level), words=words)]
    rules = account.rules.get("rules")
    if isinstance(rules, list) and rules:
        found.append(paragraph(f"By these rules, before the options: {_listed(rules)}"))
    found.append(paragraph(_PULLS))
    every = table("Peak learning rates and pulls", header, _first(by_path), words=words)
    return [*found, details("Each parameter", every)]


def _joined(rows: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """What several parameters have, by path."""
    frozen = dict.fromkeys(_frozen(row.get("frozen_until")) for row in rows.values())
    columns = (
        _told({path: _setting(row.get(name)) for path, row in rows.items()}) for name in _NUMBERS
    )
    return ", ".join(frozen), str(len(rows)), *columns


def _told(settings: Mapping[str, str]) -> str:
    """Each setting once; and of which parameters, as kernels, if their last names tell it."""
    kinds: dict[str, dict[str, None]] = {}
    for path, setting in settings.items():
        kinds.setdefault(setting, {})[path.rpartition("/")[2]] = None
    apart = len({kind for own in kinds.values() for kind in own}) == sum(map(len, kinds.values()))
    if len(kinds) == 1 or not apart:
        return ", ".join(kinds)
    return "; ".join(f"{setting} ({', '.join(own)})" for setting, own in kinds.items())


def _setting(value: Any) -> str:
    fits = type(value) in (int, float) and abs(value) < 1e300
    return (rounded(value) if value else "0") if fits else NOTHING


def _frozen(until: Any) -> str:
    if until in (0, None):
        return "no"
    return "yes" if until == "the end" else f"to step {until}"


def data_tables(account: Account) -> list[Html]:
    """What the run is trained and validated on."""
    document = account.document
    classes = [str(each) for each in document["classes"]]
    return [
        pairs(
            {
                "Data": shown_value(account.config.subjects),
                "Trained on": counted(len(account.train), "subject"),
                "Validated on": counted(len(account.validation), "subject"),
                "Classes": ", ".join(classes[:_MOST]) or "none: the network gives an image",
                "Blocks": f"{counted(document['batch'], 'block')} a step, of "
                f"{' x '.join(map(str, document['block']))} voxels",
            }
        ),
        details(
            "Which subjects",
            paragraph(f"Trained on: {_listed(account.train)}"),
            paragraph(f"Validated on: {_listed(account.validation)}"),
        ),
    ]


def speed_table(account: Account) -> list[Html]:
    """How fast it was."""
    trained, compiled = account.trained, account.compiled
    if not trained:
        return []
    rate = _median(trained, "examples_per_second")
    share = _median(trained, "peak_share")
    seconds, last = 0.0, 0
    for each in trained:
        own = each.get("examples_per_second", math.nan)
        seconds += (each["step"] - last) * account.document["batch"] / own if own > 0 else math.nan
        last = each["step"]
    memory = {
        what: max((each[name] for each in trained if name in each), default=math.nan)
        for what, name in (
            ("Most memory of a device", "device_peak_bytes"),
            ("Most memory of the process", "process_peak_bytes"),
        )
    }
    rows = {
        "Blocks a second": number(rate, 2),
        "Steps took": f"{duration(seconds)}, without validation and compilation",
        "Waiting for data": _percent(_median(trained, "data_wait")),
        "Of the devices' peak": _percent(share),
        "Compilation": duration(sum(each.get("seconds", math.nan) for each in compiled)),
        **{what: size(bytes_) for what, bytes_ in memory.items()},
    }
    told = {name: value for name, value in rows.items() if not value.startswith(NOTHING)}
    return [pairs(told, "Medians over the lines of the log")]


def course(account: Account) -> list[Html]:
    """Where the run went on after a stop, and steps that were skipped."""
    past = account.document.get("resumed", [])
    found = []
    if past:
        rows = [
            (
                str(each.get("time", NOTHING)),
                str(each.get("devices", NOTHING)),
                _listed(changed) if isinstance(changed := each.get("changed"), list) else "nothing",
                str(each.get("step", NOTHING)),
            )
            for each in past
        ]
        header = ("Time", "Devices", "Changed", "After step")
        found.append(table("Where it went on", header, _first(rows), words=(0, 1, 2)))
    if account.skipped:
        steps = [(_listed(each.get("subjects", [])), str(each["step"])) for each in account.skipped]
        caption = "Steps that were skipped, as loss or gradient was not finite"
        found.append(table(caption, ("Subjects", "Step"), _first(steps)))
    return found


def option_tables(account: Account) -> list[Html]:
    """What differs from the defaults, and all of it."""
    config = account.config
    defaults = {each.name: each.default for each in dataclasses.fields(Finetune)}
    usual = {**defaults, **RECIPES[config.recipe]}
    values = {name: getattr(config, name) for name in defaults}
    # No default: they are what the command is given.
    given = [name for name in values if defaults[name] is dataclasses.MISSING]
    differing = [
        (option_name(name), shown_value(value), shown_value(usual[name]))
        for name, value in values.items()
        if name not in given and value != usual[name]
    ]
    every = {
        option_name(name): shown_value(value) + " *" * (name not in given and value != usual[name])
        for name, value in values.items()
    }
    recipe = f"the recipe {config.recipe}"
    return [
        subheading("Options"),
        table(
            f"What differs from the defaults of {recipe}",
            ("Option", "Value", "Default"),
            differing,
            words=(0, 1, 2),
        )
        if differing
        else paragraph(f"All options have the defaults of {recipe}."),
        details("All options", pairs(every, "Those with a star differ from the defaults")),
    ]


def made_with(account: Account) -> list[Html]:
    """Versions, devices and hashes."""
    document = account.document
    named = {
        "Git revision": document.get("revision"),
        "Devices": document.get("devices"),
        "Processes": document.get("processes"),
        "SHA-256 of the data": document.get("data"),
        "SHA-256 of the pretrained values": document.get("weights"),
        "SHA-256 of the rules": document.get("rules"),
    }
    shown = {name: str(value) for name, value in {**document["versions"], **named}.items() if value}
    return [
        subheading("Made with"),
        pairs(shown),
        paragraph(
            "The hash of the data is of the subjects' names, shapes and label counts, that of the "
            "pretrained values of all that the run starts from."
        ),
    ]


def _texts(values: Any, place: str) -> dict[str, str]:
    """Name → text, of an object that may be another one; of a place its last part."""
    if not isinstance(values, dict):
        return {}
    texts = {name: str(value) for name, value in values.items()}
    short = without_folders(place)
    return {name: _without_paths(text.replace(place, short)) for name, text in texts.items()}


def _without_paths(text: str) -> str:
    """Of absolute paths within a sentence their last parts."""
    return re.sub(r"(?<![^\s'\"(=])(?:/[^\s/'\"]+)+/([^\s/'\"]+)", r"\1", text)


def _first(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows that are shown, and how many are not."""
    kept = list(rows[:_MOST])
    if len(rows) > _MOST:
        kept.append((f"and {len(rows) - _MOST} more", *[""] * (len(rows[0]) - 1)))
    return kept


def _listed(names: Iterable[Any]) -> str:
    shown = [_without_paths(str(each)) for each in names]
    more = f" and {len(shown) - _MOST} more" if len(shown) > _MOST else ""
    return (", ".join(shown[:_MOST]) or "none") + more


def _median(entries: Sequence[Mapping[str, Any]], name: str) -> float:
    told = [each[name] for each in entries if type(each.get(name)) in (int, float)]
    return statistics.median(told) if told else math.nan


def _percent(share: float) -> str:
    return NOTHING if math.isnan(share) else f"{100 * share:.1f} %"
