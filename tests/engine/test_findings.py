"""What is found in studies that are made up, and said of it."""

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from voxtune.engine.findings import Findings, find
from voxtune.engine.findings_table import summary_tables, to_json, write_csv
from voxtune.engine.learning_curve import scans_for
from voxtune.engine.outcomes import Outcome
from voxtune.models.errors import InputError

NAN = math.nan
CLAIMS = re.compile(r"\b(better|worse|narrower|wider|needs|more than speed|speed alone)\b")


def outcome(
    arm: str,
    dice: Sequence[float],
    *,
    size: int = 4,
    seed: int = 0,
    hd95: Sequence[float] = (),
    curve: Sequence[tuple[int, float]] = ((100, 0.4), (200, 0.6), (300, 0.7), (400, 0.7)),
) -> Outcome:
    distances = hd95 or [2.0] * len(dice)
    return Outcome(
        arm=arm,
        size=size,
        seed=seed,
        factor=1.0,
        dice={f"s{index}": float(each) for index, each in enumerate(dice)},
        hd95_mm={f"s{index}": each for index, each in enumerate(distances)},
        curve=curve,
        seconds=1.0,
    )


def study(
    arms: dict[str, Callable[[int], float]],
    *,
    sizes: Sequence[int] = (4,),
    seeds: int = 3,
    subjects: int = 20,
    draw: int = 0,
) -> list[Outcome]:
    """Arms with a mean Dice for each size; subjects differ by SD 0.04, and networks by 0.03."""
    rng = np.random.default_rng(draw)
    subject = rng.normal(0, 0.04, subjects)
    return [
        outcome(arm, mean(size) + subject + rng.normal(0, 0.03, subjects), size=size, seed=seed)
        for seed in range(seeds)
        for size in sizes
        for arm, mean in arms.items()
    ]


def text(findings: Findings) -> str:
    console = Console(width=100)
    with console.capture() as capture:
        for table in summary_tables(findings):
            console.print(table)
    return capture.get()


@pytest.fixture(scope="module")
def helped() -> Findings:
    """Better at both sizes than random weights, and no other than a third arm."""
    arms = {
        "pretrained": lambda size: 0.8,
        "random": lambda size: {4: 0.6, 16: 0.75}[size],
        "other": lambda size: 0.8,
    }
    return find(study(arms, sizes=(4, 16)))


class TestCells:
    def test_by_hand(self) -> None:
        one = outcome("a", (0.5, 0.7, 0.9, 0.05), hd95=(4, 2, 3, NAN))
        two = outcome("a", (0.7, 0.7, 0.7, 0.07), hd95=(2, 2, 5, 6), seed=1)
        (cell,) = find([one, two]).cells  # 0.6, 0.7, 0.8, 0.06
        assert (cell.seeds, cell.subjects, cell.failures, cell.failures_any) == (2, 4, 1, 2)
        assert cell.mean == pytest.approx(0.54)
        assert cell.sd == pytest.approx(np.std([0.6, 0.7, 0.8, 0.06], ddof=1))
        assert (cell.worst, cell.worst_subject) == (pytest.approx(0.06), "s3")
        quartiles = cell.lower_quartile, cell.median, cell.upper_quartile
        assert quartiles == pytest.approx((0.465, 0.65, 0.725))
        assert cell.seeds_sd == pytest.approx(abs(0.5375 - 0.5425) / math.sqrt(2))
        assert (cell.hd95_mm, cell.hd95_left_out) == (pytest.approx(3.0), 1)

    def test_a_failure_of_one_seed_is_one(self) -> None:
        outcomes = [outcome("a", (dice,) * 8, seed=n) for n, dice in enumerate((0, 0.8, 0.8))]
        outcomes += [outcome("b", (0.5,) * 8, seed=n) for n in range(3)]
        found = find(outcomes)
        assert [(cell.failures, cell.failures_any) for cell in found.cells] == [(0, 8), (0, 0)]
        (said,) = [each for each in found.sentences if each.startswith("Failures")]
        assert said.endswith(": a had 8 with 4 scans.")
        row = next(
            line.split()
            for line in text(found).splitlines()
            if "95 %" not in line and " a " in line
        )
        assert row[-4:] == ["0", "8", "2.0", "0"]

    def test_nothing_defined(self) -> None:
        (cell,) = find([outcome("a", (NAN, NAN))]).cells
        assert (cell.subjects, cell.worst_subject) == (0, "")
        assert math.isnan(cell.mean)

    def test_an_interval_is_of_what_dice_can_be(self) -> None:
        (cell,) = find([outcome("a", (0.99, 0.5, 0.98, 0.99, 0.97))]).cells
        assert cell.high == 1


