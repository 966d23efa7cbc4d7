"""Counts and scores against masks in NumPy and by hand, and that parts add up to the whole."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from voxtune.engine.case import IGNORE
from voxtune.engine.mesh import DATA, make_mesh, over_data
from voxtune.engine.metrics import Counts, Mean, count, scores

RNG = np.random.default_rng(0)
CLASSES = 4
SHAPE = (4, 3, 5, 7)
PREDICTED = RNG.integers(0, CLASSES, SHAPE)
LABEL = np.where(RNG.random(SHAPE) < 0.2, IGNORE, RNG.integers(0, CLASSES, SHAPE)).astype(np.uint8)
KEYS = ("dice", "jaccard", "precision", "recall", "volume_difference")


def same(found: Counts, wanted: Counts) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def counts(overlap: int, predicted: int, true: int) -> Counts:
    """Of one class beside a background that is not to matter."""
    return Counts(*(np.array([99, number]) for number in (overlap, predicted, true)))


class TestCount:
    def test_the_masks_of_numpy(self) -> None:
        found, inside = count(PREDICTED, LABEL, CLASSES), LABEL != IGNORE
        for index in range(CLASSES):
            predicted, true = (index == PREDICTED) & inside, index == LABEL
            assert found.overlap[index] == (predicted & true).sum()
            assert found.predicted[index] == predicted.sum()
            assert found.true[index] == true.sum()

    def test_on_the_host_int64_on_a_device_int32_and_the_same(self) -> None:
        on_host = count(PREDICTED, LABEL, CLASSES)
        on_device = count(jnp.asarray(PREDICTED), jnp.asarray(LABEL), CLASSES)
        assert {each.dtype for each in jax.tree.leaves(on_host)} == {np.dtype(np.int64)}
        assert {each.dtype for each in jax.tree.leaves(on_device)} == {np.dtype(np.int32)}
        same(on_device, on_host)

    def test_classes_that_are_nowhere_are_counted_too(self) -> None:
        """So are 255 classes, the most that labels beside `IGNORE` have."""
        for data in (np.array([0, 1, 1]), jnp.array([0, 1, 1])):
            found = count(data, np.array([0, 1, IGNORE], np.uint8), 255)
            assert [*found.predicted] == [1, 1] + [0] * 253
            assert [*found.overlap] == [*found.true] == [1, 1] + [0] * 253

    def test_ignored_voxels_alone_are_nothing(self) -> None:
        found = count(PREDICTED, np.full(SHAPE, IGNORE, np.uint8), CLASSES)
        assert not any(each.any() for each in jax.tree.leaves(found))

    def test_four_devices_count_what_one_does(self) -> None:
        """By themselves with a sum over devices, and as one program over all of them."""
        mesh, wanted = make_mesh("data=4"), count(PREDICTED, LABEL, CLASSES)

        def own(predicted: jax.Array, label: jax.Array) -> Counts:
            return lax.psum(count(predicted, label, CLASSES), DATA)

        mapped = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=P(DATA), out_specs=P()))
        same(mapped(PREDICTED, LABEL), wanted)
        split = jax.device_put((PREDICTED, LABEL), over_data(mesh))
        program = jax.jit(count, static_argnums=2).lower(*split, CLASSES).compile()
        same(program(*split), wanted)
        assert "all-gather" not in program.as_text()


class TestSum:
    def test_parts_add_up_to_the_whole(self) -> None:
        parts = [count(*scan, CLASSES) for scan in zip(PREDICTED, LABEL, strict=True)]
        same(functools.reduce(operator.add, parts), count(PREDICTED, LABEL, CLASSES))

    def test_of_devices_counts_is_not_too_large_for_int32(self) -> None:
        """128 scans of 256³ voxels are 2³¹, one more than the largest of int32."""
        scan = Counts(*(jnp.full(2, 256**3, jnp.int32) for _ in range(3)))
        whole = functools.reduce(operator.add, [scan] * 128)
        assert {each.dtype for each in jax.tree.leaves(whole)} == {np.dtype(np.int64)}
        same(whole, Counts(*(np.full(2, 2**31) for _ in range(3))))
        assert scores(whole)["dice"] == 1

    def test_stays_on_the_device_inside_a_program(self) -> None:
        one = count(jnp.asarray(PREDICTED), jnp.asarray(LABEL), CLASSES)
        twice = jax.jit(operator.add)(one, one)
        assert isinstance(twice.overlap, jax.Array)
        same(twice, jax.tree.map(lambda each: 2 * each, one))


class TestScores:
    def test_by_hand(self) -> None:
        """4 predicted, 6 true, 3 of both."""
        found = scores(counts(3, 4, 6))
        wanted = (6 / 10, 3 / 7, 3 / 4, 3 / 6, -2 / 6)
        assert {key: float(value[0]) for key, value in found.items()} == pytest.approx(
            dict(zip(KEYS, wanted, strict=True))
        )

    @pytest.mark.parametrize(
        ("predicted", "true", "wanted"),
        [
            (0, 0, (np.nan, np.nan, np.nan, np.nan, np.nan)),
            (5, 0, (0, 0, 0, np.nan, np.nan)),
            (0, 5, (0, 0, np.nan, 0, -1)),
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_what_is_empty(self, predicted: int, true: int, wanted: tuple[float, ...]) -> None:
        found = scores(counts(0, predicted, true))
        np.testing.assert_array_equal([found[key][0] for key in KEYS], wanted)

    def test_the_masks_of_numpy_without_background(self) -> None:
        found = scores(count(jnp.asarray(PREDICTED), jnp.asarray(LABEL), CLASSES))
        kept = LABEL != IGNORE
        for index in range(1, CLASSES):
            p, t = PREDICTED[kept] == index, LABEL[kept] == index
            wanted = (
                2 * (p & t).sum() / (p.sum() + t.sum()),
                (p & t).sum() / (p | t).sum(),
                t[p].mean(),
                p[t].mean(),
                p.sum() / t.sum() - 1,
            )
            np.testing.assert_allclose([found[key][index - 1] for key in KEYS], wanted)
        assert {each.shape for each in found.values()} == {(CLASSES - 1,)}


class TestMean:
    @pytest.mark.filterwarnings("error")
    def test_leaves_out_what_is_not_finite(self) -> None:
        scans = [[0.5, np.nan, np.nan], [1.0, 0.25, np.inf], [0.75, np.nan, -np.inf]]
        mean = functools.reduce(operator.add, map(Mean.of, scans))
        np.testing.assert_array_equal(mean.value(), [0.75, 0.25, np.nan])
        np.testing.assert_array_equal(mean.number, [3, 1, 0])

    def test_does_not_depend_on_the_order_of_merging(self) -> None:
        values = RNG.normal(size=(6, 3))
        values[RNG.random(values.shape) < 0.3] = np.nan
        first, last = (
            functools.reduce(operator.add, map(Mean.of, part)) for part in (values[:2], values[2:])
        )
        for mean in (first + last, last + first):
            np.testing.assert_allclose(mean.value(), np.nanmean(values, axis=0))
