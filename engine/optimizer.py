"""The optimizer: AdamW with one learning rate for the trunk and one for the head."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from voxtune.engine.config import Finetune


def schedule(peak: float, steps: int, warmup: int) -> optax.Schedule:
    """Learning rate of each step: linear from zero over `warmup` steps, then cosine to zero."""
    if warmup == 0:
        return optax.cosine_decay_schedule(peak, steps)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps)


def groups(params: Any, head: str) -> Any:
    """ "head" or "trunk" for each parameter; `head` is the path of the network's last layer."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "head" if path[0].key == head else "trunk", params
    )


def kernels(params: Any) -> Any:
    """True for each kernel; biases, scales and offsets of norms are False."""
    names = ("kernel", "kernel_posterior_loc")  # the second is the mean of a Bayesian one
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith(names), params)


def make_optimizer(config: Finetune, params: Any, head: str) -> optax.GradientTransformation:
    """AdamW after clipping the gradient to a norm of 1; decay on kernels alone.

    Decay is decoupled (Loshchilov and Hutter 2019): each step takes learning rate times
    `weight_decay` of a kernel away.

    Args:
        config: learning rates, decay and steps.
        params: nested dict of the parameters.
        head: path of the network's last layer.
    """

    def adamw(peak: float) -> optax.GradientTransformation:
        rate = schedule(peak, config.steps, config.warmup_steps)
        return optax.adamw(rate, weight_decay=config.weight_decay, mask=kernels)

    rates = {"trunk": adamw(config.trunk_lr), "head": adamw(config.head_lr)}
    return optax.chain(optax.clip_by_global_norm(1.0), optax.partition(rates, groups(params, head)))


def learning_rates(config: Finetune, step: int) -> dict[str, float]:
    """The learning rate of each group at a step, for the log."""
    peaks = {"lr_trunk": config.trunk_lr, "lr_head": config.head_lr}
    return {
        name: float(jnp.asarray(schedule(peak, config.steps, config.warmup_steps)(step)))
        for name, peak in peaks.items()
    }
