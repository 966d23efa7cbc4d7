"""Many scans at a time: what is written, what a second call does, and what goes wrong."""

import csv
import dataclasses
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from rich.console import Console

from voxtune.engine import job
from voxtune.engine.config import Predict
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec, write_model
from voxtune.engine.preprocessing import read_conformed
from voxtune.models.errors import InputError

BLOCK = (16, 16, 16)
ARGUMENTS = {
    "channels": 1,
    "outputs": 3,
    "filters": 1,
    "dilations": [1],
    "activation": "relu",
    "norm": None,
}
SPEC = ModelSpec(
    family="meshnet",
    arguments=ARGUMENTS,
    output_activation="softmax",
    classes=(LabelClass(0, "background"), LabelClass(17, "shell"), LabelClass(300, "core")),
    contract=Contract("RAS", (1.0, 1.0, 1.0), "minmax", BLOCK),
)
ONE = dataclasses.replace(
    SPEC,
    arguments={**ARGUMENTS, "outputs": 1},
    output_activation="sigmoid",
    classes=(LabelClass(0, "background"), LabelClass(5, "lesion")),
)
LAS = np.array([[-1, 0, 0, 8], [0, 1, 0, -5], [0, 0, 1, 0], [0, 0, 0, 1.0]])
SHAPE = (18, 16, 20)


def write(folder: Path, spec: ModelSpec, sharpness: float = 200.0) -> Path:
    """A network of brightness x: classes meet at 1/3 and 2/3, or its one logit is 4 (x - 1/2)."""
    kernel = np.zeros((3, 3, 3, 1, 1))
    kernel[1, 1, 1] = 1
    slopes, offsets = (sharpness * np.array(each) for each in ([0, 1, 2], [0, -1 / 3, -1]))
    if spec.arguments["outputs"] == 1:
        slopes, offsets = np.array([4.0]), np.array([-2.0])
    values = {
        "block1/conv/kernel": kernel,
        "block1/conv/bias": np.zeros(1),
        "head/kernel": slopes.reshape(1, 1, 1, 1, -1),
        "head/bias": offsets,
    }
    parameters = {path: value.astype(np.float32) for path, value in values.items()}
    write_model(folder, spec, parameters, history={}, overwrite=True)
    return folder


