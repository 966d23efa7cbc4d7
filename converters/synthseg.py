"""SynthSeg's U-Net as a graph, under the layer names of its files."""

from typing import Any

from voxtune.models.graph import Graph, GraphCall, GraphLayer


def synthseg_graph(*, channels: int = 1, outputs: int, filters: int = 24, levels: int = 5) -> Graph:
    """The U-Net of SynthSeg and SynthSR (Billot et al. 2023, doi 10.1016/j.media.2023.102789).

    Each level has two 3x3x3 convolutions with ELU, then batch normalisation; skips are taken
    before that normalisation, and joined [skip, up] after nearest up-sampling. With 24 filters,
    five levels and 32 labels it has 13,242,824 parameters.

    Args:
        channels: of the input.
        outputs: labels; one for an image.
        filters: of the first level, doubled from level to level.
        levels: of resolution.

    Raises:
        ValueError: an argument is not a whole number above zero.
    """
    if not all(type(each) is int and each > 0 for each in (channels, outputs, filters, levels)):
        raise ValueError("its arguments are whole numbers above zero")
    layers: list[GraphLayer] = []
    calls: list[GraphCall] = []
    last = "unet_input"

    def add(name: str, kind: str, *inputs: str, **config: Any) -> str:
        layers.append(GraphLayer(name, kind, config))
        calls.append(GraphCall(name, name, inputs))
        return name

    def convs(arm: str, level: int, width: int, source: str) -> str:
        kernel = {"kernel_size": [3, 3, 3], "padding": "same", "activation": "elu"}
        for number in range(2):
            name = f"unet_conv_{arm}_{level}_{number}"
            source = add(name, "Conv3D", source, filters=width, **kernel)
        return source

    skips = []
    for level in range(levels):
        last = convs("downarm", level, filters * 2**level, last)
        skips.append(last)
        last = add(f"unet_bn_down_{level}", "BatchNormalization", last)
        if level < levels - 1:
            pool = {"pool_size": [2, 2, 2], "padding": "same"}
            last = add(f"unet_maxpool_{level}", "MaxPooling3D", last, **pool)
    for level in range(levels - 1):
        place, depth = levels + level, levels - 2 - level
        last = add(f"unet_up_{place}", "UpSampling3D", last, size=[2, 2, 2])
        last = add(f"unet_merge_{place}", "Concatenate", skips[depth], last)
        last = convs("uparm", place, filters * 2**depth, last)
        last = add(f"unet_bn_up_{level}", "BatchNormalization", last)
    head = {"filters": outputs, "kernel_size": [1, 1, 1]}
    last = add("unet_likelihood", "Conv3D", last, **head)
    if outputs > 1:
        last = add("unet_prediction", "Activation", last, activation="softmax")
    inputs = {"unet_input": (None, None, None, channels)}
    return Graph(tuple(layers), tuple(calls), inputs, (last,))
