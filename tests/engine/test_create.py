"""Model directories with fresh weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from voxtune.converters.families import ORIGINALS
from voxtune.engine.cli import main
from voxtune.engine.model_dir import read_model
from voxtune.engine.options import FamilyName
from voxtune.models.families import FAMILIES, build
from voxtune.models.parameters import by_path

SMALL = ("--arguments", "outputs=3", "filters=2", "depth=1", "norm=instance")


def test_every_family_can_be_named() -> None:
    assert set(get_args(FamilyName)) == ORIGINALS.keys() == FAMILIES.keys() - {"graph"}


def test_a_fresh_network(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    options = ("--seed", "3", "--block", "8", "8", "16", "--classes", "air", "bone", "brain")
    assert main(["create", "unet", str(folder), *SMALL, *options]) == 0
    spec, parameters = read_model(folder)
    wanted = by_path(build("unet", spec.arguments, seed=3))
    assert parameters.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(parameters[path], value)
    assert spec.arguments == {
        "channels": 1,
        "outputs": 3,
        "filters": 2,
        "depth": 1,
        "norm": "instance",
        "fold": False,
    }
    assert (spec.output_activation, spec.contract.block) == ("softmax", (8, 8, 16))
    assert [each.name for each in spec.classes] == ["air", "bone", "brain"]
    assert json.loads((folder / "creation.json").read_text()) == {"seed": 3}


def test_one_class_by_default(tmp_path: Path) -> None:
    given = ("--arguments", "filters=1", "dilations=1,", "--threshold", "0.4")
    assert main(["create", "meshnet", str(tmp_path / "model"), *given]) == 0
    spec, _ = read_model(tmp_path / "model")
    assert (spec.output_activation, spec.contract.threshold) == ("sigmoid", 0.4)
    assert [each.value for each in spec.classes] == [0, 1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--arguments", "filters=0"), "'filters' is a whole number above zero, not 0"),
        (("--arguments", "wings=2"), "no argument 'wings'; its arguments: channels, outputs"),
        (("--arguments", "norm=layer"), "'norm' is 'batch' or 'group' or 'instance' or none"),
        (("--arguments", "filters"), "NAME=VALUE"),
        ((*SMALL, "--block", "8", "8", "7"), "multiple of 2"),
        ((*SMALL, "--classes", "a", "b"), "--classes names 2 classes"),
        ((*SMALL, "--orientation", "RAX"), "RAX"),
        ((*SMALL, "--threshold", "2"), "threshold"),
        ((*SMALL, "--seed", "-1"), "--seed -1 makes no sense"),
        ((*SMALL, "--seed", str(10**20)), "makes no sense"),
    ],
)
def test_what_is_not_possible_is_a_sentence(
    refused: Callable[..., str], tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    assert says in refused("create", "unet", tmp_path / "model", *options)


def test_a_model_that_is_there_is_kept(refused: Callable[..., str], tmp_path: Path) -> None:
    given = ("create", "unet", tmp_path / "model", *SMALL, "--block", "8", "8", "8")
    assert main([str(each) for each in given]) == 0
    assert "exists" in refused(*given)
