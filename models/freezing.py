"""Norms whose statistics stay, for good or until a training step, as Keras's `trainable = False`.

A frozen norm normalises by its running statistics in training too, and they do not move.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models.run import Run


def freeze_statistics(network: nnx.Module, until: Mapping[str, float]) -> None:
    """Freezes norms, or thaws them.

    Args:
        network: any that is made of voxtune's layers.
        until: path of a statistic, such as `encoder1/unit1/norm/mean` → the training step before
            which its norm is frozen: 0 is not at all, `math.inf` always. What has no entry stays
            as it is; the statistics of one norm have the same.

    Raises:
        ValueError: there is no such statistic, or those of one norm differ.
    """
    layers = {"/".join(map(str, path)): each for path, each in nnx.iter_modules(network)}
    found: dict[str, float] = {}
    for path, step in until.items():
        layer, _, name = path.rpartition("/")
        norm = layers.get(layer)
        if not isinstance(getattr(norm, name, None), nnx.BatchStat):
            raise ValueError(f"the network has no statistic {path}")
        if found.setdefault(layer, step) != step:
            raise ValueError(f"the statistics of {layer} are frozen until different steps")
        setattr(norm, "until", step)  # noqa: B010  # a module of any class


def thawed(until: float, run: Run) -> Array:
    """Whether a norm that is frozen until a step moves now.

    Raises:
        ValueError: the network was not told the step.
    """
    if run.step is None:
        raise ValueError(f"a norm is frozen until step {until:g}: the network needs its `step`")
    return jnp.asarray(run.step >= until)
