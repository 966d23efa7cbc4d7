"""The losses against Nobrainer's own numbers, and against their formulas in NumPy's float64."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from voxtune.engine.case import IGNORE
from voxtune.engine.losses import REGRESSION, Loss, class_logits
from voxtune.engine.mesh import make_mesh, over_data
from voxtune.engine.options import LossName
from voxtune.models.errors import InputError

GOLDEN = np.load(Path(__file__).parent / "losses.golden.npz")  # see make_loss_golden.py
NOBRAINER = ("dice", "jaccard", "generalized_dice", "tversky")
CLASSES = tuple(name for name in get_args(LossName) if name not in REGRESSION)
EPSILON = 1e-7

RNG = np.random.default_rng(0)
SHAPE = (4, 3, 4, 5)  # four scans: usual, without the last class, all ignored, hardly ignored
WEIGHTS = (0.5, 2.0, 0.25)


def made_logits(outputs: int) -> np.ndarray:
    return RNG.normal(scale=2, size=(*SHAPE, outputs)).astype(np.float32)


def made_label(outputs: int) -> np.ndarray:
    classes = max(outputs, 2)
    label = RNG.integers(0, classes, SHAPE)
    label[1][label[1] == classes - 1] = 0
    label[RNG.random(SHAPE) < np.array([0.4, 0.2, 1.0, 0.05])[:, None, None, None]] = IGNORE
    return label.astype(np.uint8)


LOGITS = {outputs: made_logits(outputs) for outputs in (1, 3)}
LABEL = {outputs: made_label(outputs) for outputs in (1, 3)}
IMAGE = np.where(LABEL[1] == IGNORE, np.nan, RNG.normal(size=SHAPE)).astype(np.float32)


def losses(outputs: int) -> list[Loss]:
    """All of classes, those with options with some too."""
    weights = WEIGHTS[: max(outputs, 2)]
    return [
        *map(Loss, CLASSES),
        Loss("cross_entropy", weights, 0.2),
        Loss("dice_cross_entropy", weights, 0.1),
        Loss("focal", weights),
    ]


def together(these: Sequence[Loss]) -> Callable[..., Any]:
    """All of them as one program: (logits, label) → the parts of each."""
    return jax.jit(lambda logits, label: [loss(logits, label) for loss in these])


def gradients(these: Sequence[Loss]) -> Callable[..., Any]:
    """(logits, label) → the total of each loss and its gradient by the logits."""

    def total(loss: Loss, logits: jax.Array, label: jax.Array) -> jax.Array:
        return sum(loss(logits, label).values(), jnp.zeros(()))

    return jax.jit(
        lambda logits, label: [jax.value_and_grad(total, 1)(loss, logits, label) for loss in these]
    )


# The formulas, for one scan, over lists of the voxels that count.


def class_by_class(name: str, p: np.ndarray, t: np.ndarray) -> float:
    """A loss of overlap, of probabilities and truth `[N, C]`."""
    overlap, predicted, true = (p * t).sum(0), p.sum(0), t.sum(0)
    if name == "soft_dice":  # of all but background
        return float(1 - np.mean(((2 * overlap + 1) / (predicted + true + 1))[1:]))
    if name == "dice":
        return 1 - (2 * overlap.sum() + EPSILON) / (p.sum() + t.sum() + EPSILON)
    if name == "jaccard":
        union = p.sum() + t.sum() - overlap.sum()
        return 1 - (overlap.sum() + EPSILON) / (union + EPSILON)
    if name == "generalized_dice":
        w = np.array([1 / n**2 if n else EPSILON for n in true])
        return 1 - (2 * w @ overlap + EPSILON) / (w @ (predicted + true) + EPSILON)
    index = (overlap + EPSILON) / (
        overlap + 0.3 * (p * (1 - t)).sum(0) + 0.7 * ((1 - p) * t).sum(0) + EPSILON
    )
    return float(np.mean((1 - index) ** (3 / 4 if name == "focal_tversky" else 1)))


def expected(loss: Loss, logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """The parts of a loss of one scan, in float64."""
    kept = label != IGNORE
    z, label = logits[kept].astype(np.float64), label[kept].astype(int)
    p = special.expit(z) if z.shape[1] == 1 else special.softmax(z, axis=1)
    t = np.stack([label == c for c in ([1] if z.shape[1] == 1 else range(z.shape[1]))], 1) * 1.0
    if z.shape[1] == 1:
        z = np.hstack([np.zeros_like(z), z])
    logs = special.log_softmax(z, axis=1)
    count = max(len(label), 1)
    w = np.array(loss.class_weights or [1] * z.shape[1])[label]
    log = logs[np.arange(len(label)), label]
    smoothed = (1 - loss.label_smoothing) * log + loss.label_smoothing * logs.mean(1)
    cross_entropy = -(w * smoothed).sum() / count
    match loss.name:
        case "dice_cross_entropy":
            both = special.softmax(z, axis=1), np.eye(z.shape[1])[label]
            return {"dice_loss": class_by_class("soft_dice", *both), "cross_entropy": cross_entropy}
        case "cross_entropy" | "elbo":
            return {"cross_entropy": cross_entropy}
        case "focal":
            return {"focal_loss": -(w * (1 - np.exp(log)) ** 2 * log).sum() / count}
    return {f"{loss.name}_loss": class_by_class(loss.name, p, t)}


def expected_of_batch(loss: Loss, logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    scans = [expected(loss, *scan) for scan in zip(logits, label, strict=True)]
    return {part: np.mean([scan[part] for scan in scans]) for part in scans[0]}


# What they are


@pytest.mark.parametrize("outputs", [1, 4])
def test_nobrainers_losses_and_gradients_are_its_own(outputs):
    logits, label = GOLDEN[f"logits_{outputs}"], GOLDEN[f"label_{outputs}"]
    found = gradients([*map(Loss, NOBRAINER)])(logits, label)
    for name, (value, gradient) in zip(NOBRAINER, found, strict=True):
        wanted = GOLDEN[f"{name}_{outputs}_gradient"]
        np.testing.assert_allclose(value, GOLDEN[f"{name}_{outputs}"], rtol=1e-6)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-6 * abs(wanted).max())


@pytest.mark.parametrize("outputs", [1, 3])
def test_losses_of_classes_are_those_of_float64(outputs):
    logits, label, these = LOGITS[outputs], LABEL[outputs], losses(outputs)
    rounded = np.asarray(jnp.asarray(logits, jnp.bfloat16))
    for given in (logits, rounded):  # logits in bfloat16 are computed with in float32
        found = together(these)(given, label)
        for loss, parts in zip(these, found, strict=True):
            wanted = expected_of_batch(loss, given, label)
            assert {part: value.dtype for part, value in parts.items()} == dict.fromkeys(
                wanted, jnp.float32
            )
            values = [parts[part] for part in wanted]
            np.testing.assert_allclose(values, [*wanted.values()], rtol=2e-6, err_msg=str(loss))


def test_losses_of_images_are_those_of_float64():
    found = together([*map(Loss, REGRESSION)])(LOGITS[1], IMAGE)
    off = [z[..., 0] - y for z, y in zip(LOGITS[1].astype(float), IMAGE, strict=True)]
    off = [each[np.isfinite(each)] for each in off]
    squared, absolute = ([f(each) if len(each) else 0 for each in off] for f in (np.square, abs))
    wanted = [np.mean([np.mean(each) for each in values]) for values in (squared, absolute)]
    values = [parts[name] for parts, name in zip(found, REGRESSION, strict=True)]
    np.testing.assert_allclose(values, wanted, rtol=1e-6)


def test_by_hand():
    """Two voxels of classes 0 and 1, probabilities 3/4 and 1/4, then 1/4 and 3/4."""
    logits = jnp.log(jnp.array([[3.0, 1.0], [1.0, 3.0]])).reshape(1, 1, 1, 2, 2)
    names = ("dice_cross_entropy", "tversky", "focal_tversky", "focal")
    both, *others = together([*map(Loss, names)])(logits, jnp.array([[[[0, 1]]]]))
    # Dice of class 1: overlap 3/4, probabilities sum to 1, one true voxel.
    assert float(both["dice_loss"]) == pytest.approx(1 - (2 * 0.75 + 1) / (1 + 1 + 1))
    assert float(both["cross_entropy"]) == pytest.approx(np.log(4 / 3))
    # TP 3/4, FP and FN 1/4: for each class an index of 3/4.
    wanted = (1 / 4, (1 / 4) ** 0.75, (1 / 4) ** 2 * np.log(4 / 3))
    for name, part, value in zip(names[1:], others, wanted, strict=True):
        assert float(part[f"{name}_loss"]) == pytest.approx(value)


def test_weights_and_smoothing_by_hand():
    """A voxel of each class, and one to be ignored."""
    logits = jnp.log(jnp.array([[3.0, 1.0], [1.0, 3.0], [1.0, 1.0]])).reshape(1, 1, 1, 3, 2)
    right, wrong = np.log(4 / 3), np.log(4)
    smoothed = 0.9 * right + 0.1 * wrong
    wanted = {
        ((3.0, 1.0), 0.0): (3 * right + right) / 2,
        ((0.0, 5.0), 0.0): 5 * right / 2,
        (None, 0.2): smoothed,
        ((3.0, 1.0), 0.2): (3 * smoothed + smoothed) / 2,
    }
    these = [Loss("cross_entropy", *options) for options in wanted]
    found = together(these)(logits, jnp.array([[[[0, 1, IGNORE]]]]))
    values = [float(parts["cross_entropy"]) for parts in found]
    assert values == pytest.approx([*wanted.values()])


# What they leave out, and what does not break them


def test_ignored_voxels_count_for_nothing():
    wild = np.where(
        (LABEL[3] == IGNORE)[..., None], RNG.normal(scale=50, size=LOGITS[3].shape), LOGITS[3]
    )
    wild_image = np.where(np.isnan(IMAGE)[..., None], 1e4, LOGITS[1])
    for these, given, label, usual in (
        (losses(3), wild, LABEL[3], LOGITS[3]),
        ([*map(Loss, REGRESSION)], wild_image, IMAGE, LOGITS[1]),
    ):
        program = gradients(these)
        ignored = np.isnan(label) | (label == IGNORE)
        both = (program(np.float32(logits), label) for logits in (given, usual))
        for loss, (value, gradient), (same, _) in zip(these, *both, strict=True):
            assert float(value) == pytest.approx(float(same), rel=1e-6), loss
            assert not np.asarray(gradient)[ignored].any(), loss
            assert np.asarray(gradient)[~ignored].any(), loss


def nasty(outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Scans with huge logits, right and wrong, without classes, and of ignored voxels alone."""
    shape = (2, 2, 3)
    some = RNG.integers(0, max(outputs, 2), shape)
    nothing, ignored = np.zeros(shape, int), np.full(shape, IGNORE)
    labels = [some, nothing, nothing + 1, ignored]
    if outputs == 1:
        rightly = [1.0 * (2 * (label == 1) - 1)[..., None] for label in labels]
    else:
        rightly = [np.eye(outputs)[label % outputs] for label in labels]
    scales = (-1e4, -100, -17, 0, 1e-30, 17, 88, 100, 1e4)
    logits = [scale * right for right in rightly for scale in scales]
    return np.array(logits, np.float32), np.array(
        [label for label in labels for _ in scales], np.uint8
    )


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_finite_whatever_comes(outputs, dtype):
    logits, label = nasty(outputs)
    these = losses(outputs)
    found = gradients(these)(jnp.asarray(logits, dtype), label)
    images = np.where(label == IGNORE, np.nan, label).astype(np.float32)
    if outputs == 1:
        these = [*these, *map(Loss, REGRESSION)]
        found += gradients(these[-2:])(jnp.asarray(logits, dtype), images)
    for loss, (value, gradient) in zip(these, found, strict=True):
        assert np.isfinite(value), loss
        assert np.isfinite(np.asarray(gradient, np.float32)).all(), loss
        assert np.asarray(gradient).any(), loss