class TestComparisons:
    def test_by_hand(self) -> None:
        """Only subjects that both have, only seeds that both have."""
        first = (0.5, 0.6, 0.7, 0.8, 0.9, 0.5, 0.3, NAN, 0.9)
        other = (0.4, 0.4, 0.4, 0.4, 0.4, 0.1, 0.8, 0.4, NAN)
        found = find(
            [outcome("a", first), outcome("b", other), outcome("b", [1.0] * 9, seed=1)]
        ).comparisons
        (one,) = found
        assert (one.arm, one.other, one.size, one.subjects, one.seeds) == ("a", "b", 4, 7, 1)
        # Differences 0.1 to 0.5, 0.4 and -0.5: ranks 1, 2, 3, 4.5, 4.5, 6.5 and -6.5.
        assert one.difference == pytest.approx((0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 0.4 - 0.5) / 7)
        assert (one.ahead, one.seeds_ahead) == (6, 1)
        assert one.p == one.p_holm > 0.05
        assert one.low < one.difference < one.high

    def test_both_means_are_of_the_subjects_that_both_have(self) -> None:
        """Six scans without a lesion, of which one arm rightly finds none and has no Dice."""
        lesions = np.linspace(0.6, 0.7, 20)
        first = outcome("a", [*(lesions + 0.05 * (1 + lesions)), *[0.0] * 6])
        found = find([first, outcome("b", [*lesions, *[NAN] * 6])])
        (one,) = found.comparisons
        assert (one.subjects, one.left_out) == (20, 6)
        assert one.mean - one.other_mean == pytest.approx(one.difference)
        assert f"Dice {one.mean:.3f} against {one.other_mean:.3f}" in found.sentences[0]
        assert found.sentences[0].endswith("left out: 6 subjects with a Dice in one arm alone.")
        assert any("a had 6 with 4 scans" in each for each in found.sentences)

    def test_order_and_correction(self, helped: Findings) -> None:
        names = [(one.size, one.other) for one in helped.comparisons]
        assert names == [(4, "random"), (4, "other"), (16, "random"), (16, "other")]
        smallest = min(one.p for one in helped.comparisons)
        assert min(one.p_holm for one in helped.comparisons) == pytest.approx(4 * smallest)

    def test_arms_at_different_sizes_are_not_compared(self) -> None:
        found = find([outcome("a", (0.5,) * 8), outcome("b", (0.5,) * 8, size=8)])
        assert not found.comparisons
        assert found.sentences[0].startswith("Nothing was compared")


class TestCourses:
    def test_by_hand(self) -> None:
        rising = [(100, 0.4), (200, 0.6), (300, 0.65), (400, 0.66)]
        steeper = [(100, 0.4), (200, 0.6), (300, 0.75), (400, 0.84)]
        flat = [(100, 0.7), (400, 0.7)]
        few = [(400, 0.7)]
        curves = {"a": rising, "b": flat, "c": few}
        found = find(
            [outcome(arm, (0.5,) * 8, curve=curve) for arm, curve in curves.items()]
            + [outcome("a", (0.5,) * 8, curve=steeper, seed=1)]
        ).courses
        assert found[0].dice == pytest.approx((0.4, 0.6, 0.7, 0.75))
        assert [one.gain for one in found] == pytest.approx([0.05, 0, NAN], nan_ok=True)
        assert [one.settled for one in found] == [False, True, False]

    @pytest.mark.parametrize(
        ("target", "steps"), [(0.5, 150), (0.3, 100), (0.7, 300), (0.71, NAN), (0.4, 100)]
    )
    def test_steps_to_reach_the_other(self, target: float, steps: float) -> None:
        """Of the steps of the arm that reaches it."""
        other = outcome("b", (0.5,) * 8, curve=[(200, 0.9), (300, target)])
        (found,) = find([outcome("a", (0.5,) * 8), other]).reaches
        assert (found.target, found.of) == (target, 400)
        assert found.steps == pytest.approx(steps, nan_ok=True)

    def test_seeds_that_end_at_different_steps(self) -> None:
        """Nothing is said of the end of a curve that only some seeds have."""
        long = [(step, 0.5 + step / 1000) for step in (100, 200, 300, 400)]
        curves = (long[:2], long)
        arms = {"a": np.full(8, 0.8), "b": np.full(8, 0.6)}
        found = find(
            [
                outcome(arm, dice, curve=curve if arm == "b" else long, seed=seed)
                for arm, dice in arms.items()
                for seed, curve in enumerate(curves)
            ]
        )
        assert [(one.steps, one.ends) for one in found.courses] == [
            ((100, 200, 300, 400), (400,)),
            ((), (200, 400)),
        ]
        said = "\n".join(found.sentences)
        assert "b with 4 scans had stopped improving cannot be told: its seeds were last" in said
        assert "final" not in said
        assert "quarter" not in said
        assert math.isnan(found.reaches[0].target)

    def test_the_last_quarter_may_begin_between_validations(self) -> None:
        """At step 375 of 500, where the curve is three quarters of the way from 0.6 to 0.7."""
        curve = [(100, 0.2), (200, 0.4), (300, 0.6), (400, 0.7), (500, 0.72)]
        found = find([outcome(arm, (0.5,) * 8, curve=curve) for arm in "ab"])
        assert found.courses[1].gain == pytest.approx(0.72 - 0.675)
        said = "(+0.045 validation Dice over the last quarter of 500 steps, interpolated)"
        assert any(said in each for each in found.sentences)


