"""Rules: which parameter gets what, and sentences where a rule says nothing."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from voxtune.engine.config import Finetune
from voxtune.engine.rules import (
    FOREVER,
    Parameters,
    Row,
    Rule,
    is_kernel,
    make_rules,
    parse_rule,
    read_rules,
)
from voxtune.engine.trees import nested
from voxtune.models.errors import InputError
from voxtune.models.families import abstract

KINDS = {"c": "Conv3D", "b": "BatchNormalization"}
LEVELS = ("stem", "block1", "block2", "head")
SHAPES = {
    f"{level}/{name}": shape
    for level in LEVELS
    for name, shape in (("conv/kernel", (3, 3, 3, 2, 2)), ("conv/bias", (2,)))
} | {f"block1/norm/{name}": (2,) for name in ("scale", "bias", "mean", "var")}
PARAMETERS = Parameters(
    SHAPES,
    frozenset({"block1/norm/mean", "block1/norm/var"}),
    LEVELS,
    {path: path.split("/")[0] for path in SHAPES},
    ("head",),
    frozenset(path for path in SHAPES if not path.startswith("head")),
)


def options(**changed: Any) -> Finetune:
    usual: dict[str, Any] = {"steps": 1000, "trunk_lr": 1e-2, "head_lr": 3e-2}
    return Finetune(Path("model"), "subjects.csv", Path("run"), **usual | changed)


def rows(**changed: Any) -> dict[str, Row]:
    return dict(make_rules(PARAMETERS, options(**changed)).rows)


class TestWriting:
    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("stem/* freeze", Rule("stem/*", until=FOREVER)),
            ("stem/* freeze=no", Rule("stem/*", until=0)),
            ("* from_step=20", Rule("*", until=20)),
            ("* from_step=0", Rule("*", until=0)),
            ("* freeze from_step=20", Rule("*", until=20)),
            ("* from_step=20 freeze", Rule("*", until=20)),
            (
                "re:block[12]/.*  learning_rate=0.5 weight_decay=0 anchor=1e-2 l2=3",
                Rule("re:block[12]/.*", 0.5, 0.0, 0.01, 3.0),
            ),
        ],
    )
    def test_each_property(self, text: str, wanted: Rule) -> None:
        assert parse_rule(text) == wanted

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("stem/*", "sets nothing"),
            ("stem/* frozen", "'frozen', which is none of freeze, from_step=STEP"),
            ("stem/* lr=1", "'lr=1', which is none of"),
            ("stem/* learning_rate=nan", "finite number of at least 0"),
            ("stem/* learning_rate=inf", "finite number of at least 0"),
            ("stem/* weight_decay=-1", "finite number of at least 0"),
            ("stem/* anchor=much", "finite number of at least 0"),
            ("stem/* from_step=1.5", "whole number of at least 0"),
            ("re:stem(/* freeze", "no regular expression"),
            ("re:a{99999999999} freeze", "no regular expression"),
            ("stem/* l2=1 l2=2", "says l2 twice"),
            ("stem/* freeze freeze=no", "says freeze twice"),
            ("stem/* freeze=no from_step=3", "freeze=no and from_step"),
        ],
    )
    def test_what_is_no_rule_is_a_sentence(self, text: str, words: str) -> None:
        with pytest.raises(InputError, match=words.replace("(", r"\(")):
            parse_rule(text)

    def test_a_file_has_a_rule_a_line_after_those_of_the_command_line(self, tmp_path: Path) -> None:
        file = tmp_path / "rules.txt"
        file.write_text("# all but the head\n\nstem/* freeze  # for now\nconv#1/* l2=1\n")
        found = read_rules(options(rule=("block1/* freeze",), rules=file))
        assert found == ["block1/* freeze", "stem/* freeze", "conv#1/* l2=1"]

    @pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"x" * (2**20 + 1)])
    def test_a_file_that_is_no_list(self, tmp_path: Path, content: bytes | None) -> None:
        file = tmp_path / "rules.txt"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(InputError, match=r"rules\.txt (cannot be read|is no list)"):
            read_rules(options(rules=file))


class TestMatching:
    def test_stars_cross_slashes_and_expressions_take_the_whole_path(self) -> None:
        assert Rule("block*kernel").matches("block1/conv/kernel")
        assert not Rule("conv/kernel").matches("block1/conv/kernel")
        assert Rule("re:block[0-9]/.*").matches("block1/conv/kernel")
        assert not Rule("re:conv/kernel").matches("block1/conv/kernel")

    def test_the_first_match_wins_for_each_property(self) -> None:
        found = rows(
            rule=(
                "block1/conv/* learning_rate=0.5",
                "block1/* learning_rate=0.1 weight_decay=7",
                "* weight_decay=9 l2=2",
            )
        )
        kernel, scale, stem = (
            found[path] for path in ("block1/conv/kernel", "block1/norm/scale", "stem/conv/bias")
        )
        assert (kernel.learning_rate, kernel.weight_decay, kernel.l2) == (0.5e-2, 7, 2)
        assert (scale.learning_rate, scale.weight_decay, scale.l2) == (1e-3, 7, 2)
        assert (stem.learning_rate, stem.weight_decay, stem.l2) == (1e-2, 9, 2)

    @pytest.mark.parametrize(
        ("rule", "near"),
        [("encoder1/* freeze", "head"), ("blok1/conv/kernel freeze", "block1/conv/kernel")],
    )
    def test_a_rule_that_matches_nothing_shows_the_nearest(self, rule: str, near: str) -> None:
        with pytest.raises(InputError, match=rf"matches no parameter; the nearest are .*{near}"):
            rows(rule=(rule,))

    def test_a_rule_for_numbers_wants_more_than_statistics(self) -> None:
        with pytest.raises(InputError, match="statistics alone"):
            rows(rule=("*/norm/mean learning_rate=2",))

    def test_what_comes_of_rule_and_option_is_a_number(self) -> None:
        with pytest.raises(InputError, match=r"stem/conv/kernel would get learning_rate=inf"):
            rows(rule=("stem/conv/kernel learning_rate=1e308",), trunk_lr=100.0)

    def test_adam_has_no_decay(self) -> None:
        for changed in ({"weight_decay": 0.1}, {"rule": ("*/bias weight_decay=0.1",)}):
            with pytest.raises(InputError, match="adam has no decay"):
                rows(optimizer="adam", **changed)

    def test_an_anchor_stands_in_the_place_of_decay_wherever_it_comes_from(self) -> None:
        found = rows(rule=("stem/* anchor=1", "block1/* anchor=1 weight_decay=2"))
        assert found["stem/conv/kernel"].weight_decay == 0
        assert found["block1/conv/kernel"].weight_decay == 2
        assert found["block2/conv/kernel"].weight_decay == 0.01
        found = rows(anchor=1.0, rule=("stem/* anchor=0",))
        assert found["stem/conv/kernel"].weight_decay == 0.01

    def test_without_pretrained_values_an_anchor_does_nothing(self) -> None:
        """So the command of a run from pretrained weights runs from random ones too."""
        bare = dataclasses.replace(PARAMETERS, pretrained=frozenset())
        config = options(init="random", rule=("stem/* anchor=1",))
        row = make_rules(bare, config).rows["stem/conv/kernel"]
        assert (row.anchor, row.weight_decay) == (0, 0.01)

    def test_an_anchor_wants_a_pretrained_value(self) -> None:
        with pytest.raises(InputError, match="starts from no pretrained value"):
            rows(rule=("head/* anchor=1",))
        found = rows(rule=("* anchor=1",))
        assert found["stem/conv/bias"].anchor == 1
        assert found["head/conv/bias"].anchor == 0


class TestOptions:
    def test_decay_is_for_kernels_alone(self) -> None:
        decayed = {path for path, row in rows(weight_decay=0.1).items() if row.weight_decay == 0.1}
        assert decayed == {path for path in SHAPES if path.endswith("kernel")}
        assert not any(row.weight_decay for row in rows(optimizer="adam").values())

    @pytest.mark.parametrize(
        ("path", "wanted"),
        [
            ("a/kernel", True),
            ("a/depthwise_kernel", True),
            ("a/kernel_posterior_loc", False),
            ("a/kernel/mean", False),
            ("a/bias", False),
            ("a/scale", False),
        ],
    )
    def test_kernels(self, path: str, wanted: bool) -> None:
        """Of random weights none is one: their prior pulls already."""
        assert is_kernel(path) == wanted

    def test_l2_is_for_kernels(self) -> None:
        assert {path for path, row in rows(l2=0.1).items() if row.l2 == 0.1} == {
            path for path in SHAPES if path.endswith("kernel")
        }

    def test_anchored_kernels_are_those_that_are_pretrained_and_do_not_decay(self) -> None:
        found = rows(anchor=0.5, weight_decay=0.1)
        stem, head = found["stem/conv/kernel"], found["head/conv/kernel"]
        assert (stem.anchor, stem.weight_decay) == (0.5, 0)
        assert (head.anchor, head.weight_decay) == (0, 0.1)
        assert found["stem/conv/bias"].anchor == 0

    def test_layer_decay_is_a_geometric_series_along_the_levels(self) -> None:
        found = rows(trunk_lr=1.0, head_lr=1.0, layer_decay=0.8)
        rates = [found[f"{level}/conv/kernel"].learning_rate for level in LEVELS]
        np.testing.assert_allclose(rates, [0.8**3, 0.8**2, 0.8, 1.0], rtol=1e-12)

    def test_a_real_networks_levels(self) -> None:
        unet = Parameters.of(abstract("unet", {"outputs": 1}))
        found = make_rules(unet, options(trunk_lr=1.0, head_lr=1.0, layer_decay=0.5)).rows
        assert found["encoder1/unit1/conv/kernel"].learning_rate == 0.5**7
        assert found["bottom/unit2/conv/bias"].learning_rate == 0.5**4
        assert found["decoder1/up/kernel"].learning_rate == 0.5
        assert found["head/kernel"].learning_rate == 1

    def test_a_graph_s_norms_belong_to_the_level_before_them(self) -> None:
        graph = {
            "layers": [
                {"name": f"{kind}{n}", "kind": KINDS[kind], "config": config}
                for n in (1, 2)
                for kind, config in (("c", {"filters": 2, "kernel_size": [1, 1, 1]}), ("b", {}))
            ],
            "calls": [
                {"name": name, "layer": name, "inputs": [before]}
                for before, name in itertools.pairwise(("x", "c1", "b1", "c2", "b2"))
            ],
            "inputs": {"x": [None, None, None, 1]},
            "outputs": ["b2"],
        }
        network = abstract("graph", {"graph": graph})
        assert network.levels() == ("c1", "c2")
        found = make_rules(Parameters.of(network), options(unfreeze_every=10, layer_decay=0.5)).rows
        untils = [found[path].until for path in ("c1/kernel", "b1/gamma", "b1/moving_mean")]
        assert untils == [10, 10, 10]
        assert found["b1/beta"].learning_rate == found["c1/bias"].learning_rate == 0.5e-2
        assert found["b2/gamma"].until == found["c2/bias"].until == 0

    def test_freeze_until_a_level_freezes_those_before_it_statistics_too(self) -> None:
        found = rows(freeze_until="block2")
        frozen = {path for path, row in found.items() if row.until == FOREVER}
        assert frozen == {path for path in SHAPES if path.startswith(("stem", "block1"))}
        assert all(row.learning_rate == 0 for row in found.values() if row.until == FOREVER)

    def test_levels_thaw_from_the_head_inwards(self) -> None:
        found = rows(unfreeze_every=100)
        untils = [found[f"{level}/conv/kernel"].until for level in LEVELS]
        assert untils == [300, 200, 100, 0]
        assert found["block1/norm/mean"].until == 200
        found = rows(unfreeze_every=100, freeze_until="block1")
        assert found["stem/conv/bias"].until == FOREVER
        assert found["block1/conv/bias"].until == 200

    def test_a_rule_goes_before_the_options(self) -> None:
        found = rows(freeze_until="head", rule=("*/bias freeze=no",))
        assert found["stem/conv/bias"].until == 0
        assert found["stem/conv/kernel"].until == FOREVER

    def test_a_step_beyond_all_whole_numbers_of_a_device(self) -> None:
        """int32 holds none of these: the comparison is in floating point."""
        found = rows(unfreeze_every=2_000_000_000)["stem/conv/kernel"].until
        assert jnp.asarray(jnp.int32(5) >= found).item() is False

    def test_nothing_to_thaw(self) -> None:
        with pytest.raises(InputError, match="finds no level to thaw"):
            rows(unfreeze_every=10, freeze_until="head")

    def test_the_statistics_of_a_norm_are_frozen_together(self) -> None:
        with pytest.raises(InputError, match=r"some statistics of block1/norm .* block1/norm/\*"):
            rows(rule=("*/mean freeze",))

    def test_levels_that_are_not_there(self) -> None:
        with pytest.raises(InputError, match="its levels are stem, block1, block2, head"):
            rows(freeze_until="decoder1")

    @pytest.mark.parametrize("rule", ["* freeze", "* from_step=1000"])
    def test_nothing_left_to_train(self, rule: str) -> None:
        with pytest.raises(InputError, match="Every parameter is frozen"):
            rows(rule=(rule,))


def test_trained_and_frozen_parameters_are_taken_apart():
    rules = make_rules(PARAMETERS, options(rule=("stem/* freeze", "block1/* from_step=5")))
    params = nested({path: np.full(2, 3.0) for path in SHAPES if path not in rules.statistics()})
    trained, frozen = rules.separate(params)
    assert set(frozen) == {"stem"}
    assert set(trained) == {"block1", "block2", "head"}
    assert rules.statistics() == {"block1/norm/mean": 5, "block1/norm/var": 5}


def test_the_penalty_is_the_sum_of_squares_of_what_has_one():
    rules = make_rules(PARAMETERS, options(rule=("block2/conv/* l2=0.5", "stem/conv/bias l2=2")))
    params = {
        "block2": {"conv": {"kernel": np.full(4, 3.0)}},
        "stem": {"conv": {"bias": np.ones(3)}},
    }
    assert float(rules.penalty(params)) == 0.5 * 4 * 9 + 2 * 3
    assert make_rules(PARAMETERS, options()).penalty(params) is None
    assert math.isfinite(rules.rows["block2/conv/kernel"].l2)


def test_as_json_it_says_what_was_given_and_what_came_of_it():
    rules = make_rules(PARAMETERS, options(rule=("stem/*  freeze", "block1/* from_step=5")))
    found = json.loads(json.dumps(rules.to_json()))
    assert found["rules"] == ["stem/* freeze", "block1/* from_step=5"]
    assert found["parameters"]["stem/conv/bias"]["frozen_until"] == "the end"
    assert found["parameters"]["block1/norm/mean"] == {"frozen_until": 5}
    head = {"learning_rate": 0.03, "weight_decay": 0.01, "anchor": 0, "l2": 0, "frozen_until": 0}
    assert found["parameters"]["head/conv/kernel"] == head
