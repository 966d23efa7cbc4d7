"""Blocks cut on the devices are those that are read on the host, and nothing is communicated."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxtune.engine.cache import DeviceCache, cut
from voxtune.engine.case import IGNORE, Case, Quantised, contents_of
from voxtune.engine.dataset import Plan, batches, class_table
from voxtune.engine.mesh import make_mesh, over_data
from voxtune.engine.model_dir import LabelClass
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)
BLOCK = (6, 4, 5)
PLAN = Plan(BLOCK, "random", 0.5, batch=4, seed=0)
TABLE = class_table([LabelClass(0, "background"), LabelClass(300, "lesion")])


def case(shape: tuple[int, int, int], target: bool = False, channels: int = 2) -> Case:
    def values(channels: int) -> Quantised:
        stored = RNG.integers(-32768, 32767, (*shape, channels)).astype(np.int16)
        scale, offset = RNG.normal(size=(2, channels)).astype(np.float32)
        return Quantised(stored, scale, offset)

    label = RNG.choice([0, 300, 7], shape).astype(np.uint16)
    where = {300: np.argwhere(label == 300).astype(np.int16)}
    image = values(channels) if channels else None
    truth = values(1) if target else label
    counts, positions = ({}, {}) if target else (contents_of(label)[0], where)
    about: Any = (np.eye(4), counts, {}, positions, shape, (1.0, 1.0, 1.0))
    return Case("a", None, image, truth, *about)


SHAPES = [(9, 8, 7), (6, 4, 5), (4, 9, 3), (3, 3, 3)]  # two of them smaller than the block


@pytest.mark.parametrize(("target", "channels"), [(False, 2), (True, 1), (False, 0)])
def test_blocks_are_the_hosts_rounded_to_bfloat16(target: bool, channels: int):
    cases = [case(shape, target, channels) for shape in SHAPES]
    table, unknown = (None, np.nan) if target else (TABLE, IGNORE)
    mesh = make_mesh("data=2")
    cache = DeviceCache(cases, BLOCK, table, unknown)
    volumes = cache.load(mesh)
    assert {name: (each.shape, each.dtype) for name, each in volumes.items()} == {
        name: (each.shape, each.dtype) for name, each in cache.shapes.items()
    }
    assert cache.bytes == sum(each.nbytes for each in volumes.values())
    assert cache.shapes["label"].shape == (4, 9, 9, 7)
    cutting = jax.jit(partial(cut, block=BLOCK))
    host = batches(cases, PLAN, table, unknown)
    told = batches(cases, PLAN, table, unknown, read=False)
    for step in range(4):
        wanted = {name: each for name, each in host[step].items() if name != "name"}
        places = {name: each for name, each in told[step].items() if name != "name"}
        found = cutting(volumes, jax.device_put(places, over_data(mesh)))
        assert found.keys() == wanted.keys()
        for name, each in wanted.items():
            rounded = each if each.dtype == np.uint8 else each.astype(jnp.bfloat16)
            assert found[name].dtype == each.dtype
            np.testing.assert_array_equal(found[name], rounded.astype(each.dtype))


def test_devices_cut_their_blocks_by_themselves():
    mesh = make_mesh("data=4")
    cache = DeviceCache([case(shape) for shape in SHAPES], BLOCK, TABLE, IGNORE)
    volumes = cache.load(mesh)
    assert all(each.sharding.is_fully_replicated for each in volumes.values())
    choice = {"case": np.zeros(8, np.int32), "start": np.zeros((8, 3), np.int32)}
    choice = jax.device_put(choice, over_data(mesh))
    compiled = jax.jit(partial(cut, block=BLOCK)).lower(volumes, choice).compile()
    text = compiled.as_text()
    for words in ("all-gather", "all-reduce", "all-to-all", "collective", "reduce-scatter"):
        assert words not in text
    for each in compiled(volumes, choice).values():
        assert each.sharding.is_equivalent_to(over_data(mesh), each.ndim)


def test_what_does_not_fit_is_refused_before_anything_is_read():
    unread: Any = SimpleNamespace(shape=(1000, 1000, 1000))
    image: Any = SimpleNamespace(shape=(1000, 1000, 1000, 1))
    about: Any = (np.eye(4), {}, {}, {}, (1, 1, 1), (1.0, 1.0, 1.0))
    cache = DeviceCache([Case("a", None, image, unread, *about)], BLOCK, TABLE, IGNORE)
    stats = {"bytes_limit": 4_000_000_000, "bytes_in_use": 1_500_000_000}
    mesh: Any = SimpleNamespace(local_devices=[SimpleNamespace(memory_stats=lambda: stats)])
    with pytest.raises(InputError, match=r"3\.0 GB .* where 2\.5 GB are free.*--cache host"):
        cache.load(mesh)
