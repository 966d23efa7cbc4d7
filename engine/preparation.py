"""What is done to each subject before it is stored, and doing it to one. No JAX here."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from voxtune.engine.case import Affine, Box, Case, Quantised, contents_of, quantised
from voxtune.engine.conform import conform, conformed_shape
from voxtune.engine.contract import LONGEST, Contract, ImageInterpolation, check_contract
from voxtune.engine.intensity import IntensityKind, scaling_of
from voxtune.engine.labels import LabelMap, read_label_map
from voxtune.engine.options import Labelling
from voxtune.engine.preprocessing import conformed_channel, load_channels
from voxtune.engine.subjects import Problem, Subject
from voxtune.engine.volume import (
    Volume,
    check_nonfinite,
    check_same_grid,
    files_of_volume,
    load_image,
    load_label,
)
from voxtune.models.errors import InputError

LabelInterpolation = Literal["nearest", "linear"]

_OF_IMAGES = ("interpolation", "intensity", "window", "channels", "nonfinite")


@dataclass(frozen=True)
class Preparation:
    """What is done to each subject.

    Attributes:
        orientation: see `Contract`, as the next five.
        spacing_mm: likewise.
        grid: likewise.
        interpolation: likewise.
        intensity: likewise.
        window: likewise; None for all scalings but "window".
        channels: names of the images, in the order of the network's channels; () for label maps
            alone.
        labels: what the values in label files become.
        label_interpolation: how labels are resampled.
        target: whether what the table calls label is an image to be learned.
        nonfinite: value of voxels that are NaN or infinite; None refuses such scans.
    """

    orientation: str
    spacing_mm: tuple[float, float, float] | None
    grid: tuple[int, int, int] | None
    interpolation: ImageInterpolation
    intensity: IntensityKind
    window: tuple[float, float] | None
    channels: tuple[str, ...]
    labels: LabelMap
    label_interpolation: LabelInterpolation
    target: bool
    nonfinite: float | None

    @staticmethod
    def of(
        contract: Contract, channels: Sequence[str], labelling: Labelling, target: bool = False
    ) -> "Preparation":
        """What a contract and the options for labels ask for.

        Args:
            contract: of the network that is to learn from it.
            channels: names of the images, in the order of the network's channels.
            labelling: options.
            target: whether what the table calls label is an image to be learned.

        Raises:
            InputError: the label map cannot be read, or there is one for a target, or a target
                for no image; what stands for NaN is not finite.
        """
        check_nonfinite(labelling.nonfinite)
        keep = tuple(sorted(set(labelling.keep)))  # whose order means nothing
        labels = read_label_map(labelling.label_map, keep, labelling.binarise, labelling.unlisted)
        if target and (labels, labelling.label_interpolation) != (LabelMap(), "nearest"):
            raise InputError(
                "The labels are images to be learned, which have no label values; leave out "
                "--label-map, --unlisted, --keep, --binarise and --label-interpolation."
            )
        if target and not channels:
            raise InputError(
                "There is no image to learn the target from; add a column image to the table."
            )
        return Preparation(
            orientation=contract.orientation,
            spacing_mm=contract.spacing_mm,
            grid=contract.grid,
            interpolation=contract.interpolation,
            intensity=contract.intensity,
            window=contract.window if contract.intensity == "window" else None,
            channels=tuple(channels),
            labels=labels,
            label_interpolation=labelling.label_interpolation,
            target=target,
            nonfinite=labelling.nonfinite,
        )

    @property
    def contract(self) -> Contract:
        """As much of a contract as is done before blocks are cut: the least block."""
        return Contract(
            self.orientation,
            self.spacing_mm,
            self.intensity,
            (1, 1, 1),
            channels=self.channels,
            grid=self.grid,
            interpolation=self.interpolation,
            window=self.window,
        )

    def differences(self, other: "Preparation", names: Sequence[str] = ()) -> list[str]:
        """Where two differ, in words: "orientation RAS, not LIA".

        Args:
            other: what was wanted.
            names: of attributes to compare; all by default.
        """
        wanted = names or [each.name for each in dataclasses.fields(self)]
        if not self.channels and not other.channels:
            wanted = [name for name in wanted if name not in _OF_IMAGES]
        return [
            "other label values"
            if name == "labels"
            else f"{name.removesuffix('_mm').replace('_', ' ')} {_shown(mine)}, not {_shown(its)}"
            for name in wanted
            if (mine := getattr(self, name)) != (its := getattr(other, name))
        ]

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        document = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        labels = {
            each.name: getattr(self.labels, each.name) for each in dataclasses.fields(LabelMap)
        }
        for name in ("mapping", "names"):
            if labels[name] is not None:
                labels[name] = {str(key): value for key, value in sorted(labels[name].items())}
        return {**document, "labels": labels}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Preparation":
        """What `to_json` gave.

        Raises:
            InputError: it makes no sense.
            ValueError, TypeError, KeyError, AttributeError, OverflowError: likewise.
        """
        given = dict(document)
        labels = dict(given.pop("labels"))
        mapping = labels.pop("mapping")
        if mapping is not None:
            mapping = {int(key): whole(value) for key, value in mapping.items()}
        names = {int(key): str(value) for key, value in labels.pop("names").items()}
        keep = tuple(whole(value) for value in labels.pop("keep"))
        if labels["unlisted"] not in ("error", "background"):
            raise ValueError(f"unlisted label values become {labels['unlisted']!r}")
        for name, kind, number in (
            ("spacing_mm", float, 3),
            ("grid", whole, 3),
            ("window", float, 2),
        ):
            if given[name] is not None:
                given[name] = tuple(kind(value) for value in given[name])
                if len(given[name]) != number:
                    raise ValueError(f"{name} is not {number} numbers")
        given["channels"] = tuple(map(str, given["channels"]))
        given["orientation"] = str(given["orientation"])
        if type(given["target"]) is not bool or type(labels["binarise"]) is not bool:
            raise TypeError("target and binarise are not true or false")
        found = Preparation(labels=LabelMap(mapping, names, keep, **labels), **given)
        if found.label_interpolation not in get_args(LabelInterpolation):
            raise ValueError(f"labels are resampled by {found.label_interpolation!r}")
        if len(set(found.channels)) < len(found.channels):
            raise ValueError("two channels have one name")
        if found.nonfinite is not None and not math.isfinite(found.nonfinite):
            raise ValueError("what stands for voxels that are NaN is not finite")
        check_contract(found.contract)
        return found


def whole(value: Any) -> int:
    """A whole number of a JSON document.

    Raises:
        TypeError: it is something else.
    """
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value


def prepare_case(subject: Subject, preparation: Preparation) -> Case:
    """Reads one subject, conforms and scales it.

    Images are clipped as their scaling says and kept in 16 bits; whole numbers of a scan that
    needed no resampling lose nothing. Where zeros stay zeros, the scaled image is kept instead.

    Args:
        subject: with a label.
        preparation: how.

    Raises:
        InputError: a file is bad, or does not fit the others or the preparation.
    """
    assert subject.label is not None
    scan = load_channels(subject.images, preparation.nonfinite) if subject.images else ()
    truth = _truth(subject.label, preparation)
    if scan:
        truth = check_same_grid(
            scan[0], truth, "linear" if preparation.target else "nearest-neighbour"
        )
    _conformed_shape(truth, preparation)
    image = None
    if scan:
        image, affine = _stored(scan, preparation.contract)
    label: np.ndarray | Quantised
    counts: dict[int, int] = {}
    boxes: dict[int, Box] = {}
    positions: dict[int, np.ndarray] = {}
    if preparation.target:
        label, affine = _stored((truth,), preparation.contract)
    else:
        conformed = conform(
            preparation.labels(truth),
            preparation.orientation,
            preparation.spacing_mm,
            "nearest" if preparation.label_interpolation == "nearest" else "label_linear",
            preparation.grid,
        )
        label, affine = conformed.data, conformed.affine
        counts, boxes, positions = contents_of(label)
    depth, height, width = truth.data.shape
    replaced = sum(each.replaced for each in (*scan, truth))
    return Case(
        subject.name,
        subject.split,
        image,
        label,
        affine,
        counts,
        boxes,
        positions,
        (depth, height, width),
        truth.spacing_mm,
        replaced,
    )


def problems_of(subject: Subject, preparation: Preparation) -> list[Problem]:
    """All that is wrong with the files of a subject, each read in full, but none is resampled."""
    return list(_problems(subject, preparation))


def sources_of(subject: Subject) -> list[dict[str, str]]:
    """Name and SHA-256 of each of a subject's files.

    Raises:
        InputError: one cannot be read.
    """
    return [{"file": path.name, "sha256": _digest(path)} for path in files_of(subject)]


def files_of(subject: Subject) -> list[Path]:
    """Files of a subject's images and of its label, both halves of those that are pairs."""
    volumes = [*subject.images.values(), *filter(None, [subject.label])]
    return [file for each in volumes for file in files_of_volume(each)]


