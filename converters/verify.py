"""Does the converted network compute what the Keras network computed?"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.to_flax import EMITTED, Conversion
from voxtune.models.graph_net import GraphNet

GOLDEN_TOLERANCE = 1e-4  # of the largest value; float32 rounding stays a hundred times below
# A comparison runs once: compiling is nearly all of its time.
QUICK_TO_COMPILE: dict[str, int | bool] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # which no longer has this one: half of the time
    QUICK_TO_COMPILE["xla_cpu_use_fusion_emitters"] = False
_MAX_BYTES = 4 << 30  # of a golden file, unpacked
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError)


@dataclass(frozen=True)
class Comparison:
    """One array of the original against the converted network's.

    Attributes:
        name: entry of the golden file, or layer of the Keras model.
        path: where the network computes it.
        difference: largest absolute difference.
        largest: largest absolute value of the original, or of what an activation reads.
        tolerance: largest share of `largest` that the difference may be.
    """

    name: str
    path: str
    difference: float
    largest: float
    tolerance: float = GOLDEN_TOLERANCE

    @property
    def relative(self) -> float:
        """Difference over the largest value; infinite where it is not a number."""
        if not np.isfinite(self.difference):
            return float("inf")
        return self.difference / self.largest if self.largest else self.difference

    @property
    def met(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.relative <= self.tolerance


def compare(
    name: str,
    path: str,
    ours: np.ndarray,
    original: np.ndarray,
    tolerance: float,
    read: float = 0.0,
) -> Comparison:
    """The comparison of two arrays; those of different shapes are infinitely different.

    For what an activation gives, `read` is the largest value that it reads: rounding is a share of
    that, and a softmax passes it on undiminished.
    """
    same = ours.shape == original.shape
    differences = np.abs(ours.astype(np.float64) - original) if same else np.array(np.inf)
    difference = float(differences.max(initial=0))
    largest = max(float(np.abs(original).max(initial=0)), read)
    return Comparison(name, path, difference, largest, tolerance)


def emit(logits: Array, output_activation: str) -> Array:
    """What the Keras network emits: its output activation put back on the logits."""
    if output_activation == "sigmoid":
        return jax.nn.sigmoid(logits)
    if output_activation == "softmax":
        return jax.nn.softmax(logits, axis=-1)
    return logits


def intermediate(
    conversion: Conversion, x: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], float]:
    """Every intermediate result of the converted network, by the file's calls.

    Args:
        conversion: the network.
        x: input layer → array `[B, ..., C]`, in the file's own order of axes.

    Returns:
        Call → array in the file's own order of axes, layers that do nothing in prediction too; and
        the largest absolute logit.
    """
    graph, state = nnx.split(conversion.network())
    canonical, single = conversion.canonical, conversion.arguments.get("outputs") is not None

    @partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
    def run(state: nnx.State, x: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        network, found, largest = nnx.merge(graph, state), dict[str, Array](), jnp.zeros(())

        def keep(path: str, value: Array) -> None:
            found[path] = value

        if single:
            (value,) = x.values()
            found["input"] = value
            logits = network(value, tap=keep)
            found[EMITTED] = emit(logits, conversion.output_activation)
            largest = jnp.abs(logits).max()
        else:
            cast(GraphNet, network).run(x, tap=keep)
        return found, largest

    given = {
        canonical.calls[name]: np.moveaxis(value, 1, -1) if name in canonical.moved else value
        for name, value in x.items()
    }
    # GPUs and TPUs round products to 10 or 8 bits unless told not to: far above the tolerance.
    with jax.default_matmul_precision("float32"):
        found, largest = jax.device_get(
            run(state, {key: jnp.asarray(each) for key, each in given.items()})
        )
    results = {}
    for name, path in conversion.paths.items():
        # In prediction a dropout layer emits what it was given: the activation before it.
        value = found.get(path, found.get(path.replace("/dropout", "/activation")))
        if value is not None:
            results[name] = np.moveaxis(value, -1, 1) if name in canonical.moved else value
    return results, float(largest)


def compare_golden(conversion: Conversion, path: Path) -> list[Comparison]:
    """Runs the converted network on a golden file's input and compares with what it stores.

    A golden file is an `.npz` with `x` (or `x:<layer>` for each of several inputs), `y` what the
    Keras network emitted (needed where it has one output), `act:<layer>` the whole result of a
    layer, `act4:<layer>` every fourth voxel of it along each spatial axis; all in the order of axes
    that the Keras file has.

    Raises:
        ConversionError: the file cannot be read, or names a layer that the network lacks.
    """
    golden = _read_golden(path)
    x = _golden_input(conversion, golden, path)
    single = len(conversion.canonical.graph.outputs) == 1  # 'y' is that output's
    wanted: dict[str, tuple[str, int]] = {}
    if single and "y" in golden:
        output = conversion.canonical.graph.outputs[0]
        wanted["y"] = (conversion.canonical.names[output], 1)
    for name in golden:
        kind, _, layer = name.partition(":")
        if kind not in ("act", "act4") or not layer:
            continue
        if layer not in conversion.paths:
            raise ConversionError(
                f"{path}: '{name}' belongs to a layer '{layer}' that the network does not have."
            )
        wanted[name] = (layer, 4 if kind == "act4" else 1)
    if not wanted or (single and "y" not in wanted):
        raise ConversionError(
            f"{path} is no golden file: it needs the arrays 'x' and 'y' (act:LAYER for a network "
            "of several outputs)."
        )
    try:
        found, _ = intermediate(conversion, x)
    except (TypeError, ValueError) as error:
        shapes = ", ".join(str(each.shape) for each in x.values())
        raise ConversionError(
            f"{path}: the network does not take an input of shape {shapes} ({quoted(error)})."
        ) from error
    comparisons = []
    for name, (layer, every) in wanted.items():
        result, stored = found[layer], golden[name]
        if every > 1:
            axes = slice(2, None) if layer in conversion.canonical.moved else slice(1, -1)
            spatial = range(result.ndim)[axes]
            steps = (
                slice(None, None, every if axis in spatial else 1) for axis in range(result.ndim)
            )
            result = result[tuple(steps)]
        if result.shape != stored.shape:
            raise ConversionError(
                f"{path}: '{name}' has shape {stored.shape} where the network gives {result.shape}."
            )
        where = conversion.paths[layer]
        comparisons.append(compare(name, where, result, stored, GOLDEN_TOLERANCE))
    return comparisons


def _golden_input(
    conversion: Conversion, golden: Mapping[str, np.ndarray], path: Path
) -> dict[str, np.ndarray]:
    canonical = conversion.canonical
    names = {here: canonical.names[here] for here in canonical.graph.inputs}
    x = {}
    for here, shape in canonical.graph.inputs.items():
        name = names[here]
        entry = "x" if len(names) == 1 and "x" in golden else f"x:{name}"
        if entry not in golden:
            needed = "'x' and 'y'" if len(names) == 1 else f"'{entry}'"
            raise ConversionError(f"{path} is no golden file: it needs the arrays {needed}.")
        value = golden[entry]
        given = np.moveaxis(value, 1, -1).shape if name in canonical.moved else value.shape
        if len(given) != len(shape) + 1 or given[-1] != shape[-1]:
            raise ConversionError(
                f"{path}: '{entry}' has shape {value.shape}; the network takes "
                f"{len(shape) - 1} spatial axes and {shape[-1]} channels."
            )
        x[name] = value
    return x


def _read_golden(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > _MAX_BYTES:
            raise ConversionError(f"{path} would unpack to {claimed:,} bytes; 4 GiB is the most.")
        with np.load(path, allow_pickle=False) as archive:
            entries = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise ConversionError(f"{path} does not exist; give a golden .npz file.") from error
    except _UNREADABLE as error:
        raise ConversionError(f"{path} cannot be read as a golden .npz file: {error}.") from error
    return {name: value for name, value in entries.items() if value.dtype.kind == "f"}
