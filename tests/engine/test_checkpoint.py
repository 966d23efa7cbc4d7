"""Arrays to disk and back to the last bit, and damage told in a sentence."""

import contextlib
import errno
import io
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from rich.console import Console

from voxtune.engine.checkpoint import Checkpoints, load_parameters, save_parameters
from voxtune.engine.mesh import make_mesh, on_all, over_data
from voxtune.engine.run_dir import Log
from voxtune.engine.step import TrainState
from voxtune.engine.trees import nested
from voxtune.models.errors import InputError
from voxtune.models.families import build

# What Orbax's threads say of a damaged checkpoint, after its event loop was closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

RNG = np.random.default_rng(0)
PARAMETERS = {
    "block1/conv/kernel": RNG.normal(size=(3, 3, 3, 1, 2)).astype(np.float32),
    "block1/conv/bias": np.array([-0.0, np.finfo(np.float32).tiny], np.float32),
    "head/bias": RNG.normal(size=4).astype(np.float32),
}
SHAPES = {path: value.shape for path, value in PARAMETERS.items()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, not to be altered."""
    directory = tmp_path_factory.mktemp("checkpoint") / "params"
    save_parameters(directory, PARAMETERS)
    return directory


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """A checkpoint to be altered."""
    return shutil.copytree(original, tmp_path / "params")


def test_parameters_come_back_to_the_last_bit(original: Path):
    found = load_parameters(original, SHAPES)
    assert found.keys() == PARAMETERS.keys()
    for path, value in PARAMETERS.items():
        assert found[path].dtype == np.float32
        assert found[path].tobytes() == value.tobytes()


def test_a_missing_checkpoint(tmp_path: Path):
    with pytest.raises(InputError, match="params does not exist"):
        load_parameters(tmp_path / "params", SHAPES)


def arrays(folder: Path) -> Path:
    """The file with the arrays."""
    return max((folder / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(arrays(folder)),
        lambda folder: flip_a_bit(arrays(folder)),
        lambda folder: arrays(folder).unlink(),
        lambda folder: (folder / "state/_METADATA").unlink(),
        lambda folder: cut(folder / "state/_METADATA"),
        lambda folder: cut(folder / "state/manifest.ocdbt"),
        lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
        lambda folder: shutil.rmtree(folder / "state"),
        empty,
    ],
    ids=[
        "arrays cut short",
        "a bit flipped",
        "arrays lost",
        "metadata lost",
        "metadata cut short",
        "manifest cut short",
        "checkpoint metadata lost",
        "state lost",
        "empty",
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(saved: Path, damage: Callable[[Path], object]):
    damage(saved)
    with pytest.raises(InputError) as caught:
        load_parameters(saved, SHAPES)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_bit_can_flip_unseen(saved: Path):
    """Wherever it is, the arrays are the same or the checkpoint is refused."""
    for path in sorted(path for path in saved.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if not content:
            continue
        flip_a_bit(path)
        with contextlib.suppress(InputError):
            found = load_parameters(saved, SHAPES)
            assert all((found[path] == value).all() for path, value in PARAMETERS.items())
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("block1/conv/bias", (3,)),
        ("block1/conv/kernel", (3, 3, 3, 2, 1)),
        ("block1/conv/scale", (2,)),
        ("head/bias", None),
    ],
)
def test_other_arrays_than_asked_for(original: Path, path: str, shape: tuple[int, ...] | None):
    wanted = {**SHAPES, path: shape} if shape else {k: v for k, v in SHAPES.items() if k != path}
    with pytest.raises(InputError, match=f"{path} ") as caught:
        load_parameters(original, wanted)
    assert str(original) in str(caught.value)


def test_the_first_of_several_differences_is_named(original: Path):
    with pytest.raises(InputError, match=r"at block1/conv/bias "):
        load_parameters(original, dict.fromkeys(SHAPES, (9,)))


def test_a_whole_state_comes_back_with_its_key_and_lies_on_the_mesh(tmp_path: Path):
    mesh = make_mesh("data=2")
    state = TrainState(
        step=jnp.int32(7),
        params=nested(PARAMETERS),
        statistics={},
        optimizer=(jnp.float32(0.1), {"mu": nested(PARAMETERS)}),
        key=jax.random.fold_in(jax.random.key(3), 1),
        average=nested(PARAMETERS),
        skipped=jnp.int32(2),
    )
    state = jax.device_put(state, on_all(mesh))
    blank = jax.device_put(
        TrainState(
            step=jnp.int32(0),
            params=jax.tree.map(jnp.zeros_like, state.params),
            statistics={},
            optimizer=jax.tree.map(jnp.zeros_like, state.optimizer),
            key=jax.random.key(0),
            average=jax.tree.map(jnp.zeros_like, state.average),
            skipped=jnp.int32(0),
        ),
        on_all(mesh),
    )
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (1, 2, 7):
            checkpoints.save(step, state, {"step": step, "of": 10 * step}, step / 10)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()} == {
        "2",
        "7",
    }
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        found, data = checkpoints.restore(blank, 7)
    assert data == {"step": 7, "of": 70}
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(jax.random.uniform(found.key), jax.random.uniform(state.key))


def test_the_best_checkpoint_stays_beside_the_newest(tmp_path: Path):
    qualities = {1: 0.2, 2: 0.7, 3: 0.7, 4: 0.1, 5: math.nan, 6: 0.3}
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        for step, quality in qualities.items():
            checkpoints.save(step, {"step": jnp.int32(step)}, {"step": step}, quality)
        found, data = checkpoints.restore({"step": jnp.int32(0)}, 3)
    assert int(found["step"]) == data["step"] == 3
    left = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()}
    assert left == {"3", "6"}  # of two that are as good the later one


def steps_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_best_one_is_known_after_a_restart(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    for steps in ({1: 0.2, 2: 0.7, 3: 0.1}, {4: 0.6, 5: 0.3}, {6: math.nan}, {7: 0.1}):
        with Checkpoints(folder, keep=1) as checkpoints:
            for step, quality in steps.items():
                checkpoints.save(step, {"step": jnp.int32(step)}, {"step": step}, quality)
    assert steps_in(folder) == {"2", "7"}


def state_of(step: int, size: int = 1000) -> dict[str, jax.Array]:
    return {"a": jnp.arange(size, dtype=jnp.float32) * step, "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints 1, 2 and 3, not to be altered."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, keep=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), {"step": step}, step / 10)
    return folder


@pytest.fixture
def folder(three: Path, tmp_path: Path) -> Path:
    """The same, to be altered."""
    return shutil.copytree(three, tmp_path / "run" / "checkpoints")


def newest(folder: Path, like: Any = None) -> tuple[dict[str, Any] | None, str]:
    """The progress of the newest checkpoint that can be read, and what is said of the others."""
    console = Console(file=io.StringIO(), record=True, width=1000)
    with Checkpoints(folder, keep=3) as checkpoints:
        found = checkpoints.newest(like or state_of(0), console)
    if found is None:
        return None, console.export_text()
    state, progress = found
    for each, value in state_of(progress["step"]).items():
        np.testing.assert_array_equal(state[each], value)
    return progress, console.export_text()


class TestNewest:
    def test_of_none(self, tmp_path: Path) -> None:
        assert newest(tmp_path / "checkpoints") == (None, "")

    def test_of_sound_ones(self, folder: Path) -> None:
        assert newest(folder) == ({"step": 3}, "")

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: cut(arrays(folder)),
            lambda folder: flip_a_bit(arrays(folder)),
            lambda folder: arrays(folder).unlink(),
            lambda folder: (folder / "state/_METADATA").unlink(),
            lambda folder: cut(folder / "state/manifest.ocdbt"),
            lambda folder: shutil.rmtree(folder / "progress"),
            lambda folder: cut(folder / "metrics" / "metrics"),
            empty,
            lambda folder: shutil.copytree(folder.with_name("1"), folder, dirs_exist_ok=True),
        ],
        ids=["cut", "bit", "lost", "metadata", "manifest", "progress", "metrics", "empty", "copy"],
    )
    def test_a_damaged_one_is_told_of_and_moved_aside(
        self, folder: Path, damage: Callable[[Path], object]
    ) -> None:
        damage(folder / "3")
        progress, said = newest(folder)
        assert progress == {"step": 2}
        assert said.startswith("checkpoint 3 cannot be read (")
        assert said.endswith(f"): moved to {folder.parent}/damaged/3, 2 is used\n")
        assert said.count("\n") == 1
        assert steps_in(folder) == {"1", "2"}
        assert steps_in(folder.parent / "damaged") == {"3"}

    def test_damaged_qualities_of_an_older_one_stand_in_nobodys_way(self, folder: Path) -> None:
        (folder / "1" / "metrics" / "metrics").write_text("[" * 100_000)
        with Checkpoints(folder, keep=3) as checkpoints:
            found = checkpoints.newest(state_of(0), Console(quiet=True))
            assert found is not None
            checkpoints.save(4, found[0], {"step": 4}, 0.1)
        assert steps_in(folder) == {"2", "3", "4"}

    @pytest.mark.parametrize("call", ["checkpointables_metadata", "load_checkpointables"])
    def test_one_that_cannot_be_read_now_stays(
        self, folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> Any:
            try:
                raise OSError(errno.EIO, "no")
            except OSError as error:
                raise ValueError("its handler fails") from error

        monkeypatch.setattr(ocp, call, fail)
        with pytest.raises(InputError, match=r"Checkpoint 3 in .* be read now \(Input/output"):
            newest(folder)
        assert steps_in(folder) == {"1", "2", "3"}

    def test_memory_that_runs_out_is_no_damage(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> Any:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory")

        monkeypatch.setattr(ocp, "load_checkpointables", fail)
        with Checkpoints(folder, keep=3) as checkpoints:
            reads = (
                partial(checkpoints.restore, step=3),
                partial(checkpoints.newest, console=None),
            )
            for read in reads:
                with pytest.raises(jax.errors.JaxRuntimeError, match="EXHAUSTED"):
                    read(state_of(0))
        assert steps_in(folder) == {"1", "2", "3"}

    def test_what_another_process_cannot_read_now_is_no_damage(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor does this one wait for it in a common read."""
        with Checkpoints(folder, keep=3) as checkpoints, monkeypatch.context() as patched:
            patched.setattr(
                "voxtune.engine.processes.gathered", lambda values: np.array([values, True])
            )
            with pytest.raises(InputError, match="process 1 cannot go on"):
                checkpoints.newest(state_of(0), Console(quiet=True))
        assert steps_in(folder) == {"1", "2", "3"}

    def test_what_another_process_finds_damaged_is(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def found(values: np.ndarray) -> np.ndarray:
            return np.array([values, True]) if values.dtype == bool else values[None]

        monkeypatch.setattr("voxtune.engine.checkpoint.gathered", found)
        with pytest.raises(InputError, match=r"3 \(another process finds it damaged\), 2 \("):
            newest(folder)

    def test_a_file_in_the_place_of_the_folder(self, folder: Path) -> None:
        shutil.rmtree(folder)
        folder.write_text("")
        with pytest.raises(InputError, match=r"checkpoints cannot be made \(File exists\)"):
            newest(folder)

    def test_a_second_damaged_one_of_the_same_step(self, folder: Path) -> None:
        for place in ("3", "3-2"):
            shutil.copytree(folder / "2", folder / "3", dirs_exist_ok=True)
            newest(folder)
            assert (folder.parent / "damaged" / place).is_dir()

    def test_two_damaged_ones(self, folder: Path) -> None:
        cut(arrays(folder / "3"))
        empty(folder / "2")
        assert newest(folder)[0] == {"step": 1}
        assert steps_in(folder) == {"1"}

    def test_where_none_can_be_read_none_is_removed(self, folder: Path) -> None:
        for step in "123":
            cut(arrays(folder / step))
        with pytest.raises(InputError, match=r"No checkpoint in .* can be read: 3 \(.*\), 2 \("):
            newest(folder)
        assert steps_in(folder) == {"1", "2", "3"}

    def test_what_was_not_finished_is_cleaned_away(self, folder: Path) -> None:
        """What a killed process leaves, as Orbax names it."""
        shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
        (folder / "4.orbax-checkpoint-tmp/state").rename(
            folder / "4.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp"
        )
        assert newest(folder) == ({"step": 3}, "")
        assert steps_in(folder) == {"1", "2", "3"}

    @pytest.mark.parametrize(
        ("like", "words"),
        [
            (state_of(0, size=999), r"a has the shape \(1000,\), and \(999,\) is wanted"),
            ({**state_of(0), "b": jnp.ones(3)}, r"b has the shape of nothing, and \(3,\)"),
            ({"step": jnp.int32(0)}, r"a has the shape \(1000,\), and of nothing is wanted"),
        ],
    )
    def test_those_of_another_network_stay(self, folder: Path, like: Any, words: str) -> None:
        with pytest.raises(InputError, match=words):
            newest(folder, like)
        assert steps_in(folder) == {"1", "2", "3"}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("split", [False, True])
def test_it_is_restored_to_other_devices(tmp_path: Path, devices: int, split: bool):
    """Made on four, its optimizer split over them or not; restored split or not."""
    values = np.arange(32, dtype=np.float32).reshape(8, 4)

    def state(number: int, split: bool) -> dict[str, jax.Array]:
        mesh = make_mesh(f"data={number}")
        optimizer = over_data(mesh) if split else on_all(mesh)
        return {
            "params": jax.device_put(values, on_all(mesh)),
            "optimizer": jax.device_put(-values, optimizer),
        }

    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        checkpoints.save(1, state(4, not split), {"step": 1}, math.nan)
    like = jax.tree.map(lambda each: 0 * each, state(devices, split))
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        found, _ = checkpoints.restore(like, 1)
    for name, value in (("params", values), ("optimizer", -values)):
        np.testing.assert_array_equal(found[name], value)
        assert found[name].sharding.is_equivalent_to(like[name].sharding, 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a disk of so many KiB, where that is allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def make(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no small disk can be mounted here")
        return place

    yield make
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


class TestFullDisk:
    @pytest.mark.parametrize("size", [300, 330, 350])
    def test_it_stops_the_run_and_leaves_earlier_ones_whole(
        self, small_disk: Callable[[int], Path], size: int
    ) -> None:
        run = small_disk(size) / "run"
        run.mkdir()
        noise = np.random.default_rng(0).normal(size=20_000).astype(np.float32)

        def write() -> None:
            with Checkpoints(run / "checkpoints", keep=9) as checkpoints:
                for step in range(1, 9):
                    checkpoints.save(step, {"a": jnp.asarray(noise * step)}, {"step": step}, 0.1)

        with pytest.raises(InputError) as caught:
            write()
        last = max(map(int, steps_in(run / "checkpoints")))
        assert str(caught.value) == (
            f"A checkpoint of {run} cannot be written (No space left on device); checkpoint {last} "
            f"is whole. Make room, then go on with 'voxtune resume {run}'."
        )
        assert 1 <= last < 8
        shutil.rmtree(run / "checkpoints" / "1")  # room
        with Checkpoints(run / "checkpoints", keep=9) as checkpoints:
            found = checkpoints.newest({"a": jnp.asarray(noise)}, Console(quiet=True))
            assert found is not None
            np.testing.assert_array_equal(found[0]["a"], noise * last)
            checkpoints.save(last + 1, found[0], {"step": last + 1}, 0.1)
        assert str(last + 1) in steps_in(run / "checkpoints")

    def test_the_error_of_an_end_is_not_covered(self, small_disk: Callable[[int], Path]) -> None:
        run = small_disk(100) / "run"
        run.mkdir()
        noise = np.random.default_rng(0).normal(size=50_000).astype(np.float32)

        def write() -> None:
            with Checkpoints(run / "checkpoints", keep=9) as checkpoints:
                checkpoints.save(1, {"a": jnp.asarray(noise)}, {"step": 1}, 0.1)
                raise KeyError

        with pytest.raises(KeyError):
            write()
        assert steps_in(run / "checkpoints") == set()

    def test_parameters_too(self, small_disk: Callable[[int], Path]) -> None:
        noise = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
        with pytest.raises(OSError, match="No space left"):
            save_parameters(small_disk(100) / "params", {"a": noise})

    def test_the_log_too(self, small_disk: Callable[[int], Path]) -> None:
        run = small_disk(16)
        log = Log(run / "metrics.jsonl")
        (run / "filling").write_bytes(bytes(12 * 1024))

        def write() -> None:
            for step in range(200):
                log.write(event="train", step=step, loss=0.1)

        with pytest.raises(
            InputError, match=r"metrics.jsonl cannot be written: No space .* resume"
        ):
            write()


def bits(state: Any) -> list[np.ndarray]:
    """Copies of all arrays of a state."""
    keys = jax.dtypes.prng_key
    return [
        np.array(jax.random.key_data(each) if jnp.issubdtype(each.dtype, keys) else each)
        for each in jax.tree.leaves(state)
    ]


def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path: Path, step_of: Any):
    """Frozen and thawing levels, anchors, an average, two devices, a donated state."""
    arguments = {"outputs": 2, "filters": 2, "dilations": (1, 1, 1), "norm": "batch"}
    recipe = {"anchor": 0.1, "ema": 0.9, "freeze_until": "block2", "unfreeze_every": 2}
    step, state = step_of(build("meshnet", arguments), steps=20, accumulate=2, **recipe)
    mesh, rng = make_mesh("data=2"), np.random.default_rng(0)
    state = jax.device_put(state, on_all(mesh))
    batch = {
        "image": rng.normal(size=(4, 4, 4, 4, 1)).astype(np.float32),
        "label": rng.integers(0, 2, (4, 4, 4, 4)).astype(np.uint8),
    }
    batch = jax.device_put(batch, over_data(mesh))
    compiled = jax.jit(step, donate_argnums=0, out_shardings=on_all(mesh))
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for number in range(1, 4):
            state, _ = compiled(state, batch)
            checkpoints.save(number, state, {"step": number}, 0.5)
        kept = bits(state)
        found, _ = checkpoints.restore(state, 3)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for one, other in zip(bits(found), kept, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(
        *(bits(compiled(each, batch)[0]) for each in (found, state)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
