"""Batches in their order on the mesh, two ahead, and an end without leftovers."""

import dataclasses
import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from voxtune.engine.arrays import MappedArray, write_npy
from voxtune.engine.case import IGNORE, Case, Quantised
from voxtune.engine.dataset import Plan, batches, class_table
from voxtune.engine.feed import Feed
from voxtune.engine.mesh import make_mesh, over_data
from voxtune.engine.model_dir import LabelClass
from voxtune.models.errors import InputError

RNG = np.random.default_rng(0)
SHAPE = (7, 8, 9)
TABLE = class_table([LabelClass(0, "background"), LabelClass(1, "lesion")])


def case(name: str) -> Case:
    stored = RNG.integers(-9, 9, (*SHAPE, 1)).astype(np.int16)
    image = Quantised(stored, np.ones(1, np.float32), np.zeros(1, np.float32))
    label = RNG.integers(0, 2, SHAPE).astype(np.uint8)
    where = {1: np.argwhere(label == 1).astype(np.int16)}
    return Case(name, None, image, label, np.eye(4), {}, {}, where, SHAPE, (1.0, 1.0, 1.0))


CASES = [case(name) for name in "abc"]
PLAN = Plan((3, 5, 4), "random", 0.5, batch=2, seed=0)
DATA = batches(CASES, PLAN, TABLE, IGNORE)


def leftovers() -> tuple[list[str], list[Any]]:
    """Threads of feeds that still run, and processes."""
    names = [each.name for each in threading.enumerate()]
    return [each for each in names if "feed" in each], multiprocessing.active_children()


