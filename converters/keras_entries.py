"""A model's configuration as entries: its layers and the models inside it, and their uses."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_code import without_code
from voxtune.converters.keras_nodes import (
    Node,
    Reference,
    found,
    parse_ends,
    parse_node,
    replaced,
)

MAX_CALLS = 20_000
MAX_VALUES = 200_000  # in the arguments of all calls
_MODELS = ("Functional", "Model", "Sequential")


@dataclass(frozen=True)
class Entry:
    """A layer of one model, or a model in the place of one."""

    name: str
    class_name: str
    config: Mapping[str, Any]
    nodes: tuple[Node, ...]
    model: "Model | None"


@dataclass(frozen=True)
class Model:
    """One model; the models inside it stand in its entries.

    Attributes:
        entries: by name, in file order.
        inputs: key or position → input layer.
        outputs: in order.
    """

    entries: Mapping[str, Entry]
    inputs: Mapping[str, str]
    outputs: tuple[Reference, ...]


def is_model(class_name: Any, body: Any) -> bool:
    """Models, and classes of a person's own that save themselves as functional models."""
    if class_name == "Sequential" or (class_name in _MODELS and isinstance(body, list)):
        return True
    return isinstance(body, dict) and "layers" in body and "output_layers" in body


@dataclass
class Reader:
    """Reads the models of one file.

    Attributes:
        path: for the messages.
        lambdas: as in `parse_graph`.
        layers: how many were read.
        values: how many JSON values the calls were read from.
        replaced: layers whose code has another function in its place.
    """

    path: Path
    lambdas: Mapping[str, str]
    layers: int = 0
    values: int = 0
    replaced: set[str] = field(default_factory=set)

    def model(self, class_name: str, body: Any, built: Any, prefix: str) -> Model:
        """A model's entries, and those of the models inside it.

        Args:
            class_name: as in the file.
            body: its configuration. Sequential before Keras 2.3 has the layers alone.
            built: what Keras 3 writes about the shapes that it was built with.
            prefix: the path to it in the whole model.
        """
        if isinstance(body, list):
            body = {"layers": body}
        raw = body.get("layers")
        if not isinstance(raw, list) or not raw:
            raise ConversionError(
                f"{self.path}: the model's configuration has no layers; save it again"
            )
        entries = dict(self._named(raw))
        if class_name == "Sequential":
            return self._sequential(entries, body, built, prefix)
        return self._functional(entries, body, prefix)

    def _named(self, raw: list[Any]) -> Iterable[tuple[str, dict[str, Any]]]:
        """Each entry with its name, which stands in or beside its config."""
        names = set()
        self.layers += len(raw)
        if self.layers > MAX_CALLS:
            raise ConversionError(
                f"{self.path}: the model has more than {MAX_CALLS:,} layers; voxtune reads no "
                "larger ones"
            )
        for position, entry in enumerate(raw):
            if (
                not isinstance(entry, dict)
                or not isinstance(entry.get("class_name"), str)
                or not isinstance(entry.get("config"), dict | list)
            ):
                raise ConversionError(
                    f"{self.path}: entry {position} of the model's layers is not a layer; save it "
                    "again"
                )
            inside = entry["config"].get("name") if isinstance(entry["config"], dict) else None
            name = entry.get("name", inside)
            if name is None and isinstance(entry["config"], list):
                name = f"{entry['class_name'].lower()}_{position + 1}"
            if not isinstance(name, str) or not name:
                raise ConversionError(
                    f"{self.path}: layer {position} of the model has no name; name it"
                )
            if name in names:
                raise twice(name, self.path)
            names.add(name)
            yield name, entry

    def _entry(
        self, name: str, entry: Mapping[str, Any], nodes: tuple[Node, ...], prefix: str
    ) -> Entry:
        class_name, config = _qualified(entry, nodes), entry["config"]
        if is_model(entry["class_name"], config):
            inner = self.model(
                entry["class_name"], config, entry.get("build_config"), f"{prefix}{name}/"
            )
            return Entry(name, class_name, {}, nodes, inner)
        if isinstance(config, list):
            raise ConversionError(
                f"{self.path}: the configuration of the layer {quoted(prefix + name)} is a list; "
                "save the model again"
            )
        clean = without_code(f"{prefix}{name}", class_name, config, self.lambdas, self.path)
        if clean.get("activation") != config.get("activation"):
            self.replaced.add(f"{prefix}{name}")
        return Entry(name, class_name, clean, nodes, None)

    def _sequential(
        self, raw: Mapping[str, Any], body: Mapping[str, Any], built: Any, prefix: str
    ) -> Model:
        """A chain. Without an InputLayer, one is made from the shape that the file states.

        In Keras 1 it may begin with branches: models that stand in the settings of a Merge.
        """
        first, head = next(iter(raw.items()))
        branches: dict[str, dict[str, Any]] = {}
        if head["class_name"] == "Merge" and "layers" in head["config"]:
            settings = dict(head["config"])
            inside = settings.pop("layers")
            branches = dict(self._named(inside if isinstance(inside, list) else []))
            raw = {**raw, first: {**head, "config": settings}}
        for name in branches.keys() & raw.keys():
            raise twice(name, self.path)
        chain = {**branches, **raw}
        starts = branches or ({} if head["class_name"] == "InputLayer" else {first: head})
        entries: dict[str, Entry] = {}
        for name, entry in starts.items():
            source = f"{name}_input"
            while source in chain or source in entries:
                source += "_"
            config = {"name": source, "batch_input_shape": self._shape(entry, body, built, prefix)}
            entries[source] = Entry(source, "InputLayer", config, (), None)
        inputs = tuple(entries) or (first,)
        for source, (name, entry) in zip(inputs, branches.items(), strict=False):
            entries[name] = self._entry(name, entry, (_reads((source,)),), prefix)
        last = tuple(branches or entries)
        for name, entry in raw.items():
            entries[name] = self._entry(name, entry, (_reads(last),) if last else (), prefix)
            last = (name,)
        keys = map(str, range(len(inputs)))
        return Model(entries, dict(zip(keys, inputs, strict=True)), (Reference(last[0], 0, 0),))

    def _shape(self, head: Any, body: Mapping[str, Any], built: Any, prefix: str) -> Any:
        config = head["config"]
        while True:  # a model comes first
            inside = config if isinstance(config, list) else config.get("layers")
            if not isinstance(inside, list) or not inside:
                break
            within = inside[0].get("config") if isinstance(inside[0], dict) else None
            config = within if isinstance(within, dict | list) else {}
        config = config if isinstance(config, dict) else {}
        built = built if isinstance(built, dict) else {}
        for shape in (
            config.get("batch_input_shape"),
            config.get("batch_shape"),
            body.get("build_input_shape"),
            built.get("input_shape"),
        ):
            if isinstance(shape, list):
                return shape
        if prefix:  # what the model is called with has a shape
            return None
        raise ConversionError(
            f"{self.path}: the sequential model does not state its input shape; build it with an "
            "Input layer and save it again"
        )

    def _functional(self, raw: Mapping[str, Any], body: Mapping[str, Any], prefix: str) -> Model:
        entries: dict[str, Entry] = {}
        for name, entry in raw.items():
            given = entry.get("inbound_nodes", [])
            try:
                if not isinstance(given, list):
                    raise ValueError("not a list")
                nodes = tuple(self._node(node, raw) for node in given)
            except ValueError:
                raise ConversionError(
                    f"{self.path}: the connections of the layer {quoted(prefix + name)} are not "
                    "in a form that Keras writes; save the model again"
                ) from None
            entries[name] = self._entry(name, entry, nodes, prefix)
        ends = []
        for key, what in (("input_layers", "inputs"), ("output_layers", "outputs")):
            try:
                ends.append(parse_ends(body.get(key)))
            except (ValueError, TypeError):
                raise ConversionError(
                    f"{self.path}: the {what} of the model {quoted(prefix)} are not a list of "
                    f"layers; save it with plain {what}"
                ) from None
        inputs = {key: each.layer for key, each in ends[0].items()}
        sources = [name for name, entry in entries.items() if entry.class_name == "InputLayer"]
        for name, entry in entries.items():
            if (entry.class_name == "InputLayer") == bool(entry.nodes):
                what = "is an input and reads" if entry.nodes else "is no input and reads nothing"
                raise ConversionError(
                    f"{self.path}: the layer {quoted(prefix + name)} {what} of the model; save "
                    "the model again"
                )
        if sorted(inputs.values()) != sorted(sources):
            raise ConversionError(
                f"{self.path}: the model's inputs {quoted(list(inputs.values()))} are not its "
                "input layers; save the model again"
            )
        return self._numbered(Model(entries, inputs, tuple(ends[1].values())), prefix)

    def _node(self, node: Any, layers: Mapping[str, Any]) -> Node:
        parsed = parse_node(node, layers)
        self.values += parsed.size
        if self.values > MAX_VALUES:
            raise ConversionError(
                f"{self.path}: the model calls its layers with more than {MAX_VALUES:,} values; "
                "voxtune reads no larger ones"
            )
        return parsed

    def _numbered(self, model: Model, prefix: str) -> Model:
        """Every reference leads to a use that exists; uses of models count from 0 too.

        Keras 1 and 2 count the uses of a model from 1, its own making being number 0, and Keras 3
        does so in `output_layers` alone. A use that nothing reads is not in a file, so the lowest
        number tells.
        """
        reading = {
            name: [
                each for node in entry.nodes for each in found([node.args, node.kwargs], Reference)
            ]
            for name, entry in model.entries.items()
        }
        keras3 = any(node.keras3 for entry in model.entries.values() for node in entry.nodes)
        lowest: dict[str, int] = {}
        for each in [*(each for read in reading.values() for each in read), *model.outputs]:
            lowest[each.layer] = min(lowest.get(each.layer, each.node), each.node)

        def numbered(reference: Reference, reader: str) -> Reference:
            source = model.entries.get(reference.layer)
            if source is None:
                raise ConversionError(
                    f"{self.path}: {quoted(reader or 'the outputs')} refers to the layer "
                    f"{quoted(prefix + reference.layer)}, which the model does not have; save the "
                    "model again"
                )
            node, count = reference.node, max(len(source.nodes), 1)
            if source.model is not None:
                if keras3:
                    own = source.class_name != "Sequential" and reader == ""
                    node -= 1 if own and node > 0 else 0
                elif lowest[reference.layer] == 1:
                    node -= 1
            index_fits = source.model is None or reference.index < len(source.model.outputs)
            if node >= count or not index_fits:
                raise ConversionError(
                    f"{self.path}: {quoted(reader or 'the outputs')} reads output "
                    f"{reference.index} of use {reference.node} of the layer "
                    f"{quoted(prefix + reference.layer)}, which does not exist; save the model "
                    "again"
                )
            return Reference(reference.layer, node, reference.index)

        entries = {}
        for name, entry in model.entries.items():

            def here(reference: Reference, name: str = name) -> Reference:
                return numbered(reference, prefix + name)

            nodes = tuple(
                Node(replaced(node.args, Reference, here), replaced(node.kwargs, Reference, here))
                for node in entry.nodes
            )
            entries[name] = Entry(name, entry.class_name, entry.config, nodes, entry.model)
        outputs = tuple(numbered(each, "") for each in model.outputs)
        return Model(entries, model.inputs, outputs)


