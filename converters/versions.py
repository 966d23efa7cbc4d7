"""Class names and settings of every version of Keras, and of its add-ons → Keras 3's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from voxtune.converters.keras_code import class_of
from voxtune.converters.keras_model import KerasLayer
from voxtune.models.activations import ACTIVATIONS
from voxtune.models.kinds import KINDS

Config = dict[str, Any]


@dataclass(frozen=True)
class Era:
    """What a file says about the software that wrote it.

    Attributes:
        version: of Keras, as far as it is in numbers: (2, 14, 0); () where it is not stated.
        backend: "tensorflow", "theano", ...; "" where it is not stated.
        tensorflow: whether it is the Keras inside of TensorFlow ("2.2.4-tf").
        slabs: whether group normalisation is Nobrainer's.
        data_format: of layers that do not state theirs, as some of Keras 1 do not.
    """

    version: tuple[int, ...]
    backend: str
    tensorflow: bool = False
    slabs: bool = False
    data_format: str = "channels_last"

    @property
    def keras3(self) -> bool:
        """Whether activations mean what they mean in Keras 3."""
        return self.version >= (3,)


def version_of(text: str) -> tuple[int, ...]:
    """The numbers at the start of a version: "2.13.1-tf" is (2, 13, 1)."""
    numbers = []
    for part in text.split("-")[0].split("."):
        if not part.isascii() or not part.isdigit() or len(part) > 6:
            break
        numbers.append(int(part))
    return tuple(numbers)


# --- class names -----------------------------------------------------------------------------

_CLASSES = {
    "Deconvolution2D": "Conv2DTranspose",
    "Deconvolution3D": "Conv3DTranspose",
    "Deconv2D": "Conv2DTranspose",
    "Deconv3D": "Conv3DTranspose",
    "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D",
    "AtrousConv1D": "Conv1D",
    "AtrousConv2D": "Conv2D",
    "SyncBatchNormalization": "BatchNormalization",
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "ThresholdedReLU": "ReLU",
    "ActivityRegularization": "Identity",
}
_STEMS = (("Convolution", "Conv"), ("MaxPool", "MaxPooling"), ("AvgPool", "AveragePooling"))
_MERGES = {
    "sum": "Add",
    "mul": "Multiply",
    "ave": "Average",
    "max": "Maximum",
    "concat": "Concatenate",
}
# Where the classes are what their names say. In others, a person's own may bear the same names.
_PACKAGES = (
    "", "Addons", "experimental", "keras", "keras_contrib", "nobrainer", "tensorflow",
    "tensorflow_addons", "tensorflow_probability", "tf_keras",
)  # fmt: skip


def _kind(layer: KerasLayer, era: Era) -> str:
    """The kind of a layer, or its class where there is none.

    Raises:
        ValueError: it merges in a way of which there is none.
    """
    package, _, name = layer.class_name.rpartition(">")
    if package.split(".")[0].split(">")[0] not in _PACKAGES:
        return layer.class_name
    if package in ("", "experimental") and name in _CLASSES:
        return _CLASSES[name]
    if name == "Merge":
        mode = layer.config.get("mode")
        if mode not in _MERGES:
            raise ValueError(f"it merges with {mode!r}, which voxtune does not read")
        return _MERGES[mode]
    for old, new in _STEMS:
        for prefix in ("", "Separable", "Depthwise", "Global"):
            rest = name.removeprefix(prefix + old)
            if name.startswith(prefix + old) and rest[:1].isdigit():
                name = prefix + new + rest
    if name == "InstanceNormalization" and "groups" in layer.config:
        return "GroupNormalization"  # tensorflow-addons derives the one from the other
    if name == "GroupNormalization" and _is_slab(package, layer.config, era):
        return "SlabGroupNormalization"
    return name


def _is_slab(package: str, config: Mapping[str, Any], era: Era) -> bool:
    """Whether group normalisation is that of S. Majumdar, which keras-contrib and Nobrainer have.

    Its config is that of Keras's own. Keras has that since 2.11. With channels first, the two are
    the same.
    """
    ours = package.startswith(("nobrainer", "keras_contrib")) or era.slabs
    old = package == "" and era.version != () and era.version < (2, 11)
    return (ours or old) and config.get("axis", -1) != 1


# --- settings --------------------------------------------------------------------------------

_RENAMED = {
    "nb_filter": "filters",
    "filter_length": "kernel_size",
    "subsample": "strides",
    "subsample_length": "strides",
    "border_mode": "padding",
    "dim_ordering": "data_format",
    "bias": "use_bias",
    "atrous_rate": "dilation_rate",
    "output_dim": "units",
    "p": "rate",
    "sigma": "stddev",
    "pool_length": "pool_size",
    "stride": "strides",
    "length": "size",
    "concat_axis": "axis",
}
_KERNEL_SIZES = (
    ("nb_row", "nb_col"),
    ("kernel_dim1", "kernel_dim2", "kernel_dim3"),
)
_DATA_FORMATS = {"th": "channels_first", "tf": "channels_last", "default": "channels_last"}
_KERAS1 = frozenset({*_RENAMED, *_KERNEL_SIZES[0], *_KERNEL_SIZES[1], "W_regularizer", "mode"})

# What says nothing about the result of a prediction, or is read elsewhere.
_IGNORED = frozenset(
    {
        "activity_regularizer",
        "arguments",
        "autocast",
        "batch_input_shape",
        "batch_shape",
        "beta_init",
        "dot_axes",
        "dtype",
        "flash_attention",
        "fused",
        "gamma_init",
        "init",
        "input_dim",
        "input_dtype",
        "input_length",
        "input_shape",
        "is_mc",
        "key_shape",
        "l1",
        "l2",
        "lora_alpha",
        "mode",
        "mode_type",
        "name",
        "optional",
        "output_mask",
        "output_mask_type",
        "output_shape",
        "output_shape_type",
        "quantization_config",
        "query_shape",
        "ragged",
        "renorm_clipping",
        "renorm_momentum",
        "seed",
        "shared_object_id",
        "sparse",
        "supports_masking",
        "synchronized",
        "trainable",
        "value_shape",
        "weights",
    }
)
_GROUPS = ("groups", 1)  # of every convolution, those that have no groups too
_IGNORED_ENDINGS = ("_initializer", "_regularizer", "_constraint", "_fn", "_fn_type")


def upgraded(layer: KerasLayer, era: Era) -> tuple[str, Config]:
    """A layer in Keras 3's words.

    Returns:
        Kind (or class, where there is no such kind) and settings, `data_format` among them.

    Raises:
        ValueError: settings that voxtune does not read.
    """
    for name in (layer.class_name, class_of(layer.class_name)):
        if name in KINDS and KINDS[name].summary == "registered":
            return name, dict(layer.config)
    kind = _kind(layer, era)
    config = dict(layer.config)
    if kind == "GELU":  # of tensorflow-addons
        approximate = bool(config.get("approximate", True))
        return "Operation", {
            "function": "gelu",
            "operands": [{"tensor": 0}],
            "approximate": approximate,
        }
    if kind not in KINDS:
        return kind, config
    for old, new in _RENAMED.items():
        if old in config and (new != "units" or kind == "Dense"):
            config[new] = config.pop(old)
    for names in _KERNEL_SIZES:
        if all(name in config for name in names):
            config["kernel_size"] = [config.pop(name) for name in names]
    form = config.get("data_format")
    usual = "channels_last" if kind == "Flatten" or "1D" in kind else era.data_format
    config["data_format"] = _DATA_FORMATS.get(str(form), form or usual)
    if kind != "Concatenate" and class_of(layer.class_name) == "Merge":
        config.pop("axis", None)
    if kind in _SPECIAL:
        _SPECIAL[kind](config, layer)
    if kind.endswith(("Flipout", "Reparameterization")):
        _bayesian(config, layer)
    early = era.version != () and era.version < ((2, 2, 4) if era.tensorflow else (2, 3))
    if kind == "UpSampling2D" and config.get("interpolation") == "bilinear" and early:
        raise ValueError(
            "before Keras 2.3 and TensorFlow 1.13, interpolation='bilinear' put places elsewhere"
        )
    if "activation" in config:
        config["activation"] = activation(config["activation"], era)
    return kind, _read(config, kind)


def is_keras1(layer: KerasLayer, era: Era) -> bool:
    """Whether a layer's weights are in the layout of Keras 1."""
    return era.version[:1] == (1,) or (era.version == () and bool(_KERAS1 & layer.config.keys()))