def waits_for(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def follows(feed: Feed, first_step: int, mesh: Mesh) -> None:
    """Checks the first batches of a feed: the right ones, on their devices."""
    for step in range(first_step, first_step + 5):
        names, batch = next(feed)
        assert names == DATA[step]["name"].tolist()
        assert set(batch) == {"image", "label"}
        for name, each in batch.items():
            assert each.dtype == DATA[step][name].dtype
            assert each.sharding.is_equivalent_to(over_data(mesh), each.ndim)
            np.testing.assert_array_equal(each, DATA[step][name])


@pytest.mark.parametrize(("workers", "threads", "first_step"), [(0, 1, 0), (0, 3, 4), (2, 1, 3)])
def test_batches_come_in_order_whoever_reads_them(workers: int, threads: int, first_step: int):
    mesh = make_mesh("data=2")
    with Feed(DATA, mesh, first_step, workers, threads) as feed:
        follows(feed, first_step, mesh)
    assert leftovers() == ([], [])


def test_choices_for_a_device_cache_are_fed_too():
    data = batches(CASES, PLAN, TABLE, IGNORE, read=False)
    with Feed(data, make_mesh("data=2")) as feed:
        names, batch = next(feed)
    assert names == data[0]["name"].tolist()
    np.testing.assert_array_equal(batch["start"], data[0]["start"])
    np.testing.assert_array_equal(batch["case"], data[0]["case"])


def test_two_batches_are_ahead_and_no_more():
    """Of a shape that nothing else has."""
    plan = dataclasses.replace(PLAN, block=(7, 3, 9))

    def placed() -> int:
        return sum(each.shape == (2, 7, 3, 9, 1) for each in jax.live_arrays())

    with Feed(batches(CASES, plan, TABLE, IGNORE), make_mesh("data=1"), threads=3) as feed:
        for _ in range(3):
            waits_for(lambda: placed() == 2)
            _, batch = next(feed)
            waits_for(lambda: placed() == 3)  # one of them is the step's
            time.sleep(0.1)
            assert placed() == 3
            del batch
    assert placed() == 0


PROCESS = """
import sys
sys.path.insert(0, sys.argv[3])
import jax
number = int(sys.argv[1])
jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=number)
import numpy as np
from functools import partial
from test_feed import CASES, IGNORE, PLAN, TABLE, batches, make_mesh, dataclasses, Feed
from voxtune.engine.cache import DeviceCache, cut
from voxtune.engine.mesh import over_data, share_of
plan = dataclasses.replace(PLAN, batch=8)
part = batches(CASES, plan, TABLE, IGNORE, share=(number, 2))
whole = batches(CASES, plan, TABLE, IGNORE)
with Feed(part, make_mesh(), first_step=3) as feed:
    names, batch = next(feed)
    assert names == whole[3]["name"].tolist()[4 * number:][:4]
    assert batch["image"].shape == whole[3]["image"].shape
    for name, each in batch.items():
        assert len(each.addressable_shards) == 2
        for shard in each.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[3][name][shard.index])
    total = jax.jit(lambda x: x.sum())(batch["image"])
    assert int(total) == whole[3]["image"].sum()

# Depth over both processes: both hold parts of all blocks, and read the same.
deep = make_mesh("spatial=4")
assert share_of(deep) == (0, 1)
assert deep.local_mesh.devices.shape == (1, 2)
told = batches(CASES, plan, TABLE, IGNORE, read=False)
volumes = DeviceCache(CASES, PLAN.block, TABLE, IGNORE).load(deep)
with Feed(told, deep) as feed:
    choice = next(feed)[1]
blocks = jax.jit(partial(cut, block=PLAN.block), out_shardings=over_data(deep))(volumes, choice)
for name, each in blocks.items():
    rounded = whole[0][name].astype(volumes[name].dtype)
    for shard in each.addressable_shards:
        np.testing.assert_array_equal(shard.data, rounded.astype(each.dtype))
"""


def test_two_processes_make_one_batch_of_their_parts():
    """With two devices each; the devices' sum is that of the whole batch.

    And where depth is split over both, each has the whole of it, cut from its own volumes.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    command = [sys.executable, "-c", PROCESS]
    given = [str(port), str(Path(__file__).parent)]
    both = [
        subprocess.Popen(
            [*command, str(number), *given],
            env=os.environ | {"XLA_FLAGS": flags},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [each.communicate(timeout=60)[1] for each in both]
        assert [each.returncode for each in both] == [0, 0], said
    finally:
        for each in both:
            each.kill()


class Broken(grain.transforms.Map):
    """A file that cannot be read any more."""

    def map(self, element: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if element["case"][0] == 1:
            raise InputError("a.npy is gone.")
        return element


def test_what_goes_wrong_while_reading_is_told_when_its_turn_comes():
    data = batches(CASES, dataclasses.replace(PLAN, batch=1), TABLE, IGNORE, read=False)
    bad = next(step for step in range(9) if data[step]["case"][0] == 1)
    with Feed(data.map(Broken()), make_mesh("data=1")) as feed:
        for _ in range(bad):
            next(feed)
        for _ in range(2):
            with pytest.raises(InputError, match=r"a\.npy is gone"):
                next(feed)
    assert leftovers() == ([], [])


def test_a_worker_that_is_killed_is_one_sentence():
    mesh = make_mesh("data=1")
    with Feed(DATA, mesh, first_step=2, workers=1) as feed:
        follows(feed, 2, mesh)
        for each in multiprocessing.active_children():
            each.kill()
        with pytest.raises(InputError, match=r"exit code -9.*fewer --workers"):
            list(itertools.islice(feed, 20))  # those that were ready come first
    assert leftovers() == ([], [])


def test_a_closed_feed_ends_what_waits_for_room():
    feed = Feed(DATA, make_mesh("data=1"))
    next(feed)
    feed.close()
    with pytest.raises(ValueError, match="closed"):
        next(feed)
    assert leftovers() == ([], [])


def stored(folder: Path) -> list[Case]:
    """The cases, their images in files."""
    cases = []
    for each in CASES:
        assert each.image is not None
        array = MappedArray(str(folder / f"{each.name}.npy"), (*SHAPE, 1), np.dtype(np.int16))
        image = dataclasses.replace(each.image, stored=array)
        cases.append(dataclasses.replace(each, image=image))
    return cases


COMMAND = """
import multiprocessing, pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
sys.path.insert(0, sys.argv[1])
folder = pathlib.Path(sys.argv[2])
import voxtune.engine.cli as cli
from test_feed import IGNORE, PLAN, TABLE, Feed, batches, make_mesh, stored
def run(*_):
    with Feed(batches(stored(folder), PLAN, TABLE, IGNORE), make_mesh("data=1"), workers=1) as feed:
        next(feed)
        print(*(each.pid for each in multiprocessing.active_children()), flush=True)
        for _ in feed: pass
cli.run = run
sys.argv[1:] = ["phantom", "x"]
cli.entry()
"""


def is_alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(") ")[2][0] not in "ZX"


def test_a_command_that_ends_early_says_one_line_and_leaves_no_worker(tmp_path: Path):
    """Because of a damaged file, by Ctrl-C at a terminal, which all processes hear, or killed."""
    commands = {}
    for name in ("damaged", "stopped", "killed"):
        (tmp_path / name).mkdir()
        for each in CASES:
            assert each.image is not None
            write_npy(tmp_path / name / f"{each.name}.npy", each.image.stored[:, :, :])
        commands[name] = [sys.executable, "-c", COMMAND, Path(__file__).parent, tmp_path / name]
    bad = tmp_path / "damaged" / "b.npy"
    bad.write_bytes(b"junk" + bad.read_bytes()[4:])
    pipe = subprocess.PIPE
    every = {
        name: subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, process_group=0)
        for name, command in commands.items()
    }
    try:
        workers = {name: each.stdout.readline() for name, each in every.items() if each.stdout}
        os.killpg(every["stopped"].pid, signal.SIGINT)
        every["killed"].kill()
        said = {name: each.communicate(timeout=60)[1] for name, each in every.items()}
        ended = {name: each.returncode for name, each in every.items()}
        assert ended == {"damaged": 2, "stopped": 130, "killed": -signal.SIGKILL}
        assert said["damaged"].startswith(f"voxtune: {bad} ")
        assert said["damaged"].count("\n") == 1
        assert (said["stopped"], said["killed"]) == ("voxtune: stopped.\n", "")
        known = [int(each) for name in ("stopped", "killed") for each in workers[name].split()]
        assert len(known) == 2
        waits_for(lambda: not any(map(is_alive, known)))
    finally:
        for each in every.values():
            each.kill()
