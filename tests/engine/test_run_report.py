"""The page of a run: what it says of runs in each state, and of files that were edited."""

import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from voxtune.engine.cli import main
from voxtune.engine.output import MARKER, make_folder_of
from voxtune.engine.run_account import Account
from voxtune.engine.run_log import log_lines
from voxtune.models.errors import InputError

ODD = "<script>alert(1)</script>"
HOLD = """
import sys, time
from voxtune.engine.lock import WHOLE, locked
marker = open(sys.argv[1], "ab")
print(locked(marker, WHOLE, True), flush=True)
time.sleep(60)
"""


@pytest.fixture(scope="module")
def made(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with two validations, not to be altered."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    rows = ["subject,image,label,split"]
    for name, split in (("anna", "train"), ("ben", "validation")):
        image = rng.normal(size=(8, 8, 8)).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{name}.nii")
        label = (image > 0.5).astype(np.uint8) + (image > 1).astype(np.uint8)
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / f"{name}_label.nii")
        rows.append(f"{name},{name}.nii,{name}_label.nii,{split}")
    (folder / "subjects.csv").write_text("\n".join(rows))
    places = [str(models / "meshnet"), str(folder / "subjects.csv"), str(folder / "run")]
    short = "--steps 2 --batch 1 --mesh data=1 --validate-every 1 --log-every 1 --warmup 0"
    labels = ["--labels", "0=background", f"1={ODD}", "2=tail"]
    assert main(["finetune", *places, *short.split(), *labels]) == 0
    return folder / "run"


@pytest.fixture
def run_dir(made: Path, tmp_path: Path) -> Path:
    """A run to be altered."""
    return shutil.copytree(made, tmp_path / "run")


def text_of(run_dir: Path, *options: str) -> str:
    """The page, as text."""
    assert main(["report", str(run_dir), *options]) == 0
    return (run_dir / "report.html").read_text("utf-8")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def entries(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def write_entries(run_dir: Path, found: list[Any]) -> None:
    text = "".join(f"{json.dumps(each)}\n" for each in found)
    (run_dir / "metrics.jsonl").write_text(text)


def test_a_finished_run(made: Path, run_dir: Path) -> None:
    page = text_of(run_dir)
    assert "Finished after step 2 of 2." in page
    last = next(each for each in reversed(entries(run_dir)) if each["event"] == "validation")
    assert f"{last['dice']['tail']:.3f}" in page
    document = json.loads((run_dir / "config.json").read_text())
    for told in (document["data"], document["weights"], document["versions"]["jax"], "anna", "ben"):
        assert told in page
    assert "<td>adamw</td>" in page
    assert '<th scope="row">--steps</th><td>2</td><td>300</td>' in page  # another than the usual
    assert not re.search(re.escape(str(made.parent.parent)), page)
    assert str(run_dir.parent) not in page
    assert ODD not in page
    assert html.escape(ODD) in page
    assert re.search(r'<img alt="[^"]{20,}" src="data:image/svg\+xml;base64,', page)


def test_a_browser_shows_it(made: Path, run_dir: Path, chromium: Callable[..., str]) -> None:
    text_of(run_dir)
    dom = chromium(run_dir / "report.html", "--dump-dom")
    assert "<script" not in dom
    assert ODD in html.unescape(dom)
    assert not re.search(r'(?:src|href)="(?!data:|#)', dom)


def test_a_run_that_was_stopped(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "model")
    edit(run_dir / "config.json", options=with_options(run_dir, steps=5))
    page = text_of(run_dir)
    assert "Stopped after step 2 of 5; &#x27;voxtune resume run&#x27; goes on with it." in page


def with_options(run_dir: Path, **changes: Any) -> dict[str, Any]:
    return {**json.loads((run_dir / "config.json").read_text())["options"], **changes}


def test_a_finished_run_that_is_to_be_longer_is_stopped(run_dir: Path) -> None:
    edit(run_dir / "config.json", options=with_options(run_dir, steps=5))
    assert "Stopped after step 2 of 5" in text_of(run_dir)


def test_a_run_that_is_written(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "model")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir / MARKER)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert "Still being trained; this page was made after step 2 of 2." in text_of(run_dir)
        other.kill()


def test_a_run_that_wrote_no_line(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "model")
    for name in ("metrics.jsonl", "rules.json", "parameters.json", MARKER):
        (run_dir / name).unlink()
    page = text_of(run_dir)
    assert "Stopped after step 0 of 2" in page
    assert "It was not validated yet." in page
    assert "<img" not in page


