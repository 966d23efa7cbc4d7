"""Where a run starts from: the classes, the contract, and the network with its parameters."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from voxtune.engine.config import Finetune
from voxtune.engine.dataset import found_classes
from voxtune.engine.losses import IGNORE
from voxtune.engine.model_dir import Contract, LabelClass, ModelSpec, check_block
from voxtune.engine.volume import Volume
from voxtune.models.errors import InputError
from voxtune.models.families import build
from voxtune.models.parameters import by_path


@dataclass(frozen=True)
class Start:
    """Where training starts from.

    Attributes:
        spec: the network to train.
        parameters: path → array.
        origin: path → "loaded" or "initialised ...", for every parameter.
        head: path of the network's last layer, or of the few that depend on its classes.
    """

    spec: ModelSpec
    parameters: dict[str, np.ndarray | jax.Array]
    origin: dict[str, str]
    head: str


def make_start(
    spec: ModelSpec,
    parameters: Mapping[str, np.ndarray],
    classes: Sequence[LabelClass],
    contract: Contract,
    config: Finetune,
) -> Start:
    """The network to train: the model's trunk, and its head or a new one for the classes.

    Raises:
        InputError: the head is to be kept but the classes are others.
    """
    keep_head = config.head == "keep"
    if keep_head and [each.value for each in classes] != [each.value for each in spec.classes]:
        raise InputError(
            f"--head keep needs the model's own classes ({listed(spec.classes)}), but the labels "
            f"have {listed(classes)}: pass --head new."
        )
    if keep_head:
        new = dataclasses.replace(spec, contract=contract)
    else:
        new = dataclasses.replace(
            spec,
            arguments={**spec.arguments, "outputs": len(classes)},
            output_activation="softmax",
            classes=tuple(classes),
            contract=contract,
        )
    if not new.classes:
        raise InputError(
            f"{config.model_dir} has no classes to keep: it does not label voxels; pass --head new."
        )
    network = build(new.family, new.arguments, config.seed)
    fresh = by_path(network)
    start: dict[str, np.ndarray | jax.Array] = {}
    origin: dict[str, str] = {}
    for path, value in fresh.items():
        in_head = path.startswith(f"{network.head_path}/")
        if config.init == "pretrained" and (keep_head or not in_head):
            start[path], origin[path] = parameters[path], "loaded"
        else:
            start[path], origin[path] = value, f"initialised from seed {config.seed}"
    return Start(new, start, origin, network.head_path)


def classes_of(
    config: Finetune, spec: ModelSpec, pairs: Sequence[tuple[Volume, Volume]]
) -> tuple[LabelClass, ...]:
    """The classes to learn: those named, the model's own where its head is kept, or those found.

    Raises:
        InputError: --labels makes no sense, or the training scans lack a class.
    """
    chosen = _named_classes(config)
    if config.head == "keep":
        return chosen or spec.classes
    classes = chosen or found_classes(pairs)
    present = {int(value) for _, label in pairs for value in np.unique(label.data)}
    absent = [each for each in classes[1:] if each.value not in present]
    if len(classes) < 2 or absent:
        missing = listed(absent) if absent else "any class but background"
        raise InputError(
            f"{config.subjects} has no voxel of {missing} in its training scans; "
            "check the labels and the option --labels."
        )
    if len(classes) > IGNORE:
        raise InputError(
            f"{config.subjects} has {len(classes)} label values, {IGNORE} are the most; name the "
            "classes with --labels, or merge some."
        )
    return classes


def _named_classes(config: Finetune) -> tuple[LabelClass, ...] | None:
    """The classes named with --labels, background first."""
    if config.labels is None:
        return None
    classes = dict[int, LabelClass]()
    for text in config.labels:
        value, _, name = text.partition("=")
        if not re.fullmatch(r"\s*-?\d+\s*", value) or not name.strip():
            raise InputError(f"--labels takes VALUE=NAME, such as 1=lesion; '{text}' is not that.")
        taken = {"mean", *(each.name for each in classes.values())}  # the log has a mean
        if int(value) in classes or name.strip() in taken:
            raise InputError(f"--labels: the value or the name of '{text}' is taken already.")
        classes[int(value)] = LabelClass(int(value), name.strip())
    classes.setdefault(0, LabelClass(0, "background"))
    background_first = sorted(classes, key=lambda value: (value != 0, value))
    return tuple(classes[value] for value in background_first)


def contract_of(spec: ModelSpec, config: Finetune) -> Contract:
    """The model's contract, with the block that was asked for.

    Raises:
        InputError: the block does not suit the network.
    """
    block = config.block or spec.contract.block
    check_block(spec.family, spec.arguments, block)
    return dataclasses.replace(spec.contract, block=block)


def listed(classes: Sequence[LabelClass]) -> str:
    """Classes for a sentence: "0 background, 1 lesion"."""
    return ", ".join(f"{each.value} {each.name}" for each in classes)
