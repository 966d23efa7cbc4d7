"""Any functional Keras graph as a Flax module, under its Keras layer names.

A graph here is already canonical: Keras 3's class names and settings, channels last, one output a
call. `voxtune.converters` writes older spellings into this one. What each kind of layer computes
stands in `voxtune.models.kinds`.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from voxtune.models import geometry
from voxtune.models.kind import narrow_type
from voxtune.models.kinds import KINDS, Mode
from voxtune.models.run import Run, Tap, ignore

_UNKNOWN = 128  # stands for a size that the graph leaves open: a multiple of 2 seven times over
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class GraphLayer:
    """A layer: what computes, and the owner of its weights.

    Attributes:
        name: unique; those of a model inside the model begin with its name and a slash.
        kind: a key of `voxtune.models.kinds.KINDS`.
        config: Keras 3's settings that the kind reads, JSON values.
    """

    name: str
    kind: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class GraphCall:
    """One use of a layer; a shared layer has several.

    Attributes:
        name: unique: the layer's name, for further uses with `:1`, `:2`, ...
        layer: name of the layer.
        inputs: names of the calls whose results it reads, in order.
        training: True or False where the call itself says so, whatever the network does.
    """

    name: str
    layer: str
    inputs: tuple[str, ...]
    training: bool | None = None


@dataclass(frozen=True)
class Graph:
    """Layers and their calls.

    Attributes:
        layers: those with and without weights.
        calls: in an order in which each comes after those that it reads.
        inputs: name → shape without the batch, channels last; None where any size will do.
        outputs: names of calls or inputs.
    """

    layers: tuple[GraphLayer, ...]
    calls: tuple[GraphCall, ...]
    inputs: Mapping[str, Shape]
    outputs: tuple[str, ...]

    @functools.cached_property
    def source(self) -> str:
        """As a text, which tells equal graphs."""
        return json.dumps(self.to_json())

    @functools.cached_property
    def by_name(self) -> dict[str, GraphLayer]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "layers": [
                {"name": each.name, "kind": each.kind, "config": dict(each.config)}
                for each in self.layers
            ],
            "calls": [
                {"name": each.name, "layer": each.layer, "inputs": list(each.inputs)}
                | ({} if each.training is None else {"training": each.training})
                for each in self.calls
            ],
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "outputs": list(self.outputs),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Graph":
        """The reverse of `to_json`.

        Raises:
            ValueError: the document is no graph.
        """
        try:
            graph = Graph(
                tuple(GraphLayer(**each) for each in document["layers"]),
                tuple(
                    GraphCall(**{**each, "inputs": tuple(each["inputs"])})
                    for each in document["calls"]
                ),
                {name: tuple(shape) for name, shape in document["inputs"].items()},
                tuple(document["outputs"]),
            )
            _check(graph)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no graph ({error!r})") from error
        return graph


def _check(graph: Graph) -> None:
    """Every name is unique and leads to something that comes before it."""
    layers = {each.name for each in graph.layers}
    for kind in {each.kind for each in graph.layers} - KINDS.keys():
        raise ValueError(
            f"no layer is called '{kind}'; if it is your own, run the file that registers it"
        )
    known = set(graph.inputs)
    if len(layers) != len(graph.layers) or not graph.inputs or not graph.outputs:
        raise ValueError("a graph needs inputs, outputs, and layers with different names")
    for call in graph.calls:
        if call.layer not in layers or call.name in known or not known.issuperset(call.inputs):
            raise ValueError(f"the call '{call.name}' does not fit into the graph")
        known.add(call.name)
    for shape in graph.inputs.values():
        if not shape or not all(n is None or (type(n) is int and n > 0) for n in shape):
            raise ValueError(f"an input has the shape {list(shape)}")
    if not known.issuperset(graph.outputs):
        raise ValueError("an output of the graph is computed nowhere")


def drops(kind: str) -> bool:
    """Whether layers of a kind drop values, or add noise, in training."""
    return "Dropout" in kind or "Noise" in kind


class Weights(nnx.Module):
    """The weights of one layer under Keras's names; `moving_*`, mean and variance are statistics.

    Args:
        shapes: name → shape.
        rngs: source of the initial values.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, rngs: nnx.Rngs) -> None:
        for name, shape in shapes.items():
            statistic = name.startswith("moving_") or name in ("mean", "variance")
            kind = nnx.BatchStat if statistic else nnx.Param
            setattr(self, name, kind(_initial(name, shape, rngs)))
        self.names = tuple(shapes)

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
        return _parsed(self._source)

    @property
    def head_path(self) -> str:
        """The path of the layer that gives the outputs, "" if they come from no single one."""
        layer = head_of(self.graph)
        return attribute(layer) if layer else ""

    @property
    def min_multiple(self) -> int:
        """Spatial shapes must be multiples of this, voxels."""
        return min_multiple(self.graph)

    @property
    def receptive_field(self) -> int | None:
        """Largest edge of the box of input voxels that an output voxel depends on, voxels.

        None where it depends on the whole input.
        """
        steps, shapes = _steps(self._source)
        return geometry.receptive_field(steps, self.graph.outputs, shapes)

    @property
    def min_local_depth(self) -> int:
        """Fewest depth slices that a device can hold where depth is split, voxels."""
        steps, shapes = _steps(self._source)
        graph = self.graph
        depth = shapes[next(iter(graph.inputs))][1]
        return max(self.min_multiple, geometry.min_local_depth(steps, graph.outputs, shapes, depth))

    def kl(self) -> Array | None:
        """Divergence of all random weights from their priors, nats; None where none is random."""
        found = []
        for layer in self.graph.layers:
            kind, held = KINDS[layer.kind], getattr(self, attribute(layer.name), None)
            if kind.divergence is not None and held is not None:
                found.append(kind.divergence(kind.complete(layer.config), held.arrays()))
        return jnp.stack(found).sum() if found else None

    def levels(self) -> tuple[str, ...]:
        """Paths of the layers with weights, from input to output."""
        called = dict.fromkeys(attribute(call.layer) for call in self.graph.calls)
        return tuple(name for name in called if hasattr(self, name))

    def run(
        self,
        inputs: Mapping[str, Array],
        *,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
        tap: Tap = ignore,
        remat: bool = False,
    ) -> tuple[Array, ...]:
        """All outputs of all inputs, by the inputs' names; other arguments as `__call__`."""
        graph, run, found = self.graph, Run(train, rngs, tap, remat), dict(inputs)
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

        Returns:
            `[B, D, H, W, outputs]`, or what the graph gives; never less than float32.
        """
        (name,) = self.graph.inputs
        (output,) = self.run({name: x}, train=train, rngs=rngs, tap=tap, remat=remat)
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
        mode = Mode(training, rngs, kept if run.train else None)
        weights = kept.arrays() if kept is not None else {}
        given = tuple(found[name] for name in call.inputs)
        if layer.name == head and narrow_type(given) is not None:
            given = tuple(x.astype(jnp.float32) for x in given)  # logits are not rounded
        found[call.name] = KINDS[layer.kind].apply(layer.config, weights, given, mode)
        run.tap(call.name, found[call.name])


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


@functools.lru_cache(maxsize=32)
def _parsed(source: str) -> Graph:
    return Graph.from_json(json.loads(source))


@functools.lru_cache(maxsize=32)
def _steps(source: str) -> tuple[dict[str, geometry.Step], dict[str, tuple[int, ...]]]:
    """What `voxtune.models.geometry` asks for: steps and shapes by name."""
    graph = _parsed(source)
    layers, shapes = graph.by_name, results(graph)
    steps = {}
    for call in graph.calls:
        layer = layers[call.layer]
        given = tuple(shapes[name] for name in call.inputs)
        windows = KINDS[layer.kind].windows(layer.config, given, shapes[call.name])
        ranks = {len(shape) for shape in (*given, shapes[call.name])}
        keeps = given[:1] == (shapes[call.name],)
        steps[call.name] = geometry.Step(call.inputs, windows if len(ranks) == 1 else None, keeps)
    return steps, shapes


def min_multiple(graph: Graph) -> int:
    """What the spatial sizes of a graph's inputs must be multiples of, voxels."""
    return geometry.min_multiple(_steps(graph.source)[0], graph.outputs)


