"""Which cases of a study are drawn, and with what."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from voxtune.engine import study_cases
from voxtune.engine.labels import LabelMap
from voxtune.engine.outcomes import Outcome
from voxtune.engine.picture import PictureRow
from voxtune.engine.plots import MAX_BYTES
from voxtune.engine.study_cases import draw_cases
from voxtune.engine.subjects import Subject
from voxtune.models.errors import InputError

NAN = math.nan


def outcome(
    arm: str, dice: Mapping[str, float], size: int = 4, seed: int = 0, factor: float = 1.0
) -> Outcome:
    return Outcome(arm, size, seed, factor, dice, {}, [], 1.0)


def write(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(data, np.eye(4)).to_filename(path)
    return path


def cube(value: int, size: int) -> np.ndarray:
    data = np.zeros((12, 12, 12), np.uint8)
    data[2 : 2 + size, 2 : 2 + size, 2 : 2 + size] = value
    return data


@dataclass(frozen=True)
class Made:
    """A study's folder: of each network and each subject a prediction; true labels are 7."""

    out: Path
    subjects: list[Subject]

    def rows(
        self, monkeypatch: pytest.MonkeyPatch, outcomes: list[Outcome], *maps: LabelMap
    ) -> list[PictureRow]:
        """What is drawn."""
        drawn: list[PictureRow] = []
        monkeypatch.setattr(study_cases, "draw_contours", lambda rows, *_: drawn.extend(rows))
        draw_cases(outcomes, self.out, self.subjects, self.out / "cases.png", *maps)
        return drawn


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("cases")
    image = write(folder / "scan.nii.gz", np.random.default_rng(0).random((12, 12, 12)))
    label = write(folder / "label.nii.gz", cube(7, 6))
    subjects = [Subject(f"s{n}", {"": image}, label, "test") for n in range(3)]
    networks = ("a_n4_seed0", "b_n4_seed0_x3", "b_n8_seed0", "a_n8_seed0", "a_n4_seed1")
    for place, network in enumerate(networks):
        for each in subjects:
            write(folder / "predictions" / network / f"{each.name}.nii.gz", cube(1, 2 + place))
    return Made(folder, subjects)


def test_the_first_arms_worst_and_median_are_shown_of_both(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [
        outcome("a", {"s0": 0.9, "s1": 0.2, "s2": 0.5}),
        outcome("b", {"s0": 0.1, "s1": 0.6, "s2": NAN}, factor=3.0),
        outcome("b", {"s0": 0.0}, size=8),
        outcome("a", {"s0": 0.0}, size=8),
        outcome("c", {"s0": 0.0}),
    ]
    rows = made.rows(monkeypatch, outcomes)
    assert [title for title, *_ in rows] == [
        "worst: s1\na\nseed 0: Dice 0.200",
        "worst: s1\nb\nseed 0: Dice 0.600",
        "median: s2\na\nseed 0: Dice 0.500",
        "median: s2\nb\nseed 0: no Dice",
    ]
    predicted = [prediction for *_, prediction in rows]
    assert [int(each.data.sum()) for each in predicted if each] == [8, 27, 8, 27]


def test_subjects_are_chosen_by_the_mean_over_seeds(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest seed, whatever the order, is drawn."""
    outcomes = [
        outcome("a", {"s0": 0.1, "s1": 0.6, "s2": 0.9}, seed=1),
        outcome("a", {"s0": 0.7, "s1": 0.4, "s2": 0.3}),
    ]
    assert [title for title, *_ in made.rows(monkeypatch, outcomes)] == [
        "worst: s0\na\nseed 0: Dice 0.700",
        "median: s1\na\nseed 0: Dice 0.400",
    ]


def test_labels_are_those_that_were_scored(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [outcome("a", {"s0": 0.5})]
    ((_, _, truth, _),) = made.rows(monkeypatch, outcomes, LabelMap({7: 1}))
    assert truth is not None
    assert np.unique(truth.data).tolist() == [0, 1]
    ((_, _, truth, prediction),) = made.rows(monkeypatch, outcomes, LabelMap(keep=(7,)))
    assert truth is not None
    assert prediction is not None
    assert (truth.data.max(), prediction.data.max()) == (7, 0)


@pytest.mark.parametrize(
    ("dice", "titles"),
    [
        ({"s0": NAN, "s1": NAN}, ["undefined: s0\na\nseed 0: no Dice"]),
        ({"s0": NAN, "s1": 0.4}, ["worst: s1\na\nseed 0: Dice 0.400"]),
    ],
)
def test_few_cases_or_none_with_a_dice(
    made: Made, monkeypatch: pytest.MonkeyPatch, dice: dict[str, float], titles: list[str]
) -> None:
    assert [title for title, *_ in made.rows(monkeypatch, [outcome("a", dice)])] == titles


def test_arms_that_have_no_size_in_common(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next arm is shown, or, if there is none, the first alone."""
    outcomes = [outcome("a", {"s0": 0.5}), outcome("a", {"s0": 0.7}, size=8)]
    alone = [outcomes[0], outcome("b", {"s0": 0.6}, size=8)]
    assert [title for title, *_ in made.rows(monkeypatch, alone)] == [
        "worst: s0\na\nseed 0: Dice 0.500"
    ]
    next_one = [*outcomes, outcome("c", {"s0": 0.6}, size=16), outcome("b", {"s0": 0.6}, size=8)]
    assert [title for title, *_ in made.rows(monkeypatch, next_one)] == [
        "worst: s0\na\nseed 0: Dice 0.700",
        "worst: s0\nb\nseed 0: Dice 0.600",
    ]


def test_what_is_missing_is_said(made: Made) -> None:
    with pytest.raises(InputError, match="s9 has scores, but no row"):
        draw_cases([outcome("a", {"s9": 0.5})], made.out, made.subjects, made.out / "cases.png")
    with pytest.raises(InputError, match="c_n4_seed0 is not a folder"):
        draw_cases([outcome("c", {"s0": 0.5})], made.out, made.subjects, made.out / "cases.png")


def test_titles_do_not_meet(made: Made) -> None:
    """The longest lines that there can be end before the next panel's title begins."""
    long = "sub-" * 15
    subjects = [Subject(long, made.subjects[0].images, made.subjects[0].label, "test")]
    write(made.out / "predictions" / f"{long}_n4_seed0" / f"{long}.nii.gz", cube(1, 3))
    path = made.out / "cases.png"
    draw_cases([outcome(long, {long: 0.5})], made.out, subjects, path)
    assert path.stat().st_size < MAX_BYTES
    bright = imread(path)[:, :, :3].min(axis=2) > 0.5
    title = bright[: int(0.49 * 150)]  # the rows above the panels
    gap = title[:, int(0.31 * title.shape[1]) : int(0.345 * title.shape[1])]
    assert bright[: title.shape[0]].any()
    assert not gap.any()


def test_as_svg_too(made: Made) -> None:
    path = made.out / "cases.svg"
    draw_cases([outcome("a", {"s0": 0.5})], made.out, made.subjects, path)
    page = ElementTree.parse(path)
    text = "".join("".join(each.itertext()) for each in page.iter() if each.tag[-4:] == "text")
    assert "seed 0: Dice 0.500" in text