def test_a_perfect_prediction_loses_nothing():
    """A class that a scan lacks is predicted perfectly where it is nowhere."""
    label = np.where(LABEL[3] == IGNORE, 0, LABEL[3] % 2)
    for logits in (100 * np.eye(3)[label], (200.0 * label - 100)[..., None]):
        for parts in together([*map(Loss, CLASSES)])(np.float32(logits), label):
            np.testing.assert_allclose([*parts.values()], 0, atol=2e-6, err_msg=str(parts))


# Parts of a batch


def test_parts_of_a_batch_and_devices_average_to_the_whole():
    """Although its scans have quite different numbers of voxels that count."""
    these = losses(3)
    program = gradients(these)
    whole = program(LOGITS[3], LABEL[3])
    single = [program(LOGITS[3][i : i + 1], LABEL[3][i : i + 1]) for i in range(4)]
    split = program(*jax.device_put((LOGITS[3], LABEL[3]), over_data(make_mesh("data=4"))))
    for loss, (value, gradient), (value_split, gradient_split), *parts in zip(
        these, whole, split, *single, strict=True
    ):
        np.testing.assert_allclose(np.mean([part[0] for part in parts]), value, rtol=1e-6)
        np.testing.assert_allclose(value_split, value, rtol=1e-6, err_msg=str(loss))
        together = np.concatenate([part[1] for part in parts]) / 4
        for each in (together, gradient_split):
            np.testing.assert_allclose(each, gradient, rtol=1e-5, atol=1e-8, err_msg=str(loss))


