"""One training step and one prediction, as pure functions of arrays."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, lax

from voxtune.engine.changes import UNCHANGED, Batch, Changes
from voxtune.engine.config import Finetune
from voxtune.engine.losses import REGRESSION, Loss, class_logits
from voxtune.engine.metrics import Counts, count
from voxtune.engine.optimizer import make_optimizer
from voxtune.engine.rules import Rules
from voxtune.engine.trees import joined
from voxtune.models.families import Network
from voxtune.models.freezing import freeze_statistics
from voxtune.models.variational import divergence

Metrics = dict[str, Any]  # name → float32 scalar, and "counts": Counts


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "statistics", "optimizer", "key", "average", "skipped"],
    meta_fields=[],
)
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, as pure dictionaries of arrays.

    Attributes:
        step: steps done, int32.
        params: nested dict of all parameters.
        statistics: nested dict of running means and variances.
        optimizer: optax's state.
        key: the run's key; each step folds its number into it.
        average: of the trained parameters over the steps, nested dict; empty where there is none.
        skipped: steps in a row, up to now, that were skipped, int32.
    """

    step: Array
    params: Any
    statistics: Any
    optimizer: Any
    key: Array
    average: Any
    skipped: Array

    def averaged(self) -> Any:
        """The parameters to validate and to keep: the average's, where there is one."""
        return joined(self.params, self.average)


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
        self,
        params: Any,
        statistics: Any,
        image: Array,
        dropout: Array | None = None,
        step: Array | None = None,
        axis: str | None = None,
    ) -> tuple[Any, Any]:
        """Logits `[B, D, H, W, C]` and new statistics; in training mode where a key is given.

        A network of deep supervision gives a tuple of logits in training mode. `step` is the
        number of the step, for norms that thaw at one, and `axis` the name of the mapped axis that
        the batch is split over, if any.
        """
        states = nnx.State(params), nnx.State(statistics)
        network: Network = nnx.merge(self.graph, *states, copy=True)
        image = image.astype(self.compute_dtype)
        if dropout is None:
            return network(image), statistics
        rngs = nnx.Rngs(dropout=dropout)
        logits = network(image, train=True, rngs=rngs, remat=self.remat, step=step, axis=axis)
        return logits, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    def drawn(self, params: Any, statistics: Any, image: Array, key: Array) -> Array:
        """Logits `[B, D, H, W, C]` with weights drawn and values dropped, but no statistics of the
        batch."""
        states = nnx.State(params), nnx.State(statistics)
        network: Network = nnx.merge(self.graph, *states, copy=True)
        return network(image.astype(self.compute_dtype), rngs=nnx.Rngs(dropout=key))

    def divergence(self, params: Any, statistics: Any) -> Array | None:
        """Of all random weights from their priors, nats; None where none is random."""
        states = nnx.State(params), nnx.State(statistics)
        return divergence(nnx.merge(self.graph, *states, copy=True))


def split(
    network: Network,
    compute_dtype: str = "float32",
    remat: bool = False,
    rules: Rules | None = None,
) -> tuple[Apply, Any, Any]:
    """A network as a pure function, its parameters and its statistics as nested dicts.

    Statistics that the rules freeze stay, and their norms normalise by them.
    """
    if rules is not None:
        assert isinstance(network, nnx.Module)
        freeze_statistics(network, rules.statistics())
    graph, *states = nnx.split(network, nnx.Param, nnx.BatchStat)
    params, statistics = map(nnx.to_pure_dict, states)
    return Apply(graph, compute_dtype, remat), params, statistics


