"""`voxtune prepare`: the same store however it is made, and nothing half-made."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from voxtune.engine import prepare as module
from voxtune.engine.config import Prepare
from voxtune.engine.contract import Contract
from voxtune.engine.options import Labelling
from voxtune.engine.prepare import prepare, prepare_in_memory
from voxtune.engine.store import Head, read_store, start_store
from voxtune.engine.subjects import read_subjects
from voxtune.models.errors import InputError

Tree = Callable[[Path], dict[str, bytes | None]]

SUBJECTS = 6
SHAPE = (20, 21, 22)
WHOLE = (slice(None),) * 3


def write_scans(folder: Path, count: int = SUBJECTS) -> Path:
    """A table of subjects, every second one at 1.5 mm."""
    rng = np.random.default_rng(0)
    lines = ["subject,image,label,split"]
    for index in range(count):
        affine = np.diag([1.5 if index % 2 else 1.0] * 3 + [1.0])
        for kind, data in (
            ("image", rng.integers(0, 900, SHAPE).astype(np.int16)),
            ("label", rng.choice(np.array([0, 1, 4], np.uint8), SHAPE)),
        ):
            nib.save(nib.Nifti1Image(data, affine), folder / f"{index}_{kind}.nii.gz")
        split = "train" if index else "test"
        lines.append(f"s{index},{index}_image.nii.gz,{index}_label.nii.gz,{split}")
    table = folder / "subjects.csv"
    table.write_text("\n".join(lines))
    return table


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, not to be altered, as its scans."""
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def undisturbed(scans: Path) -> Path:
    """A store made in one go by one process."""
    return make(scans, scans.parent / "undisturbed")


@pytest.fixture
def table(scans: Path, tmp_path: Path) -> Path:
    """A table to be altered, as its scans."""
    shutil.copytree(scans.parent, tmp_path / "scans", ignore=shutil.ignore_patterns("undist*"))
    return tmp_path / "scans" / "subjects.csv"


def make(table: Path, store: Path, **options: object) -> Path:
    prepare(Prepare(table, store, **{"workers": 1, **options}), Console(quiet=True))
    return store