def _read(config: Config, kind: str) -> Config:
    """The settings that the kind reads; the others must be known to say nothing, or be unset."""
    known = {*KINDS[kind].settings, *KINDS[kind].only, "data_format"}
    for name, value in config.items():
        ignored = name in _IGNORED or name.endswith(_IGNORED_ENDINGS) or (name, value) == _GROUPS
        if name not in known and not ignored and value not in (None, False, 0, [], {}):
            raise ValueError(f"its setting {name}={value!r} is none that voxtune knows")
    return {name: config[name] for name in config if name in known}


def _batch_normalization(config: Config, layer: KerasLayer) -> None:
    axis = config.get("axis", -1)
    if isinstance(axis, list | tuple):
        if len(axis) != 1:
            raise ValueError(f"axis={axis!r} is not supported, one axis is")
        config["axis"] = axis[0]
    if layer.config.get("mode", 0) not in (0, 2):
        raise ValueError(
            "its mode=1 of Keras 1 normalises each sample by itself, which voxtune does not compute"
        )


def _instances(config: Config, layer: KerasLayer) -> None:
    if class_of(layer.class_name) == "InstanceNormalization":
        config["groups"] = -1


def _leaky_relu(config: Config, layer: KerasLayer) -> None:
    if "alpha" in config:
        config["negative_slope"] = config.pop("alpha")
    config["negative_slope"] = _number(config.get("negative_slope", 0.3))


