"""Which files are compared: by table in every way to be refused, and by name."""

import os
from pathlib import Path

import pytest

from voxtune.engine.pairs import Pair, pairs_of_names, pairs_of_table
from voxtune.engine.subjects import Subject
from voxtune.models.errors import InputError


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def subject(folder: Path, name: str, image: str | None = None) -> Subject:
    truth = folder / "labels" / f"{name}.nii.gz"
    touch(truth)
    return Subject(name, {"image": folder / (image or f"images/{name}_t1.nii.gz")}, truth, None)


class TestTable:
    def test_the_images_own_name_is_found(self, tmp_path: Path) -> None:
        subjects = (subject(tmp_path, "a"), subject(tmp_path, "b", "x/b.v2.mgz"))
        out = tmp_path / "out"
        touch(out / "a_t1.nii", out / "b.v2.nii.gz")
        assert pairs_of_table(out, subjects) == [
            Pair("a", out / "a_t1.nii", tmp_path / "labels" / "a.nii.gz"),
            Pair("b", out / "b.v2.nii.gz", tmp_path / "labels" / "b.nii.gz"),
        ]

    def test_the_subjects_name_comes_first(self, tmp_path: Path) -> None:
        touch(tmp_path / "out" / "a.nii", tmp_path / "out" / "a_t1.nii.gz")
        (pair,) = pairs_of_table(tmp_path / "out", (subject(tmp_path, "a"),))
        assert pair.prediction.name == "a.nii"

    def test_no_image_is_needed(self, tmp_path: Path) -> None:
        touch(tmp_path / "out" / "a.nii")
        named = (Subject("a", {}, tmp_path / "a_label.nii", None),)
        assert pairs_of_table(tmp_path / "out", named)[0].name == "a"

    def test_image_names_that_two_subjects_share_are_not_used(self, tmp_path: Path) -> None:
        subjects = tuple(subject(tmp_path, name, f"{name}/t1.nii.gz") for name in "ab")
        touch(tmp_path / "out" / "t1.nii.gz")
        with pytest.raises(InputError, match="no prediction of any of the 2 subjects"):
            pairs_of_table(tmp_path / "out", subjects)

    def test_a_label_is_no_prediction_of_itself(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"a\.nii\.gz"):
            pairs_of_table(tmp_path / "labels", (subject(tmp_path, "a"),))

    def test_some_missing(self, tmp_path: Path) -> None:
        subjects = tuple(subject(tmp_path, f"s{n}") for n in range(8))
        touch(tmp_path / "out" / "s3.nii.gz")
        with pytest.raises(InputError) as caught:
            pairs_of_table(tmp_path / "out", subjects)
        message = str(caught.value)
        assert "s0, s1, s2, s4, s5 and 2 more (7 of 8 subjects)" in message
        assert str(tmp_path / "out") in message

    def test_another_subjects_name_is_not_an_images(self, tmp_path: Path) -> None:
        subjects = (subject(tmp_path, "a", "x.nii.gz"), subject(tmp_path, "b", "img/a.nii.gz"))
        touch(tmp_path / "out" / "a.nii.gz")
        with pytest.raises(InputError, match="no prediction of b"):
            pairs_of_table(tmp_path / "out", subjects)

    def test_one_file_is_not_that_of_two_subjects(self, tmp_path: Path) -> None:
        touch(tmp_path / "out" / "a.nii")
        (tmp_path / "out" / "b.nii").symlink_to("a.nii")
        with pytest.raises(InputError, match="would be the prediction of a and of b: name"):
            pairs_of_table(tmp_path / "out", [subject(tmp_path, name) for name in "ab"])

    def test_a_single_file_in_subfolders_is_found(self, tmp_path: Path) -> None:
        names = ("sub-1", "sub-2")
        bids = [subject(tmp_path, name, f"data/{name}/anat/{name}_T1w.nii.gz") for name in names]
        out = tmp_path / "out"
        files = [out / name / "anat" / f"{name}_T1w.nii.gz" for name in names]
        touch(*files, out / "sub-1" / "anat" / "sub-1_T1w_entropy.nii.gz")
        assert [pair.prediction for pair in pairs_of_table(out, bids)] == files
        touch(out / "old" / "sub-2_T1w.nii.gz")
        with pytest.raises(InputError, match=r"2 files that may be the prediction of sub-2 \(old/"):
            pairs_of_table(out, bids)

    def test_a_scan_is_no_prediction_whoevers_it_is(self, tmp_path: Path) -> None:
        subjects = (subject(tmp_path, "a", "img/x.nii.gz"), subject(tmp_path, "b", "img/a.nii.gz"))
        touch(*(each.image for each in subjects))
        with pytest.raises(InputError, match="no prediction of any"):
            pairs_of_table(tmp_path / "img", subjects)

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not a folder"):
            pairs_of_table(tmp_path / "no", (subject(tmp_path, "a"),))

    def test_no_subjects(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="empty"):
            pairs_of_table(tmp_path, ())

    def test_no_label(self, tmp_path: Path) -> None:
        touch(tmp_path / "out" / "a.nii")
        with pytest.raises(InputError, match="a has no label"):
            pairs_of_table(tmp_path / "out", (Subject("a", {"image": Path("a.mgz")}, None, None),))


