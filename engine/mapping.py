"""The training step, mapped over the devices and compiled.

A state is the same in both mappings: global arrays, each whole on every device, but for an
optimizer's that is split.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Lowered

from voxtune.engine.cache import Volumes, cut
from voxtune.engine.changes import Batch, Changes
from voxtune.engine.config import Finetune
from voxtune.engine.deterministic import nondeterminism
from voxtune.engine.memory import Memory, refusals
from voxtune.engine.mesh import DATA, on_all, over_data, over_depth, placed
from voxtune.engine.setup import Setup
from voxtune.engine.step import Metrics, TrainState, TrainStep
from voxtune.models.flops import flops
from voxtune.models.lowering import SPATIAL
from voxtune.models.sharding import check_depth_split


@dataclass(frozen=True)
class Compiled:
    """A compiled training step.

    Attributes:
        step: `(state, batch)` → `(state, metrics)`; the state given is used up.
        seconds: that compiling took.
        flops: of a step in convolutions and products, on all devices together. What is computed
            again to save memory does not count.
        memory: that it needs; None where XLA does not tell.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    seconds: float
    flops: int
    memory: Memory | None

    def lines(self) -> list[str]:
        """For a person."""
        lines = [f"step compiled in {self.seconds:.1f} s"]
        return lines if self.memory is None else [*lines, self.memory.line()]


def state_shardings(state: TrainState, mesh: Mesh, shard_optimizer: bool) -> TrainState:
    """Where each array of a state lies: whole on every device, but for a split optimizer's.

    Args:
        state: arrays or their shapes.
        mesh: the devices.
        shard_optimizer: whether each array of the optimizer is split over `data`, along its
            largest axis that this divides; one that has no such axis stays whole.
    """
    whole = jax.tree.map(lambda _: on_all(mesh), state)
    if not shard_optimizer:
        return whole
    split = jax.tree.map(functools.partial(_split, mesh), state.optimizer)
    return dataclasses.replace(whole, optimizer=split)


def _split(mesh: Mesh, array: Any) -> NamedSharding:
    """Where a part of an array that is split over `data` lies."""
    axes = [axis for axis, size in enumerate(array.shape) if size % mesh.shape[DATA] == 0]
    if not axes:
        return on_all(mesh)
    largest = max(axes, key=lambda axis: array.shape[axis])
    return NamedSharding(mesh, P(*(None,) * largest, DATA))


def first_state(
    step: TrainStep, params: Any, statistics: Any, config: Finetune, mesh: Mesh
) -> TrainState:
    """The state before the first step, on the devices.

    Nothing of it is anywhere else, or whole where it is split; parameters and statistics are taken
    from the host, where each process has the same.
    """
    make = functools.partial(step.first_state, seed=config.seed)
    given = jax.tree.map(np.asarray, (params, statistics))
    where = state_shardings(jax.eval_shape(make, *given), mesh, config.shard_optimizer)
    made: TrainState = jax.jit(make, in_shardings=on_all(mesh), out_shardings=where)(*given)
    return made


def compile_step(
    step: TrainStep,
    setup: Setup,
    state: TrainState,
    first: Mapping[str, np.ndarray],
    volumes: Volumes | None,
) -> Compiled:
    """The training step, compiled; with a device cache it cuts its own blocks.

    Args:
        step: what is done to a whole batch.
        setup: the run.
        state: the first one, on the devices.
        first: the first batch on the host, this process's part.
        volumes: of a device cache.

    Raises:
        InputError: it needs more memory than a device has, or cannot be deterministic.
    """
    config, mesh, block = setup.config, setup.mesh, setup.plan.block
    part = {name: each for name, each in first.items() if name != "name"}
    batch = placed(part, mesh, mapped=config.map == "pmap")
    held = () if volumes is None else (volumes,)

    def cutting(step: TrainStep) -> Callable[..., tuple[TrainState, Metrics]]:
        if volumes is None:
            return step
        return lambda state, choice, volumes: step(state, cut(volumes, choice, block))

    began = time.perf_counter()
    lowered = lower_step(step, config, mesh, (state, batch, *held), cutting)

    def splits(shards: int) -> None:
        check_depth_split(setup.start.network(), block[0], shards)

    with refusals(config, mesh, setup.plan.batch, splits), nondeterminism():
        compiled = lowered.compile()
    memory = Memory.of(compiled, mesh)
    if memory is not None:
        memory.check(config, setup.plan.batch, splits)
    seconds = time.perf_counter() - began
    kept = dataclasses.replace(step, apply=dataclasses.replace(step.apply, remat=False))
    return Compiled(
        lambda state, batch: compiled(state, batch, *held),
        seconds,
        flops(cutting(kept), state, whole_batch(first, setup), *held),
        memory,
    )