def _relu(config: Config, layer: KerasLayer) -> None:
    if "theta" in config:
        config["threshold"] = config.pop("theta")
    for name in ("max_value", "negative_slope", "threshold"):
        if config.get(name) is not None:
            config[name] = _number(config[name])


def _elu(config: Config, layer: KerasLayer) -> None:
    config["alpha"] = _number(config.get("alpha", 1.0))


def _number(value: Any) -> Any:
    """A number that tf.keras wrote as an array, `{"type": "ndarray", "value": 0.3}`, as one."""
    return value.get("value") if isinstance(value, dict) and "value" in value else value


def _rate(config: Config, layer: KerasLayer) -> None:
    config["rate"] = _number(config.get("rate"))


def _padding2d(config: Config, layer: KerasLayer) -> None:
    """Keras 1 has four numbers, or a dictionary of them."""
    padding = config.get("padding")
    if isinstance(padding, dict):
        padding = [padding.get(f"{side}_pad", 0) for side in ("top", "bottom", "left", "right")]
    if isinstance(padding, list | tuple) and len(padding) == 4:
        config["padding"] = [list(padding[:2]), list(padding[2:])]


def _bayesian(config: Config, layer: KerasLayer) -> None:
    weights = layer.weights.keys()
    config["use_bias"] = config.get("bias_posterior_fn", True) is not None
    config["random_bias"] = any("bias_posterior_untransformed_scale" in name for name in weights)
    shapes = {name.rsplit("/", 1)[-1]: value.shape for name, value in layer.weights.items()}
    one_for_all = shapes.get("kernel_prior_untransformed_scale") == (1,)
    kernel = shapes.get("kernel_posterior_loc", ())
    config["learned_prior"] = one_for_all and shapes.get("kernel_prior_loc") == kernel


def _concrete_dropout(config: Config, layer: KerasLayer) -> None:
    raise ValueError("the shares that it keeps are not in the file: Nobrainer does not write them")


def _prelu(config: Config, layer: KerasLayer) -> None:
    """Keras 1 does not write which axes are shared: the weights are of size 1 there."""
    if "shared_axes" not in config and len(layer.weights) == 1:
        (alpha,) = layer.weights.values()
        config["shared_axes"] = [axis + 1 for axis, size in enumerate(alpha.shape) if size == 1]


_SPECIAL: Mapping[str, Callable[[Config, KerasLayer], None]] = {
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _instances,
    "LeakyReLU": _leaky_relu,
    "ReLU": _relu,
    "ELU": _elu,
    "ZeroPadding2D": _padding2d,
    "Dropout": _rate,
    "ConcreteDropout": _concrete_dropout,
    "PReLU": _prelu,
}

# --- activations -----------------------------------------------------------------------------

_ADDONS = {
    "mish": "mish",
    "hardshrink": "hard_shrink",
    "softshrink": "soft_shrink",
    "tanhshrink": "tanh_shrink",
    "sparsemax": "sparsemax",
}
_MODULES = ("keras", "tf_keras", "tensorflow", "builtins")


def activation(value: Any, era: Era) -> Any:
    """An activation's name in `voxtune.models.activations`, or a layer's `{"class_name": ...}`.

    Raises:
        ValueError: no activation that voxtune knows.
    """
    if isinstance(value, dict):
        class_name, config = value.get("class_name"), value.get("config")
        if isinstance(class_name, str) and isinstance(config, dict):
            return {"class_name": class_name, "config": config}
        module = value.get("module") or "keras"
        if class_name == "function" and isinstance(config, str):
            if isinstance(module, str) and module.split(".")[0] in (*_MODULES, "jax", "torch"):
                value = config
        elif isinstance(class_name, str) and config is None:
            value = class_name
    if value is None or value == "identity":
        return "linear"
    if isinstance(value, str):
        package, _, name = value.rpartition(">")
        if package == "Addons":
            name = _ADDONS.get(name, "")
        if name == "hard_sigmoid" and not era.keras3:
            return "hard_sigmoid_keras2"
        name = name.removesuffix("_v2")  # the name inside of TensorFlow's softmax and log_softmax
        if name in ACTIVATIONS and package in ("", "Addons", "keras", "keras.activations"):
            return name
    raise ValueError(f"its activation {value!r} is none that voxtune knows")
