"""A Keras model's configuration (JSON) → its graph of layers.

Three spellings: the functional graph of Keras 2, the functional graph of Keras 3, and Sequential.
Nothing here imports Keras: the configuration is data, and stays data.
"""

import json
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NoReturn

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_model import KerasLayer

MAX_CONFIG_BYTES = 64 * 2**20
_CODE = ("Lambda", "__lambda__")
_NESTED = ("Functional", "Model", "Sequential")
_KERAS_TENSOR = "__keras_tensor__"


@dataclass(frozen=True)
class Graph:
    """Layers in file order, their weights still empty, and the names of the model's two ends."""

    name: str
    layers: tuple[KerasLayer, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def parse_json(text: str | bytes, path: Path) -> Any:
    """The JSON value in `text`.

    Raises:
        ConversionError: broken JSON, or JSON nested too deep to be a model.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ConversionError(
            f"{path}: its JSON nests too deep to be a Keras model; check where the file comes from"
        ) from None
    except ValueError as error:
        raise ConversionError(
            f"{path}: its JSON is broken or cut short ({quoted(error)}); get the file again"
        ) from None


def parse_graph(config: Any, path: Path) -> Graph:
    """The graph of a whole model's configuration, `{"class_name": ..., "config": ...}`.

    Raises:
        ConversionError: not a model's configuration; it holds code (Lambda), a nested model, a
            shared layer or a call with arguments; names that repeat or lead nowhere.
    """
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict | list):
        raise ConversionError(
            f"{path}: its configuration is not that of a Keras model; save the model again"
        )
    body, class_name = config["config"], config.get("class_name")
    if isinstance(body, list):  # Sequential before Keras 2.3: the layers alone
        body = {"layers": body}
    entries = body.get("layers")
    if not isinstance(entries, list) or not entries:
        raise ConversionError(f"{path}: the model's configuration has no layers; save it again")
    names = _layer_names(entries, path)
    for name, entry in zip(names, entries, strict=True):
        _refuse_code(name, entry, path)
    for name, entry in zip(names, entries, strict=True):
        if entry["class_name"] in _NESTED or "layers" in entry["config"]:
            raise ConversionError(
                f"{path}: the layer {quoted(name)} is a model inside the model, which voxtune "
                "does not read yet; rebuild the model flat and save it again"
            )
    model_name = body.get("name")
    model_name = model_name if isinstance(model_name, str) else str(class_name).lower()
    if class_name == "Sequential":
        graph = _sequential(model_name, names, entries, body, path)
    elif "input_layers" in body and "output_layers" in body:
        graph = _functional(model_name, names, entries, body, path)
    else:
        raise ConversionError(
            f"{path}: the model's class {quoted(class_name)} is neither functional nor "
            "sequential; rebuild it as a functional Keras model and save it again"
        )
    _check(graph, path)
    return graph


def _layer_names(entries: list[Any], path: Path) -> list[str]:
    """Each layer's name. Nobrainer's own layers have it beside their config, Sequential's in it."""
    names: dict[str, None] = {}
    for position, entry in enumerate(entries):
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("class_name"), str)
            or not isinstance(entry.get("config"), dict)
        ):
            raise ConversionError(
                f"{path}: entry {position} of the model's layers is not a layer; save it again"
            )
        name = entry.get("name", entry["config"].get("name"))
        if not isinstance(name, str) or not name:
            raise ConversionError(f"{path}: layer {position} of the model has no name; name it")
        if name in names:
            raise ConversionError(
                f"{path}: two layers are named {quoted(name)}; rename one and save the model again"
            )
        names[name] = None
    return list(names)


def _refuse_code(name: str, entry: dict[str, Any], path: Path) -> None:
    """Refuses a Lambda anywhere in the layer, wrapped and nested ones too. Its body stays unread.

    A loop instead of recursion: the depth is the stranger's choice.
    """
    queue: list[Any] = [entry]
    while queue:
        item = queue.pop()
        if isinstance(item, list):
            queue.extend(item)
        elif isinstance(item, dict):
            class_name = item.get("class_name")
            if isinstance(class_name, str) and class_name in _CODE:
                raise ConversionError(
                    f"{path}: the layer {quoted(name)} holds Python code (Lambda), refused "
                    "because voxtune does not run code stored in files; replace the layer by "
                    "built-in ones and save the model again"
                )
            queue.extend(item.values())


def _sequential(
    model_name: str, names: list[str], entries: list[Any], body: dict[str, Any], path: Path
) -> Graph:
    """A chain. Without an InputLayer, one is made from the shape that the file states."""
    layers: list[KerasLayer] = []
    if entries[0]["class_name"] != "InputLayer":
        first = entries[0]["config"]
        shapes = (first.get("batch_input_shape"), first.get("batch_shape"))
        shape = next((s for s in (*shapes, body.get("build_input_shape")) if s is not None), None)
        if not isinstance(shape, list):
            raise ConversionError(
                f"{path}: the sequential model does not state its input shape; build it with an "
                "Input layer and save it again"
            )
        name = f"{names[0]}_input"
        while name in names:
            name += "_"
        config = {"name": name, "batch_input_shape": shape}
        layers.append(KerasLayer(name, "InputLayer", config, (), {}))
    for name, entry in zip(names, entries, strict=True):
        inputs = (layers[-1].name,) if layers else ()
        layers.append(KerasLayer(name, entry["class_name"], entry["config"], inputs, {}))
    return Graph(model_name, tuple(layers), (layers[0].name,), (layers[-1].name,))


