"""Which contracts can be kept."""

import dataclasses
from typing import Any

import pytest

from voxtune.engine.contract import Contract, check_contract
from voxtune.models.errors import InputError

CONTRACT = Contract("RAS", (1.0, 1.0, 1.0), "zscore", (8, 16, 8))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spacing_mm": None, "grid": (8, 16, 8)},
        {"grid": (2048, 1024, 1024)},
        {"grid": (32767, 256, 256)},
        {"grid": (256, 256, 256), "interpolation": "cubic", "intensity": "zscore_nonzero"},
        {"intensity": "window", "window": (-100.0, 240.0)},
        {"quantiles": (-1.0, 0.0, 0.0, 0.5, 2.0)},
    ],
)
def test_those_that_can(changes: dict[str, Any]) -> None:
    check_contract(dataclasses.replace(CONTRACT, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"orientation": "RRA"}, "'RRA' is no orientation"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "spacing"),
        ({"threshold": 1.5}, "threshold"),
        ({"intensity": "rainbow"}, "No intensity is called 'rainbow'; there are zscore,"),
        ({"interpolation": "nearest"}, "No interpolation is called 'nearest'"),
        ({"grid": (256, 15, 256)}, "--grid 256 15 256 is smaller than the block 8 16 8"),
        *(
            ({"grid": grid, "block": (1, 1, 1)}, "is no grid that a scan can have; give 1 to 32767")
            for grid in ((0, 0, 0), (5, 5, -5), (32768, 1, 1), (2048, 2048, 513), (9**999, 1, 1))
        ),
        ({"intensity": "window"}, "give --window LOW HIGH"),
        (
            {"window": (0.0, 1.0)},
            "--window 0 1 is for the intensity scaling window, not for zscore",
        ),
        *(
            ({"intensity": "window", "window": window}, "is no window")
            for window in ((1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0))
        ),
        *(
            ({"quantiles": quantiles}, "are not 5 finite numbers that rise")
            for quantiles in (
                (),
                (1.0, 2.0, 3.0, 4.0),
                (1.0, 2.0, 3.0, 5.0, 4.0),
                (0.0, 1.0, float("nan"), 2.0, 3.0),
                (0.0, 1.0, 2.0, 3.0, float("inf")),
            )
        ),
    ],
)
def test_those_that_cannot(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_contract(dataclasses.replace(CONTRACT, **changes))
