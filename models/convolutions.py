"""Convolutions of one to three axes, and dense layers, as Keras computes them."""

from collections.abc import Mapping

from jax import Array, lax

from voxtune.models.activations import activate
from voxtune.models.kind import (
    REQUIRED,
    Config,
    Inputs,
    Kind,
    Mode,
    Shape,
    Shapes,
    Weights,
    Window,
    Windows,
    like,
    need_rank,
    per_axis,
    pointwise,
    spatial_names,
)
from voxtune.models.lowering import conv, conv_transpose_blocks


def _letters(axes: int) -> str:
    return "DHW"[3 - axes :]


def extent(size: int, dilation: int) -> int:
    """Places that a kernel covers, gaps included."""
    return (size - 1) * dilation + 1


def before(padding: str, size: int, stride: int, places: int) -> int:
    """Zeros that are put before a row of `places`, for windows of `size`.

    Raises:
        ValueError: Keras knows no such padding.
    """
    if padding == "valid":
        return 0
    if padding == "causal":
        return size - 1
    if padding == "same":  # the odd one goes to the end
        return max((-(-places // stride) - 1) * stride + size - places, 0) // 2
    raise ValueError(f"padding={padding!r} is not supported")


def window_of(padding: str, size: int, stride: int, places: int) -> Window:
    """The window of a convolution or pooling along one axis."""
    return Window(size, stride, offset=size - 1 - before(padding, size, stride, places))


def convolve(x: Array, kernel: Array, config: Config, groups: int = 1) -> Array:
    """Convolution as Keras's `Conv1D`, `Conv2D` and `Conv3D` have it, without bias.

    Args:
        x: `[B, ..., C]`.
        kernel: `[k..., C / groups, O]`.
        config: `strides`, `padding` and `dilation_rate` are read.
        groups: of channels that do not mix.

    Returns:
        `[B, ..., O]`.

    Raises:
        ValueError: settings and shapes do not fit.
    """
    kernel, axes = like(kernel, x), kernel.ndim - 2
    need_rank(x.shape, axes + 2)
    sizes = kernel.shape[:axes]
    strides = per_axis(config["strides"], axes, "strides")
    dilation = per_axis(config["dilation_rate"], axes, "dilation_rate")
    padding = str(config["padding"]).lower()
    if padding not in ("same", "valid") and (padding, axes) != ("causal", 1):
        raise ValueError(f"padding={config['padding']!r} is not supported")
    if set(strides) == {1} and groups == 1:
        if set(sizes) == {1}:
            return x @ kernel.reshape(kernel.shape[-2:])
        if sizes == (3, 3, 3) and padding == "same" and len(set(dilation)) == 1:
            return conv(x, kernel, dilation[0])
    pads = padding.upper()
    letters = _letters(axes)
    result = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        [(extent(sizes[0], dilation[0]) - 1, 0)] if padding == "causal" else pads,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=groups,
    )
    if result.size == 0 and x.size:
        raise ValueError("the input is smaller than the kernel")
    return result


def transposed_padding(
    padding: str, size: int, stride: int, dilation: int, output_padding: int | None
) -> tuple[int, int]:
    """Zeros before and after the input whose places were spread `stride` apart.

    Padding "same" gives `stride` times as many places as there are, "valid" the most that any
    input touches; `output_padding` overrules both.

    Raises:
        ValueError: Keras knows no such padding.
    """
    size = extent(size, dilation)
    if padding == "valid":
        added = max(stride - size, 0) if output_padding is None else output_padding
        return size - 1, size - 1 + added
    if padding != "same":
        raise ValueError(f"padding={padding!r} is not supported")
    total = stride + size - 2
    if output_padding is not None:
        total = size + size % 2 - 2 + output_padding
    first = min((total + 1) // 2, size - 1)
    return first, total - first


def _transposed_pads(config: Config, axes: int) -> list[tuple[int, int]]:
    sizes = per_axis(config["kernel_size"], axes, "kernel_size")
    strides = per_axis(config["strides"], axes, "strides")
    dilation = per_axis(config["dilation_rate"], axes, "dilation_rate")
    given = config["output_padding"]
    added = (None,) * axes if given is None else per_axis(given, axes, "output_padding")
    padding = str(config["padding"]).lower()
    return [
        transposed_padding(padding, *each)
        for each in zip(sizes, strides, dilation, added, strict=True)
    ]


def _convolve_transposed(x: Array, kernel: Array, config: Config) -> Array:
    """Transposed convolution, without bias; the kernel is `[k..., O, C]` as Keras stores it."""
    kernel, axes = like(kernel, x), kernel.ndim - 2
    need_rank(x.shape, axes + 2)
    pads = _transposed_pads(config, axes)
    strides = per_axis(config["strides"], axes, "strides")
    dilation = per_axis(config["dilation_rate"], axes, "dilation_rate")
    sizes = kernel.shape[:axes]
    if sizes == strides and set(dilation) == {1} and config["output_padding"] is None:
        return conv_transpose_blocks(x, kernel.swapaxes(-1, -2))
    letters = _letters(axes)
    return lax.conv_general_dilated(
        x,
        lax.rev(kernel, range(axes)),
        (1,) * axes,
        pads,
        lhs_dilation=strides,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}OI", f"N{letters}C"),
    )


def finish(x: Array, config: Config, bias: Array | None) -> Array:
    """Adds the bias, if there is one, and applies the activation."""
    return activate(x if bias is None else x + like(bias, x), config["activation"])


def _sizes(config: Config, axes: int) -> tuple[int, ...]:
    return per_axis(config["kernel_size"], axes, "kernel_size")


def conv_window(config: Config, inputs: Shapes, output: Shape) -> Windows:
    """The windows of convolutions."""
    axes = len(output) - 2
    sizes = _sizes(config, axes)
    strides = per_axis(config["strides"], axes, "strides")
    dilation = per_axis(config["dilation_rate"], axes, "dilation_rate")
    padding = str(config["padding"]).lower()
    return tuple(
        window_of(padding, extent(size, gap), stride, places)
        for size, gap, stride, places in zip(sizes, dilation, strides, inputs[0][1:-1], strict=True)
    )


def _conv(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    x = convolve(inputs[0], weights["kernel"], config, config["groups"])
    return finish(x, config, weights.get("bias"))


def _conv_kind(axes: int) -> Kind:
    def shapes(config: Config, inputs: Shapes) -> dict[str, Shape]:
        groups, channels, filters = config["groups"], inputs[0][-1], config["filters"]
        if channels % groups or filters % groups:
            raise ValueError(f"{channels} channels or {filters} filters are not {groups} groups")
        kernel = (*_sizes(config, axes), channels // groups, filters)
        return {"kernel": kernel} | ({"bias": (filters,)} if config["use_bias"] else {})

    settings = {
        "filters": REQUIRED,
        "kernel_size": REQUIRED,
        "strides": 1,
        "padding": "valid",
        "dilation_rate": 1,
        "groups": 1,
        "activation": None,
        "use_bias": True,
    }
    return Kind(_conv, shapes, conv_window, settings, {"lora_rank": None}, _SUMMARY, narrow=True)


def _conv_transpose(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    x = _convolve_transposed(inputs[0], weights["kernel"], config)
    return finish(x, config, weights.get("bias"))


def _conv_transpose_window(config: Config, inputs: Shapes, output: Shape) -> Windows:
    axes = len(output) - 2
    strides = per_axis(config["strides"], axes, "strides")
    dilation = per_axis(config["dilation_rate"], axes, "dilation_rate")
    sizes = (extent(*each) for each in zip(_sizes(config, axes), dilation, strict=True))
    pads = _transposed_pads(config, axes)
    return tuple(
        Window(size, up=stride, offset=size - 1 - first)
        for size, stride, (first, _) in zip(sizes, strides, pads, strict=True)
    )


def _conv_transpose_kind(axes: int) -> Kind:
    def shapes(config: Config, inputs: Shapes) -> dict[str, Shape]:
        kernel = (*_sizes(config, axes), config["filters"], inputs[0][-1])
        return {"kernel": kernel} | ({"bias": (config["filters"],)} if config["use_bias"] else {})

    settings = {
        "filters": REQUIRED,
        "kernel_size": REQUIRED,
        "strides": 1,
        "padding": "valid",
        "output_padding": None,
        "dilation_rate": 1,
        "activation": None,
        "use_bias": True,
    }
    return Kind(
        _conv_transpose, shapes, _conv_transpose_window, settings, {}, _SUMMARY, narrow=True
    )


def _depthwise(x: Array, kernel: Array, config: Config) -> Array:
    """Each channel by itself; the kernel is `[k..., C, multiplier]`."""
    *sizes, channels, multiplier = kernel.shape
    return convolve(x, kernel.reshape(*sizes, 1, channels * multiplier), config, channels)


def _depthwise_conv(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    return finish(_depthwise(inputs[0], weights["kernel"], config), config, weights.get("bias"))


def _depthwise_kind(axes: int) -> Kind:
    def shapes(config: Config, inputs: Shapes) -> dict[str, Shape]:
        channels, multiplier = inputs[0][-1], config["depth_multiplier"]
        found: dict[str, Shape] = {"kernel": (*_sizes(config, axes), channels, multiplier)}
        return found | ({"bias": (channels * multiplier,)} if config["use_bias"] else {})

    settings = {
        "kernel_size": REQUIRED,
        "strides": 1,
        "padding": "valid",
        "depth_multiplier": 1,
        "dilation_rate": 1,
        "activation": None,
        "use_bias": True,
    }
    return Kind(_depthwise_conv, shapes, conv_window, settings, {}, _SUMMARY, narrow=True)


def _separable_conv(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    x = _depthwise(inputs[0], weights["depthwise_kernel"], config)
    pointwise_kernel = like(weights["pointwise_kernel"], x)
    x = x @ pointwise_kernel.reshape(pointwise_kernel.shape[-2:])
    return finish(x, config, weights.get("bias"))


def _separable_kind(axes: int) -> Kind:
    def shapes(config: Config, inputs: Shapes) -> dict[str, Shape]:
        channels, multiplier = inputs[0][-1], config["depth_multiplier"]
        found: dict[str, Shape] = {
            "depthwise_kernel": (*_sizes(config, axes), channels, multiplier),
            "pointwise_kernel": (*(1,) * axes, channels * multiplier, config["filters"]),
        }
        return found | ({"bias": (config["filters"],)} if config["use_bias"] else {})

    settings = {
        "filters": REQUIRED,
        "kernel_size": REQUIRED,
        "strides": 1,
        "padding": "valid",
        "dilation_rate": 1,
        "depth_multiplier": 1,
        "activation": None,
        "use_bias": True,
    }
    return Kind(_separable_conv, shapes, conv_window, settings, {}, _SUMMARY, narrow=True)


def _dense(config: Config, weights: Weights, inputs: Inputs, mode: Mode) -> Array:
    (x,) = inputs
    return finish(x @ like(weights["kernel"], x), config, weights.get("bias"))


def _dense_weights(config: Config, inputs: Shapes) -> dict[str, Shape]:
    kernel = (inputs[0][-1], config["units"])
    return {"kernel": kernel} | ({"bias": (config["units"],)} if config["use_bias"] else {})


_SUMMARY = "convolutions and dense layers"
KINDS: Mapping[str, Kind] = {
    **spatial_names("Conv{}", _conv_kind),
    **spatial_names("Conv{}Transpose", _conv_transpose_kind),
    "DepthwiseConv1D": _depthwise_kind(1),
    "DepthwiseConv2D": _depthwise_kind(2),
    "SeparableConv1D": _separable_kind(1),
    "SeparableConv2D": _separable_kind(2),
    "Dense": Kind(
        _dense,
        _dense_weights,
        pointwise,
        {"units": REQUIRED, "activation": None, "use_bias": True},
        {"lora_rank": None},
        _SUMMARY,
        narrow=True,
    ),
}
