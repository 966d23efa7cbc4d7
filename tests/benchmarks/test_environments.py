"""Environments of the peers, made by a Python and a pip that are shell scripts."""

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from rich.console import Console

from voxtune.benchmarks import environments
from voxtune.benchmarks.environments import peer_environment, pythons, requirements
from voxtune.models.errors import InputError

# Says what it is called with. `python -m venv FOLDER` makes a folder whose pip does what PIP says.
PYTHON = r"""#!/bin/sh
echo "$@" >> "$CALLS"
if [ "$3" = venv ]; then
    if [ -n "$NO_VENV" ]; then echo "$NO_VENV"; exit 1; fi
    mkdir -p "$4/bin" && cp "$0" "$4/bin/python"
else
    printf "$PIP"
    case "$PIP" in *ERROR*) exit 1;; esac
fi
"""
Calls = Callable[[], list[str]]


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of caches, and a Python that is a script."""
    script = tmp_path / "python"
    script.write_text(PYTHON)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PIP", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches"


@pytest.fixture
def calls(caches: Path) -> Calls:
    """What Python and pip were called with, since this was asked last."""
    log = caches.with_name("calls")

    def read() -> list[str]:
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return read


def made(said: list[str] | None = None) -> dict[str, Path]:
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, record=True)
        found = pythons(console)
        if said is not None:
            said += console.export_text().splitlines()
    return found


def test_each_is_made_once_and_said_so(caches: Path, calls: Calls) -> None:
    said: list[str] = []
    found = made(said)
    peers = caches / "voxtune" / "peers"
    assert found == {name: peers / name / "bin" / "python" for name in ("torch", "keras")}
    assert all(each.is_file() for each in found.values())
    assert len(said) == 2
    assert f"making {peers / 'torch'} of torch" in said[0]
    packages = requirements(cuda=False)
    pip = "-I -m pip install --no-input --quiet"
    assert calls() == [
        f"-I -m venv {peers / 'torch'}",
        f"{pip} {' '.join(packages['torch'])}",
        f"-I -m venv {peers / 'keras'}",
        f"{pip} {' '.join(packages['keras'])}",
    ]
    assert peers.stat().st_mode & 0o777 == 0o700
    again: list[str] = []
    assert made(again) == found
    assert (again, calls()) == ([], [])


def test_what_is_half_made_or_of_other_requirements_is_made_anew(
    caches: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [each.parents[1] for each in made().values()]
    calls()
    for spoil in (
        lambda: [(each / "voxtune.json").unlink() for each in folders],
        lambda: [(each / "voxtune.json").write_text("{") for each in folders],
        lambda: [(each / "bin" / "python").unlink() for each in folders],
    ):
        spoil()
        (folders[0] / "old").touch()
        made()
        assert len(calls()) == 4
        assert not (folders[0] / "old").exists()
    others = {"torch": ("torch>=3",), "keras": requirements(cuda=False)["keras"]}
    monkeypatch.setattr(environments, "requirements", lambda cuda: others)
    made()
    assert calls()[1:] == ["-I -m pip install --no-input --quiet torch>=3"]
    monkeypatch.setattr(sys, "version_info", (3, 99))
    made()
    assert len(calls()) == 4


@pytest.mark.parametrize(
    ("variable", "output", "words"),
    [
        (
            "PIP",
            "a\\nERROR: No matching distribution found for torch>=2.6\\nhint: none\\n\\n",
            r"^torch>=2\.6, monai.* cannot be installed for --peers \(pip: No matching "
            r"distribution found for torch>=2\.6\); mend that, or measure without --peers\.$",
        ),
        ("NO_VENV", "ensurepip is not available", r"\(venv: ensurepip is not available\)"),
    ],
)
def test_a_failure_is_one_sentence_and_leaves_nothing(
    caches: Path, monkeypatch: pytest.MonkeyPatch, variable: str, output: str, words: str
) -> None:
    monkeypatch.setenv(variable, output)
    with pytest.raises(InputError, match=words):
        made()
    assert not (caches / "voxtune" / "peers" / "torch").exists()


def test_one_that_is_stopped_leaves_nothing(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(name: str, *_: object) -> None:
        if name == "pip":
            raise KeyboardInterrupt
        (caches / "voxtune" / "peers" / "torch").mkdir()

    monkeypatch.setattr(environments, "_run", stop)
    with pytest.raises(KeyboardInterrupt):
        made()
    assert not (caches / "voxtune" / "peers" / "torch").exists()


def test_two_runs_do_not_make_the_same(
    caches: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "locked", lambda *_: False)
    with pytest.raises(InputError, match=r"Another run of 'voxtune benchmark' is making .*torch;"):
        made()
    assert calls() == []


def test_what_another_run_made_meanwhile_is_taken(
    caches: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_ends(*_: object) -> bool:
        folder = caches / "voxtune" / "peers"
        for name, packages in requirements(cuda=False).items():
            (folder / name / "bin").mkdir(parents=True, exist_ok=True)
            (folder / name / "bin" / "python").touch()
            content = {"python": f"3.{sys.version_info.minor}", "packages": packages}
            (folder / name / "voxtune.json").write_text(json.dumps(content))
        return True

    monkeypatch.setattr(environments, "locked", other_ends)
    assert len(made()) == 2
    assert calls() == []


def test_folders_that_others_can_write_are_not_used(caches: Path) -> None:
    made()
    (caches / "voxtune" / "peers").chmod(0o777)
    with pytest.raises(InputError, match="No environments of peers are made: others can write"):
        made()


def test_there_may_be_no_folder_of_caches(caches: Path) -> None:
    caches.write_text("no folder")
    with pytest.raises(InputError, match=f"cache folder .*{caches}.*; set XDG_CACHE_HOME"):
        made()


@pytest.mark.parametrize(
    ("cuda", "system", "processor", "tensorflow", "jax"),
    [
        (False, "Linux", "x86_64", "tensorflow-cpu>=", "jax=="),
        (False, "Darwin", "arm64", "tensorflow>=", "jax=="),
        (True, "Linux", "x86_64", "tensorflow[and-cuda]>=", "jax[cuda12]=="),
    ],
)
def test_builds_are_those_for_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    cuda: bool,
    system: str,
    processor: str,
    tensorflow: str,
    jax: str,
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr(environments, "version", lambda name: "0.10.2")
    _, backend, own, _ = requirements(cuda)["keras"]
    assert backend.startswith(tensorflow)
    assert own == f"{jax}0.10.*"


@pytest.mark.parametrize(
    ("plugin", "device", "cuda"),
    [
        ("jax-cuda13-plugin", True, True),
        ("jax-cuda12-pjrt", True, True),
        ("", True, False),
        ("jax-cuda13-plugin", False, False),
    ],
)
def test_gpus_want_builds_for_them_in_folders_of_their_own(
    caches: Path,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    plugin: str,
    device: bool,
    cuda: bool,
) -> None:
    def version(name: str) -> str:
        if name not in ("jax", plugin):
            raise PackageNotFoundError(name)
        return "0.10.2"

    monkeypatch.setattr(environments, "version", version)
    monkeypatch.setattr(environments, "_NVIDIA", (str(caches.parent if device else caches / "no"),))
    found = made()
    assert found["keras"].parents[1].name == ("keras-cuda" if cuda else "keras")
    assert ("tensorflow[and-cuda]" in calls()[-1]) == cuda


def test_on_windows_there_are_none(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(InputError, match=r"--peers needs Linux or macOS.*without it, or in WSL"):
        made()


def test_peers_find_nothing_but_their_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "XLA_FLAGS", "KERAS_HOME", "OTHER"):
        monkeypatch.setenv(name, "mine")
    found = peer_environment("cpu", tmp_path)
    assert found["CUDA_VISIBLE_DEVICES"] == ""
    assert found["OTHER"] == "mine"
    assert not {"PYTHONPATH", "XLA_FLAGS"} & {*found}
    assert Path(found["KERAS_HOME"]).parent == tmp_path
