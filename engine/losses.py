"""What training minimises, computed from logits.

Every loss is a mean over the scans of a batch of a value of each scan, so what parts of a batch or
devices find averages to what the whole batch gives. A scan whose voxels are all to be ignored
counts, with a gradient of zero.

The functions of one loss take logits float32 `[B, D, H, W, C]`, of a sigmoid where C is 1 and of a
softmax else, and labels `[B, D, H, W]`: class indices, or `IGNORE`. They return a value for each
scan, float32 `[B]`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from voxtune.engine.case import IGNORE
from voxtune.engine.options import LossName
from voxtune.models.errors import InputError

REGRESSION: tuple[LossName, ...] = ("mean_squared_error", "mean_absolute_error")

_Function = Callable[..., Array]

_EPSILON = 1e-7  # Keras's, which Nobrainer's losses take
_SPACE = (1, 2, 3)


@dataclass(frozen=True)
class Loss:
    """What training minimises, by name.

    Attributes:
        name: of the loss.
        class_weights: weight of each class in cross-entropy and focal loss, background first.
        label_smoothing: share of a label that cross-entropy spreads over all classes.

    Raises:
        InputError: a weight or the share cannot be, or the loss has no use for it.
    """

    name: LossName
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        functions = set(_PARTS[self.name].values())
        weights = self.class_weights
        if weights is not None:
            if not functions & {cross_entropy, focal}:
                raise InputError(
                    f"--class-weights are of cross-entropy and focal loss, and --loss {self.name} "
                    "has neither; leave them out."
                )
            if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
                raise InputError(
                    f"--class-weights {' '.join(map(str, weights))} make no sense; they are "
                    "positive or zero, and not all zero."
                )
        if self.label_smoothing and cross_entropy not in functions:
            raise InputError(
                f"--label-smoothing is of cross-entropy, and --loss {self.name} has none; leave "
                "it out."
            )
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                f"--label-smoothing {self.label_smoothing} makes no sense; it is a share from 0 to "
                "below 1."
            )

    def __call__(self, logits: Array | tuple[Array, ...], label: Array) -> dict[str, Array]:
        """The parts of the loss by name, float32 scalars; their sum is minimised.

        With deep supervision the logits are a tuple, the full resolution first. The i-th weighs
        1/2^i, divided by the sum of these, as in nnU-Net; but there the lowest weighs nothing, and
        here a network leaves out what is not to count. At the lower resolutions the label is
        that of every s-th voxel: in each block of s³ voxels the one nearest its centre, the higher
        of two, as PyTorch's "nearest-exact" takes it for nnU-Net.

        Args:
            logits: `[B, D, H, W, C]`, or several: `[B, D/s, H/s, W/s, C]`. Any float type.
            label: class indices `[B, D, H, W]`, or `IGNORE`; of the losses in `REGRESSION` the
                image to reproduce, float32, NaN where it is not known, and C is 1.

        Raises:
            InputError: there is not a weight for each class, or the network has several outputs
                where one image is to be reproduced.
            ValueError: a resolution does not divide the full one.
        """
        outputs = logits if isinstance(logits, tuple) else (logits,)
        shares = [2.0**-i for i in range(len(outputs))]
        found = [self._parts(each, _at_resolution(label, each)) for each in outputs]
        return {
            name: sum(
                (share * part[name] for share, part in zip(shares, found, strict=True)),
                jnp.zeros(()),
            )
            / sum(shares)
            for name in _PARTS[self.name]
        }

    def _parts(self, logits: Array, label: Array) -> dict[str, Array]:
        self.check(logits.shape[-1])
        options: Mapping[_Function, Mapping[str, Any]] = {
            cross_entropy: {
                "class_weights": self.class_weights,
                "label_smoothing": self.label_smoothing,
            },
            focal: {"class_weights": self.class_weights},
        }
        return {
            name: function(logits.astype(jnp.float32), label, **options.get(function, {})).mean()
            for name, function in _PARTS[self.name].items()
        }

    def check(self, outputs: int) -> None:
        """Makes sure that this is a loss for a network of so many outputs.

        Raises:
            InputError: it is not.
        """
        if self.name in REGRESSION and outputs != 1:
            raise InputError(
                f"--loss {self.name} is for networks that give one image, and this one has "
                f"{outputs} outputs; take a loss of classes."
            )
        classes = max(outputs, 2)
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise InputError(
                f"--class-weights has {len(self.class_weights)} values for {classes} classes; give "
                "one for each, background first."
            )


def class_logits(logits: Array) -> Array:
    """Logits of classes that exclude each other: `[..., 1]` of a sigmoid → `[..., 2]`.

    softmax([0, z]) is (1 - sigmoid(z), sigmoid(z)), so nothing changes but the form.
    """
    if logits.shape[-1] > 1:
        return logits
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


# Of overlap. p is the probability of a voxel, t whether it is true; sums are over the voxels of a
# scan that are not ignored, and ε is 1e-7. Those of Nobrainer know its background as a class where
# C > 1; of a sigmoid there is the one channel alone.


def dice(logits: Array, label: Array) -> Array:
    """Nobrainer's Dice loss: 1 - (2 Σ p t + ε) / (Σ p + Σ t + ε), sums over classes too."""
    probability, truth = _volumes(logits, label)
    everything = (*_SPACE, 4)
    overlap = (probability * truth).sum(everything)
    total = probability.sum(everything) + truth.sum(everything)
    return 1 - (2 * overlap + _EPSILON) / (total + _EPSILON)


