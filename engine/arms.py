"""The design of a study: its arms, and the run of each arm, number of scans and seed. No JAX here.

A design file is TOML:

    [study]                  # options of `voxtune study`; the command line goes before them
    sizes = "4,16"
    steps = 400

    [arms.pretrained]        # the first arm is compared with each of the others

    [arms.random]            # options of `voxtune finetune` that this arm has otherwise
    init = "random"

    [arms.frozen]
    freeze_until = "head"
    sizes = "4"              # at these sizes alone
"""

import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from voxtune.engine.config import Finetune, Study
from voxtune.engine.options import Training
from voxtune.engine.recipes import RECIPES
from voxtune.engine.saved_config import typed
from voxtune.engine.subjects import is_file_name
from voxtune.models.errors import InputError

_LARGEST = 2**20  # bytes of a design
# Who is compared sees the same scans and as many blocks of them.
_THE_SAME = (
    *("steps", "batch", "seed", "train_subjects", "subject_seed", "hold_out", "fold"),
    *("labels", "label_map", "unlisted", "keep", "binarise", "ignore_label", "distributed"),
    *("validate_every",),
)
_OF_THE_STUDY = ("train_subjects", "subject_seed", "fold", "hold_out", "distributed", "profile")
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
        if config.seeds < 1:
            raise InputError(f"--seeds {config.seeds} makes no sense; give at least 1.")
        given = [name for name in _OF_THE_STUDY if getattr(config, name) != _DEFAULTS[name]]
        if given:
            option = given[0].replace("_", "-")
            raise InputError(f"--{option} is not for studies, which settle it; leave it out.")
        arms = _arms(config.design, sizes)
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
    rate = "" if factor == 1 else f"_x{factor:g}"
    run_dir = config.out / "runs" / f"{arm.name}_n{size}_seed{seed}{rate}"
    values: dict[str, Any] = {each.name: getattr(config, each.name) for each in fields(Training)}
    values |= arm.options
    values |= {"train_subjects": size, "subject_seed": seed, "seed": seed}
    values = {"model_dir": config.model, **values}
    run = Finetune(subjects=config.data, run_dir=run_dir, **values)
    run = replace(run, trunk_lr=run.trunk_lr * factor, head_lr=run.head_lr * factor)
    return Trial(arm.name, size, seed, factor, run)


def design_options(path: Path) -> dict[str, Any]:
    """What a design file says under [study]: options of `Study` by name.

    Raises:
        InputError: it cannot be read, or an option is unknown or of another type.
    """
    given = _read(path).get("study", {})
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
    return [_arm(path, name, table, sizes) for name, table in tables.items()]


def _arm(path: Path, name: str, table: Any, sizes: tuple[int, ...]) -> Arm:
    where = f"[arms.{name}]"
    if not isinstance(table, dict):
        raise InputError(f"{path} has no table {where}, but a value; write [arms.{name}].")
    if not is_file_name(name):
        raise InputError(f"{path} has {where}, which cannot be a file name; use letters and -.")
    table = dict(table)
    own = _numbers(str(table.pop("sizes")), f"sizes of {where}", int) if "sizes" in table else sizes
    beyond = [str(size) for size in own if size not in sizes]
    if beyond:
        raise InputError(f"{path} has {where} at {beyond[0]} scans, which --sizes does not have.")
    refused = next((each for each in _THE_SAME if each in table), None)
    if refused is not None:
        raise InputError(
            f"{path} has '{refused}' in {where}, which all arms have in common; put it under "
            "[study], or leave it out."
        )
    if "model" in table:
        table["model_dir"] = table.pop("model")
    options = _typed_options(path, where, table, Finetune)
    recipe = RECIPES[options.get("recipe", "voxtune")]
    return Arm(name, MappingProxyType({**recipe, **options}), own)


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
                f"{path} has {name} = {value!r} in {where}, which is nothing that it can be."
            ) from error
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is larger than {_LARGEST} bytes: it is no design.")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a TOML file.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no TOML file ({error}); correct it.") from error


def _numbers(text: str, option: str, kind: type) -> tuple[Any, ...]:
    try:
        found = sorted({kind(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(math.isfinite(each) and each > 0 for each in found):
        raise InputError(f"{option} {text} is no list of numbers above 0, such as 1,3 or 4,16.")
    return tuple(found)
