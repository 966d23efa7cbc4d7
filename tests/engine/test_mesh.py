"""Devices, and how arrays lie on them; the tests have eight simulated CPU devices."""

from dataclasses import dataclass
from unittest import mock

import jax
import numpy as np
import pytest

from voxtune.engine.mesh import (
    DATA,
    check_batch,
    here,
    make_mesh,
    memory_errors,
    on_all,
    over_data,
    over_depth,
    placed,
    share_of,
)
from voxtune.models.errors import InputError
from voxtune.models.lowering import SPATIAL

DEVICES = 8


@pytest.mark.parametrize(
    ("shape", "data", "spatial"),
    [
        (None, DEVICES, 1),
        ("data=4", 4, 1),
        ("spatial=2", DEVICES // 2, 2),
        ("spatial=3", DEVICES // 3, 3),
        ("spatial=8", 1, 8),
        ("data=2,spatial=2", 2, 2),
        (" spatial = 2 , data = 4 ", 4, 2),
    ],
)
def test_a_mesh_has_the_devices_that_were_asked_for(shape, data, spatial):
    mesh = make_mesh(shape)
    assert dict(mesh.shape) == {DATA: data, SPATIAL: spatial}
    assert list(mesh.devices.flat) == jax.devices()[: data * spatial]
    assert share_of(mesh) == (0, 1)


@pytest.mark.parametrize(
    "shape",
    [
        *("", "4", "data", "data=", "data=0", "data=-1", "data=1.5", "data=1000000", "Data=2"),
        *("batch=2", "data=2,", "data=2,data=2", "data=2 spatial=2", "data=2;spatial=2"),
    ],
)
def test_what_is_no_mesh(shape):
    with pytest.raises(InputError, match=f"--mesh takes data=N,spatial=M .*'{shape}' is not that"):
        make_mesh(shape)


@pytest.mark.parametrize(
    ("shape", "asked"), [("data=9", 9), ("data=4,spatial=4", 16), ("spatial=16", 16)]
)
def test_devices_that_are_not_there(shape, asked):
    with pytest.raises(InputError, match=f"--mesh {shape} asks for {asked} .* there are {DEVICES}"):
        make_mesh(shape)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AssertionError(), "with JAX_PLATFORMS=cuda; see 'voxtune doctor'"),  # no plugin
        (
            RuntimeError("Unable to x\nmore"),
            r"with JAX_PLATFORMS=cuda \(Unable to x\); see 'voxtune",
        ),
    ],
)
def test_no_devices_at_all(error, words, monkeypatch):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(InputError, match=f"JAX finds no devices {words}"):
        make_mesh()


@dataclass(frozen=True)
class Device:
    """A device of one of several processes, which this process cannot reach."""

    process_index: int
    id: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    client: None = None


def of_processes(counts, shape, mine=0):
    """The mesh, and the share of a process, where each has so many devices, in any order."""
    devices = [Device(process, 0) for process, count in enumerate(counts) for _ in range(count)]
    devices = [Device(each.process_index, number) for number, each in enumerate(devices)][::-1]
    known = {
        "devices": devices,
        "local_devices": [each for each in devices if each.process_index == mine],
        "process_count": len(counts),
        "process_index": mine,
    }
    with mock.patch.multiple(
        jax, **{name: mock.Mock(return_value=value) for name, value in known.items()}
    ):
        mesh = make_mesh(shape)
        return mesh, share_of(mesh)


@pytest.mark.parametrize(
    ("counts", "shape", "shares"),
    [
        ((2, 2), None, [(0, 2), (1, 2)]),
        ((4, 4), "spatial=2", [(0, 2), (1, 2)]),  # depth within a process
        ((4, 4), "spatial=4", [(0, 2), (1, 2)]),
        ((2, 2, 2, 2), "data=2,spatial=4", [(0, 2), (0, 2), (1, 2), (1, 2)]),  # over processes
        ((2, 2, 2), "spatial=6", [(0, 1)] * 3),
        ((1, 1), "spatial=2", [(0, 1)] * 2),
        ((2, 1, 1), "spatial=2", [(0, 2), (1, 2), (1, 2)]),
    ],
)
def test_each_process_reads_the_part_of_its_rows(counts, shape, shares):
    """Rows of a process lie side by side, so its part of a batch is one piece."""
    for process, share in enumerate(shares):
        mesh, found = of_processes(counts, shape, process)
        assert found == share
        number, parts = found
        for row, devices in enumerate(mesh.devices):
            if any(each.process_index == process for each in devices):
                assert row // (len(mesh.devices) // parts) == number
        assert [each.id for each in mesh.devices.flat] == list(range(mesh.size))


