"""Keras's multi-head attention, over all places of its inputs."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from voxtune.models.activations import ACTIVATIONS
from voxtune.models.dropouts import drop
from voxtune.models.kind import (
    REQUIRED,
    Config,
    Inputs,
    Kind,
    Mode,
    Shape,
    Shapes,
    Weights,
    everywhere,
    like,
)


def _output_shape(config: Config, query: Shape) -> Shape:
    given = config["output_shape"]
    if not given:
        return query[-1:]
    return (given,) if isinstance(given, int) else tuple(given)


def _sources(config: Config, given: Shapes) -> Shapes:
    """Shapes of query, value and key; the value is the key where there is none."""
    if len(given) not in (2, 3):
        raise ValueError(f"it takes a query, a value and perhaps a key, not {len(given)} inputs")
    query, value, key = given if len(given) == 3 else (*given, given[1])
    if value[:-1] != key[:-1] or len(query) != len(value):
        raise ValueError("its query, value and key do not fit each other")
    axes = config["attention_axes"]
    if axes is not None:
        chosen = [axes] if isinstance(axes, int) else axes
        if sorted(axis % len(query) for axis in chosen) != list(range(1, len(query) - 1)):
            raise ValueError(f"attention_axes={axes!r} is not supported, all axes are")
    return query, value, key


def _weights(config: Config, inputs: Shapes) -> dict[str, Shape]:
    query, value, key = _sources(config, inputs)
    heads, width = config["num_heads"], config["key_dim"]
    wide = config["value_dim"] or width
    out = _output_shape(config, query)
    kernels = {
        "query": ((query[-1],), (heads, width)),
        "key": ((key[-1],), (heads, width)),
        "value": ((value[-1],), (heads, wide)),
        "attention_output": ((heads, wide), out),
    }
    found: dict[str, Shape] = {}
    for name, (entering, leaving) in kernels.items():
        found[f"{name}/kernel"] = (*entering, *leaving)
        if config["use_bias"]:
            found[f"{name}/bias"] = leaving
    return found


def _projected(x: Array, weights: Weights, name: str, entering: int = 1) -> Array:
    y = jnp.tensordot(x, like(weights[f"{name}/kernel"], x), entering)
    return y + like(weights[f"{name}/bias"], y) if f"{name}/bias" in weights else y


def _attention(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    _sources(config, tuple(x.shape for x in inputs))
    query, value, key = inputs if len(inputs) == 3 else (*inputs, inputs[1])

    def sequence(x: Array, name: str) -> Array:
        """`[B, ..., C]` → `[B, places, heads, width]`."""
        return _projected(x.reshape(x.shape[0], -1, x.shape[-1]), weights, name)

    scores = jnp.einsum(
        "bqhc,bkhc->bhqk", sequence(query, "query"), sequence(key, "key")
    ) / math.sqrt(config["key_dim"])
    shares = ACTIVATIONS["softmax"](scores)
    shares = drop(shares, config["dropout"], shares.shape, mode)
    mixed = jnp.einsum("bhqk,bkhc->bqhc", shares, sequence(value, "value"))
    result = _projected(mixed, weights, "attention_output", entering=2)
    return result.reshape(*query.shape[:-1], *result.shape[2:])


KINDS: Mapping[str, Kind] = {
    "MultiHeadAttention": Kind(
        _attention,
        _weights,
        everywhere,
        {
            "num_heads": REQUIRED,
            "key_dim": REQUIRED,
            "value_dim": None,
            "dropout": 0.0,
            "use_bias": True,
            "output_shape": None,
            "attention_axes": None,
        },
        {
            "sliding_window": None,
            "use_gate": False,
            "attention_mask": None,
            "use_causal_mask": False,
            "return_attention_scores": False,
        },
        "attention over all places, without masks",
        narrow=True,
    )
}
