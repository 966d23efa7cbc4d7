"""The command: help without JAX, and bad input ends in one line, status 2 and nothing written."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from voxtune.engine.cli import main
from voxtune.engine.loop import PreemptedError
from voxtune.engine.processes import LostError
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)
SHAPE = (8, 8, 8)

# What Orbax's threads say of a damaged checkpoint, after its event loop was closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


# Help


def in_a_new_process(*arguments: str) -> tuple[int, list[str]]:
    """Exit status of a command, and which heavy packages it imported."""
    program = (
        "import sys\n"
        "from voxtune.engine.cli import main\n"
        "try:\n"
        f"    status = main({list(arguments)})\n"
        "except SystemExit as end:\n"
        "    status = end.code\n"
        "heavy = [name for name in ('jax', 'flax', 'nibabel') if name in sys.modules]\n"
        "print(status or 0, *heavy, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout
    status, *heavy = done.stderr.split()
    return int(status), heavy


@pytest.mark.parametrize(
    "arguments", [["--help"], ["benchmark", "--help"], ["finetune", "--help"], ["--version"], []]
)
def test_help_and_version_answer_without_jax(arguments: list[str]):
    assert in_a_new_process(*arguments) == (0, [])


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("convert", "finetune", "predict", "evaluate", "picture"))


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["finetune", "--help"])
    shown = capsys.readouterr().out
    for option in ("--steps", "--trunk-lr", "--head", "--labels", "--init", "--overwrite"):
        assert option in shown


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("voxtune")


# How a run ends


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (PreemptedError(7), 75, "told to end; step 7 of"),
        (LostError("another process of the run ended (x)"), 69, "another process of the run ended"),
        (KeyboardInterrupt(), 130, "stopped"),
        (InputError("Nonsense."), 2, "Nonsense."),
    ],
)
def test_each_end_has_its_status_and_sentence(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    words: str,
    saved: bool,
):
    def end(*_: Any) -> None:
        raise error

    if saved:
        (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    monkeypatch.setattr("voxtune.engine.train.finetune", end)
    run = str(tmp_path / "run")
    assert main(["finetune", "model", "subjects.csv", run]) == status
    said = capsys.readouterr().err
    assert said.startswith(f"voxtune: {words}")
    assert said.count("\n") == 1
    assert (f"voxtune resume {run}" in said) == (status == 75 or (saved and status != 2))


def test_resume_shows_the_values_of_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """But for how its processes found each other, which is another start's."""
    saved = {"steps": 321, "distributed": "localhost:1,0,2"}
    monkeypatch.setattr(
        "voxtune.engine.saved_config.saved_options", lambda path: saved if path == tmp_path else {}
    )
    for arguments in ([str(tmp_path)], ["--seed", "4", str(tmp_path)]):
        with pytest.raises(SystemExit):
            main(["resume", *arguments, "--help"])
        shown = capsys.readouterr().out
        assert "(default: 321)" in shown
        assert "localhost:1" not in shown


# convert

NET = {
    "conv1/kernel": RNG.normal(size=(3, 3, 3, 1, 1)),
    "conv1/bias": RNG.normal(size=1),
    "conv2/kernel": RNG.normal(size=(3, 3, 3, 1, 1)),
    "conv2/bias": RNG.normal(size=1),
    "head/kernel": RNG.normal(size=(1, 1, 1, 1, 2)),
    "head/bias": RNG.normal(size=2),
}


def layer(name: str, class_name: str, *inputs: str, **config: Any) -> dict[str, Any]:
    """A layer as Keras 2 writes it."""
    return {
        "class_name": class_name,
        "config": {"name": name, **config},
        "name": name,
        "inbound_nodes": [[[source, 0, 0, {}] for source in inputs]] if inputs else [],
    }


def conv(name: str, source: str, filters: int, size: int, **config: Any) -> dict[str, Any]:
    settings = {"filters": filters, "kernel_size": [size] * 3, "padding": "same", **config}
    return layer(name, "Conv3D", source, **settings)


