"""Where a run starts from: the network, and what each of its tensors is at first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from voxtune.engine.config import Finetune
from voxtune.engine.contract import Contract
from voxtune.engine.controls import matched, shuffled
from voxtune.engine.model_dir import LabelClass, ModelSpec, read_model
from voxtune.engine.path_map import LEFT_OUT, PathMap
from voxtune.engine.rules import is_kernel, nearest, shortened
from voxtune.engine.sources import Source, Target
from voxtune.engine.surgery import (
    Array,
    Extension,
    class_bias,
    is_bias,
    with_places,
)
from voxtune.engine.task import listed, spec_of
from voxtune.models.errors import InputError
from voxtune.models.families import Network, abstract

_LISTED = 12  # lines about tensors that a log has at most


@dataclass(frozen=True)
class Origin:
    """Where the first value of a parameter or statistic comes from.

    Attributes:
        how: in a word.
        detail: in a few.
        pretrained: whether it is a pretrained value, which an anchor may pull to.
    """

    how: Literal["loaded", "adapted", "initialised"]
    detail: str
    pretrained: bool = False


@dataclass(frozen=True)
class Start:
    """Where training starts from. Every tensor that there is, is accounted for.

    Attributes:
        spec: the network to train.
        parameters: path → array, of all parameters and statistics.
        origin: path → where that comes from.
        dropped: tensors of the model directories that are not used → why; those of `--init-from`
            with its folder before their path.
        notes: what a person should know of it, sentences.
    """

    spec: ModelSpec
    parameters: dict[str, Array]
    origin: dict[str, Origin]
    dropped: dict[str, str]
    notes: tuple[str, ...] = ()

    def network(self) -> Network:
        """The network, with shapes in the place of arrays."""
        return abstract(self.spec.family, self.spec.arguments)

    @property
    def pretrained(self) -> frozenset[str]:
        """Paths of what starts from pretrained values."""
        return frozenset(path for path, origin in self.origin.items() if origin.pretrained)

    def to_json(self) -> dict[str, Any]:
        """What became of each tensor, as JSON values."""
        parameters = {path: origin.detail for path, origin in self.origin.items()}
        return {"parameters": parameters, "dropped": self.dropped, "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """The same for a person: counts, and what is not simply loaded."""
        hows = [origin.how for origin in self.origin.values()] + ["dropped"] * len(self.dropped)
        order = ("loaded", "adapted", "initialised", "dropped")
        counts = ", ".join(f"{hows.count(how)} {how}" for how in order if how in hows)
        groups: dict[str, list[str]] = {}
        for path, origin in self.origin.items():
            if origin.how != "loaded":
                groups.setdefault(origin.detail, []).append(path)
        for path, reason in self.dropped.items():
            groups.setdefault(f"dropped, {reason}", []).append(path)
        shown = [f"  {text}: {shortened(paths, 4)}" for text, paths in groups.items()]
        if len(shown) > _LISTED:
            more = len(shown) - _LISTED + 1
            shown[_LISTED - 1 :] = [f"  and {more} more such lines, all in parameters.json"]
        notes = (f"note: {each}" for each in self.notes)
        return [f"{self.spec.family}, tensors: {counts}", *shown, *notes]


_Given = tuple[Array, Origin]


def make_start(
    spec: ModelSpec,
    parameters: Mapping[str, Array],
    classes: Sequence[LabelClass],
    contract: Contract,
    prevalence: np.ndarray,
    config: Finetune,
) -> Start:
    """The network to train, and what each of its tensors is at first.

    Args:
        spec: the model that is fine-tuned.
        parameters: its tensors.
        classes: what `voxtune.engine.task.classes_of` gives.
        contract: what `contract_of` gives there.
        prevalence: what `prevalence_of` gives there, `[K]`.
        config: of the run; the model directory `init_from` is read here.

    Raises:
        InputError: the model cannot be fitted to the classes and channels, or an option makes no
            sense.
    """
    target = Target.of(spec_of(spec, classes, contract, config), prevalence)
    if config.head != "keep" and not target.heads:
        raise InputError(
            f"{config.model_dir} holds a network whose outputs come from no single convolution "
            "that could be replaced; pass --head keep."
        )
    other = _other(target, config)
    given: dict[str, _Given] = {}
    dropped = dict.fromkeys(parameters, "--init random")
    notes: list[str] = []
    if config.init != "random":
        mine = Source.of(config.model_dir, spec, parameters, target)
        sources = (mine, other) if other else (mine,)
        head, reason = _head_source(mine, other, target, config)
        for source in sources:
            given |= _fitted(source, head, target, config)
        if config.head == "extend":
            given |= _extended(head, given, target, config)
        dropped = _dropped(mine, other, head, target, reason, config)
        notes = [note for source in sources for note in source.notes(target)]
        given, replaced = _controls(given, target, config)
        dropped |= replaced
    given |= _initialised(target, target.shapes.keys() - given.keys(), config)
    return Start(
        spec=target.spec,
        parameters={path: given[path][0] for path in target.shapes},
        origin={path: given[path][1] for path in target.shapes},
        dropped=dropped,
        notes=(*notes, *_notes(spec, target, config)),
    )


def _other(target: Target, config: Finetune) -> Source | None:
    """The model directory of `--init-from`, its paths as `--rename` has them."""
    paths, folder = PathMap.parse(config.rename), config.init_from
    if folder is None:
        if config.rename:
            raise InputError("--rename says where the weights of --init-from go; pass that too.")
        return None
    if config.init != "pretrained":
        raise InputError(
            f"--init {config.init} starts from no pretrained weights; leave --init-from out."
        )
    return Source.of(folder, *read_model(folder), target, paths)


def _head_source(
    mine: Source, other: Source | None, target: Target, config: Finetune
) -> tuple[Source, str]:
    """Whose head is used, and why the other's is not."""
    if config.head == "new":
        return mine, "the last layer is new"
    given: Mapping[str, Array] = {} if other is None else other.tensors
    theirs = {path: given[path].shape for path in target.in_head & given.keys()}
    if other is None or not theirs:
        return mine, ""
    if target.in_head - theirs.keys():
        return mine, "not all of the last layer is there"
    wanted = target.shaped(other.spec.channels, mine.spec.arguments["outputs"])
    if theirs != {path: wanted.get(path) for path in theirs}:
        one = len(target.heads) == 1
        return mine, f"the last layer{' has another shape' if one else 's have other shapes'}"
    if [each.value for each in other.spec.classes] != [each.value for each in mine.spec.classes]:
        return mine, "its classes are others"
    return other, ""


