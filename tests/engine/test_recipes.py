"""Recipes: sets of defaults that the command line starts from."""

from dataclasses import fields
from typing import get_args

import pytest

from voxtune.engine.cli import main
from voxtune.engine.config import Finetune
from voxtune.engine.options import RecipeName
from voxtune.engine.recipes import RECIPES, named_recipe


def test_each_recipe_sets_options_that_there_are():
    assert tuple(RECIPES) == get_args(RecipeName)
    names = {each.name for each in fields(Finetune)}
    for name, options in RECIPES.items():
        assert names.issuperset(options)
        assert options.get("recipe", "voxtune") == name


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("finetune a b c", {}),
        ("finetune a b c --recipe nobrainer", RECIPES["nobrainer"]),
        ("finetune --recipe=nobrainer a b c", RECIPES["nobrainer"]),
        ("finetune a b c --recipe voxtune", {}),
        ("finetune a b c --recipe nobrainer --recipe voxtune", {}),
        ("finetune a b c --recipe voxtune --recipe nobrainer", RECIPES["nobrainer"]),
        ("finetune a b c --recipe other", {}),
        ("finetune a b c --recipe", {}),
    ],
)
def test_the_command_line_names_one(line: str, wanted: dict):
    assert named_recipe(line.split()) == wanted


def test_the_guides_recipe():
    """Nobrainer's guide to transfer learning: l2(0.001) on kernels, Adam at 1e-5, jaccard."""
    recipe = RECIPES["nobrainer"]
    assert recipe["l2"] == 0.001
    assert recipe["trunk_lr"] == recipe["head_lr"] == 1e-5
    assert (recipe["optimizer"], recipe["loss"]) == ("adam", "jaccard")
    assert (recipe["schedule"], recipe["warmup"], recipe["clip"]) == ("constant", 0, 0)


def test_its_help_shows_its_defaults(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["finetune", "--recipe", "nobrainer", "--help"])
    assert "(default: jaccard)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("option", ["--rule", "--rename", "--labels"])
def test_a_list_given_twice_is_refused(option: str, capsys: pytest.CaptureFixture[str]):
    """The second would replace the first without a word."""
    assert main(["finetune", "a", "b", "c", option, "x", f"{option}=y"]) == 2
    assert (
        capsys.readouterr().err
        == f"voxtune: {option} is given twice; give all its values after one.\n"
    )


def test_underscores_are_dashes_there_too(capsys: pytest.CaptureFixture[str]):
    assert (
        main(["finetune", "a", "b", "c", "--class_weights", "1", "2", "--class-weights", "3"]) == 2
    )
    assert "--class-weights is given twice" in capsys.readouterr().err
