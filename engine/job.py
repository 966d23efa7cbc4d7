"""`voxtune predict`: many scans, read, predicted and written at the same time."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console

from voxtune.engine.class_names import read_class_names, write_class_names
from voxtune.engine.components import fill_holes, keep_largest
from voxtune.engine.config import Predict
from voxtune.engine.conform import Conformed, conform
from voxtune.engine.diagnosis import Intensities, explanation, intensities_of, to_json
from voxtune.engine.job_display import JobDisplay
from voxtune.engine.mesh import TO_PREDICT, memory_errors
from voxtune.engine.model_dir import prediction_channels
from voxtune.engine.options import MapName
from voxtune.engine.output import check_free_or_of, make_folder_of
from voxtune.engine.picture import draw_scan
from voxtune.engine.pipeline import Pipeline
from voxtune.engine.predict import Model, Result, load_model
from voxtune.engine.preprocessing import read_conformed
from voxtune.engine.scans import Scan, check_results, scans_of
from voxtune.engine.sidecar import check_same_job, made_by, read_sidecar, state_of, write_sidecar
from voxtune.engine.viewer import Page
from voxtune.engine.volume import Volume, load_image, load_label, save_image, save_label
from voxtune.models.errors import InputError

_KIND = "predictions"
_PAGE = "index.html"
_NAMED = 4  # classes whose volumes are said one by one
_LEFT = re.compile(r"\.[0-9a-f]{8}\.(.+)")  # names of `written_beside` while a file is written


@memory_errors(TO_PREDICT)
def predict(config: Predict, console: Console) -> bool:
    """Segments scans, or makes an image of each.

    Returns:
        Whether all scans could be predicted; those that could not are named at the end.

    Raises:
        InputError: the model, the options or the list of scans is bad, or the output folder cannot
            be written or is of another job.
    """
    scans = scans_of(config.scans, config.split)
    check_results({each.name: list(results_of(each, config).values()) for each in scans}, scans)
    check_free_or_of(config.output, _KIND)
    model = load_model(
        config.model_dir,
        options=config,
        maps=config.maps,
        threshold=config.threshold,
        on_scan_grid=config.grid == "scan",
    )
    if not model.spec.classes and (config.largest != "none" or config.fill_holes):
        option = "--fill-holes" if config.largest == "none" else f"--largest {config.largest}"
        raise InputError(
            f"{config.model_dir} holds a network that gives an image, not classes; leave out "
            f"{option}."
        )
    scans = [
        Scan(each.name, {name: each.images[name] for name in names})
        for each in scans
        for names in [prediction_channels(model.spec, config.model_dir, tuple(each.images))]
    ]
    how = made_by(config, model.threshold)
    done = set[str]() if config.overwrite else _done(scans, config, how)
    _check_class_names(config, model, scans)
    make_folder_of(config.output, _KIND)
    todo = [each for each in scans if each.name not in done]
    if todo and not config.html:
        (config.output / _PAGE).unlink(missing_ok=True)  # an earlier call's, of results before
    _remove_leftovers(path for each in todo for path in results_of(each, config).values())
    if model.spec.classes:
        write_class_names(config.output, model.spec.names)
    return _Job(config, model, how, JobDisplay(console, len(scans) - len(done))).run(scans, done)


def results_of(scan: Scan, config: Predict) -> dict[str, Path]:
    """The files written for a scan: "result", "sidecar", "picture", or a map's name → file."""
    base = config.output / scan.name

    def beside(end: str) -> Path:
        return base.with_name(base.name + end)

    found = {"result": beside(".nii.gz"), "sidecar": beside(".json")}
    found |= {name: beside(f"_{name}.nii.gz") for name in config.maps}
    return found | ({"picture": beside(".png")} if config.picture else {})


def _done(scans: Sequence[Scan], config: Predict, how: Mapping[str, Any]) -> set[str]:
    """Names of the scans whose results are there, whole, and have not changed since.

    Raises:
        InputError: there are results of another model, or with other options.
    """
    done = set()
    for scan in scans:
        files = results_of(scan, config)
        found = read_sidecar(files["sidecar"])
        if not found:
            continue
        check_same_job(files["sidecar"], found["made_by"], how)
        try:
            same = found.get("scan") == state_of(scan.images)
            sizes = _sizes(files)
        except OSError:  # reading or writing it will say so
            continue
        written = found.get("files")
        if same and isinstance(written, dict) and sizes.items() <= written.items():
            done.add(scan.name)
    return done


def _sizes(files: Mapping[str, Path]) -> dict[str, int]:
    """Name → bytes of the files of a scan, without the sidecar.

    Raises:
        OSError: one is not there.
    """
    return {path.name: path.stat().st_size for name, path in files.items() if name != "sidecar"}


