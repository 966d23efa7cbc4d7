"""What Nobrainer's files do not say, read off the structure of its models."""

from collections.abc import Iterator

from voxtune.converters.keras_model import KerasCall, KerasModel, TensorRef
from voxtune.converters.keras_nodes import found


def is_nobrainer_vnet(model: KerasModel) -> bool:
    """Whether group normalisation in a file is Nobrainer's, by the structure around it.

    Nobrainer's class has the name, the settings and the weights of Keras's own. In its vnet and
    bayesian_vnet, every concatenation is normalised, and every upsampling is followed by a
    convolution of size 2.
    """
    layers = model.by_name

    def class_names(call: KerasCall) -> Iterator[str]:
        for other in model.calls:
            if any(each.call == call.name for each in found(list(other.args), TensorRef)):
                layer = layers[other.layer]
                size = layer.config.get("kernel_size")
                yield f"{layer.class_name}{size[0] if isinstance(size, list) and size else ''}"

    calls = {
        name: [call for call in model.calls if layers[call.layer].class_name == name]
        for name in ("GroupNormalization", "Concatenate", "UpSampling3D")
    }
    if len(model.calls) > 200 or not all(calls.values()):
        return False
    norms = [layers[call.layer].config for call in calls["GroupNormalization"]]
    return (
        all((each.get("groups"), each.get("axis")) == (4, -1) for each in norms)
        and all(each.get("epsilon") == 1e-5 for each in norms)
        and all(list(class_names(call)) == ["GroupNormalization"] for call in calls["Concatenate"])
        and all(
            list(class_names(call)) in (["Conv3D2"], ["Conv3DFlipout2"])
            for call in calls["UpSampling3D"]
        )
    )
