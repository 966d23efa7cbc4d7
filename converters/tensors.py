"""The weights of a layer as they stand in a file → those of its kind, each used once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_model import KerasLayer
from voxtune.models.kinds import KINDS

Shape = tuple[int, ...]
# Names of Keras 1 and of projections of attention; the same weights under Keras 3's names.
_ALIASES = {
    "W": "kernel",
    "b": "bias",
    "alphas": "alpha",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",  # Keras 1 keeps the variance there, whatever its name says
}
_PROJECTIONS = {
    "query_dense": "query",
    "key_dense": "key",
    "value_dense": "value",
    "output_dense": "attention_output",
}
_PARTS = {"0": "kernel", "1": "bias"}
# Of training alone: priors of variational layers, how many values a normalisation has seen.
_LEFT_OUT = ("kernel_prior", "bias_prior", "count")


@dataclass(frozen=True)
class Fitted:
    """A weight of a kind.

    Attributes:
        name: in the file.
        shape: in the file.
        value: float32, as the kind needs it.
        done: how it was changed, "" where it was not.
    """

    name: str
    shape: Shape
    value: np.ndarray
    done: str


@dataclass(frozen=True)
class Layout:
    """How the weights of a layer are laid out in a file.

    Attributes:
        keras1: as Keras 1 has them.
        channels_first: whether the layer says so.
        flipped: whether kernels are those of Theano, mirrored along each spatial axis.
        axes: weight → order in which its axes are taken.
    """

    keras1: bool = False
    channels_first: bool = False
    flipped: bool = False
    axes: Mapping[str, Sequence[int]] | None = None


def fit(
    layer: KerasLayer, kind: str, wanted: Mapping[str, Shape], layout: Layout, path: Path
) -> tuple[dict[str, Fitted], tuple[str, ...]]:
    """The weights that a kind wants, out of those of a layer.

    Args:
        layer: with its weights.
        kind: of the layer.
        wanted: name → shape, in Keras's order.
        layout: how the file has them.
        path: for the messages.

    Returns:
        Name → weight, and the names of those that no prediction needs.

    Raises:
        ConversionError: a weight is missing, left over, of another shape, or not finite.
    """
    names, left_out = _matched(layer, kind, wanted, path)
    found = {}
    for name, shape in wanted.items():
        there = names[name]
        raw = layer.weights[there]
        value, done = _laid_out(raw, name, kind, shape, layout)
        if value.shape != shape:
            full = quoted(f"{layer.name}/{there}", 200)
            raise ConversionError(
                f"{path}: the tensor {full} has the shape {raw.shape}, but '{name}' of this "
                f"layer ({kind}) needs {shape}; the file does not fit together, get it again"
            )
        if raw.dtype != np.float32:
            done.append(f"{raw.dtype.name} to float32")
        value = as_float32(value, f"{layer.name}/{there}", path)
        found[name] = Fitted(there, raw.shape, value, ", ".join(done))
    return found, left_out


def as_float32(value: np.ndarray, name: str, path: Path) -> np.ndarray:
    """The values of the tensor of that name.

    Raises:
        ConversionError: they are no floating point numbers, or not finite.
    """
    full = quoted(name, 200)
    if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
        raise ConversionError(
            f"{path}: the tensor {full} holds {value.dtype.name}, not floating point numbers; save "
            "the model again with weights of float32"
        )
    with np.errstate(over="ignore"):
        value = np.ascontiguousarray(value, dtype=np.float32)
    if not np.isfinite(value).all():
        raise ConversionError(
            f"{path}: the tensor {full} holds {np.count_nonzero(~np.isfinite(value))} values that "
            "are not finite; the network was damaged in training, use an earlier file"
        )
    return value


def _matched(
    layer: KerasLayer, kind: str, wanted: Mapping[str, Shape], path: Path
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Wanted name → name in the file."""
    left_out = tuple(
        name
        for name in layer.weights
        if name not in wanted and name.rsplit("/", 1)[-1].startswith(_LEFT_OUT)
    )
    given = [name for name in layer.weights if name not in left_out]
    if given and all(name.isdigit() for name in given):
        # Position 2 of a Normalization is its count.
        extra = [given[2]] if set(wanted) == {"mean", "variance"} and len(given) == 3 else []
        left_out, given = (*left_out, *extra), [name for name in given if name not in extra]
        matched = dict(zip(wanted, given, strict=False))
    else:
        matched = {}
        for name in wanted:
            fits = [each for each in given if _plain(each) == name]
            fits = fits or [
                each
                for each in given
                if _plain(each).endswith((f"/{name}", f"_{name}")) and each not in matched.values()
            ]
            if len(fits) == 1:
                matched[name] = fits[0]
    missing = [name for name in wanted if name not in matched]
    over = [name for name in given if name not in matched.values()]
    if missing and len(given) == len(wanted) and KINDS[kind].summary == "registered":
        return dict(zip(wanted, given, strict=True)), left_out
    holder = quoted(layer.name)
    if over:
        raise ConversionError(
            f"{path}: the tensor {quoted(over[0])} {layer.weights[over[0]].shape} of the layer "
            f"{holder} ({quoted(layer.class_name)[1:-1]}) has no place there, it wants "
            f"{', '.join(f'{name} {shape}' for name, shape in wanted.items()) or 'none'}; the file "
            "does not fit together, get it again"
        )
    if missing:
        raise ConversionError(
            f"{path}: the layer {holder} has no tensor for '{missing[0]}' {wanted[missing[0]]}; "
            "its weights are missing in the file, get it again"
        )
    return matched, left_out


def _plain(name: str) -> str:
    """A name in the file as Keras 3 would have it."""
    parts = name.removesuffix(":0").split("/")
    projection = parts[-2].lstrip("_") if len(parts) > 1 else ""
    if projection in _PROJECTIONS and parts[-1] in _PARTS:
        return f"{_PROJECTIONS[projection]}/{_PARTS[parts[-1]]}"
    for old, new in _ALIASES.items():
        if parts[-1] == old or parts[-1].endswith(f"_{old}"):
            parts[-1] = new
    return "/".join(parts)


def _laid_out(
    value: np.ndarray, name: str, kind: str, shape: Shape, layout: Layout
) -> tuple[np.ndarray, list[str]]:
    done = []
    if layout.keras1 and name.endswith("kernel") and value.ndim > 2:
        moved = _from_keras1(value, kind, shape, layout.channels_first)
        if moved is not value:
            value, done = moved, ["axes moved"]
    if layout.flipped and name == "kernel" and value.ndim > 2:
        value = value[(slice(None, None, -1),) * (value.ndim - 2)]
        done.append("flipped")
    order = (layout.axes or {}).get(name)
    if order is not None and len(order) == value.ndim and list(order) != sorted(order):
        value = value.transpose(order)
        done.append("axes moved")
    return value, done


def _from_keras1(value: np.ndarray, kind: str, shape: Shape, channels_first: bool) -> np.ndarray:
    """A kernel of Keras 1 with the axes of later versions."""
    if kind == "Conv1D" and value.ndim == 4:
        if value.shape[:2] != (shape[0], 1) and value.shape[2:] == (shape[0], 1):
            value = value.transpose(2, 3, 1, 0)  # before Keras 1.1
        return value[:, 0]
    if kind == "Conv2DTranspose":
        return value.transpose((2, 3, 0, 1) if channels_first else (0, 1, 3, 2))
    if channels_first:
        return value.transpose(*range(2, value.ndim), 1, 0)
    return value