def attribute(layer: str) -> str:
    """The name under which a network keeps a layer: its own, and `_` behind one taken here.

    What differs from such a name in underscores at its end gets one too: no two names become one.
    """
    taken = layer.startswith("_") or hasattr(GraphNet, layer.rstrip("_"))
    return f"{layer}_" if taken else layer


def weight_shapes(graph: Graph) -> dict[str, dict[str, tuple[int, ...]]]:
    """Layer → name → shape of its weights, in Keras's order.

    Raises:
        ValueError: the layers do not fit each other.
    """
    return _traced(graph.source, None)[0]


def results(
    graph: Graph, sizes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Call or input → shape of its result, with a batch of 1.

    Args:
        graph: the graph.
        sizes: shape of each input without the batch; what the graph says unless given.

    Raises:
        ValueError: the layers do not fit each other, or the sizes.
    """
    return _traced(graph.source, None if sizes is None else tuple(sizes.items()))[1]


def fits(graph: Graph, sizes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a graph takes inputs of these shapes (without the batch) with the weights it has."""
    try:
        return _traced(graph.source, tuple(sizes.items()))[0] == weight_shapes(graph)
    except ValueError:
        return False


@functools.lru_cache(maxsize=32)
def _traced(
    source: str, sizes: tuple[tuple[str, tuple[int, ...]], ...] | None
) -> tuple[dict[str, dict[str, tuple[int, ...]]], dict[str, tuple[int, ...]]]:
    """Shapes of all weights and of all results, without computing anything."""
    graph = _parsed(source)
    layers, given_sizes = graph.by_name, dict(sizes or ())
    found: dict[str, jax.ShapeDtypeStruct] = {}
    for name, shape in graph.inputs.items():
        known = given_sizes.get(name, tuple(n or _UNKNOWN for n in shape))
        found[name] = jax.ShapeDtypeStruct((1, *known), jnp.float32)
    weights: dict[str, dict[str, tuple[int, ...]]] = {}
    for call in graph.calls:
        layer = layers[call.layer]
        given = tuple(found[name] for name in call.inputs)
        wanted, found[call.name] = traced(layer, given)
        if weights.setdefault(layer.name, wanted) != wanted:
            raise ValueError(f"the uses of '{layer.name}' need weights of different shapes")
    return weights, {name: each.shape for name, each in found.items()}


def traced(
    layer: GraphLayer, inputs: tuple[jax.ShapeDtypeStruct, ...]
) -> tuple[dict[str, tuple[int, ...]], jax.ShapeDtypeStruct]:
    """Shapes of a layer's weights and of its result, without computing anything.

    Raises:
        ValueError: the layer does not fit what it reads.
    """
    try:
        wanted = KINDS[layer.kind].weights(layer.config, tuple(each.shape for each in inputs))
        arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in wanted.items()}
        return wanted, jax.eval_shape(functools.partial(_predict, layer), arrays, inputs)
    except (TypeError, ValueError, LookupError, ArithmeticError, AssertionError) as error:
        shapes = ", ".join(str(list(each.shape[1:])) for each in inputs)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"the layer '{layer.name}' ({layer.kind}) does not fit what it reads, {shapes}: "
            f"{reason}"
        ) from error