# Deep supervision


def test_deep_supervision_weighs_resolutions_by_halves():
    """Three resolutions, the second of flat blocks: 4/7, 2/7 and 1/7 of their losses."""
    shapes, picked = (
        [(4, 4, 4), (4, 2, 2), (2, 1, 1)],
        [np.s_[:], np.s_[:, :, 1::2, 1::2], np.s_[:, 1::2, 2::4, 2::4]],
    )
    label = RNG.integers(0, 3, (2, *shapes[0]))
    label[RNG.random(label.shape) < 0.2] = IGNORE
    outputs = tuple(RNG.normal(size=(2, *shape, 3)).astype(np.float32) for shape in shapes)
    loss = Loss("dice_cross_entropy", WEIGHTS, 0.1)
    (found,) = together([loss])(outputs, label)
    single = [
        expected_of_batch(loss, each, label[where])
        for each, where in zip(outputs, picked, strict=True)
    ]
    for part, value in found.items():
        wanted = (4 * single[0][part] + 2 * single[1][part] + single[2][part]) / 7
        assert float(value) == pytest.approx(wanted, rel=1e-5)


def test_deep_supervision_of_an_image_that_is_not_known_everywhere():
    """In each 2³ voxels the last one is taken: here 2, 4 and two that are not known."""
    image = np.full((1, 2, 2, 8), np.nan, np.float32)
    image[0, 1, 1] = [9, 2, 9, np.nan, 9, 4, 9, np.nan]
    full, low = np.zeros((1, 2, 2, 8, 1)), np.full((1, 1, 1, 4, 1), 3.0)
    (found,) = together([Loss("mean_absolute_error")])((full, low), image)
    assert float(found["mean_absolute_error"]) == pytest.approx((2 * 42 / 6 + 1) / 3)


