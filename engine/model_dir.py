"""The model directory: what a network is, what it takes, what it says, and its parameters."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from voxtune.engine.checkpoint import load_parameters, save_parameters
from voxtune.engine.contract import Contract, check_contract
from voxtune.engine.labels import LARGEST
from voxtune.engine.output import new_folder, replace_file, unfinished
from voxtune.engine.processes import is_first
from voxtune.engine.subjects import UNNAMED, is_text
from voxtune.models.activations import ACTIVATIONS
from voxtune.models.errors import InputError
from voxtune.models.families import Network, abstract, complete
from voxtune.models.graph import Graph, fits, results
from voxtune.models.graph_net import GraphNet
from voxtune.models.parameters import assemble, shapes

DOCUMENT = "model.json"
_FORMAT, _VERSION = "voxtune model", 1
_MALFORMED = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
_MOST_BYTES = 2**24  # of what is said of a training, with the names of thousands of subjects
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class LabelClass:
    """A class of voxels: its value in label files and its name.

    Raises:
        InputError: the name has control characters, or some that UTF-8 has not.
    """

    value: int
    name: str

    def __post_init__(self) -> None:
        if not is_text(self.name):
            raise InputError(
                f"The name of a class is {self.name!a}; give one without control characters."
            )


@dataclass(frozen=True)
class ModelSpec:
    """All of a model directory but its parameters.

    Attributes:
        family: a name in `voxtune.models.families.FAMILIES`.
        arguments: what builds it.
        output_activation: "sigmoid" for a one-class network, else "softmax", or "linear" for a
            network whose Keras original emitted logits (its classes exclude each other too).
        classes: in the order of the outputs; a one-class network has background before it. None
            where the network does not label voxels.
        contract: preprocessing.
    """

    family: str
    arguments: Mapping[str, Any]
    output_activation: str
    classes: tuple[LabelClass, ...]
    contract: Contract

    def network(self, parameters: Mapping[str, np.ndarray | jax.Array]) -> Network:
        """The network with these parameters."""
        return assemble(self.family, self.arguments, parameters)

    @property
    def channels(self) -> int:
        """How many images of a subject it takes at once."""
        if self.family != "graph":
            return int(complete(self.family, self.arguments)["channels"])
        shape = next(iter(Graph.from_json(self.arguments["graph"]).inputs.values()))
        return int(shape[-1] or 0)  # never None where it gives values for each voxel

    @property
    def threshold(self) -> float | None:
        """Probability above which a voxel is of the second of two classes; else None."""
        return self.contract.threshold if len(self.classes) == 2 else None

    @property
    def names(self) -> dict[int, str]:
        """Label value → class name."""
        return {each.value: each.name for each in self.classes}


def write_model(
    folder: Path,
    spec: ModelSpec,
    parameters: Mapping[str, np.ndarray | jax.Array],
    *,
    history: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Writes a model directory, whole or not at all.

    Several processes have to call it together; the first writes, and the others return early.

    Args:
        folder: the model directory.
        spec: what goes to model.json.
        parameters: path → array, statistics included.
        history: name → content of further JSON files that say where the parameters come from.
        overwrite: whether a model directory that is there is replaced.

    Raises:
        InputError: the folder exists, or cannot be written.
    """
    if not is_first():
        save_parameters(unfinished(folder) / "params", parameters)  # which Orbax does with all
        return
    with new_folder(folder, overwrite) as beside:
        document = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(spec)}
        for name, content in {"model": document, **history}.items():
            (beside / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
        save_parameters(beside / "params", parameters)


def read_model(folder: Path) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Reads a model directory.

    Returns:
        What model.json says, and path → array of the parameters and statistics.

    Raises:
        InputError: it is missing, broken, or its two parts do not fit each other.
    """
    path = folder / DOCUMENT
    if not path.is_file() and (folder.parent / "metrics.jsonl").is_file():
        raise InputError(
            f"{folder} is not there yet: its run has not finished; go on with 'voxtune resume "
            f"{folder.parent}'."
        )
    if not path.is_file():
        raise InputError(
            f"{folder} is not a model directory: it has no {DOCUMENT}; make one with "
            "'voxtune convert' or 'voxtune create', or give the folder 'model' of a run."
        )
    try:
        document = json.loads(path.read_text())
        if (document.pop("format"), document.pop("version")) != (_FORMAT, _VERSION):
            raise ValueError(f"it is not a '{_FORMAT}' of version {_VERSION}")
        spec = _spec(document)
        wanted = shapes(spec.family, spec.arguments)
    except (InputError, *_MALFORMED) as error:
        raise InputError(f"{path} cannot be read ({error}); convert or train again.") from error
    return spec, load_parameters(folder / "params", wanted)


def save_threshold(folder: Path, threshold: float) -> None:
    """Writes another threshold into a model directory; nothing else of model.json changes.

    Raises:
        InputError: it cannot be read or written.
    """
    path = folder / DOCUMENT
    try:
        text = path.read_text()
        wanted = json.loads(text)
        wanted["contract"]["threshold"] = threshold
        places = re.finditer(r'"threshold"\s*:\s*([-+.\w]+)', text)
        texts = (f"{text[: at.start(1)]}{threshold}{text[at.end(1) :]}" for at in places)
        found = next((each for each in texts if json.loads(each) == wanted), None)
    except _MALFORMED as error:
        raise InputError(f"{path} cannot be read ({error}); convert or train again.") from error
    replace_file(path, found or json.dumps(wanted, indent=2) + "\n")


def trained_on(folder: Path) -> frozenset[str]:
    """Names of the subjects that a model was trained on, as far as its directory says."""
    path = folder / "finetune.json"
    try:
        if path.stat().st_size > _MOST_BYTES:
            return frozenset()
        return frozenset(map(str, json.loads(path.read_text())["train"]))
    except _MALFORMED:
        return frozenset()


def check_block(family: str, arguments: Mapping[str, Any], block: tuple[int, int, int]) -> None:
    """Makes sure that a network gives `[*block, outputs]` for a block `[*block, channels]`.

    Raises:
        InputError: it does not.
    """
    network = abstract(family, arguments)
    multiple = network.min_multiple
    if min(block) < 1 or any(size % multiple for size in block):
        raise InputError(
            f"--block {' '.join(map(str, block))} does not suit this {family}: each size must be "
            f"a multiple of {multiple}, at least that."
        )
    if network.fixed_block not in (None, block):
        raise InputError(
            f"--block {' '.join(map(str, block))} does not suit this {family}, whose positions are "
            f"those of blocks of {' '.join(map(str, network.fixed_block or ()))}; give that."
        )
    if isinstance(network, GraphNet) and not _labels_voxels(network.graph, block):
        raise InputError(
            f"--block {' '.join(map(str, block))} does not suit this network: it does not give "
            "one result a voxel for it; give the shape that it was made for, or a larger one."
        )


def _labels_voxels(graph: Graph, block: tuple[int, int, int]) -> bool:
    """Whether a graph gives values for each voxel of a block, and of no other shape."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        return False
    ((name, shape),) = graph.inputs.items()
    if len(shape) != 4 or shape[-1] is None:
        return False
    sizes = {name: (*block, shape[-1])}
    return fits(graph, sizes) and results(graph, sizes)[graph.outputs[0]][1:-1] == block


def labels_voxels(spec: ModelSpec) -> bool:
    """Whether a network gives values for each voxel of the blocks of its contract."""
    if spec.family != "graph":
        return True
    return _labels_voxels(Graph.from_json(spec.arguments["graph"]), spec.contract.block)


def gives_image(spec: ModelSpec) -> bool:
    """Whether what a network gives is an image, on the grid of the scan."""
    one = spec.output_activation == "linear" and spec.arguments["outputs"] == 1
    return one and not spec.classes and labels_voxels(spec)


def check_trainable(spec: ModelSpec, folder: Path) -> None:
    """Makes sure that voxtune can fine-tune a network.

    Raises:
        InputError: it gives no value for each voxel.
    """
    if not labels_voxels(spec):
        raise InputError(
            f"{folder} holds a network that gives no values for each voxel of one 3D scan; "
            "fine-tuning and prediction are for networks that do."
        )


def check_predictable(spec: ModelSpec, folder: Path) -> None:
    """Makes sure that a network labels voxels or gives an image.

    Raises:
        InputError: it does neither.
    """
    check_trainable(spec, folder)
    if not spec.classes and not gives_image(spec):
        raise InputError(
            f"{folder} holds a network whose outputs are no classes that exclude each other, and "
            "no image; fine-tune it to yours with 'voxtune finetune' first."
        )


def prediction_channels(spec: ModelSpec, folder: Path, given: tuple[str, ...]) -> tuple[str, ...]:
    """Which images of a subject a network takes, in the order of its channels.

    They are taken by name where the contract and the table name them, else as they come.

    Args:
        spec: the network.
        folder: its model directory, for the sentence.
        given: names of a subject's images.

    Raises:
        InputError: one that the network takes is missing, or they are too few or too many.
    """
    wanted = spec.contract.channels
    if wanted is not None and UNNAMED not in (wanted, given):
        missing = [f"image_{name}" for name in wanted if name not in given]
        if missing:
            raise InputError(
                f"{folder} holds a network of the channels {', '.join(wanted)}, but the subjects "
                f"have no {' and no '.join(missing)}; add what is missing to their table."
            )
        return wanted
    if len(given) != spec.channels:
        raise InputError(_other_number(spec, folder, given))
    return given


def training_channels(spec: ModelSpec, folder: Path, given: tuple[str, ...]) -> tuple[str, ...]:
    """The images of a subject in the order in which a network is to be trained on them.

    Those that the network knows by name keep their places among its channels, those that it does
    not know fill the other places, and those that are more than its channels come last.

    Args:
        spec: the network as it is now.
        folder: its model directory, for the sentence.
        given: names of a subject's images.

    Raises:
        InputError: they are fewer than the network's channels.
    """
    if len(given) < spec.channels:
        raise InputError(_other_number(spec, folder, given))
    old = spec.contract.channels or given[: spec.channels]
    new = iter([name for name in given if name not in old])
    return (*(name if name in given else next(new) for name in old), *new)


def _other_number(spec: ModelSpec, folder: Path, given: tuple[str, ...]) -> str:
    """That a network's channels are more or fewer than the images, as a sentence."""
    number, names = spec.channels, spec.contract.channels
    if names is not None and names != UNNAMED:
        columns = f"the columns {', '.join(f'image_{name}' for name in names)}"
    elif number > 1:
        columns = f"{number} columns image_NAME, in the order of its channels"
    else:
        columns = "the column of the one that it was trained with"
    return (
        f"{folder} holds a network of {number} channel{'s' * (number > 1)}, but there "
        f"{'is' if len(given) == 1 else 'are'} {len(given)} for each subject "
        f"({', '.join(given)}); give a subjects table with {columns}."
    )


def _spec(document: dict[str, Any]) -> ModelSpec:
    contract = dict(document.pop("contract"))
    spacing, block = contract.pop("spacing_mm"), contract.pop("block")
    # Older files have none of these.
    channels, grid, window, quantiles = (
        contract.pop(key, None) for key in ("channels", "grid", "window", "quantiles")
    )
    spec = ModelSpec(
        contract=Contract(
            spacing_mm=None if spacing is None else _three(spacing, float),
            block=_three(block, int),
            channels=None if channels is None else tuple(map(str, channels)),
            grid=None if grid is None else _three(grid, int),
            window=None if window is None else _two(window),
            quantiles=None if quantiles is None else tuple(map(float, quantiles)),
            **contract,
        ),
        classes=tuple(LabelClass(**each) for each in document.pop("classes")),
        **document,
    )
    check_contract(spec.contract)
    if spec.arguments.get("activation", "relu") not in ACTIVATIONS:
        raise ValueError(f"no activation is called '{spec.arguments['activation']}'")
    if not all(0 <= each.value <= LARGEST for each in spec.classes):
        raise ValueError(f"it has a class whose label value is not between 0 and {LARGEST}")
    if spec.classes and spec.classes[0].value:
        raise ValueError(f"its first class has the value {spec.classes[0].value}, not 0")
    if len(spec.names) < len(spec.classes):
        raise ValueError("it has two classes of one label value")
    outputs = spec.arguments["outputs"]
    expected = 2 if outputs == 1 else outputs
    if spec.classes and len(spec.classes) != expected:
        raise ValueError(f"it lists {len(spec.classes)} classes for {outputs} outputs")
    named = spec.contract.channels
    if named is not None and (len(named) != spec.channels or len(set(named)) < len(named)):
        raise ValueError(f"it names the channels {named} of a network that takes {spec.channels}")
    return spec


def _three(values: Any, kind: type[Number]) -> tuple[Number, Number, Number]:
    first, second, third = (kind(value) for value in values)
    if not min(first, second, third) > 0:
        raise ValueError(f"{values} is not three sizes above zero")
    return first, second, third


def _two(values: Any) -> tuple[float, float]:
    low, high = (float(value) for value in values)
    return low, high