def jaccard(logits: Array, label: Array) -> Array:
    """Nobrainer's: 1 - (Σ p t + ε) / (Σ p + Σ t - Σ p t + ε), sums over classes too."""
    probability, truth = _volumes(logits, label)
    everything = (*_SPACE, 4)
    overlap = (probability * truth).sum(everything)
    total = probability.sum(everything) + truth.sum(everything)
    return 1 - (overlap + _EPSILON) / (total - overlap + _EPSILON)


def generalized_dice(logits: Array, label: Array) -> Array:
    """Nobrainer's: 1 - (2 Σ w p t + ε) / (Σ w (p + t) + ε), w = 1 / (Σ t)² of each class.

    Where a class has no voxels w is ε (Sudre et al. 2017, doi 10.1007/978-3-319-67558-9_28, have
    neither this nor ε). A class of n voxels adds about 1/n to both sums, so in large blocks ε
    counts.
    """
    probability, truth = _volumes(logits, label)
    voxels = truth.sum(_SPACE)
    weight = jnp.where(voxels > 0, 1 / jnp.maximum(voxels, 1) ** 2, _EPSILON)
    overlap = (weight * (probability * truth).sum(_SPACE)).sum(-1)
    total = (weight * (probability.sum(_SPACE) + voxels)).sum(-1)
    return 1 - (2 * overlap + _EPSILON) / (total + _EPSILON)


def tversky(logits: Array, label: Array) -> Array:
    """Nobrainer's: 1 - (TP + ε) / (TP + 0.3 FP + 0.7 FN + ε), a mean over classes.

    TP = Σ p t, FP = Σ p (1 - t) and FN = Σ (1 - p) t (Salehi et al. 2017, arXiv 1706.05721).
    """
    return _tversky_deficits(logits, label).mean(-1)


def focal_tversky(logits: Array, label: Array) -> Array:
    """Abraham and Khan's (2019, arXiv 1810.07842): (1 - TI)^(1/γ), γ = 4/3, a mean over classes.

    TI is the index of `tversky`; the paper has the sum over classes.
    """
    deficit = _tversky_deficits(logits, label)
    # The power's slope is infinite at zero, where nothing is left to gain.
    some = deficit > 0
    return jnp.where(some, jnp.where(some, deficit, 1) ** 0.75, 0).mean(-1)


def soft_dice(logits: Array, label: Array) -> Array:
    """nnU-Net's Dice loss: 1 - (2 Σ p t + s) / (Σ p + Σ t + s), a mean over all but background.

    With cross-entropy it is nnU-Net's default (Isensee et al. 2021, doi
    10.1038/s41592-020-01008-z). There s is 1e-5; here it is 1 voxel, so that the loss of a class
    that the scan lacks rises gently with what is taken for it, not at once to 1.
    """
    probability, truth = (each[..., 1:] for each in _volumes(class_logits(logits), label))
    overlap = 2 * (probability * truth).sum(_SPACE) + 1
    total = probability.sum(_SPACE) + truth.sum(_SPACE) + 1
    return 1 - (overlap / total).mean(-1)


def _volumes(logits: Array, label: Array) -> tuple[Array, Array]:
    """Probabilities and truth as 0 and 1, both `[B, D, H, W, C]` and 0 where to be ignored."""
    single = logits.shape[-1] == 1
    probability = jax.nn.sigmoid(logits) if single else jax.nn.softmax(logits, axis=-1)
    return probability * (label != IGNORE)[..., None], _truth(logits, label)


def _truth(logits: Array, label: Array) -> Array:
    if logits.shape[-1] == 1:
        return (label == 1).astype(jnp.float32)[..., None]
    return jax.nn.one_hot(label, logits.shape[-1])  # nowhere 1 for IGNORE


def _tversky_deficits(logits: Array, label: Array) -> Array:
    """One minus the Tversky index of each class, `[B, C]`, with no difference of near numbers."""
    probability, truth = _volumes(logits, label)
    overlap = (probability * truth).sum(_SPACE)
    wrong = 0.3 * (probability * (1 - truth)).sum(_SPACE)
    missed = 0.7 * ((1 - probability) * truth).sum(_SPACE)
    return (wrong + missed) / (overlap + wrong + missed + _EPSILON)


