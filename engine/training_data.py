"""The labelled scans of a run: those of a store, or of a table whose scans are prepared now."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from rich.console import Console

from voxtune.engine.case import Case, Quantised
from voxtune.engine.config import Finetune
from voxtune.engine.contract import SHARES
from voxtune.engine.folds import Item, people_of_test, person_of, split_by_fold
from voxtune.engine.losses import REGRESSION
from voxtune.engine.model_dir import ModelSpec, training_channels
from voxtune.engine.options import Labelling
from voxtune.engine.preparation import Preparation
from voxtune.engine.prepare import prepare_in_memory, refuse
from voxtune.engine.store import Store, is_store, read_store
from voxtune.engine.subjects import UNNAMED, Subject, find_subjects
from voxtune.models.errors import InputError

Listed = TypeVar("Listed")
_SCANS, _EDGE = 16, 40  # whose voxels are sampled, and how many along each axis, at most


@dataclass(frozen=True)
class TrainingData:
    """Subjects to train on and to validate on, conformed and scaled.

    Attributes:
        train: to train on.
        validation: to validate on.
        subjects: split → its rows of the table.
        channels: names of their images, in the order of the network's channels.
        names: label value → name, as far as a label map or a store names them.
    """

    train: Sequence[Case]
    validation: Sequence[Case]
    subjects: Mapping[str, Sequence[Subject]]
    channels: tuple[str, ...]
    names: Mapping[int, str]


def read_training_data(config: Finetune, spec: ModelSpec, console: Console) -> TrainingData:
    """Reads a store, or prepares a table's scans as a store would hold them.

    Args:
        config: of the run.
        spec: the model to start from; scans are prepared by its contract.
        console: shows the table of what is wrong with the scans.

    Raises:
        InputError: the data is bad, or does not suit the model or the options.
    """
    if is_store(config.subjects):
        return _of_store(config, spec, read_store(config.subjects), console)
    return _of_table(config, spec, console)


def _of_store(config: Finetune, spec: ModelSpec, store: Store, console: Console) -> TrainingData:
    late = labelling_of(config)
    if config.synthetic:  # what is learned of the values that are drawn is said now
        late = Labelling(label_interpolation=late.label_interpolation, nonfinite=late.nonfinite)
    if late != Labelling():
        given = "--label-map, --unlisted, --keep, --binarise, " * (not config.synthetic)
        raise InputError(
            f"{config.subjects} is a store, whose labels were settled when it was made; give "
            f"{given}--label-interpolation and --nonfinite to 'voxtune prepare'."
        )
    if not store.preparation.channels and not config.synthetic:
        raise InputError(
            f"{config.subjects} holds label maps alone; pass --synthetic, which draws images of "
            "them, or prepare a table that has images."
        )
    channels = _channels(config, spec, store.preparation.channels)
    store.check(spec.contract, channels, config.loss in REGRESSION)
    train, validation = split_subjects(store.cases, config)
    _say_left_out(store.cases, config, console)
    rows = {each.name: each for each in store.subjects}
    subjects = {
        split: [rows[each.name] for each in cases if each.name in rows]
        for split, cases in (("train", train), ("validation", validation))
    }
    return TrainingData(train, validation, subjects, channels, store.names)


def _of_table(config: Finetune, spec: ModelSpec, console: Console) -> TrainingData:
    every, problems = find_subjects(config.subjects, need_image=not config.synthetic)
    refuse(problems, every, console)
    channels = _channels(config, spec, every[0].channels)
    named = every[0].channels and channels
    train, validation = split_subjects([each.taking(named) for each in every], config)
    _say_left_out(every, config, console)
    labelling = labelling_of(config)
    if config.synthetic:  # images are drawn from the values that the files have
        labelling = Labelling(
            label_interpolation=config.label_interpolation, nonfinite=config.nonfinite
        )
    target = config.loss in REGRESSION
    preparation = Preparation.of(spec.contract, named, labelling, target)
    # Images to train on are drawn, so theirs are not read.
    read = () if config.synthetic else named
    training = Preparation.of(spec.contract, read, labelling, target)
    return TrainingData(
        prepare_in_memory([each.taking(read) for each in train], training, console),
        prepare_in_memory(validation, preparation, console),
        {"train": train, "validation": validation},
        channels,
        preparation.labels.names,
    )


def _channels(config: Finetune, spec: ModelSpec, given: tuple[str, ...]) -> tuple[str, ...]:
    """The images of a subject in the order in which the network is to be trained on them.

    Where label maps are alone, those that the network takes.
    """
    if not given and config.synthetic:
        numbers = tuple(f"drawn{number}" for number in range(1, spec.channels + 1))
        return spec.contract.channels or (UNNAMED if spec.channels == 1 else numbers)
    return training_channels(spec, config.model_dir, given)


def labelling_of(config: Finetune) -> Labelling:
    """What a run says about label files and voxels that are no numbers."""
    names = [each.name for each in dataclasses.fields(Labelling)]
    return Labelling(**{name: getattr(config, name) for name in names})


def split_subjects(items: Sequence[Item], config: Finetune) -> tuple[list[Item], list[Item]]:
    """Subjects to train on and to validate on; those of the split test are never touched.

    Args:
        items: subjects or cases, in the order of their table.
        config: of the run.

    Raises:
        InputError: none is left to train on, or they cannot be shared out among folds.
    """
    if config.fold is not None:
        train, validation = split_by_fold(items, config.fold, config.subjects)
    elif any(each.split for each in items):
        train = [each for each in items if each.split == "train"]
        validation = [each for each in items if each.split == "validation"]
    else:
        order = np.random.default_rng(config.seed).permutation(len(items))
        held = {int(index) for index in order[: round(config.hold_out * len(items))]}
        train = [each for index, each in enumerate(items) if index not in held]
        validation = [each for index, each in enumerate(items) if index in held]
    train = shuffled_subjects(train, config.subject_seed)[: config.train_subjects]
    if not train:
        raise InputError(f"{config.subjects} leaves no subject to train on; check its splits.")
    return train, validation


def shuffled_subjects(train: Sequence[Listed], seed: int | None) -> list[Listed]:
    """Subjects to train on, in the order that `--subject-seed` puts them in."""
    if seed is None:
        return list(train)
    return [train[index] for index in np.random.default_rng(seed).permutation(len(train))]


def _say_left_out(items: Sequence[Item], config: Finetune, console: Console) -> None:
    """Of scans that no fold has, as other scans of these people are in the split test."""
    away = people_of_test(items)
    number = sum(each.split != "test" and person_of(each.name) in away for each in items)
    if config.fold is not None and number:
        console.print(
            f"--fold {config.fold} leaves out {number} scan{'s' * (number > 1)} of people who have "
            "others in the split test",
            highlight=False,
            soft_wrap=True,
        )


def expected_quantiles(cases: Sequence[Case]) -> tuple[float, ...] | None:
    """Quantiles of what a network is trained on, see `voxtune.engine.contract.Contract`.

    They are those of some voxels of some cases, both spread evenly.

    Args:
        cases: to train on.

    Returns:
        Those of `SHARES`; None where images are drawn.
    """
    images = [case.image for case in cases if case.image is not None]
    if not images:
        return None
    every = -(-len(images) // _SCANS)
    found = [np.quantile(_sample(each), SHARES) for each in images[::every]]
    return tuple(round(float(value), 6) for value in np.mean(found, axis=0))


def _sample(image: Quantised) -> np.ndarray:
    """Some voxels of the first channel, float32 `[d, h, w]`."""
    steps = [-(-size // _EDGE) for size in image.shape[:3]]
    return image[tuple(slice((step - 1) // 2, None, step) for step in steps)][..., 0]
