"""The floor of a network on a device: what its convolutions and products take at best, by layer.

A layer can be no faster than the device multiplies, nor than it moves what goes in and comes out
(Williams et al. 2009, doi 10.1145/1498765.1498785). That is of the operations as counted
(`voxtune.models.flops`): what is computed with fewer can be faster. Nothing is run here, and no
device opened.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from voxtune.benchmarks.comparisons import OWN
from voxtune.benchmarks.history import Entry
from voxtune.benchmarks.measurement import Spread
from voxtune.benchmarks.nets import NETS, Net
from voxtune.engine.step import split
from voxtune.models.errors import InputError
from voxtune.models.families import abstract
from voxtune.models.flops import inside, of_equation
from voxtune.models.lowering import plain_lowerings

_LARGEST = 4096  # blocks of a batch: what nobody measures is not traced
_IMAGE, _MIXED = "(image)", "(activations)"  # what an array was made of, if not of one parameter


@dataclass(frozen=True)
class Layer:
    """A convolution or a product of matrices.

    Attributes:
        name: path of its kernel, `encoder1/unit1/conv/kernel`; `(activations)` where it has none.
        flops: of the forward pass, counted as in `voxtune.models.flops`.
        bytes: of what goes in, what comes out and the kernel, once each, in the type that the
            network computes in.
        passes: of a training step, each with about as many FLOPs and bytes as the forward pass:
            that one, the gradient of the kernel, and the gradient of what goes in, which is not
            computed of the image.
    """

    name: str
    flops: int
    bytes: int
    passes: int

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.bytes

    def floor(self, product: float, copy: float) -> float:
        """Seconds of a pass at best.

        Args:
            product: FLOP/s of the device in matrix products.
            copy: bytes/s that it reads and writes of its memory.
        """
        return max(self.flops / product, self.bytes / copy)


def forward_floor(layers: Sequence[Layer], product: float, copy: float) -> float:
    """Seconds of a forward pass at best, layer after layer; rates as of `Layer.floor`."""
    return sum(each.floor(product, copy) for each in layers)


def step_floor(layers: Sequence[Layer], product: float, copy: float) -> float:
    """Seconds of a training step at best: forward once, backward twice (see `Layer.passes`)."""
    return sum(each.passes * each.floor(product, copy) for each in layers)


def layers_of(net: Net, block: Sequence[int], batch: int, dtype: str) -> list[Layer]:
    """The layers of a network in the order in which they are computed.

    What lies between them (activations, pooling, joins) is left out, as it can be fused.

    Args:
        net: one of `voxtune.benchmarks.nets.NETS`.
        block: edges, voxels.
        batch: blocks at once.
        dtype: what is computed in, `float32` or `bfloat16`.
    """
    net = net.at(block)
    channels = int(net.arguments.get("channels", 1))
    image = jax.ShapeDtypeStruct((batch, *block, channels), jnp.float32)
    with plain_lowerings():  # others ask for the device, for a graph's shapes too
        apply, params, statistics = split(abstract(net.family, dict(net.arguments)), dtype)
        traced = jax.make_jaxpr(lambda *given: apply(*given)[0])(params, statistics, image)
    leaves, _ = jax.tree_util.tree_flatten_with_path((params, statistics))
    names = ["/".join(key.key for key in path[1:]) for path, _ in leaves]
    return _of_jaxpr(traced.jaxpr, [*names, _IMAGE])[0]


def _of_jaxpr(jaxpr: Jaxpr, given: Sequence[str | None]) -> tuple[list[Layer], list[str | None]]:
    """Layers of a computation, and what its results were made of.

    Args:
        jaxpr: the computation.
        given: what each of its arguments was made of: a parameter's path, `_IMAGE` or `_MIXED`;
            None of a constant.
    """
    made: dict[Any, str | None] = dict(zip(jaxpr.invars, given, strict=True))
    layers = []

    def source(value: Any) -> str | None:
        return None if isinstance(value, Literal) else made.get(value)

    for equation in jaxpr.eqns:
        sources = [source(each) for each in equation.invars]
        told = {each for each in sources if each is not None}
        result = next(iter(told), None) if len(told) < 2 else _MIXED
        results: Sequence[str | None] = [result] * len(equation.outvars)
        flops = of_equation(equation)
        inner = list(inside(equation)) if flops else []
        if flops and not inner:
            layers.append(_layer(equation, flops, told))
            results = [_MIXED] * len(equation.outvars)
        for each in inner:
            first = len(sources) - len(each.invars)  # the first argument of a choice chooses
            found, results = _of_jaxpr(each, sources[first:])
            layers += [_repeated(layer, equation.params.get("length", 1)) for layer in found]
        made |= zip(equation.outvars, results, strict=True)
    return layers, [source(each) for each in jaxpr.outvars]


def _layer(equation: JaxprEqn, flops: int, told: Collection[str]) -> Layer:
    """An operation as a layer; what its arguments were made of."""
    kernels = [each for each in told if each not in (_IMAGE, _MIXED)]
    arrays: list[Any] = [each.aval for each in (*equation.invars, *equation.outvars)]
    return Layer(
        kernels[0] if len(kernels) == 1 else _MIXED,
        flops,
        sum(each.size * each.dtype.itemsize for each in arrays),
        2 if _IMAGE in told else 3,
    )


def _repeated(layer: Layer, times: int) -> Layer:
    """As often as a loop runs."""
    return replace(layer, flops=times * layer.flops, bytes=times * layer.bytes)


# Beside what was measured


@dataclass(frozen=True)
class Reach:
    """A training step that was measured, and its floor.

    Attributes:
        entry: what was measured; its `seconds` are of steps.
        layers: of the network, for the batch that was measured.
        product: FLOP/s that the device had in matrix products beside the steps.
        copy: bytes/s that it reads and writes of its memory.
    """

    entry: Entry
    layers: Sequence[Layer]
    product: float
    copy: float

    @property
    def floor(self) -> float:
        """Seconds of a step at best."""
        return step_floor(self.layers, self.product, self.copy)

    def pass_floor(self, layer: Layer) -> float:
        """Seconds of a pass of a layer at best."""
        return layer.floor(self.product, self.copy)

    def is_copied(self, layer: Layer) -> bool:
        """Whether what it moves takes longer than what it computes."""
        return layer.bytes / self.copy > layer.flops / self.product

    @property
    def times(self) -> Spread:
        """How many times the floor a step took."""
        return Spread.of([each / self.floor for each in self.entry.measurement.seconds])


def reaches(entries: Iterable[Entry]) -> list[Reach]:
    """Of the last training steps of voxtune's on one device, of each network, block, batch, dtype.

    Of those that were measured in several ways (computing levels again, or mapped otherwise) the
    fastest. What a device was not measured for is left out.

    Args:
        entries: see `voxtune.benchmarks.comparisons.newest`.
    """
    best: dict[tuple[Any, ...], Entry] = {}
    for entry in entries:
        measured, settings = entry.measurement, entry.measurement.settings
        if measured.suite != "train" or measured.program != OWN or not measured.seconds:
            continue
        if settings.get("network") not in NETS or settings.get("devices", 1) != 1:
            continue
        key = entry.place.machine, *(settings.get(name) for name in _SHAPE)
        if None not in key and (key not in best or _took(entry) < _took(best[key])):
            best[key] = entry
    found = (_reach(each) for each in best.values())
    return [each for each in found if each is not None]


_SHAPE = ("network", "block", "batch", "dtype")  # settings that tell how much a step has to do


def _took(entry: Entry) -> float:
    took = entry.measurement.took
    assert took is not None
    return took.median


def _reach(entry: Entry) -> Reach | None:
    settings, floors = entry.measurement.settings, entry.measurement.floors
    network, block, batch, dtype = (settings[name] for name in _SHAPE)
    product = Spread.of(floors).median if floors else entry.place.products.get(str(dtype))
    copy = entry.place.copy
    if product is None or copy is None or dtype not in ("float32", "bfloat16"):
        return None
    edges = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})x([1-9]\d{0,3})", str(block))
    if edges is None or not isinstance(batch, int) or not 0 < batch <= _LARGEST:
        return None
    try:
        layers = layers_of(NETS[str(network)], [*map(int, edges.groups())], batch, str(dtype))
    except (InputError, TypeError, ValueError):  # of a block that the network does not take
        return None
    if not layers:
        return None
    return Reach(entry, layers, product, copy)
