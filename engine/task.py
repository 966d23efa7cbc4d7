"""The task of a run: which classes are learned, how frequent they are, and by what network."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from voxtune.engine.case import IGNORE, Case
from voxtune.engine.config import Finetune
from voxtune.engine.contract import Contract, check_contract
from voxtune.engine.labels import LARGEST
from voxtune.engine.losses import REGRESSION
from voxtune.engine.model_dir import LabelClass, ModelSpec, check_block
from voxtune.engine.options import Block
from voxtune.engine.subjects import UNNAMED
from voxtune.engine.surgery import with_input
from voxtune.models.errors import InputError
from voxtune.models.families import Network, abstract
from voxtune.models.graph import Graph, head_activation, with_linear_head
from voxtune.models.sharding import check_depth_split, splitting_depth


def label_counts(cases: Sequence[Case], ignored: int | None = None) -> Counter[int]:
    """Label value → voxels that have it, in some subjects; the one ignored left out."""
    total = Counter[int]()
    for case in cases:
        total.update(case.counts)
    return Counter({value: count for value, count in total.items() if value != ignored})


def check_labels(
    cases: Sequence[Case],
    classes: Sequence[LabelClass],
    ignored: int | None = None,
    files: Mapping[str, Path | None] = MappingProxyType({}),
) -> None:
    """Makes sure that every label value is a class's, or the one ignored.

    Args:
        cases: the subjects.
        classes: that are learned.
        ignored: label value of voxels that count for nothing.
        files: name of a subject → its label file, where that is known.

    Raises:
        InputError: one is not.
    """
    known = {*_values(classes), ignored}
    for case in cases:
        unknown = sorted(case.counts.keys() - known)
        if unknown:
            shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            known_values = ", ".join(map(str, _values(classes)))
            raise InputError(
                f"{files.get(case.name) or f'The label of subject {case.name}'} has label values "
                f"that are no class ({shown}); the classes are {known_values}: correct the file, "
                "map its values with --label-map (for a store, of 'voxtune prepare'), name them "
                "with --labels where the head is not kept, or leave them out with --ignore-label."
            )


def classes_of(
    config: Finetune,
    spec: ModelSpec,
    counts: Mapping[int, int],
    names: Mapping[int, str] = MappingProxyType({}),
) -> tuple[LabelClass, ...]:
    """The classes to learn, in the order of the outputs; none where an image is learned.

    Those named with --labels, or those found. Where the model's head is kept they are the model's,
    in its order; where it is extended the others come after the model's.

    Args:
        config: of the run.
        spec: the model.
        counts: what `label_counts` gives of the training scans.
        names: label value → name, where --labels does not name them.

    Raises:
        InputError: --labels makes no sense, the training scans lack a class, or the head cannot be
            kept or extended.
    """
    named = _named_classes(config)
    if named and config.ignore_label in _values(named):
        raise InputError(f"--ignore-label {config.ignore_label} is one of the classes of --labels.")
    if config.loss in REGRESSION:
        if named:
            raise InputError(
                f"--labels names classes, but --loss {config.loss} learns an image; leave one out."
            )
        return ()
    if config.head != "new" and not spec.classes:
        raise InputError(
            f"{config.model_dir} has no classes to keep: it does not label voxels; pass --head new."
        )
    found = named or _found_classes(counts, names)
    if config.head == "keep":
        if named and set(_values(named)) != set(_values(spec.classes)):
            raise InputError(
                f"--head keep needs the model's own classes ({listed(spec.classes)}), but --labels "
                f"has {listed(named)}; pass --head new or --head extend."
            )
        classes = _renamed(spec.classes, named)
    elif config.head == "extend":
        new = tuple(each for each in found if each.value not in _values(spec.classes))
        _check_new(config, spec, counts, new)
        classes = _renamed((*spec.classes, *new), named)
    else:
        _check_new(config, spec, counts, found[1:])
        classes = found
    if len(classes) > IGNORE:
        advice = (
            "pass --head new for fewer"
            if config.head == "keep"
            else f"name those of {config.subjects} with --labels, or merge some"
        )
        raise InputError(f"There are {len(classes)} classes, {IGNORE} are the most; {advice}.")
    return classes


def _found_classes(counts: Mapping[int, int], names: Mapping[int, str]) -> tuple[LabelClass, ...]:
    """A class for each label value, and background, which comes first."""
    values = sorted({0, *counts}, key=lambda value: (value != 0, value))
    unnamed = {value: f"class {value}" if value else "background" for value in values}
    named = {value: names.get(value, name) for value, name in unnamed.items()}
    # Names may be of a large table; the log has a mean.
    clear = len(set(named.values())) == len(named) and "mean" not in named.values()
    return tuple(LabelClass(value, (named if clear else unnamed)[value]) for value in values)


def _check_new(
    config: Finetune, spec: ModelSpec, counts: Mapping[int, int], new: Sequence[LabelClass]
) -> None:
    """Makes sure that there are new classes, and that the training scans have them."""
    if config.head == "extend" and not new:
        raise InputError(
            f"--head extend adds classes, but the label values are all the model's "
            f"({listed(spec.classes)}); give new classes values of their own, or pass --head keep."
        )
    absent = [each for each in new if each.value not in counts]
    if not new or absent:
        missing = listed(absent) if absent else "any class but background"
        raise InputError(
            f"{config.subjects} has no voxel of {missing} in its training scans; "
            "check the labels and the option --labels."
        )


def _values(classes: Sequence[LabelClass]) -> list[int]:
    return [each.value for each in classes]


def _renamed(
    classes: Sequence[LabelClass], named: Sequence[LabelClass] | None
) -> tuple[LabelClass, ...]:
    """Classes under the names that --labels gives their values.

    Raises:
        InputError: two have one name.
    """
    names = {each.value: each.name for each in named or ()}
    found = tuple(LabelClass(each.value, names.get(each.value, each.name)) for each in classes)
    first: dict[str, LabelClass] = {}
    for each in found:
        if first.setdefault(each.name, each) is not each:
            raise InputError(
                f"The classes {first[each.name].value} and {each.value} are both called "
                f"'{each.name}'; name one otherwise with --labels."
            )
    return found


def _named_classes(config: Finetune) -> tuple[LabelClass, ...] | None:
    """The classes named with --labels, background first."""
    if config.labels is None:
        return None
    classes = dict[int, LabelClass]()
    for text in config.labels:
        value, _, name = text.partition("=")
        if not re.fullmatch(r"\s*\d+\s*", value) or not name.strip():
            raise InputError(f"--labels takes VALUE=NAME, such as 1=lesion; '{text}' is not that.")
        if int(value) > LARGEST:
            raise InputError(f"--labels: '{text}' has a value above {LARGEST}, the largest.")
        taken = {"mean", *(each.name for each in classes.values())}  # the log has a mean
        if int(value) in classes or name.strip() in taken:
            raise InputError(f"--labels: the value or the name of '{text}' is taken already.")
        classes[int(value)] = LabelClass(int(value), name.strip())
    classes.setdefault(0, LabelClass(0, "background"))
    background_first = sorted(classes, key=lambda value: (value != 0, value))
    return tuple(classes[value] for value in background_first)


def prevalence_of(counts: Mapping[int, int], classes: Sequence[LabelClass]) -> np.ndarray:
    """Share of each class among the voxels of all classes: float64 `[K]`.

    Args:
        counts: what `label_counts` gives.
        classes: in their order.
    """
    voxels = np.array([counts.get(value, 0) for value in _values(classes)], np.float64)
    return voxels / max(1, voxels.sum())


def full_block(network: Network, cases: Sequence[Case], shards: int = 1) -> Block:
    """The least block for a network that holds every case.

    Args:
        network: what is run.
        cases: that it has to hold.
        shards: devices that the depth of a block has to split over.
    """
    multiple = network.min_multiple
    largest = np.max([case.shape for case in cases], axis=0)
    depth, height, width = (-(-largest // multiple) * multiple).tolist()
    return splitting_depth(network, depth, shards), height, width


def contract_of(
    spec: ModelSpec,
    config: Finetune,
    channels: Sequence[str],
    cases: Sequence[Case],
    shards: int = 1,
) -> Contract:
    """The model's contract, with the block that was asked for and the channels that there are.

    Args:
        spec: the model.
        config: of the run.
        channels: what `training_channels` gives.
        cases: to train on; a block that is to be 'full' is as large as the largest.
        shards: devices that the depth of a block is split over.

    Raises:
        InputError: the block does not suit the network, the devices, or the grid that scans are
            conformed to.
    """
    block = config.block or spec.contract.block
    network = abstract(spec.family, spec.arguments)
    if block == "full":
        block = full_block(network, cases, shards)
    check_block(spec.family, spec.arguments, block)
    check_depth_split(network, block[0], shards)
    names = None if tuple(channels) == UNNAMED else tuple(channels)
    contract = dataclasses.replace(spec.contract, block=block, channels=names)
    check_contract(contract)  # the grid may be smaller than the block
    return contract


def spec_of(
    spec: ModelSpec, classes: Sequence[LabelClass], contract: Contract, config: Finetune
) -> ModelSpec:
    """The network to train: the model, for its classes and channels.

    A new head starts with the threshold 0.5: the model's was found for its own.

    Args:
        spec: the model.
        classes: what `classes_of` gives.
        contract: what `contract_of` gives.
        config: of the run.

    Raises:
        InputError: the model cannot be made so.
    """
    outputs, activation = spec.arguments["outputs"], spec.output_activation
    kept = () if config.head == "new" or config.loss in REGRESSION else spec.classes
    if [each.value for each in classes[: len(kept)]] != [each.value for each in kept]:
        raise ValueError("the classes do not begin with those of the head that is kept")
    if config.loss in REGRESSION:
        _check_regression(spec, config)
        outputs, activation = 1, "linear"
    elif config.head == "extend":
        outputs = len(classes)
        activation = "softmax" if activation == "sigmoid" else activation
    elif config.head == "new":
        activation = config.activation
        outputs = 1 if activation == "sigmoid" else len(classes)
        if activation == "sigmoid" and len(classes) != 2:
            raise InputError(
                "--activation sigmoid has one output, for background and one class, but there are "
                f"{listed(classes)}; pass --activation softmax."
            )
    arguments = {**spec.arguments, "outputs": outputs}
    if spec.family == "graph" and config.head != "keep":
        graph = Graph.from_json(arguments["graph"])
        function = head_activation(graph)
        if function != "linear" and config.head == "extend":
            raise InputError(
                f"The last layer of {config.model_dir} ends in {function}: what it gives are no "
                "logits that could be extended; pass --head new."
            )
        arguments["graph"] = with_linear_head(graph).to_json()
    channels = len(contract.channels or UNNAMED)
    if channels != spec.channels:
        arguments = with_input(spec.family, arguments, channels)
    if config.head == "new":
        contract = dataclasses.replace(contract, threshold=0.5)
    return ModelSpec(spec.family, arguments, activation, tuple(classes), contract)


def _check_regression(spec: ModelSpec, config: Finetune) -> None:
    """Makes sure that a network that gives an image can come of the head."""
    if config.head == "extend":
        raise InputError(
            f"--loss {config.loss} learns an image, which has no classes to extend; pass --head "
            "new or --head keep."
        )
    outputs = spec.arguments["outputs"]
    if config.head == "keep" and outputs != 1:
        raise InputError(
            f"--loss {config.loss} learns an image, but {config.model_dir} has {outputs} outputs; "
            "pass --head new."
        )
    if config.head == "keep" and spec.output_activation != "linear":
        raise InputError(
            f"--loss {config.loss} learns an image, but what {config.model_dir} gives are "
            f"probabilities, by a {spec.output_activation}; pass --head new."
        )


def listed(classes: Sequence[LabelClass]) -> str:
    """Classes for a sentence: "0 background, 1 lesion"."""
    return ", ".join(f"{each.value} {each.name}" for each in classes)
