"""Memory of a compiled step: what it needs, what is free, and less of it for parts of blocks."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from voxtune.engine.augment import PROFILES
from voxtune.engine.changes import Augmented
from voxtune.engine.config import Finetune
from voxtune.engine.mapping import over_mesh
from voxtune.engine.memory import Memory, advice, available_memory, refusals
from voxtune.engine.mesh import DATA, make_mesh, on_all, over_data
from voxtune.models.errors import InputError
from voxtune.models.families import build
from voxtune.models.lowering import SPATIAL, plain_lowerings

CONFIG = Finetune(Path("model"), "subjects.csv", Path("run"))
EDGE, GB = 32, 10**9


def step_memory(step_of: Any, spatial: int) -> Memory:
    """Of a training step of one block, compiled for so many devices, and not run.

    Its activations take most of it, as they do of whole scans, and convolutions are put to XLA in
    the same way everywhere.
    """
    mesh = make_mesh(f"data=1,spatial={spatial}")
    step, state = step_of(build("unet", {"outputs": 2, "filters": 8, "depth": 1}))
    changes = Augmented(PROFILES["strong"], (0,))
    step = over_mesh(dataclasses.replace(step, changes=changes), mesh)
    sizes = (1, EDGE, EDGE, EDGE)
    batch = {
        "image": jax.ShapeDtypeStruct((*sizes, 1), np.float32, sharding=over_data(mesh)),
        "label": jax.ShapeDtypeStruct(sizes, np.uint8, sharding=over_data(mesh)),
    }
    jitted = jax.jit(step, donate_argnums=0, out_shardings=on_all(mesh))
    with jax.set_mesh(mesh), plain_lowerings():
        lowered = jitted.lower(jax.device_put(state, on_all(mesh)), batch)
    found = Memory.of(lowered.compile(), mesh)
    assert found is not None
    return found


def test_devices_that_share_a_block_need_a_share_of_the_memory(step_of: Any) -> None:
    one, two, four = (step_memory(step_of, spatial) for spatial in (1, 2, 4))
    assert one.temporary > 10 * one.arguments
    assert one.total / two.total > 1.8
    assert one.total / four.total > 3.3


def program(state: dict[str, Any], batch: dict[str, Any], cache: Any) -> Any:
    mean = (batch["image"] + cache).mean()
    return {**state, "weight": state["weight"] * mean}, mean


@pytest.fixture(scope="module")
def memory() -> Memory:
    """Of a program: 4 MB a device of state, 1 MB of a batch of 2 MB, 2 MB of a cache."""
    mesh = make_mesh("data=2")
    state = {"weight": np.ones((1000, 1000), np.float32), "key": jax.random.key(0)}
    batch = {"image": np.ones((2, 250_000), np.float32)}
    cache = np.ones((2, 250_000), np.float32)
    given = jax.device_put((state, cache), on_all(mesh))
    batch = jax.device_put(batch, over_data(mesh))
    jitted = jax.jit(program, donate_argnums=0, out_shardings=on_all(mesh))
    found = Memory.of(jitted.lower(given[0], batch, given[1]).compile(), mesh)
    assert found is not None
    return found


def test_what_a_program_is_given_is_named(memory: Memory) -> None:
    assert memory.parts == {"state": 4_000_000, "batch": 1_000_000, "cache": 2_000_000}
    assert memory.arguments == pytest.approx(7_000_000, rel=0.01)
    assert memory.aliased == pytest.approx(4_000_000, rel=0.01)
    assert memory.total < 9_000_000
    said = r"a device needs \d\.\d MB of memory: state 4\.0 MB, batch 1\.0 MB, cache 2\.0 MB"
    assert re.match(said, memory.line())


def test_the_line_says_what_is_known() -> None:
    known = Memory(make_mesh("data=1"), 3 * GB, 2 * GB, GB, 4 * GB, GB // 2)
    assert known.total == 8.5 * GB
    said = "a device needs 8.5 GB of memory: arguments 3.0 GB, temporary 4.0 GB, other 1.5 GB"
    assert known.line() == said


def test_where_xla_does_not_tell_nothing_is_known() -> None:
    compiled: Any = SimpleNamespace(memory_analysis=lambda: None)
    assert Memory.of(compiled, make_mesh("data=1")) is None


class OnDevices:
    """A mesh of devices that are no CPUs, each with so much memory."""

    def __init__(self, data: int, spatial: int, *stats: dict[str, int]) -> None:
        self.devices = np.array([Device(each) for each in stats], object).reshape(data, spatial)
        self.shape, self.size = {DATA: data, SPATIAL: spatial}, data * spatial

    @property
    def local_mesh(self) -> "OnDevices":
        return self


class Device:
    platform = "gpu"

    def __init__(self, stats: dict[str, int]) -> None:
        self.memory_stats = lambda: stats


def needing(further: int, mesh: Any, arguments: int = GB, **parts: int) -> Memory:
    return Memory(mesh, arguments, arguments, arguments, further, 0, parts)


def splits(shards: int, depth: int = 48) -> None:
    """As a network that has depth halved four times."""
    if depth % (16 * shards):
        raise InputError("It does not split so.")


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four devices in all."""
    devices = jax.devices()[:4]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "device_count", lambda: 4)