def brightness(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A core of 1 in a shell of 0.5 in 0, and a speck of 1 far from both."""
    place = (
        np.stack(np.indices(shape)) - np.array([each / 2 for each in shape])[:, None, None, None]
    )
    radius = np.sqrt((place**2).sum(0)) / min(shape)
    data = np.where(radius < 0.2, 1, np.where(radius < 0.4, 0.5, 0))
    data[0, 0, 0] = 1
    return data.astype(np.float32)


def save(path: Path, data: np.ndarray, affine: np.ndarray = LAS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    image = dataclasses.replace(ONE, output_activation="linear", classes=())
    return {
        "classes": write(folder / "classes", SPEC),
        "one": write(folder / "one", ONE),
        "image": write(folder / "image", image),
    }


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save(tmp_path / "scans" / "sub-01" / "head.nii.gz", brightness())


@pytest.fixture
def run(
    tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[bool, str]]:
    """Predicts all scans in a folder; whether all went well, and what was said."""

    def run(model: str | Path = "classes", **options: Any) -> tuple[bool, str]:
        chosen = models[model] if isinstance(model, str) else model
        options = {
            "scans": (tmp_path / "scans",),
            "output": tmp_path / "out",
            "mesh": "data=1",
        } | options
        well = job.predict(Predict(model_dir=chosen, **options), Console(width=300))
        return well, capsys.readouterr().out

    return run


Run = Callable[..., tuple[bool, str]]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class TestResults:
    def test_labels_sidecar_and_class_names(self, run: Run, scan: Path, tmp_path: Path) -> None:
        well, said = run()
        out = tmp_path / "out"
        result = out / "sub-01" / "head.nii.gz"
        assert well
        assert files(out) == {".voxtune", "classes.csv", "sub-01/head.nii.gz", "sub-01/head.json"}
        found = nib.load(result)
        assert found.get_data_dtype() == np.uint16  # which 300 wants
        wanted = np.select([brightness() == 1, brightness() == 0.5], [300, 17], 0)
        np.testing.assert_array_equal(voxels(result), wanted)
        np.testing.assert_array_equal(found.affine, LAS)
        shell, core = (np.count_nonzero(wanted == value) / 1000 for value in (17, 300))
        first, last = said.splitlines()
        assert first == f"{result}  shell {shell:.1f} ml, core {core:.1f} ml"
        assert last.startswith("1 scan predicted, ")
        assert last.endswith(" scans an hour")
        content = json.loads((out / "sub-01" / "head.json").read_text())
        assert content["volumes_ml"] == {"shell": round(shell, 4), "core": round(core, 4)}
        assert str(tmp_path) not in json.dumps(content)
        with (out / "classes.csv").open(newline="") as stream:
            assert list(csv.reader(stream))[2:] == [["17", "shell"], ["300", "core"]]

    def test_everything_that_can_be_asked_for(self, run: Run, scan: Path, tmp_path: Path) -> None:
        well, _ = run(maps=("probabilities", "entropy"), picture=True, html=True, largest="class")
        assert well
        out = tmp_path / "out"
        ends = (".nii.gz", ".json", ".png", "_probabilities.nii.gz", "_entropy.nii.gz")
        assert files(out) == {
            *(".voxtune", "classes.csv", "index.html"),
            *(f"sub-01/head{end}" for end in ends),
        }
        wanted = np.select([brightness() == 1, brightness() == 0.5], [300, 17], 0)
        wanted[0, 0, 0] = 0
        np.testing.assert_array_equal(voxels(out / "sub-01/head.nii.gz"), wanted)
        shares = nib.load(out / "sub-01/head_probabilities.nii.gz")
        assert shares.shape == (*SHAPE, 3)
        assert shares.get_data_dtype() == np.float32
        np.testing.assert_allclose(shares.get_fdata().sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(shares.affine, LAS)
        content = json.loads((out / "sub-01/head.json").read_text())
        assert content["probabilities"] == ["background", "shell", "core"]

    def test_the_conformed_grid(self, run: Run, tmp_path: Path) -> None:
        coarse = LAS @ np.diag([2, 2, 2, 1])
        save(tmp_path / "scans" / "coarse.nii", brightness((9, 8, 10)), coarse)
        assert run(grid="conformed", picture=True)[0]
        found = nib.load(tmp_path / "out" / "coarse.nii.gz")
        assert nib.aff2axcodes(found.affine) == ("R", "A", "S")
        assert found.header.get_zooms() == (1, 1, 1)
        assert found.shape == (17, 15, 19)
        assert found.header["qform_code"] == found.header["sform_code"] == 1

    def test_holes_are_filled_after_the_largest_is_kept(self, run: Run, tmp_path: Path) -> None:
        data = np.zeros((16, 16, 16), np.float32)
        data[3:12, 3:12, 3:12] = 0.5
        data[5:10, 5:10, 5:10] = 0
        data[7, 7, 7] = 1  # in the hole of the shell; not the largest core, so it is filled
        data[13:15, 13:15, 13:15] = 1
        save(tmp_path / "scans" / "hollow.nii", data)
        assert run(largest="class", fill_holes=True)[0]
        wanted = np.zeros(data.shape)
        wanted[3:12, 3:12, 3:12] = 17
        wanted[13:15, 13:15, 13:15] = 300
        np.testing.assert_array_equal(voxels(tmp_path / "out" / "hollow.nii.gz"), wanted)

    @pytest.mark.parametrize("options", [{"largest": "all"}, {"fill_holes": True}])
    def test_images_have_no_components(
        self, run: Run, scan: Path, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        with pytest.raises(InputError, match="gives an image, not classes; leave out --"):
            run("image", **options)
        assert not (tmp_path / "out").exists()

    def test_an_image_is_said_by_its_range(self, run: Run, scan: Path, tmp_path: Path) -> None:
        _, said = run("image")
        result = tmp_path / "out" / "sub-01" / "head.nii.gz"
        assert said.splitlines()[0] == f"{result}  values from -2 to 2"
        np.testing.assert_allclose(voxels(result), 4 * brightness() - 2, atol=1e-5)
        assert files(tmp_path / "out") == {".voxtune", "sub-01/head.nii.gz", "sub-01/head.json"}

    def test_an_empty_result_is_explained(self, run: Run, scan: Path, tmp_path: Path) -> None:
        """The highest probability is that of brightness 1, 1 / (1 + exp(-2)) = 0.881."""
        _, said = run("one", threshold=0.9)
        lines = said.splitlines()
        assert lines[0].endswith("head.nii.gz  lesion 0.0 ml")
        assert lines[1].strip() == (
            "nothing was found: the highest probability of lesion is 0.881, below the threshold of "
            "0.9"
        )
        assert lines[4].split() == ["expected", "0", "to", "1"]
        assert "█" in lines[5]
        content = json.loads((tmp_path / "out/sub-01/head.json").read_text())["empty"]
        data = brightness()
        np.testing.assert_allclose(
            content["quantiles"], np.quantile(data, content["shares"]), atol=1e-6
        )
        assert sum(content["histogram"]["counts"]) == data.size
        assert content["histogram"]["counts"][-1] == np.count_nonzero(data == 1)

    def test_what_training_scans_were_like_is_said_beside_it(
        self, run: Run, scan: Path, tmp_path: Path
    ) -> None:
        quantiles = (-1.0, -0.5, 0.0, 0.25, 3.0)
        contract = dataclasses.replace(ONE.contract, quantiles=quantiles)
        model = write(tmp_path / "m", dataclasses.replace(ONE, contract=contract))
        _, said = run(model, threshold=0.9)
        expected = next(line for line in said.splitlines() if "of training scans" in line)
        assert expected.split()[3:] == ["-1", "-0.5", "0", "0.25", "3"]


class TestRerun:
    def test_what_is_done_is_left(self, run: Run, scan: Path, tmp_path: Path) -> None:
        run()
        result = tmp_path / "out/sub-01/head.nii.gz"
        before = result.stat().st_mtime_ns
        other = save(tmp_path / "scans" / "other.nii", brightness()[:, ::-1])
        well, said = run()
        assert well
        assert said.splitlines()[0].startswith(f"{tmp_path / 'out' / 'other.nii.gz'}  shell")
        assert said.splitlines()[1].startswith("1 scan predicted, ")
        assert said.rstrip().endswith("; 1 was there already")
        assert result.stat().st_mtime_ns == before
        save(other, brightness() ** 2)  # one that changed is done again
        os.utime(other, ns=(1, 1))
        said = run()[1]
        assert "1 scan predicted" in said
        assert "another scan, or an earlier state of it, was called so before" in said
        assert run()[1] == "0 scans predicted; 2 were there already\n"
        assert "2 scans predicted" in run(overwrite=True)[1]
        assert result.stat().st_mtime_ns > before

    def test_what_is_missing_is_made(self, run: Run, scan: Path, tmp_path: Path) -> None:
        """As after a job that was killed: no sidecar, and a part of a file."""
        run()
        out = tmp_path / "out" / "sub-01"
        (out / "head.json").unlink()
        (out / "head.nii.gz").write_bytes(b"half")
        (out / ".0123abcd.head.nii.gz").write_bytes(b"part")
        (out / ".0123abcd.another.nii.gz").write_bytes(b"of another job that goes on")
        assert "1 scan predicted" in run()[1]
        assert voxels(out / "head.nii.gz").any()
        assert files(out) == {"head.nii.gz", "head.json", ".0123abcd.another.nii.gz"}
        assert "1 scan predicted" in run(picture=True)[1]
        assert (out / "head.png").is_file()

    def test_a_result_that_was_cut_is_made_again(
        self, run: Run, scan: Path, tmp_path: Path
    ) -> None:
        run()
        (tmp_path / "out/sub-01/head.nii.gz").write_bytes(b"")
        assert "1 scan predicted" in run(html=True)[1]
        assert voxels(tmp_path / "out/sub-01/head.nii.gz").any()

    def test_a_damaged_one_is_named_and_the_page_has_the_rest(
        self, run: Run, scan: Path, tmp_path: Path
    ) -> None:
        save(tmp_path / "scans" / "other.nii", brightness())
        run()
        result = tmp_path / "out/sub-01/head.nii.gz"
        content = result.read_bytes()
        result.write_bytes(content[:-8] + bytes(8))  # as long as before
        well, said = run(html=True)
        assert not well
        assert "sub-01/head failed" in said
        assert '"other"' in (tmp_path / "out" / "index.html").read_text()

    def test_an_edited_sidecar_is_refused_or_done_again(
        self, run: Run, scan: Path, tmp_path: Path
    ) -> None:
        run()
        sidecar = tmp_path / "out/sub-01/head.json"
        content = json.loads(sidecar.read_text())
        sidecar.write_text(json.dumps({**content, "made_by": {**content["made_by"], "seed": {}}}))
        with pytest.raises(InputError, match=r"with --seed \{\}, not 0"):
            run()
        sidecar.write_text(json.dumps(content) + " " * 10**6)
        assert "1 scan predicted" in run()[1]

    def test_a_sidecar_removes_nothing_but_its_results(
        self, run: Run, scan: Path, tmp_path: Path
    ) -> None:
        run()
        out = tmp_path / "out/sub-01"
        for name in ("head_important.txt", "header.nii.gz", "head_entropy.nii.gz"):
            (out / name).write_text("mine")
        sidecar = json.loads((out / "head.json").read_text())
        for listed in ({"head_important.txt": 4, "header.nii.gz": 4}, 5):
            (out / "head.json").write_text(json.dumps({**sidecar, "files": listed}))
            assert run(overwrite=True)[0]
        assert {"head_important.txt", "header.nii.gz", "head_entropy.nii.gz"} < files(out)

    def test_maps_go_with_the_result_that_they_are_of(
        self, run: Run, scan: Path, tmp_path: Path
    ) -> None:
        run(maps=("entropy",))
        run(fill_holes=True, overwrite=True)
        assert files(tmp_path / "out/sub-01") == {"head.nii.gz", "head.json"}

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"largest": "class"}, "--largest none, not class"),
            ({"overlap": 0.5}, "--overlap 0.25, not 0.5"),
            ({"model": "one"}, "another model"),
            ({"block": (8, 16, 16)}, "--block not given, not 8 16 16"),
        ],
    )
    def test_results_of_other_options_are_refused(
        self, run: Run, scan: Path, options: dict[str, Any], said: str
    ) -> None:
        run()
        with pytest.raises(InputError, match=f"head.json is of a result .* with {said}.*overwrite"):
            run(**options)

    def test_a_copy_of_the_model_is_the_same(
        self, run: Run, scan: Path, models: dict[str, Path], tmp_path: Path
    ) -> None:
        run()
        shutil.copytree(models["classes"], tmp_path / "copy")
        assert "1 was there already" in run(tmp_path / "copy")[1]

    def test_skipped_scans_are_on_the_page(self, run: Run, scan: Path, tmp_path: Path) -> None:
        run()
        save(tmp_path / "scans" / "other.nii", brightness())
        assert "1 was there already" in run(html=True)[1]
        page = (tmp_path / "out" / "index.html").read_text()
        assert "sub-01/head" in page
        assert '"other"' in page


class TestFolder:
    def test_one_that_is_not_ours(self, run: Run, scan: Path, tmp_path: Path) -> None:
        save(tmp_path / "out" / "mine.nii", brightness())
        with pytest.raises(InputError, match="was not written by voxtune"):
            run(overwrite=True)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_one_of_another_command(
        self, run: Run, scan: Path, models: dict[str, Path], overwrite: bool
    ) -> None:
        """A scan called model.nii.gz would replace model.json by its sidecar."""
        with pytest.raises(InputError, match="holds something else than predictions"):
            run(output=models["one"], overwrite=overwrite)

    def test_one_of_other_classes(self, run: Run, scan: Path, tmp_path: Path) -> None:
        run()
        names = tmp_path / "out" / "classes.csv"
        names.write_text(names.read_text().replace("shell", "liver"))
        with pytest.raises(InputError, match=r"results of other classes.*--overwrite"):
            run()
        (tmp_path / "out" / "other.json").write_bytes(
            (tmp_path / "out/sub-01/head.json").read_bytes()
        )
        with pytest.raises(InputError, match=r"results of other classes.*another folder\.$"):
            run(overwrite=True)  # the other's would be called by these names
        (tmp_path / "out" / "other.json").unlink()
        assert run(overwrite=True)[0]
        assert "shell" in names.read_text()

    def test_another_job_may_have_just_begun(self, run: Run, scan: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / ".89abcdef..voxtune").touch()
        assert run()[0]

    def test_a_file_in_its_place(self, run: Run, scan: Path, tmp_path: Path) -> None:
        (tmp_path / "out").touch()
        with pytest.raises(InputError, match="out"):
            run()


class TestFailures:
    def test_the_rest_goes_on(self, run: Run, scan: Path, tmp_path: Path) -> None:
        (tmp_path / "scans" / "broken.nii").write_bytes(b"no scan")
        dark = save(tmp_path / "scans" / "flat.nii", np.ones(SHAPE, np.float32))
        save(tmp_path / "scans" / "z.nii", brightness())
        well, said = run()
        assert not well
        lines = said.splitlines()
        assert [line.split()[0] for line in lines[-2:]] == ["broken:", "flat:"]
        assert str(dark) in lines[-1]
        assert lines[-3].startswith("2 scans predicted")
        assert lines[-3].endswith("; 2 failed:")
        assert (tmp_path / "out" / "z.nii.gz").is_file()
        assert not (tmp_path / "out" / "flat.nii.gz").exists()
        save(tmp_path / "scans" / "broken.nii", brightness())  # mended
        dark.unlink()
        assert run()[0]

    def test_voxels_that_are_no_numbers(self, run: Run, tmp_path: Path) -> None:
        data = brightness()
        data[4, 0, 7:9] = np.nan, np.inf
        save(tmp_path / "scans" / "nan.nii", data)
        well, said = run()
        assert not well
        assert "has 2 voxels that are NaN" in said
        well, said = run(nonfinite=0.0)
        assert well
        assert said.splitlines()[0].endswith(" ml, 2 voxels replaced")

    def test_a_lack_of_memory_is_one_scans(
        self, run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(tmp_path / "scans" / "huge.nii", brightness())
        read = job.read_conformed

        def poor(images: Any, *rest: Any) -> Any:
            if "huge" in str(images):
                raise MemoryError
            return read(images, *rest)

        monkeypatch.setattr(job, "read_conformed", poor)
        well, said = run()
        assert not well
        assert "huge: There is not enough memory" in said
        assert "1 scan predicted" in said

    @pytest.mark.parametrize("stage", ["read_conformed", "save_label"])
    def test_a_fault_of_ours_is_no_failure_of_a_scan(
        self, run: Run, scan: Path, monkeypatch: pytest.MonkeyPatch, stage: str
    ) -> None:
        def wrong(*_: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(job, stage, wrong)
        with pytest.raises(ZeroDivisionError):
            run()

    def test_a_full_disk_ends_the_job(
        self, run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(tmp_path / "scans" / "other.nii", brightness())
        written = []

        def full(_: Any, path: Path) -> None:
            written.append(path)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(nib, "save", full)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            run()
        assert len(written) == 1
        assert files(tmp_path / "out") == {".voxtune", "classes.csv"}

    def test_ctrl_c_leaves_whole_files(
        self, run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the second scan is predicted and the first is written."""
        save(tmp_path / "scans" / "z.nii", brightness())
        calls = []
        call = job.Model.__call__

        def stopped(*given: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return call(*given)

        monkeypatch.setattr(job.Model, "__call__", stopped)
        with pytest.raises(KeyboardInterrupt):
            run()
        monkeypatch.undo()
        assert files(tmp_path / "out") == {".voxtune", "classes.csv", "z.nii.gz", "z.json"}
        assert run()[1].rstrip().endswith("; 1 was there already")


EDGE = 96
CASES = {"exact": np.diag([-1, 1, 1, 1.0]), "resampled": np.eye(4)}
CASES["resampled"][:2, :2] = [[np.cos(0.05), -np.sin(0.05)], [np.sin(0.05), np.cos(0.05)]]


@pytest.mark.parametrize("case", CASES)
def test_the_host_holds_less_than_four_volumes(
    models: dict[str, Path], tmp_path: Path, case: str
) -> None:
    """What numpy takes while one scan is read, one predicted and one written, in conformed volumes.

    Compiling and the rest of the runtime are left out by a job before it.
    """
    data = (1000 * brightness((EDGE,) * 3)).astype(np.int16)
    for name in "abc":
        image = nib.Nifti1Image(data, CASES[case])
        image.header.set_slope_inter(0.5, 3)
        (tmp_path / "scans").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "scans" / f"{name}.nii")
    given = Predict(
        model_dir=models["classes"],
        scans=(tmp_path / "scans",),
        output=tmp_path / "out",
        block=(56, 56, 48),
        overlap=0,
        overwrite=True,
        mesh="data=1",
    )
    quiet = Console(quiet=True)
    job.predict(dataclasses.replace(given, scans=(tmp_path / "scans" / "a.nii",)), quiet)
    conformed = read_conformed({"": tmp_path / "scans" / "a.nii"}, SPEC.contract).image.nbytes
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        assert job.predict(given, quiet)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (peak - before) / conformed < 4