def refused(table: Path, store: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        make(table, store, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def count_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the name of each subject that is prepared."""
    made = []

    def counted(subject: object, *arguments: object) -> object:
        made.append(subject.name)  # type: ignore[attr-defined]
        return real(subject, *arguments)

    real = module._make
    monkeypatch.setattr(module, "_make", counted)
    return made


class TestStore:
    def test_it_holds_what_is_prepared_in_memory(self, scans: Path, undisturbed: Path) -> None:
        store = read_store(undisturbed)
        contract = Contract("RAS", (1.0, 1.0, 1.0), "zscore", (8, 8, 8))
        how = module.Preparation.of(contract, ("image",), Labelling())
        assert store.preparation == how
        cases = prepare_in_memory(read_subjects(scans), how, Console(quiet=True))
        assert [case.name for case in store.cases] == [f"s{i}" for i in range(SUBJECTS)]
        for stored, case in zip(store.cases, cases, strict=True):
            assert (stored.split, stored.counts) == (case.split, case.counts)
            assert stored.image is not None
            assert case.image is not None
            np.testing.assert_array_equal(stored.image[WHOLE], case.image[WHOLE])
            np.testing.assert_array_equal(stored.label[...], case.label[...])
        assert store.cases[1].shape == (30, 31, 33)

    def test_its_table_leads_to_the_scans(self, scans: Path, undisturbed: Path) -> None:
        found = {each.name: each for each in read_subjects(undisturbed / "subjects.csv")}
        for each in read_subjects(scans):
            assert found[each.name].image.samefile(each.image)
            assert found[each.name].split == each.split

    def test_two_workers_make_the_same_bytes(
        self, scans: Path, undisturbed: Path, tree: Tree
    ) -> None:
        assert tree(make(scans, scans.parent / "workers", workers=2)) == tree(undisturbed)

    def test_shards_make_the_same_bytes(self, scans: Path, undisturbed: Path, tree: Tree) -> None:
        store = scans.parent / "shards"
        for shard in ("3/4", "1/4", "4/4"):
            make(scans, store, shard=shard)
            with pytest.raises(InputError, match="is not finished"):
                read_store(store)
        make(scans, store, shard="2/4")
        assert tree(store) == tree(undisturbed)

    def test_zarr_holds_the_same(self, scans: Path, undisturbed: Path, tmp_path: Path) -> None:
        pairs = zip(
            read_store(make(scans, tmp_path / "zarr", format="zarr")).cases,
            read_store(undisturbed).cases,
            strict=True,
        )
        for zarr, npy in pairs:
            assert zarr.image is not None
            assert npy.image is not None
            np.testing.assert_array_equal(zarr.image[WHOLE], npy.image[WHOLE])
            np.testing.assert_array_equal(zarr.label[...], npy.label[...])

    def test_label_maps_alone(self, scans: Path, tmp_path: Path) -> None:
        table = scans.with_name("labels.csv")
        table.write_text("subject,label\na,0_label.nii.gz\nb,1_label.nii.gz\n")
        store = read_store(make(table, tmp_path / "store"))
        assert [(case.image, case.split) for case in store.cases] == [(None, None)] * 2
        assert [each.channels for each in store.subjects] == [(), ()]

    def test_options(self, scans: Path, tmp_path: Path) -> None:
        options = {"orientation": "LIA", "spacing": "own", "grid": (24, 24, 24)}
        labels = {"keep": (4,), "binarise": True}
        window = {"intensity": "window", "window": (0.0, 450.0)}
        store = read_store(make(scans, tmp_path / "store", **options, **labels, **window))
        assert {case.shape for case in store.cases} == {(24, 24, 24)}
        assert store.cases[1].spacing_mm == (1.5, 1.5, 1.5)
        assert set(store.cases[0].counts) == {0, 1}
        assert store.cases[0].image is not None
        image = store.cases[0].image[WHOLE]
        np.testing.assert_allclose([image.min(), image.max()], [0, 1], atol=1e-6)

    def test_a_models_contract(self, scans: Path, models: Path, tmp_path: Path) -> None:
        store = read_store(make(scans, tmp_path / "store", model=models / "unet"))
        contract = Contract("RAS", (1.0, 1.0, 1.0), "zscore", (8, 8, 8))
        store.check(contract, ("image",))
        message = refused(scans, tmp_path / "b", model=models / "unet", spacing="own")
        assert "leave out --spacing" in message


class TestRunningAgain:
    def test_finished_subjects_are_not_made_again(
        self, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree
    ) -> None:
        store = make(table, tmp_path / "store")
        before = tree(store)
        made = count_made(monkeypatch)
        make(table, store)
        assert (made, tree(store)) == ([], before)
        shutil.rmtree(store / "subjects" / "s2")
        cut = store / "subjects" / "s4" / "image.npy"
        cut.write_bytes(cut.read_bytes()[:-500])
        (store / "subjects" / ".s2.partial").mkdir()
        (store / ".77.store.json").touch()
        strays = [store / "subjects" / name for name in (".DS_Store", "s9")]
        for stray in strays:
            stray.touch()
        make(table, store)
        for stray in strays:
            stray.unlink()
        assert (made, tree(store)) == (["s2", "s4"], before)

    def test_subjects_come_with_the_table_but_do_not_go(
        self, table: Path, tmp_path: Path, tree: Tree
    ) -> None:
        lines = table.read_text().splitlines()
        table.write_text("\n".join(lines[:3]))
        store = make(table, tmp_path / "store")
        table.write_text("\n".join(lines[:4]))
        make(table, store)
        assert [case.name for case in read_store(store).cases] == ["s0", "s1", "s2"]
        before = tree(store)
        for rows, number in ((lines[2:4], "1 subjects"), (lines[5:], "3 subjects")):
            table.write_text("\n".join([lines[0], *rows]))
            assert f"holds {number} that {table} does not list (s0" in refused(table, store)
            assert tree(store) == before
        make(table, store, overwrite=True)
        names = [case.name for case in read_store(store).cases]
        assert names == sorted(each.name for each in (store / "subjects").iterdir())
        assert names == ["s4", "s5"]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"spacing": (2.0, 2.0, 2.0)}, "spacing 1 x 1 x 1, not 2 x 2 x 2"),
            ({"format": "zarr"}, "format npy, not zarr"),
            ({"binarise": True}, "other label values"),
        ],
    )
    def test_another_preparation(
        self, scans: Path, undisturbed: Path, options: dict, words: str, tree: Tree
    ) -> None:
        before = tree(undisturbed)
        message = refused(scans, undisturbed, **options)
        assert words in message
        assert "--overwrite" in message
        assert tree(undisturbed) == before

    def test_other_files(self, table: Path, tmp_path: Path) -> None:
        store = make(table, tmp_path / "store")
        shutil.copy(table.with_name("0_image.nii.gz"), table.with_name("2_image.nii.gz"))
        assert "other files than those of" in (message := refused(table, store))
        assert "1 subjects (s2)" in message
        make(table, store, overwrite=True)
        first, _, third, *_ = read_store(store).cases
        assert first.image is not None
        assert third.image is not None
        np.testing.assert_array_equal(first.image[WHOLE], third.image[WHOLE])

    def test_other_files_of_another_shard(self, table: Path, tmp_path: Path) -> None:
        store = tmp_path / "store"
        for shard in ("1/2", "2/2"):
            make(table, store, shard=shard)
        for index in (0, 1):
            shutil.copy(table.with_name("2_image.nii.gz"), table.with_name(f"{index}_image.nii.gz"))
        shutil.copy(table.with_name("2_label.nii.gz"), table.with_name("1_label.nii.gz"))
        shutil.rmtree(store / "subjects" / "s0")
        assert "1 subjects (s1)" in refused(table, store, shard="1/2")
        with pytest.raises(InputError, match="is not finished"):
            read_store(store)
        shutil.rmtree(store / "subjects" / "s1")
        make(table, store, shard="2/2")
        first, second, third, *_ = [case.image for case in read_store(store).cases]
        for each in (first, second):
            assert each is not None
            assert third is not None
            np.testing.assert_array_equal(each[WHOLE], third[WHOLE])

    def test_a_shard_without_subjects(self, scans: Path, tmp_path: Path) -> None:
        store = make(scans, tmp_path / "store", shard="7/8")
        assert [each.name for each in (store / "subjects").iterdir()] == []
        with pytest.raises(InputError, match="is not finished"):
            read_store(store)

    def test_overwrite_keeps_what_it_is_made_of(
        self, scans: Path, tmp_path: Path, tree: Tree
    ) -> None:
        store = make(scans, tmp_path / "store", shard="7/8")
        given = store / "map.csv"
        given.write_text("original,new\n1,1\n4,2\n")
        before = tree(store)
        assert f"{given} would be removed" in refused(scans, store, label_map=given, overwrite=True)
        assert tree(store) == before

    def test_overwrite_is_not_for_shards(self, scans: Path, undisturbed: Path) -> None:
        assert "remove" in refused(scans, undisturbed, overwrite=True, shard="1/2")


class TestProblems:
    def test_all_of_them_are_shown(self, table: Path, tmp_path: Path, tree: Tree) -> None:
        lines = table.read_text().splitlines()
        lines[1] = lines[1].replace(",test", ",tests")
        lines[2] = lines[2].replace("1_label", "lost")
        table.write_text("\n".join([*lines, "s5,5_image.nii.gz,5_label.nii.gz,train"]))
        bad = np.full(SHAPE, np.nan, np.float32)
        nib.save(nib.Nifti1Image(bad, np.eye(4)), table.with_name("2_image.nii.gz"))
        broken = table.with_name("2_label.nii.gz")
        broken.write_bytes(broken.read_bytes()[:-9])
        shutil.copy(table.with_name("3_label.nii.gz"), table.with_name("4_label.nii.gz"))
        before = tree(tmp_path)
        console = Console(record=True, width=200, markup=False)
        with pytest.raises(InputError, match="6 problems in 5 of 6 subjects") as caught:
            prepare(Prepare(table, tmp_path / "store", workers=1), console)
        assert "\n" not in str(caught.value)
        shown = console.export_text()
        for words in ("'tests'", "lost.nii.gz", "twice", "NaN", "cannot be read", "affine"):
            assert words in re.sub(r"\s+", " ", shown)
        assert tree(tmp_path) == before
        how = module.Preparation.of(
            Contract("RAS", None, "zscore", (1, 1, 1)), ("image",), Labelling()
        )
        subjects, _ = module.find_subjects(table)
        with pytest.raises(InputError, match="3 problems in 2 of 4 subjects"):
            prepare_in_memory(subjects, how, Console(quiet=True))

    def test_one_is_a_sentence(self, table: Path, tmp_path: Path) -> None:
        table.with_name("3_label.nii.gz").unlink()
        console = Console(record=True)
        with pytest.raises(InputError, match=r"3_label\.nii\.gz is not a file"):
            prepare(Prepare(table, tmp_path / "store", workers=1), console)
        assert "Problems" not in console.export_text()

    def test_what_cannot_be_scaled(self, table: Path, tmp_path: Path) -> None:
        """Found before anything is written."""
        point = np.zeros(SHAPE, np.float32)
        point[3, 4, 5] = 7
        nib.save(nib.Nifti1Image(point, np.eye(4)), table.with_name("4_image.nii.gz"))
        message = refused(table, tmp_path / "store", intensity="quantile")
        assert "cannot be scaled by quantile" in message
        assert "stay" not in message
        assert not (tmp_path / "store").exists()

    def test_what_shows_only_as_scans_are_conformed(self, table: Path, tmp_path: Path) -> None:
        for index in (2, 4):
            path = table.with_name(f"{index}_image.nii.gz")
            data = np.asanyarray(nib.load(path).dataobj).copy()
            data[8:12, 8:12, 8:12] = 5
            nib.save(nib.Nifti1Image(data, np.eye(4)), path)
        console = Console(record=True, width=300, markup=False)
        with pytest.raises(InputError, match=r"2 problems in 2 of 6.*; the 4 subjects that"):
            prepare(Prepare(table, tmp_path / "store", workers=1, grid=(2, 2, 2)), console)
        assert str(table.with_name("4_image.nii.gz")) in console.export_text()
        assert not list((tmp_path / "store" / "subjects").glob(".*"))

    @pytest.mark.parametrize(
        "options", [{"nonfinite": float("nan")}, {"grid": (0, 0, 0)}, {"grid": (40_000, 9, 9)}]
    )
    def test_options_that_make_no_sense_are_told_once(
        self, scans: Path, tmp_path: Path, options: dict
    ) -> None:
        console = Console(record=True)
        with pytest.raises(InputError, match=r"^--(nonfinite nan|grid )"):
            prepare(Prepare(scans, tmp_path / "store", workers=1, **options), console)
        assert console.export_text() == ""

    @pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"])
    def test_shards_that_are_none(self, scans: Path, tmp_path: Path, shard: str) -> None:
        assert f"--shard {shard}" in refused(scans, tmp_path / "store", shard=shard)

    def test_places_that_cannot_be_written(self, scans: Path, tmp_path: Path, models: Path) -> None:
        (tmp_path / "file").write_text("mine")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "mine").touch()
        for place in ("file", "folder", "file/store"):
            assert place in refused(scans, tmp_path / place)
            assert place in refused(scans, tmp_path / place, overwrite=True)
        assert "exists; choose another" in refused(scans, models / "unet")
        assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_may_not_be_written(self, scans: Path, tmp_path: Path) -> None:
        store = make(scans, tmp_path / "store")
        shutil.rmtree(store / "subjects" / "s1")
        (store / "subjects").chmod(0o555)
        assert "cannot be written" in refused(scans, store)
        tmp_path.chmod(0o555)
        assert "no folder that you may write" in refused(scans, tmp_path / "other")
        tmp_path.chmod(0o755)


class TestFailures:
    def test_a_full_disk_at_the_first_subject(
        self, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("voxtune.engine.stored_case.write_npy", full)
        message = refused(scans, tmp_path / "store")
        assert "cannot be written (No space left on device)" in message
        assert list(tmp_path.iterdir()) == []

    def test_a_shard_that_fails_leaves_what_another_is_at(
        self, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other begins while this one still looks at its files."""
        store = tmp_path / "store"

        def meanwhile(subject: object, head: Head, *arguments: object) -> object:
            start_store(store, head)
            return real(subject, head, *arguments)

        real = module._look
        monkeypatch.setattr(module, "_look", meanwhile)
        table.with_name("1_label.nii.gz").write_bytes(b"bad")
        assert "1_label.nii.gz" in refused(table, store, shard="2/2")
        assert (store / "store.json").exists()

    def test_a_disk_that_fills_up(
        self, scans: Path, small_disk: Path, undisturbed: Path, tree: Tree
    ) -> None:
        """A real one, and worker processes."""
        store = small_disk / "store"
        message = refused(scans, store, workers=2)
        assert "No space left on device" in message
        finished = [each.name for each in (store / "subjects").iterdir()]
        assert 0 < len(finished) < SUBJECTS
        assert f"the {len(finished)} subjects that are finished stay" in message
        assert not [name for name in finished if name.startswith(".")]
        subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
        make(scans, store)
        found, wanted = tree(store), tree(undisturbed)
        table = "subjects.csv"  # its paths start elsewhere
        assert {**found, table: None} == {**wanted, table: None}

    def test_a_process_that_is_ended_for_want_of_memory(
        self, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def ended(subject: object, *arguments: object) -> object:
            if subject.name == "s2":  # type: ignore[attr-defined]
                raise BrokenProcessPool
            return real(subject, *arguments)

        real = module._make
        monkeypatch.setattr(module, "_make", ended)
        message = refused(scans, tmp_path / "store")
        assert "for want of memory" in message
        assert "the 2 subjects that are finished stay" in message
        assert "fewer --workers" in message

    def test_kill(self, scans: Path, undisturbed: Path, tree: Tree) -> None:
        """At three moments; `make soak` tries more."""
        store = scans.parent / "killed"
        for finished, workers in ((0, 1), (1, 2), (3, 1)):
            kill_when(scans, store, finished, workers)
        make(scans, store)
        assert tree(store) == tree(undisturbed)

    def test_ctrl_c(self, scans: Path) -> None:
        for number in range(8):  # it may have ended before it hears of it
            store = scans.parent / f"interrupted{number}"
            process = start(scans, store, workers=2)
            wait_for(process, store, 1)
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=60)[1].decode()
            if process.returncode:
                break
        assert (process.returncode, said) == (130, "voxtune: stopped.\n")
        names = [each.name for each in (store / "subjects").iterdir()]
        assert not [name for name in names if name.startswith(".")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that holds some of the subjects."""
    (disk := tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", disk]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no permission to mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def start(table: Path, store: Path, workers: int) -> subprocess.Popen:
    """The command as at a terminal (a shell in the background has SIGINT ignored), but slow."""
    code = (
        "import signal, sys, time; from voxtune.engine import stored_case, cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "real = stored_case.write_npy\n"
        "def slow(*arguments):\n    time.sleep(0.02); real(*arguments)\n"
        "stored_case.write_npy = slow\n"
        "if __name__ == '__main__': sys.exit(cli.main(sys.argv[1:]))\n"
    )
    script = table.with_name("slow.py")
    script.write_text(code)
    command = [sys.executable, script, "prepare", table, store, "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(process: subprocess.Popen, store: Path, finished: int) -> None:
    """Waits until so many subjects are finished, or the command is."""
    while process.poll() is None and len(list(store.glob("subjects/s*"))) < finished:
        time.sleep(0.002)


def kill_when(table: Path, store: Path, finished: int, workers: int) -> None:
    """Kills the command in the middle of a subject; its processes end too."""
    process = start(table, store, workers)
    wait_for(process, store, finished)
    while process.poll() is None and not list(store.glob("subjects/.s*")):
        time.sleep(0.002)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pids = children.read_text().split() if children.exists() else []
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
