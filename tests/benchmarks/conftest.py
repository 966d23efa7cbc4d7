"""What tests of the benchmark share: entries of a history, whose figures are made up."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from voxtune.benchmarks.history import Entry, Place
from voxtune.benchmarks.measurement import Measurement, Work

PLACE = Place(
    revision="0123456789abcdef0123456789abcdef01234567",
    date="2026-01-31",
    machine="1 x cpu, 2 cores",
    versions={"python": "3.11.0", "jax": "0.10.2"},
    flags={},
    copy=1e10,
    products={"float32": 1e11},
)
MEASURED = Measurement(
    "train",
    "net, 16³, batch 1, float32",
    "voxtune",
    settings={
        "network": "meshnet",
        "block": "16x16x16",
        "batch": 1,
        "dtype": "float32",
        "remat": False,
        "map": "jit",
        "devices": 1,
    },
    seconds=(1.0, 1.0, 1.0),
    work=Work(blocks=1, voxels=16**3, flops=2 * 10**10),
    first=3.0,
    floors=(1e11, 1e11, 1e11),
    memory=2**28,
    version="jax 0.10.2",
)


@pytest.fixture(scope="session")
def entry() -> Callable[..., Entry]:
    """Makes an entry with fields of `Place` and of `Measurement`, others as usual.

    Floors are as many as seconds; a peer has none of its own, and another version.
    """

    def make(program: str = "voxtune", **fields: Any) -> Entry:
        names = {each.name for each in dataclasses.fields(Place)}
        where = {name: value for name, value in fields.items() if name in names}
        what = {name: value for name, value in fields.items() if name not in names}
        seconds = what.get("seconds", MEASURED.seconds)
        floors = (1e11,) * len(seconds)
        usual = {"program": program, "floors": floors}
        if program != "voxtune":
            usual |= {"version": f"{program} 1.0"}
        place = dataclasses.replace(PLACE, **where)
        return Entry(place, dataclasses.replace(MEASURED, **{**usual, **what}))

    return make
