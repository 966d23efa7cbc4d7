"""Statistics on data whose answer is known: by hand, by simulation, by another formula."""

import math
import warnings
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import binom, nct, t

from voxtune.engine.statistics import holm, mean_interval, rank_sum, sd_ratio, signed_rank

NAN = math.nan
RESAMPLES = 399  # of one interval of many
STUDIES = 200


@pytest.fixture(autouse=True)
def _no_warnings() -> None:
    warnings.simplefilter("error")


def scores(rng: np.random.Generator, shape: tuple[int, ...], effect: bool) -> list[np.ndarray]:
    """Dice of two arms, `[..., N]`: skewed, with a difficulty of the subject that both share.

    With an effect the first is better and narrower; without, both have one distribution.
    """
    z, *own = rng.normal(size=(3, *shape))
    levels = (2.0 + 0.4 * z + 0.2 * own[0], 1.2 + 0.6 * z + 0.4 * own[1])
    if not effect:
        levels = 1.8 + 0.5 * z + 0.3 * own[0], 1.8 + 0.5 * z + 0.3 * own[1]
    return [1 / (1 + np.exp(-each)) for each in levels]


def fewest(probability: float, number: int = STUDIES) -> int:
    """Of that many studies so many succeed, but for one time in 10 000."""
    return int(binom.ppf(1e-4, number, probability))


class TestMean:
    @pytest.mark.parametrize(("n", "effect"), [(8, True), (20, False), (60, True)])
    def test_the_interval_of_a_difference_holds_its_level(self, n: int, effect: bool) -> None:
        many = scores(np.random.default_rng(0), (1_000_000,), effect)
        truth = np.mean(many[0] - many[1])
        first, other = scores(np.random.default_rng(n), (STUDIES, n), effect)
        found = [mean_interval(each, RESAMPLES) for each in first - other]
        assert sum(low <= truth <= high for low, high in found) >= fewest(0.95)

    def test_it_is_no_wider_than_it_has_to_be(self) -> None:
        """Of normal numbers the t interval is exact, and this one close to it."""
        values = np.random.default_rng(1).normal(0.1, 0.05, 40)
        low, high = mean_interval(values)
        half = t.ppf(0.975, 39) * values.std(ddof=1) / math.sqrt(40)
        assert (low, high) == pytest.approx(
            (values.mean() - half, values.mean() + half), abs=0.1 * half
        )
        assert mean_interval(values) == (low, high)

    @pytest.mark.parametrize("values", [[], [0.1], [0.1, 0.2], [0.1, 0.2, 0.4]])
    def test_too_few(self, values: list[float]) -> None:
        assert np.isnan(mean_interval(np.array(values))).all()

    def test_constant(self) -> None:
        assert mean_interval(np.full(8, 0.25)) == (0.25, 0.25)
        assert mean_interval(np.zeros(8)) == (0, 0)
        # Each third resample has nothing but zeros.
        assert np.isnan(mean_interval(np.array([0.5, *[0.0] * 7]))).all()


class TestSpread:
    @pytest.mark.parametrize(("n", "effect"), [(8, True), (20, False), (60, True)])
    def test_the_interval_holds_its_level(self, n: int, effect: bool) -> None:
        many = scores(np.random.default_rng(0), (1_000_000,), effect)
        truth = many[0].std() / many[1].std()
        first, other = scores(np.random.default_rng(n), (STUDIES, n), effect)
        found = [sd_ratio(a, b, RESAMPLES) for a, b in zip(first, other, strict=True)]
        assert sum(not (one.low > truth or one.high < truth) for one in found) >= fewest(0.95)

    def test_a_narrower_arm_is_found(self) -> None:
        first, other = scores(np.random.default_rng(2), (60,), True)
        found = sd_ratio(first, other)
        assert found.value == pytest.approx(np.std(first, ddof=1) / np.std(other, ddof=1))
        assert found.low < found.value < found.high < 1
        assert found.p < 0.05

    def test_p_and_interval_agree(self) -> None:
        """Both are of the same resamples."""
        found = [
            sd_ratio(*scores(np.random.default_rng(draw), (20,), effect), RESAMPLES)
            for draw in range(20)
            for effect in (False, True)
        ]
        beside = [one.low > 1 or one.high < 1 for one in found]
        assert beside == [one.p <= 0.05 for one in found]
        assert 0 < sum(beside) < len(beside)

    def test_it_turns_round_with_its_arms(self) -> None:
        first, other = scores(np.random.default_rng(3), (20,), True)
        there, back = sd_ratio(first, other), sd_ratio(other, first)
        turned = 1 / back.value, 1 / back.high, 1 / back.low, back.p
        assert astuple(there) == pytest.approx(turned)

    def test_pairs_stay_pairs(self) -> None:
        """A sample that is twice the other has twice its spread, whoever is drawn."""
        values = np.random.default_rng(4).normal(size=20)
        assert astuple(sd_ratio(2 * values, values))[:3] == pytest.approx((2, 2, 2))

    def test_without_spread(self) -> None:
        values, constant = np.random.default_rng(5).normal(size=8), np.full(8, 0.1)
        assert sd_ratio(values, constant).value == math.inf
        assert sd_ratio(constant, values).value == 0
        for pair in ((values, constant), (constant, values)):
            assert np.isnan(astuple(sd_ratio(*pair))[1:]).all()
        for n in (8, 1, 0):
            assert np.isnan(astuple(sd_ratio(constant[:n], constant[:n]))).all()

    def test_of_a_single_subject_or_of_few(self) -> None:
        values, one = np.random.default_rng(6).normal(size=8), np.array([0.5, *[0.0] * 7])
        found = sd_ratio(one, values)
        assert found.value == pytest.approx(one.std() / values.std())
        assert np.isnan(astuple(found)[1:]).all()
        assert np.isnan(astuple(sd_ratio(values[:3], values[3:6]))[1:]).all()


