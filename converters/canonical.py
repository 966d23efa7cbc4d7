"""A Keras model as it stands in its file → the canonical graph that voxtune computes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from voxtune.converters.assembly import Assembly, Value
from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_code import class_of
from voxtune.converters.keras_model import KerasCall, KerasLayer, KerasModel, TensorRef
from voxtune.converters.keras_nodes import found
from voxtune.converters.layouts import is_spatial, place, place_operation, sections
from voxtune.converters.nobrainer import is_nobrainer_vnet
from voxtune.converters.operations import Operation, is_operation, operation_of
from voxtune.converters.subclassed import Subclassed, is_subclassed, opened
from voxtune.converters.tensors import Layout, as_float32, fit
from voxtune.converters.theano import place_theano
from voxtune.converters.versions import Era, is_keras1, upgraded, version_of
from voxtune.models.activations import ACROSS_CHANNELS
from voxtune.models.graph import Graph, GraphLayer
from voxtune.models.kinds import KINDS

_UNKNOWN = 128  # stands for a size that the file leaves open: a multiple of 2 seven times over


@dataclass(frozen=True)
class Origin:
    """Where a canonical weight comes from.

    Attributes:
        keras: `layer/weight` in the file.
        shape: there.
        done: "" where it is the same array, else how it was changed: "axes moved", "flipped", ...
    """

    keras: str
    shape: tuple[int, ...]
    done: str = ""


@dataclass(frozen=True)
class CanonicalModel:
    """A Keras model in Keras 3's words, channels last.

    Attributes:
        graph: layers and calls.
        weights: layer → weight → float32 array, exactly those that the graph needs.
        origins: layer → weight → where it comes from.
        calls: name of the call in the file → name of the call that gives the same result here.
        moved: calls of the file whose result is channels-first there and channels-last here.
        left_out: weights of the file that the network does not read → why.
    """

    graph: Graph
    weights: Mapping[str, Mapping[str, np.ndarray]]
    origins: Mapping[str, Mapping[str, Origin]]
    calls: Mapping[str, str]
    moved: frozenset[str]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """Name of the call here → the first call of the file that gives the same result."""
        return {here: name for name, here in reversed(list(self.calls.items()))}


def canonical(model: KerasModel) -> CanonicalModel:
    """The canonical graph of a Keras model, and its weights.

    All is float32, whatever precision a file asks of its layers (`mixed_float16`, say): that is
    how the training hardware computed, not what the network is.

    Raises:
        ConversionError: a layer that voxtune does not know, or settings of it; layers that do not
            fit each other; a tensor that is missing, left over, of another shape or not finite.
    """
    era = Era(
        version_of(model.keras_version),
        model.backend,
        tensorflow=model.keras_version.endswith("-tf"),
        slabs=is_nobrainer_vnet(model),
        data_format=_stated_format(model),
    )
    return _Translation(model, era).result()


@dataclass
class _Translation:
    """The work on one model.

    Attributes:
        model: what is translated.
        era: what its file says about the software that wrote it.
        values: call of the file, with the number of its result where it has several → value.
        formats: layer → the data format that the file states.
        networks: layer → the network that it is, of those that are one.
        open_sizes: whether an input's shape leaves a size open.
    """

    model: KerasModel
    era: Era
    values: dict[TensorRef, Value] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    networks: dict[str, Subclassed] = field(default_factory=dict)
    open_sizes: bool = False

    def __post_init__(self) -> None:
        self.path: Path = self.model.path
        self.layers = self.model.by_name
        self.assembly = Assembly(self.path)

    def result(self) -> CanonicalModel:
        inputs: dict[str, tuple[int | None, ...]] = {}
        moved = _moved_inputs(self.model, self.layers)
        for call in self.model.calls:
            layer = self.layers[call.layer]
            if class_of(layer.class_name) == "InputLayer":
                if call.args:  # of a model inside the model
                    self.values[TensorRef(call.name)] = self._value(call.args[0], call)
                    continue
                shape = self._input_shape(layer)
                self.open_sizes |= None in shape
                first = call.name in moved
                inputs[call.name] = (*shape[1:], shape[0]) if first else shape
                known = tuple(size or _UNKNOWN for size in inputs[call.name])
                value = self.assembly.input(call.name, (1, *known), first)
                self.values[TensorRef(call.name)] = value
                continue
            try:
                self._call(call, layer)
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
                if isinstance(error, ConversionError):
                    raise
                raise ConversionError(
                    f"{self.path}: the layer {quoted(layer.name)} "
                    f"({quoted(layer.class_name)[1:-1]}) is not supported: "
                    f"{quoted(error, 200)[1:-1]}; rebuild the model without it and save it again"
                ) from None
        outputs = tuple(self._value(each, None).name for each in self.model.outputs)
        graph = Graph(
            tuple(self.assembly.layers.values()),
            tuple(self.assembly.calls),
            {name: inputs[name] for name in self.model.inputs},
            outputs,
        )
        weights, origins, left_out = self._weights()
        whole = {ref.call: value for ref, value in self.values.items() if ref.index == 0}
        return CanonicalModel(
            graph,
            weights,
            origins,
            {name: value.name for name, value in whole.items()},
            frozenset(name for name, value in whole.items() if value.moved),
            left_out,
        )

    def _input_shape(self, layer: KerasLayer) -> tuple[int | None, ...]:
        config = layer.config
        shape = config.get("batch_input_shape", config.get("batch_shape"))
        sizes = shape[1:] if isinstance(shape, list | tuple) else None
        if not sizes or not all(
            each is None or (type(each) is int and 0 < each < 2**31) for each in sizes
        ):
            raise ConversionError(
                f"{self.path}: the input {quoted(layer.name)} has no shape that voxtune can use "
                f"({quoted(shape)}); save the model again with an Input of fixed channels"
            )
        return tuple(sizes)

    def _value(self, reference: Any, call: KerasCall | None) -> Value:
        if isinstance(reference, TensorRef) and reference in self.values:
            return self.values[reference]
        reader = quoted(call.layer) if call else "an output of the model"
        what = (
            f"result {reference.index} of {quoted(reference.call)}"
            if isinstance(reference, TensorRef)
            else "a value that is no tensor"
        )
        raise ConversionError(
            f"{self.path}: {reader} reads {what}, which voxtune does not compute; rebuild the "
            "model with layers of one result and save it again"
        )

    def _call(self, call: KerasCall, layer: KerasLayer) -> None:
        """Adds what a call of the file computes."""
        if is_operation(layer):
            self._operation(call, layer)
            return
        if is_subclassed(layer):
            self._network(call, layer)
            return
        kind, config = self._upgraded(layer)
        inputs, training = self._arguments(call, kind)
        if kind == "Operation":
            operation = Operation(
                config["function"],
                (TensorRef(call.name),),
                {key: v for key, v in config.items() if key not in ("function", "operands")},
            )
            value = place_operation(self.assembly, call.name, operation, inputs)
        else:
            if layer.config.get("mode") == 2 and kind == "BatchNormalization":
                training = True  # statistics of the batch in prediction too
            value = self._placed(call, GraphLayer(layer.name, kind, config), inputs, training)
            self._check_size(layer, value)
        self.values[TensorRef(call.name)] = value

    def _network(self, call: KerasCall, layer: KerasLayer) -> None:
        """Adds the layers of a network that its file holds as one, behind its name and a slash."""
        if layer.name not in self.networks:
            self.networks[layer.name] = opened(layer)
        graph = self.networks[layer.name].graph
        ((entry, shape),), (output,) = graph.inputs.items(), graph.outputs
        (given,), _ = self._arguments(call, layer.class_name)
        given = self.assembly.first(given)
        if given.shape[1:] != shape:
            raise ValueError(f"it takes {list(shape)} and is called with {list(given.shape[1:])}")
        values = {entry: given}
        for inner in graph.calls:
            name = call.name if inner.name == output else f"{call.name}/{inner.name}"
            owner = graph.by_name[inner.layer]
            placed = GraphLayer(f"{layer.name}/{owner.name}", owner.kind, owner.config)
            read = [values[source] for source in inner.inputs]
            values[inner.name] = self.assembly.call(name, placed, read, training=inner.training)
            self.values[TensorRef(name)] = values[inner.name]

    def _check_size(self, layer: KerasLayer, value: Value) -> None:
        """Keras 1 states what a Deconvolution gives, and its padding allows for several sizes."""
        stated = layer.config.get("output_shape")
        if not isinstance(stated, list) or "Deconvolution" not in layer.class_name:
            return
        if self.open_sizes:
            return
        sizes = list(stated[2:] if value.moved else stated[1:-1])
        if sizes != list(value.shape[1:-1]):
            raise ValueError(f"its output_shape={stated} is another than its strides give")

    def _upgraded(self, layer: KerasLayer) -> tuple[str, dict[str, Any]]:
        if class_of(layer.class_name) == "Lambda":
            return self._lambda(layer)
        kind, config = upgraded(layer, self.era)
        if kind not in KINDS:
            raise ConversionError(
                f"{self.path}: the layer {quoted(layer.name)} is of the class "
                f"{quoted(layer.class_name)[1:-1]}, which voxtune does not know; rebuild the model "
                "without it, or say what the class computes with "
                "voxtune.models.kinds.register_layer"
            )
        self.formats[layer.name] = config.get("data_format", "channels_last")
        return kind, config

    def _lambda(self, layer: KerasLayer) -> tuple[str, dict[str, Any]]:
        """A Lambda whose meaning `parse_graph` settled."""
        if "repeats" in layer.config:
            parameters = {"repeats": layer.config["repeats"], "axis": -1}
            return "Operation", {"function": "repeat", **parameters}
        stands_for = KerasLayer(
            layer.name, "Activation", {"activation": layer.config["activation"]}, {}
        )
        kind, config = upgraded(stands_for, self.era)
        return ("Identity", {}) if config["activation"] == "linear" else (kind, config)

    def _arguments(self, call: KerasCall, kind: str) -> tuple[list[Value], bool | None]:
        """What a layer reads, and the training that its call states."""
        named = dict(call.kwargs)
        training = named.pop("training", None)
        training = bool(training) if isinstance(training, bool | int) else None
        given: list[Any] = []
        for argument in call.args:
            given.extend(argument if isinstance(argument, list) else [argument])
        if kind == "MultiHeadAttention":
            for name, usual in (("return_attention_scores", False), ("use_causal_mask", False)):
                if named.get(name, usual) is usual:
                    named.pop(name, None)
            names = ("query", "value", "key")[len(given) :]
            given += [named.pop(name) for name in names if name in named]
        for name in ("inputs", "input", "x"):
            if not given and name in named:
                argument = named.pop(name)
                given.extend(argument if isinstance(argument, list) else [argument])
        for name in named:
            raise ValueError(
                f"it is called with the argument {name!r}, which voxtune does not read"
            )
        values = [self._value(each, call) for each in given]
        if not values:
            raise ValueError("it is called with no tensor")
        random = kind == "BatchNormalization" or "Dropout" in kind or "Noise" in kind
        return values, training if random or kind == "MultiHeadAttention" else None

    def _placed(
        self, call: KerasCall, layer: GraphLayer, inputs: list[Value], training: bool | None
    ) -> Value:
        """Adds a layer, with what it does before and after itself as layers of their own."""
        config = dict(layer.config)
        name, after = call.name, None
        function = config.get("activation")
        first = config.get("data_format") == "channels_first" and is_spatial(layer.kind)
        across = function in ACROSS_CHANNELS if isinstance(function, str) else False
        if layer.kind == "Activation" and across and inputs[0].moved:
            axis = GraphLayer(layer.name, "Softmax", {"axis": -1})
            if function != "softmax":
                inputs = [self.assembly.first(inputs[0])]
            return place(self.assembly, name, axis if function == "softmax" else layer, inputs)
        if isinstance(function, dict):
            after = KerasLayer(
                f"{call.name}:activation", function["class_name"], function["config"], {}
            )
        elif across and first:
            after = KerasLayer(
                f"{call.name}:activation", "Activation", {"activation": function}, {}
            )
        if after is not None:
            config["activation"] = None
            name = f"{call.name}:linear"
        layer = GraphLayer(layer.name, layer.kind, config)
        if after is not None and layer.kind == "Activation":
            value = inputs[0]
        elif self.era.backend == "theano" and "padding" in config:
            value = place_theano(self.assembly, name, layer, inputs)
        else:
            value = place(self.assembly, name, layer, inputs, training)
        if after is None:
            return value
        kind, settings = self._upgraded(after)
        last = KerasCall(call.name, after.name, (), {})
        return self._placed(last, GraphLayer(after.name, kind, settings), [value], training)

    def _operation(self, call: KerasCall, layer: KerasLayer) -> None:
        operation = operation_of(layer, call)
        operands = [
            self._value(each, call) if isinstance(each, TensorRef) else each
            for each in operation.operands
        ]
        if not any(isinstance(each, Value) for each in operands):
            raise ValueError("it is called with no tensor")
        if operation.function != "split":
            self.values[TensorRef(call.name)] = place_operation(
                self.assembly, call.name, operation, operands
            )
            return
        for number, part in enumerate(sections(operation, operands[0])):
            name = f"{call.name}#{number}" if number else call.name
            value = place_operation(self.assembly, name, part, operands)
            self.values[TensorRef(call.name, number)] = value

    def _weights(
        self,
    ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, dict[str, Origin]], dict[str, str]]:
        """All weights of the graph, out of all of the file."""
        weights: dict[str, dict[str, np.ndarray]] = {}
        origins: dict[str, dict[str, Origin]] = {}
        left_out: dict[str, str] = {}
        for layer in self.model.layers:
            if layer.name in self.networks:
                unread = self._network_weights(layer, weights, origins)
                left_out |= dict.fromkeys(unread, "its class never reads it")
                continue
            wanted = self.assembly.weights.get(layer.name, {})
            placed = self.assembly.layers.get(layer.name)
            if not wanted and not layer.weights:
                continue
            kind = placed.kind if placed else class_of(layer.class_name)
            layout = Layout(
                keras1=is_keras1(layer, self.era),
                channels_first=self.formats.get(layer.name) == "channels_first",
                flipped=self.era.backend == "theano" and kind in _FLIPPED,
                axes=self.assembly.axes.get(layer.name),
            )
            fitted, unread = fit(layer, kind, wanted, layout, self.path)
            left_out |= {f"{layer.name}/{name}": "not of the network" for name in unread}
            if fitted:
                weights[layer.name] = {name: each.value for name, each in fitted.items()}
                origins[layer.name] = {
                    name: Origin(f"{layer.name}/{each.name}", each.shape, each.done)
                    for name, each in fitted.items()
                }
        return weights, origins, left_out

    def _network_weights(
        self,
        layer: KerasLayer,
        weights: dict[str, dict[str, np.ndarray]],
        origins: dict[str, dict[str, Origin]],
    ) -> tuple[str, ...]:
        """Adds the weights of a network that is one layer, and gives those that it never reads."""
        network = self.networks[layer.name]
        for inner, stored in network.weights.items():
            name = f"{layer.name}/{inner}"
            weights[name], origins[name] = {}, {}
            for weight, each in stored.items():
                full = f"{layer.name}/{each.name}"
                done = "" if each.shape == each.value.shape else "heads apart"
                weights[name][weight] = as_float32(each.value, full, self.path)
                origins[name][weight] = Origin(full, each.shape, done)
        return tuple(f"{layer.name}/{name}" for name in network.unread)


# Those that Keras mirrors when it loads a file of Theano.
_FLIPPED = ("Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose")


def _stated_format(model: KerasModel) -> str:
    """The data format that the layers of a model state, as far as they agree."""
    stated = {
        str(layer.config.get("data_format", layer.config.get("dim_ordering")))
        for layer in model.layers
    }
    first = stated - {"None"} in ({"channels_first"}, {"th"})
    return "channels_first" if first else "channels_last"


def _moved_inputs(model: KerasModel, layers: Mapping[str, KerasLayer]) -> set[str]:
    """The inputs that channels-first layers read, directly or through layers of no data format."""
    moved: set[str] = set()
    sources: dict[str, set[str]] = {}  # call → inputs whose order its result has
    for call in model.calls:
        layer = layers[call.layer]
        read = [each.call for each in found([call.args, dict(call.kwargs)], TensorRef)]
        reached = set().union(*(sources.get(each, set()) for each in read)) if read else {call.name}
        form = layer.config.get("data_format", layer.config.get("dim_ordering"))
        if form in ("channels_first", "th"):
            moved |= reached
            reached = set()
        elif form is not None or class_of(layer.class_name) in _ORDERED:
            reached = set()
        sources[call.name] = reached
    return moved


_ORDERED = ("Flatten", "Reshape", "Permute", "Dense", "RepeatVector", "MultiHeadAttention")
