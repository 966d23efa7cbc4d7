"""Model directories that give tensors, and the network that takes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxtune.engine.model_dir import ModelSpec
from voxtune.engine.path_map import PathMap
from voxtune.engine.surgery import Array, Shape, channel_places, grown_axis, with_input
from voxtune.models.errors import InputError
from voxtune.models.families import abstract
from voxtune.models.parameters import fresh, shapes, shapes_of


@dataclass(frozen=True, eq=False)
class Target:
    """The network to train.

    Attributes:
        spec: what it is.
        shapes: path → shape of all its tensors.
        heads: paths of its last layers.
        in_head: paths of the tensors in them.
        prevalence: share of each class in the training scans `[K]`.
    """

    spec: ModelSpec
    shapes: Mapping[str, Shape]
    heads: tuple[str, ...]
    in_head: frozenset[str]
    prevalence: np.ndarray

    @staticmethod
    def of(spec: ModelSpec, prevalence: np.ndarray) -> "Target":
        """A network by what it is."""
        network = abstract(spec.family, spec.arguments)
        found, heads = shapes_of(network), network.head_paths
        in_head = (path for path in found if path.startswith(tuple(f"{head}/" for head in heads)))
        return Target(spec, found, heads, frozenset(in_head), prevalence)

    @property
    def outputs(self) -> int:
        """Of each head."""
        return int(self.spec.arguments["outputs"])

    def fresh(self, seed: int, paths: set[str]) -> Mapping[str, Array]:
        """Some of its tensors as the architecture draws them."""
        return fresh(self.spec.family, self.spec.arguments, seed, paths)

    def shaped(self, channels: int, outputs: int) -> Mapping[str, Shape]:
        """Path → shape of its tensors if it had so many channels and outputs.

        Nothing where it cannot have them: a graph whose other weights would change too.
        """
        arguments = {**self.spec.arguments, "outputs": outputs}
        try:
            if channels != self.spec.channels:
                arguments = with_input(self.spec.family, arguments, channels)
        except InputError:
            return {}
        return shapes(self.spec.family, arguments)

    def readers(self, channels: int, outputs: int) -> dict[str, tuple[Shape, int | None]]:
        """Kernels that read the image → their shape for so many channels, and the channels' axis.

        The axis is None where it is not that of the channels alone.
        """
        now, more = (self.shaped(each, outputs) for each in (channels, channels + 1))
        return {
            path: (shape, grown_axis(shape, more[path], channels, channels + 1))
            for path, shape in now.items()
            if path in more and more[path] != shape
        }


@dataclass(frozen=True, eq=False)
class Source:
    """A model directory that gives tensors.

    Attributes:
        folder: the model directory.
        spec: what it says.
        tensors: path in the network to train → array.
        own: the same path → the tensor's own.
        unplaced: own paths of the tensors that go nowhere → why.
        foreign: whether it is not the one that is fine-tuned, and is named beside its tensors.
    """

    folder: Path
    spec: ModelSpec
    tensors: Mapping[str, Array]
    own: Mapping[str, str]
    unplaced: Mapping[str, str]
    foreign: bool

    @staticmethod
    def of(
        folder: Path,
        spec: ModelSpec,
        tensors: Mapping[str, Array],
        target: Target,
        paths: PathMap | None = None,
    ) -> "Source":
        """A model directory; one that is not fine-tuned itself has a map of paths."""
        placed, unplaced = (paths or PathMap({})).place(list(tensors), list(target.shapes), folder)
        taken = {path: tensors[own] for path, own in placed.items()}
        return Source(folder, spec, taken, placed, unplaced, paths is not None)

    def whence(self, path: str) -> str:
        """What is said of where a tensor comes from."""
        if not self.foreign:
            return ""
        own = self.own[path]
        return f" from {self.folder}" if own == path else f" from {self.name(own)}"

    def places(self, target: Target) -> tuple[int | None, ...]:
        """Which of its channels each of the target's reads as, None for a further one."""
        old, new = self.spec, target.spec
        return channel_places(
            old.contract.channels, old.channels, new.contract.channels, new.channels
        )

    def name(self, own: str) -> str:
        """What a tensor is called beside those of another model directory."""
        return f"{self.folder}: {own}" if self.foreign else own

    def misfit(self, path: str, wanted: Shape) -> str:
        """That a tensor does not fit, as a sentence.

        Args:
            path: in the network to train.
            wanted: the shape that it has there.
        """
        own, old = self.own[path], self.tensors[path].shape
        leave_out = f"leave it out with --rename {own}=, or all of a level by its beginning"
        if old == wanted:
            return (
                f"{self.folder}: {own} reads the image together with other values, so that its "
                f"channels cannot be put in the order of this run; {leave_out}."
            )
        give = f"give as many images a subject as its channels, {self.spec.channels}"
        return (
            f"{self.folder}: {own} has the shape {_sizes(old)}, but {path} of the network to "
            f"train has {_sizes(wanted)}; {leave_out if self.foreign else give}."
        )

    def notes(self, target: Target) -> list[str]:
        """What a person should know: which image takes which place, and what else differs."""
        old, new = self.spec.contract, target.spec.contract
        names, parts = list(new.channels or ()), self._channels(target)
        notes = []
        if parts != names or (len(parts) > 1 and not self.foreign):
            whose = f"channels of {self.folder}" if self.foreign else "channels"
            notes.append(f"{whose}: {', '.join(parts)}")
        if self.foreign:
            notes += [
                f"{self.folder} was trained with the {what} {theirs}, this run has {ours}"
                for what, theirs, ours in (
                    ("orientation", old.orientation, new.orientation),
                    ("voxel size", _millimetres(old.spacing_mm), _millimetres(new.spacing_mm)),
                    ("intensity scaling", old.intensity, new.intensity),
                )
                if theirs != ours
            ]
        return notes

    def _channels(self, target: Target) -> list[str]:
        """For each channel of the target that has a name, what it is to this network."""
        names, known = target.spec.contract.channels or (), self.spec.contract.channels
        owner = "its" if self.foreign else "the model's"
        found = []
        for name, place in zip(names, self.places(target), strict=bool(names)):
            if place is None:
                found.append(f"{name} new")
            elif known is not None and known[place] == name:
                found.append(name)
            elif known is not None:
                found.append(f"{name} in the place of {known[place]}")
            elif self.spec.channels == 1:
                found.append(f"{name} in the place of {owner} only one")
            else:
                found.append(f"{name} in the place of {owner} channel {place + 1}")
        return found


def _sizes(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a number"


def _millimetres(spacing: tuple[float, float, float] | None) -> str:
    return "of each scan" if spacing is None else f"{' x '.join(f'{e:g}' for e in spacing)} mm"