@pytest.mark.parametrize(
    ("counts", "shape", "said"),
    [
        ((4, 4), "data=4", "data=4 leaves out some of the 8 devices of 2 processes"),
        ((3, 3), "data=3,spatial=2", "does not suit 2 processes, of which this one has 3"),
        ((6, 6), "spatial=4", "does not suit 2 processes, of which this one has 6"),
        ((2, 1), None, "--mesh data=3 does not suit 2 processes"),
    ],
)
def test_processes_that_would_hold_parts_of_rows(counts, shape, said):
    with pytest.raises(InputError, match=said):
        of_processes(counts, shape)


def test_a_batch_is_split_and_parameters_are_not():
    mesh = make_mesh("data=4,spatial=2")
    array = np.arange(48.0).reshape(8, 6)
    split, whole = jax.device_put(array, over_data(mesh)), jax.device_put(array, on_all(mesh))
    deep = jax.device_put(array, over_depth(mesh))
    np.testing.assert_array_equal(split.addressable_shards[-1].data, array[-2:])
    assert [shard.data.shape for shard in split.addressable_shards] == [(2, 6)] * DEVICES
    assert [shard.data.shape for shard in deep.addressable_shards] == [(2, 3)] * DEVICES
    assert [shard.data.shape for shard in whole.addressable_shards] == [array.shape] * DEVICES


def test_a_batch_is_placed_for_either_mapping():
    mesh, batch = make_mesh("data=4"), {"image": np.arange(24.0).reshape(8, 3)}
    for mapped, shape in ((False, (8, 3)), (True, (4, 2, 3))):
        found = placed(batch, mesh, mapped)["image"]
        assert found.sharding.is_equivalent_to(over_data(mesh), found.ndim)
        np.testing.assert_array_equal(found, batch["image"].reshape(shape))


def test_what_is_whole_everywhere_is_there_for_a_process_by_itself():
    mesh = make_mesh("data=2,spatial=2")
    state = {"a": np.arange(3.0), "key": jax.random.key(1)}
    found = here(jax.device_put(state, on_all(mesh)), mesh)
    np.testing.assert_array_equal(found["a"], state["a"])
    assert found["key"] == state["key"]
    assert found["a"].sharding.is_equivalent_to(on_all(mesh.local_mesh), 1)


@pytest.mark.parametrize(
    ("batch", "mesh", "parts", "said"),
    [
        (2, "data=4", 1, "over 4 devices; pass --batch 4, or --mesh data= with"),
        (5, "data=4", 1, "over 4 devices; pass --batch 8, "),
        (9, "data=8", 1, "over 8 devices; pass --batch 16, "),
        (0, "data=2", 1, "over 2 devices; pass --batch 2, "),
        (-3, "data=2", 1, "over 2 devices; pass --batch 2, "),
        (3, "data=2,spatial=2", 1, "over 2 devices; pass --batch 4, "),
        (4, "data=4", 2, "4 devices in 2 parts; pass --batch 8, or --accumulate or --mesh"),
    ],
)
def test_a_batch_that_does_not_split_evenly(batch, mesh, parts, said):
    with pytest.raises(InputError, match=f"batch of {batch} .*{said}"):
        check_batch(batch, make_mesh(mesh), parts)


@pytest.mark.parametrize(
    ("batch", "mesh", "parts"),
    [(1, "data=1", 1), (7, "data=1", 7), (4, "data=4", 1), (16, "data=4", 2), (1, "spatial=8", 1)],
)
def test_a_batch_that_splits_evenly(batch, mesh, parts):
    check_batch(batch, make_mesh(mesh), parts)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory for blocks"),
        (
            jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
                "space hbm. Used 17.20G of 15.48G hbm. Exceeded hbm capacity by 1.72G."
            ),
            r"not enough memory \(used 17.20G of 15.48G\) for blocks",
        ),
        (
            jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3.20GiB."
            ),
            r"not enough memory \(3.20 GiB more were asked for\) for blocks",
        ),
    ],
)
def test_memory_that_runs_out_is_a_sentence(error, said):
    with pytest.raises(InputError, match=said), memory_errors():
        raise error


def test_other_errors_of_jax_stay_what_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")
