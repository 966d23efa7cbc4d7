"""What a fine-tuning would do to each parameter, and what a step of it would cost."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from voxtune.engine.config import Finetune
from voxtune.engine.rules import FOREVER, Row, Rules
from voxtune.engine.start import Origin
from voxtune.engine.step import TrainState, TrainStep
from voxtune.models.flops import flops

MIB = 2**20


_COLUMNS = ("path", "shape", "values", "learning rate", "decay", "anchor", "L2", "frozen", "start")


def parameter_lines(rules: Rules, origin: Mapping[str, Origin], config: Finetune) -> list[str]:
    """A line for each parameter and statistic below a heading, in columns, at the peak rate."""
    cells: list[tuple[str, ...]] = [_COLUMNS]
    for path, row in rules.rows.items():
        numbers = (row.learning_rate, row.weight_decay, row.anchor, row.l2)
        cells.append(
            (
                path,
                "x".join(map(str, row.shape)) or "1",
                f"{math.prod(row.shape):,}",
                *(f"{value:.3g}" if value else "-" for value in numbers),
                _frozen(row, config),
                origin[path].detail,
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _frozen(row: Row, config: Finetune) -> str:
    if row.until == FOREVER:
        return "yes"
    if row.until >= config.steps:
        return f"to step {row.until:.0f}, after the end"
    if row.until:
        return f"to step {row.until:.0f}"
    return "moving" if row.statistic else "no"


def totals(
    rules: Rules,
    step: TrainStep,
    state: TrainState,
    batch: Mapping[str, Any],
    examples: int,
    steps: int,
    cache: int = 0,
) -> list[str]:
    """Counts, work and memory of a step in lines for a person. Nothing is computed.

    The memory is of one device that holds the whole batch: the state, the gradients, the batch,
    and what the backward pass keeps of the forward pass, as JAX traces it. XLA needs less where it
    fuses operations, and more for its working copies.

    Args:
        rules: the parameters.
        step: the training step.
        state: its state, arrays or their shapes.
        batch: arrays or their shapes.
        examples: blocks in a pass through the training scans.
        steps: of the run.
        cache: bytes of the scans that each device keeps.
    """
    rows = [row for row in rules.rows.values() if not row.statistic]
    sizes = {row.path: math.prod(row.shape) for row in rows}
    trained = sum(sizes[row.path] for row in rows if row.trained)
    later = sum(sizes[row.path] for row in rows if row.trained and row.until)
    never = sum(sizes[row.path] for row in rows if row.trained and row.until >= steps)
    whole = sum(sizes.values())
    state, batch = jax.tree.map(_shape, (state, dict(batch)))
    parts = {
        "parameters and statistics": _bytes((state.params, state.statistics)),
        "optimizer": _bytes(state.optimizer),
        "average": _bytes(state.average),
        "gradients": 4 * trained,
        "batch": _bytes(batch),
        "kept for the backward pass": _kept(step, state, batch) // step.accumulate,
        "cache": cache,
    }
    shown = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    thaws = f", of which {later:,} thaw later and cost as much from the start" if later else ""
    thaws += f", {never:,} of them after the end" if never else ""
    blocks = batch["label"].shape[0]
    epoch = f"{examples / blocks:,.1f}".removesuffix(".0")
    return [
        f"parameters: {whole:,} values, {trained:,} trained{thaws}, {whole - trained:,} frozen",
        f"a step: {flops(step, state, batch) / 1e9:,.1f} GFLOP in convolutions and products",
        f"memory, about: {_size(sum(parts.values()))} ({shown})",
        f"an epoch: {epoch} steps, through {examples} blocks",
    ]


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _bytes(tree: Any) -> int:
    return sum(each.size * each.dtype.itemsize for each in jax.tree.leaves(tree))


def _size(size: int) -> str:
    return f"{size / MIB:,.0f} MiB" if size >= MIB else f"{size / 1024:,.0f} KiB"


def _kept(step: TrainStep, state: TrainState, batch: Mapping[str, Any]) -> int:
    """Bytes of the residuals of the loss: what JAX hands from the forward to the backward pass."""
    trained, frozen = step.rules.separate(state.params)
    data = jax.eval_shape(step.changed, state.key, state.step, dict(batch))

    def residuals(trained: Any, frozen: Any, statistics: Any, data: Any, key: Any) -> Any:
        def loss(trained: Any) -> Any:
            image, label = data
            return step.loss_of(trained, frozen, statistics, image, label, key, jnp.int32(0))[0]

        _, backward = jax.vjp(loss, trained)
        return backward

    given = trained, frozen, state.statistics, data, state.key
    traced = jax.make_jaxpr(lambda *arrays: jax.tree.leaves(residuals(*arrays)))(*given).jaxpr
    # Parameters and blocks are handed over as well, and counted already.
    kept: dict[Var, Any] = {
        each: each.aval
        for each in traced.outvars
        if isinstance(each, Var) and each not in traced.invars
    }
    return sum(each.size * each.dtype.itemsize for each in kept.values())
