"""What a run trains on: a table and the store made of it give the same, and who is left out."""

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from voxtune.engine.case import Affine, Case, quantised
from voxtune.engine.config import Finetune, Prepare
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec
from voxtune.engine.prepare import prepare
from voxtune.engine.subjects import Subject
from voxtune.engine.training_data import (
    expected_quantiles,
    read_training_data,
    split_subjects,
)
from voxtune.models.errors import InputError

QUIET = Console(quiet=True)
SPEC = ModelSpec(
    family="meshnet",
    arguments={"channels": 1, "outputs": 2, "filters": 2, "dilations": [1], "norm": None},
    output_activation="softmax",
    classes=(LabelClass(0, "background"), LabelClass(1, "head")),
    contract=Contract("LIA", (1.5, 1.0, 1.0), "zscore", (4, 4, 4)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of four subjects, one of them to test on, a label map for it, and its store."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = ["subject,image,label,split"]
    for number, split in enumerate(["train", "test", "train", "validation"]):
        shape = (9, 8, 7 + number)
        label = rng.choice([0, 0, 3, 12], shape).astype(np.uint8)
        for name, data in (("image", rng.normal(size=shape).astype(np.float32)), ("label", label)):
            nib.save(nib.Nifti1Image(data, np.diag([1, 1, 1.2, 1])), folder / f"{name}{number}.nii")
        rows.append(f"sub-{number},image{number}.nii,label{number}.nii,{split}")
    (folder / "subjects.csv").write_text("\n".join(rows))
    (folder / "map.csv").write_text("original,new,name\n3,1,pons\n12,2,lesion\n")
    made = Prepare(
        folder / "subjects.csv",
        folder / "store",
        orientation="LIA",
        spacing=(1.5, 1.0, 1.0),
        label_map=folder / "map.csv",
        workers=1,
    )
    prepare(made, QUIET)
    return folder


def options(folder: Path, data: str = "subjects.csv", **changes: Any) -> Finetune:
    return Finetune(folder / "model", str(folder / data), folder / "run", **changes)


def same(one: Case, other: Case) -> bool:
    assert one.image is not None
    assert other.image is not None
    everywhere = (slice(None),) * 3
    images = one.image[everywhere], other.image[everywhere]
    labels = one.label[everywhere], other.label[everywhere]
    return one.name == other.name and np.array_equal(*images) and np.array_equal(*labels)


def test_a_table_gives_what_its_store_gives(folder: Path) -> None:
    table = read_training_data(options(folder, label_map=folder / "map.csv"), SPEC, QUIET)
    store = read_training_data(options(folder, "store"), SPEC, QUIET)
    assert [case.name for case in store.train] == ["sub-0", "sub-2"]
    assert [case.name for case in store.validation] == ["sub-3"]
    folds = [options(folder, data, fold="2/3") for data in ("subjects.csv", "store")]
    in_fold = [read_training_data(each, SPEC, QUIET) for each in folds]
    assert [[case.name for case in each.train] for each in in_fold] == [["sub-0", "sub-3"]] * 2
    for one, other in zip(table.train, store.train, strict=True):
        assert same(one, other)
        assert one.counts == other.counts
    assert table.names == store.names == {1: "pons", 2: "lesion"}
    for data in (table, store):
        names = {split: [each.name for each in rows] for split, rows in data.subjects.items()}
        assert names == {"train": ["sub-0", "sub-2"], "validation": ["sub-3"]}


def test_label_maps_are_read_as_they_are_where_images_are_drawn(folder: Path) -> None:
    drawn = options(folder, label_map=folder / "map.csv", synthetic=True)
    data = read_training_data(drawn, SPEC, QUIET)
    assert set(data.train[0].counts) == {0, 3, 12}
    assert set(read_training_data(options(folder), SPEC, QUIET).train[0].counts) == {0, 3, 12}


@pytest.mark.parametrize(
    ("spec", "changes", "words"),
    [
        ({}, {"binarise": True}, "is a store, whose labels were settled"),
        ({"orientation": "RAS"}, {}, "orientation LIA, not RAS"),
        ({"intensity": "minmax"}, {}, "intensity zscore, not minmax"),
        ({}, {"loss": "mean_squared_error"}, "target"),
    ],
)
def test_a_store_that_does_not_suit_is_a_sentence(
    folder: Path, spec: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    given = dataclasses.replace(SPEC, contract=dataclasses.replace(SPEC.contract, **spec))
    with pytest.raises(InputError, match=words):
        read_training_data(options(folder, "store", **changes), given, QUIET)


def test_a_store_of_label_maps_alone_needs_images_to_be_drawn(folder: Path) -> None:
    rows = [row.split(",") for row in (folder / "subjects.csv").read_text().splitlines()]
    table = "\n".join(",".join((name, label, split)) for name, _, label, split in rows)
    (folder / "maps.csv").write_text(table)
    prepare(
        Prepare(
            folder / "maps.csv",
            folder / "maps",
            orientation="LIA",
            spacing=(1.5, 1.0, 1.0),
            workers=1,
        ),
        QUIET,
    )
    with pytest.raises(InputError, match="holds label maps alone; pass --synthetic"):
        read_training_data(options(folder, "maps"), SPEC, QUIET)
    data = read_training_data(options(folder, "maps", synthetic=True), SPEC, QUIET)
    assert all(case.image is None for case in data.train)
    assert data.channels == ("image",)


def test_as_many_images_are_drawn_as_the_network_has_channels(folder: Path) -> None:
    two = dataclasses.replace(SPEC, arguments={**SPEC.arguments, "channels": 2})
    with pytest.raises(InputError, match="2 channels, but there is 1"):
        read_training_data(options(folder, synthetic=True), two, QUIET)
    # Without images there is no number to disagree with.
    data = read_training_data(options(folder, "maps.csv", synthetic=True), two, QUIET)
    assert data.channels == ("drawn1", "drawn2")
    assert all(case.image is None for case in (*data.train, *data.validation))


class TestQuantiles:
    def test_they_are_means_over_training_scans(self, folder: Path) -> None:
        data = read_training_data(options(folder, "store"), SPEC, QUIET)
        found = expected_quantiles(data.train)
        each = [case.image[:, :, :][..., 0] for case in data.train if case.image is not None]
        wanted = np.mean([np.quantile(image, [0.01, 0.25, 0.5, 0.75, 0.99]) for image in each], 0)
        np.testing.assert_allclose(found, wanted, atol=1e-6)

    def test_large_scans_are_sampled_and_of_many_some_are_read(self, folder: Path) -> None:
        case = read_training_data(options(folder), SPEC, QUIET).train[0]
        image = np.random.default_rng(0).normal(size=(90, 50, 60, 2)).astype(np.float32)
        image[..., 1] += 100  # of the first channel alone
        large = quantised(list(np.moveaxis(image, -1, 0)), [Affine(), Affine()])
        reads: list[int] = []

        class Seen:
            shape, dtype = large.stored.shape, large.stored.dtype

            def __getitem__(self, where: Any) -> np.ndarray:
                part = large.stored[where]
                reads.append(part[..., 0].size)
                return part

        seen = dataclasses.replace(large, stored=Seen())
        found = expected_quantiles([dataclasses.replace(case, image=seen)] * 100)
        np.testing.assert_allclose(found, [-2.326, -0.674, 0, 0.674, 2.326], atol=0.06)
        assert len(reads) <= 16
        assert max(reads) <= 40**3

    def test_drawn_images_have_none(self, folder: Path) -> None:
        data = read_training_data(options(folder, synthetic=True), SPEC, QUIET)
        assert expected_quantiles(data.train) is None


def subjects(*splits: str | None) -> list[Subject]:
    return [
        Subject(f"sub-{number}", {"image": Path("image")}, Path("label"), split)
        for number, split in enumerate(splits)
    ]


@pytest.mark.parametrize("data", ["subjects.csv", "store"])
def test_scans_of_people_in_the_split_test_are_said_to_be_in_no_fold(
    folder: Path, tmp_path: Path, data: str
) -> None:
    table = (folder / "subjects.csv").read_text().replace("sub-0", "sub-1_ses-2")
    table = re.sub(r"(image|label)(?=\d)", lambda found: f"{folder}/{found[0]}", table)
    (tmp_path / "subjects.csv").write_text(table)
    if data == "store":
        prepare(
            Prepare(
                tmp_path / "subjects.csv",
                tmp_path / data,
                orientation="LIA",
                spacing=(1.5, 1.0, 1.0),
                workers=1,
            ),
            QUIET,
        )
    text = io.StringIO()
    config = options(tmp_path, data, fold="1/2")
    found = read_training_data(config, SPEC, Console(file=text, width=200))
    assert len(found.train) == len(found.validation) == 1
    assert "leaves out 1 scan of people who have others in the split test" in text.getvalue()


class TestSplits:
    def test_a_table_with_splits_is_followed(self) -> None:
        given = subjects("test", "train", "validation", "train", "test")
        train_split, validation = split_subjects(given, options(Path()))
        assert [each.name for each in train_split] == ["sub-1", "sub-3"]
        assert [each.name for each in validation] == ["sub-2"]

    def test_without_splits_a_share_is_held_out_by_the_seed(self) -> None:
        given = subjects(*[None] * 10)
        found = [
            split_subjects(given, options(Path(), seed=seed, hold_out=0.3)) for seed in range(5)
        ]
        for train_split, validation in found:
            assert (len(train_split), len(validation)) == (7, 3)
            assert {each.name for each in (*train_split, *validation)} == {e.name for e in given}
        assert found[0] == split_subjects(given, options(Path(), hold_out=0.3))
        assert len({tuple(each.name for each in held) for _, held in found}) > 1

    def test_fewer_subjects_are_the_first_of_the_same_split(self) -> None:
        given = subjects(*[None] * 10)
        every, held = split_subjects(given, options(Path()))
        few, held_too = split_subjects(given, options(Path(), train_subjects=3))
        assert few == every[:3]
        assert held_too == held

    def test_a_seed_takes_other_subjects_of_which_fewer_are_some(self) -> None:
        given = subjects(*["train"] * 8, "validation", "test")
        taken = [
            [
                [e.name for e in split_subjects(given, options(Path(), **own, **size))[0]]
                for size in ({"train_subjects": 3}, {"train_subjects": 6}, {})
            ]
            for own in (
                {},
                {"subject_seed": 0},
                {"subject_seed": 1, "seed": 5},
                {"subject_seed": 1},
            )
        ]
        for few, more, every in taken:
            assert few == every[:3]
            assert more == every[:6]
            assert sorted(every) == [each.name for each in given[:8]]
        orders = {tuple(every) for _, _, every in taken}
        assert len(orders) == 3
        assert taken[2] == taken[3]  # whatever else is drawn

    def test_a_seed_of_subjects_leaves_folds_as_they_are(self) -> None:
        given = subjects("test", *["train"] * 6)
        plain = split_subjects(given, options(Path(), fold="1/2"))
        mixed = split_subjects(given, options(Path(), fold="1/2", subject_seed=3))
        assert mixed[1] == plain[1]
        assert mixed[0] != plain[0]
        assert sorted(e.name for e in mixed[0]) == sorted(e.name for e in plain[0])

    def test_folds_leave_out_the_split_test_alone(self) -> None:
        given = subjects("test", "train", "validation", "train", "validation")
        found = [split_subjects(given, options(Path(), fold=f"{i}/2")) for i in (1, 2)]
        names = {each.name for each in given[1:]}
        for trained, held in found:
            assert {each.name for each in (*trained, *held)} == names
            assert len(trained) == len(held) == 2
        assert found[0] == found[1][::-1]
        few, held = split_subjects(given, options(Path(), fold="1/2", train_subjects=1))
        assert (few, held) == (found[0][0][:1], found[0][1])

    @pytest.mark.parametrize("splits", [("test", "validation"), ("test",)])
    def test_no_subject_to_train_on(self, splits: tuple[str, ...]) -> None:
        with pytest.raises(InputError, match="leaves no subject to train on"):
            split_subjects(subjects(*splits), options(Path()))

    def test_all_held_out(self) -> None:
        with pytest.raises(InputError, match="leaves no subject to train on"):
            split_subjects(subjects(None, None), options(Path(), hold_out=1.0))
