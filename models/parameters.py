"""A network's parameters and statistics by path: `block1/conv/kernel`."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from voxtune.models.families import FAMILIES, Network, abstract

KEPT = (nnx.Param, nnx.BatchStat)  # what a model directory holds


def _variables(network: Network | nnx.State) -> dict[str, nnx.Variable]:
    state = network if isinstance(network, nnx.State) else nnx.state(network, KEPT)
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def by_path(network: Network) -> dict[str, jax.Array]:
    """Path → array of all parameters and statistics."""
    return {path: variable[...] for path, variable in _variables(network).items()}


def statistics_of(network: Network) -> frozenset[str]:
    """Paths of the statistics."""
    return frozenset(_variables(nnx.state(network, nnx.BatchStat)))


def shapes_of(network: Network) -> dict[str, tuple[int, ...]]:
    """Path → shape of all parameters and statistics."""
    return {path: variable.shape for path, variable in _variables(network).items()}


def assemble(
    family: str, arguments: Mapping[str, Any], values: Mapping[str, np.ndarray | jax.Array]
) -> Network:
    """The network with these parameters and statistics.

    Raises:
        InputError: the family is unknown, or does not take these arguments.
        ValueError: the paths or shapes are not exactly the network's.
    """
    network = abstract(family, arguments)
    state = nnx.state(network, KEPT)
    variables = _variables(state)
    if variables.keys() != values.keys():
        missing = ", ".join(sorted(variables.keys() - values.keys())) or "none"
        extra = ", ".join(sorted(values.keys() - variables.keys())) or "none"
        raise ValueError(f"parameters missing: {missing}; not in the network: {extra}")
    for path, variable in variables.items():
        if values[path].shape != variable.shape:
            raise ValueError(f"{path} is {values[path].shape}, the network's is {variable.shape}")
        variable.set_value(jnp.asarray(values[path]))
    nnx.update(network, state)
    return network


def fresh(
    family: str, arguments: Mapping[str, Any], seed: int, paths: Collection[str]
) -> dict[str, jax.Array]:
    """Some parameters and statistics of the network that `build` makes of a seed, by path.

    The others take no memory and are not drawn.
    """

    @jax.jit
    def initialise(key: jax.Array) -> dict[str, jax.Array]:
        network = FAMILIES[family](**arguments, rngs=nnx.Rngs(params=key))
        return {path: value for path, value in by_path(network).items() if path in paths}

    if not paths:
        return {}
    found: dict[str, jax.Array] = initialise(jax.random.key(seed, impl="rbg"))
    return found


def shapes(family: str, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Path → shape of all parameters and statistics, without taking memory for them.

    Raises:
        InputError: the family is unknown, or does not take these arguments.
    """
    return shapes_of(abstract(family, arguments))


def count(network: Network) -> int:
    """Values in parameters and statistics, as Keras's `count_params` counts them."""
    return sum(math.prod(variable.shape) for variable in _variables(network).values())
