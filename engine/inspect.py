"""What a Keras file holds, and what convert would do with it."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from voxtune.converters.keras_model import KerasModel, KerasWeights
from voxtune.converters.to_flax import Conversion
from voxtune.converters.weights_only import candidates
from voxtune.engine.config import Inspect
from voxtune.engine.convert import contract_line, converted, known_line, read, usual_contract
from voxtune.engine.known_models import recognise
from voxtune.models.graph import results, weight_shapes
from voxtune.models.graph_net import GraphNet


def inspect(config: Inspect, console: Console) -> None:
    """Prints format, version, layers, shapes, parameters, receptive field and what convert does.

    Raises:
        InputError: the file cannot be read or converted.
    """
    source = read(config)
    if isinstance(source, KerasWeights) and config.model is None:
        console.print(_weights_table(source))
        fitting = " or ".join(candidates(source)) or "none that voxtune can name"
        _print(console, [*_about(source), f"convert: weights alone; fits {fitting}"])
        return
    conversion = converted(source, config)
    console.print(_layer_table(conversion))
    _print(console, [*_about(source), *_network(source, conversion)])


def _print(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _about(source: KerasModel | KerasWeights) -> list[str]:
    version = f", written by Keras {source.keras_version}" if source.keras_version else ""
    backend = f" on {source.backend}" if source.backend else ""
    lines = [f"file: {source.path}, {source.format}{version}{backend}", f"sha256: {source.sha256}"]
    if isinstance(source, KerasModel) and any("mixed_" in str(each) for each in _dtypes(source)):
        lines.append("written under mixed precision: computed in float32 here, so it rounds less")
    if source.left_out:
        lines.append(f"left out: {len(source.left_out)} tensors that are not of the network")
    return lines


def _dtypes(model: KerasModel) -> set[str]:
    return {str(layer.config.get("dtype")) for layer in model.layers}


def _network(source: KerasModel | KerasWeights, conversion: Conversion) -> list[str]:
    graph = conversion.canonical.graph
    total = sum(value.size for value in conversion.parameters.values())
    network = conversion.network()
    reach = network.receptive_field
    field = "the whole input" if reach is None else f"{reach} voxels"
    if conversion.family == "graph":
        what = f"convert: a graph under its Keras layer names; {conversion.unlike}"
    else:
        what = f"convert: the family {conversion.family} with {dict(conversion.arguments)}"
    shapes = "; ".join(f"{name} {_shape(shape)}" for name, shape in graph.inputs.items())
    lines = [
        f"input: {shapes}" + (" (channels-first in the file)" * bool(conversion.canonical.moved)),
        f"parameters: {total:,} in {len(conversion.parameters)} tensors",
        f"receptive field: {field}; sizes must be multiples of {network.min_multiple}",
        what,
        f"output activation: {conversion.output_activation}, taken off and remembered",
    ]
    if isinstance(network, GraphNet) and not network.head_paths:
        lines.append("head: none that fine-tuning could replace; --head keep alone works")
    known, by = recognise(source.path, source.sha256, conversion)
    if known:
        lines += [known_line(known, by), f"published at: {known.source}"]
    one_class = conversion.arguments["outputs"] == 1
    return [*lines, contract_line(usual_contract(source, known), one_class)]


def _layer_table(conversion: Conversion) -> Table:
    graph = conversion.canonical.graph
    shapes, weights, layers = results(graph), weight_shapes(graph), graph.by_name
    keras = conversion.canonical.names
    table = Table(title="Layers (channels last)")
    for name in ("layer", "kind", "reads", "gives"):
        table.add_column(name, overflow="fold")
    table.add_column("parameters", justify="right")
    for name, shape in graph.inputs.items():
        table.add_row(keras.get(name, name), "input", "", _shape(shape), "")
    seen = set[str]()
    for call in graph.calls:
        layer = layers[call.layer]
        owned = sum(math.prod(shape) for shape in weights[layer.name].values())
        count = f"{owned:,}" if owned and layer.name not in seen else ""
        seen.add(layer.name)
        kind = layer.config["function"] if layer.kind == "Operation" else layer.kind
        reads = ", ".join(keras.get(source, source) for source in call.inputs)
        table.add_row(
            keras.get(call.name, call.name), kind, reads, _shape(shapes[call.name][1:]), count
        )
    return table


def _weights_table(weights: KerasWeights) -> Table:
    table = Table(title="Weights")
    for name in ("layer", "weight", "shape"):
        table.add_column(name, overflow="fold")
    for layer, arrays in weights.layers.items():
        for name, value in arrays.items():
            table.add_row(layer, name, _shape(value.shape))
    return table


def _shape(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)
