"""Which scans a job is of, and what their results are called."""

from pathlib import Path

import pytest

from voxtune.engine.scans import Scan, check_results, scans_of
from voxtune.models.errors import InputError


def make(folder: Path, *names: str) -> Path:
    """Empty files, and the folders that they are in."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def names(*paths: Path) -> list[str]:
    return [scan.name for scan in scans_of(paths, None)]


class TestFiles:
    def test_results_are_called_as_the_files_are(self, tmp_path: Path) -> None:
        make(tmp_path, "a/one.nii.gz", "b/two.T1.nii", "three.MGZ")
        given = [tmp_path / each for each in ("a/one.nii.gz", "b/two.T1.nii", "three.MGZ")]
        assert names(*given) == ["one", "two.T1", "three"]
        assert scans_of(given, None)[0].image == given[0]

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"lost\.nii does not exist"):
            scans_of([tmp_path / "lost.nii"], None)

    def test_one_that_is_no_scan(self, tmp_path: Path) -> None:
        make(tmp_path, "notes.txt")
        with pytest.raises(InputError, match=r"notes\.txt is no scan"):
            scans_of([tmp_path / "notes.txt"], None)

    def test_none(self) -> None:
        with pytest.raises(InputError, match="no scan to predict"):
            scans_of([], None)


class TestFolders:
    def test_bids_names_are_kept(self, tmp_path: Path) -> None:
        make(
            tmp_path,
            "sub-02/anat/sub-02_T1w.nii.gz",
            "sub-01/anat/sub-01_T1w.nii.gz",
            "sub-01/anat/sub-01_T1w.json",
            "top.nii",
        )
        assert names(tmp_path) == ["top", "sub-01/anat/sub-01_T1w", "sub-02/anat/sub-02_T1w"]

    def test_what_is_hidden_or_ours_is_left_out(self, tmp_path: Path) -> None:
        make(
            *(tmp_path, "one.nii", ".two.nii", ".git/three.nii"),
            *("old/.voxtune", "old/four.nii", "old/deep/five.nii"),
        )
        assert names(tmp_path) == ["one"]

    def test_of_pairs_the_header_alone(self, tmp_path: Path) -> None:
        make(tmp_path, "a.hdr", "a.img", "b.hdr.gz", "b.img.gz", "c.img")
        found = [scan.image.name for scan in scans_of([tmp_path], None)]
        assert found == ["a.hdr", "b.hdr.gz", "c.img"]

    def test_a_link_that_leads_nowhere_is_a_scan_that_will_fail(self, tmp_path: Path) -> None:
        (tmp_path / "annexed.nii.gz").symlink_to(tmp_path / "elsewhere")
        assert names(tmp_path) == ["annexed"]

    def test_one_without_scans(self, tmp_path: Path) -> None:
        make(tmp_path, "model.json", "params/data")
        with pytest.raises(InputError, match="holds no scan"):
            scans_of([tmp_path], None)


class TestTables:
    def test_a_table_names_the_results(self, tmp_path: Path) -> None:
        make(tmp_path, "a.nii", "b.nii")
        table = tmp_path / "subjects.csv"
        table.write_text("subject,image,split\nsub-1,a.nii,train\nsub-2,b.nii,test\n")
        every = scans_of([table], None)
        assert every == [
            Scan("sub-1", {"image": tmp_path / "a.nii"}),
            Scan("sub-2", {"image": tmp_path / "b.nii"}),
        ]
        assert scans_of([table], "test") == every[1:]

    def test_it_stands_alone(self, tmp_path: Path) -> None:
        make(tmp_path, "a.nii", "subjects.csv")
        with pytest.raises(InputError, match="give it alone"):
            scans_of([tmp_path / "a.nii", tmp_path / "subjects.csv"], None)

    def test_an_empty_one(self, tmp_path: Path) -> None:
        make(tmp_path, "subjects.csv")
        with pytest.raises(InputError, match=r"subjects\.csv is empty"):
            scans_of([tmp_path / "subjects.csv"], None)

    def test_a_split_needs_one(self, tmp_path: Path) -> None:
        make(tmp_path, "a.nii")
        with pytest.raises(InputError, match="--split needs a subjects table"):
            scans_of([tmp_path / "a.nii"], "test")


class TestResults:
    def check(self, folder: Path, *scans: Scan) -> None:
        ends = (".nii.gz", "_entropy.nii.gz")
        check_results(
            {each.name: [folder / (each.name + end) for end in ends] for each in scans}, scans
        )

    def test_files_of_their_own(self, tmp_path: Path) -> None:
        self.check(tmp_path, Scan("a/x", {"image": Path("x")}), Scan("b/x", {"image": Path("y")}))

    def test_two_scans_of_one_name(self, tmp_path: Path) -> None:
        one, other = Scan("x", {"image": Path("a/x.nii")}), Scan("x", {"image": Path("b/x.nii")})
        with pytest.raises(InputError, match=r"a/x\.nii and b/x\.nii would both be written as"):
            self.check(tmp_path, one, other)

    def test_a_map_that_is_another_result(self, tmp_path: Path) -> None:
        one, other = Scan("x", {"image": Path("x")}), Scan("x_entropy", {"image": Path("y")})
        with pytest.raises(InputError, match=r"both be written as .*x_entropy\.nii\.gz"):
            self.check(tmp_path, other, one)

    def test_a_scan_in_the_place_of_a_result(self, tmp_path: Path) -> None:
        """A channel that is not the first, through another spelling of its folder."""
        image = tmp_path / "deep" / ".." / "t2.nii.gz"
        (tmp_path / "deep").mkdir()
        scan = Scan("t2", {"t1": tmp_path / "t1.nii", "t2": image})
        with pytest.raises(InputError, match=r"t2\.nii\.gz would be replaced by the result"):
            self.check(tmp_path, scan)
