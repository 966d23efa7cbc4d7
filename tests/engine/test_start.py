"""What training starts from: which tensors are the pretrained ones, which are new."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.engine.config import Finetune
from voxtune.engine.model_dir import Contract, LabelClass, ModelSpec
from voxtune.engine.start import make_start
from voxtune.models.errors import InputError
from voxtune.models.parameters import shapes

SPEC = ModelSpec(
    family="meshnet",
    arguments={"channels": 1, "outputs": 2, "filters": 2, "dilations": [1], "norm": None},
    output_activation="softmax",
    classes=(LabelClass(0, "background"), LabelClass(1, "head")),
    contract=Contract("LIA", (1.0, 1.0, 1.0), "zscore", (16, 16, 16), 0.5),
)
RNG = np.random.default_rng(0)
PARAMETERS = {
    path: RNG.normal(size=shape).astype(np.float32)
    for path, shape in shapes("meshnet", SPEC.arguments).items()
}
TRUNK = {path for path in PARAMETERS if not path.startswith("head/")}
CLASSES = (LabelClass(0, "background"), LabelClass(7, "blob"), LabelClass(9, "other"))


def start(classes: tuple[LabelClass, ...] = CLASSES, **changes: Any) -> Any:
    config = Finetune(Path(), Path(), Path(), **changes)
    return make_start(SPEC, PARAMETERS, classes, SPEC.contract, config)


def test_the_trunk_is_the_pretrained_one_to_the_last_bit() -> None:
    found = start()
    assert found.parameters["head/kernel"].shape == (1, 1, 1, 2, 3)
    for path in TRUNK:
        assert np.asarray(found.parameters[path]).tobytes() == PARAMETERS[path].tobytes()
    assert {path for path, origin in found.origin.items() if origin == "loaded"} == TRUNK
    assert found.spec.classes == CLASSES
    assert found.spec.arguments["outputs"] == 3


def test_all_that_depends_on_the_classes_is_new() -> None:
    """VNet's last two convolutions have as many filters as there are classes."""
    arguments = {"channels": 1, "outputs": 2, "filters": 4, "depth": 1}
    spec = dataclasses.replace(SPEC, family="vnet", arguments=arguments)
    pretrained = {path: np.ones(shape) for path, shape in shapes("vnet", arguments).items()}
    config = Finetune(Path(), Path(), Path())
    found = make_start(spec, pretrained, CLASSES, SPEC.contract, config)
    new = {path for path, origin in found.origin.items() if origin != "loaded"}
    assert new == {f"head/{path}" for path in ("conv/kernel", "conv/bias", "kernel", "bias")}
    assert found.parameters["head/conv/kernel"].shape == (3, 3, 3, 4, 3)


def test_a_kept_head_is_the_pretrained_one() -> None:
    found = start(SPEC.classes, head="keep")
    assert set(found.origin.values()) == {"loaded"}
    for path, value in PARAMETERS.items():
        np.testing.assert_array_equal(found.parameters[path], value)


def test_a_head_cannot_be_kept_for_other_classes() -> None:
    with pytest.raises(InputError, match=r"--head keep .*1 head.* 7 blob.*--head new"):
        start(head="keep")


def test_random_loads_nothing() -> None:
    found = start(init="random", seed=3)
    assert set(found.origin.values()) == {"initialised from seed 3"}
    kernel = "block1/conv/kernel"
    assert not np.allclose(found.parameters[kernel], PARAMETERS[kernel])


def test_the_new_head_follows_the_seed() -> None:
    one, same_seed, other = (start(seed=seed).parameters["head/kernel"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same_seed)
    assert not np.allclose(one, other)


def test_random_and_pretrained_start_from_the_same_new_head() -> None:
    """So that a comparison of the two compares the trunk."""
    one, other = (start(init=init).parameters for init in ("pretrained", "random"))
    np.testing.assert_array_equal(one["head/kernel"], other["head/kernel"])