def write_tfjs(folder: Path, after_conv2: dict[str, Any] | None = None) -> Path:
    """A MeshNet of two blocks as TF.js has it; another layer may follow the second block."""
    layers = [
        layer("image", "InputLayer", batch_input_shape=[None, *SHAPE, 1]),
        conv("conv1", "image", 1, 3, activation="relu"),
        conv("conv2", "conv1", 1, 3, activation="relu", dilation_rate=[2, 2, 2]),
        *([after_conv2] if after_conv2 else []),
        conv("head", after_conv2["name"] if after_conv2 else "conv2", 2, 1),
    ]
    ends = {"input_layers": [["image", 0, 0]], "output_layers": [["head", 0, 0]]}
    config = {"class_name": "Functional", "config": {"name": "net", "layers": layers, **ends}}
    weights = [
        {"name": name, "shape": list(value.shape), "dtype": "float32"}
        for name, value in NET.items()
    ]
    document = {
        "format": "layers-model",
        "modelTopology": {"keras_version": "2.7.0", "model_config": config},
        "weightsManifest": [{"paths": ["model.bin"], "weights": weights}],
    }
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(document))
    content = b"".join(value.astype("<f4").tobytes() for value in NET.values())
    (folder / "model.bin").write_bytes(content)
    return folder


@pytest.fixture
def tfjs(tmp_path: Path) -> Path:
    """A TF.js layers model."""
    return write_tfjs(tmp_path / "tfjs")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: (folder / "model.json").unlink(), "holds no model"),
        (lambda folder: cut(folder / "model.json"), "broken or cut short"),
        (lambda folder: cut(folder / "model.bin"), "cut short"),
        (lambda folder: (folder / "model.bin").unlink(), "'model.bin' is missing"),
        (lambda folder: (folder / "model.json").write_text('{"a": 1}'), "no modelTopology"),
        (lambda folder: (folder / "model.json").write_text("[]"), "no model"),
    ],
)
def test_a_keras_file_that_is_none(
    refused: Callable[..., str], tfjs: Path, damage: Callable[[Path], object], words: str
):
    damage(tfjs)
    sentence = refused("convert", tfjs, tfjs.parent / "model")
    assert str(tfjs) in sentence
    assert words in sentence


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\x89HDF\r\n\x1a\nand no more"])
def test_an_h5_file_that_is_none(refused: Callable[..., str], tmp_path: Path, content: bytes):
    (tmp_path / "net.h5").write_bytes(content)
    assert "net.h5" in refused("convert", tmp_path / "net.h5", tmp_path / "model")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (layer("odd", "Fancy3D", "conv2"), ["'odd'", "Fancy3D"]),
        (layer("code", "Lambda", "conv2", function=["4wEAAAA=", None]), ["'code'", "Lambda"]),
        (layer("memory", "ConvLSTM3D", "conv2"), ["'memory'", "ConvLSTM3D"]),
    ],
)
def test_a_layer_that_is_not_known_is_named(
    refused: Callable[..., str], tmp_path: Path, other: dict[str, Any], words: list[str]
):
    source = write_tfjs(tmp_path / "tfjs", other)
    sentence = refused("convert", source, tmp_path / "model")
    assert all(word in sentence for word in words)


def golden_arrays() -> dict[str, np.ndarray]:
    """What the network computes, by SciPy in float64."""
    x = RNG.normal(size=SHAPE)
    dilated = np.zeros((5, 5, 5))
    dilated[::2, ::2, ::2] = NET["conv2/kernel"][..., 0, 0]
    result = x
    for kernel, bias in ((NET["conv1/kernel"][..., 0, 0], "conv1"), (dilated, "conv2")):
        result = ndimage.correlate(result, kernel, mode="constant") + NET[f"{bias}/bias"]
        result = np.maximum(result, 0)
    logits = result[..., None] * NET["head/kernel"][0, 0, 0, 0] + NET["head/bias"]
    arrays = {"x": x[None, ..., None], "y": logits[None], "act:conv2": result[None, ..., None]}
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def test_a_golden_comparison_decides_whether_a_model_is_written(
    tfjs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tree: Callable[..., dict]
):
    arrays = golden_arrays()
    wrong = {**arrays, "act:conv2": arrays["act:conv2"] * 1.001}
    np.savez(tmp_path / "right.npz", **arrays)
    np.savez(tmp_path / "wrong.npz", **wrong)
    command = ["convert", str(tfjs), str(tmp_path / "model"), "--golden"]
    before = tree(tmp_path)
    assert main([*command, str(tmp_path / "wrong.npz")]) == 1
    shown = capsys.readouterr().out
    assert shown.count("NOT MET") == 1
    assert "nothing was written" in shown
    assert tree(tmp_path) == before
    assert main([*command, str(tmp_path / "right.npz")]) == 0
    assert "NOT MET" not in capsys.readouterr().out
    record = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert {each["name"] for each in record["golden"]} == {"y", "act:conv2"}


