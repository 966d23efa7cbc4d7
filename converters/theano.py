"""Theano's padding, which is not TensorFlow's, put into layers that say it."""

from collections.abc import Sequence
from typing import Any

from voxtune.converters.assembly import Assembly, Value
from voxtune.converters.layouts import place
from voxtune.models.graph import GraphLayer


def place_theano(
    assembly: Assembly, name: str, layer: GraphLayer, inputs: Sequence[Value]
) -> Value:
    """Adds the call of a layer that pads as Theano computes it.

    For padding "same", Theano pads by half the kernel before, where TensorFlow pads half of what
    the strides leave over. The two are the same for odd kernels without strides.

    Args:
        assembly: receives it.
        name: of the call.
        layer: its settings as in the file, `data_format` among them.
        inputs: what it reads.

    Raises:
        ValueError: padding that voxtune has no other layers for.
    """
    kind, config = layer.kind, layer.config
    if kind == "Conv3DTranspose":
        raise ValueError("voxtune does not know how Theano computes it")
    if config["padding"] != "same":
        return place(assembly, name, layer, inputs)
    if kind not in (*_CONVOLUTIONS, *_TRANSPOSED):
        raise ValueError("Theano pads it in a way of its own, which voxtune does not read")
    axes = int(kind[4])

    def each(setting: str) -> list[int]:
        value = config.get(setting) or 1
        return list(value) if isinstance(value, list | tuple) else [value] * axes

    sizes = [
        (size - 1) * gap + 1
        for size, gap in zip(each("kernel_size"), each("dilation_rate"), strict=True)
    ]
    strides = each("strides")
    if set(strides) == {1} and all(size % 2 for size in sizes):
        return place(assembly, name, layer, inputs)
    form = {key: config[key] for key in ("data_format",) if key in config}
    valid = GraphLayer(layer.name, kind, {**config, "padding": "valid"})
    if kind in _CONVOLUTIONS:
        pads: Any = [[size // 2, (size - 1) // 2] for size in sizes]
        settings = {"padding": pads if axes > 1 else pads[0], **form}
        before = GraphLayer(f"{name}:padding", f"ZeroPadding{axes}D", settings)
        value = place(assembly, before.name, before, inputs)
        return place(assembly, name, valid, [value])
    # The whole of what the inputs touch, without its edges.
    crops: Any = [
        [size // 2, size - stride - size // 2] for size, stride in zip(sizes, strides, strict=True)
    ]
    if any(last < 0 for _, last in crops):
        raise ValueError("Theano pads it in a way of its own, which voxtune does not read")
    value = place(assembly, f"{name}:valid", valid, inputs)
    after = GraphLayer(f"{name}:cropping", f"Cropping{axes}D", {"cropping": crops, **form})
    return place(assembly, name, after, [value])


_CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D")
_TRANSPOSED = ("Conv2DTranspose",)