@dataclass(frozen=True, eq=False)
class TrainStep:
    """The training step: `(state, batch)` → `(state, metrics)`, to be jitted with state donated.

    A batch is `image` float32 `[B, D, H, W, C]` and `label` `[B, D, H, W]`, or what `changes`
    makes that of. A step whose loss, gradient or update is not finite changes nothing but `step`
    and `skipped`.

    Metrics are the loss and its parts, `counts` of voxels, `gradient_norm` (before clipping, of
    what is not frozen now), `update_norm` (of what is added to the parameters, 0 where the step is
    skipped) and `skipped`, all of the whole batch.

    With `axis` it is the step of one device of several: it is given its part of the batch and the
    whole state, and to be mapped by `jax.pmap`. Blocks are changed as they are without, example by
    example, and so come gradients, metrics and moments of batch normalisation, as means (counts as
    sums) over the axis; but what is dropped, and random weights, are drawn by each device from a
    stream of its own.

    Attributes:
        apply: the network.
        optimizer: what moves its parameters.
        rules: which of them are trained.
        loss: what is minimised.
        changes: what is done to a batch before the network sees it.
        voxels: of all training scans together. Where weights are random, their divergence from
            the priors joins the loss, divided by this, since the loss is a mean over voxels: so
            cross-entropy and divergence are the evidence lower bound of a voxel (Blundell et al.
            2015, arXiv 1505.05424).
        accumulate: parts of the batch that are computed one after the other. Losses are means over
            scans, so the gradient is the whole batch's; but batch normalisation takes its moments
            from each part, and its statistics move once a part.
        average: share of the average of the weights that stays in each step, 0 for none. At step
            t it is at most (1 + t) / (10 + t), or the first weights would linger. Statistics of
            batch normalisation are not averaged twice: they are running means already.
        axis: name of the mapped axis that the batch is split over; None where the batch is whole.
    """

    apply: Apply
    optimizer: optax.GradientTransformationExtraArgs
    rules: Rules
    loss: Loss
    changes: Changes
    voxels: int
    accumulate: int
    average: float
    axis: str | None = None

    def first_state(self, params: Any, statistics: Any, seed: int) -> TrainState:
        """The state before the first step."""
        trained, _ = self.rules.separate(params)
        # Copies: a buffer can be donated to a step only once.
        average = jax.tree.map(jnp.copy, trained) if self.average else {}
        zero = jnp.zeros((), jnp.int32)
        optimizer = self.optimizer.init(trained)
        key = jax.random.key(seed)
        return TrainState(zero, params, statistics, optimizer, key, average, jnp.copy(zero))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step."""
        image, label = self.changed(state.key, state.step, batch)
        _, to_drop = step_keys(state.key, state.step)
        if self.axis is not None:
            to_drop = jax.random.fold_in(to_drop, lax.axis_index(self.axis))
        trained, frozen = self.rules.separate(state.params)
        gradients, statistics, metrics = self._gradients(
            trained, frozen, state.statistics, (image, label), to_drop, state.step
        )
        gradients, metrics = self._over_devices(gradients, metrics)
        norm = optax.tree.norm(self.rules.awake(gradients, state.step))
        updates, optimizer = self.optimizer.update(
            gradients, state.optimizer, trained, step=state.step
        )
        moved = optax.apply_updates(trained, updates)
        average = self._averaged(state, moved)
        update_norm = optax.tree.norm(updates)
        finite = jnp.isfinite(metrics["loss"] + norm + update_norm)
        new = moved, statistics, optimizer, average
        old = trained, state.statistics, state.optimizer, state.average
        moved, statistics, optimizer, average = jax.tree.map(
            lambda mine, theirs: jnp.where(finite, mine, theirs), new, old
        )
        skipped = jnp.where(finite, 0, state.skipped + 1)
        params = joined(moved, frozen)
        after = TrainState(
            state.step + 1, params, statistics, optimizer, state.key, average, skipped
        )
        norms = {"gradient_norm": norm, "update_norm": jnp.where(finite, update_norm, 0)}
        return after, {**metrics, **norms, "skipped": skipped}

    def changed(self, key: Array, step: Array | int, batch: Batch) -> tuple[Array, Array]:
        """Image and label as the network sees them.

        Args:
            key: the run's.
            step: the number of the step, from 0.
            batch: see `voxtune.engine.changes`.
        """
        to_change, _ = step_keys(key, step)
        here = batch["label"].shape[0]
        if self.axis is None:
            return self.changes(jax.random.split(to_change, here), batch)
        # Those of this device's examples, out of as many as the whole batch has.
        keys = jax.random.split(to_change, here * lax.axis_size(self.axis))
        first = here * lax.axis_index(self.axis)
        return self.changes(lax.dynamic_slice_in_dim(keys, first, here), batch)

    def _over_devices(self, gradients: Any, metrics: Metrics) -> tuple[Any, Metrics]:
        """Of the whole batch, where it is split over a mapped axis."""
        if self.axis is None:
            return gradients, metrics
        means = {name: each for name, each in metrics.items() if name != "counts"}
        gradients, means = lax.pmean((gradients, means), self.axis)
        if "counts" in metrics:
            means["counts"] = lax.psum(metrics["counts"], self.axis)
        return gradients, means

    def _gradients(
        self,
        trained: Any,
        frozen: Any,
        statistics: Any,
        data: tuple[Array, Array],
        key: Array,
        step: Array,
    ) -> tuple[Any, Any, Metrics]:
        """Gradients of the trained parameters, new statistics, and metrics of a batch."""
        gradient = jax.value_and_grad(self.loss_of, has_aux=True)
        if self.accumulate == 1:
            (_, (statistics, metrics)), gradients = gradient(
                trained, frozen, statistics, *data, key, step
            )
            return gradients, statistics, metrics

        def add(carry: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], Metrics]:
            total, statistics = carry
            (_, (statistics, metrics)), found = gradient(trained, frozen, statistics, *part, step)
            return (optax.tree.add(total, found), statistics), metrics

        zeros = optax.tree.zeros_like(trained)
        parts = (*map(self._parts, data), jax.random.split(key, self.accumulate))
        # XLA on CPU runs convolutions in a loop on one thread (jax#12868).
        unroll = self.accumulate if jax.default_backend() == "cpu" else 1
        (total, statistics), metrics = lax.scan(add, (zeros, statistics), parts, unroll=unroll)
        counts = metrics.pop("counts", None)
        metrics = {name: value.mean() for name, value in metrics.items()}
        if counts is not None:
            metrics["counts"] = jax.tree.map(lambda each: each.sum(axis=0), counts)
        return optax.tree.scale(1 / self.accumulate, total), statistics, metrics

    def _parts(self, array: Array) -> Array:
        """`[B, ...]` → `[parts, B / parts, ...]`, so that a split over devices stays one."""
        shape = (array.shape[0] // self.accumulate, self.accumulate, *array.shape[1:])
        return jnp.moveaxis(array.reshape(shape), 1, 0)

    def loss_of(
        self,
        trained: Any,
        frozen: Any,
        statistics: Any,
        image: Array,
        label: Array,
        key: Array,
        step: Array,
    ) -> tuple[Array, tuple[Any, Metrics]]:
        """The loss of a batch; beside it new statistics and metrics."""
        params = joined(trained, frozen)
        logits, moved = self.apply(params, statistics, image, key, step, self.axis)
        parts = self.loss(logits, label)
        divergence = self.apply.divergence(params, statistics)
        if divergence is not None:
            parts["kl"] = divergence / self.voxels
        penalty = self.rules.penalty(trained)
        if penalty is not None:
            parts["l2"] = penalty
        total = sum(parts.values(), jnp.zeros(()))
        metrics: Metrics = {"loss": total, **parts}
        if self.loss.name not in REGRESSION:
            metrics["counts"] = _counts(logits, label)
        return total, (moved, metrics)

    def _averaged(self, state: TrainState, moved: Any) -> Any:
        if not self.average:
            return state.average
        done = state.step.astype(jnp.float32)
        share = jnp.minimum(self.average, (1 + done) / (10 + done))
        return optax.incremental_update(moved, state.average, 1 - share)


def step_keys(key: Array, step: Array | int) -> tuple[Array, Array]:
    """The keys of a step, made of a run's: for what is done to its batch, and for dropout."""
    to_change, to_drop = jax.random.split(jax.random.fold_in(key, step))
    return to_change, to_drop


