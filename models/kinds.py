"""The table of the layers that a graph may have, and how to add one.

Settings are Keras 3's own, with `data_format` always channels-last.
"""

import re
from collections.abc import Callable, Iterable

from jax import Array

from voxtune.models import (
    activations,
    attention,
    bayesian,
    convolutions,
    dropouts,
    normalization,
    operations,
    pooling,
    reshaping,
)
from voxtune.models.kind import (
    Config,
    Inputs,
    Kind,
    Mode,
    Shape,
    Shapes,
    Weights,
    everywhere,
    no_weights,
)

__all__ = ["KINDS", "Kind", "Mode", "register_layer", "supported_table"]

KINDS: dict[str, Kind] = {
    **convolutions.KINDS,
    **bayesian.KINDS,
    **normalization.KINDS,
    **activations.KINDS,
    **pooling.KINDS,
    **reshaping.KINDS,
    **dropouts.KINDS,
    **attention.KINDS,
    **operations.KINDS,
}


def register_layer(
    name: str,
    apply: Callable[[Config, Weights, Inputs, Mode], Array],
    weights: Callable[[Config, Shapes], dict[str, Shape]] = no_weights,
) -> None:
    """Adds a layer of your own, so that files which have it convert.

    Write what the layer computes with `jax.numpy`, which has NumPy's functions, and call this
    before converting, and in every program that uses the converted network. For a Keras layer

        class Scale(keras.layers.Layer):
            def build(self, input_shape):
                self.factor = self.add_weight(shape=(input_shape[-1],))

            def call(self, x):
                return self.factor * x + self.shift

    whose `get_config` writes `shift`:

        def apply(config, weights, inputs, mode):
            (x,) = inputs
            return weights["factor"] * x + config["shift"]

        def weights(config, shapes):
            return {"factor": (shapes[0][-1],)}

        register_layer("Scale", apply, weights)

    The receptive field of a network that has such a layer is not known.

    Args:
        name: the name of the Keras class, as it stands in the file.
        apply: the layer's settings as in the file, its weights by name, its inputs (channels last,
            batch first) and the mode (`mode.train`; `mode.key()` is a random key) → the result.
        weights: settings and shapes of the inputs → name → shape of each weight, in the order of
            the file; none unless given. A name that begins with `moving_` is a statistic, which is
            not trained: `mode.statistics.update(name, value)` replaces it.

    Raises:
        ValueError: there is a layer of that name.
    """
    if name in KINDS:
        raise ValueError(f"there is a layer '{name}' already")
    KINDS[name] = Kind(apply, weights, everywhere, summary="registered")


# --- what a reader of the documentation wants to know ----------------------------------------


def supported_table() -> str:
    """The layers and their settings as a Markdown table: a row for layers with the same ones."""
    rows: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for name, kind in KINDS.items():
        limits = tuple(f"`{key}` {_shown(value)}" for key, value in kind.only.items())
        rows.setdefault((kind.summary, tuple(kind.settings), limits), []).append(name)
    lines = ["| group | layers | settings | only |", "|---|---|---|---|"]
    group = ""
    for (summary, settings, limits), names in rows.items():
        shown = ", ".join(f"`{name}`" for name in settings)
        first = "" if summary == group else summary
        group = summary
        lines.append(f"| {first} | {', '.join(_together(names))} | {shown} | {', '.join(limits)} |")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if value is None:
        return "not set"
    return "off" if value is False else str(value)


def _together(names: Iterable[str]) -> list[str]:
    """`Conv1D`, `Conv2D`, `Conv3D` → `Conv1D/2D/3D`."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = re.search(r"[123]D", name)
        plain = name.replace(match[0], "{}", 1) if match else name
        found.setdefault(plain, []).extend([match[0]] if match else [])
    return [plain.replace("{}", "/".join(axes)) for plain, axes in found.items()]
