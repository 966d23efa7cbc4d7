"""A graph as a Flax module, under its Keras layer names.

What is computed is said by `voxtune.models.graph`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models import geometry
from voxtune.models.freezing import thawed
from voxtune.models.graph import (
    Graph,
    GraphCall,
    drops,
    graph_of,
    head_of,
    min_multiple,
    scales_only,
    steps_of,
    weight_shapes,
    with_outputs,
)
from voxtune.models.kind import narrow_type
from voxtune.models.kinds import KINDS, Mode
from voxtune.models.run import Run, Tap, ignore


class Weights(nnx.Module):
    """The weights of one layer under Keras's names; `moving_*`, mean and variance are statistics.

    Args:
        shapes: name → shape.
        rngs: source of the initial values.

    Attributes:
        until: the training step until which its statistics are frozen, see
            `voxtune.models.freezing`.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, rngs: nnx.Rngs) -> None:
        for name, shape in shapes.items():
            statistic = name.startswith("moving_") or name in ("mean", "variance")
            kind = nnx.BatchStat if statistic else nnx.Param
            setattr(self, name, kind(_initial(name, shape, rngs)))
        self.names = tuple(shapes)
        self.until = 0.0

    def arrays(self) -> dict[str, Array]:
        """Name → array."""
        return {name: getattr(self, name)[...] for name in self.names}

    def update(self, name: str, value: Array) -> None:
        """Replaces a statistic."""
        getattr(self, name).set_value(value)


def _initial(name: str, shape: tuple[int, ...], rngs: nnx.Rngs) -> Array:
    """Keras's default initial values: Glorot uniform, ones for scales and variances, zeros."""
    last = name.replace("/", "_").rsplit("_", 1)[-1]
    if last in ("kernel", "loc") and len(shape) > 1:
        return nnx.initializers.glorot_uniform()(rngs.params(), shape, jnp.float32)
    if last == "scale":  # of a Bayesian weight, before softplus: TF Probability's default mean
        return jnp.full(shape, -3.0)
    return jnp.ones(shape) if last in ("gamma", "variance") else jnp.zeros(shape)


