"""Rules over parameter paths, and the table that they give: what happens to each parameter."""

import dataclasses
import difflib
import fnmatch
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from voxtune.engine.config import Finetune
from voxtune.engine.trees import flat, mapped, select
from voxtune.models.errors import InputError
from voxtune.models.families import Network
from voxtune.models.parameters import shapes_of, statistics_of

FOREVER = math.inf
_NUMBERS = ("learning_rate", "weight_decay", "anchor", "l2")
_LARGEST_FILE = 2**20  # bytes
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Rule:
    """What happens to the parameters whose paths match a pattern; None leaves it to later rules.

    Attributes:
        pattern: a glob, in which * stands for any signs, slashes too; or `re:` and a regular
            expression for the whole path.
        learning_rate: factor of the learning rate that the options give.
        weight_decay: decoupled decay (Loshchilov and Hutter 2019): a step takes learning rate times
            this times the value away.
        anchor: the same, of the distance from the pretrained value (L2-SP, Li et al. 2018,
            arXiv 1802.01483), decoupled as decay is.
        l2: times the sum of squares joins the loss, as by Keras's `regularizers.l2`.
        until: frozen until this step: 0 is not at all, `FOREVER` always.
    """

    pattern: str
    learning_rate: float | None = None
    weight_decay: float | None = None
    anchor: float | None = None
    l2: float | None = None
    until: float | None = None

    def matches(self, path: str) -> bool:
        """Whether a parameter is meant."""
        return self._expression.fullmatch(path) is not None

    @functools.cached_property
    def _expression(self) -> re.Pattern[str]:
        if self.pattern.startswith("re:"):
            return re.compile(self.pattern[3:])
        return re.compile(fnmatch.translate(self.pattern))


def parse_rule(text: str) -> Rule:
    """A rule as a person writes it: `PATTERN PROPERTY=VALUE ...`, or `freeze` for a property.

    Raises:
        InputError: it is not written so, or a value is no number of at least 0.
    """
    pattern, *words = text.split()
    found: dict[str, float] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if word in ("freeze", "freeze=yes"):
            name, number = "freeze", FOREVER
        elif word == "freeze=no":
            number = 0.0
        elif equals and name in (*_NUMBERS, "from_step"):
            number = _number(text, word, value)
        else:
            raise InputError(
                f"The rule '{text}' has '{word}', which is none of freeze, from_step=STEP, "
                f"{'=NUMBER, '.join(_NUMBERS)}=NUMBER; correct it."
            )
        if name in found:
            raise InputError(f"The rule '{text}' says {name} twice; say it once.")
        found[name] = number
    # Frozen from the start on until a step is both.
    until = found.pop("freeze", None)
    if until == 0 and "from_step" in found:
        raise InputError(f"The rule '{text}' has freeze=no and from_step; leave one out.")
    until = found.pop("from_step", until)
    if until is not None:
        found["until"] = until
    if not found:
        raise InputError(
            f"The rule '{text}' sets nothing; put a pattern and what it sets in one pair of "
            f'quotes, such as "{pattern} freeze".'
        )
    rule = Rule(pattern, **found)
    try:
        rule.matches("")
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"The rule '{text}' has no regular expression ({error}).") from error
    return rule


