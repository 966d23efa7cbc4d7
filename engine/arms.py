"""The design of a study: its arms, and the run of each arm, number of scans and seed. No JAX here.

A design file is TOML:

    [study]                  # options of `voxtune study`; the command line goes before them
    sizes = [4, 16]
    steps = 400

    [arms.pretrained]        # the first arm is compared with each of the others

    [arms.random]            # options of `voxtune finetune` that this arm has otherwise
    init = "random"

    [arms.frozen]
    freeze_until = "head"
    sizes = [4]              # at these sizes alone
"""

import itertools
import math
import reprlib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from voxtune.engine.config import Finetune, Study
from voxtune.engine.options import Relabelling, Training
from voxtune.engine.recipes import RECIPES
from voxtune.engine.saved_config import typed
from voxtune.engine.store import is_store
from voxtune.engine.subjects import is_file_name
from voxtune.models.errors import InputError

_LARGEST = 2**20  # bytes of a design
_MOST_SEEDS = 1000
_DIGITS = 12  # of a learning rate: 0.009, not 0.009000000000000001
# Who is compared sees the same scans and as many blocks of them.
_THE_SAME = (
    *("steps", "batch", "seed", "validate_every", "patience"),
    *("labels", "label_map", "unlisted", "keep", "binarise", "ignore_label"),
)
_OF_LABELS = tuple(each.name for each in fields(Relabelling))
# What the study settles for each run, or what no run of one may do.
_LISTS = ("sizes", "tune")  # text on the command line, which may be arrays here
_TABLES = {"study", "arms"}
_OF_THE_STUDY = ("train_subjects", "subject_seed", "fold", "hold_out", "distributed", "profile")
_NOT_OF_ARMS = (*_OF_THE_STUDY, "subjects", "run_dir", "dry_run", "examples", "overwrite")
_COMMAND_LINE = ("model", "data", "out", "design", "shard")


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: usable as a file name.
        options: of `Finetune`, as far as they are others than the study's.
        sizes: numbers of scans that it is trained with.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One network to train.

    Attributes:
        arm: name of the arm.
        size: scans that it is trained on.
        seed: of all that is drawn.
        factor: of the arm's learning rates.
        config: of the run.
    """

    arm: str
    size: int
    seed: int
    factor: float
    config: Finetune

    @property
    def name(self) -> str:
        """Of its folders and files."""
        return self.config.run_dir.name


@dataclass(frozen=True)
class Design:
    """What a study compares.

    Attributes:
        arms: the first of them is compared with each of the others.
        sizes: numbers of scans, from small to large.
        seeds: of the runs.
        factors: of learning rates, to choose among; one where nothing is chosen.
    """

    arms: Sequence[Arm]
    sizes: Sequence[int]
    seeds: Sequence[int]
    factors: Sequence[float]

    @staticmethod
    def of(config: Study) -> "Design":
        """Reads the design file, if there is one, and checks it all.

        Raises:
            InputError: it cannot be read, or makes no sense.
        """
        sizes = _numbers(config.sizes, "--sizes", int)
        factors = _numbers(config.tune, "--tune", float) if config.tune is not None else (1.0,)
        if len({_shown(each) for each in factors}) < len(factors):
            raise InputError(f"--tune {config.tune} has factors that are all but the same.")
        if not 1 <= config.seeds <= _MOST_SEEDS:
            raise InputError(
                f"--seeds {config.seeds} makes no sense; give a number from 1 to {_MOST_SEEDS}."
            )
        if config.seed + config.seeds > 2**32:
            raise InputError(
                f"--seed {config.seed} is too large for --seeds {config.seeds}: the last would be "
                f"{config.seed + config.seeds - 1}, above 4294967295; give a smaller one."
            )
        given = [name for name in _OF_THE_STUDY if getattr(config, name) != _DEFAULTS[name]]
        if given:
            option = given[0].replace("_", "-")
            raise InputError(f"--{option} is not for studies, which settle it; leave it out.")
        arms = _arms(config.design, sizes)
        _check_apart(arms, config)
        return Design(arms, sizes, range(config.seed, config.seed + config.seeds), factors)

    def trials(self, config: Study, factors: Mapping[tuple[str, int], float]) -> list[Trial]:
        """All networks of the comparison, seed by seed.

        Args:
            config: of the study.
            factors: arm and size → factor of its learning rates; 1 where it is not said.
        """
        return [
            trial_of(config, arm, size, seed, factors.get((arm.name, size), 1.0))
            for seed in self.seeds
            for size in self.sizes
            for arm in self.arms
            if size in arm.sizes
        ]

    def tuning(self, config: Study) -> list[Trial]:
        """Networks by which learning rates are chosen: of the first seed, with each factor."""
        if len(self.factors) == 1:
            return []
        return [
            trial_of(config, arm, size, self.seeds[0], factor)
            for size in self.sizes
            for arm in self.arms
            if size in arm.sizes
            for factor in self.factors
        ]


_DEFAULTS = {each.name: each.default for each in fields(Training)}


def trial_of(config: Study, arm: Arm, size: int, seed: int, factor: float) -> Trial:
    """One network of a study."""
    run_dir = config.out / "runs" / run_name(arm.name, size, seed, factor)
    values: dict[str, Any] = {each.name: getattr(config, each.name) for each in fields(Training)}
    values |= arm.options
    values |= {"train_subjects": size, "subject_seed": seed, "seed": seed}
    if is_store(config.data):  # whose labels were settled: these are for scores alone
        values |= {name: _DEFAULTS[name] for name in _OF_LABELS}
    values = {"model_dir": config.model, **values}
    run = Finetune(subjects=config.data, run_dir=run_dir, **values)
    run = replace(
        run, trunk_lr=_rounded(run.trunk_lr * factor), head_lr=_rounded(run.head_lr * factor)
    )
    return Trial(arm.name, size, seed, factor, run)


def run_name(arm: str, size: int, seed: int, factor: float) -> str:
    """Of a network's folders and files."""
    rate = "" if factor == 1 else f"_x{_shown(factor)}"
    return f"{arm}_n{size}_seed{seed}{rate}"


