"""The distribution: what a wheel and an editable install give a person. No network is used."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("engine", "models", "converters", "benchmarks")


def pip(*arguments: str | Path) -> None:
    quiet = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*quiet, arguments[0], *offline, *arguments[1:]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that building leaves the repository alone."""
    folder = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        junk = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=junk)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--wheel-dir", folder, source)
    (found,) = folder.glob("voxtune-*.whl")
    return found


NAMES = ", ".join(f"voxtune.{name}" for name in PACKAGES)
WHERE = f"import {NAMES}\nfor module in ({NAMES}): print(module.__file__)"


def run_outside(code: str, path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    # -S leaves out this environment's own (editable) voxtune; its libraries are put back by path.
    libraries = [entry for entry in sys.path if Path(entry).is_dir()]
    start = f"import sys; sys.path[:0] = [{str(path)!r}]; sys.path += {libraries!r}\n"
    command = [sys.executable, "-S", "-c", start + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_the_wheel_holds_every_module_the_demo_and_what_starts_clusters(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        for module in (ROOT / package).rglob("*.py"):
            assert f"voxtune/{module.relative_to(ROOT)}" in names
        assert f"voxtune/{package}/py.typed" in names
    assert "voxtune/engine/demo/brain_unet.h5" in names
    assert "voxtune/engine/demo/brain_unet.golden.npz" in names
    assert "voxtune/engine/SCALING.md" in names
    assert "voxtune/engine/viewer.html" in names
    for file in (ROOT / "engine" / "launch").iterdir():
        assert f"voxtune/{file.relative_to(ROOT)}" in names
    assert not any("tests" in name for name in names)


def test_an_installed_wheel_runs_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--target", tmp_path / "site", wheel)
    done = run_outside(WHERE, tmp_path / "site", tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(tmp_path / "site")) for line in done.stdout.splitlines())
    code = "from voxtune.engine.cli import main; main(['--help'])"
    helped = run_outside(code, tmp_path / "site", tmp_path)
    assert helped.returncode == 0, helped.stderr
    for command in ("convert", "finetune", "predict", "evaluate", "phantom", "demo"):
        assert command in helped.stdout
    assert (tmp_path / "site" / "bin" / "voxtune").is_file()


def test_an_editable_install_follows_the_source(source: Path, tmp_path: Path) -> None:
    pip("install", "--target", tmp_path / "site", "--editable", source)
    (pth,) = (tmp_path / "site").glob("__editable__*.pth")
    code = f"exec({pth.read_text()!r})\n" + WHERE
    done = run_outside(code, tmp_path / "site", tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(source)) for line in done.stdout.splitlines())
