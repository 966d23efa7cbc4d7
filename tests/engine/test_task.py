"""What is learned: classes by what the labels, the model and the options say."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxtune.engine.case import Case, contents_of
from voxtune.engine.config import Finetune
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec
from voxtune.engine.task import (
    check_labels,
    classes_of,
    contract_of,
    full_block,
    label_counts,
    prevalence_of,
    spec_of,
)
from voxtune.models.errors import InputError
from voxtune.models.families import abstract
from voxtune.models.graph import Graph, GraphCall, GraphLayer

# The classes are not in the order of their values.
OLD = (LabelClass(0, "background"), LabelClass(9, "pons"), LabelClass(4, "cortex"))
SPEC = ModelSpec(
    family="meshnet",
    arguments={"channels": 1, "outputs": 3, "filters": 2, "dilations": [1], "norm": None},
    output_activation="softmax",
    classes=OLD,
    contract=Contract("LIA", (1.0, 1.0, 1.0), "zscore", (16, 16, 16), 0.5),
)
IMAGES = dataclasses.replace(SPEC, classes=())
MANY = dataclasses.replace(
    SPEC, classes=tuple(LabelClass(value, f"class {value}") for value in range(256))
)


def config(**changes: Any) -> Finetune:
    return Finetune(Path("model"), "subjects.csv", Path(), **changes)


def cases(*labels: list[int]) -> list[Case]:
    """Subjects with these label values, a voxel each."""
    found = []
    for values in labels:
        label = np.array(values, np.uint8).reshape(-1, 1, 1)
        contents = contents_of(label)
        shape = (len(values), 1, 1)
        found.append(Case("a", None, None, label, np.eye(4), *contents, shape, (1.0, 1.0, 1.0)))
    return found


def classes(*values: int, spec: ModelSpec = SPEC, **changes: Any) -> tuple[LabelClass, ...]:
    """The classes for these label values."""
    return classes_of(config(**changes), spec, dict.fromkeys(values, 1))


def test_a_new_head_has_the_classes_found_or_named() -> None:
    assert [each.value for each in classes(0, 2, 1)] == [0, 1, 2]
    named = classes(0, 2, 1, labels=("2=two", "1=one"))
    assert named == (LabelClass(0, "background"), LabelClass(1, "one"), LabelClass(2, "two"))


def test_a_kept_head_has_the_models_classes_in_its_order() -> None:
    assert classes(0, 4, head="keep") == OLD
    named = classes(0, 4, head="keep", labels=("4=grey", "9=bridge"))
    assert named == (OLD[0], LabelClass(9, "bridge"), LabelClass(4, "grey"))


def test_an_extended_head_has_new_classes_after_the_models() -> None:
    found = classes(0, 1, 4, 7, head="extend")
    assert found == (*OLD, LabelClass(1, "class 1"), LabelClass(7, "class 7"))
    named = classes(0, 1, 4, 7, head="extend", labels=("7=lesion", "4=grey", "1=cyst"))
    assert named[:2] == OLD[:2]
    assert named[2:] == (LabelClass(4, "grey"), LabelClass(1, "cyst"), LabelClass(7, "lesion"))


def test_an_image_has_no_classes() -> None:
    assert classes(0, 1, loss="mean_squared_error") == ()
    with pytest.raises(InputError, match="--labels names classes, but --loss mean_absolute_error"):
        classes(0, 1, loss="mean_absolute_error", labels=("1=lesion",))


@pytest.mark.parametrize(
    ("values", "changes", "words"),
    [
        ((0, 1), {"labels": ("1=one", "2=two")}, "no voxel of 2 two"),
        ((0,), {}, "no voxel of any class but background"),
        ((0, 4), {"head": "extend", "labels": ("1=cyst",)}, "no voxel of 1 cyst"),
        ((0, 4, 9), {"head": "extend"}, "are all the model's.*--head keep"),
        ((0, 9), {"head": "keep", "labels": ("9=pons",)}, "--head keep needs the model's own"),
        ((0, 1), {"head": "extend", "labels": ("1=pons",)}, "9 and 1 are both called 'pons'"),
        ((0, 1), {"head": "keep", "spec": IMAGES}, "no classes to keep"),
        ((0, 1), {"head": "extend", "spec": IMAGES}, "no classes to keep"),
        (tuple(range(256)), {}, "256 classes, 255 are the most; name those"),
        ((0, 1), {"head": "keep", "spec": MANY}, "256 classes, 255 are the most; pass --head new"),
        ((0, 1), {"labels": ("one",)}, "VALUE=NAME"),
        ((0, 1), {"labels": ("1=mean",)}, "taken already"),
        ((0, 1), {"labels": ("70000=far",)}, "a value above 65535"),
        ((0, 1), {"labels": ("-1=less",)}, "VALUE=NAME"),
    ],
)
def test_classes_that_cannot_be_are_a_sentence(
    values: tuple[int, ...], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        classes(*values, **changes)


def test_prevalence_counts_the_voxels_of_all_classes() -> None:
    """3 of 8 voxels are background; those of 5, which is no class, do not count."""
    counts = label_counts(cases([0, 0, 9, 9, 9], [0, 4, 4, 5]))
    assert counts == {0: 3, 9: 3, 4: 2, 5: 1}
    np.testing.assert_array_equal(prevalence_of(counts, OLD), [3 / 8, 3 / 8, 2 / 8])
    assert prevalence_of(counts, ()).shape == (0,)


def test_an_ignored_label_counts_for_nothing() -> None:
    counts = label_counts(cases([0, 0, 9, 5, 5], [0, 4, 4, 5]), ignored=5)
    assert counts == {0: 3, 9: 1, 4: 2}
    assert [each.value for each in classes(*counts)] == [0, 4, 9]
    np.testing.assert_array_equal(prevalence_of(counts, OLD), [3 / 6, 1 / 6, 2 / 6])
    with pytest.raises(InputError, match="are all the model's"):
        classes(*counts, head="extend")


def test_label_values_that_are_no_class_are_a_sentence() -> None:
    check_labels(cases([0, 9, 4, 5]), OLD, ignored=5)
    with pytest.raises(
        InputError, match=r"subject a has label values that are no class \(5, 7\); the cl"
    ):
        check_labels(cases([0, 4], [0, 7, 5]), OLD)


def test_classes_found_have_the_names_of_the_store() -> None:
    named = classes_of(config(), SPEC, {0: 1, 3: 1, 7: 1}, {3: "pons", 9: "other"})
    assert [each.name for each in named] == ["background", "pons", "class 7"]
    # The names of two would be one, so none is taken.
    unnamed = classes_of(config(), SPEC, {0: 1, 3: 1, 7: 1}, {3: "pons", 7: "pons"})
    assert [each.name for each in unnamed] == ["background", "class 3", "class 7"]


def test_the_contract_takes_block_and_channels() -> None:
    found = contract_of(SPEC, config(block=(8, 8, 8)), ("t1", "flair"), cases([0]))
    assert (found.block, found.channels) == ((8, 8, 8), ("t1", "flair"))
    unnamed = contract_of(SPEC, config(), ("image",), cases([0]))
    assert (unnamed.block, unnamed.channels) == ((16, 16, 16), None)


def test_a_full_block_holds_the_largest_scan() -> None:
    """Its axes are multiples of what the network halves its blocks by: 8 for a U-Net."""
    unet = dataclasses.replace(SPEC, family="unet", arguments={"channels": 1, "outputs": 3})
    given = cases([0] * 17, [0] * 5)
    assert contract_of(unet, config(block="full"), ("image",), given).block == (24, 8, 8)
    assert contract_of(SPEC, config(block="full"), ("image",), given).block == (17, 1, 1)


def test_a_full_block_splits_over_the_devices_of_its_depth() -> None:
    """A U-Net wants 8 slices a device, and 16 on two; the MeshNet of dilation 1 any number."""
    unet = dataclasses.replace(SPEC, family="unet", arguments={"channels": 1, "outputs": 3})
    for spec, shards, depth in ((unet, 2, 32), (unet, 4, 32), (unet, 8, 64), (SPEC, 4, 20)):
        found = contract_of(spec, config(block="full"), ("image",), cases([0] * 17), shards)
        assert found.block[0] == depth
    # A scan of 256 slices needs no padding.
    assert full_block(abstract("unet", unet.arguments), cases([0] * 256), 8) == (256, 8, 8)


def test_a_block_that_does_not_split_is_a_sentence() -> None:
    """Whether the model says it or --block."""
    for changes, depth in (({}, 16), ({"block": (8, 16, 16)}, 8)):
        said = f"{depth} slices .* over 3 devices.* --block of {depth // 3 * 3} slices, or --mesh"
        with pytest.raises(InputError, match=said):
            contract_of(SPEC, config(**changes), ("image",), cases([0]), 3)


def test_blocks_are_split_or_refused_before_a_scan_is_read(
    refused: Any, finetune: Any, model_dir: Path, table: Path
) -> None:
    (table.parent / "a.nii").unlink()
    given = finetune(model_dir, table)
    given[given.index("--mesh") + 1] = "data=1,spatial=3"
    assert "8 slices cannot be split along depth over 3 devices" in refused(*given)
    assert "a.nii" in refused(*given, "--block", "full")


def outputs(classes: tuple[LabelClass, ...], spec: ModelSpec = SPEC, **changes: Any) -> Any:
    found = spec_of(spec, classes, spec.contract, config(**changes))
    return found.arguments["outputs"], found.output_activation


def test_outputs_and_activation_follow_from_the_head() -> None:
    two, four = OLD[:2], (*OLD, LabelClass(1, "cyst"))
    sigmoid = dataclasses.replace(
        SPEC, arguments={**SPEC.arguments, "outputs": 1}, output_activation="sigmoid", classes=two
    )
    linear = dataclasses.replace(SPEC, output_activation="linear")
    assert outputs(two) == (2, "softmax")
    assert outputs(two, activation="sigmoid") == (1, "sigmoid")
    assert outputs(two, sigmoid, head="keep") == (1, "sigmoid")
    assert outputs((*two, four[3]), sigmoid, head="extend") == (3, "softmax")
    assert outputs(four, linear, head="extend") == (4, "linear")
    assert outputs((), loss="mean_squared_error", activation="sigmoid") == (1, "linear")
    image = dataclasses.replace(sigmoid, output_activation="linear", classes=())
    assert outputs((), image, loss="mean_squared_error", head="keep") == (1, "linear")
    with pytest.raises(InputError, match="probabilities, by a sigmoid; pass --head new"):
        outputs((), sigmoid, loss="mean_squared_error", head="keep")


def test_a_new_head_has_a_threshold_of_its_own() -> None:
    spec = dataclasses.replace(SPEC, contract=dataclasses.replace(SPEC.contract, threshold=0.3))
    classes = (*OLD, LabelClass(1, "cyst"))
    found = {
        head: spec_of(spec, given, spec.contract, config(head=head)).contract.threshold
        for head, given in (("new", OLD), ("keep", OLD), ("extend", classes))
    }
    assert found == {"new": 0.5, "keep": 0.3, "extend": 0.3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation": "sigmoid"}, "--activation sigmoid has one output.*9 pons, 4 cortex"),
        ({"loss": "mean_squared_error", "head": "extend"}, "no classes to extend"),
        ({"loss": "mean_squared_error", "head": "keep"}, "model has 3 outputs; pass --head new"),
    ],
)
def test_a_head_that_cannot_be_is_a_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        outputs(OLD, **changes)


def test_the_kept_classes_come_first() -> None:
    with pytest.raises(ValueError, match="do not begin with"):
        outputs((OLD[0], OLD[2], OLD[1]), head="keep")


def test_the_new_head_of_a_graph_gives_logits() -> None:
    layer = GraphLayer("a", "Conv3D", {"filters": 3, "kernel_size": 1, "activation": "relu"})
    graph = Graph((layer,), (GraphCall("a", "a", ("x",)),), {"x": (None, None, None, 1)}, ("a",))
    arguments = {"graph": graph.to_json(), "channels": 1, "outputs": 3}
    spec = dataclasses.replace(SPEC, family="graph", arguments=arguments)
    found = spec_of(spec, OLD, spec.contract, config())
    assert found.arguments["graph"]["layers"][0]["config"]["activation"] == "linear"
    kept = spec_of(spec, OLD, spec.contract, config(head="keep"))
    assert kept.arguments == arguments
    with pytest.raises(InputError, match=r"last layer of model ends in relu"):
        spec_of(spec, (*OLD, LabelClass(1, "cyst")), spec.contract, config(head="extend"))