def _problems(subject: Subject, preparation: Preparation) -> Iterator[Problem]:
    def attempt(path: Path, step: Any, *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except InputError as error:
            return Problem(subject.name, path, str(error))

    first: Volume | None = None
    as_it_is = False  # so that scaling by the scan's own statistics is scaling by the grid's
    images = [(path, True) for path in subject.images.values()]
    for path, image in (*images, *((path, False) for path in (subject.label,) if path)):
        if image:
            found = attempt(path, load_image, path, preparation.nonfinite)
        else:
            found = attempt(path, _truth, path, preparation)
        if isinstance(found, Problem):
            yield found
            continue
        if first is None:
            first = found
            plan = attempt(path, _conformed_shape, found, preparation)
            if isinstance(plan, Problem):
                yield plan
            else:
                shape, exact = plan
                as_it_is = exact and preparation.grid in (None, shape)
        else:
            how = "linear" if image or preparation.target else "nearest-neighbour"
            fitting = attempt(path, check_same_grid, first, found, how)
            if isinstance(fitting, Problem):
                yield fitting
        if (image or preparation.target) and as_it_is:
            kind, window = preparation.intensity, preparation.window
            scaling = attempt(path, scaling_of, found.data, kind, window, path)
            if isinstance(scaling, Problem):
                yield scaling
        if not image and not preparation.target:
            mapped = attempt(path, preparation.labels, found)
            if isinstance(mapped, Problem):
                yield mapped


def _conformed_shape(volume: Volume, preparation: Preparation) -> tuple[tuple[int, int, int], bool]:
    """See `conformed_shape`.

    Raises:
        InputError: that is more than can be stored.
    """
    shape, exact = conformed_shape(volume, preparation.orientation, preparation.spacing_mm)
    if preparation.grid is None and max(shape) > LONGEST:
        raise InputError(
            f"{volume.path} would become {shape} voxels, more than {LONGEST} along one axis: "
            "check its voxel sizes, or choose a larger spacing"
        )
    return shape, exact


def _truth(path: Path, preparation: Preparation) -> Volume:
    return load_image(path, preparation.nonfinite) if preparation.target else load_label(path)


def _stored(volumes: Sequence[Volume], contract: Contract) -> tuple[Quantised, np.ndarray]:
    """Volumes on one grid, conformed and in 16 bits, and the affine of that grid."""
    channels, scalings = [], []
    for each in volumes:
        conformed = conformed_channel(each, contract)
        scaling = scaling_of(conformed.data, contract.intensity, contract.window, each.path)
        if scaling.keeps_zero:
            channels.append(scaling(conformed.data))
            scalings.append(Affine())
            continue
        clips = scaling.low is not None or scaling.high is not None
        data = np.clip(conformed.data, scaling.low, scaling.high) if clips else conformed.data
        channels.append(data)
        scalings.append(Affine(scaling.offset, scaling.spread))
    return quantised(channels, scalings), conformed.affine


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the path") from error
    return digest.hexdigest()


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        sign = " x " if value and not isinstance(value[0], str) else ", "
        return sign.join(map(_shown, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
