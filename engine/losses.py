"""What training minimises, computed from logits."""

import jax
import jax.numpy as jnp
from jax import Array

IGNORE = 255  # label of voxels that count for nothing: those that padding added


def class_logits(logits: Array) -> Array:
    """Logits of classes that exclude each other: `[..., 1]` of a sigmoid → `[..., 2]`.

    softmax([0, z]) is (1 - sigmoid(z), sigmoid(z)), so nothing changes but the form.
    """
    if logits.shape[-1] > 1:
        return logits
    return jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)


def dice_cross_entropy(logits: Array, label: Array, smooth: float = 1.0) -> tuple[Array, Array]:
    """Soft Dice loss and cross-entropy, whose sum is nnU-Net's default (Isensee et al. 2021).

    Dice is `1 - (2 Σ p t + s) / (Σ p + Σ t + s)`, the sums over the voxels of the whole batch,
    averaged over all classes but the first, the background. Cross-entropy is averaged over voxels.

    Args:
        logits: `[B, D, H, W, C]`, C > 1.
        label: class indices `[B, D, H, W]`, or `IGNORE`.
        smooth: s, in voxels; it keeps classes that a batch lacks from dominating.

    Returns:
        Dice loss and cross-entropy, both scalars.
    """
    counted = (label != IGNORE).astype(jnp.float32)
    logits = logits.astype(jnp.float32)
    logs = jax.nn.log_softmax(logits, axis=-1)
    truth = jax.nn.one_hot(jnp.where(label == IGNORE, 0, label), logits.shape[-1])
    truth = truth * counted[..., None]
    voxels = jnp.maximum(counted.sum(), 1)
    cross_entropy = -(truth * logs).sum() / voxels
    probability = jnp.exp(logs) * counted[..., None]
    space = (0, 1, 2, 3)
    overlap = 2 * (probability * truth).sum(space) + smooth
    total = probability.sum(space) + truth.sum(space) + smooth
    return 1 - (overlap / total)[1:].mean(), cross_entropy