# Of voxels: means over those of a scan that are not ignored.


def cross_entropy(
    logits: Array,
    label: Array,
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
) -> Array:
    """Cross-entropy, nats: the mean over voxels of w (-Σ q log p).

    Args:
        logits: as of all losses.
        label: as of all losses.
        class_weights: w of each class, 1 by default, by the voxel's label. As in Keras, and unlike
            in PyTorch, the mean is not divided by the mean weight: a weight of 2 doubles
            the gradient of its class's voxels, whatever else the scan holds.
        label_smoothing: σ of q = (1 - σ) t + σ / C.
    """
    logits = class_logits(logits)
    truth = _truth(logits, label)
    target = (1 - label_smoothing) * truth + label_smoothing / logits.shape[-1]
    lost = -(target * jax.nn.log_softmax(logits, axis=-1)).sum(-1)
    return _mean(_weights(truth, class_weights) * lost, label != IGNORE)


def focal(logits: Array, label: Array, class_weights: tuple[float, ...] | None = None) -> Array:
    """Focal loss (Lin et al. 2017, arXiv 1708.02002): the mean over voxels of α (1 - p)² (-log p).

    p is the probability of the voxel's label. The paper divides by the number of anchors that are
    not background instead.

    Args:
        logits: as of all losses.
        label: as of all losses.
        class_weights: α of each class, 1 by default, by the voxel's label.
    """
    logits = class_logits(logits)
    truth = _truth(logits, label)
    log = (truth * jax.nn.log_softmax(logits, axis=-1)).sum(-1)
    lost = -(jnp.expm1(log) ** 2) * log
    return _mean(_weights(truth, class_weights) * lost, label != IGNORE)


def _weights(truth: Array, class_weights: tuple[float, ...] | None) -> Array:
    """Weight of each voxel by its label, 0 where to be ignored."""
    weights = (1.0,) * truth.shape[-1] if class_weights is None else class_weights
    return (truth * jnp.array(weights, jnp.float32)).sum(-1)


def _mean(values: Array, counted: Array) -> Array:
    """Mean over the voxels of each scan that count, `[B]`; 0 of none."""
    voxels = counted.sum(_SPACE, dtype=jnp.float32)
    return jnp.where(counted, values, 0).sum(_SPACE) / jnp.maximum(voxels, 1)


# Of images. The network's only output is the image; the label is float32, NaN where not known.


def mean_squared_error(logits: Array, label: Array) -> Array:
    """Mean over the known voxels of the squared difference."""
    return _mean(_difference(logits, label) ** 2, ~jnp.isnan(label))


def mean_absolute_error(logits: Array, label: Array) -> Array:
    """Mean over the known voxels of the absolute difference."""
    return _mean(abs(_difference(logits, label)), ~jnp.isnan(label))


def _difference(logits: Array, label: Array) -> Array:
    """`[B, D, H, W]`, 0 where the label is not known, so that no gradient is NaN."""
    known = ~jnp.isnan(label)
    return jnp.where(known, logits[..., 0] - jnp.where(known, label, 0), 0)


def _at_resolution(label: Array, logits: Array) -> Array:
    """The label on the grid of some logits, `[B, D, H, W]` → `[B, D/s, H/s, W/s]`.

    Raises:
        ValueError: that grid does not divide the label's.
    """
    full, size = label.shape[1:], logits.shape[1:4]
    if any(whole % part for whole, part in zip(full, size, strict=True)):
        raise ValueError(f"logits of {size} voxels do not divide a label of {full}")
    steps = [whole // part for whole, part in zip(full, size, strict=True)]
    return label[(slice(None), *(slice(step // 2, None, step) for step in steps))]


# The parts of each loss, and what they are called in the log. With the divergence of random
# weights, which the step adds, cross-entropy is the evidence lower bound with its sign turned.
_PARTS: Mapping[LossName, Mapping[str, _Function]] = MappingProxyType(
    {
        "dice_cross_entropy": {"dice_loss": soft_dice, "cross_entropy": cross_entropy},
        "cross_entropy": {"cross_entropy": cross_entropy},
        "dice": {"dice_loss": dice},
        "jaccard": {"jaccard_loss": jaccard},
        "generalized_dice": {"generalized_dice_loss": generalized_dice},
        "tversky": {"tversky_loss": tversky},
        "focal_tversky": {"focal_tversky_loss": focal_tversky},
        "focal": {"focal_loss": focal},
        "elbo": {"cross_entropy": cross_entropy},
        "mean_squared_error": {"mean_squared_error": mean_squared_error},
        "mean_absolute_error": {"mean_absolute_error": mean_absolute_error},
    }
)