class TestWorth:
    @pytest.mark.parametrize("first", [3, 9, 10, 11, 22, 24, 48])
    def test_at_a_size_it_is_that_size(self, first: int) -> None:
        """Also where means of the same numbers differ by rounding."""
        sizes, means = (first, 4 * first), np.array([0.6, 0.7])
        assert scans_for(sizes, means, 0.5) == first
        for rounding in (-1e-16, 0, 1e-16):
            assert scans_for(sizes, means, 0.6 + rounding) == first
            assert scans_for(sizes, means + rounding, 0.7) == 4 * first
        assert scans_for(sizes, means, 0.65) == pytest.approx(2 * first)

    def test_of_a_curve_that_rises_with_the_logarithm(self) -> None:
        """0.5 + 0.1 log2 n, on which 0.75 is at 2 ** 2.5 scans; more with other subjects never."""
        arms = {"a": lambda size: 0.75, "b": lambda size: 0.5 + 0.1 * math.log2(size)}
        outcomes = [
            outcome(arm, mean(size) + np.linspace(-0.1, 0.1, 9), size=size)
            for size in (2, 4, 8)
            for arm, mean in arms.items()
        ]
        found = find(outcomes).worths
        assert [one.size for one in found] == [2, 4, 8]
        for one in found:
            assert (one.scans, one.low, one.high) == pytest.approx((2**2.5,) * 3)

    @pytest.mark.parametrize(("dice", "scans"), [(0.9, math.inf), (0.3, 2)])
    def test_beyond_and_below(self, dice: float, scans: float) -> None:
        outcomes = [outcome("a", (dice,) * 8, size=2)]
        outcomes += [outcome("b", (0.4 + 0.1 * n,) * 8, size=n) for n in (2, 3)]
        (found,) = find(outcomes).worths
        assert (found.scans, found.low, found.high) == pytest.approx((scans,) * 3)

    def test_of_few_subjects_there_is_no_interval(self) -> None:
        outcomes = [outcome("a", (0.5,) * 3, size=2)]
        outcomes += [outcome("b", (0.2 * n,) * 3, size=n) for n in (2, 3)]
        (found,) = find(outcomes).worths
        assert 2 < found.scans < 3
        assert np.isnan((found.low, found.high)).all()

    def test_a_curve_that_falls_is_levelled(self) -> None:
        """0.4, 0.7, 0.5, 0.8 is 0.4, 0.6, 0.6, 0.8; so 0.7 is half way from 8 to 16."""
        outcomes = [outcome("a", (0.7,) * 8, size=2)]
        outcomes += [
            outcome("b", (dice,) * 8, size=size)
            for size, dice in ((2, 0.4), (4, 0.7), (8, 0.5), (16, 0.8))
        ]
        (found,) = find(outcomes).worths
        assert found.scans == pytest.approx(math.sqrt(8 * 16))

    def test_subjects_make_the_interval(self, helped: Findings) -> None:
        found = next(one for one in helped.worths if one.other == "random" and one.size == 4)
        assert 4 < found.low <= found.scans <= found.high