def test_resolutions_must_divide_the_full_one():
    outputs = jnp.zeros((1, 4, 4, 4, 2)), jnp.zeros((1, 3, 2, 2, 2))
    with pytest.raises(ValueError, match="do not divide"):
        Loss("dice")(outputs, jnp.zeros((1, 4, 4, 4), jnp.uint8))


# What cannot be


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("jaccard", (1.0, 2.0)), "--loss jaccard has neither"),
        (("tversky", None, 0.1), "--loss tversky has none"),
        (("focal", None, 0.1), "--loss focal has none"),
        (("cross_entropy", (1.0, -1.0)), "1.0 -1.0 make no sense"),
        (("cross_entropy", (1.0, float("nan"))), "nan make no sense"),
        (("cross_entropy", (0.0, 0.0)), "not all zero"),
        (("cross_entropy", None, 1.0), "--label-smoothing 1.0 makes no sense"),
        (("cross_entropy", None, -0.1), "--label-smoothing -0.1 makes no sense"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        Loss(*arguments)


def test_there_must_be_a_weight_for_each_class():
    label = jnp.zeros((1, 1, 1, 1), jnp.uint8)
    for outputs in (1, 3):
        with pytest.raises(InputError, match=f"4 values for {max(outputs, 2)} classes"):
            Loss("focal", (1.0,) * 4)(jnp.zeros((1, 1, 1, 1, outputs)), label)


def test_one_image_comes_of_one_output():
    with pytest.raises(InputError, match="has 2 outputs"):
        Loss("mean_squared_error")(jnp.zeros((1, 1, 1, 1, 2)), jnp.zeros((1, 1, 1, 1)))


# The form of logits


def test_class_logits_of_a_sigmoid_are_exact():
    z = np.linspace(-30, 30, 61)
    logits = class_logits(jnp.asarray(z, jnp.float32)[:, None])
    wanted = np.stack([special.expit(-z), special.expit(z)], axis=-1)
    np.testing.assert_allclose(jax.nn.softmax(logits), wanted, rtol=2e-6)


def test_class_logits_of_several_classes_are_themselves():
    logits = jnp.asarray(LOGITS[3])
    np.testing.assert_array_equal(class_logits(logits), logits)