def test_the_best_validation_and_the_last(run_dir: Path) -> None:
    first, last = ({"a": 0.9, "b": 0.7, "mean": 0.8}, {"a": 0.5, "b": 0.5, "mean": 0.5})
    write_entries(
        run_dir,
        [
            {"event": "validation", "step": 1, "dice": first},
            {"event": "validation", "step": 2, "dice": {"a": None, "b": None}},
            {"event": "validation", "step": 3, "dice": last},
        ],
    )
    page = text_of(run_dir)
    best = "The best validation was at step 1: Dice 0.800, the mean of 2 classes; the last, at step"
    assert f"{best} 3, has 0.500." in page


def test_of_an_image_the_smallest_error_is_best(run_dir: Path) -> None:
    errors = enumerate((0.3, 0.1, 0.2), 1)
    write_entries(
        run_dir,
        [
            {"event": "validation", "step": step, "mean_absolute_error": {"mean": value}}
            for step, value in errors
        ],
    )
    assert "The best validation was at step 2: Mean absolute error 0.100" in text_of(run_dir)


def test_interruptions_and_skipped_steps(run_dir: Path) -> None:
    past = {
        "step": 1,
        "time": "2026-01-02T03:04:05+00:00",
        "devices": "8 x TPU",
        "changed": ["steps: 1 → 2", "init: a → /home/anna/model"],
    }
    edit(run_dir / "config.json", resumed=[past, {}, {"changed": 5, "step": []}])
    skipped = {"event": "skipped", "step": 1, "subjects": ["anna", 7, ODD]}
    write_entries(run_dir, [*entries(run_dir), skipped])
    page = text_of(run_dir)
    assert "<td>8 x TPU</td><td>steps: 1 → 2, init: a → model</td>" in page
    assert f"anna, {html.escape(ODD)}" in page
    assert "/home" not in page


def test_a_run_of_a_study_is_told_as_a_command_of_its_own(run_dir: Path) -> None:
    edit(run_dir / "config.json", command="/home/anna/bin/voxtune study --data /home/anna/s.csv")
    page = text_of(run_dir)
    assert "voxtune study --data .../s.csv" in page
    assert "/home" not in page
    command = re.search(r"voxtune finetune [^<]*", page)
    assert command
    assert shlex.split(html.unescape(command[0]))[2:5] == [
        ".../meshnet",
        ".../subjects.csv",
        ".../run",
    ]


ODD_ENTRIES: list[Any] = [
    7,
    [],
    {},
    {"event": [], "step": 1},
    {"event": "train", "step": "1"},
    {"event": "train", "step": True},
    {"event": "train", "step": 10**400, "loss": 1},
    {"event": "train", "step": 1, "loss": 10**400, "examples_per_second": {}, "data_wait": [1]},
    {"event": "train", "step": 2, "loss": "low", "learning_rates": 3, "dice": {ODD: ODD}},
    {"event": "train", "step": 3, "loss": 1.5, "examples_per_second": 0, "peak_share": -1},
    {"event": "validation", "step": 3, "dice": [1]},
    {"event": "validation", "step": 4, "dice": {}},
    {"event": "validation", "step": 5, "dice": {"\ud800": 0.5}, "jaccard": {}, "recall": 1},
    {"event": "compiled", "step": 0, "seconds": "long"},
    {"event": "skipped", "step": 3, "subjects": {}},
    {"event": "unheard of", "step": 3, "x": 1},
]


def test_lines_that_no_run_writes_are_left_out(run_dir: Path) -> None:
    write_entries(run_dir, ODD_ENTRIES)
    with (run_dir / "metrics.jsonl").open("ab") as stream:
        stream.write(b'\xff\xfe\n{"event": "train", "step": NaN}\n' + b"[" * 100_000 + b'\n{"eve')
    page = text_of(run_dir)
    assert "Stopped" not in page
    assert "step 5: Dice 0.500" in page
    assert ODD not in page


def test_where_tensors_came_from(run_dir: Path) -> None:
    """Also in sentences no folder of a machine is told."""
    place = "/home/anna smith/big model"
    edit(run_dir / "config.json", options=with_options(run_dir, init_from=place))
    origin = {"a": "loaded", "b": f"loaded from {place}", "c": "adapted from /data/x/y: copied"}
    dropped = {"d": "the last layer is new"}
    (run_dir / "parameters.json").write_text(json.dumps({"parameters": origin, "dropped": dropped}))
    page = text_of(run_dir)
    assert "2 loaded, 1 adapted, 1 dropped" in page
    assert "<td>loaded from big model</td>" in page
    assert "<td>adapted from y: copied</td>" in page
    assert "/home" not in page