def test_a_device_with_too_little_memory_is_a_sentence() -> None:
    """The least of them counts; what is held already is not needed again."""
    roomy = {"bytes_limit": 80 * GB, "bytes_in_use": 2 * GB}
    small = {"bytes_limit": 16 * GB, "bytes_in_use": 2 * GB}
    needing(14 * GB, OnDevices(2, 1, roomy, small)).check(CONFIG, 2, splits)
    needing(99 * GB, OnDevices(1, 1, {})).check(CONFIG, 2, splits)  # it does not tell
    said = r"needs 15\.0 GB more memory, but a device has 14\.0 GB free, 1\.0 GB too little; try "
    with pytest.raises(InputError, match=said):
        needing(15 * GB, OnDevices(2, 1, roomy, small)).check(CONFIG, 2, splits)
    unused = {"bytes_limit": 16 * GB}
    with pytest.raises(InputError, match=r"needs 16\.5 GB more memory.*16\.0 GB free"):
        needing(15 * GB, OnDevices(1, 1, unused), GB * 3 // 2).check(CONFIG, 2, splits)


def test_batches_that_wait_on_a_device_need_memory_too() -> None:
    """Two that come next, and the one before."""
    mesh = OnDevices(1, 1, {"bytes_limit": 16 * GB, "bytes_in_use": GB})
    needing(12 * GB, mesh, batch=GB).check(CONFIG, 2, splits)
    with pytest.raises(InputError, match=r"needs 16\.0 GB more memory"):
        needing(13 * GB, mesh, batch=GB).check(CONFIG, 2, splits)
    free = available_memory()
    assert free is not None
    with pytest.raises(InputError, match="the machine has"):
        needing(0, make_mesh("data=8"), batch=free // 8).check(CONFIG, 8, splits)


def test_cpu_devices_share_the_machines_memory() -> None:
    free = available_memory()
    assert free is not None
    needing(free // 10, make_mesh("data=8")).check(CONFIG, 8, splits)
    with pytest.raises(InputError, match=r"the machine has .* too little; try a sm"):
        needing(free // 4, make_mesh("data=8")).check(CONFIG, 8, splits)


@pytest.mark.usefixtures("four")
def test_advice_leaves_out_what_a_run_does_already() -> None:
    def whole(shards: int) -> None:
        splits(shards, depth=64)

    mesh: Any = OnDevices(4, 1, {}, {}, {}, {})
    assert advice(CONFIG, mesh, 8, whole) == (
        "try a smaller --block, --batch 4, --accumulate 2, --remat, --compute-dtype bfloat16, "
        "--mesh spatial=4 with --batch 1 or --shard-optimizer"
    )
    thrifty = dataclasses.replace(
        CONFIG, accumulate=2, remat=True, compute_dtype="bfloat16", shard_optimizer=True
    )
    said = "try a smaller --block or --mesh spatial=4 with --batch 2"
    assert advice(thrifty, mesh, 8, whole) == said
    one: Any = OnDevices(1, 4, {}, {}, {}, {})
    cached = dataclasses.replace(thrifty, cache="device", map="pmap")
    assert advice(cached, one, 2, whole) == "try a smaller --block or --cache host"
    assert advice(CONFIG, make_mesh("data=1"), 1, whole) == "try a smaller --block"


@pytest.mark.usefixtures("four")
def test_advice_names_meshes_that_the_run_would_take() -> None:
    """Depth of 96 splits over two, of 48 over none but three, of which there are not as many."""
    thrifty = dataclasses.replace(CONFIG, remat=True, compute_dtype="bfloat16")
    one: Any = OnDevices(1, 1, {})

    def deeper(shards: int) -> None:
        splits(shards, depth=96)

    assert advice(thrifty, one, 1, splits) == "try a smaller --block"
    said = "try a smaller --block or --mesh data=2,spatial=2 with --batch 2"
    assert advice(thrifty, one, 1, deeper) == said
    said = "try a smaller --block, --batch 1, --accumulate 6 or --mesh data=3"
    assert advice(thrifty, one, 6, splits) == said  # three are idle


def test_xlas_refusal_is_a_sentence() -> None:
    """The text is a TPU compiler's."""
    error = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 17.20G of 15.48G hbm. Exceeded hbm capacity by 1.72G."
    )
    mesh = make_mesh("data=1")
    said = r"does not fit .* \(used 17\.20G of 15\.48G\); try a smaller --block, --batch 1 or "
    with pytest.raises(InputError, match=said), refusals(CONFIG, mesh, 2, splits):
        raise error
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        refusals(CONFIG, mesh, 2, splits),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")


@pytest.mark.parametrize(("limit", "free"), [(None, 800 * 1024), (5000, 2000)])
def test_memory_that_is_left(tmp_path: Path, limit: int | None, free: int) -> None:
    """Of the machine's and of a control group's the less."""
    assert available_memory(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:  1000 kB\nMemAvailable:   800 kB\n")
    if limit is not None:
        (tmp_path / "proc/self/cgroup").write_text("0::/\n")
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        (tmp_path / "sys/fs/cgroup/memory.current").write_text("3000\n")
    assert available_memory(tmp_path) == free