class TestNames:
    def test_what_has_no_counterpart_is_told(self, tmp_path: Path) -> None:
        out, labels = tmp_path / "out", tmp_path / "labels"
        touch(out / "b.nii", out / "a.nii.gz", out / "c.nii.gz", out / "classes.csv")
        touch(labels / "a.mgz", labels / "b.nii.gz", labels / "d.nii", labels / ".e.nii")
        pairs, predictions, true = pairs_of_names(out, labels)
        assert pairs == [
            Pair("a", out / "a.nii.gz", labels / "a.mgz"),
            Pair("b", out / "b.nii", labels / "b.nii.gz"),
        ]
        assert (predictions, true) == (["c"], ["d"])

    def test_subfolders_are_part_of_the_name(self, tmp_path: Path) -> None:
        out, labels = tmp_path / "out", tmp_path / "labels"
        touch(out / "sub-01" / "t1.nii.gz", out / "sub-02" / "t1.nii.gz")
        touch(labels / "sub-02" / "t1.nii.gz", labels / "sub-01" / "t2.nii.gz")
        touch(labels / "sub-02" / "t2.nii.gz")
        pairs, predictions, true = pairs_of_names(out, labels)
        assert [pair.name for pair in pairs] == ["sub-02/t1"]
        assert (predictions, true) == (["sub-01/t1"], ["sub-01/t2", "sub-02/t2"])

    def test_of_no_common_name_files_alone_in_their_subfolder_are_pairs(
        self, tmp_path: Path
    ) -> None:
        out, labels = tmp_path / "out", tmp_path / "labels"
        for name in ("sub-1", "sub-2"):
            touch(out / name / "anat" / f"{name}_T1w.nii.gz", labels / name / "anat" / "dseg.nii")
        touch(labels / "sub-2" / "anat" / "mask.nii", out / "x.nii", labels / "y.nii")
        pairs, predictions, true = pairs_of_names(out, labels)
        assert [(pair.name, pair.label.name) for pair in pairs] == [
            ("sub-1/anat/sub-1_T1w", "dseg.nii")
        ]
        assert predictions == ["sub-2/anat/sub-2_T1w", "x"]
        assert true == ["sub-2/anat/dseg", "sub-2/anat/mask", "y"]

    @pytest.mark.parametrize("name", [b"a\x1b[2Jb.nii", b"a\xff.nii"])
    def test_names_that_cannot_be_shown_are_refused(self, tmp_path: Path, name: bytes) -> None:
        out, labels = tmp_path / "out", tmp_path / "labels"
        touch(out / os.fsdecode(name), labels / "a.nii")
        with pytest.raises(InputError, match="rename it, without control") as caught:
            pairs_of_names(out, labels)
        assert str(caught.value).isascii()
        assert "\x1b" not in str(caught.value)

    def test_maps_are_no_predictions(self, tmp_path: Path) -> None:
        out, labels = tmp_path / "out", tmp_path / "labels"
        maps = [out / f"a_{name}.nii.gz" for name in ("probabilities", "entropy", "variance")]
        touch(out / "a.nii.gz", *maps, out / "b_entropy.nii.gz", labels / "a.nii")
        pairs, predictions, _ = pairs_of_names(out, labels)
        assert [pair.name for pair in pairs] == ["a"]
        assert predictions == ["b_entropy"]

    def test_a_pair_of_files_is_one(self, tmp_path: Path) -> None:
        touch(tmp_path / "out" / "a.nii", tmp_path / "labels" / "a.hdr", tmp_path / "labels/a.img")
        assert pairs_of_names(tmp_path / "out", tmp_path / "labels")[0][0].label.name == "a.hdr"

    def test_refused(self, tmp_path: Path) -> None:
        out, labels = tmp_path / "out", tmp_path / "labels"
        touch(out / "a.nii", labels / "b.nii")
        with pytest.raises(InputError, match=r"no files called the same \(a and b\)"):
            pairs_of_names(out, labels)
        with pytest.raises(InputError, match="holds the predictions"):
            pairs_of_names(out, tmp_path / "labels" / ".." / "out")
        with pytest.raises(InputError, match="not a folder"):
            pairs_of_names(tmp_path / "no", labels)
        touch(out / "a.nii.gz")
        with pytest.raises(InputError, match="called the same: keep one"):
            pairs_of_names(out, labels)
