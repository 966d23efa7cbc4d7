"""One layer, computed here and by Keras 3; and a small network of each family."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from voxtune.models.families import Network, build
from voxtune.models.graph import Graph, GraphCall, GraphLayer, results, weight_shapes
from voxtune.models.kinds import KINDS, Mode


@dataclass(frozen=True)
class OneLayer:
    """A layer of a kind with random weights, and inputs for it.

    Attributes:
        kind: its name in `KINDS`.
        config: its settings.
        weights: random, by name in Keras's order; between 0.3 and 1.2, so that variances are fine.
        inputs: random.
        shape: of the result, as the graph foretells it.
    """

    kind: str
    config: Mapping[str, Any]
    weights: Mapping[str, Array]
    inputs: tuple[Array, ...]
    shape: tuple[int, ...]

    def __call__(
        self,
        weights: Mapping[str, Array] | None = None,
        inputs: Sequence[Array] | None = None,
        mode: Mode | None = None,
    ) -> Array:
        """What it computes; with its own weights and inputs unless given."""
        return KINDS[self.kind].apply(
            self.config,
            self.weights if weights is None else weights,
            self.inputs if inputs is None else tuple(inputs),
            mode or Mode(False),
        )


def _one_layer(kind: str, config: Mapping[str, Any], *shapes: tuple[int, ...]) -> OneLayer:
    names = tuple(f"input{number}" for number in range(len(shapes)))
    graph = Graph(
        (GraphLayer("layer", kind, config),),
        (GraphCall("layer", "layer", names),),
        {name: shape[1:] for name, shape in zip(names, shapes, strict=True)},
        ("layer",),
    )
    generator = np.random.default_rng(len(kind))
    weights = {
        name: jnp.asarray(generator.uniform(0.3, 1.2, shape), jnp.float32)
        for name, shape in weight_shapes(graph)["layer"].items()
    }
    inputs = tuple(jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes)
    return OneLayer(kind, config, weights, inputs, results(graph)["layer"])


@pytest.fixture(scope="session")
def one_layer() -> Callable[..., OneLayer]:
    """Makes a layer: kind, settings, shapes of the inputs with batch."""
    return _one_layer


@pytest.fixture(scope="session")
def close() -> Callable[[Any, Any], None]:
    """Asserts that two trees of arrays agree to 1e-5 of the largest value of the second."""

    def check(ours: Any, theirs: Any) -> None:
        assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)
        largest = max(float(np.abs(each).max()) for each in jax.tree.leaves(theirs))
        for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * largest)

    return check


@pytest.fixture
def float64() -> Iterator[None]:
    """Within it, arrays of float64 stay so."""
    with jax.enable_x64(True):
        yield


def _small_graph() -> Graph:
    """A convolution that is used twice, a norm, dropout, a lower resolution and a skip."""
    conv = {"kernel_size": [3, 3, 3], "padding": "same", "activation": "relu"}
    size = {"kernel_size": [2, 2, 2], "strides": [2, 2, 2]}
    made = (
        GraphLayer("first", "Conv3D", {"filters": 4, **conv}),
        GraphLayer("norm", "BatchNormalization", {}),
        GraphLayer("pool", "MaxPooling3D", {}),
        GraphLayer("shared", "Conv3D", {"filters": 4, **conv}),
        GraphLayer("drop", "Dropout", {"rate": 0.5}),
        GraphLayer("up", "Conv3DTranspose", {"filters": 4, **size}),
        GraphLayer("join", "Concatenate", {}),
        GraphLayer("last", "Conv3D", {"filters": 4, **conv}),
        GraphLayer("head", "Conv3D", {"filters": 3, "kernel_size": [1, 1, 1]}),
    )
    reads = {
        "first": ["image"],
        "norm": ["first"],
        "pool": ["norm"],
        "shared": ["pool"],
        "drop": ["shared"],
        "shared:1": ["drop"],
        "up": ["shared:1"],
        "join": ["norm", "up"],
        "last": ["join"],
        "head": ["last"],
    }
    calls = (GraphCall(name, name.split(":")[0], tuple(each)) for name, each in reads.items())
    return Graph(made, tuple(calls), {"image": (None, None, None, 1)}, ("head",))


# With all that a family is made of, norms and dropout too; for blocks of 8 x 8 x 8 voxels.
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "bayesian_meshnet": {"filters": 2, "dilations": (1, 2), "dropout": "concrete"},
    "graph": {"graph": _small_graph().to_json()},
    "highresnet": {"filters": 2, "blocks": 1},
    "meshnet": {"filters": 2, "dilations": (1, 2), "dropout": 0.3},
    "resenc_unet": {"features": (2, 4), "blocks": (1, 1), "strides": (1, 2)},
    "synthseg_unet": {"filters": 2, "depth": 1},
    "unet": {"filters": 2, "depth": 1, "norm": "batch"},
    "unetr": {"size": (8,) * 3, "patch": 2, "width": 4, "blocks": 1, "heads": 2, "filters": 2},
    "vnet": {"filters": 4, "depth": 1},
}


@pytest.fixture(scope="session")
def small() -> Callable[[str], Network]:
    """Makes a small network of a family: one channel, three outputs, fresh."""

    @cache  # drawing its values takes longer than copying them
    def parts(family: str) -> tuple[nnx.GraphDef[Network], nnx.State]:
        return nnx.split(build(family, {"channels": 1, "outputs": 3, **_SMALL[family]}))

    return lambda family: nnx.merge(*parts(family), copy=True)