def _qualified(entry: Mapping[str, Any], nodes: tuple[Node, ...]) -> str:
    """The class, with its package where Keras 3 writes that elsewhere.

    Operations of Keras 3 bear names of layers (Add, Multiply): theirs is `keras.ops`. HDF5 files
    name no module; there, an operation is what has none of the settings that all layers have.
    """
    class_name, module, registered = (
        entry.get(key) for key in ("class_name", "module", "registered_name")
    )
    assert isinstance(class_name, str)
    if ">" in class_name:
        return class_name
    if not isinstance(module, str):
        operation = any(node.keras3 for node in nodes) and not (
            {"trainable", "dtype", "layers"} & set(entry["config"])
        )
        return f"keras.ops>{class_name}" if operation else class_name
    if module.startswith(("keras.src.ops", "keras.ops")):
        return f"keras.ops>{class_name}"
    if module.split(".")[0] in ("keras", "tf_keras", "tensorflow", "builtins"):
        return class_name
    if isinstance(registered, str) and ">" in registered:
        return registered
    return f"{module}>{class_name}"


def _reads(sources: tuple[str, ...]) -> Node:
    """The only use of a layer that reads the only uses of others."""
    references = [Reference(source, 0, 0) for source in sources]
    return Node((references if len(references) > 1 else references[0],), {})


def twice(name: str, path: Path) -> ConversionError:
    """The sentence about a name that repeats."""
    return ConversionError(
        f"{path}: two layers are named {quoted(name)}; rename one and save the model again"
    )
