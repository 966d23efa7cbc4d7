"""The weights of a Keras file as the parameters of a Flax network, every tensor accounted for."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from voxtune.converters.errors import ConversionError, quoted
from voxtune.converters.families import Recognised, recognise
from voxtune.converters.keras_file import KerasModel
from voxtune.models.families import Network
from voxtune.models.parameters import assemble, shapes

# Keras weight name → Flax parameter name, for the layers whose names differ.
_NORM_NAMES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}


@dataclass(frozen=True)
class Tensor:
    """What became of one tensor.

    Attributes:
        keras: `layer/weight` in the file.
        path: parameter in the Flax network, "" where it was left out.
        keras_shape: shape in the file.
        shape: shape in the network.
        done: "loaded", "loaded, channels swapped" or "left out: ...".
    """

    keras: str
    path: str
    keras_shape: tuple[int, ...]
    shape: tuple[int, ...]
    done: str


@dataclass(frozen=True)
class Conversion:
    """A Keras network as a Flax one.

    Attributes:
        recognised: family, arguments and where each Keras layer's result is found.
        parameters: path → float32 array, statistics included.
        tensors: what became of each tensor.
    """

    recognised: Recognised
    parameters: Mapping[str, np.ndarray]
    tensors: tuple[Tensor, ...]

    def network(self) -> Network:
        """The Flax network with the converted parameters."""
        return assemble(self.recognised.family, self.recognised.arguments, self.parameters)


def convert(model: KerasModel) -> Conversion:
    """Converts a Keras network of a known family.

    Raises:
        ConversionError: the network is of no known family, a tensor is left over on either side,
            has another shape than its layer says, or holds values that are not finite.
    """
    recognised = recognise(model)
    wanted = shapes(recognised.family, recognised.arguments)
    parameters: dict[str, np.ndarray] = {}
    tensors: list[Tensor] = []
    for layer in model.layers:
        for weight, value in layer.weights.items():
            keras = quoted(f"{layer.name}/{weight}", limit=200)[1:-1]
            holder = recognised.weighted.get(layer.name)
            path = f"{holder}/{_NORM_NAMES.get(weight, weight)}"
            if holder is None or path not in wanted or path in parameters:
                raise ConversionError(
                    f"{model.path}: tensor '{keras}' {value.shape} has no place in a "
                    f"{recognised.family}; nothing was converted."
                )
            done = "loaded"
            array = value
            if (
                layer.class_name in ("Conv3DTranspose", "Convolution3DTranspose")
                and value.ndim == 5
            ):
                # Keras: [kD, kH, kW, out, in]. Here, as in every other kernel: [..., in, out].
                array, done = value.swapaxes(-1, -2), "loaded, channels swapped"
            if array.shape != wanted[path]:
                raise ConversionError(
                    f"{model.path}: tensor '{keras}' has shape {value.shape}, but "
                    f"{path} of this {recognised.family} needs {wanted[path]}."
                )
            if not np.isfinite(array).all():
                raise ConversionError(
                    f"{model.path}: tensor '{keras}' holds "
                    f"{np.count_nonzero(~np.isfinite(array))} values that are not finite."
                )
            parameters[path] = np.ascontiguousarray(array, dtype=np.float32)
            tensors.append(Tensor(keras, path, value.shape, array.shape, done))
    missing = sorted(wanted.keys() - parameters.keys())
    if missing:
        raise ConversionError(
            f"{model.path} has no tensor for {', '.join(missing[:5])}"
            f"{' and others' if len(missing) > 5 else ''}; nothing was converted."
        )
    tensors += [Tensor(name, "", (), (), "left out: optimizer state") for name in model.left_out]
    return Conversion(recognised, parameters, tuple(tensors))