def _functional(
    model_name: str, names: list[str], entries: list[Any], body: dict[str, Any], path: Path
) -> Graph:
    layers = tuple(
        KerasLayer(name, entry["class_name"], entry["config"], _inputs(name, entry, path), {})
        for name, entry in zip(names, entries, strict=True)
    )
    return Graph(
        model_name,
        layers,
        _ends(body["input_layers"], "inputs", path),
        _ends(body["output_layers"], "outputs", path),
    )


def _inputs(name: str, entry: dict[str, Any], path: Path) -> tuple[str, ...]:
    """The layers that a layer reads, from its one inbound node."""
    nodes = entry.get("inbound_nodes")
    if nodes == []:
        return ()
    if not isinstance(nodes, list):
        _broken(name, path)
    if len(nodes) > 1:
        raise ConversionError(
            f"{path}: the layer {quoted(name)} is used {len(nodes)} times (a shared layer), which "
            "voxtune does not read yet; give each use its own layer and save the model again"
        )
    node = nodes[0]
    if isinstance(node, dict):
        return _inputs_keras3(name, node, path)
    if not isinstance(node, list) or not node:
        _broken(name, path)
    if isinstance(node[0], str):  # operator layers write their single reference bare
        node = [node]
    inputs = []
    for reference in node:
        inputs.append(_referred(reference, name, path))
        _check_call(reference[3] if len(reference) > 3 else {}, name, path)
    return tuple(inputs)


def _inputs_keras3(name: str, node: dict[str, Any], path: Path) -> tuple[str, ...]:
    """`{"args": [tensor or list of tensors, ...], "kwargs": {...}}` → layer names in order."""
    arguments = node.get("args")
    if not isinstance(arguments, list) or not arguments:
        _broken(name, path)
    inputs = []
    for argument in arguments:
        for tensor in argument if isinstance(argument, list) else [argument]:
            if not isinstance(tensor, dict) or tensor.get("class_name") != _KERAS_TENSOR:
                _refuse_call("a value that is no tensor", name, path)
            config = tensor.get("config")
            history = config.get("keras_history") if isinstance(config, dict) else None
            inputs.append(_referred(history, name, path))
    _check_call(node.get("kwargs", {}), name, path)
    return tuple(inputs)


def _referred(reference: Any, reader: str, path: Path) -> str:
    """The layer in `[name, node, tensor, ...]`; both indices are 0 where no layer is shared."""
    if (
        not isinstance(reference, list)
        or not 3 <= len(reference) <= 4
        or not isinstance(reference[0], str)
    ):
        _broken(reader, path)
    if reference[1:3] != [0, 0]:
        raise ConversionError(
            f"{path}: {quoted(reader)} reads output {quoted(reference[1:3])} of "
            f"{quoted(reference[0])}; voxtune reads layers that are used once and have one output"
        )
    return reference[0]


def _check_call(arguments: Any, name: str, path: Path) -> None:
    """Refuses call arguments that change the result: a KerasLayer has no place for them.

    None and `training=False` are what Keras writes for defaults, and do not.
    """
    if not isinstance(arguments, dict):
        _broken(name, path)
    for key, value in arguments.items():
        if not (value is None or (key == "training" and value is False)):
            _refuse_call(f"the argument {quoted(key)}", name, path)


def _refuse_call(what: str, name: str, path: Path) -> NoReturn:
    raise ConversionError(
        f"{path}: the layer {quoted(name)} is called with {what}, which voxtune does not read "
        "yet; put it into the layer or use a layer that needs none, and save the model again"
    )


def _broken(name: str, path: Path) -> NoReturn:
    raise ConversionError(
        f"{path}: the connections of the layer {quoted(name)} are not in a form that Keras "
        "writes; save the model again"
    )


def _ends(references: Any, what: str, path: Path) -> tuple[str, ...]:
    """`[["a", 0, 0], ...]`, or `["a", 0, 0]` as Keras 3 writes a single one."""
    if isinstance(references, list) and references and isinstance(references[0], str):
        references = [references]
    if not isinstance(references, list) or not references:
        raise ConversionError(
            f"{path}: the model's {what} are not a list of layers; save it with plain {what}"
        )
    return tuple(_referred(reference, f"the model's {what}", path) for reference in references)


def _check(graph: Graph, path: Path) -> None:
    """Every name leads to a layer, only input layers read nothing, and nothing reads itself."""
    classes = {layer.name: layer.class_name for layer in graph.layers}
    readers = {layer.name: layer.inputs for layer in graph.layers}
    ends = {"the model's inputs": graph.inputs, "the model's outputs": graph.outputs}
    for reader, inputs in (readers | ends).items():
        for name in inputs:
            if name not in classes:
                raise ConversionError(
                    f"{path}: {quoted(reader)} refers to the layer {quoted(name)}, which the "
                    "model does not have; save the model again"
                )
    sources = {name for name, class_name in classes.items() if class_name == "InputLayer"}
    for name, inputs in readers.items():
        if (name in sources) == bool(inputs):
            what = "is an input and reads" if inputs else "is no input and reads nothing of"
            raise ConversionError(
                f"{path}: the layer {quoted(name)} {what} the model; save the model again"
            )
    if set(graph.inputs) != sources:
        raise ConversionError(
            f"{path}: the model's inputs {quoted(graph.inputs)} are not its input layers; "
            "save the model again"
        )
    try:
        TopologicalSorter(readers).prepare()
    except CycleError as error:
        raise ConversionError(
            f"{path}: the layer {quoted(error.args[1][0])} depends on its own output; "
            "save the model again"
        ) from None
