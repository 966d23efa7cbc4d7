"""The Bayesian MeshNet as Keras and TF Probability have it, or kwyk's estimators."""

from collections.abc import Mapping, Sequence
from typing import Any

from voxtune.converters.originals.original import (
    Builder,
    HeldLayer,
    Operation,
    Original,
    of_kind,
)
from voxtune.models.graph import Graph
from voxtune.models.meshnet import NOBRAINER_DILATIONS

_KINDS = {
    "flipout": "Conv3DFlipout",
    "reparameterization": "Conv3DReparameterization",
    "weight_norm": "VWNConv3D",
}


def _graph(arguments: Mapping[str, Any]) -> Graph:
    build = Builder(arguments["channels"])
    convolution, dropout = arguments["convolution"], arguments["dropout"]

    def conv(name: str, source: str, filters: int, size: int, **settings: Any) -> str:
        settings |= {"filters": filters, "kernel_size": [size] * 3, "padding": "same"}
        return build.add(_KINDS[convolution], name, source, **settings)

    prior: dict[str, Any] = {"learned_prior": True} if arguments["prior"] == "learned" else {}
    x = build.input
    for number, dilation in enumerate(arguments["dilations"], start=1):
        path, filters = f"block{number}", arguments["filters"]
        x = conv(f"{path}/conv", x, filters, 3, dilation_rate=[dilation] * 3, **prior)
        if dropout == "concrete":
            x = build.add("ConcreteDropout", f"{path}/dropout", x)
        elif dropout:
            how: dict[str, Any] = {"is_monte_carlo": True, "scale_during_training": False}
            x = build.add("BernoulliDropout", f"{path}/dropout", x, rate=dropout, **how)
        activation = arguments["activation"]
        if activation != "linear":
            x = build.add("Activation", f"{path}/activation", x, activation=activation)
    return build.graph(conv("head", x, arguments["outputs"], 1))


def _from_operations(operations: Sequence[Operation]) -> dict[str, Any]:
    names = {kind: name for name, kind in _KINDS.items()}
    convs = of_kind(operations, *names)
    functions = [each["activation"] for each in of_kind(operations, "Activation")]
    rates = [each["rate"] for each in of_kind(operations, "BernoulliDropout")]
    concrete = of_kind(operations, "ConcreteDropout")
    return {
        "outputs": convs[-1]["filters"],
        "filters": convs[0]["filters"],
        "dilations": [each["dilation_rate"][0] for each in convs[:-1]],
        "activation": functions[0] if functions else "linear",
        "convolution": next(names[each.kind] for each in operations if each.kind in names),
        "prior": "learned" if convs[0].get("learned_prior") else "normal",
        "dropout": "concrete" if concrete else rates[0] if rates else 0.0,
    }


def _from_weights(held: Sequence[HeldLayer]) -> dict[str, Any]:
    """kwyk's and Nobrainer's files: what is not told is most often so."""
    convs = [each for each in held if len(each.arrays) >= 3 and each.kernel]
    first, last = convs[0], convs[-1]
    if convs != [each for each in held if each.kernel]:
        raise ValueError("its convolutions have no random weights")
    shape, outputs = _largest(first), _largest(last)[4]
    weight_norm = any(array.shape[:4] == (1, 1, 1, 1) for array in first.arrays.values())
    return {
        "channels": shape[3],
        "outputs": outputs,
        "filters": shape[4],
        "dilations": list(NOBRAINER_DILATIONS[37 if weight_norm else 67]),
        "activation": "relu",
        "convolution": "weight_norm" if weight_norm else "flipout",
        "prior": "normal" if weight_norm or len(first.arrays) == 3 else "learned",
        "dropout": "concrete" if len(held) != len(convs) else 0.0,
    }


def _largest(layer: HeldLayer) -> tuple[int, ...]:
    return max((each.shape for each in layer.arrays.values() if each.ndim == 5), key=sum)


BAYESIAN_MESHNET = Original(
    _graph, _from_operations, _from_weights, ("dilations", "activation", "dropout")
)