def _fitted(source: Source, head: Source, target: Target, config: Finetune) -> dict[str, _Given]:
    """What is used of a source, its kernels that read the image made to fit the channels.

    Args:
        source: the source.
        head: the one whose head is used, which is given as it is for that one's classes.
        target: the network to train.
        config: of the run.

    Raises:
        InputError: a tensor does not fit, or its channels cannot be put in order.
    """
    new = config.head == "new"
    outputs = target.outputs if new else head.spec.arguments["outputs"]
    left = target.in_head if new or source is not head else frozenset[str]()
    tensors = {path: each for path, each in source.tensors.items() if path not in left}
    before, after = source.spec.channels, target.spec.channels
    wanted = target.shaped(after, outputs)
    odd = [path for path, each in tensors.items() if each.shape != wanted[path]]
    places = source.places(target)
    axes: dict[str, int] = {}
    if odd or places != tuple(range(before)):
        readers = target.readers(before, outputs)
        for path in dict.fromkeys([*odd, *(path for path in tensors if path in readers)]):
            shape, axis = readers.get(path, ((), None))
            if axis is None or shape != tensors[path].shape or before > after:
                raise InputError(source.misfit(path, wanted[path]))
            axes[path] = axis
        if not readers and before == after:
            raise InputError(
                f"{source.folder} has its channels in another order, and the kernels of this "
                "network cannot be reordered; leave --init-from out."
            )
    adapted = with_places(tensors, axes, places, config.new_channels)
    given = {path: _loaded(source, path) for path in tensors.keys() - adapted.keys()}
    for path, (value, text) in adapted.items():
        given[path] = value, Origin("adapted", f"adapted{source.whence(path)}: {text}", True)
    return given


def _loaded(source: Source, path: str) -> _Given:
    """A tensor as it is."""
    return source.tensors[path], Origin("loaded", f"loaded{source.whence(path)}", True)


def _extended(
    source: Source, given: Mapping[str, _Given], target: Target, config: Finetune
) -> dict[str, _Given]:
    """A head, which is given for its own classes, with outputs for further ones."""
    old, classes = source.spec.arguments["outputs"], len(target.spec.classes)
    extend = Extension(old, target.prevalence, target.heads)
    drawn = target.fresh(config.seed, {path for path in target.in_head if extend.draws(path)})
    kept = len(source.spec.classes)
    found: dict[str, _Given] = {}
    for path in target.in_head:
        value, origin = given[path]
        adapted = origin.how == "adapted"
        before = f"{origin.detail}," if adapted else f"adapted{source.whence(path)}:"
        text = f"{before} {kept} classes kept, {classes - kept} added"
        extended = extend(path, value, target.shapes[path], drawn.get(path))
        found[path] = extended, Origin("adapted", text)
    return found


