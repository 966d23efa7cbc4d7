"""Tensors of a network made to fit another: other input channels, more classes.

Tensors are told by the last part of their paths; those of random weights have the names that TF
Probability and kwyk give them, see `voxtune.models.variational`.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from voxtune.models.errors import InputError
from voxtune.models.graph import Graph, with_channels

Array = np.ndarray | jax.Array
Shape = tuple[int, ...]

# What a layer adds whatever it reads.
_BIASES = ("bias", "bias_posterior_loc", "bias_m")
# A layer gives nothing but its bias where these are zero.
_SCALES = ("kernel", "kernel_posterior_loc", "g")
# How far random weights spread round their means.
_SPREADS = ("kernel_posterior_untransformed_scale", "kernel_a")
# Shares of classes are held away from 0 and 1 by this: 17 voxels of 256 x 256 x 256.
_LEAST_SHARE = 1e-6


def _parts(path: str) -> tuple[str, str]:
    """The path of a layer, and what its tensor is called."""
    layer, _, name = path.rpartition("/")
    return layer, name


def is_bias(path: str, layers: Sequence[str]) -> bool:
    """Whether a tensor is the bias of one of these layers."""
    layer, name = _parts(path)
    return layer in layers and name in _BIASES


# --- input -----------------------------------------------------------------------------------


def with_input(family: str, arguments: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The arguments of a network that takes so many channels and is the same otherwise.

    Raises:
        InputError: it is a graph that cannot.
    """
    changed = {**arguments, "channels": channels}
    if family == "graph":
        try:
            graph = with_channels(Graph.from_json(arguments["graph"]), channels)
        except ValueError as error:
            raise InputError(
                f"The network cannot be given {channels} channels: {error}; give as many as it has."
            ) from error
        changed["graph"] = graph.to_json()
    return changed


def grown_axis(old: Shape, new: Shape, before: int, after: int) -> int | None:
    """The one axis that went from `before` to `after`; None if the shapes differ in another way."""
    if len(old) != len(new):
        return None
    axes = [axis for axis, sizes in enumerate(zip(old, new, strict=True)) if sizes[0] != sizes[1]]
    sizes = [(old[axis], new[axis]) for axis in axes]
    return axes[0] if sizes == [(before, after)] and before < after else None


def channel_places(
    before: Sequence[str] | None, old: int, after: Sequence[str] | None, new: int
) -> tuple[int | None, ...]:
    """Which channel of before each new one reads as, None for a further one.

    A channel takes the place of its namesake, and one that has none a place that is free. Where
    names are unknown each stays in its place.

    Args:
        before: names of the channels that kernels read.
        old: how many those are.
        after: names of the channels that they shall read.
        new: how many those are.
    """
    if before is None or after is None:
        return tuple(place if place < old else None for place in range(new))
    free = iter([place for place, name in enumerate(before) if name not in after])
    return tuple(before.index(name) if name in before else next(free, None) for name in after)


def with_places(
    tensors: Mapping[str, Array],
    axes: Mapping[str, int],
    places: Sequence[int | None],
    how: str,
) -> dict[str, tuple[np.ndarray, str]]:
    """Kernels that read other channels than they did: in another order, or more.

    By "copy" further channels read as the old ones do in turn, each divided by how many now read
    so: where they are equal the response is the old one. By "zero" they have no say. The spread of
    random weights is copied and not divided.

    Args:
        tensors: path → array, of all the layers that change.
        axes: path → axis of the channels, of those tensors that have it.
        places: what `channel_places` gives, each old channel in it.
        how: "copy" or "zero".

    Returns:
        Path → array and what was done, of all that differ from `tensors`.
    """
    found: dict[str, tuple[np.ndarray, str]] = {}
    channels, further = len(places), places.count(None)
    old = channels - further
    turns = itertools.cycle(range(old))
    source = np.array([next(turns) if place is None else place for place in places])
    copies = np.bincount(source)[source]
    one = "1 channel" if old == 1 else f"{old} channels"
    for path, axis in axes.items():
        value, (layer, name) = np.asarray(tensors[path]), _parts(path)
        shape = [channels if each == axis else 1 for each in range(value.ndim)]
        if not further:
            found[path] = value.take(source, axis), f"{one} in another order"
        elif name in _SPREADS:
            found[path] = value.take(source, axis), f"{one} copied to {channels}"
        elif how == "zero":
            kept = np.array([place is not None for place in places], value.dtype).reshape(shape)
            text = f"{one} kept, {further} of zeros added"
            found[path] = value.take(source, axis) * kept, text
        else:
            divided = copies.astype(value.dtype).reshape(shape)
            by = copies[0] if len(set(copies)) == 1 else f"{min(copies)} or {max(copies)}"
            text = f"{one} copied to {channels}, divided by {by}"
            found[path] = value.take(source, axis) / divided, text
        length = f"{layer}/g"
        if name == "v" and further and length in tensors:
            # The kernel is g v / |v|: so that it is divided as v is, g takes what |v| lost.
            ratio = _norm(found[path][0]) / np.maximum(_norm(value), 1e-6)
            found[length] = np.asarray(tensors[length]) * ratio, "scaled as the length of v"
    return found


