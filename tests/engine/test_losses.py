"""The loss against the same formulas in NumPy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from voxtune.engine.losses import IGNORE, class_logits, dice_cross_entropy

RNG = np.random.default_rng(0)
SHAPE = (2, 3, 4, 5)
LOGITS = RNG.normal(scale=2, size=(*SHAPE, 3))
LABEL = RNG.integers(0, 3, SHAPE)
loss = jax.jit(dice_cross_entropy)


def reference(logits: np.ndarray, label: np.ndarray, smooth: float = 1.0) -> tuple[float, float]:
    """Dice loss and cross-entropy over a list of voxels, class by class, in float64."""
    kept = label != IGNORE
    logs, truth = special.log_softmax(logits[kept], axis=-1), label[kept]
    cross_entropy = -np.mean(logs[np.arange(len(truth)), truth]) if len(truth) else 0.0
    scores = []
    for index in range(1, logits.shape[-1]):
        probability, true = np.exp(logs[:, index]), truth == index
        sums = probability.sum() + true.sum()
        scores.append((2 * probability[true].sum() + smooth) / (sums + smooth))
    return 1 - float(np.mean(scores)), float(cross_entropy)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_dice_and_cross_entropy_are_those_of_float64(classes, ignored):
    label = np.where(RNG.random(SHAPE) < ignored, IGNORE, LABEL % classes)
    logits = LOGITS[..., :classes]
    found = loss(jnp.asarray(logits, jnp.float32), jnp.asarray(label, jnp.uint8))
    np.testing.assert_allclose(found, reference(logits, label), rtol=1e-5)


def test_by_hand():
    """Two voxels of classes 0 and 1, probabilities 3/4 and 1/4, then 1/4 and 3/4."""
    logits = jnp.log(jnp.array([[3.0, 1.0], [1.0, 3.0]])).reshape(1, 1, 1, 2, 2)
    dice, cross_entropy = loss(logits, jnp.array([[[[0, 1]]]]))
    # Dice of class 1: overlap 3/4, probabilities sum to 1, one true voxel.
    assert float(dice) == pytest.approx(1 - (2 * 0.75 + 1) / (1 + 1 + 1))
    assert float(cross_entropy) == pytest.approx(np.log(4 / 3))


def test_ignored_voxels_count_for_nothing():
    label = LABEL.copy()
    label[:, :, :, 3:] = IGNORE
    wild = LOGITS.copy()
    wild[:, :, :, 3:] = RNG.normal(scale=50, size=wild[:, :, :, 3:].shape)
    kept = loss(jnp.asarray(LOGITS[:, :, :, :3]), jnp.asarray(LABEL[:, :, :, :3]))
    for logits in (LOGITS, wild):
        found = loss(jnp.asarray(logits), jnp.asarray(label))
        np.testing.assert_allclose(found, kept, rtol=1e-6)

    def total(logits: jax.Array) -> jax.Array:
        return jnp.add(*dice_cross_entropy(logits, jnp.asarray(label)))

    gradient = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(wild)))
    assert not gradient[:, :, :, 3:].any()
    assert gradient[:, :, :, :3].any()


def test_a_batch_of_ignored_voxels_alone_is_finite():
    label = jnp.full(SHAPE, IGNORE, jnp.uint8)
    assert np.isfinite(loss(jnp.asarray(LOGITS), label)).all()


def test_a_perfect_prediction_loses_nothing():
    """Background is not in the Dice, and a class that the batch lacks has a perfect Dice."""
    logits = 100 * jax.nn.one_hot(LABEL % 2, 3)
    np.testing.assert_allclose(loss(logits, jnp.asarray(LABEL % 2)), 0, atol=1e-6)


def test_class_logits_of_a_sigmoid_are_exact():
    z = np.linspace(-30, 30, 61)
    logits = class_logits(jnp.asarray(z, jnp.float32)[:, None])
    expected = np.stack([special.expit(-z), special.expit(z)], axis=-1)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, rtol=2e-6)


def test_class_logits_of_several_classes_are_themselves():
    logits = jnp.asarray(LOGITS)
    np.testing.assert_array_equal(class_logits(logits), logits)
