"""One training step and one prediction, as pure functions of arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from voxtune.engine.augment import augment
from voxtune.engine.losses import class_logits, dice_cross_entropy
from voxtune.models.families import Network
from voxtune.models.variational import divergence


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "statistics", "optimizer", "key"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, as pure dictionaries of arrays.

    Attributes:
        step: steps done, int32.
        params: nested dict of what the optimizer moves.
        statistics: nested dict of running means and variances.
        optimizer: optax's state.
        key: the run's key; each step folds its number into it.
    """

    step: Array
    params: Any
    statistics: Any
    optimizer: Any
    key: Array


@dataclass(frozen=True)
class Apply:
    """A network as a pure function of its parameters.

    Attributes:
        graph: what the network is, without its arrays.
        compute_dtype: what it computes in; parameters, statistics and logits are float32.
        remat: whether the backward pass computes each level again instead of keeping it.
    """

    graph: nnx.GraphDef
    compute_dtype: str = "float32"
    remat: bool = False

    def __call__(
        self, params: Any, statistics: Any, image: Array, dropout: Array | None = None
    ) -> tuple[Array, Any]:
        """Logits `[B, D, H, W, C]` and new statistics; in training mode where a key is given."""
        states = nnx.State(params), nnx.State(statistics)
        network: Network = nnx.merge(self.graph, *states, copy=True)
        image = image.astype(self.compute_dtype)
        if dropout is None:
            return network(image), statistics
        logits = network(image, train=True, rngs=nnx.Rngs(dropout=dropout), remat=self.remat)
        return logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    def divergence(self, params: Any, statistics: Any) -> Array | None:
        """Of all random weights from their priors, nats; None where none is random."""
        states = nnx.State(params), nnx.State(statistics)
        return divergence(nnx.merge(self.graph, *states, copy=True))


def split(
    network: Network, compute_dtype: str = "float32", remat: bool = False
) -> tuple[Apply, Any, Any]:
    """A network as a pure function, its parameters and its statistics as nested dicts."""
    graph, *states = nnx.split(network, nnx.Param, nnx.BatchStat)
    params, statistics = map(nnx.to_pure_dict, states)
    return Apply(graph, compute_dtype, remat), params, statistics


def make_train_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    flip_axes: Sequence[int],
    voxels: int = 1,
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]:
    """The step: `(state, batch)` → `(state, metrics)`, to be jitted with the state donated.

    A batch is `image` float32 `[B, D, H, W, C]` and `label` `[B, D, H, W]`.

    Args:
        apply: the network.
        optimizer: what moves its parameters.
        flip_axes: spatial axes along which blocks are flipped at random.
        voxels: of all training scans together. Where weights are random, their divergence from
            the priors joins the loss, divided by this, since the loss is a mean over voxels: so
            cross-entropy and divergence are the evidence lower bound of a voxel (Blundell et al.
            2015, arXiv 1505.05424).
    """

    def train_step(
        state: TrainState, batch: dict[str, Array]
    ) -> tuple[TrainState, dict[str, Array]]:
        to_augment, to_drop = jax.random.split(jax.random.fold_in(state.key, state.step))
        image, label = augment(to_augment, batch["image"], batch["label"], flip_axes)

        def loss_of(params: Any) -> tuple[Array, tuple[Any, dict[str, Array]]]:
            logits, statistics = apply(params, state.statistics, image, to_drop)
            dice, cross_entropy = dice_cross_entropy(class_logits(logits), label)
            parts = {"dice_loss": dice, "cross_entropy": cross_entropy}
            kl = apply.divergence(params, state.statistics)
            if kl is not None:
                parts["kl"] = kl / voxels
            total = sum(parts.values(), jnp.zeros(()))
            return total, (statistics, parts)

        (loss, aux), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        statistics, parts = aux
        updates, moments = optimizer.update(gradients, state.optimizer, state.params)
        metrics = {"loss": loss, **parts, "gradient_norm": optax.tree.norm(gradients)}
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, statistics, moments, state.key), metrics

    return train_step


def make_predict_step(apply: Apply) -> Callable[[Any, Any, Array], Array]:
    """The prediction: parameters, statistics, `[B, D, H, W, C]` → probabilities `[B, D, H, W, K]`.

    K is the number of classes, 2 for a network with one sigmoid output.
    """

    def predict_step(params: Any, statistics: Any, image: Array) -> Array:
        logits, _ = apply(params, statistics, image)
        return jax.nn.softmax(class_logits(logits.astype(jnp.float32)), axis=-1)

    return predict_step
