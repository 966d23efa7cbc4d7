"""The optimizer: rules → one optax transformation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from voxtune.engine.config import Finetune
from voxtune.engine.rules import Row, Rules
from voxtune.engine.trees import mapped


def scale_by_keras_adam(
    b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as Keras has it: epsilon is added to the root of the second moment as it stands.

    In optax and in Algorithm 1 of Kingma and Ba (2015) it is added to the corrected one, so that
    Keras's weighs more in the first steps: there by a factor of 32. It is their "epsilon hat".
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        count = jnp.zeros((), jnp.int32)
        return optax.ScaleByAdamState(count, zeros, optax.tree.zeros_like(params))

    def update(
        updates: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        first = optax.tree.update_moment(updates, state.mu, b1, 1)
        second = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        factor = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        moved = jax.tree.map(lambda m, v: factor * m / (jnp.sqrt(v) + epsilon), first, second)
        return moved, optax.ScaleByAdamState(count, first, second)

    return optax.GradientTransformation(init, update)


# Nesterov's momentum is nnU-Net's (Isensee et al. 2021).
_CORES: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": optax.scale_by_adam,
    "adam": scale_by_keras_adam,
    "sgd": lambda: optax.trace(0.99, nesterov=True),
    "lion": optax.scale_by_lion,
}
POWER = 0.9  # of nnU-Net's polynomial

Schedule = Callable[[Array | int], Array]


def schedule(config: Finetune) -> Schedule:
    """Share of the peak learning rate at each step: linear from 0 over the warm-up, then as asked.

    The cosine and the polynomial, `(1 - t)^0.9`, come to 0 at the end of the run.
    """
    left = config.steps - config.warmup_steps
    after = {
        "constant": lambda: optax.constant_schedule(1.0),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, left),
        "polynomial": lambda: optax.polynomial_schedule(1.0, 0.0, POWER, left),
    }[config.schedule]()
    if config.warmup_steps == 0:
        return after
    before = optax.linear_schedule(0.0, 1.0, config.warmup_steps)
    return optax.join_schedules([before, after], [config.warmup_steps])


def make_optimizer(config: Finetune, rules: Rules) -> optax.GradientTransformationExtraArgs:
    """What moves the parameters that are trained: a nested dict as `Rules.separate` gives it.

    Its `update` wants the step's number as `step`. Each step clips the gradient of what is not
    frozen now to a norm of `clip`, scales it by the chosen optimizer, adds decay and anchors, and
    multiplies by the learning rate. What is frozen until a later step stays as it is before, and
    its moments begin there.

    Args:
        config: optimizer, schedule and clipping.
        rules: learning rate, decay, anchor and freezing of each parameter.
    """
    trained = {path: row for path, row in rules.rows.items() if row.trained}
    names: dict[tuple[float, ...], str] = {}
    groups: dict[str, optax.GradientTransformation] = {}
    labels: dict[str, str] = {}
    for path, row in trained.items():
        alike = (row.learning_rate, row.weight_decay, row.anchor, row.until)
        labels[path] = names.setdefault(alike, f"group{len(names) + 1}")
        if labels[path] not in groups:
            groups[labels[path]] = _group(config, row)
    # By path: names may hold slashes, and the tree keeps its form.
    chain = [optax.partition(groups, functools.partial(mapped, lambda path, _: labels[path]))]
    if config.clip:
        chain.insert(0, optax.clip_by_global_norm(config.clip))
    if any(row.until for row in trained.values()):
        chain.insert(0, _without_frozen(rules))
    return optax.chain(*chain)


def _group(config: Finetune, row: Row) -> optax.GradientTransformation:
    """What is done to parameters of which all is as in this row."""
    parts = [_CORES[config.optimizer]()]
    if row.weight_decay:
        parts.append(optax.add_decayed_weights(row.weight_decay))
    if row.anchor:
        parts.append(pull_to_start(row.anchor))
    parts.append(_descend(row.learning_rate, schedule(config)))
    whole = optax.chain(*parts)
    return thaw(whole, row.until) if row.until else whole


class Anchored(NamedTuple):
    """State of `pull_to_start`: the parameters at the start."""

    start: Any


def pull_to_start(strength: float) -> optax.GradientTransformation:
    """Adds `strength` times the distance from the first values: to them as decay is to zero."""

    def init(params: Any) -> Anchored:
        # A copy: a buffer can be donated to a step only once.
        return Anchored(jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: Anchored, params: Any = None) -> tuple[Any, Anchored]:
        def pulled(update: Array, value: Array, start: Array) -> Array:
            return update + strength * (value - start)

        return jax.tree.map(pulled, updates, params, state.start), state

    return optax.GradientTransformation(init, update)


def thaw(
    inner: optax.GradientTransformation, until: float
) -> optax.GradientTransformationExtraArgs:
    """A transformation that begins at a step: before it nothing moves, its own state neither.

    So Adam's correction of young moments begins there too.
    """
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: Any, state: Any, params: Any = None, *, step: Array, **extra: Any
    ) -> tuple[Any, Any]:
        moved, after = inner.update(updates, state, params, step=step, **extra)
        active = step >= until
        moved = jax.tree.map(lambda each: jnp.where(active, each, 0), moved)
        return moved, jax.tree.map(lambda new, old: jnp.where(active, new, old), after, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _without_frozen(rules: Rules) -> optax.GradientTransformationExtraArgs:
    """Gradients with zeros for what is frozen now, so that clipping does not count it."""

    def update(
        updates: Any, state: Any, params: Any = None, *, step: Array, **extra: Any
    ) -> tuple[Any, Any]:
        return rules.awake(updates, step), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _descend(peak: float, share: Schedule) -> optax.GradientTransformationExtraArgs:
    """Times minus the learning rate of the step.

    optax's own counts the updates that it has seen: fewer than steps where one was skipped, or
    where a parameter was frozen at first.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, step: Array, **extra: Any
    ) -> tuple[Any, Any]:
        rate = peak * share(step)
        return jax.tree.map(lambda each: -rate * each, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
