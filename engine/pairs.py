"""Which prediction belongs to which label: by a subjects table, or by file names. No JAX here."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from voxtune.engine.subjects import Subject, is_text
from voxtune.engine.volume import SUFFIXES, stem
from voxtune.models.errors import InputError

_WRITTEN = (".nii.gz", ".nii")  # what predictions end in
_SHOWN = 5  # names that a sentence lists
_MAPS = ("_probabilities", "_entropy", "_variance")  # what predict writes beside NAME, on request


@dataclass(frozen=True)
class Pair:
    """Two label maps to compare.

    Attributes:
        name: of the subject; by names, the path of the files without their ending.
        prediction: file of the predicted labels.
        label: file of the true ones.
    """

    name: str
    prediction: Path
    label: Path


def pairs_of_table(predictions_dir: Path, subjects: Sequence[Subject]) -> list[Pair]:
    """The prediction and the label of each subject, in their order.

    A prediction is `<subject>.nii.gz` or `<subject>.nii`, else it is called as the subject's image
    is, if no other subject's image, and no other subject, is called so. If there is none in the
    folder itself, it is the only one in its subfolders.

    Raises:
        InputError: one is missing or there are several, it is that of two subjects, or a subject
            has no label.
    """
    pairs = []
    for subject, prediction in find_predictions(predictions_dir, subjects):
        if subject.label is None:
            raise InputError(f"{subject.name} has no label to compare with: add it to the table")
        pairs.append(Pair(subject.name, prediction, subject.label))
    return pairs


def pairs_of_names(
    predictions_dir: Path, labels_dir: Path
) -> tuple[list[Pair], list[str], list[str]]:
    """Files of two folders, and their subfolders, that are called the same but for their ending.

    Where there are none, those that are alone in subfolders of the same path, as in BIDS
    sub-01/anat/sub-01_T1w.nii.gz and sub-01/anat/sub-01_dseg.nii.gz.

    Returns:
        The pairs in the order of their names; names that have a prediction alone; and names that
        have a label alone.

    Raises:
        InputError: a folder is none or both are one, a name is there twice, or none is in both.
    """
    _check_folder(predictions_dir)
    if predictions_dir.resolve() == labels_dir.resolve():
        raise InputError(f"{labels_dir} holds the predictions: give the folder of true labels")
    predictions, labels = _named(predictions_dir), _named(labels_dir)
    maps = [name for name in predictions if _is_map(name, predictions) and name not in labels]
    predictions = {name: file for name, file in predictions.items() if name not in maps}
    both = {name: name for name in sorted(predictions.keys() & labels.keys())}
    both = both or _by_subfolder(predictions, labels)
    if not both:
        raise InputError(
            f"{predictions_dir} and {labels_dir} have no files called the same ("
            f"{listed(sorted(predictions)) or 'no volume'} and "
            f"{listed(sorted(labels)) or 'no volume'}), nor subfolders called the same with a "
            "single file in each: call them alike, or give a subjects table"
        )
    pairs = [Pair(name, predictions[name], labels[label]) for name, label in both.items()]
    return pairs, sorted(predictions.keys() - both), sorted(labels.keys() - both.values())


def find_predictions(folder: Path, subjects: Sequence[Subject]) -> list[tuple[Subject, Path]]:
    """The prediction of each subject; see `pairs_of_table`.

    Raises:
        InputError: one is missing, or there are several; or one is that of two subjects.
    """
    _check_folder(folder)
    if not subjects:
        raise InputError(f"{folder} has nothing to be compared with: the list of subjects is empty")
    names = _names(subjects)
    # A scan or a label is no prediction, whoever's it is.
    given = (file for each in subjects for file in (*each.images.values(), each.label))
    data = {file.resolve() for file in given if file is not None}
    found = {each.name: _direct(folder, names[each.name], data) for each in subjects}
    if None in found.values():
        below = _below(folder, data)
        for name, file in found.items():
            found[name] = file or _single(folder, name, names[name], below)
    missing = [name for name, file in found.items() if file is None]
    if len(missing) == len(subjects):
        raise InputError(
            f"{folder} has no prediction of any of the {len(subjects)} subjects: "
            f"name them after the subject, such as {subjects[0].name}.nii.gz"
        )
    if missing:
        raise InputError(
            f"{folder} has no prediction of {listed(missing)} ({len(missing)} of "
            f"{len(subjects)} subjects): predict them too, or evaluate only the split you predicted"
        )
    whose: dict[Path, str] = {}
    for name, file in found.items():
        if file is None:
            continue
        other = whose.setdefault(file.resolve(), name)
        if other != name:
            raise InputError(
                f"{file} would be the prediction of {other} and of {name}: name predictions after "
                "the subjects"
            )
    return [(each, file) for each in subjects if (file := found[each.name]) is not None]


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the one that holds the predictions")


def _names(subjects: Sequence[Subject]) -> dict[str, list[str]]:
    """What a subject's prediction may be called: by its own name, else as its image is.

    An image's name counts where no other subject's image is called so (sub-01/t1.nii.gz and
    sub-02/t1.nii.gz are), and no other subject is.
    """
    images = {each.name: stem(each.image) for each in subjects if each.images}
    numbers = Counter(images.values())
    names = {each.name: [each.name] for each in subjects}
    for name, image in images.items():
        if numbers[image] == 1 and image not in names:
            names[name].append(image)
    return names


def _direct(folder: Path, names: Sequence[str], data: Collection[Path]) -> Path | None:
    """The first file in a folder itself that has one of the names."""
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in _WRITTEN]
    return next((c for c in candidates if c.is_file() and c.resolve() not in data), None)


def _below(folder: Path, data: Collection[Path]) -> dict[str, list[Path]]:
    """Name → files of its subfolders that are called so, in the order of their paths."""
    found: dict[str, list[Path]] = {}
    for file in _volumes(folder):
        if file.parent != folder and file.name.endswith(_WRITTEN) and file.resolve() not in data:
            found.setdefault(stem(file), []).append(file)
    return found


def _single(
    folder: Path, subject: str, names: Sequence[str], below: Mapping[str, list[Path]]
) -> Path | None:
    """The only file of the first of some names that any has."""
    files = next((below[name] for name in names if name in below), [])
    if len(files) > 1:
        shown = listed([str(file.relative_to(folder)) for file in files])
        raise InputError(
            f"{folder} has {len(files)} files that may be the prediction of {subject} ({shown}): "
            "keep one, or give the subfolder"
        )
    return files[0] if files else None


def _volumes(folder: Path) -> Iterator[Path]:
    """All volumes in a folder and its subfolders that are not hidden, in the order of their paths.

    Raises:
        InputError: a name has control characters, or is not UTF-8.
    """
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        # Of a pair of files, the header stands for both.
        half = file.name.lower().endswith((".img", ".img.gz"))
        if hidden or half or not file.name.lower().endswith(SUFFIXES) or not file.is_file():
            continue
        if not is_text(str(inside)):
            raise InputError(
                f"{folder} has a file called {str(inside)!a}: rename it, without control "
                "characters and in UTF-8"
            )
        yield file


def _named(folder: Path) -> dict[str, Path]:
    """Path in the folder, without ending → file, of all volumes that are not hidden."""
    found: dict[str, Path] = {}
    for file in _volumes(folder):
        name = file.relative_to(folder).with_name(stem(file)).as_posix()
        if name in found:
            raise InputError(f"{file} and {found[name].name} are called the same: keep one")
        found[name] = file
    return found


def _by_subfolder(predictions: Collection[str], labels: Collection[str]) -> dict[str, str]:
    """Prediction → label, of names that are alone in subfolders of the same path."""
    here, there = (_alone(names) for names in (predictions, labels))
    return {here[folder]: there[folder] for folder in sorted(here.keys() & there.keys())}


def _alone(names: Collection[str]) -> dict[str, str]:
    """Subfolder → the only name in it."""
    folders = {name: PurePosixPath(name).parent.as_posix() for name in names}
    numbers = Counter(folders.values())
    return {each: name for name, each in folders.items() if each != "." and numbers[each] == 1}


def _is_map(name: str, names: dict[str, Path]) -> bool:
    """Whether predict wrote it beside a prediction: it is one's name and a map's ending."""
    return any(name.endswith(each) and name.removesuffix(each) in names for each in _MAPS)
