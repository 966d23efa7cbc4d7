"""Arrays to disk and back to the last bit, and damage told in a sentence."""

import contextlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxtune.engine.checkpoint import Checkpoints, load_parameters, save_parameters
from voxtune.engine.mesh import data_mesh, on_all, over_data
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
    mesh = data_mesh(2)
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
            checkpoints.save(step, state, {"step": 10 * step}, step / 10)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()} == {
        "2",
        "7",
    }
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        found, data = checkpoints.restore(blank)
    assert data == {"step": 70}
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
    mesh, rng = data_mesh(2), np.random.default_rng(0)
    state = jax.device_put(state, on_all(mesh))
    batch = {
        "image": rng.normal(size=(4, 4, 4, 4, 1)).astype(np.float32),
        "label": rng.integers(0, 2, (4, 4, 4, 4)).astype(np.uint8),
    }
    batch = jax.device_put(batch, over_data(mesh))
    compiled = jax.jit(step, donate_argnums=0, out_shardings=on_all(mesh))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for number in range(1, 4):
            state, _ = compiled(state, batch)
            checkpoints.save(number, state, {"step": number}, 0.5)
        kept = bits(state)
        found, _ = checkpoints.restore(state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for one, other in zip(bits(found), kept, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(
        *(bits(compiled(each, batch)[0]) for each in (found, state)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
