"""The original network in Keras 3 itself, run beside the converted one, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from voxtune.converters.keras_model import KerasModel
from voxtune.converters.to_flax import EMITTED, Conversion
from voxtune.converters.to_keras import (
    WITHOUT_LAYER,
    import_keras,
    to_keras,
    without_random_weights,
)
from voxtune.converters.verify import QUICK_TO_COMPILE, Comparison, compare, intermediate
from voxtune.models.graph import Graph, GraphLayer, drops, fits, min_multiple

KERAS_TOLERANCE = 1e-5  # of the largest value of a layer
_EDGE = 16  # voxels; deep networks and those of large dilations are given more
_LARGEST = 80
_KERAS2_ALONE = "hard_sigmoid_keras2"
_REASON = 80  # characters of what Keras says
_LOADABLE = ("Keras HDF5", "Keras .keras")


@dataclass(frozen=True)
class Verification:
    """What came out of running the original beside the converted network.

    Attributes:
        original: how the original was had: "loaded by Keras 3.15.1", or "rebuilt ...".
        shapes: input layer → shape of the random input.
        comparisons: of each layer.
        unverified: layer → why it was not compared.
    """

    original: str
    shapes: Mapping[str, tuple[int, ...]]
    comparisons: tuple[Comparison, ...]
    unverified: Mapping[str, str]

    @property
    def met(self) -> bool:
        """Whether every comparison is within the tolerance."""
        return all(each.met for each in self.comparisons)


def verify(conversion: Conversion, model: KerasModel | None, seed: int = 0) -> Verification:
    """Runs the original in Keras 3 and compares every layer's result on the same random input.

    Where Keras can load the file, it does; else the network is rebuilt from its configuration with
    Keras's own layers. A layer that Keras lacks is not verified: those after it are, from what the
    converted network gave them.

    Args:
        conversion: the converted network.
        model: the file that it was made from; None where that holds weights alone.
        seed: of the random input.

    Raises:
        InputError: Keras is not installed.
    """
    keras = import_keras()
    graph, calls = conversion.canonical.graph, conversion.canonical.calls
    sizes = small_sizes(graph)
    random = np.random.default_rng(seed)
    names = conversion.canonical.names
    x = {}
    for here, size in sizes.items():
        value = random.normal(size=(1, *size)).astype(np.float32)
        name = names[here]
        x[name] = np.moveaxis(value, -1, 1) if name in conversion.canonical.moved else value
    ours, logits = intermediate(conversion, x)
    unverified: dict[str, str] = {}
    try:
        original = _loaded(keras, model, graph, x)
        how = f"loaded by Keras {keras.__version__}"
    except _NotLoadedError as reason:
        original, unverified = _rebuilt(conversion, sizes, x, ours)
        how = f"rebuilt with the layers of Keras {keras.__version__}, since {reason}"
    reads = _read_by_activations(graph, {calls[name]: value for name, value in ours.items()})
    comparisons = []
    for name, value in ours.items():
        if calls[name] in graph.inputs or name in unverified:
            continue
        if name not in original:
            unverified[name] = "Keras gives no result for it"
        elif _constant(original[name]):
            unverified[name] = "it gives one value everywhere for the random input"
        else:
            path = conversion.paths[name]
            scale = logits if path == EMITTED else reads.get(calls[name], 0.0)
            comparisons.append(compare(name, path, value, original[name], KERAS_TOLERANCE, scale))
    shapes = {name: value.shape for name, value in x.items()}
    return Verification(how, shapes, tuple(comparisons), unverified)


def _constant(values: np.ndarray) -> bool:
    """Whether a result proves nothing: dead ReLUs, a softmax over one class."""
    return values.size > 1 and bool((values == values.flat[0]).all())


def _read_by_activations(graph: Graph, values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Call of an activation → largest absolute value that it reads: it passes on its rounding."""
    return {
        call.name: float(np.abs(values[call.inputs[0]]).max(initial=0))
        for call in graph.calls
        if graph.by_name[call.layer].kind in ("Activation", "Softmax") and call.inputs[0] in values
    }