def test_odd_parameters_and_rules(run_dir: Path) -> None:
    (run_dir / "parameters.json").write_text(json.dumps({"parameters": [1], "dropped": {ODD: 3}}))
    rows = {ODD: {"learning_rate": ODD}, "a/b": 5, "c": {"learning_rate": 10**400, "l2": [1]}}
    (run_dir / "rules.json").write_text(json.dumps({"rules": {}, "parameters": rows}))
    page = text_of(run_dir)
    assert f'<th scope="row">{html.escape(ODD)}</th><td>dropped, 3</td>' in page
    assert ODD not in page


@pytest.mark.parametrize("name", ["config.json", "parameters.json", "rules.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000])
def test_files_that_are_broken(run_dir: Path, refused: Callable, name: str, content: str) -> None:
    (run_dir / name).write_text(content)
    assert name in refused("report", run_dir)


@pytest.mark.parametrize("changes", [{"steps": "many"}, {"block": {}}, {"model_dir": 5}])
def test_options_that_are_none(run_dir: Path, refused: Callable, changes: dict) -> None:
    edit(run_dir / "config.json", options=with_options(run_dir, **changes))
    assert "nothing that it can be" in refused("report", run_dir)


def test_places(run_dir: Path, tmp_path: Path, refused: Callable) -> None:
    """A page of ours is made again; nothing else is ever replaced."""
    assert "no run directory" in refused("report", tmp_path)
    text_of(run_dir)
    text_of(run_dir)
    (run_dir / "report.html").write_text("mine")
    for options in ((), ("--overwrite",)):
        assert "is no page of voxtune" in refused("report", run_dir, *options)
    config = run_dir / "config.json"
    assert "must end in .html" in refused("report", run_dir, "-o", config, "--overwrite")
    (tmp_path / "folder.html").mkdir()
    assert "is no page" in refused("report", run_dir, "-o", tmp_path / "folder.html", "--overwrite")
    assert "cannot be written" in refused("report", run_dir, "-o", tmp_path / "no" / "a.html")
    other = tmp_path / "other.html"
    assert main(["report", str(run_dir), "-o", str(other)]) == 0
    assert "pass --overwrite" in refused("report", run_dir, "-o", other)
    assert main(["report", str(run_dir), "-o", str(other), "--overwrite"]) == 0
    (run_dir / "report.html").unlink()
    text_of(run_dir)
    assert other.read_bytes() == (run_dir / "report.html").read_bytes()


def test_folders_that_are_easily_taken_for_a_run(
    run_dir: Path, tmp_path: Path, refused: Callable
) -> None:
    study = tmp_path / "study"
    make_folder_of(study, "study")
    told = refused("report", study)
    assert f"whose page is {study / 'report.html'}" in told
    assert f"in {study / 'runs'}" in told
    told = refused("report", run_dir / "model")
    assert "is a model directory" in told
    assert f"the run that made it, {run_dir}." in told


def test_decay_is_told_of_kernels_and_biases(run_dir: Path) -> None:
    def row(decay: float) -> dict[str, float]:
        return {"learning_rate": 0.001, "weight_decay": decay, "anchor": 0, "l2": 0}

    rows = {"a/x/kernel": row(0.01), "a/x/bias": row(0), "a/y/kernel": row(0.01)}
    rows |= {"b/kernel": row(0.01), "b/c/kernel": row(0)}
    (run_dir / "rules.json").write_text(json.dumps({"rules": [], "parameters": rows}))
    page = text_of(run_dir)
    assert '<td class="number">0.01 (kernel); 0 (bias)</td>' in page
    assert '<td class="number">0.01, 0</td>' in page  # where the last name does not tell


def test_a_log_that_is_far_too_large(run_dir: Path, refused: Callable) -> None:
    path = run_dir / "metrics.jsonl"
    with path.open("r+b") as stream:
        stream.truncate(2**30 + 1)
    with pytest.raises(InputError, match="larger than"):
        list(log_lines(path))
    path.unlink()
    path.mkdir()
    assert "cannot be read" in refused("report", run_dir)


def test_options_are_those_that_were_given(run_dir: Path) -> None:
    """Not what devices and scans have settled; and places are not from the folder of its start."""
    edit(run_dir / "config.json", options=with_options(run_dir, batch=None, model_dir="m"))
    config = Account.read(run_dir).config
    assert config.batch is None
    assert config.model_dir == Path("m")