def _number(text: str, word: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    whole = word.startswith("from_step") and not number.is_integer()
    if not 0 <= number < math.inf or whole:
        kind = "a whole number" if word.startswith("from_step") else "a finite number"
        raise InputError(f"The rule '{text}' has '{word}', which wants {kind} of at least 0.")
    return number


def read_rules(config: Finetune) -> list[str]:
    """The rules of `--rule`, then those of the file `--rules`, one a line, `#` before remarks.

    Raises:
        InputError: the file cannot be read, or a rule is wrong.
    """
    lines = list(config.rule)
    if config.rules is not None:
        try:
            if config.rules.stat().st_size > _LARGEST_FILE:
                raise InputError(f"{config.rules} is no list of rules: it is larger than a MiB.")
            text = config.rules.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{config.rules} cannot be read as a text ({reason}).") from error
        # A remark begins a line or comes after a space: a Keras layer may be called conv#1.
        lines += [re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines()]
    return [" ".join(line.split()) for line in lines if line.strip()]


@dataclass(frozen=True)
class Row:
    """What happens to one parameter or statistic.

    Attributes:
        path: its own.
        shape: of its array.
        statistic: whether it is a statistic, which norms move and the optimizer does not.
        level: of the network.
        learning_rate: at the schedule's peak.
        weight_decay: as in `Rule`, and so on; 0 is none.
        anchor: see there.
        l2: see there.
        until: frozen until this step. The norm that a frozen statistic belongs to normalises by it
            in training too, as Keras's `trainable = False` has it.
    """

    path: str
    shape: tuple[int, ...]
    statistic: bool
    level: str
    learning_rate: float = 0.0
    weight_decay: float = 0.0
    anchor: float = 0.0
    l2: float = 0.0
    until: float = 0

    @property
    def trained(self) -> bool:
        """Whether the optimizer moves it, sooner or later."""
        return not self.statistic and self.until < FOREVER


@dataclass(frozen=True)
class Parameters:
    """The parameters and statistics of the network that rules are made for.

    Attributes:
        shapes: path → shape of all of them.
        statistics: paths of the statistics.
        levels: names of the network's stages, from input to output, the last of them the head.
        owners: path of each → the level that it belongs to.
        heads: paths of the layers that give outputs.
        pretrained: paths of those that start from pretrained values.
    """

    shapes: Mapping[str, tuple[int, ...]]
    statistics: frozenset[str]
    levels: Sequence[str]
    owners: Mapping[str, str]
    heads: Sequence[str]
    pretrained: frozenset[str]

    @staticmethod
    def of(network: Network, pretrained: Iterable[str] = ()) -> "Parameters":
        """Those of a network."""
        shapes = shapes_of(network)
        return Parameters(
            shapes,
            statistics_of(network),
            network.levels(),
            {path: network.level_of(path) for path in shapes},
            network.head_paths,
            frozenset(pretrained),
        )

    def in_head(self, path: str) -> bool:
        """Whether it belongs to a layer that gives outputs."""
        return any(path.startswith(f"{head}/") for head in self.heads)

    def level(self, path: str) -> int:
        """Number of the level that it belongs to."""
        return self.levels.index(self.owners[path])


@dataclass(frozen=True, eq=False)
class Rules:
    """What happens to each parameter: one row for each.

    Attributes:
        rows: by path, from input to output.
        given: the rules as a person wrote them, in their order.
    """

    rows: Mapping[str, Row]
    given: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values; what is always frozen is so until "the end"."""

        def values(row: Row) -> dict[str, Any]:
            until = "the end" if row.until == FOREVER else int(row.until)
            settings = {} if row.statistic else {n: getattr(row, n) for n in _NUMBERS}
            return {**settings, "frozen_until": until}

        rows = {path: values(row) for path, row in self.rows.items()}
        return {"rules": list(self.given), "parameters": rows}

    def separate(self, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters (nested dict) that are trained, and those that are always frozen."""
        trained = select(lambda path: self.rows[path].trained, params)
        return trained, select(lambda path: not self.rows[path].trained, params)

    def awake(self, gradients: Any, step: Array) -> dict[str, Any]:
        """Gradients (nested dict), with zeros for what is frozen until a later step."""

        def kept(path: str, gradient: Array) -> Array:
            until = self.rows[path].until
            return jnp.where(step >= until, gradient, 0) if until else gradient

        return mapped(kept, gradients)

    def statistics(self) -> dict[str, float]:
        """Path of each statistic → the step until which it is frozen."""
        return {path: row.until for path, row in self.rows.items() if row.statistic}

    def penalty(self, params: Any) -> Array | None:
        """The L2 terms of the loss; None where no parameter has one."""
        terms = [
            self.rows[path].l2 * (value**2).sum()
            for path, value in flat(params).items()
            if self.rows[path].l2
        ]
        return sum(terms[1:], terms[0]) if terms else None


def is_kernel(path: str) -> bool:
    """Whether a parameter is a kernel: what decay is for.

    Biases and the scales and offsets of norms are none, nor are random weights: their prior pulls
    already.
    """
    return path.rsplit("/", 1)[-1].endswith("kernel")


def make_rules(parameters: Parameters, config: Finetune) -> Rules:
    """A row for each parameter: of each property the first rule that sets it, else the options.

    Raises:
        InputError: a rule or a level matches nothing, an option makes no sense, or nothing is left
            to train.
    """
    _check_levels(parameters, config)
    given = read_rules(config)
    rules = [parse_rule(text) for text in given]
    for rule in rules:
        _check_matches(rule, parameters, config)
    rows = {}
    for path, shape in sorted(
        parameters.shapes.items(), key=lambda each: parameters.level(each[0])
    ):
        own = [rule for rule in rules if rule.matches(path)]
        usual = _usual(path, parameters, config)
        rows[path] = _row(path, shape, own, usual, parameters)
    found = Rules(rows, given)
    _check_norms(found)
    for row in rows.values():
        _check_numbers(row, config)
    thawing = any(0 < row.until < FOREVER for row in rows.values())
    if config.unfreeze_every is not None and not thawing:
        raise InputError(
            f"--unfreeze-every {config.unfreeze_every} finds no level to thaw: there is one level "
            "only, or --freeze-until or --rule freeze them for good; leave one out."
        )
    if not any(row.trained and row.until < config.steps for row in rows.values()):
        raise InputError(
            f"Every parameter is frozen through all of --steps {config.steps}; change --rule, "
            "--freeze-until or --unfreeze-every."
        )
    return found


def _row(
    path: str, shape: tuple[int, ...], rules: list[Rule], usual: Rule, parameters: Parameters
) -> Row:
    def first(name: str) -> float:
        values = (getattr(rule, name) for rule in (*rules, usual))
        return next(value for value in values if value is not None)

    statistic, level = path in parameters.statistics, parameters.owners[path]
    row = Row(path, shape, statistic, level, until=first("until"))
    if row.statistic or not row.trained:
        return row
    factor = next((rule.learning_rate for rule in rules if rule.learning_rate is not None), 1.0)
    assert usual.learning_rate is not None
    # Where there is no pretrained value, there is none to stay near.
    anchor = first("anchor") if path in parameters.pretrained else 0.0
    decays = [rule.weight_decay for rule in rules if rule.weight_decay is not None]
    return dataclasses.replace(
        row,
        learning_rate=usual.learning_rate * factor,
        # An anchor stands in the place of the decay that the options give.
        weight_decay=decays[0] if decays else 0.0 if anchor else first("weight_decay"),
        anchor=anchor,
        l2=first("l2"),
    )


def _usual(path: str, parameters: Parameters, config: Finetune) -> Rule:
    """What the options give for a parameter."""
    level = parameters.level(path)
    above = len(parameters.levels) - 1 - level
    base = config.head_lr if parameters.in_head(path) else config.trunk_lr
    kernel = is_kernel(path)
    until: float = 0
    if config.freeze_until is not None and level < parameters.levels.index(config.freeze_until):
        until = FOREVER
    elif config.unfreeze_every is not None:
        until = float(config.unfreeze_every * above)
    return Rule(
        path,
        learning_rate=base * config.layer_decay**above,
        weight_decay=config.decay if kernel else 0.0,
        anchor=config.anchor if kernel else 0.0,
        l2=config.l2 if kernel else 0.0,
        until=until,
    )


def _check_levels(parameters: Parameters, config: Finetune) -> None:
    if config.freeze_until is not None and config.freeze_until not in parameters.levels:
        raise InputError(
            f"--freeze-until {config.freeze_until} is no level of this network; its levels are "
            f"{', '.join(parameters.levels)}."
        )


def _check_matches(rule: Rule, parameters: Parameters, config: Finetune) -> None:
    """Makes sure that a rule matches something that its properties are for."""
    matched = [path for path in parameters.shapes if rule.matches(path)]
    if not matched:
        wanted = rule.pattern.removeprefix("re:").strip("*")
        near = nearest(wanted, [*parameters.shapes, *parameters.levels])
        raise InputError(
            f"The rule '{rule.pattern}' matches no parameter; the nearest are {shortened(near)} "
            "(--dry-run without it lists all)."
        )
    settings = [name for name in _NUMBERS if getattr(rule, name) is not None]
    if settings and parameters.statistics.issuperset(matched):
        raise InputError(
            f"The rule '{rule.pattern}' sets {settings[0]} but matches statistics alone "
            f"({shortened(matched)}), which can be frozen and nothing else."
        )
    pretrained = config.init != "pretrained" or parameters.pretrained.intersection(matched)
    if rule.anchor and not pretrained:
        raise InputError(
            f"The rule '{rule.pattern}' anchors {shortened(matched)}, which starts from no "
            "pretrained value."
        )


def _check_numbers(row: Row, config: Finetune) -> None:
    """Makes sure that what came of rules and options together can be computed with."""
    for name in _NUMBERS:
        value = getattr(row, name)
        if not 0 <= value <= _LARGEST:
            raise InputError(
                f"{row.path} would get {name}={value:g}; lower the rule or the option."
            )
    if row.weight_decay and config.optimizer == "adam":
        raise InputError(
            f"--optimizer adam has no decay, but {row.path} would get {row.weight_decay:g}; pass "
            "--optimizer adamw, or l2 in the place of weight_decay."
        )


def _check_norms(rules: Rules) -> None:
    """Makes sure that the statistics of a norm are frozen together."""
    untils: dict[str, float] = {}
    for path, until in rules.statistics().items():
        norm = path.rpartition("/")[0]
        if untils.setdefault(norm, until) != until:
            raise InputError(
                f"The rules freeze some statistics of {norm} and others not; write {norm}/*."
            )


def nearest(wanted: str, names: Iterable[str]) -> list[str]:
    """Up to three names that look most like one that is not there."""
    return difflib.get_close_matches(wanted, list(names), n=3, cutoff=0.0)


def shortened(names: Sequence[str], most: int = 12) -> str:
    """Names for a sentence: "a, b, c", or "a, b ... z" where there are many."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} ... {names[-1]}"