def small_sizes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """A shape for each input that is quick to compute and reaches every tap of every kernel.

    It is the graph's own where the weights depend on it (a Dense layer after Flatten).
    """
    dilations = [1]
    for layer in graph.layers:
        rate = layer.config.get("dilation_rate", 1)
        dilations += rate if isinstance(rate, list | tuple) else [rate]
    own = {
        name: (*(n or _LARGEST for n in shape[:-1]), shape[-1] or 1)
        for name, shape in graph.inputs.items()
    }
    least = max(_EDGE, 2 * min_multiple(graph), 2 * max(dilations) + 2)
    for edge in range(-(-least // 8) * 8, _LARGEST + 1, 8):
        sizes = {
            name: tuple(min(edge, n) for n in shape[:-1]) + shape[-1:]
            for name, shape in own.items()
        }
        if fits(graph, sizes):
            return sizes
    return own


class _NotLoadedError(Exception):
    """Why Keras does not load a file: half a sentence."""


def _loaded(
    keras: Any, model: KerasModel | None, graph: Graph, x: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Call → result of the model that Keras itself loads from the file.

    Only a file whose every layer is one of Keras's own is given to it: `parse_graph` has found no
    code in it, and no class of a stranger's package can be looked up.
    """
    if model is None:
        raise _NotLoadedError("the file holds weights alone")
    if model.format not in _LOADABLE:
        raise _NotLoadedError(f"Keras 3 does not read a {model.format}")
    for layer in model.layers:
        operation = layer.class_name.startswith("keras.ops>")  # of Keras 3, recorded as layers
        if not operation and not hasattr(keras.layers, layer.class_name):
            raise _NotLoadedError(f"{layer.class_name} is not a layer of Keras 3")
    if model.backend == "theano":
        raise _NotLoadedError("Keras 3 does not flip the kernels of Theano")
    if any(_KERAS2_ALONE in layer.config.values() for layer in graph.layers):
        raise _NotLoadedError("hard_sigmoid was another function when the file was written")
    if any(call.training and not drops(graph.by_name[call.layer].kind) for call in graph.calls):
        raise _NotLoadedError("Keras 3 does not train in prediction")
    try:
        with without_random_weights(keras):
            return _run(keras, model, x)
    except Exception as error:  # whatever Keras raises: its loader has no errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:_REASON]
        raise _NotLoadedError(f"Keras 3 cannot load the file ({reason})") from error


def _run(keras: Any, model: KerasModel, x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Call → result of what Keras loads from the file, for inputs of other shapes too."""
    original = keras.models.load_model(
        model.path, custom_objects=_without_groups(keras), compile=False, safe_mode=True
    )
    names = [each._keras_history.operation.name for each in original.inputs]
    shapes = [tuple(each.shape[1:]) for each in original.inputs]
    wanted = [x[name].shape[1:] for name in names]
    if shapes != wanted:
        weights = original.get_weights()
        inputs = [keras.Input(shape, name=name) for shape, name in zip(wanted, names, strict=True)]
        structured = keras.tree.pack_sequence_as(original.input, inputs)
        original = keras.models.clone_model(original, input_tensors=structured)
        original.set_weights(weights)
    return _recorded(keras, original, [x[name] for name in names], "", 0)


def _without_groups(keras: Any) -> dict[str, Any]:
    """Classes whose configuration Keras 2 wrote with `groups`, which Keras 3 does not take."""

    def without(base: Any) -> Any:
        def from_config(cls: Any, config: dict[str, Any]) -> Any:
            del cls
            return base.from_config({k: v for k, v in config.items() if (k, v) != ("groups", 1)})

        return type(base.__name__, (base,), {"from_config": classmethod(from_config)})

    names = [f"Conv{axes}DTranspose" for axes in (1, 2, 3)]
    names += [f"{kind}Conv{axes}D" for kind in ("Separable", "Depthwise") for axes in (1, 2)]
    return {name: without(getattr(keras.layers, name)) for name in names}


def computed(model: Any, values: Any) -> list[np.ndarray]:
    """What a Keras model gives in prediction, output by output, computed as one program.

    Keras 3 then drops nothing, whatever a call of the model says of training.
    """

    @partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
    def run(trainable: Any, rest: Any, values: Any) -> Any:
        return model.stateless_call(trainable, rest, values, training=False)[0]

    states = [
        [variable.value for variable in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    with jax.default_matmul_precision("float32"):
        found = jax.device_get(run(*states, values))
    return list(found) if isinstance(found, list | tuple) else [found]


def _recorded(
    keras: Any, model: Any, values: list[np.ndarray], prefix: str, use: int
) -> dict[str, np.ndarray]:
    """Call → result of everything in a Keras model, models inside it too.

    Args:
        keras: the module.
        model: the Keras model.
        values: its inputs.
        prefix: the name of the model that this one is inside of, with a slash.
        use: which use of this model it is.
    """
    functional = getattr(model, "_functional", None) or model  # of a Sequential
    inside = {id(node) for nodes in functional._nodes_by_depth.values() for node in nodes}
    nodes = []
    for operation in functional.operations:
        own = [node for node in operation._inbound_nodes if id(node) in inside]
        nodes += [(operation, number, node) for number, node in enumerate(own)]
    symbols = [symbol for _, _, node in nodes for symbol in node.outputs]
    arrays = computed(keras.Model(functional.inputs, symbols), values)
    known = {id(symbol): np.asarray(value) for symbol, value in zip(symbols, arrays, strict=True)}
    found: dict[str, np.ndarray] = {}
    for operation, number, node in nodes:
        if isinstance(operation, keras.Model):
            inputs = [known[id(each)] for each in node.input_tensors]
            found |= _recorded(keras, operation, inputs, f"{prefix}{operation.name}/", number)
        name = f"{prefix}{operation.name}"
        count = use or number
        if len(node.outputs) == 1:
            found[f"{name}:{count}" if count else name] = known[id(node.outputs[0])]
    return found


def _rebuilt(
    conversion: Conversion,
    sizes: Mapping[str, tuple[int, ...]],
    x: Mapping[str, np.ndarray],
    ours: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Call → result of the network put together from Keras's layers, and what could not be."""
    canonical = conversion.canonical
    graph, weights = _posterior_means(canonical.graph, canonical.weights)
    names = canonical.names

    def channels_last(here: str, value: np.ndarray) -> np.ndarray:
        return np.moveaxis(value, 1, -1) if names[here] in canonical.moved else value

    # A family does not show each of the layers that its original has.
    values = {h: channels_last(h, ours[name]) for h, name in names.items() if name in ours}
    values |= {here: channels_last(here, x[names[here]]) for here in sizes}
    lacking = _lacking(graph)
    try:
        found = _from(graph, weights, {*sizes, *lacking}, values)
    except Exception:  # a layer that Keras builds and cannot run
        lacking |= _failing(graph, weights, values, {*sizes, *lacking})
        found = _from(graph, weights, {*sizes, *lacking}, values)
    original = {
        name: np.moveaxis(found[here], -1, 1) if name in canonical.moved else found[here]
        for name, here in canonical.calls.items()
        if here in found
    }
    return original, {names[here]: reason for here, reason in lacking.items() if here in names}


def _lacking(graph: Graph) -> dict[str, str]:
    """Call → why Keras 3 cannot compute it."""
    keras, layers = import_keras(), graph.by_name
    lacking = {}
    for call in graph.calls:
        kind = layers[call.layer].kind
        if kind not in WITHOUT_LAYER and not hasattr(keras.layers, kind):
            lacking[call.name] = f"Keras 3 has no {kind}"
        elif call.training and not drops(kind):
            lacking[call.name] = "Keras 3 does not train in prediction"
    return lacking


def _from(
    graph: Graph,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    given: set[str],
    values: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Call → result of Keras's layers, from the inputs and calls whose values are given."""
    keras = import_keras()
    shapes = {name: values[name].shape[1:] for name in given}
    built, symbols = to_keras(graph, weights, shapes, "reference")
    wanted = [name for name in symbols if name not in given]
    model = keras.Model(built.inputs, [symbols[name] for name in wanted])
    arrays = computed(model, [values[name] for name in shapes])
    return {name: np.asarray(value) for name, value in zip(wanted, arrays, strict=True)}


def _failing(
    graph: Graph,
    weights: Mapping[str, Mapping[str, np.ndarray]],
    values: Mapping[str, np.ndarray],
    given: set[str],
) -> dict[str, str]:
    """Call → why Keras fails to run it, each tried by itself."""
    failing = {}
    for call in graph.calls:
        if call.name in given:
            continue
        owner = graph.by_name[call.layer]
        inputs = {name: values[name].shape[1:] for name in call.inputs}
        alone = Graph((owner,), (call,), inputs, (call.name,))
        try:
            _from(alone, {owner.name: weights.get(owner.name, {})}, set(inputs), values)
        except Exception as error:  # whatever Keras raises: it has no errors of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            failing[call.name] = f"Keras fails to run it: {reason[:_REASON]}"
    return failing


def _posterior_means(
    graph: Graph, weights: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[Graph, dict[str, Mapping[str, np.ndarray]]]:
    """A Bayesian network as the plain one of its means, which is what voxtune predicts with."""
    layers, plain = [], dict(weights)
    for layer in graph.layers:
        base = layer.kind.removesuffix("Flipout").removesuffix("Reparameterization")
        if layer.kind == "VWNConv3D":
            held = weights[layer.name]
            length = np.sqrt((held["v"] ** 2).sum((0, 1, 2, 3), keepdims=True))
            plain[layer.name] = {"kernel": held["g"] * held["v"] / length, "bias": held["bias_m"]}
            layer = GraphLayer(layer.name, "Conv3D", layer.config)
        elif base != layer.kind:
            random = ("random_bias", "learned_prior")
            config = {name: each for name, each in layer.config.items() if name not in random}
            layer = GraphLayer(layer.name, base, config)
            plain[layer.name] = {
                name.removesuffix("_posterior_loc"): value
                for name, value in weights[layer.name].items()
                if name.endswith("_posterior_loc")
            }
        layers.append(layer)
    return replace(graph, layers=tuple(layers)), plain