def _norm(value: np.ndarray) -> np.ndarray:
    """Of each output's kernel, `[1, ..., 1, O]`."""
    return np.sqrt((value**2).sum(tuple(range(value.ndim - 1)), keepdims=True))


# --- head ------------------------------------------------------------------------------------


def class_bias(prevalence: np.ndarray, outputs: int) -> np.ndarray:
    """The bias by which a head that sees nothing gives each class its prevalence.

    Args:
        prevalence: share of each class in all voxels `[K]`, background first.
        outputs: K of a softmax, or 1 of a sigmoid (then K is 2).

    Returns:
        Float32 `[outputs]`: log p, or log(p / (1 - p)).
    """
    share = np.clip(prevalence, _LEAST_SHARE, 1 - _LEAST_SHARE)
    found = np.log(share) if outputs > 1 else np.log(share[1:]) - np.log1p(-share[1:])
    return found.astype(np.float32)


@dataclass(frozen=True)
class Extension:
    """A head that tells more classes apart than it did.

    The old outputs stay what they were, and so do the relative probabilities of the old classes;
    one output, of a sigmoid, becomes the second of a softmax whose first is always zero. Each new
    output is a copy of the background's with the bias `b + log(p / q)`, b being the background's
    and p and q the prevalences of class and background: everywhere the new class is p / q times as
    probable as the background. So it is about as frequent as its voxels are, and while p < q the
    most probable class is the old one.

    Attributes:
        outputs: of the head before.
        prevalence: share of each class in all voxels `[K]`, the new ones last.
        heads: paths of the layers that give the outputs.
    """

    outputs: int
    prevalence: np.ndarray
    heads: Sequence[str]

    @property
    def places(self) -> range:
        """Where the old outputs are among the new."""
        return range(1, 2) if self.outputs == 1 else range(self.outputs)

    def draws(self, path: str) -> bool:
        """Whether what is added to a tensor is a fresh network's, not zeros or the background's.

        So it is with what comes before the last layer, such as the first convolution of VNet's
        head: zeros there would stay zeros, since those of the last layer stop their gradients. And
        with what a sigmoid's background lacks and a product with zero hides.
        """
        layer, name = _parts(path)
        return layer not in self.heads or (self.outputs == 1 and name not in (*_SCALES, *_BIASES))

    def __call__(self, path: str, old: Array, shape: Shape, fresh: Array | None) -> np.ndarray:
        """A tensor of the head for all classes.

        Args:
            path: its own.
            old: what it was.
            shape: what it shall have.
            fresh: a fresh network's, where it `draws`.
        """
        result = np.zeros(shape, np.float32) if fresh is None else np.array(fresh)
        axes = zip(old.shape, shape, strict=True)
        where = np.ix_(*(range(n) if n == m else self.places for n, m in axes))
        result[where] = np.asarray(old)
        new = slice(self.places.stop, None)
        if _parts(path)[0] in self.heads:
            result[..., new] = result[..., :1]
        if is_bias(path, self.heads):
            logs = class_bias(self.prevalence, len(self.prevalence))
            result[new] += logs[new] - logs[0]
        return result
