"""What a converter must know of a family: the Keras network that it is modelled on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from voxtune.models.graph import Graph, GraphCall, GraphLayer
from voxtune.models.norms import group_count


@dataclass(frozen=True)
class Operation:
    """One operation of a network, in the one form that all spellings of it have.

    Attributes:
        kind: a key of `voxtune.models.kinds.KINDS`, or "input".
        settings: all that tell it from others of its kind.
        inputs: positions of the operations that it reads, in order.
        name: of the call that gives its result.
        layer: the layer whose weights it uses.
    """

    kind: str
    settings: Mapping[str, Any]
    inputs: tuple[int, ...]
    name: str
    layer: str


class HeldLayer(NamedTuple):
    """A layer of a file of weights alone."""

    name: str
    arrays: Mapping[str, np.ndarray]

    @property
    def kernel(self) -> tuple[int, ...]:
        """The shape of its 3D kernel, () where it has none."""
        return next((each.shape for each in self.arrays.values() if each.ndim == 5), ())

    @property
    def transposed(self) -> bool:
        """Whether its class, which Keras names layers after, is a transposed convolution."""
        return "transpose" in self.name.lower() or "deconv" in self.name.lower()


@dataclass(frozen=True)
class Original:
    """The Keras network that a family is modelled on.

    Attributes:
        graph: all arguments of the family → the network as Keras has it, without its output
            activation; layers bear the paths of the family, so that weights find their place.
        from_operations: the arguments as far as a file's operations tell; those of the family it
            is of, anything otherwise (a LookupError or ValueError too).
        from_weights: the same from the layers of a file of weights alone; examples for `untold`.
        untold: the arguments that weights do not tell.
        single: the activation after the last layer where that has a single output, "sigmoid" or
            "linear"; weights do not tell it either.
    """

    graph: Callable[[Mapping[str, Any]], Graph]
    from_operations: Callable[[Sequence[Operation]], dict[str, Any]]
    from_weights: Callable[[Sequence[HeldLayer]], dict[str, Any]]
    untold: tuple[str, ...] = ()
    single: str = "sigmoid"


class Builder:
    """Writes a graph layer by layer; each layer is called once.

    Args:
        channels: of the network's input, which is called `input`.
        size: the only shape that it takes, voxels; any unless given.
    """

    def __init__(
        self, channels: int, size: tuple[int | None, int | None, int | None] = (None, None, None)
    ) -> None:
        self.input = "input"
        self._shape = (*size, channels)
        self._layers: list[GraphLayer] = []
        self._calls: list[GraphCall] = []

    def add(
        self,
        kind: str,
        name: str,
        *inputs: str,
        training: bool | None = None,
        **config: Any,
    ) -> str:
        """Adds a layer that reads those of the given names, and gives its name."""
        self._layers.append(GraphLayer(name, kind, config))
        self._calls.append(GraphCall(name, name, inputs, training))
        return name

    def conv(self, name: str, source: str, filters: int, size: int = 3, **config: Any) -> str:
        """Adds a `Conv3D` with padding "same"."""
        settings = {"filters": filters, "kernel_size": [size] * 3, "padding": "same", **config}
        return self.add("Conv3D", name, source, **settings)

    def unit(
        self,
        path: str,
        source: str,
        filters: int,
        *,
        activation: str = "relu",
        norm: str | None = None,
        dilation: int = 1,
        dropout: float = 0.0,
    ) -> str:
        """Adds the layers of `voxtune.models.layers.ConvUnit`."""
        x = self.conv(f"{path}/conv", source, filters, dilation_rate=[dilation] * 3)
        if norm is not None:
            x = self.norm(f"{path}/norm", x, norm, filters)
        if activation != "linear":
            x = self.add("Activation", f"{path}/activation", x, activation=activation)
        return self.add("Dropout", f"{path}/dropout", x, rate=dropout) if dropout else x

    def norm(self, name: str, source: str, norm: str, channels: int) -> str:
        """Adds the layer that a name in `voxtune.models.norms.NORMS` stands for."""
        kind, config = keras_norm(norm, channels)
        return self.add(kind, name, source, **config)

    def graph(self, output: str) -> Graph:
        """The graph of all that was added."""
        inputs = {self.input: self._shape}
        return Graph(tuple(self._layers), tuple(self._calls), inputs, (output,))


def keras_norm(norm: str, channels: int) -> tuple[str, dict[str, Any]]:
    """Keras's layer and settings for a name in `voxtune.models.norms.NORMS`."""
    if norm == "batch":
        return "BatchNormalization", {"epsilon": 1e-3, "momentum": 0.99}
    groups = -1 if norm == "instance" else group_count(channels)
    return "GroupNormalization", {"groups": groups, "epsilon": 1e-5}


def norm_of(operations: Sequence[Operation]) -> str | None:
    """The name in `voxtune.models.norms.NORMS` of the normalisations of a network.

    A group normalisation of few channels is one of instances, which is of the whole network if all
    are.
    """
    if of_kind(operations, "BatchNormalization"):
        return "batch"
    groups = [each["groups"] for each in of_kind(operations, "GroupNormalization")]
    if not groups:
        return None
    return "instance" if set(groups) == {-1} else "group"


def of_kind(operations: Sequence[Operation], *kinds: str) -> list[Mapping[str, Any]]:
    """The settings of all operations of some kinds."""
    return [each.settings for each in operations if each.kind in kinds]
