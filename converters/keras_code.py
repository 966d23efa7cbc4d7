"""Python code in a configuration: refused by name, or left out unread where it changes nothing."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.keras_model import KerasCall, KerasLayer, TensorRef
from voxtune.converters.keras_nodes import found

# What these hold shapes training alone, and voxtune has its own way to say it.
_TRAINING_ONLY = ("_initializer", "_regularizer", "_constraint")
_BAYESIAN = ("Flipout", "Reparameterization", "LocalReparameterization")


def class_of(class_name: str) -> str:
    """A class's name without its package: `Addons>InstanceNormalization` is the latter."""
    return class_name.rsplit(">", 1)[-1]


def without_code(
    name: str, class_name: str, config: Mapping[str, Any], lambdas: Mapping[str, str], path: Path
) -> dict[str, Any]:
    """A layer's configuration, in which no code is left.

    Args:
        name: the layer's name in the whole model.
        class_name: as in the file.
        config: as in the file.
        lambdas: layer → what takes the place of its code: "identity" or an activation's name.
        path: for the message.

    Raises:
        ConversionError: the layer is code, or holds code that its result depends on.
    """
    if class_of(class_name) == "Lambda":
        if name in lambdas:
            return {"name": config.get("name"), "activation": lambdas[name]}
        arguments = config.get("arguments")
        numbers = arguments.items() if isinstance(arguments, dict) else ()
        return {
            "name": config.get("name"),
            "arguments": {key: value for key, value in numbers if type(value) in (int, float)},
        }
    clean = dict(config)
    for key, value in config.items():
        if key.endswith("_fn") and class_of(class_name).endswith(_BAYESIAN):
            clean[key] = None if value is None else True  # there, but unread
        elif not _holds_code(value):
            continue
        elif key.endswith(_TRAINING_ONLY):
            clean[key] = None
        elif key == "activation" and name in lambdas:
            clean[key] = lambdas[name]
        else:
            raise refusal(name, path)
    if config.get("mode_type", "raw") != "raw" or config.get("function_type", "raw") != "raw":
        raise refusal(name, path)  # Merge of Keras 1 with a function of a person's own
    return clean


def _holds_code(value: Any) -> bool:
    queue = [value]
    while queue:
        item = queue.pop()
        if item == "<lambda>":
            return True
        if isinstance(item, list):
            queue.extend(item)
        elif isinstance(item, dict):
            class_name = item.get("class_name")
            if isinstance(class_name, str) and class_of(class_name) in ("Lambda", "__lambda__"):
                return True
            queue.extend(item.values())
    return False


def refusal(name: str, path: Path) -> ConversionError:
    """The sentence about a layer that holds code."""
    return ConversionError(
        f"{path}: the layer {quoted(name)} holds Python code (Lambda), refused because voxtune "
        f"does not run code stored in files; if you know what it does, say so with --lambda "
        f"{quoted(name)[1:-1]}=identity or an activation's name in the place of identity"
    )


def settle_lambdas(
    layers: Mapping[str, KerasLayer], calls: tuple[KerasCall, ...], path: Path
) -> dict[str, KerasLayer]:
    """The layers, with each Lambda that its place in the structure explains.

    Those are the ones of Nobrainer's attention_unet_with_inception: they repeat the one channel of
    an attention map as often as the map's partner has channels. Their config becomes
    `{"name": ..., "repeats": ...}`.

    Raises:
        ConversionError: a Lambda is neither one of those nor named by the person who converts.
    """
    settled = dict(layers)
    unknown = {
        name: layer
        for name, layer in layers.items()
        if class_of(layer.class_name) == "Lambda" and "activation" not in layer.config
    }
    if unknown:
        links = _Links(calls)
        for name, layer in unknown.items():
            repeats = _repeats(layer, layers, links)
            if repeats is None:
                raise refusal(name, path)
            settled[name] = KerasLayer(
                name, "Lambda", {"name": layer.config["name"], "repeats": repeats}, {}
            )
    return settled


class _Links:
    """Which calls each call reads, which read it, and the calls of each layer."""

    def __init__(self, calls: tuple[KerasCall, ...]) -> None:
        by_name = {call.name: call for call in calls}
        self.read: dict[str, list[KerasCall]] = {}
        self.readers: dict[str, list[KerasCall]] = defaultdict(list)
        self.uses: dict[str, list[KerasCall]] = defaultdict(list)
        for call in calls:
            self.uses[call.layer].append(call)
            sources = [each.call for each in found([call.args, call.kwargs], TensorRef)]
            self.read[call.name] = [by_name[name] for name in sources]
            for name in dict.fromkeys(sources):
                self.readers[name].append(call)


def _repeats(layer: KerasLayer, layers: Mapping[str, KerasLayer], links: _Links) -> int | None:
    """How often a Lambda of an attention gate repeats its channel, None for any other Lambda.

    The gate: a convolution to one channel, sigmoid, upsampling, the Lambda with the one argument
    `repnum`, and nothing but a product with a tensor that a convolution back to as many channels
    reads.
    """
    repeats = layer.config["arguments"].get("repnum")
    if len(layer.config["arguments"]) != 1 or not isinstance(repeats, int) or repeats < 1:
        return None

    def config(call: KerasCall, class_name: str) -> Mapping[str, Any]:
        here = layers[call.layer]
        return here.config if class_of(here.class_name) == class_name else {}

    try:
        (use,) = links.uses[layer.name]
        (up,) = links.read[use.name]
        (sigmoid,) = links.read[up.name]
        (one,) = links.read[sigmoid.name]
        (product,) = links.readers[use.name]
        (after,) = links.readers[product.name]
    except ValueError:
        return None
    fits = (
        config(up, "UpSampling3D")
        and config(sigmoid, "Activation").get("activation") == "sigmoid"
        and config(one, "Conv3D").get("filters") == 1
        and config(product, "Multiply")
        and len(links.read[product.name]) == 2
        and config(after, "Conv3D").get("filters") == repeats
    )
    return repeats if fits else None