def lower_step(
    step: TrainStep,
    config: Finetune,
    mesh: Mesh,
    arguments: tuple[Any, ...],
    cutting: Callable[[TrainStep], Callable[..., tuple[TrainState, Metrics]]] = lambda step: step,
) -> Lowered:
    """The training step as it is mapped over the devices, ready to be compiled.

    Args:
        step: what is done to a whole batch.
        config: of the run.
        mesh: the devices.
        arguments: state and batch on the devices, and whatever else each device has the whole of.
        cutting: what makes blocks of those, with the step.
    """
    state, _, *held = arguments
    if config.map == "pmap":
        mapped = jax.pmap(
            cutting(dataclasses.replace(step, axis=DATA)),
            axis_name=DATA,
            in_axes=(None, 0, *(None for _ in held)),
            out_axes=None,
            devices=list(mesh.devices.flat),
            donate_argnums=0,
        )
        return mapped.lower(*arguments)
    where = state_shardings(state, mesh, config.shard_optimizer)
    jitted = jax.jit(
        cutting(over_mesh(step, mesh, config.shard_optimizer)),
        donate_argnums=0,
        out_shardings=(where, on_all(mesh)),
    )
    with jax.set_mesh(mesh):  # by which convolutions know whether depth is split
        return jitted.lower(*arguments)


def whole_batch(part: Mapping[str, np.ndarray], setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch on all devices, by a process's part of one."""
    return {
        name: jax.ShapeDtypeStruct((setup.plan.batch, *each.shape[1:]), each.dtype)
        for name, each in part.items()
        if name != "name"
    }


def over_mesh(step: TrainStep, mesh: Mesh, shard_optimizer: bool = False) -> TrainStep:
    """The step of a whole batch, told how its arrays lie on a mesh where XLA would not know.

    Args:
        step: the training step.
        mesh: the devices; the batch comes split over `data` alone.
        shard_optimizer: whether the optimizer's state is split.
    """
    if mesh.shape[SPATIAL] > 1:
        step = dataclasses.replace(step, changes=_SplitAfter(step.changes, mesh))
    if shard_optimizer:
        step = dataclasses.replace(step, optimizer=_split_optimizer(step.optimizer, mesh))
    return step


@dataclass(frozen=True)
class _SplitAfter:
    """Changes of whole blocks, which are split along depth afterwards.

    Split before, rotations would send the blocks around. So each device of `spatial` changes the
    blocks that it has a part of.
    """

    changes: Changes
    mesh: Mesh

    def __call__(self, keys: Array, batch: Batch) -> tuple[Array, Array]:
        """As the changes."""
        whole, parts = over_data(self.mesh), over_depth(self.mesh)
        keys, batch = lax.with_sharding_constraint((keys, batch), whole)
        changed = lax.with_sharding_constraint(self.changes(keys, batch), whole)
        image, label = lax.with_sharding_constraint(changed, parts)
        return image, label


def _split_optimizer(
    optimizer: optax.GradientTransformationExtraArgs, mesh: Mesh
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that computes each part of its state where it lies (ZeRO-1).

    What it gives is put together again: of all that the step computes that alone is gathered.
    """

    def split(tree: Any) -> Any:
        return jax.tree.map(
            lambda each: lax.with_sharding_constraint(each, _split(mesh, each)), tree
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        # Whole before they are split, or XLA would split what they come from, norms for example.
        updates = split(lax.with_sharding_constraint(updates, on_all(mesh)))
        moved, after = optimizer.update(updates, state, params, **extra)
        return lax.with_sharding_constraint(split(moved), on_all(mesh)), after

    return optax.GradientTransformationExtraArgs(optimizer.init, update)
