"""The scans of a job, and where the result of each goes. No JAX here."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxtune.engine.output import MARKER
from voxtune.engine.subjects import UNNAMED, read_subjects
from voxtune.engine.volume import SUFFIXES, files_of_volume, stem
from voxtune.models.errors import InputError


@dataclass(frozen=True)
class Scan:
    """One scan to predict.

    Attributes:
        name: of its results, without ending; subfolders before it, "sub-01/anat/sub-01_T1w".
        images: channel → file.
    """

    name: str
    images: Mapping[str, Path]

    @property
    def image(self) -> Path:
        """The first of its images."""
        return next(iter(self.images.values()))


def scans_of(paths: Sequence[Path], split: str | None) -> list[Scan]:
    """Those given, those in folders, or those of a subjects table.

    Folders are searched to their depths, though not through links to folders; what voxtune wrote
    itself, what is hidden, and the voxels of pairs, whose header is read, are no scans of a folder.

    Raises:
        InputError: the table is bad or not alone, a split was asked for without a table, there is
            no such file or folder, or no scan in it.
    """
    tables = [path for path in paths if path.suffix.lower() == ".csv" and not path.is_dir()]
    if tables and len(paths) > 1:
        raise InputError(
            f"{tables[0]} is a subjects table, which stands for all scans of a job; give it alone."
        )
    if tables:
        subjects = read_subjects(tables[0], need_label=False, split=split)
        return [Scan(each.name, each.images) for each in subjects]
    if split is not None:
        raise InputError("--split needs a subjects table; give its CSV file in place of scans.")
    scans = [scan for path in paths for scan in _given(path)]
    if not scans:
        raise InputError("There is no scan to predict; give at least one.")
    return scans


def _given(path: Path) -> list[Scan]:
    """The scan that a path is, or those that are in it."""
    if not path.is_dir():
        if not os.path.lexists(path):
            raise InputError(f"{path} does not exist; check the path.")
        if not path.name.lower().endswith(SUFFIXES):
            raise InputError(
                f"{path} is no scan ({', '.join(SUFFIXES)}) and no subjects table (.csv); convert "
                "DICOM with dcm2niix."
            )
        return [_scan(Path(stem(path)), path)]
    found = [_scan(each.relative_to(path).with_name(stem(each)), each) for each in _within(path)]
    if not found:
        raise InputError(
            f"{path} holds no scan ({', '.join(SUFFIXES)}), nor do its subfolders; what is hidden, "
            "or was written by voxtune, is not looked at."
        )
    return found


def _scan(name: Path, path: Path) -> Scan:
    return Scan(name.as_posix(), dict.fromkeys(UNNAMED, path))


def _within(folder: Path) -> Iterator[Path]:
    """Volumes in a folder and its subfolders, in the order of their names."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be listed ({error.strerror}); give it permission, or the "
            "scans themselves."
        ) from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        here = Path(place)
        folders[:] = sorted(
            name for name in folders if name[0] != "." and not (here / name / MARKER).exists()
        )
        for name in sorted(files):
            path = here / name
            if name[0] != "." and name.lower().endswith(SUFFIXES) and not _is_half(path):
                yield path


def _is_half(path: Path) -> bool:
    """Whether a file holds the voxels of a pair, whose header is beside it."""
    if not path.name.lower().removesuffix(".gz").endswith(".img"):
        return False
    return any(half.exists() for half in files_of_volume(path) if half.name != path.name)


def check_results(results: Mapping[str, Sequence[Path]], scans: Sequence[Scan]) -> None:
    """Makes sure that no file of a job replaces another, or a scan.

    Args:
        results: name of each scan, once for all scans of that name → the files written for it.
        scans: all scans of the job.

    Raises:
        InputError: two scans would have the same file, or one would replace a scan.
    """
    taken: dict[Path, Scan] = {}
    for scan in scans:
        for path in results[scan.name]:
            if path in taken:
                raise InputError(
                    f"{taken[path].image} and {scan.image} would both be written as {path}; "
                    "predict them into two folders, or list them in a subjects table."
                )
            taken[path] = scan
    places = {path.resolve(): path for path in taken}
    for scan in scans:
        for image in scan.images.values():
            if image.resolve() in places:
                raise InputError(
                    f"{image} would be replaced by the result {places[image.resolve()]}; choose "
                    "another folder."
                )