def _check_class_names(config: Predict, model: Model, scans: Sequence[Scan]) -> None:
    """Makes sure that a folder's classes are the model's: `classes.csv` is of all its results.

    Raises:
        InputError: they are not, and some results would stay.
    """
    folder = config.output
    there = read_class_names(folder) if folder.is_dir() else {}
    if not there or there == model.spec.names:
        return
    replaced = {results_of(each, config)["sidecar"] for each in scans}
    stay = [each for each in folder.rglob("*.json") if each not in replaced and read_sidecar(each)]
    if stay or not config.overwrite:
        way = "" if stay else ", or pass --overwrite"
        raise InputError(
            f"{folder} holds results of other classes than those of {model.path}; choose another "
            f"folder{way}."
        )


@dataclass(frozen=True, eq=False)
class _About:
    """What stays of a scan that was predicted.

    Attributes:
        place: its own grid and header.
        replaced: voxels that were NaN or infinite.
        state: of its files before they were read.
        intensities: of its first channel, scaled.
    """

    place: Volume
    replaced: int
    state: Mapping[str, Any]
    intensities: Intensities


@dataclass(frozen=True, eq=False)
class _Ready:
    """A scan that was read: `[D, H, W, C]` for its network, the grid of that, and what stays."""

    image: np.ndarray
    grid: Conformed
    about: _About


@dataclass
class _Job:
    config: Predict
    model: Model
    how: Mapping[str, Any]
    display: JobDisplay
    failures: dict[str, str] = field(default_factory=dict)
    page: Page | None = None

    def run(self, scans: Sequence[Scan], done: set[str]) -> bool:
        """Predicts all scans but those that are done; see `predict`."""
        self.page = Page() if self.config.html else None
        todo = (scan for scan in scans if scan.name not in done)
        with self.display, Pipeline(self._read) as pipeline:
            following = pipeline.ahead(todo)
            for scan in scans:
                if scan.name in done:
                    if self.page is not None:
                        pipeline.write(partial(self._show_done, scan))
                    continue
                read = next(following)
                if self.config.maps:  # one scan's are several times as large as a scan
                    pipeline.wait()
                try:
                    with memory_errors(TO_PREDICT):
                        task = self._predicted(scan, read())
                except InputError as error:
                    self._fail(scan, error)
                    continue
                del read
                pipeline.write(task)
                del task
            pipeline.wait()
            if self.page is not None:
                self.page.write(self.config.output / _PAGE)
        self.display.summary(len(done), self.failures)
        return not self.failures

    def _read(self, scan: Scan) -> _Ready:
        """Reads a scan.

        Raises:
            InputError: it cannot be used.
        """
        try:
            with memory_errors(TO_PREDICT):
                state = state_of(scan.images)
                contract = self.model.spec.contract
                found = read_conformed(scan.images, contract, self.config.nonfinite)
                intensities = intensities_of(found.image[..., 0])
                about = _About(found.place, found.replaced, state, intensities)
                return _Ready(found.image, found.grid, about)
        except OSError as error:
            raise InputError(
                f"{error.filename or scan.image} cannot be read ({error.strerror or error}): "
                "check the file and its permission"
            ) from error

    def _predicted(self, scan: Scan, ready: _Ready) -> partial[None]:
        """Predicts a scan; what is to be done with the result, its image let go of."""
        result = self.model(ready.image, ready.grid)
        if not np.isfinite(result.highest).all():
            raise InputError(
                f"{self.config.model_dir} gives values for {scan.image} that are no numbers: its "
                "weights are damaged, or the scan is none of its kind"
            )
        return partial(self._finish, scan, ready.about, result)

    def _fail(self, scan: Scan, error: Exception) -> None:
        self.failures[scan.name] = str(error)
        self.display.done(f"{scan.name} failed: {error}")

    def _finish(self, scan: Scan, about: _About, result: Result) -> None:
        """Writes what there is of a scan, and says so.

        Raises:
            InputError: the disk does not take it, which the next scan's would not be better off.
        """
        try:
            with memory_errors(TO_PREDICT):
                self._write(scan, about, result)
        except InputError as error:
            if isinstance(error.__cause__, OSError):
                raise
            self._fail(scan, error)

    def _write(self, scan: Scan, about: _About, result: Result) -> None:
        files = results_of(scan, self.config)
        folder = files["result"].parent
        before = read_sidecar(files["sidecar"]).get("scan", about.state)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_old(files["sidecar"])
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written ({error.strerror}): give it permission, or choose "
                "another"
            ) from error
        place = about.place
        if self.config.grid == "conformed":
            place = Volume(np.broadcast_to(0, result.data.shape), result.affine, place.path, None)
        data = self._post_processed(result.data)
        save = save_label if self.model.spec.classes else save_image
        save(files["result"], data, place)
        for name, values in result.maps.items():
            save_image(files[name], values, place)
        said, content = self._described(data, about, result, place)
        if self.page is not None or self.config.picture:
            self._show(scan, files.get("picture"), data)
        written = {"made_by": self.how, "scan": about.state, "files": _sizes(files)}
        write_sidecar(files["sidecar"], {**written, **content})
        if before != about.state:
            said[0] += "; another scan, or an earlier state of it, was called so before"
        self.display.done("\n".join([f"{files['result']}  {said[0]}", *said[1:]]))

    def _post_processed(self, labels: np.ndarray) -> np.ndarray:
        values = [each.value for each in self.model.spec.classes if each.value]
        if self.config.largest != "none":
            labels = keep_largest(labels, values, self.config.largest == "class")
        return fill_holes(labels, values) if self.config.fill_holes else labels

    def _described(
        self, data: np.ndarray, about: _About, result: Result, place: Volume
    ) -> tuple[list[str], dict[str, Any]]:
        """What to say of a result, the first line and further ones, and what to keep of it."""
        spec, replaced = self.model.spec, about.replaced
        content: dict[str, Any] = {"replaced": replaced, "notes": list(result.notes)}
        further: list[str] = []
        if not spec.classes:
            first = f"values from {data.min():.4g} to {data.max():.4g}"
        else:
            volumes = volumes_ml(data, spec.names, place.voxel_ml)
            first = _volumes_said(volumes, spec.names)
            content["volumes_ml"] = {
                spec.names[value]: round(ml, 4) for value, ml in volumes.items() if value
            }
            content["highest_probability"] = {
                each.name: round(float(value), 6)
                for each, value in zip(spec.classes, result.highest, strict=True)
            }
            if not any(ml for value, ml in volumes.items() if value):
                names, expected = [each.name for each in spec.classes], spec.contract
                further = explanation(
                    result.highest, names, self.model.threshold, about.intensities, expected
                )
                content["empty"] = to_json(about.intensities, expected)
        if "probabilities" in result.maps:
            content["probabilities"] = [each.name for each in spec.classes]  # along the last axis
        first += f", {replaced} voxels replaced" * bool(replaced)
        return ["; ".join([first, *result.notes]), *(f"  {line}" for line in further)], content

    def _show_done(self, scan: Scan) -> None:
        """Adds a scan that was done before to the page."""
        try:
            with memory_errors(TO_PREDICT):
                self._show(scan, None)
        except InputError as error:
            self._fail(scan, error)

    def _show(self, scan: Scan, picture: Path | None, labels: np.ndarray | None = None) -> None:
        """Draws a scan and adds it to the page; its labels are read where they are not given."""
        image = self._image(scan)
        spec = self.model.spec
        if labels is None:
            load = load_label if spec.classes else load_image
            labels = load(results_of(scan, self.config)["result"]).data
        if picture is not None:
            draw_scan(picture, image, labels, spec.names)
        if self.page is not None:
            volumes = volumes_ml(labels, spec.names, image.voxel_ml) if spec.classes else {}
            self.page.add(scan.name, image, labels, spec.names, volumes)

    def _image(self, scan: Scan) -> Volume:
        """The first image of a scan on the grid of its result."""
        image = load_image(scan.image, self.config.nonfinite)
        if self.config.grid == "scan":
            return image
        contract = self.model.spec.contract
        how = contract.orientation, contract.spacing_mm, contract.interpolation, contract.grid
        grid = conform(image, *how)
        return replace(image, data=grid.data, affine=grid.affine)


