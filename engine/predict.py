"""From a scan to labels, or another image, on its own grid, block by block."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from voxtune.engine.conform import image_to_scan_grid, to_scan_grid
from voxtune.engine.evaluate import write_class_names
from voxtune.engine.mesh import DATA, make_mesh, memory_errors, on_all, over_depth
from voxtune.engine.model_dir import (
    ModelSpec,
    check_predictable,
    prediction_channels,
    read_model,
)
from voxtune.engine.output import check_free, make_folder
from voxtune.engine.preprocessing import load_channels, network_image, pad_to_block
from voxtune.engine.step import Apply, make_predict_step, split
from voxtune.engine.subjects import UNNAMED, read_subjects
from voxtune.engine.tiling import tiles
from voxtune.engine.volume import Volume, save_image, save_label, stem
from voxtune.models.errors import InputError


def block_weight(block: Sequence[int]) -> np.ndarray:
    """How much each voxel of a block counts where blocks overlap, float32 `[D, H, W]`.

    A Gaussian round the centre, an eighth of the block wide (nnU-Net's), since the border of a
    block lacks context; never below a thousandth, so that it can be divided by.
    """
    axes = [np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2) for size in block]
    weight = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return np.maximum(weight, 1e-3).astype(np.float32)


class Predictor:
    """Predicts whole volumes, as many blocks at a time as the devices hold.

    That is one for each device, or where the mesh splits depth one for each row of it.

    Args:
        apply: the network.
        block: shape of the blocks, voxels; its depth splits over the devices of `spatial`, see
            `voxtune.models.sharding`.
        overlap: least share of a block that its neighbour covers too.
        mesh: the devices, all of this process.
        values: whether the network's outputs are given as they are, not as probabilities.
    """

    def __init__(
        self,
        apply: Apply,
        block: tuple[int, int, int],
        overlap: float,
        mesh: Mesh,
        values: bool = False,
    ) -> None:
        self._block, self._overlap, self._mesh = block, overlap, mesh
        self._weight = block_weight(block)[..., None]
        self._split = over_depth(mesh)
        self._step = jax.jit(make_predict_step(apply, values), out_shardings=self._split)

    def __call__(self, params: Any, statistics: Any, image: np.ndarray) -> np.ndarray:
        """Probabilities, or values, float32 `[D, H, W, K]` of an image `[D, H, W, C]`."""
        padded, inside = pad_to_block(image, self._block)
        corners = tiles(padded.shape[:3], self._block, self._overlap)
        together = self._mesh.shape[DATA]
        total: np.ndarray | None = None
        weights = np.zeros((*padded.shape[:3], 1), np.float32)
        for first in range(0, len(corners), together):
            now = corners[first : first + together]
            places = [self._place(corner) for corner in now]
            blocks = [padded[place] for place in places]
            blocks += [np.zeros_like(blocks[0])] * (together - len(blocks))
            given = jax.device_put(np.stack(blocks), self._split)
            with jax.set_mesh(self._mesh):  # by which convolutions know whether depth is split
                results = np.asarray(self._step(params, statistics, given))
            if total is None:
                total = np.zeros((*padded.shape[:3], results.shape[-1]), np.float32)
            for place, result in zip(places, results, strict=False):
                total[place] += result * self._weight
                weights[place] += self._weight
        assert total is not None
        total /= weights
        return total[inside]

    def _place(self, corner: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(a, a + n) for a, n in zip(corner, self._block, strict=True))


def outputs_of(scans: Sequence[tuple[str, Mapping[str, Path]]], folder: Path) -> list[Path]:
    """The result's file of each scan, given as in `predict`.

    Raises:
        InputError: two scans would have the same, or one would replace a scan.
    """
    taken: dict[str, Path] = {}
    for name, images in scans:
        first = next(iter(images.values()))
        if name in taken:
            raise InputError(
                f"{taken[name]} and {first} would both be written as {folder / name}.nii.gz; "
                "predict them into two folders, or list them in a subjects table."
            )
        taken[name] = first
        for image in images.values():
            if (folder / f"{name}.nii.gz").resolve() == image.resolve():
                raise InputError(
                    f"{image} would be replaced by its own result; choose another folder."
                )
    return [folder / f"{name}.nii.gz" for name, _ in scans]


@memory_errors()
def predict(
    model_dir: Path,
    scans: Sequence[tuple[str, Mapping[str, Path]]],
    folder: Path,
    *,
    overlap: float,
    overwrite: bool,
    report: Callable[[str], None],
    nonfinite: float | None = None,
) -> list[Path]:
    """Segments scans, or makes an image of each; each result lies on its scan's own grid.

    Every scan is read and conformed before the first is predicted, so that a bad one is found
    before anything is written.

    Args:
        model_dir: model directory.
        scans: name of the result and images of each scan, see `voxtune.engine.subjects`.
        folder: where the results go.
        overlap: least share of a block that its neighbour covers too.
        overwrite: whether results that are there are replaced.
        report: told of each scan done.
        nonfinite: value for voxels that are NaN or infinite; without it such scans are refused.

    Returns:
        The results, in the order of the scans.

    Raises:
        InputError: the model or a scan is bad, or the folder exists.
    """
    if not scans:
        raise InputError("There is no scan to predict; give at least one.")
    if not 0 <= overlap < 1:
        raise InputError(f"--overlap {overlap} is not a share of a block; give 0 to 0.9.")
    mesh = make_mesh()
    spec, parameters = read_model(model_dir)
    check_predictable(spec, model_dir)
    outputs = outputs_of(scans, folder)
    check_free(folder, overwrite)
    chosen = [
        {name: images[name] for name in prediction_channels(spec, model_dir, tuple(images))}
        for _, images in scans
    ]
    for images in chosen:
        network_image(load_channels(images, nonfinite), spec.contract)
    apply, params, statistics = split(spec.network(parameters))
    params, statistics = jax.device_put((params, statistics), on_all(mesh))
    predictor = Predictor(apply, spec.contract.block, overlap, mesh, values=not spec.classes)
    try:
        make_folder(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}.") from error
    if spec.classes:
        write_class_names(folder, spec.names)
    for images, output in zip(chosen, outputs, strict=True):
        scan = load_channels(images, nonfinite)
        image, grid = network_image(scan, spec.contract)
        found = predictor(params, statistics, image)
        if spec.classes:
            said = _write_labels(output, to_scan_grid(grid, contested(found, spec)), scan[0], spec)
        else:
            said = _write_image(output, image_to_scan_grid(grid, found[..., 0]), scan[0])
        replaced = sum(each.replaced for each in scan)
        report(f"{output}  {said}" + f", {replaced} voxels replaced" * bool(replaced))
    return outputs


def _write_labels(output: Path, indices: np.ndarray, scan: Volume, spec: ModelSpec) -> str:
    """Writes classes `[D, H, W]` as the values that labels have; says how much there is."""
    labels = np.array([each.value for each in spec.classes])[indices]
    save_label(output, labels, scan)
    return f"{np.count_nonzero(labels) * scan.voxel_ml:.1f} ml labelled"


def _write_image(output: Path, values: np.ndarray, scan: Volume) -> str:
    """Writes values `[D, H, W]` as they are; says between which they lie."""
    save_image(output, values, scan)
    return f"values from {values.min():.4g} to {values.max():.4g}"


def contested(probabilities: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """Probabilities `[..., K]` of which the largest wins, changed in place.

    The class of a one-class network wins above the contract's threshold: a contest with a constant.
    """
    if spec.arguments["outputs"] == 1:
        probabilities[..., 0] = spec.contract.threshold
    return probabilities


def scans_of(paths: Sequence[Path], split: str | None) -> list[tuple[str, Mapping[str, Path]]]:
    """Name of the result and images of each scan: those given, or those of a subjects table.

    Raises:
        InputError: the table is bad, or a split was asked for without a table.
    """
    if len(paths) == 1 and paths[0].suffix.lower() == ".csv":
        subjects = read_subjects(paths[0], need_label=False, split=split)
        return [(each.name, each.images) for each in subjects]
    if split is not None:
        raise InputError("--split needs a subjects table; give its CSV file in place of scans.")
    return [(stem(path), dict.fromkeys(UNNAMED, path)) for path in paths]