def write_golden(path: Path, **changes: np.ndarray | None) -> None:
    arrays = {**golden_arrays(), **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"no archive"), "cannot be read"),
        (lambda path: (write_golden(path), cut(path)), "cannot be read"),
        (lambda path: write_golden(path, y=None), "it needs the arrays 'x' and 'y'"),
        (lambda path: write_golden(path, x=np.zeros((8, 8, 8), "f4")), "'x' has shape (8, 8, 8)"),
        (lambda path: write_golden(path, y=np.zeros((1, 4, 4, 4, 2), "f4")), "'y' has shape"),
        (lambda path: write_golden(path, **{"act:conv7": np.zeros(1, "f4")}), "'conv7'"),
    ],
)
def test_a_golden_file_that_does_not_fit(
    refused: Callable[..., str],
    tfjs: Path,
    tmp_path: Path,
    write: Callable[[Path], object],
    words: str,
):
    golden = tmp_path / "golden.npz"
    write(golden)
    sentence = refused("convert", tfjs, tmp_path / "model", "--golden", golden)
    assert "golden.npz" in sentence
    assert words in sentence


def test_a_model_that_is_there_is_replaced_only_when_asked(
    refused: Callable[..., str], tfjs: Path, tmp_path: Path
):
    model_dir = tmp_path / "model"
    assert main(["convert", str(tfjs), str(model_dir)]) == 0
    (model_dir / "stale").write_text("of an older conversion")
    assert "--overwrite" in refused("convert", tfjs, model_dir)
    assert main(["convert", str(tfjs), str(model_dir), "--overwrite"]) == 0
    assert {path.name for path in model_dir.iterdir()} == {
        ".voxtune",
        "model.json",
        "params",
        "conversion.json",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"tfjs", "model"}


def test_a_failed_conversion_keeps_the_model_that_is_there(
    refused: Callable[..., str], tfjs: Path, tmp_path: Path
):
    assert main(["convert", str(tfjs), str(tmp_path / "model")]) == 0
    cut(tfjs / "model.bin")
    refused("convert", tfjs, tmp_path / "model", "--overwrite")


def test_a_block_that_does_not_suit_the_network(refused: Callable[..., str], tfjs: Path):
    sentence = refused("convert", tfjs, tfjs.parent / "model", "--block", "8", "0", "8")
    assert "--block 8 0 8" in sentence


# Folders that are not voxtune's


@pytest.mark.parametrize("command", ["convert", "finetune"])
@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_strangers_folder_is_never_deleted(
    refused: Callable[..., str],
    tfjs: Path,
    model_dir: Path,
    table: Path,
    tmp_path: Path,
    command: str,
    options: list[str],
):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years")
    given = [tfjs] if command == "convert" else [model_dir, table]
    assert "thesis" in refused(command, *given, tmp_path / "thesis", *options)


@pytest.mark.parametrize("command", ["convert", "finetune", "predict"])
def test_a_folder_below_a_file(
    refused: Callable[..., str], tfjs: Path, model_dir: Path, table: Path, command: str
):
    below = table / "out"
    given: dict[str, list[str | Path]] = {
        "convert": [tfjs, below],
        "finetune": [model_dir, table, below],
        "predict": [model_dir, table, "-o", below],
    }
    assert str(below) in refused(command, *given[command])


# finetune and predict


def predict(model_dir: Path, table: Path, *options: str) -> list[str]:
    return ["predict", str(model_dir), str(table), "-o", str(table.parent / "out"), *options]


def arrays_of(model_dir: Path) -> Path:
    """The file that holds the parameters' values."""
    files = (model_dir / "params" / "state" / "d").iterdir()
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("command", ["finetune", "predict"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "not a model directory"),
        (lambda folder: (folder / "model.json").unlink(), "has no model.json"),
        (lambda folder: cut(folder / "model.json"), "model.json cannot be read"),
        (lambda folder: (folder / "model.json").write_text("{}"), "model.json cannot be read"),
        (lambda folder: shutil.rmtree(folder / "params"), "params does not exist"),
        (lambda folder: cut(arrays_of(folder)), "params cannot be read"),
        (lambda folder: arrays_of(folder).unlink(), "params cannot be read"),
    ],
    ids=["missing", "no json", "json cut", "json empty", "no params", "params cut", "params lost"],
)
def test_a_model_that_is_none(
    refused: Callable[..., str],
    model_dir: Path,
    table: Path,
    command: str,
    damage: Callable[[Path], object],
    words: str,
    finetune: Callable[..., list[str]],
):
    damage(model_dir)
    sentence = refused(*(finetune if command == "finetune" else predict)(model_dir, table))
    assert str(model_dir) in sentence
    assert words in sentence