def _rounded(rate: float) -> float:
    return float(f"{rate:.{_DIGITS}g}")


def _shown(factor: float) -> str:
    """As names of folders have it."""
    return f"{factor:g}"


def design_options(path: Path | None) -> dict[str, Any]:
    """What a design file says under [study]: options of `Study` by name; none without a file.

    Raises:
        InputError: it cannot be read, or an option is unknown or of another type.
    """
    if path is None:
        return {}
    given = _read(path).get("study", {})
    if isinstance(given, dict):
        given = {name: _text(value) if name in _LISTS else value for name, value in given.items()}
    refused = next((name for name in _COMMAND_LINE if name in given), None)
    if refused is not None:
        raise InputError(f"{path} has '{refused}' under [study]; give --{refused} to the command.")
    return _typed_options(path, "[study]", given, Study)


def _arms(path: Path | None, sizes: tuple[int, ...]) -> list[Arm]:
    tables = _read(path).get("arms") if path is not None else None
    if path is None or tables is None:
        random = MappingProxyType({"init": "random"})
        return [Arm("pretrained", sizes=sizes), Arm("random", random, sizes)]
    if not isinstance(tables, dict) or len(tables) < 2:
        raise InputError(f"{path} compares nothing; give at least two tables [arms.NAME].")
    if len({name.casefold() for name in tables}) < len(tables):
        raise InputError(
            f"{path} has arms whose names differ by capital letters alone, which some disks take "
            "for the same; call one otherwise."
        )
    return [_arm(path, name, table, sizes) for name, table in tables.items()]


def _arm(path: Path, name: str, table: Any, sizes: tuple[int, ...]) -> Arm:
    where = f"[arms.{name}]"
    if not isinstance(table, dict):
        raise InputError(f"{path} has no table {where}, but a value; write [arms.{name}].")
    if not is_file_name(name):
        raise InputError(f"{path} has {where}, which cannot be a file name; use letters and -.")
    table = dict(table)
    own = sizes
    if "sizes" in table:
        own = _numbers(_text(table.pop("sizes")), f"{path}: sizes of {where}", int)
    beyond = [str(size) for size in own if size not in sizes]
    if beyond:
        raise InputError(f"{path} has {where} at {beyond[0]} scans, which --sizes does not have.")
    refused = next((each for each in _THE_SAME if each in table), None)
    if refused is not None:
        raise InputError(
            f"{path} has '{refused}' in {where}, which all arms have in common; put it under "
            "[study], or leave it out."
        )
    refused = next((each for each in (*_NOT_OF_ARMS, "model_dir") if each in table), None)
    if refused is not None:
        raise InputError(
            f"{path} has '{refused}' in {where}, which is not for arms; leave it out. Another "
            "model to start from is 'model'."
        )
    if "model" in table:
        table["model_dir"] = table.pop("model")
    options = _typed_options(path, where, table, Finetune)
    recipe = RECIPES[options.get("recipe", "voxtune")]
    return Arm(name, MappingProxyType({**recipe, **options}), own)


def _check_apart(arms: Sequence[Arm], config: Study) -> None:
    """Makes sure that no two arms would train the same networks.

    Raises:
        InputError: two would.
    """
    for one, other in itertools.combinations(arms, 2):
        both = set(one.sizes) & set(other.sizes)
        if not both:
            continue
        runs = (trial_of(config, arm, min(both), config.seed, 1.0).config for arm in (one, other))
        first, second = (replace(run, run_dir=Path(), recipe="voxtune") for run in runs)
        if first == second:
            raise InputError(
                f"[arms.{one.name}] and [arms.{other.name}] are the same; give one of them an "
                "option that the other has not, or leave it out."
            )


def _typed_options(path: Path, where: str, given: Any, kind: type) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InputError(f"{path} has no table {where}, but a value.")
    hints = typing.get_type_hints(kind)
    known = {each.name for each in fields(kind)}
    found = {}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"{path} has '{name}' in {where}, which is no option.")
        try:
            found[name] = typed(hints[name], value, path.parent)
        except ValueError as error:
            raise InputError(
                f"{path} has {name} = {reprlib.repr(value)} in {where}, which is nothing that it "
                "can be."
            ) from error
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is larger than {_LARGEST} bytes: it is no design.")
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a TOML file.") from error
    except (ValueError, RecursionError) as error:  # ValueError: numbers of far too many digits
        raise InputError(f"{path} is no TOML file ({error}); correct it.") from error
    unknown = sorted(found.keys() - _TABLES)
    if unknown:
        raise InputError(f"{path} has '{unknown[0]}', but a design has [study] and [arms.NAME].")
    return found


def _text(value: Any) -> Any:
    """A number, or an array of such, as the command line has it; anything else as it is."""
    values = value if isinstance(value, list) else [value]
    if values and all(type(each) in (int, float) for each in values):
        return ",".join(map(str, values))
    return value


def _numbers(text: Any, option: str, kind: type) -> tuple[Any, ...]:
    try:
        found = sorted({kind(part) for part in text.split(",")})
        good = bool(found) and all(math.isfinite(each) and each > 0 for each in found)
    except (ValueError, AttributeError, OverflowError):  # no number, no text, or far too large
        good = False
    if not good:
        given = text if isinstance(text, str) else reprlib.repr(text)
        raise InputError(f"{option} {given} is no list of numbers above 0, such as 1,3 or 4,16.")
    return tuple(found)
