"""The subjects table: what is read, and every way to be refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from voxtune.engine.subjects import Subject, read_subjects, write_subjects
from voxtune.models.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with four (empty) scans and label maps."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for name in "abcd":
            (tmp_path / kind / f"{name}.nii.gz").touch()
    return tmp_path


def write(folder: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = folder / "subjects.csv"
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def row(name: str, *split: str, image: str | None = None) -> str:
    file = image or f"images/{name}.nii.gz"
    return ",".join((name, file, f"labels/{name}.nii.gz", *split))


def refused(path: Path, *reasons: str, need_label: bool = True) -> None:
    with pytest.raises(InputError) as caught:
        read_subjects(path, need_label)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for reason in reasons:
        assert reason in message


def subject(folder: Path, name: str, split: str | None, **images: str) -> Subject:
    """A subject with these files of the folder `images`, or the one of its own name."""
    files = {
        channel: folder / f"images/{file}.nii.gz"
        for channel, file in (images or {"image": name}).items()
    }
    return Subject(name, files, folder / f"labels/{name}.nii.gz", split)


def test_rows_become_subjects(folder: Path) -> None:
    path = write(folder, "subject,image,label,split", row("a", "train"), row("b", "test"))
    found = read_subjects(path)
    assert found == (subject(folder, "a", "train"), subject(folder, "b", "test"))
    assert (found[0].image, found[0].channels) == (folder / "images/a.nii.gz", ("image",))


def test_split_is_optional_and_columns_come_in_any_order(folder: Path) -> None:
    path = write(folder, "age,label,subject,image", "9,labels/a.nii.gz,a,images/b.nii.gz")
    assert read_subjects(path) == (subject(folder, "a", None, image="b"),)


def test_what_excel_does(folder: Path) -> None:
    """A byte order mark, CRLF, blank and empty rows, trailing cells left out, spaces, quotes."""
    path = write(
        folder,
        "subject,image,label,split,note\r",
        "a, images/a.nii.gz ,labels/a.nii.gz,train\r",
        '"b","images/b.nii.gz","labels/b.nii.gz",test,"so, so"\r',
        ",,,,\r",
        "\r",
        "",
        encoding="utf-8-sig",
    )
    assert [subject.name for subject in read_subjects(path)] == ["a", "b"]


def test_absolute_paths(folder: Path) -> None:
    image = folder / "images" / "a.nii.gz"
    path = write(folder, "subject,image", f"a,{image}")
    assert read_subjects(path, need_label=False)[0].image == image


def test_labels_are_not_looked_at_when_not_needed(folder: Path) -> None:
    path = write(folder, "subject,image,label", "a,images/a.nii.gz,", "b,images/b.nii.gz,lost.nii")
    assert [subject.label for subject in read_subjects(path, need_label=False)] == [None, None]
    refused(path, "label", "row 2")


def test_the_hippocampus_table(shared_data: Path) -> None:
    """100 train, 40 validation, 60 test, says the data's README."""
    subjects = read_subjects(shared_data / "mri" / "hippocampus" / "splits.csv")
    splits = [subject.split for subject in subjects]
    assert [splits.count(name) for name in ("train", "validation", "test")] == [100, 40, 60]


def test_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "no.csv", "does not exist")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "cannot be read")


def test_not_text(folder: Path) -> None:
    path = folder / "subjects.csv"
    path.write_bytes(b"\x1f\x8b\x08\x00\xff\xfe" * 9)
    refused(path, "not a CSV")


def test_not_a_csv(folder: Path) -> None:
    refused(write(folder, "subject,image,label", 'a,"images/a.nii.gz'), "not a CSV")


@pytest.mark.parametrize("lines", [("",), ("", "", ""), (",,",)])
def test_nothing_in_it(folder: Path, lines: tuple[str, ...]) -> None:
    refused(write(folder, *lines), "is empty")


def test_no_rows(folder: Path) -> None:
    refused(write(folder, "subject,image,label", ""), "no subjects")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("subject,image", "no column label, only: subject, image;"),
        ("name,scan", "no column subject and no column image and no column label"),
        ("subject;image;label", "only: subject;image;label; its first line"),
    ],
)
def test_missing_columns(folder: Path, header: str, reason: str) -> None:
    refused(write(folder, header, "a,images/a.nii.gz"), reason)


def test_a_column_twice(folder: Path) -> None:
    refused(write(folder, "subject,image,label,image", row("a")), "two columns called image")


