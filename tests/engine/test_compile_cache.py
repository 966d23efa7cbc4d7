"""Programs that are kept: where, for whom, and that they compute the same."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from voxtune.engine import compile_cache, runtime
from voxtune.engine.compile_cache import prune, use_compile_cache
from voxtune.engine.config import Finetune
from voxtune.engine.user_caches import exposed


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """JAX's, as a user has them who has set nothing."""
    names = "jax_enable_compilation_cache", "jax_compilation_cache_dir"
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], True)
    jax.config.update(names[1], None)
    with warnings.catch_warnings():
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "caches"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def used() -> str | None:
    use_compile_cache()
    found: str | None = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    return found


def test_the_folder_is_the_users_alone(caches: Path) -> None:
    assert used() == str(caches / "voxtune" / "programs")
    for folder in (caches, caches / "voxtune", caches / "voxtune" / "programs"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_by_default_it_lies_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert used() == str(tmp_path / ".cache" / "voxtune" / "programs")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert used() == str(tmp_path / "Library" / "Caches" / "voxtune" / "programs")


def test_what_the_user_has_set_for_jax_comes_first(caches: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    assert used() == "/elsewhere"
    jax.config.update("jax_enable_compilation_cache", False)
    assert used() is None
    assert not caches.exists()


@pytest.mark.parametrize("below", ["voxtune", "voxtune/programs"])
def test_a_folder_that_others_can_write_is_left_out(caches: Path, below: str) -> None:
    """Though it is sticky: a program may be put there before voxtune does."""
    programs = used()
    (caches / below).chmod(0o1777)
    assert use_compile_cache() == (
        f"others can write {caches / below}; run 'chmod go-w {caches / below}', and empty "
        f"{programs}."
    )
    (caches / below).chmod(0o720)
    assert used() is None


def test_programs_that_others_could_write_are_removed(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(used() or "")
    for mode in (0o644, 0o664, 0o646):
        (folder / f"{mode:o}-cache").touch()
        (folder / f"{mode:o}-cache").chmod(mode)
    (folder / "link-cache").symlink_to(tmp_path / "link")
    assert used() is not None
    assert [each.name for each in folder.iterdir()] == ["644-cache"]
    monkeypatch.setattr(os, "geteuid", lambda: 12345 + os.getuid())  # whose file is it now?
    monkeypatch.setattr(compile_cache, "exposed", lambda folder: None)
    assert used() is not None
    assert not list(folder.iterdir())


def test_folders_above_may_be_shared_where_each_keeps_what_is_its_own(caches: Path) -> None:
    folder = Path(used() or "")
    for mode, safe in ((0o1777, True), (0o777, False), (0o755, True)):
        caches.chmod(mode)
        assert (exposed(folder) is None) == safe


@pytest.mark.parametrize(
    ("mode", "owner", "group", "words"),
    [
        (0o775, 0, 0, None),
        (0o775, 1000, 1000, None),  # the user's own group
        (0o775, 1000, 50, "run 'chmod go-w /home'"),
        (0o775, 0, 50, "others can write /home; set XDG_CACHE_HOME"),
        (0o777, 0, 0, "others can write /home; set XDG_CACHE_HOME"),
        (0o755, 50, 50, "/home belongs to someone else; set XDG_CACHE_HOME"),
    ],
)
def test_whose_the_folders_above_are(
    monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, group: int, words: str | None
) -> None:
    def stat(path: Path) -> os.stat_result:
        shared = str(path) == "/home"
        return os.stat_result((mode, 0, 0, 0, owner, group, *(0,) * 4) if shared else safe)

    safe = (0o755, 0, 0, 0, 1000, 1000, *(0,) * 4)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(Path, "stat", stat)
    found = exposed(Path("/home/me/voxtune/programs"))
    assert (found is None) if words is None else (found is not None and words in found)


def test_a_strangers_folder_is_left_out(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used()
    monkeypatch.setattr(os, "geteuid", lambda: 12345 + os.getuid())
    assert "programs belongs to someone else; set XDG_CACHE_HOME" in (use_compile_cache() or "")
    assert used() is None


def test_a_link_is_followed_before_anyone_looks(caches: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "programs").mkdir()
    caches.mkdir()
    (caches / "voxtune").symlink_to(shared)
    assert f"others can write {shared}" in (use_compile_cache() or "")
    assert used() is None
    shared.chmod(0o700)
    assert used() == str(shared / "programs")


def test_a_home_that_cannot_be_written_is_no_error(caches: Path) -> None:
    caches.write_text("no folder")
    said = f"there is no cache folder that can be written ({caches}"
    assert (use_compile_cache() or "").startswith(said)
    caches.unlink()
    caches.mkdir()
    (caches / "voxtune").symlink_to("voxtune")  # to itself
    assert (use_compile_cache() or "").startswith(said)
    assert used() is None


def test_that_nothing_is_kept_is_said_by_one_process(
    caches: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caches.write_text("no folder")
    config = Finetune(Path("model"), "subjects.csv", Path("run"))
    for first in (False, True):
        monkeypatch.setattr(runtime, "is_first", lambda first=first: first)
        runtime.begin(config)
        said = capsys.readouterr().err
        assert said.count("voxtune: warning: compiled programs are not kept: ") == first
        assert said.count("\n") == first


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new-cache", "middle-cache", "old-cache", "other")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (10_000 - age, 10_000 - age))
    prune(tmp_path, 200)
    assert {each.name for each in tmp_path.iterdir()} == {"new-cache", "middle-cache", "other"}
    prune(tmp_path, 99)
    assert [each.name for each in tmp_path.iterdir()] == ["other"]


PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from voxtune.engine import compile_cache, runtime
from voxtune.engine.compile_cache import use_compile_cache
use_compile_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
heard = []
jax.monitoring.register_event_listener(lambda event, **_: heard.append(event))
x = np.random.default_rng(0).normal(size=(1, 8, 8, 8, 2)).astype("f4")
def layers(x, kernel):
    for _ in range(3):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
    return jnp.tanh(x).sum()
kernel = np.linspace(-1, 1, 108, dtype="f4").reshape(3, 3, 3, 2, 2)
value = jax.jit(jax.grad(layers, argnums=1))(x, kernel)
print("cache_hits" in " ".join(heard), np.asarray(value).tobytes().hex())
"""


def test_a_kept_program_computes_the_same_bits_and_a_broken_one_is_made_again(
    caches: Path,
) -> None:
    def run() -> tuple[str, str]:
        env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "true"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=env,
            capture_output=True,
            text=True,
            check=True,
            umask=0o002,  # by which JAX has a group write what it keeps
        )
        assert "Warning" not in done.stderr
        hit, bits = done.stdout.split()
        return hit, bits

    hit, bits = run()
    assert hit == "False"
    assert run() == ("True", bits)
    kept = list((caches / "voxtune" / "programs").glob("*-cache"))
    assert kept
    for each in kept:
        each.write_bytes(each.read_bytes()[:-20])
    assert run() == ("False", bits)
    assert run() == ("True", bits)