def _predict(layer: GraphLayer, weights: dict[str, Array], inputs: tuple[Array, ...]) -> Array:
    return KINDS[layer.kind].apply(layer.config, weights, inputs, Mode(train=False))


# --- head ------------------------------------------------------------------------------------

_HEADS = ("Conv1D", "Conv2D", "Conv3D", "Dense")


def head_of(graph: Graph) -> str | None:
    """The layer that gives the outputs: the last one, but for activations that do nothing.

    None where a graph has several outputs, or its last layer is of another kind or shared.
    """
    if len(graph.outputs) != 1:
        return None
    calls = {call.name: call for call in graph.calls}
    last = calls.get(graph.outputs[0])
    while last is not None and _passes_on(graph.by_name[last.layer]):
        last = calls.get(last.inputs[0])
    if last is None or graph.by_name[last.layer].kind not in _HEADS:
        return None
    uses = sum(call.layer == last.layer for call in graph.calls)
    return last.layer if uses == 1 else None


def _passes_on(layer: GraphLayer) -> bool:
    return layer.kind == "Identity" or (
        layer.kind == "Activation" and layer.config.get("activation") == "linear"
    )


def with_outputs(graph: Graph, outputs: int | None) -> Graph:
    """The graph whose head gives so many outputs; itself where None are asked for.

    Raises:
        ValueError: it gives another number and has no head.
    """
    if outputs is None:
        return graph
    head = head_of(graph)
    if head is None:
        if len(graph.outputs) == 1 and results(graph)[graph.outputs[0]][-1] == outputs:
            return graph
        raise ValueError("its outputs come from no single convolution that could be replaced")
    size = "units" if graph.by_name[head].kind == "Dense" else "filters"
    layers = tuple(
        dataclasses.replace(each, config={**each.config, size: outputs})
        if each.name == head
        else each
        for each in graph.layers
    )
    return dataclasses.replace(graph, layers=layers)