class GraphNet(nnx.Module):
    """A canonical Keras graph.

    Args:
        graph: what `Graph.to_json` gives.
        channels: channels of the input: what the graph says, and nothing else.
        outputs: the layer `head` gets as many where they differ from its own.
        rngs: source of the initial values.

    Raises:
        ValueError: the graph does not fit together, or has no head where another number of
            outputs is asked for.
    """

    def __init__(
        self,
        *,
        graph: Mapping[str, Any],
        channels: int | None = None,
        outputs: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        parsed = Graph.from_json(graph)
        first = next(iter(parsed.inputs.values()))
        if channels is not None and channels != first[-1]:
            raise ValueError(f"its input has {first[-1]} channels, not {channels}")
        parsed = with_outputs(parsed, outputs)
        self._source = parsed.source  # a text, since modules want hashable constants
        for name, weights in weight_shapes(parsed).items():
            if weights:
                setattr(self, attribute(name), Weights(weights, rngs=rngs))

    @property
    def graph(self) -> Graph:
        """What is computed."""
        return graph_of(self._source)

    @property
    def head_paths(self) -> tuple[str, ...]:
        """The path of the layer that gives the outputs; none if they come from no single one."""
        layer = head_of(self.graph)
        return (attribute(layer),) if layer else ()

    @property
    def min_multiple(self) -> int:
        """Spatial shapes must be multiples of this, voxels."""
        return min_multiple(self.graph)

    @property
    def receptive_field(self) -> int | None:
        """Largest edge of the box of input voxels that an output voxel depends on, voxels.

        None where it depends on the whole input.
        """
        steps, shapes = steps_of(self._source)
        return geometry.receptive_field(steps, self.graph.outputs, shapes)

    @property
    def min_local_depth(self) -> int:
        """Fewest depth slices that a device can hold where depth is split, voxels."""
        steps, shapes = steps_of(self._source)
        graph = self.graph
        depth = shapes[next(iter(graph.inputs))][1]
        return max(self.min_multiple, geometry.min_local_depth(steps, graph.outputs, shapes, depth))

    @property
    def fixed_block(self) -> None:
        """None: `fits` tells which blocks suit."""

    def kl(self) -> Array | None:
        """Divergence of all random weights from their priors, nats; None where none is random."""
        found = []
        for layer in self.graph.layers:
            kind, held = KINDS[layer.kind], getattr(self, attribute(layer.name), None)
            if kind.divergence is not None and held is not None:
                found.append(kind.divergence(kind.complete(layer.config), held.arrays()))
        return jnp.stack(found).sum() if found else None

    def levels(self) -> tuple[str, ...]:
        """Paths of the layers that compute with weights, from input to output.

        Norms, PReLU and other layers with weights that only scale belong to the one before them.
        """
        return tuple(dict.fromkeys(self._levels().values()))

    def level_of(self, path: str) -> str:
        """The level that a parameter or statistic belongs to."""
        levels = self._levels()
        return levels[max((each for each in levels if path.startswith(f"{each}/")), key=len)]

    def _levels(self) -> dict[str, str]:
        """Path of each layer with weights → the level that it belongs to."""
        layers = dict.fromkeys(call.layer for call in self.graph.calls)
        held = [name for name in layers if hasattr(self, attribute(name))]
        scales = [scales_only(self.graph.by_name[name].kind) for name in held]
        level = next((n for n, only in zip(held, scales, strict=True) if not only), "")
        found = {}
        for name, only in zip(held, scales, strict=True):
            level = name if not only or not level else level
            found[attribute(name)] = attribute(level)
        return found

    def run(
        self,
        inputs: Mapping[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        tap: Tap = ignore,
        remat: bool = False,
        step: Array | None = None,
        axis: str | None = None,
    ) -> tuple[Array, ...]:
        """All outputs of all inputs, by the inputs' names; other arguments as `__call__`."""
        graph, found = self.graph, dict(inputs)
        run = Run(train, rngs, tap, remat, step, axis)
        for name, value in inputs.items():
            tap(name, value)
        for part in segments(graph) if remat else (Segment(graph.calls, (), ()),):
            layers = dict.fromkeys(call.layer for call in part.calls)
            held = {
                name: getattr(self, attribute(name))
                for name in layers
                if hasattr(self, attribute(name))
            }
            if remat:
                given = {name: found[name] for name in part.reads}
                again = functools.partial(_run_again, graph, part, run)
                found |= nnx.remat(again)(held, rngs, given)
            else:
                _run_calls(graph, part.calls, run, held, found)
        return tuple(
            value if narrow_type((value,)) is None else value.astype(jnp.float32)
            for value in (found[name] for name in graph.outputs)
        )

    def __call__(
        self,
        x: Array,
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        tap: Tap = ignore,
        remat: bool = False,
        step: Array | None = None,
        axis: str | None = None,
    ) -> Array:
        """What a graph of one input and one output gives.

        From 16 bits it computes in 16 bits, but for norms, sums and its head; see `Kind.narrow`.

        Args:
            x: `[B, D, H, W, C]`, or what the graph takes.
            train: whether statistics are taken from the batch and values dropped.
            rngs: source of dropout, needed where `train` and the network has any.
            tap: receives each intermediate result under its call's name.
            remat: whether the backward pass computes the layers again, a segment at a time (see
                `segments`), to save memory. Only the inputs are tapped then.
            step: as in `voxtune.models.family.Family`.
            axis: likewise.

        Returns:
            `[B, D, H, W, outputs]`, or what the graph gives; never less than float32.
        """
        (name,) = self.graph.inputs
        options: dict[str, Any] = {"tap": tap, "remat": remat, "step": step, "axis": axis}
        (output,) = self.run({name: x}, train=train, rngs=rngs, **options)
        return output


def _run_calls(
    graph: Graph,
    calls: Sequence[GraphCall],
    run: Run,
    held: Mapping[str, Weights],
    found: dict[str, Array],
) -> None:
    """Adds the results of some calls to those found so far; `held` are the weights by layer."""
    head = head_of(graph)
    for call in calls:
        layer = graph.by_name[call.layer]
        training = run.train if call.training is None else call.training
        if run.rngs is None and not run.train and drops(layer.kind):
            training = False  # also where Keras would drop values in prediction
        kept = held.get(layer.name)
        rngs = None if call.training is False else run.rngs
        weights = kept.arrays() if kept is not None else {}
        given = tuple(found[name] for name in call.inputs)
        if layer.name == head and narrow_type(given) is not None:
            given = tuple(x.astype(jnp.float32) for x in given)  # logits are not rounded
        apply = functools.partial(KINDS[layer.kind].apply, layer.config, weights, given)
        if kept is None or not (run.train and training and kept.until):
            found[call.name] = apply(Mode(training, rngs, kept if run.train else None, run.axis))
        elif kept.until == math.inf:
            found[call.name] = apply(Mode(False))
        else:
            thaws = thawed(kept.until, run)
            moving = apply(Mode(training, rngs, _Thawing(kept, thaws), run.axis))
            found[call.name] = jnp.where(thaws, moving, apply(Mode(False)))
        run.tap(call.name, found[call.name])


@dataclass(frozen=True)
class _Thawing:
    """Statistics that move where something holds, and stay as they are where not."""

    kept: Weights
    moves: Array

    def update(self, name: str, value: Array) -> None:
        """Replaces one of them, or not."""
        old = getattr(self.kept, name)[...]
        self.kept.update(name, jnp.where(self.moves, value, old))


def _run_again(
    graph: Graph,
    part: "Segment",
    run: Run,
    held: dict[str, Weights],
    rngs: nnx.Rngs | None,
    given: dict[str, Array],
) -> dict[str, Array]:
    """What a segment gives to others, of what it reads from others."""
    found = dict(given)
    _run_calls(graph, part.calls, dataclasses.replace(run, rngs=rngs, tap=ignore), held, found)
    return {name: found[name] for name in part.gives}


@dataclass(frozen=True)
class Segment:
    """Some calls that follow each other.

    Attributes:
        calls: in order.
        reads: inputs and earlier calls that they read.
        gives: those of them that later calls read, or that are outputs.
    """

    calls: tuple[GraphCall, ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]


def segments(graph: Graph) -> tuple[Segment, ...]:
    """A graph's calls in as many parts as the square root of its calls with weights, rounded.

    What lies between parts is kept for the backward pass, and what lies in the part that is
    computed again: with n layers in √n parts the two together are fewest (Chen et al. 2016, arXiv
    1604.06174). A part begins with a call that has weights.
    """
    weights = weight_shapes(graph)
    heavy = [place for place, call in enumerate(graph.calls) if weights[call.layer]]
    count = max(1, round(math.sqrt(len(heavy))))
    starts = [0, *(heavy[len(heavy) * part // count] for part in range(1, count))]
    found = []
    for start, end in zip(starts, [*starts[1:], len(graph.calls)], strict=True):
        calls, later = graph.calls[start:end], graph.calls[end:]
        inside = {call.name for call in calls}
        read = dict.fromkeys(name for call in calls for name in call.inputs)
        wanted = {*graph.outputs, *(name for call in later for name in call.inputs)}
        gives = tuple(call.name for call in calls if call.name in wanted)
        found.append(Segment(calls, tuple(n for n in read if n not in inside), gives))
    return tuple(found)


def attribute(layer: str) -> str:
    """The name under which a network keeps a layer: its own, and `_` behind one taken here.

    What differs from such a name in underscores at its end gets one too: no two names become one.
    """
    taken = layer.startswith("_") or hasattr(GraphNet, layer.rstrip("_"))
    return f"{layer}_" if taken else layer
