"""Devices, and how arrays lie on them; the tests have eight simulated CPU devices."""

import jax
import numpy as np
import pytest

from voxtune.engine.mesh import DATA, check_batch, data_mesh, on_all, over_data
from voxtune.models.errors import InputError


@pytest.mark.parametrize("devices", [1, 3, None])
def test_a_mesh_has_the_devices_that_were_asked_for(devices):
    mesh = data_mesh(devices)
    assert mesh.axis_names == (DATA,)
    assert mesh.size == (devices or len(jax.devices()))
    assert list(mesh.devices.flat) == jax.devices()[: mesh.size]


@pytest.mark.parametrize("devices", [0, -1, 10_000])
def test_devices_that_are_not_there(devices):
    with pytest.raises(InputError, match=f"--devices {devices} .* has {len(jax.devices())}"):
        data_mesh(devices)


def test_a_batch_is_split_and_parameters_are_not():
    mesh = data_mesh(4)
    array = np.arange(24.0).reshape(8, 3)
    split, whole = jax.device_put(array, over_data(mesh)), jax.device_put(array, on_all(mesh))
    parts = [np.asarray(shard.data) for shard in split.addressable_shards]
    np.testing.assert_array_equal(np.concatenate(parts), array)
    assert [part.shape for part in parts] == [(2, 3)] * 4
    assert [shard.data.shape for shard in whole.addressable_shards] == [array.shape] * 4


@pytest.mark.parametrize(
    ("batch", "devices", "advice"), [(2, 4, 4), (5, 4, 8), (9, 8, 16), (0, 2, 2), (-3, 2, 2)]
)
def test_a_batch_that_does_not_split_evenly(batch, devices, advice):
    with pytest.raises(InputError, match=f"batch of {batch} .*--batch {advice}, "):
        check_batch(batch, data_mesh(devices))


@pytest.mark.parametrize(("batch", "devices"), [(1, 1), (7, 1), (4, 4), (8, 4)])
def test_a_batch_that_splits_evenly(batch, devices):
    check_batch(batch, data_mesh(devices))
