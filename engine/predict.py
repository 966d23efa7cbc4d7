"""From a scan to labels, or another image: a model directory as something to call.

from voxtune.engine.predict import load_model

segmentation = load_model("run/model").predict(nibabel.load("scan.nii.gz"))
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import jax
import nibabel as nib
import numpy as np
from jax.sharding import Mesh

from voxtune.engine.conform import Conformed, image_to_scan_grid
from voxtune.engine.mesh import make_mesh, on_all
from voxtune.engine.model_dir import ModelSpec, check_block, check_predictable, read_model
from voxtune.engine.one_pass import OnePass
from voxtune.engine.options import MapName, Segmenting
from voxtune.engine.predicted import Predicted
from voxtune.engine.predictor import Member, Mirrors, Predictor
from voxtune.engine.preprocessing import network_image
from voxtune.engine.scan_grid import to_scan_grid
from voxtune.engine.sides import Flip, flip_axes, left_right, mixed_sides, swapped_values
from voxtune.engine.step import split
from voxtune.engine.volume import Volume, check_same_grid, from_nibabel, to_nibabel
from voxtune.models.errors import InputError
from voxtune.models.families import Network, abstract
from voxtune.models.lowering import SPATIAL
from voxtune.models.sampling import is_random
from voxtune.models.sharding import check_depth_split


@dataclass(frozen=True, eq=False)
class Result:
    """What a model makes of a scan.

    Attributes:
        data: label values `[D, H, W]`, uint8 or uint16; of a network that gives an image its
            values, float32.
        affine: float64 `[4, 4]`, voxels to mm in RAS+ world space, of the grid that it lies on.
        maps: name → float32 `[D, H, W]`, or `[D, H, W, K]` of probabilities, on that grid. The
            entropy of the probabilities is in nats; the variance over passes is summed over
            classes. Probabilities are K volumes, all held at once.
        highest: the highest probability of each class, background first, float32 `[K]`; of an image
            its highest value.
        notes: what a person should know of how it came about, a sentence each.
    """

    data: np.ndarray
    affine: np.ndarray
    maps: Mapping[MapName, np.ndarray] = field(default_factory=dict)
    highest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Model:
    """A model, or an ensemble of several, that predicts scans; made by `load_model`.

    Attributes:
        spec: of the first model: classes and preprocessing, which all share.
        members: the networks, their parameters on the devices.
        options: how they are run.
        path: of the first model directory.
        predictor: what runs them over a conformed image.
        maps: which maps each result has.
        threshold: probability above which a voxel is of the second of two classes; None elsewhere.
        on_scan_grid: whether results lie on the scan's grid, else on the conformed one.
        notes: what a person should know of every result, a sentence each.
    """

    spec: ModelSpec
    members: Sequence[Member]
    options: Segmenting
    path: Path
    predictor: Callable[[Sequence[Member], np.ndarray], Predicted]
    maps: tuple[MapName, ...] = ()
    threshold: float | None = None
    on_scan_grid: bool = True
    notes: tuple[str, ...] = ()

    def predict(self, *images: Any) -> nib.Nifti1Image:
        """Label values of a scan, or the image that the network makes of it.

        Args:
            images: the scan, a 3D image of nibabel's for each of the model's channels, in their
                order; in any orientation and with any voxel size.

        Returns:
            An image on the scan's own grid, with its forms, codes and units, or on the conformed
            one, in mm.

        Raises:
            InputError: it has another number of channels, which do not lie on one grid, or voxels
                that cannot be used.
        """
        scan = self._scan(images)
        result = self._result(scan)
        if self.on_scan_grid:
            return to_nibabel(result.data, scan[0])
        return nib.Nifti1Image(result.data, result.affine)

    def segment(self, *images: Any) -> Result:
        """The same as arrays, with the maps that were asked for; arguments and errors likewise."""
        return self._result(self._scan(images))

    def __call__(self, image: np.ndarray, grid: Conformed) -> Result:
        """What the model makes of a scan that was conformed by its contract.

        Args:
            image: float32 `[D, H, W, C]`, see `voxtune.engine.preprocessing.network_image`.
            grid: the way back to the scan's grid.
        """
        found = self.predictor(self.members, image)
        if self.spec.classes:
            data = self._labels(found, grid)
        else:
            data = self._on_grid(found.channel(0), grid)
        return Result(
            data,
            grid.scan_affine if self.on_scan_grid else grid.affine,
            {name: self._map(name, found, grid) for name in self.maps},
            found.highest(),
            (*self.notes, *found.notes),
        )

    def _scan(self, images: Sequence[Any]) -> tuple[Volume, ...]:
        if len(images) != self.spec.channels:
            raise InputError(
                f"{self.path} holds a network of {self.spec.channels} channels, but {len(images)} "
                "images were given; give one for each."
            )
        first, *others = (from_nibabel(each, self.options.nonfinite) for each in images)
        return (first, *(check_same_grid(first, each, "linear") for each in others))

    def _result(self, scan: Sequence[Volume]) -> Result:
        return self(*network_image(scan, self.spec.contract))

    def _labels(self, found: Predicted, grid: Conformed) -> np.ndarray:
        if self.on_scan_grid:
            winners = to_scan_grid(grid, found, self.threshold)
        else:
            winners = found.winners(self.threshold)
        values = [each.value for each in self.spec.classes]
        table = np.array(values, np.min_scalar_type(max(values)))
        labels = np.empty(winners.shape, table.dtype)
        for plane, classes in zip(labels, winners, strict=True):
            plane[...] = table[classes]  # of the whole, the indices alone would be 64 bits a voxel
        return labels

    def _map(self, name: MapName, found: Predicted, grid: Conformed) -> np.ndarray:
        if name == "entropy":
            return self._on_grid(found.entropy(), grid)
        if name == "variance":
            return self._on_grid(found.variance(), grid)
        classes = found.held.shape[-1]
        maps = np.empty(
            (*(grid.scan_shape if self.on_scan_grid else found.shape), classes), np.float32
        )
        for index in range(classes):
            maps[..., index] = self._on_grid(found.channel(index), grid)
        return maps

    def _on_grid(self, values: np.ndarray, grid: Conformed) -> np.ndarray:
        return image_to_scan_grid(grid, values) if self.on_scan_grid else np.array(values)


def load_model(
    path: str | Path,
    *,
    options: Segmenting = Segmenting(),  # noqa: B008 (frozen)
    maps: tuple[MapName, ...] = (),
    threshold: float | None = None,
    on_scan_grid: bool = True,
) -> Model:
    """Reads a model directory, and those of its ensemble.

    Args:
        path: the model directory.
        options: windows, passes and devices; the same as of `voxtune predict`.
        maps: maps to make beside the labels.
        threshold: probability above which a voxel belongs to the class of a model of one class
            beside background; None is the model's.
        on_scan_grid: whether results lie on the scan's grid, else on the conformed one.

    Raises:
        InputError: it, or one of the ensemble, is bad, they do not fit each other, or the options
            not them.
    """
    options = _checked(options)
    _check_maps(maps)
    folders = [Path(path), *options.ensemble]
    read = [read_model(each) for each in folders]
    specs = [spec for spec, _ in read]
    first, contract = specs[0], specs[0].contract
    for spec, folder in zip(specs, folders, strict=True):
        check_predictable(spec, folder)
        _check_alike(first, folders[0], spec, folder)
    _check_results(first, folders[0], maps, threshold)
    mirrors = _mirrors(options, first)
    mesh = make_mesh(options.mesh)
    if options.block == "full":  # which is a pass for one row of devices
        mesh = Mesh(mesh.devices[:1], mesh.axis_names, axis_types=mesh.axis_types)
    networks = [abstract(spec.family, spec.arguments) for spec in specs]
    for network, spec, folder in zip(networks, specs, folders, strict=True):
        _check_network(network, spec, folder, options, mesh, contract.block)
    block = contract.block if options.block in (None, "full") else options.block
    assert isinstance(block, tuple)
    windows = Predictor(
        block,
        options.overlap,
        mesh,
        values=not first.classes,
        mirrors=mirrors,
        samples=options.samples,
        seed=options.seed,
        variance="variance" in maps,
    )
    if "variance" in maps and windows.passes(len(specs)) == 1:
        raise InputError(
            "--maps variance is over several passes, of which there is one; give --samples, --flip "
            "or --ensemble too."
        )
    members = []
    for spec, parameters in read:
        apply, *arrays = split(spec.network(parameters))
        members.append(Member(apply, *jax.device_put(arrays, on_all(mesh))))
    return Model(
        first,
        members,
        options,
        folders[0],
        OnePass(windows, specs, block) if options.block == "full" else windows,
        maps,
        first.threshold if threshold is None else threshold,
        on_scan_grid,
        () if threshold is not None else _unequal_thresholds(specs),
    )


def _checked(options: Segmenting) -> Segmenting:
    """Options as they are from the command line: from Python, lists and strings are fine too.

    Raises:
        InputError: a number is out of its range.
    """
    if not 0 <= options.overlap < 1:
        raise InputError(
            f"--overlap {options.overlap} is not a share of a block; give 0 or more, below 1."
        )
    if options.samples < 0:
        raise InputError(f"--samples {options.samples} is no number of draws; give 1 or more.")
    if not 0 <= options.seed < 2**63:
        raise InputError(f"--seed {options.seed} is not from 0 to 2^63 - 1; give such a number.")
    block: Any = options.block
    if block not in (None, "full"):
        block = tuple(block)
        if len(block) != 3 or not all(isinstance(each, int) for each in block):
            raise InputError(
                f"--block {options.block} is no shape; give three whole numbers, or full."
            )
    ensemble = tuple(Path(each) for each in options.ensemble)
    return dataclasses.replace(options, block=block, ensemble=ensemble)


def _check_maps(maps: Sequence[str]) -> None:
    names = get_args(MapName)
    wrong = [maps] if isinstance(maps, str) else [each for each in maps if each not in names]
    if wrong:
        raise InputError(
            f"--maps {wrong[0]} is no list of names of maps, which are {', '.join(names)}; from "
            f"Python give maps=('{names[0]}',), for example."
        )


def _unequal_thresholds(specs: Sequence[ModelSpec]) -> tuple[str, ...]:
    """Of an ensemble, a sentence where its models have not the same one."""
    found = [each.threshold for each in specs]
    if found[0] is None or len(set(found)) == 1:
        return ()
    each = ", ".join(f"{threshold:g}" for threshold in found)
    return (f"the ensemble's models have the thresholds {each}; the first one's was used",)


def _check_alike(first: ModelSpec, path: Path, other: ModelSpec, folder: Path) -> None:
    """Makes sure that what two networks give can be averaged.

    Raises:
        InputError: it cannot.
    """
    # Of folds, what is expected of scans differs a little.
    same = {name: getattr(first.contract, name) for name in ("block", "threshold", "quantiles")}
    contract = dataclasses.replace(other.contract, **same)
    parts = [each.name for each in dataclasses.fields(contract)]
    differing = [
        *(["classes"] if other.classes != first.classes else []),
        *(["number of channels"] if other.channels != first.channels else []),
        *(each for each in parts if getattr(contract, each) != getattr(first.contract, each)),
    ]
    if differing:
        raise InputError(
            f"{folder} cannot be averaged with {path}: they differ in {', '.join(differing)}; give "
            "models that were trained alike, of the folds of one training for example."
        )


def _check_results(
    spec: ModelSpec, path: Path, maps: Sequence[MapName], threshold: float | None
) -> None:
    """Makes sure that what is asked for is something that a network has.

    Raises:
        InputError: it is not.
    """
    if not spec.classes:
        wrong = [f"--maps {name}" for name in maps if name != "variance"]
        wrong += [] if threshold is None else [f"--threshold {threshold:g}"]
        if wrong:
            raise InputError(
                f"{path} holds a network that gives an image, not classes; leave out {wrong[0]}."
            )
    if threshold is None:
        return
    if len(spec.classes) != 2:
        raise InputError(
            f"--threshold is for models of one class beside background, and {path} has "
            f"{len(spec.classes) - 1} of them, of which the most probable wins; leave it out."
        )
    if not 0 <= threshold <= 1:
        raise InputError(f"--threshold {threshold:g} is no probability; give 0 to 1.")


def _mirrors(options: Segmenting, spec: ModelSpec) -> Mirrors:
    """The mirrored passes that were asked for.

    Raises:
        InputError: they would mix sides, or `--swap` is bad.
    """
    if options.flip not in get_args(Flip):
        raise InputError(f"--flip {options.flip} is not one of {', '.join(get_args(Flip))}.")
    contract = spec.contract
    index = {each.value: position for position, each in enumerate(spec.classes)}
    pairs = swapped_values(options.swap, tuple(index))
    axes, across = flip_axes(options.flip, contract), left_right(contract)
    if options.swap and not axes:
        raise InputError(
            "--swap is for flips from left to right, of which there is none; give --flip left-right"
            " too, or leave --swap out."
        )
    paired = {value for pair in pairs for value in pair}
    others = [each for each in spec.classes if each.value not in paired]
    if axes and (mixed := mixed_sides(others)):
        raise InputError(f"{mixed[0].upper()}{mixed[1:]}.")
    return Mirrors(axes, across, tuple((index[left], index[right]) for left, right in pairs))


def _check_network(
    network: Network,
    spec: ModelSpec,
    folder: Path,
    options: Segmenting,
    mesh: Mesh,
    usual: tuple[int, int, int],
) -> None:
    """Makes sure that a network takes the blocks, splits over the devices, and draws if asked.

    Args:
        network: with shapes in the place of arrays.
        spec: what it is.
        folder: its model directory, for the sentence.
        options: how it is to be run.
        mesh: on what.
        usual: shape of the windows where the options have none.

    Raises:
        InputError: it does not.
    """
    block = options.block or usual
    if block == "full":
        if network.fixed_block is not None:
            raise InputError(
                f"--block full does not suit the {spec.family} of {folder}, whose positions are "
                f"those of blocks of {' '.join(map(str, network.fixed_block))}; leave it out."
            )
    else:
        if block != spec.contract.block:
            check_block(spec.family, spec.arguments, block)
        check_depth_split(network, block[0], mesh.shape[SPATIAL])
    if options.samples and not is_random(network, (*spec.contract.block, spec.channels)):
        raise InputError(
            f"--samples draws what is random, and {folder} holds a network in which nothing is: it "
            "has no random weights and drops nothing; leave --samples out."
        )