def loss_of(config: Finetune) -> Loss:
    """What a run minimises.

    Raises:
        InputError: its options make no sense together.
    """
    return Loss(config.loss, config.class_weights, config.label_smoothing)


def make_step(
    network: Network,
    config: Finetune,
    rules: Rules,
    *,
    changes: Changes = UNCHANGED,
    voxels: int = 1,
) -> tuple[TrainStep, Any, Any]:
    """The training step of a network, its parameters and its statistics as nested dicts."""
    apply, params, statistics = split(network, config.compute_dtype, config.remat, rules)
    step = TrainStep(
        apply,
        make_optimizer(config, rules),
        rules,
        loss_of(config),
        changes,
        voxels,
        config.accumulate,
        config.ema,
    )
    return step, params, statistics


def _counts(logits: Any, label: Array) -> Counts:
    """How often the most probable class is the true one."""
    full = class_logits(logits[0] if isinstance(logits, tuple) else logits)
    return count(full.argmax(axis=-1), label, full.shape[-1])


def predict_step(
    apply: Apply,
    params: Any,
    statistics: Any,
    image: Array,
    key: Array | None = None,
    *,
    values: bool = False,
) -> Array:
    """Probabilities float32 `[B, D, H, W, K]` of an image `[B, D, H, W, C]`.

    K is the number of classes, 2 for a network with one sigmoid output.

    Args:
        apply: the network.
        params: its parameters.
        statistics: its statistics.
        image: float32.
        key: where weights are to be drawn and values dropped: of the draw.
        values: gives the network's outputs as they are.
    """
    if key is None:
        logits, _ = apply(params, statistics, image)
    else:
        logits = apply.drawn(params, statistics, image, key)
    logits = logits.astype(jnp.float32)
    return logits if values else jax.nn.softmax(class_logits(logits), axis=-1)
