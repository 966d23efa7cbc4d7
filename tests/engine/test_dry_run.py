"""The dry run: its table, and its figures against XLA's own."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from voxtune.engine.config import Finetune
from voxtune.engine.dry_run import parameter_lines, totals
from voxtune.engine.start import Origin
from voxtune.models.families import build
from voxtune.models.flops import flops

BATCH = {
    "image": np.zeros((2, 16, 16, 16, 1), np.float32),
    "label": np.zeros((2, 16, 16, 16), np.uint8),
}
CONFIG: dict[str, Any] = {"steps": 30, "warmup": 0}


@pytest.fixture(scope="module")
def meshnet() -> Any:
    arguments = {"outputs": 2, "filters": 4, "dilations": (1, 2), "norm": "batch"}
    return build("meshnet", arguments)


def cells(lines: list[str]) -> dict[str, list[str]]:
    """Path → the other cells of its line."""
    rows = [re.split(r" {2,}", line) for line in lines]
    assert rows[0] == [
        "path",
        *["shape", "values", "learning rate", "decay", "anchor", "L2", "frozen", "start"],
    ]
    return {path: rest for path, *rest in rows[1:]}


def test_a_row_a_parameter(meshnet: Any, step_of: Any):
    options = CONFIG | {"rule": ("block1/* freeze", "block2/norm/* from_step=20"), "anchor": 0.5}
    step, _ = step_of(meshnet, **options)
    origin = {path: Origin("loaded", "loaded", True) for path in step.rules.rows}
    paths = (Path("model"), "subjects.csv", Path("run"))
    by_path = cells(parameter_lines(step.rules, origin, Finetune(*paths, **options)))
    assert by_path.keys() == step.rules.rows.keys()
    shape, values, rate, decay, anchor, l2, frozen, start = by_path["block2/conv/kernel"]
    assert (shape, values, rate, decay) == ("3x3x3x4x4", "432", "0.001", "0.01")
    assert (anchor, l2, frozen, start) == ("-", "-", "no", "loaded")
    assert by_path["block1/conv/kernel"][2:7] == ["-", "-", "-", "-", "yes"]
    assert by_path["block2/norm/scale"][6] == by_path["block2/norm/mean"][6] == "to step 20"
    assert by_path["head/kernel"][2] == "0.003"
    step, _ = step_of(meshnet, steps=30, unfreeze_every=20)
    by_path = cells(parameter_lines(step.rules, origin, Finetune(*paths, steps=30)))
    assert by_path["block1/conv/bias"][6] == "to step 40, after the end"
    assert by_path["head/bias"][6] == "no"


def number(line: str, before: str) -> float:
    """The number that stands before a word."""
    (found,) = re.findall(rf"([\d,.]+) {before}", line)
    return float(found.replace(",", ""))


def test_totals_count_values_and_work(meshnet: Any, step_of: Any):
    step, state = step_of(meshnet, **CONFIG, freeze_until="head")
    values, work, _, epoch = totals(step.rules, step, state, BATCH, 12, 30)
    sizes = {path: np.prod(row.shape) for path, row in step.rules.rows.items() if not row.statistic}
    assert number(values, "values") == sum(sizes.values())
    assert number(values, "trained") == 4 * 2 + 2
    assert number(values, "frozen") == sum(sizes.values()) - 10
    assert number(work, "GFLOP") == pytest.approx(flops(step, state, BATCH) / 1e9, abs=0.05)
    assert epoch.startswith("an epoch: 6 steps")
    step, state = step_of(meshnet, **CONFIG, unfreeze_every=5)
    values = totals(step.rules, step, state, BATCH, 12, 30)[0]
    assert number(values, "thaw later") == sum(sizes.values()) - 10
    values = totals(step.rules, step, state, BATCH, 12, 10)[0]
    assert number(values, "of them after the end") == sum(
        size for path, size in sizes.items() if path.startswith("block1")
    )


@pytest.mark.parametrize("options", [{}, {"freeze_until": "head"}, {"ema": 0.9, "accumulate": 2}])
def test_memory_is_near_what_the_compiled_step_takes(meshnet: Any, step_of: Any, options: Any):
    """Within a factor of two of XLA's own account, for a batch that outweighs the parameters."""
    step, state = step_of(meshnet, **CONFIG, **options)
    line = totals(step.rules, step, state, BATCH, 12, 30)[2]
    size, unit = re.findall(r"about: ([\d,]+) (KiB|MiB)", line)[0]
    found = float(size.replace(",", "")) * {"KiB": 2**10, "MiB": 2**20}[unit]
    memory = jax.jit(step).lower(state, BATCH).compile().memory_analysis()
    assert memory is not None
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    assert needed / 2 < found < 2 * needed


def test_frozen_parameters_do_not_hide_what_is_kept(step_of: Any):
    """They outweigh the block here; only what reaches the head is kept, and its logits."""
    wide = build("meshnet", {"outputs": 2, "filters": 64, "dilations": (1, 1), "norm": None})
    batch = {name: each[:1, :8, :8, :8] for name, each in BATCH.items()}
    step, state = step_of(wide, **CONFIG, freeze_until="head")
    line = totals(step.rules, step, state, batch, 1, 30)[2]
    size, unit = re.findall(r"backward pass ([\d,]+) (KiB|MiB)", line)[0]
    found = float(size.replace(",", "")) * {"KiB": 2**10, "MiB": 2**20}[unit]
    voxels = 8**3 * 4  # bytes
    assert 64 * voxels <= found <= 90 * voxels
