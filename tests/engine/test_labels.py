"""What label values become: as tables say, checked value by value."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from voxtune.engine.labels import LabelMap, read_label_map
from voxtune.engine.volume import Volume
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)


def volume(*values: int) -> Volume:
    data = np.resize(np.array(values, np.int32), (4, 5, 6))
    return Volume(RNG.permuted(data), np.eye(4), Path("seg.nii"), nib.Nifti1Header())


def becomes(labels: LabelMap, *values: int) -> dict[int, int]:
    """What each value becomes, by a volume of them in which no voxel may differ."""
    given = volume(*values)
    found = labels(given)
    assert found.data.shape == given.data.shape
    pairs = set(zip(given.data.ravel().tolist(), found.data.ravel().tolist(), strict=True))
    assert len(pairs) == len(values)
    return dict(pairs)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


class TestVolumes:
    def test_values_stay_without_a_map(self) -> None:
        assert becomes(LabelMap(), 0, 3, 255) == {0: 0, 3: 3, 255: 255}
        assert LabelMap()(volume(0, 255)).data.dtype == np.uint8
        assert LabelMap()(volume(0, 65535)).data.dtype == np.uint16

    def test_the_mapping_comes_first_then_what_is_kept_then_one_of_all(self) -> None:
        mapping = {0: 5, 17: 1, 53: 1, 10: 2, -3: 300}
        values = (0, 17, 53, 10, -3)
        assert becomes(LabelMap(mapping), *values) == mapping
        kept = {0: 0, 17: 1, 53: 1, 10: 0, -3: 300}
        assert becomes(LabelMap(mapping, keep=(1, 300)), *values) == kept
        one = {0: 0, 17: 1, 53: 1, 10: 0, -3: 1}
        assert becomes(LabelMap(mapping, keep=(1, 300), binarise=True), *values) == one
        # Without a mapping, values are kept as they are, and any is one.
        assert becomes(LabelMap(keep=(2,)), 0, 1, 2, 70000) == {0: 0, 1: 0, 2: 2, 70000: 0}
        assert becomes(LabelMap(binarise=True), -1, 0, 70000) == {-1: 1, 0: 0, 70000: 1}

    def test_background_need_not_be_listed(self) -> None:
        assert becomes(LabelMap({17: 1}), 0, 17) == {0: 0, 17: 1}

    def test_unlisted_values_are_named_or_background(self) -> None:
        with pytest.raises(InputError) as caught:
            LabelMap({1: 1})(volume(0, 1, *range(-1, -13, -1)))
        numbers = ", ".join(map(str, range(-12, -2)))
        assert f"seg.nii has label values that the label map does not list ({numbers}, ...)" in str(
            caught.value
        )
        background = LabelMap({1: 1}, unlisted="background")
        assert becomes(background, 0, 1, 9, -4) == {0: 0, 1: 1, 9: 0, -4: 0}

    @pytest.mark.parametrize("value", [-1, 65536])
    def test_values_that_no_label_can_have(self, value: int) -> None:
        with pytest.raises(InputError, match=rf"seg\.nii .*\({value}\).*--label-map"):
            LabelMap()(volume(0, 1, value))


class TestTables:
    def test_csv(self, tmp_path: Path) -> None:
        """A BOM, comments, empty lines, blanks, quotes, with and without a name."""
        text = '\ufeff# mine\n\nOriginal, new ,name\n17,1,"hippocampus, left"\n 53 , 2 ,\n-1,0\n'
        labels = read_label_map(write(tmp_path, text))
        assert labels.mapping == {17: 1, 53: 2, -1: 0}
        assert labels.names == {1: "hippocampus, left"}
        assert read_label_map(write(tmp_path, "17,1\n53,1\n")).mapping == {17: 1, 53: 1}

    def test_csv_as_r_writes_it(self, tmp_path: Path) -> None:
        labels = read_label_map(
            write(tmp_path, '"original","new","name"\n17,1,"left, of ""it"""\n')
        )
        assert (labels.mapping, labels.names) == ({17: 1}, {1: 'left, of "it"'})

    def test_freesurfers_colour_table(self, tmp_path: Path) -> None:
        text = (
            "#$Id: FreeSurferColorLUT.txt $\n\n#No. Label Name:   R   G   B   A\n\n"
            "0   Unknown                                 0   0   0   0\n"
            "17  Left-Hippocampus                        220 216 20  0   1\n"
            "1035 ctx-lh-insula                          255 192 32  0\n"
        )
        labels = read_label_map(write(tmp_path, text))
        assert labels.mapping == {0: 0, 17: 17, 1035: 1035}
        assert labels.names == {0: "Unknown", 17: "Left-Hippocampus", 1035: "ctx-lh-insula"}

    def test_names_are_of_the_values_that_are_left(self, tmp_path: Path) -> None:
        path = write(tmp_path, "0,0,air\n17,1,left\n53,2,right\n")
        assert read_label_map(path, keep=(2,)).names == {0: "air", 2: "right"}
        assert read_label_map(path, binarise=True).names == {0: "air"}
        assert read_label_map(path, keep=(2,), binarise=True).names == {0: "air", 1: "right"}

    def test_no_table(self) -> None:
        assert read_label_map(None, keep=(3,), binarise=True) == LabelMap(None, {}, (3,), True)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "lists no label value"),
            ("original,new\n", "lists no label value"),
            ("1,2\n1,3\n", "line 2 lists the value 1, as line 1 does"),
            ("1_0,2\n", r"line 1 is not understood \('1_0,2'\)"),
            ("1,2.5\n", r"line 1 is not understood \('1,2.5'\)"),
            ("1,2\n3\n", "line 2 is not understood"),
            ("1,2,a,b\n", "line 1 is not understood"),
            ("original;new\n1;2\n", "line 1 is not understood"),
            ("1 left\n", "line 1 is not understood"),
            ("1 left red 0 0 0\n", "line 1 is not understood"),
            ("x" * 200_000 + ",1\n", "line 1 is not understood"),
            ("1,-2\n", "line 1 makes 1 -2: give new values between 0 and 65535"),
            ("1,65536\n", "between 0 and 65535"),
            ("70000 left 0 0 0 0\n", "between 0 and 65535"),
            ("1,2,a\n3,2,b\n", "line 2 calls the new value 2 'b', but it is 'a' above"),
            ("1,2,a\x1b[2J\n", "line 1 has a name with control characters"),
        ],
    )
    def test_refusals(self, tmp_path: Path, text: str, words: str) -> None:
        path = write(tmp_path, text)
        with pytest.raises(InputError, match=words) as caught:
            read_label_map(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 400 + len(str(path))

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "binary").write_bytes(bytes(range(256)))
        for path, words in ((tmp_path / "no", "No such file"), (tmp_path / "binary", "UTF-8")):
            with pytest.raises(InputError, match=words):
                read_label_map(path)

    @pytest.mark.parametrize("options", [{"keep": (3,)}, {"keep": (1, 3), "binarise": True}])
    def test_what_is_kept_must_be_there(self, tmp_path: Path, options: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="--keep 3 is none of"):
            read_label_map(write(tmp_path, "17,1\n"), **options)