class TestSentences:
    @pytest.mark.parametrize("draw", range(3))
    def test_without_an_effect_none_claims_one(self, draw: int) -> None:
        arms = {name: (lambda size: 0.7) for name in "abc"}
        found = find(study(arms, sizes=(4, 16), draw=draw)).sentences
        assert not [each for each in found if CLAIMS.search(each)]
        for size, said in zip((4, 16), found, strict=False):
            assert said.startswith(f"With {size} scans, no difference between a and b was shown: ")
        assert found[-1].count("no difference was shown (") == 2

    def test_with_an_effect(self, helped: Findings) -> None:
        said = "\n".join(helped.sentences)
        assert said.startswith("With 4 scans, pretrained is better than random: Dice 0.7")
        assert "p < 0.001; pretrained is ahead in 20 of 20 subjects and 3 of 3 seeds" in said
        assert "\npretrained against other: with 4 scans no difference was shown (" in said
        assert "For the Dice that pretrained has with 4 scans, random needs more than 16" in said
        assert "what pretrained is ahead by is more than speed" in said
        assert "other needs" not in said

    def test_few_of_many_arms(self) -> None:
        """Of each arm after the second there is one sentence, of all sizes."""
        arms = {f"arm{n}": (lambda size, n=n: 0.9 - 0.2 * n) for n in range(5)}
        found = find(study(arms, sizes=(4, 16), subjects=12)).sentences
        assert len([each for each in found if "arm3" in each]) == 1
        assert found[-1].startswith("arm0 against arm4: with 4 scans better (+0.8")
        assert "; with 16 scans better (" in found[-1]

    def test_the_second_arm_is_the_first_that_is_compared(self) -> None:
        """Also where another one has a smaller size."""
        outcomes = study({"a": lambda size: 0.7, "c": lambda size: 0.7}, sizes=(2, 4))
        late = [replace(each, arm="b") for each in outcomes if (each.arm, each.size) == ("c", 4)]
        a, c = ([each for each in outcomes if each.arm == arm] for arm in "ac")
        found = find([*a, *late, *c]).sentences
        assert found[0].startswith("With 4 scans, no difference between a and b")
        assert found[-1].startswith("a against c: with 2 scans")

    def test_worse(self) -> None:
        arms = {"a": lambda size: 0.5, "b": lambda size: 0.7}
        said = find(study(arms)).sentences
        assert said[0].startswith("With 4 scans, a is worse than b: Dice 0.")
        assert "what b is ahead by is more than speed" in "\n".join(said)
        assert not any("needs" in each for each in said)

    def test_p_alone_is_not_enough(self, helped: Findings) -> None:
        """Five per cent of both."""
        rng = np.random.default_rng(0)
        first = np.full(20, 0.5)
        first[2:] += rng.uniform(0.001, 0.002, 18)
        first[:2] = 0.1, 0.2  # so the mean is not ahead
        found = find([outcome("a", first), outcome("b", np.full(20, 0.5))])
        (one,) = found.comparisons
        assert one.p_holm < 0.05
        assert one.low < 0 < one.high
        assert "the interval would have to be beside 0 too" in "\n".join(found.sentences)
        assert not [each for each in found.sentences if " better" in each or " worse" in each]

    def test_mean_and_ranks_disagree(self) -> None:
        """Fifty subjects are a little worse, and ten failures are none any more."""
        rng = np.random.default_rng(0)
        other = np.r_[rng.uniform(0.75, 0.85, 50), rng.uniform(0.05, 0.3, 10)]
        first = other + np.r_[-rng.uniform(0.005, 0.015, 50), rng.uniform(0.3, 0.6, 10)]
        for sign, ours, theirs in ((1, first, other), (-1, other, first)):
            found = find([outcome("a", ours), outcome("b", theirs)])
            (one,) = found.comparisons
            assert one.p_holm < 0.05
            assert min(sign * one.low, sign * one.high) > 0 > sign * one.rank_sum
            said = found.sentences[0]
            assert said.startswith("With 4 scans, no difference between a and b was shown")
            how = "better on average, worse" if sign > 0 else "worse on average, better"
            assert f"but mean and ranks disagree: {how} by the ranks" in said

    def test_what_prints_as_nothing_is_no_claim(self) -> None:
        """Of each subject a ten-millionth more, and as much of the spread."""
        dice = np.linspace(0.5, 0.7, 12)
        found = find([outcome("a", dice + 1e-7 + 1e-6 * (dice - 0.5)), outcome("b", dice)])
        (one,) = found.comparisons
        assert max(one.p_holm, one.sd_p_holm) < 0.05
        assert min(one.low, one.sd_ratio_low - 1) > 0
        assert not [each for each in found.sentences if CLAIMS.search(each)]
        assert "p < 0.001, but it is 0 to three decimals" in found.sentences[0]
        assert text(found).count("*") == 1  # which the caption explains

    def test_speed_and_end_are_told_apart(self) -> None:
        rising = [(100, 0.1), (200, 0.2), (300, 0.3), (400, 0.4)]
        arms = {"a": lambda size: 0.8, "b": lambda size: 0.5}
        outcomes = [
            replace(each, curve=rising) if each.arm == "b" else each for each in study(arms)
        ]
        said = "\n".join(find(outcomes).sentences)
        assert "b with 4 scans was still improving (+0.100" in said
        assert "what a is ahead by may be speed alone" in said
        assert "a had the final validation Dice of b with 4 scans (0.400) at its first" in said
        third = [replace(each, arm="c") for each in outcomes if each.arm == "b"]
        said = find([*outcomes, *third]).sentences[-1]
        assert "which may be speed alone, as c was still improving" in said

    def test_few_subjects(self) -> None:
        arms = {"a": lambda size: 0.8, "b": lambda size: 0.1}
        found = find(study(arms, subjects=5))
        said = "\n".join(found.sentences)
        assert said.startswith("With 4 scans, nothing can be tested of a and b, Dice 0.")
        assert "with 5 subjects, fewer than 6, no difference can be shown" in said
        assert not CLAIMS.search(said)

    @pytest.mark.parametrize("seeds", [1, 2])
    def test_one_seed(self, seeds: int) -> None:
        arms = {"a": lambda size: 0.8, "b": lambda size: 0.8}
        said = "\n".join(find(study(arms, seeds=seeds)).sentences)
        assert ("one seed alone" in said) == (seeds == 1)
        assert ("of 2 seeds" in said) == (seeds == 2)

    def test_a_narrower_spread(self) -> None:
        spread = np.linspace(-1, 1, 30)
        wiggle = 0.1 * np.cos(40 * spread)
        outcomes = [outcome("a", 0.7 + 0.02 * (spread + wiggle)), outcome("b", 0.7 + 0.1 * spread)]
        said = "\n".join(find(outcomes).sentences)
        assert "the spread of a over subjects is narrower: SD 0.20 times that of b" in said


