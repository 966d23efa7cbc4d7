"""From a model directory to a Keras file."""

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.from_flax import to_graph
from voxtune.converters.keras_reference import KERAS_TOLERANCE, computed, small_sizes
from voxtune.converters.to_keras import import_keras, to_keras, without_random_weights
from voxtune.converters.verify import QUICK_TO_COMPILE, compare, emit
from voxtune.engine.config import Export
from voxtune.engine.model_dir import ModelSpec, read_model
from voxtune.engine.volume import written_beside
from voxtune.models.errors import InputError
from voxtune.models.graph import Graph, fits
from voxtune.models.graph_net import GraphNet

SUFFIXES = (".keras", ".h5")
_ANY_SIZE = 64  # a shape that stands for all where a network takes any


def export(config: Export, console: Console) -> bool:
    """Writes a Keras 3 file, loads it with Keras, and compares weights and outputs.

    Returns:
        Whether the file that Keras loads gives the same; nothing is written where it does not.

    Raises:
        InputError: the model directory is bad, the file exists, Keras is not installed or has no
            layer for one of the network's.
    """
    path = config.keras_file
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} must end in .keras or .h5: name the file so.")
    if path.exists() and not config.overwrite:
        raise InputError(f"{path} exists: give another name, or pass --overwrite.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file: name the Keras file to write.")
    spec, parameters = read_model(config.model_dir)
    keras = import_keras()
    graph, weights = to_graph(spec.family, spec.arguments, spec.output_activation, parameters)
    try:
        model = _model(graph, weights, config.model_dir.resolve().name)
    except ConversionError as error:
        raise InputError(f"{config.model_dir}: {error}.") from error
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{config.model_dir} holds a network that Keras does not build ({quoted(error)}); "
            "it cannot be written as a Keras file."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"network{path.suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras recommends .keras, and names of inputs
            loaded = _saved(keras, model, made, path)
            pairs = zip(model.get_weights(), loaded.get_weights(), strict=True)
            same = all(np.array_equal(ours, theirs) for ours, theirs in pairs)
            relative = _difference(graph, loaded, spec, parameters)
        if not same or not relative <= KERAS_TOLERANCE:
            console.print(
                f"NOT EQUAL: the file that Keras loads differs from {config.model_dir} "
                f"(weights {'the same' if same else 'others'}, output by {relative}); nothing was "
                "written.",
                highlight=False,
                soft_wrap=True,
            )
            return False
        with written_beside(path) as temporary:
            shutil.copyfile(made, temporary)
    console.print(
        f"wrote {path}: loaded by Keras {keras.__version__}, {len(model.weights)} tensors "
        f"bit-identical, output equal to {relative:.1e} of the largest logit",
        highlight=False,
        soft_wrap=True,
    )
    return True


def _saved(keras: Any, model: Any, made: Path, path: Path) -> Any:
    """Writes a Keras model to `made`, and gives it as Keras loads it; `path` is for messages."""
    try:
        model.save(made)
        with without_random_weights(keras):
            return keras.models.load_model(made, compile=False)
    except Exception as error:  # whatever Keras raises: it has no errors of its own
        raise InputError(
            f"{path} cannot be written by Keras as {path.suffix} ({quoted(error)}); "
            f"name a {'.keras' if path.suffix == '.h5' else '.h5'} file."
        ) from error


def _model(graph: Graph, weights: Mapping[str, Mapping[str, np.ndarray]], name: str) -> Any:
    """The Keras model, for inputs of any size where the network takes them."""
    own = {key: tuple(n or _ANY_SIZE for n in shape) for key, shape in graph.inputs.items()}
    twice = {key: (*(2 * n for n in shape[:-1]), shape[-1]) for key, shape in own.items()}
    if not fits(graph, twice):  # Keras would not notice: a Reshape to a fixed shape, say
        return to_keras(graph, weights, own, name)[0]
    any_size = {key: (*[None] * (len(shape) - 1), shape[-1]) for key, shape in graph.inputs.items()}
    try:
        return to_keras(graph, weights, any_size, name)[0]
    except (TypeError, ValueError):  # a layer that needs to know the size, Dense after Flatten
        return to_keras(graph, weights, own, name)[0]


def _difference(
    graph: Graph, loaded: Any, spec: ModelSpec, parameters: Mapping[str, np.ndarray]
) -> float:
    """Largest difference between the loaded Keras model and the network, of the largest output."""
    random = np.random.default_rng(0)
    x = [random.normal(size=(1, *size)).astype(np.float32) for size in small_sizes(graph).values()]
    network, state = nnx.split(spec.network(parameters))
    several = spec.arguments["outputs"] is None

    @partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
    def run(state: nnx.State, x: list[jax.Array]) -> list[jax.Array]:
        merged = nnx.merge(network, state)
        if several:
            return list(cast(GraphNet, merged).run(dict(zip(graph.inputs, x, strict=True))))
        logits = merged(x[0])
        return [logits, emit(logits, spec.output_activation)]

    with jax.default_matmul_precision("float32"):
        ours = jax.device_get(run(state, [jnp.asarray(each) for each in x]))
    largest = 0.0
    if not several:
        # Before the output activation too: probabilities of 0 and 1 would prove little.
        last = loaded.outputs[0]
        activation = last._keras_history.operation
        logits = activation.input if spec.output_activation != "linear" else last
        loaded = import_keras().Model(loaded.inputs, [logits, last])
        largest = float(np.abs(ours[0]).max(initial=0))
    theirs = computed(loaded, x if len(x) > 1 else x[0])
    return max(
        compare("", "", a, np.asarray(b), KERAS_TOLERANCE, largest).relative
        for a, b in zip(ours, theirs, strict=True)
    )