def _controls(
    given: dict[str, _Given], target: Target, config: Finetune
) -> tuple[dict[str, _Given], dict[str, str]]:
    """Pretrained tensors as they are, or what stands in their place for comparison; and why others
    are left out.

    With `matched` what is no kernel, such as biases and norms, is left to be initialised.
    """
    if config.init == "pretrained":
        return given, {}
    learned = {path: value for path, (value, origin) in given.items() if origin.pretrained}
    kept = {path: each for path, each in given.items() if path not in learned}
    if config.init == "shuffled":
        origin = Origin("adapted", "adapted: pretrained values in other places")
        for path, value in learned.items():
            kept[path] = shuffled(path, value, config.seed), origin
        return kept, {}
    kernels = {path for path in learned if is_kernel(path)}
    origin = Origin("initialised", "initialised: random, of the pretrained mean and spread")
    for path, drawn in target.fresh(config.seed, kernels).items():
        kept[path] = matched(drawn, learned[path]), origin
    return kept, dict.fromkeys(learned.keys() - kernels, "--init matched starts it anew")


def _initialised(target: Target, paths: set[str], config: Finetune) -> dict[str, _Given]:
    """What no model directory gives."""
    biases = {path for path in paths if target.spec.classes and is_bias(path, target.heads)}
    drawn = target.fresh(config.seed, paths - biases)
    from_seed = Origin("initialised", f"initialised from seed {config.seed}")
    given: dict[str, _Given] = {path: (value, from_seed) for path, value in drawn.items()}
    for path in biases:
        odds = "log odds" if target.outputs == 1 else "log"
        origin = Origin("initialised", f"initialised: {odds} of class prevalence")
        given[path] = class_bias(target.prevalence, target.outputs), origin
    return given


def _dropped(
    mine: Source,
    other: Source | None,
    head: Source,
    target: Target,
    reason: str,
    config: Finetune,
) -> dict[str, str]:
    """Tensors that are not used → why.

    Args:
        mine: the model that is fine-tuned.
        other: that of `--init-from`.
        head: the one whose head is used.
        target: the network to train.
        reason: why the head of the other one is not used, or of both if it is new.
        config: of the run.

    Raises:
        InputError: the other one gives nothing.
    """
    dropped = dict(mine.unplaced)
    if config.head == "new":
        dropped |= {path: reason for path in mine.tensors if path in target.in_head}
    if other is None:
        return dropped
    used = {path for path in other.tensors if head is other or path not in target.in_head}
    if not used:
        raise InputError(_gives_nothing(other, target, reason))
    dropped |= {
        path: f"replaced by that of {other.folder}" for path in mine.tensors if path in used
    }
    dropped |= {other.name(own): why for own, why in other.unplaced.items()}
    return dropped | {
        other.name(own): reason for path, own in other.own.items() if path not in used
    }


def _gives_nothing(other: Source, target: Target, reason: str) -> str:
    """That nothing of a model directory is used, and why its head is not, as a sentence."""
    whys = {**other.unplaced, **dict.fromkeys(other.own.values(), reason)}
    homeless = [own for own, why in other.unplaced.items() if why != LEFT_OUT]
    first = (homeless or list(whys))[0]
    advice = "leave less of it out"
    if homeless:
        near = shortened(nearest(first, target.shapes))
        advice = f"the nearest are {near}; say with --rename OLD=NEW where its weights go"
    return (
        f"{other.folder} gives this network nothing. Of its {first}, for one: {whys[first]}; "
        f"{advice}."
    )


def _notes(spec: ModelSpec, target: Target, config: Finetune) -> list[str]:
    """What a person should know of where training starts from."""
    notes: list[str] = []
    classes = target.spec.classes
    if config.head != "keep" or config.init == "random":
        biased = {path.rpartition("/")[0] for path in target.shapes if is_bias(path, target.heads)}
        notes += [
            f"{head} has no bias: its classes do not start at their prevalence"
            for head in target.heads
            if classes and head not in biased
        ]
    if config.head != "new":
        new = {each.value: each.name for each in classes}
        notes += [
            f"the model's class {each.value} {each.name} is called {new[each.value]} here"
            for each in spec.classes
            if new.get(each.value, each.name) != each.name
        ]
    if config.head != "new" and config.init != "random":
        absent = [c for c, p in zip(classes, target.prevalence, strict=True) if not p]
        if absent:
            notes.append(f"no training scan has {listed(absent)}, which the network will unlearn")
    if (
        config.head == "extend"
        and spec.arguments["outputs"] == 1
        and spec.contract.threshold != 0.5
    ):
        notes.append(
            f"the threshold {spec.contract.threshold:g} was for one class; of several the most "
            "probable wins"
        )
    return notes