class TestTables:
    def test_they_fit_a_hundred_columns(self) -> None:
        arms = {f"a-rather-long-name-of-an-arm-{n}": (lambda size: 0.7) for n in range(3)}
        outcomes = [
            replace(each, hd95_mm=dict.fromkeys(each.hd95_mm, 123.45), size=each.size * 100)
            for each in study(arms, subjects=12)
        ]
        shown = text(find(outcomes))
        assert "…" not in shown
        assert "nan" not in shown
        assert "0.7" in shown
        assert "12" in shown

    def test_what_is_shown_has_a_star(self, helped: Findings) -> None:
        lines = [line.split() for line in text(helped).splitlines()]
        rows = [line for line in lines if "random" in line or "other" in line]
        stars = ["*" in "".join(row[:3]) for row in rows[4:]]
        assert stars == [True, False, True, False]

    def test_a_name_is_no_markup(self) -> None:
        shown = text(find([outcome("[red]", (0.5,) * 8), outcome("[b]", (0.4,) * 8)]))
        assert "[red]" in shown
        assert "[b]" in shown

    def test_csv(self, helped: Findings, tmp_path: Path) -> None:
        nothing = replace(helped.comparisons[0], p_holm=NAN)
        write_csv(replace(helped, comparisons=[nothing, *helped.comparisons[1:]]), tmp_path)
        with (tmp_path / "table.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [float(row["mean"]) for row in rows] == [cell.mean for cell in helped.cells]
        with (tmp_path / "comparisons.csv").open(newline="") as stream:
            first = next(csv.DictReader(stream))
        assert (first["other"], first["p_holm"]) == ("random", "")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["comparisons.csv", "table.csv"]

    def test_csv_that_cannot_be_written(self, helped: Findings, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"table\.csv cannot be written"):
            write_csv(helped, tmp_path / "none")

    def test_json(self, helped: Findings) -> None:
        found = to_json(helped)
        again = json.loads(json.dumps(found, allow_nan=False))
        assert again["cells"][0]["mean"] == helped.cells[0].mean
        assert again["sentences"] == list(helped.sentences)
        worth = next(one for one in again["worths"] if one["other"] == "random")
        assert worth["scans"] == "infinite"
        few = to_json(find([outcome("a", (0.5,)), outcome("b", (0.5,))]))
        assert few["comparisons"][0]["p"] is None
