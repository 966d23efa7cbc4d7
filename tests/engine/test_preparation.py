"""What is done to a subject: the same as prediction does, and every problem of its files."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxtune.engine.conform import conform
from voxtune.engine.contract import Contract
from voxtune.engine.labels import LabelMap
from voxtune.engine.options import Labelling
from voxtune.engine.preparation import Preparation, prepare_case, problems_of, sources_of
from voxtune.engine.preprocessing import load_channels, network_image
from voxtune.engine.subjects import Subject
from voxtune.engine.volume import load_label
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)
SHAPE = (12, 13, 14)
CONTRACT = Contract("RAS", (1.0, 1.0, 1.0), "zscore", (8, 8, 8))
WHOLE = (slice(None),) * 3


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """Two channels of whole numbers, many of them zero, and a label with three values."""
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    images = {}
    for name in ("t1", "flair"):
        data = np.maximum(RNG.integers(-900, 2000, SHAPE), 0).astype(np.int16)
        images[name] = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(data, affine), images[name])
    label = RNG.choice(np.array([0, 1, 500], np.uint16), SHAPE)
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "label.nii.gz")
    return Subject("a", images, tmp_path / "label.nii.gz", "train")


def preparation(target: bool = False, **contract: object) -> Preparation:
    return Preparation.of(replace(CONTRACT, **contract), ("t1", "flair"), Labelling(), target)


class TestCase:
    @pytest.mark.parametrize(
        "intensity", ["zscore", "zscore_nonzero", "minmax", "quantile", "percentile", "none"]
    )
    @pytest.mark.parametrize("spacing", [1.0, 1.3])
    def test_the_image_is_what_prediction_gives_the_network(
        self, subject: Subject, intensity: str, spacing: float
    ) -> None:
        how = {"intensity": intensity, "spacing_mm": (spacing,) * 3}
        case = prepare_case(subject, preparation(**how))
        wanted, grid = network_image(load_channels(subject.images), replace(CONTRACT, **how))
        assert case.image is not None
        step = np.ptp(wanted) / 65534
        np.testing.assert_allclose(case.image[WHOLE], wanted, atol=0.51 * step + 1e-6, rtol=1e-6)
        np.testing.assert_array_equal(case.affine, grid.affine)
        if intensity == "zscore_nonzero":
            np.testing.assert_array_equal(case.image[WHOLE][wanted == 0], 0)

    def test_whole_numbers_that_are_not_resampled_lose_nothing(self, subject: Subject) -> None:
        case = prepare_case(subject, preparation())
        assert case.image is not None
        np.testing.assert_array_equal(
            np.ptp(case.image.stored[...], axis=(0, 1, 2)),
            [np.ptp(each.data) for each in load_channels(subject.images)],
        )
        again = prepare_case(subject, preparation(intensity="none"))
        assert again.image is not None
        given = np.stack([each.data for each in load_channels(subject.images)], axis=-1)
        np.testing.assert_array_equal(again.image[WHOLE], given[::-1])

    def test_the_label_is_mapped_then_conformed(self, subject: Subject) -> None:
        mapped = replace(
            preparation(spacing_mm=(0.7, 0.7, 0.7), grid=(24, 24, 24)),
            labels=LabelMap({0: 0, 1: 1, 500: 7}),
            label_interpolation="linear",
        )
        case = prepare_case(subject, mapped)
        assert subject.label is not None
        label = load_label(subject.label)
        label = replace(label, data=np.where(label.data == 500, 7, label.data).astype(np.uint8))
        wanted = conform(label, "RAS", (0.7, 0.7, 0.7), "label_linear", (24, 24, 24))
        np.testing.assert_array_equal(case.label[...], wanted.data)
        assert case.shape == (24, 24, 24)
        assert case.counts == {value: int((wanted.data == value).sum()) for value in (0, 1, 7)}
        assert (case.scan_shape, case.scan_spacing_mm) == (SHAPE, (1.0, 1.0, 1.0))

    def test_a_target_is_scaled_as_an_image(self, subject: Subject) -> None:
        pair = Subject("a", {"t1": subject.images["t1"]}, subject.images["flair"], None)
        how = replace(preparation(target=True), channels=("t1",))
        case = prepare_case(pair, how)
        wanted, _ = network_image(load_channels({"flair": subject.images["flair"]}), CONTRACT)
        np.testing.assert_allclose(case.label[WHOLE], wanted, atol=1e-6)
        assert (case.counts, case.boxes, case.positions) == ({}, {}, {})

    def test_label_maps_alone(self, subject: Subject) -> None:
        case = prepare_case(replace(subject, images={}), replace(preparation(), channels=()))
        assert case.image is None
        assert case.counts == prepare_case(subject, preparation()).counts

    def test_voxels_that_are_replaced_are_counted(self, subject: Subject) -> None:
        data = RNG.normal(size=SHAPE).astype(np.float32)
        data[0, 0, :3] = np.nan
        nib.save(nib.Nifti1Image(data, np.diag([-1.0, 1, 1, 1])), subject.images["t1"])
        with pytest.raises(InputError, match="NaN"):
            prepare_case(subject, preparation())
        assert prepare_case(subject, replace(preparation(), nonfinite=0.0)).replaced == 3


class TestProblems:
    def test_a_sound_subject_has_none(self, subject: Subject) -> None:
        assert problems_of(subject, preparation()) == []

    def test_all_of_them_are_found(self, subject: Subject) -> None:
        shifted = np.diag([-1.0, 1.0, 1.0, 1.0])
        shifted[0, 3] = 5
        data = RNG.normal(size=SHAPE).astype(np.float32)
        nib.save(nib.Nifti1Image(data, shifted), subject.images["flair"])
        nib.save(nib.Nifti1Image(data[:6], shifted), subject.images["t1"])
        assert subject.label is not None
        content = bytearray(subject.images["flair"].read_bytes())
        subject.images["t2"] = subject.images["t1"].with_name("t2.nii.gz")  # type: ignore[index]
        content[-5] ^= 1  # its checksum
        subject.images["t2"].write_bytes(content)
        how = replace(preparation(), labels=LabelMap({1: 1}))
        found = [(each.file, each.sentence) for each in problems_of(subject, how)]
        images = subject.images
        expected = [
            (images["flair"], "has shape"),
            (images["t2"], "cannot be read"),
            (subject.label, "has shape"),
            (subject.label, "does not list (500)"),
        ]
        assert [file for file, _ in found] == [file for file, _ in expected]
        for (_, sentence), (file, reason) in zip(found, expected, strict=True):
            assert sentence.startswith(str(file))
            assert reason in sentence


class TestPreparation:
    FULL = Preparation(
        "LIA",
        (1.0, 0.9, 3.0),
        (256, 256, 256),
        "cubic",
        "window",
        (-100.0, 240.5),
        ("t1", "flair"),
        LabelMap({1: 0, 300: 2}, {2: "a tumour"}, (2,), False, "background"),
        "linear",
        False,
        0.0,
    )

    @pytest.mark.parametrize("given", [FULL, preparation()])
    def test_json_and_back(self, given: Preparation) -> None:
        document = json.loads(json.dumps(given.to_json()))
        assert Preparation.from_json(document) == given
        assert given.differences(Preparation.from_json(document)) == []

    @pytest.mark.parametrize(
        "change",
        [
            {"orientation": "RAR"},
            {"orientation": ["R", "A", "S"]},
            {"spacing_mm": [1, 1]},
            {"spacing_mm": [1, 1, -1]},
            {"grid": [1.5, 8, 8]},
            {"intensity": "zscores"},
            {"window": None},
            {"channels": ["t1", "t1"]},
            {"label_interpolation": "cubic"},
            {"target": 1},
            {"nonfinite": float("nan")},
            {"labels": {}},
            {"labels": None},
            {"further": 1},
        ],
    )
    def test_what_makes_no_sense(self, change: dict[str, object]) -> None:
        document = {**self.FULL.to_json(), **change}
        with pytest.raises((InputError, ValueError, KeyError, TypeError, AttributeError)):
            Preparation.from_json(document)

    def test_differences_are_words(self) -> None:
        other = replace(self.FULL, spacing_mm=None, channels=("t1",), labels=LabelMap())
        assert self.FULL.differences(other) == [
            "spacing 1 x 0.9 x 3, not none",
            "channels t1, flair, not t1",
            "other label values",
        ]

    def test_the_order_of_what_is_kept_means_nothing(self) -> None:
        first, second = (
            Preparation.of(CONTRACT, ("t1",), Labelling(keep=keep)) for keep in ((4, 1), (1, 4, 1))
        )
        assert first == second

    def test_a_target_has_no_label_values(self) -> None:
        with pytest.raises(InputError, match="leave out --label-map"):
            Preparation.of(CONTRACT, ("t1",), Labelling(binarise=True), target=True)
        with pytest.raises(InputError, match="add a column image"):
            Preparation.of(CONTRACT, (), Labelling(), target=True)


def test_sources_are_told_by_their_content(subject: Subject) -> None:
    files = [*subject.images.values(), subject.label]
    assert sources_of(subject) == [
        {"file": each.name, "sha256": hashlib.sha256(each.read_bytes()).hexdigest()}
        for each in files
        if each
    ]


@pytest.mark.parametrize("half", [".hdr", ".img"])
def test_both_halves_of_a_pair_are_sources(tmp_path: Path, half: str) -> None:
    data = RNG.integers(0, 9, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Pair(data, np.eye(4)), tmp_path / "pair.img")
    pair = Subject("a", {"image": tmp_path / f"pair{half}"}, None, None)
    before = sources_of(pair)
    assert sorted(each["file"] for each in before) == ["pair.hdr", "pair.img"]
    nib.save(nib.Nifti1Pair(data[::-1], np.eye(4)), tmp_path / "pair.img")
    changed = [each["file"] for each in sources_of(pair) if each not in before]
    assert changed == ["pair.img"]


class TestBefore:
    """What is known without resampling."""

    @pytest.mark.parametrize("target", [False, True])
    def test_scalings(self, subject: Subject, target: bool) -> None:
        point = np.zeros(SHAPE, np.float32)
        point[5:7, 6:8, 6:7] = [[[3], [5]], [[7], [9]]]
        name, kept = ("flair", "t1") if target else ("t1", "flair")
        path = subject.images[name]
        nib.save(nib.Nifti1Image(point, np.diag([-1.0, 1, 1, 1])), path)
        if target:
            subject = replace(subject, images={kept: subject.images[kept]}, label=path)
        how = preparation(target, intensity="percentile")
        (problem,) = problems_of(subject, how)
        assert problem.file == path
        assert "cannot be scaled by percentile" in problem.sentence
        with pytest.raises(InputError, match="cannot be scaled by percentile"):
            prepare_case(subject, how)
        # Of the middle alone, so that what is cut off says nothing.
        middle = preparation(target, intensity="percentile", grid=(6, 6, 6))
        assert problems_of(subject, middle) == []
        prepare_case(subject, middle)

    def test_sizes(self, subject: Subject) -> None:
        for spacing, words in (((0.0002, 1.0, 1.0), "55001"), ((1e-4,) * 3, "too many")):
            how = preparation(spacing_mm=spacing)
            (problem,) = problems_of(subject, how)
            assert problem.file == subject.images["t1"]
            assert words in problem.sentence
            with pytest.raises(InputError, match=words):
                prepare_case(subject, how)


def test_an_axis_that_positions_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "long.nii"
    nib.save(nib.Nifti2Image(np.ones((40_000, 1, 1), np.uint8), np.eye(4)), path)
    with pytest.raises(InputError, match="along one axis"):
        prepare_case(Subject("a", {}, path, None), replace(preparation(), channels=()))