def volumes_ml(labels: np.ndarray, names: Mapping[int, str], voxel_ml: float) -> dict[int, float]:
    """Label value → ml of all classes, of label values `[D, H, W]`."""
    counts = sum(np.bincount(plane.ravel(), minlength=max(names) + 1) for plane in labels)
    assert isinstance(counts, np.ndarray)
    return {value: float(counts[value]) * voxel_ml for value in names}


def _volumes_said(volumes: Mapping[int, float], names: Mapping[int, str]) -> str:
    found = {value: ml for value, ml in volumes.items() if value}
    if len(found) <= _NAMED:
        return ", ".join(f"{names[value]} {ml:.1f} ml" for value, ml in found.items())
    present = sum(ml > 0 for ml in found.values())
    return f"{sum(found.values()):.1f} ml in {present} of {len(found)} classes"


def _remove_old(sidecar: Path) -> None:
    """Removes the result that a sidecar is of: maps that are not made anew would be of another.

    Raises:
        OSError: it cannot be removed.
    """
    stem = sidecar.name.removesuffix(".json")
    files = read_sidecar(sidecar).get("files")
    sidecar.unlink(missing_ok=True)  # first, since it says that the rest is whole
    for end in (".nii.gz", ".png", *(f"_{name}.nii.gz" for name in get_args(MapName))):
        if isinstance(files, dict) and stem + end in files:  # or it is of a scan called so
            sidecar.with_name(stem + end).unlink(missing_ok=True)


def _remove_leftovers(files: Iterable[Path]) -> None:
    """Removes what a job that was killed has left of files that are to be written now.

    What other jobs write to the same folder at this time are other files, and stays.
    """
    names: dict[Path, set[str]] = {}
    for path in files:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        for path in folder.iterdir() if folder.is_dir() else ():
            found = _LEFT.fullmatch(path.name)
            if found and found[1] in wanted:
                with suppress(OSError):  # it is hidden, and does no harm
                    path.unlink()
