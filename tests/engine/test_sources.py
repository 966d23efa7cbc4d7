"""Weights of another model, by `--init-from` and `--rename`: where each of its tensors goes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxtune.engine.config import Finetune
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec, write_model
from voxtune.engine.start import Start, make_start
from voxtune.models.errors import InputError
from voxtune.models.families import FAMILIES
from voxtune.models.graph import Graph, GraphCall, GraphLayer
from voxtune.models.layers import Head
from voxtune.models.meshnet import MeshNet
from voxtune.models.parameters import shapes

Tensors = dict[str, np.ndarray]
SPEC = ModelSpec(
    family="meshnet",
    arguments={"channels": 1, "outputs": 2, "filters": 2, "dilations": [1], "norm": "batch"},
    output_activation="softmax",
    classes=(LabelClass(0, "background"), LabelClass(1, "head")),
    contract=Contract("LIA", (1.0, 1.0, 1.0), "zscore", (16, 16, 16), 0.3),
)
CLASSES = (LabelClass(0, "background"), LabelClass(7, "blob"), LabelClass(9, "other"))
MORE = (*SPEC.classes, LabelClass(9, "other"))
PREVALENCE = np.array([0.7, 0.2, 0.1])
FIRST, HEAD = "block1/conv/kernel", {"head/kernel", "head/bias"}


def tensors_of(spec: ModelSpec, seed: int = 0) -> Tensors:
    random = np.random.default_rng(seed)
    return {
        path: random.uniform(0.1, 1, shape).astype(np.float32)
        for path, shape in shapes(spec.family, spec.arguments).items()
    }


def altered(spec: ModelSpec = SPEC, **changes: Any) -> ModelSpec:
    """A spec with other arguments, and other attributes where it has those."""
    fields = {each.name for each in dataclasses.fields(spec)}
    own = {name: value for name, value in changes.items() if name in fields}
    arguments = {**spec.arguments, **{k: v for k, v in changes.items() if k not in own}}
    return dataclasses.replace(spec, **{"arguments": arguments, **own})


PARAMETERS = tensors_of(SPEC)
TRUNK = PARAMETERS.keys() - HEAD


def start(
    classes: tuple[LabelClass, ...] = CLASSES,
    spec: ModelSpec = SPEC,
    channels: tuple[str, ...] | None = None,
    parameters: Tensors | None = None,
    prevalence: np.ndarray = PREVALENCE,
    **options: Any,
) -> Start:
    """The start of a run; the tensors are 0.1 to 1 unless given."""
    config = Finetune(Path("model"), "subjects.csv", Path(), **options)
    contract = dataclasses.replace(spec.contract, channels=channels)
    given = tensors_of(spec) if parameters is None else parameters
    return make_start(spec, given, classes, contract, prevalence[: len(classes)], config)


def logits(spec: ModelSpec, tensors: Tensors, x: np.ndarray) -> np.ndarray:
    """What a network gives."""
    return np.asarray(spec.network(tensors)(jnp.asarray(x, jnp.float32)), np.float64)


def scan(channels: int = 1) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(1, 4, 4, 4, channels))


class TwoHeads(MeshNet):
    """With a second head beside the last."""

    def __init__(self, *, channels: int = 1, outputs: int, rngs: nnx.Rngs) -> None:
        super().__init__(channels=channels, outputs=outputs, filters=2, dilations=(1,), rngs=rngs)
        self.side = Head(2, outputs, rngs=rngs)

    @property
    def head_paths(self) -> tuple[str, ...]:
        return ("head", "side")


@pytest.fixture
def other(tmp_path: Path) -> Callable[..., tuple[Path, Tensors]]:
    """Writes a model directory with other weights; gives it and those."""

    def write(name: str = "other", **changes: Any) -> tuple[Path, Tensors]:
        spec, folder = altered(**changes), tmp_path / name
        tensors = tensors_of(spec, seed=5)
        write_model(folder, spec, tensors, history={})
        return folder, tensors

    return write


def test_weights_of_another_model_go_where_they_fit(other: Any) -> None:
    folder, theirs = other()
    found = start(init_from=folder)
    for path in TRUNK:
        np.testing.assert_array_equal(found.parameters[path], theirs[path])
        assert found.origin[path].detail == f"loaded from {folder}"
    assert found.pretrained == TRUNK
    assert found.dropped == {
        **dict.fromkeys(HEAD, "the last layer is new"),
        **dict.fromkeys(TRUNK, f"replaced by that of {folder}"),
        **dict.fromkeys((f"{folder}: {path}" for path in HEAD), "the last layer is new"),
    }


def test_a_map_moves_exactly_what_it_says(other: Any) -> None:
    folder, theirs = other(dilations=[1, 1])
    spec = altered(dilations=[1, 1, 1])
    entries = ("block2=block3", "block1/norm=", "head=")
    found, mine = start(spec=spec, init_from=folder, rename=entries), tensors_of(spec)
    for path, value in found.parameters.items():
        if path in HEAD:
            continue
        source = path.replace("block3", "block2") if not path.startswith("block2") else "none"
        kept = source == "none" or path.startswith("block1/norm")
        np.testing.assert_array_equal(value, mine[path] if kept else theirs[source])
        assert found.origin[path].detail == (
            "loaded" if kept else f"loaded from {folder}" + f": {source}" * (source != path)
        )
    assert found.dropped[f"{folder}: block1/norm/mean"] == "left out by --rename"


def test_the_head_of_another_model_is_taken_where_it_tells_the_same_classes(other: Any) -> None:
    folder, theirs = other()
    kept = start(SPEC.classes, head="keep", init_from=folder)
    np.testing.assert_array_equal(kept.parameters["head/kernel"], theirs["head/kernel"])
    assert kept.dropped == dict.fromkeys(PARAMETERS, f"replaced by that of {folder}")
    extended = start(MORE, head="extend", init_from=folder)
    np.testing.assert_array_equal(
        extended.parameters["head/kernel"][..., :2], theirs["head/kernel"]
    )
    text = f"adapted from {folder}: 2 classes kept, 1 added"
    assert extended.origin["head/bias"].detail == text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": CLASSES[:2]}, "its classes are others"),
        ({"outputs": 3, "classes": CLASSES}, "the last layer has another shape"),
    ],
)
def test_the_head_is_the_models_where_the_other_has_another(
    other: Any, changes: dict[str, Any], reason: str
) -> None:
    folder, theirs = other(**changes)
    found = start(SPEC.classes, head="keep", init_from=folder)
    for path in HEAD:
        np.testing.assert_array_equal(found.parameters[path], PARAMETERS[path])
        assert found.dropped[f"{folder}: {path}"] == reason
    np.testing.assert_array_equal(found.parameters[FIRST], theirs[FIRST])


def test_a_head_that_is_not_there_as_a_whole_is_the_models(
    other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = other()
    found = start(SPEC.classes, head="keep", init_from=folder, rename=("head/bias=",))
    assert found.dropped[f"{folder}: head/kernel"] == "not all of the last layer is there"
    monkeypatch.setitem(cast(dict[str, type], FAMILIES), "two", TwoHeads)
    arguments = {"channels": 1, "outputs": 2}
    folder, _ = other("two", family="two", arguments={"outputs": 3}, classes=CLASSES)
    spec = dataclasses.replace(SPEC, family="two", arguments=arguments)
    found = start(SPEC.classes, spec, head="keep", init_from=folder)
    assert found.dropped[f"{folder}: side/bias"] == "the last layers have other shapes"


def named(*channels: str, spec: ModelSpec = SPEC) -> Contract:
    return dataclasses.replace(spec.contract, channels=channels)


def test_channels_of_another_model_go_where_their_names_are(other: Any) -> None:
    """What that model gave of its images, the new network gives of them in its own order."""
    folder, theirs = other(channels=2, contract=named("t1", "flair"))
    spec = altered(channels=2, contract=named("flair", "t1"))
    found = start(SPEC.classes, spec, ("flair", "t1"), head="keep", init_from=folder)
    before = logits(altered(channels=2), theirs, scan(2))
    np.testing.assert_allclose(
        logits(found.spec, found.parameters, scan(2)[..., ::-1]), before, rtol=1e-5
    )
    text = f"adapted from {folder}: 2 channels in another order"
    assert found.origin[FIRST].detail == text
    assert found.notes == ("channels: flair, t1",)


def test_a_channel_that_another_model_lacks_is_new(other: Any) -> None:
    folder, theirs = other(contract=named("flair"))
    options: Any = {"head": "keep", "init_from": folder, "new_channels": "zero"}
    found = start(SPEC.classes, SPEC, ("t1", "flair"), **options)
    assert not np.any(found.parameters[FIRST][..., 0, :])
    np.testing.assert_array_equal(found.parameters[FIRST][..., 1:, :], theirs[FIRST])
    assert found.notes == (
        "channels: t1 in the place of the model's only one, flair new",
        f"channels of {folder}: t1 new, flair",
    )
    unnamed, _ = other("unnamed")
    found = start(SPEC.classes, SPEC, ("t1", "flair"), **{**options, "init_from": unnamed})
    assert not np.any(found.parameters[FIRST][..., 1, :])
    note = f"channels of {unnamed}: t1 in the place of its only one, flair new"
    assert found.notes[1:] == (note,)


READS = {"first": ("x",), "join": ("x", "first"), "second": ("join",), "head": ("second",)}


def test_kernels_that_cannot_be_put_in_another_order_are_a_sentence(other: Any) -> None:
    layers = {name: ("Conv3D", {"filters": 2, "kernel_size": 1}) for name in READS}
    layers["join"] = ("Concatenate", {})
    graph = Graph(
        tuple(GraphLayer(name, *each) for name, each in layers.items()),
        tuple(GraphCall(name, name, reads) for name, reads in READS.items()),
        {"x": (None, None, None, 2)},
        ("head",),
    )
    arguments = {"graph": graph.to_json(), "channels": 2, "outputs": 2}
    contract = named("flair", "t1")
    spec = dataclasses.replace(SPEC, family="graph", arguments=arguments, contract=contract)
    theirs = named("t1", "flair")
    folder, _ = other(family="graph", arguments=spec.arguments, contract=theirs)
    with pytest.raises(InputError, match="second/kernel reads the image together with other"):
        start(MORE, spec, ("flair", "t1"), init_from=folder)


def test_another_models_preprocessing_is_noted(other: Any) -> None:
    contract = dataclasses.replace(
        SPEC.contract, orientation="RAS", spacing_mm=None, intensity="minmax"
    )
    folder, _ = other(contract=contract)
    assert start(init_from=folder).notes == (
        f"{folder} was trained with the orientation RAS, this run has LIA",
        f"{folder} was trained with the voxel size of each scan, this run has 1 x 1 x 1 mm",
        f"{folder} was trained with the intensity scaling minmax, this run has zscore",
    )


def test_channels_of_another_model_are_adapted_too(other: Any) -> None:
    folder, theirs = other()
    found = start(channels=("t1", "t2"), init_from=folder)
    text = f"adapted from {folder}: 1 channel copied to 2, divided by 2"
    assert found.origin[FIRST].detail == text
    np.testing.assert_array_equal(found.parameters[FIRST][..., :1, :], theirs[FIRST] / 2)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {"init": "random"}, "--init random starts from no pretrained weights"),
        ({"filters": 3}, {}, "shape 3, but block1/conv/bias .* has 2; leave it out"),
        ({"channels": 2}, {}, "shape 3x3x3x2x2, but .* has 3x3x3x1x2; leave it out with --rename"),
        (
            {},
            {"rename": ("block2=block1",)},
            r"block2=block1: .* has no block2; .* block1\b",
        ),
        (
            {},
            {"rename": ("block1=",)},
            "gives .* nothing. .*: left out by --rename; leave",
        ),
        (
            {
                "family": "vnet",
                "arguments": {"channels": 1, "outputs": 2, "filters": 4, "depth": 1},
            },
            {},
            "nothing. .*: the network has no .*--rename",
        ),
    ],
)
def test_another_model_that_does_not_fit_is_a_sentence(
    other: Any, changes: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    folder, _ = other(**changes)
    with pytest.raises(InputError, match=words):
        start(init_from=folder, **options)


def test_a_map_needs_another_model() -> None:
    with pytest.raises(InputError, match="--rename says where the weights of --init-from go"):
        start(rename=("a=b",))


@pytest.mark.parametrize(
    ("known", "given", "note"),
    [
        (("t1", "t2"), ("t1", "t2"), "channels: t1, t2"),
        (("t1", "t2"), ("flair", "t2"), "channels: flair in the place of t1, t2"),
        (None, ("t1", "t2"), "channels: t1 in the place of the model's channel 1, t2 in the place"),
        (("t1", "t2"), ("t1", "t2", "flair"), "channels: t1, t2, flair new"),
    ],
)
def test_it_is_noted_which_image_takes_which_place(
    known: tuple[str, ...] | None, given: tuple[str, ...], note: str
) -> None:
    contract = dataclasses.replace(SPEC.contract, channels=known)
    spec = altered(channels=2, contract=contract)
    assert start(spec=spec, channels=given).notes[0].startswith(note)


def test_one_channel_under_its_own_name_is_nothing_to_note() -> None:
    spec = altered(contract=named("t1"))
    assert start(spec=spec, channels=("t1",)).notes == start(spec=spec).notes == ()
    assert start(channels=("t1", "t2"), init="random").notes == ()