def test_damaged_parameters_are_one_line_of_the_whole_process(model_dir: Path, table: Path):
    """Orbax's event loop and threads stay quiet too; they would speak now and then, so often."""
    cut(arrays_of(model_dir))
    program = (
        "from voxtune.engine.cli import main\n"
        f"print([main({predict(model_dir, table)}) for _ in range(8)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout == f"{[2] * 8}\n"
    assert [line[:9] for line in done.stderr.splitlines()] == ["voxtune: "] * 8, done.stderr


def test_a_table_that_is_missing(
    refused: Callable[..., str], model_dir: Path, table: Path, finetune: Callable[..., list[str]]
):
    table.unlink()
    for command in (finetune, predict):
        assert "subjects.csv does not exist" in refused(*command(model_dir, table))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--overlap", "1"], "--overlap"),
        (["--overlap", "-0.5"], "--overlap"),
        (["--split", "test"], "split test"),
    ],
)
def test_prediction_options_that_make_no_sense(
    refused: Callable[..., str], model_dir: Path, table: Path, options: list[str], words: str
):
    assert words in refused(*predict(model_dir, table, *options))


@pytest.mark.parametrize("scan", ["nowhere.nii", "model.txt"])
def test_what_is_no_scan(refused: Callable[..., str], model_dir: Path, table: Path, scan: str):
    """The others are fine; none of them is predicted."""
    folder = table.parent
    (folder / "model.txt").write_text("no scan")
    given = ["predict", model_dir, folder / "a.nii", folder / scan, "-o", folder / "out"]
    assert scan in refused(*given)


def test_scans_that_cannot_be_predicted(
    model_dir: Path, table: Path, scans: Any, capsys: pytest.CaptureFixture[str]
):
    """They are named at the end, with why; the other is predicted."""
    folder = table.parent
    scans.save(folder / "nan.nii", np.where(scans.label, np.nan, scans.image))
    scans.save(folder / "flat.nii", np.zeros(SHAPE, "f4"))
    scans.save(folder / "wide.nii", np.where(scans.label, 3e38, -3e38).astype("f4"))
    given = [folder / f"{name}.nii" for name in ("nan", "wide", "a", "flat")]
    assert main(["predict", str(model_dir), *map(str, given), "-o", str(folder / "out")]) == 1
    *_, first, middle, second = capsys.readouterr().out.splitlines()
    assert "nan.nii has" in first
    assert "wide.nii" in middle
    assert "flat.nii has the same value" in second
    results = {each.name for each in (folder / "out").glob("*.nii.gz")}
    assert results == {"a.nii.gz"}


def test_predictions_that_are_there_are_not_touched(
    refused: Callable[..., str], model_dir: Path, table: Path
):
    (table.parent / "out").mkdir()
    (table.parent / "out" / "a.nii.gz").write_bytes(b"years of work")
    assert "was not written by voxtune" in refused(*predict(model_dir, table))
    shutil.rmtree(table.parent / "out")
    (table.parent / "out").write_text("a file")
    refused(*predict(model_dir, table))
    refused(*predict(model_dir, table, "--overwrite"))


def test_predictions_never_replace_a_scan_or_a_strangers_folder(
    refused: Callable[..., str], model_dir: Path, table: Path
):
    folder, scan = table.parent, table.parent / "a.nii"
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    command = ("predict", model_dir, scan, "-o", folder, "--overwrite")
    assert "was not written by voxtune" in refused(*command)
    (folder / ".voxtune").touch()
    scan.rename(folder / "a.nii.gz")
    (folder / "a.nii.gz").write_bytes(gzip.compress(before[scan]))
    command = ("predict", model_dir, folder / "a.nii.gz", "-o", folder, "--overwrite")
    assert "would be replaced by the result" in refused(*command)


def test_names_are_never_markup(model_dir: Path, table: Path, capsys: pytest.CaptureFixture[str]):
    out = table.parent / "[/old]"
    assert main(["predict", str(model_dir), str(table), "-o", str(out)]) == 0
    assert "[/old]" in capsys.readouterr().out


def test_a_stopped_process_ends_at_once_with_its_status(tmp_path: Path):
    code = (
        "import sys, voxtune.engine.cli as cli\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "cli.run = stop\n"
        "sys.argv = ['voxtune', 'phantom', 'x']\n"
        "cli.entry()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (130, "voxtune: stopped.\n")