class TestChannels:
    HEADER = "image_t2,subject,image_t1,label,split"
    ROWS = (
        "images/a.nii.gz,a,images/b.nii.gz,labels/a.nii.gz,train",
        "images/c.nii.gz,c,images/d.nii.gz,labels/c.nii.gz,test",
    )

    def test_they_come_in_the_order_of_the_columns(self, folder: Path) -> None:
        found = read_subjects(write(folder, self.HEADER, *self.ROWS))
        assert found == (
            subject(folder, "a", "train", t2="a", t1="b"),
            subject(folder, "c", "test", t2="c", t1="d"),
        )
        assert [each.channels for each in found] == [("t2", "t1")] * 2
        assert found[0].image == folder / "images/a.nii.gz"

    def test_a_subject_can_do_with_some_in_another_order(self, folder: Path) -> None:
        found, _ = read_subjects(write(folder, self.HEADER, *self.ROWS))
        assert found.taking(("t1", "t2")).channels == ("t1", "t2")
        assert found.taking(("t1",)) == subject(folder, "a", "train", t1="b")

    @pytest.mark.parametrize("header", [HEADER, "subject,image,label,split"])
    def test_what_is_written_is_read_again(self, folder: Path, header: str) -> None:
        rows = self.ROWS if header == self.HEADER else (row("a", "train"), row("c", "test"))
        found = read_subjects(write(folder, header, *rows))
        (folder / "run").mkdir()
        again = folder / "run" / "subjects.csv"
        write_subjects(again, {"train": found[:1], "test": found[1:]})
        resolved = [
            [each.images[name].resolve() for name in each.channels] for each in read_subjects(again)
        ]
        assert resolved == [list(each.images.values()) for each in found]
        assert [each.channels for each in read_subjects(again)] == [each.channels for each in found]

    @pytest.mark.parametrize("behind", ["table", "image"])
    def test_what_is_written_behind_a_link_is_read_again(self, folder: Path, behind: str) -> None:
        """A link to a folder two levels deeper, of which ".." is not where the link lies."""
        deep = folder / "some" / "where"
        deep.mkdir(parents=True)
        (folder / "link").symlink_to(deep)
        image = folder / "link" / ".." / ".." / "images" / "a.nii.gz"
        given = [subject(folder, "a", None)]
        if behind == "image":
            given = [replace(given[0], images={"image": image})]
        path = (folder / "link" if behind == "table" else folder) / "subjects.csv"
        write_subjects(path, {None: given})
        assert read_subjects(path)[0].image.samefile(folder / "images" / "a.nii.gz")

    @pytest.mark.parametrize(
        ("header", "reason"),
        [
            ("subject,image,image_t2,label", "a column image and also image_t2"),
            ("subject,image_t1,image_t1,label", "two columns called image_t1"),
            ("subject,image_t1,image_,label", "a column called image_:"),
        ],
    )
    def test_columns_that_make_no_sense(self, folder: Path, header: str, reason: str) -> None:
        refused(write(folder, header, "a,images/a.nii.gz,images/b.nii.gz,labels/a.nii.gz"), reason)

    def test_each_of_them_is_looked_at(self, folder: Path) -> None:
        for cell, reason in (("", "nothing under image_t1 in row 2"), ("no", "the image_t1 of a")):
            line = f"images/a.nii.gz,a,{cell},labels/a.nii.gz,train"
            refused(write(folder, self.HEADER, line), reason)

    def test_a_second_channel_in_two_splits(self, folder: Path) -> None:
        leaking = "images/b.nii.gz,c,images/d.nii.gz,labels/c.nii.gz,test"
        path = write(folder, self.HEADER, self.ROWS[0], leaking)
        refused(path, "b.nii.gz in two splits", "as a in train and as c in test")


def test_too_many_cells(folder: Path) -> None:
    refused(write(folder, "subject,image,label", row("a", "train")), "4 cells in row 2")


@pytest.mark.parametrize(
    ("line", "column"),
    [
        (",images/b.nii.gz,labels/b.nii.gz,test", "subject"),
        ("b,,labels/b.nii.gz,test", "image"),
        ("b,images/b.nii.gz, ,test", "label"),
        ("b,images/b.nii.gz,labels/b.nii.gz,", "split"),
        ("b", "image"),
    ],
)
def test_an_empty_cell(folder: Path, line: str, column: str) -> None:
    path = write(folder, "subject,image,label,split", row("a", "train"), line)
    refused(path, f"nothing under {column} in row 3")


def test_a_subject_twice(folder: Path) -> None:
    refused(write(folder, "subject,image,label", row("a"), row("b"), row("a")), "subject a twice")


def test_a_subject_in_two_splits(folder: Path) -> None:
    path = write(folder, "subject,image,label,split", row("a", "train"), row("a", "test"))
    refused(path, "subject a in two splits, train and test")


@pytest.mark.parametrize("image", ["images/a.nii.gz", "images/../images/a.nii.gz", "link.nii.gz"])
def test_an_image_in_two_splits(folder: Path, image: str) -> None:
    (folder / "link.nii.gz").symlink_to(folder / "images" / "a.nii.gz")
    lines = row("a", "train"), row("b", "validation", image=image)
    path = write(folder, "subject,image,label,split", *lines)
    refused(path, "as a in train and as b in validation")


def test_an_image_twice_in_one_split(folder: Path) -> None:
    """Two raters of one scan, say: nothing leaks."""
    lines = row("a", "train"), row("b", "train", image="images/a.nii.gz")
    assert len(read_subjects(write(folder, "subject,image,label,split", *lines))) == 2


@pytest.mark.parametrize("split", ["Train", "val", "tets"])
def test_an_unknown_split(folder: Path, split: str) -> None:
    path = write(folder, "subject,image,label,split", row("a", split))
    refused(path, repr(split), "row 2", "train, validation, test")


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("file", ["images/z.nii.gz", "images", "x" * 5000])
def test_a_file_that_does_not_exist(folder: Path, kind: str, file: str) -> None:
    cells = {"image": "images/a.nii.gz", "label": "labels/a.nii.gz", kind: file}
    path = write(folder, "subject,image,label", f"a,{cells['image']},{cells['label']}")
    refused(path, str(folder / file), f"the {kind} of a in row 2")


@pytest.mark.parametrize(
    "name",
    ["site/a", "..\\a", "..", ".", ".a.partial", "a\0b", "a\x1b[2Jb", "a\x9bb", "a:b", 201 * "a"],
)
def test_names_that_cannot_be_files(folder: Path, name: str) -> None:
    path = write(folder, "subject,image,label", f"{name},images/a.nii.gz,labels/a.nii.gz")
    refused(path, "cannot be a file name", "row 2")