class TestSignedRank:
    def test_by_hand(self) -> None:
        """Ranks 1 to 7, of which 6 is negative. So small a sum, 6 or less, have 14 of 128 choices
        of signs: the partitions of 0 to 6 into different parts: 1+1+1+2+2+3+4."""
        differences = np.array([0.1, 0.2, 0.3, 0.4, 0.5, -0.6, 0.7])
        assert signed_rank(differences) == pytest.approx(2 * 14 / 128)
        assert signed_rank(-differences) == pytest.approx(2 * 14 / 128)

    def test_zeros_are_left_out(self) -> None:
        differences = np.array([0.1, 0.2, 0.3, 0.4, 0.5, -0.6, 0.7])
        rounding = np.array([0, 1e-17, -1e-17])
        assert signed_rank(np.concatenate([differences, rounding])) == signed_rank(differences)

    def test_the_smallest_of_six(self) -> None:
        assert signed_rank(np.arange(1.0, 7)) == pytest.approx(2 / 64)

    def test_ties(self) -> None:
        """Six equal differences are six signs: 2 of 64."""
        assert signed_rank(np.full(6, 0.3)) == pytest.approx(2 / 64)

    def test_nothing_to_test(self) -> None:
        assert signed_rank(np.zeros(8)) == 1
        assert math.isnan(signed_rank(np.arange(1.0, 6)))
        assert math.isnan(signed_rank(np.array([])))

    def test_the_sum_has_the_sign_of_the_ranks(self) -> None:
        """Ranks -1, -2, -3.5, -3.5 and 5, of differences whose mean is above 0."""
        differences = np.array([-0.01, -0.02, -0.03, -0.03, 0.9, 0, 1e-12])
        assert rank_sum(differences) == pytest.approx(5 - 10)
        assert rank_sum(-differences) == pytest.approx(10 - 5)
        assert rank_sum(np.zeros(3)) == 0


class TestHolm:
    def test_by_hand(self) -> None:
        """Four: 0.01 x 4; 0.03 x 3; 0.04 x 2 = 0.08, but no smaller than the last; 0.9 x 1."""
        found = holm([0.01, 0.04, 0.03, NAN, 0.9])
        assert found == pytest.approx([0.04, 0.09, 0.09, NAN, 0.9], nan_ok=True)

    def test_never_above_one(self) -> None:
        assert holm([0.6, 0.7]) == [1, 1]
        assert holm([]) == []
        assert holm([0.2]) == [0.2]
        assert np.isnan(holm([NAN])).all()

    def test_without_an_effect_hardly_any_study_shows_one(self) -> None:
        """Six comparisons, of 20 subjects with one first arm: at most 5 % of the studies."""
        rng, studies = np.random.default_rng(7), 200
        wrong = 0
        for _ in range(studies):
            first, others = scores(rng, (6, 20), False)
            differences = np.repeat(first[:1], 6, axis=0) - others  # not independent
            differences[:3] = first[3:] - others[:3]
            wrong += min(holm([signed_rank(each) for each in differences])) < 0.05
        assert wrong <= studies - fewest(0.95, studies)
        assert wrong  # some do: it is no test that never says anything


def test_a_known_effect_is_found_as_often_as_a_formula_says() -> None:
    """Normal differences of 0.6 SD, 25 subjects: the t test has a power of 0.82 (noncentral t), and
    Wilcoxon's 3 / pi of its efficiency: that power with 23.9 subjects."""
    studies, effect, n = 400, 0.6, 25
    differences = np.random.default_rng(9).normal(effect, 1, (studies, n))
    found = sum(signed_rank(each) < 0.05 for each in differences) / studies
    size = n * 3 / math.pi
    power = nct.sf(t.ppf(0.975, size - 1), size - 1, effect * math.sqrt(size))
    assert found == pytest.approx(power, abs=0.06)
