"""Does the converted network compute what the Keras network computed?"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from voxtune.converters.errors import ConversionError
from voxtune.converters.to_flax import Conversion

TOLERANCE = 1e-4  # of the largest absolute value; float32 rounding stays a hundred times below
_MAX_BYTES = 4 << 30  # of a golden file, unpacked
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, MemoryError)


@dataclass(frozen=True)
class Comparison:
    """One stored array against the converted network's.

    Attributes:
        name: entry of the golden file.
        path: where the network computes it.
        difference: largest absolute difference.
        largest: largest absolute value stored.
    """

    name: str
    path: str
    difference: float
    largest: float

    @property
    def relative(self) -> float:
        """Difference over the largest value; infinite where it is not a number."""
        if not np.isfinite(self.difference):
            return float("inf")
        return self.difference / self.largest if self.largest else self.difference

    @property
    def met(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.relative <= TOLERANCE


def emit(logits: Array, output_activation: str) -> Array:
    """What the Keras network emits: its output activation put back on the logits."""
    if output_activation == "sigmoid":
        return jax.nn.sigmoid(logits)
    if output_activation == "softmax":
        return jax.nn.softmax(logits, axis=-1)
    return logits


def intermediate(conversion: Conversion, x: np.ndarray) -> dict[str, np.ndarray]:
    """Every intermediate result of the converted network on `x` `[B, D, H, W, C]`, by path."""
    graph, state = nnx.split(conversion.network())

    @jax.jit
    def run(state: nnx.State, x: Array) -> dict[str, Array]:
        found: dict[str, Array] = {"input": x}

        def keep(path: str, value: Array) -> None:
            found[path] = value

        logits = nnx.merge(graph, state)(x, tap=keep)
        found["output"] = emit(logits, conversion.recognised.output_activation)
        return found

    # GPUs and TPUs round products to 10 or 8 bits unless told not to: far above the tolerance.
    with jax.default_matmul_precision("float32"):
        return {path: np.asarray(value) for path, value in run(state, jnp.asarray(x)).items()}


def compare_golden(conversion: Conversion, path: Path) -> list[Comparison]:
    """Runs the converted network on a golden file's `x` and compares with what it stores.

    A golden file is an `.npz` with `x` and `y` `[B, D, H, W, C]`, `act:<layer>` the whole result
    of a Keras layer, `act4:<layer>` every fourth voxel of it along each axis. `y` is what the
    Keras network emitted.

    Raises:
        ConversionError: the file cannot be read, or names a layer that the network lacks.
    """
    golden = _read_golden(path)
    if "x" not in golden or "y" not in golden:
        raise ConversionError(f"{path} is no golden file: it needs the arrays 'x' and 'y'.")
    x, channels = golden["x"], conversion.recognised.arguments["channels"]
    multiple = conversion.network().min_multiple
    if x.ndim != 5 or x.shape[-1] != channels or any(n % multiple for n in x.shape[1:4]):
        raise ConversionError(
            f"{path}: 'x' has shape {x.shape}; the network takes [B, D, H, W, {channels}] with "
            f"spatial sizes in multiples of {multiple}."
        )
    paths: Mapping[str, str] = conversion.recognised.paths
    wanted: dict[str, tuple[str, int]] = {"y": ("output", 1)}
    for name in golden:
        kind, _, layer = name.partition(":")
        if kind not in ("act", "act4") or not layer:
            continue
        if layer not in paths:
            raise ConversionError(
                f"{path}: '{name}' belongs to a layer '{layer}' that the network does not have."
            )
        wanted[name] = (paths[layer], 4 if kind == "act4" else 1)
    found = intermediate(conversion, x)
    comparisons = []
    for name, (where, every) in wanted.items():
        # In prediction a dropout layer emits what it was given: the activation before it.
        result = found.get(where, found.get(where.replace("/dropout", "/activation")))
        assert result is not None, f"no result is tapped at {where}"
        result, stored = result[:, ::every, ::every, ::every], golden[name]
        if result.shape != stored.shape:
            raise ConversionError(
                f"{path}: '{name}' has shape {stored.shape} where the network gives {result.shape}."
            )
        difference = float(np.abs(result.astype(np.float64) - stored).max())
        comparisons.append(Comparison(name, where, difference, float(np.abs(stored).max())))
    return comparisons


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
