"""Model directories: what goes in comes out, and a broken one is a sentence."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import (
    LabelClass,
    ModelSpec,
    check_block,
    check_predictable,
    gives_image,
    prediction_channels,
    read_model,
    save_threshold,
    trained_on,
    training_channels,
    write_model,
)
from voxtune.models.errors import InputError
from voxtune.models.parameters import by_path, shapes

ARGUMENTS = {
    "channels": 1,
    "outputs": 3,
    "filters": 2,
    "dilations": [1],
    "activation": "elu",
    "norm": "batch",
    "dropout": 0.25,
}
SPEC = ModelSpec(
    family="meshnet",
    arguments=ARGUMENTS,
    output_activation="softmax",
    classes=(LabelClass(0, "background"), LabelClass(17, "hippocampus"), LabelClass(53, "Käse")),
    contract=Contract("LIA", (1.0, 1.25, 0.5), "quantile", (8, 16, 24), 0.3),
)
RNG = np.random.default_rng(0)
PARAMETERS = {
    path: RNG.normal(size=shape).astype(np.float32)
    for path, shape in shapes("meshnet", ARGUMENTS).items()
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory, not to be altered."""
    folder = tmp_path_factory.mktemp("models") / "model"
    write_model(folder, SPEC, PARAMETERS, history={"conversion": {"file": "net.h5"}})
    return folder


@pytest.fixture
def model_dir(original: Path, tmp_path: Path) -> Path:
    """A model directory to be altered."""
    return shutil.copytree(original, tmp_path / "model")


def test_what_goes_in_comes_out(original: Path):
    spec, parameters = read_model(original)
    assert spec == SPEC
    assert parameters.keys() == PARAMETERS.keys()
    for path, value in PARAMETERS.items():
        np.testing.assert_array_equal(parameters[path], value)
    assert json.loads((original / "conversion.json").read_text()) == {"file": "net.h5"}


def test_the_network_has_these_parameters(original: Path):
    spec, parameters = read_model(original)
    found = by_path(spec.network(parameters))
    assert found.keys() == PARAMETERS.keys()
    assert all((found[path] == value).all() for path, value in PARAMETERS.items())
    assert spec.network(parameters)(jnp.ones((1, 3, 3, 3, 1))).shape == (1, 3, 3, 3, 3)
    assert spec.names == {0: "background", 17: "hippocampus", 53: "Käse"}


def test_a_scan_may_keep_its_own_spacing(tmp_path: Path):
    contract = dataclasses.replace(SPEC.contract, spacing_mm=None)
    spec = dataclasses.replace(SPEC, contract=contract)
    write_model(tmp_path / "own", spec, PARAMETERS, history={})
    assert read_model(tmp_path / "own")[0] == spec


def several(channels: int, *names: str) -> ModelSpec:
    """A network of several channels, with names where there are any."""
    contract = dataclasses.replace(SPEC.contract, channels=names or None)
    return dataclasses.replace(
        SPEC, arguments={**ARGUMENTS, "channels": channels}, contract=contract
    )


def values_of(spec: ModelSpec) -> dict[str, np.ndarray]:
    return {path: np.zeros(shape) for path, shape in shapes(spec.family, spec.arguments).items()}


def test_channels_keep_their_names(tmp_path: Path):
    spec = several(2, "t1", "flair")
    write_model(tmp_path / "two", spec, values_of(spec), history={})
    assert read_model(tmp_path / "two")[0] == spec
    assert spec.channels == 2


def test_an_older_model_json_names_no_channels(model_dir: Path):
    path = model_dir / "model.json"
    document = json.loads(path.read_text())
    del document["contract"]["channels"]
    path.write_text(json.dumps(document))
    spec, _ = read_model(model_dir)
    assert spec == SPEC
    assert spec.contract.channels is None
    assert spec.channels == 1


def test_what_is_expected_of_scans_is_kept(tmp_path: Path):
    contract = dataclasses.replace(SPEC.contract, quantiles=(-1.5, -0.5, 0.0, 0.25, 3.0))
    spec = dataclasses.replace(SPEC, contract=contract)
    write_model(tmp_path / "known", spec, PARAMETERS, history={})
    assert read_model(tmp_path / "known")[0] == spec
    path = tmp_path / "known" / "model.json"
    document = json.loads(path.read_text())
    del document["contract"]["quantiles"]  # as older ones have it
    path.write_text(json.dumps(document))
    assert read_model(tmp_path / "known")[0] == SPEC


class TestThreshold:
    def test_nothing_else_of_the_file_changes(self, model_dir: Path):
        path = model_dir / "model.json"
        before = path.read_text()
        save_threshold(model_dir, 0.45)
        assert path.read_text() == before.replace('"threshold": 0.3', '"threshold": 0.45')
        assert read_model(model_dir)[0].threshold is None  # of three classes
        assert read_model(model_dir)[0].contract.threshold == 0.45

    @pytest.mark.parametrize("shape", ["one line", "another one before", "none"])
    def test_whatever_shape_it_has(self, model_dir: Path, shape: str):
        path = model_dir / "model.json"
        document = json.loads(path.read_text())
        if shape == "none":  # 0.5, that is
            del document["contract"]["threshold"]
        if shape == "another one before":
            document = {"classes": [{"threshold": 0.3}], "contract": document["contract"]}
        path.write_text(json.dumps(document))
        save_threshold(model_dir, 0.45)
        document["contract"]["threshold"] = 0.45
        assert json.loads(path.read_text()) == document

    def test_a_broken_one_is_a_sentence(self, model_dir: Path):
        (model_dir / "model.json").write_text('{"contract": [')
        with pytest.raises(InputError, match=r"model.json cannot be read"):
            save_threshold(model_dir, 0.45)

    def test_who_was_trained_on_is_known_where_it_is_said(self, model_dir: Path):
        assert trained_on(model_dir) == frozenset()
        (model_dir / "finetune.json").write_text('{"train": ["a", "b"]}')
        assert trained_on(model_dir) == {"a", "b"}
        (model_dir / "finetune.json").write_text('{"train": ["a"]}' + " " * 2**24)
        assert trained_on(model_dir) == frozenset()  # too large to be one
        (model_dir / "finetune.json").write_text("[1]")
        assert trained_on(model_dir) == frozenset()


def test_a_graph_takes_the_channels_of_its_input():
    head = {"name": "head", "kind": "Activation", "config": {"activation": "linear"}}
    graph = {
        "layers": [head],
        "calls": [{"name": "head", "layer": "head", "inputs": ["image"]}],
        "inputs": {"image": [8, 8, 8, 3]},
        "outputs": ["head"],
    }
    spec = dataclasses.replace(SPEC, family="graph", arguments={"graph": graph, "outputs": 3})
    assert spec.channels == 3


@pytest.mark.parametrize("names", [(), ("image",), ("t1", "flair")])
def test_images_are_taken_by_name_where_both_sides_have_names(names: tuple[str, ...]):
    spec, folder = several(len(names) or 2, *names), Path("model")
    if names == ("t1", "flair"):
        assert prediction_channels(spec, folder, ("flair", "t2", "t1")) == names
        with pytest.raises(InputError, match=r"channels t1, flair, .* no image_t1 and no image_fl"):
            prediction_channels(spec, folder, ("t2", "pd"))
    else:
        given = ("flair", "t1")[: spec.channels]
        assert prediction_channels(spec, folder, given) == given
        with pytest.raises(InputError, match=rf"{spec.channels} channel.* are 3 .*t2"):
            prediction_channels(spec, folder, ("flair", "t1", "t2"))


def test_an_image_without_a_name_is_the_channel_of_a_network_of_one():
    folder = Path("model")
    assert prediction_channels(several(1, "t1"), folder, ("image",)) == ("image",)
    for spec, columns in ((several(2), "2 columns image_NAME"), (several(2, "a", "b"), "image_b")):
        with pytest.raises(InputError, match=rf"2 channels, but there is 1 .*{columns}"):
            prediction_channels(spec, folder, ("image",))


@pytest.mark.parametrize(
    ("names", "given", "wanted"),
    [
        (("t1", "flair"), ("flair", "t1"), ("t1", "flair")),
        (("t1", "flair"), ("t2", "flair", "t1"), ("t1", "flair", "t2")),
        (("t1", "flair"), ("flair", "t1c", "t2"), ("t1c", "flair", "t2")),
        (("t1", "flair"), ("t1c", "t2"), ("t1c", "t2")),
        (("t1",), ("image",), ("image",)),
        (("image",), ("t1", "t2"), ("t1", "t2")),
        ((), ("t1", "t2"), ("t1", "t2")),
        (("t1", "flair"), ("t1",), None),
    ],
)
def test_channels_that_a_network_knows_keep_their_places_in_training(
    names: tuple[str, ...], given: tuple[str, ...], wanted: tuple[str, ...] | None
):
    spec = several(len(names) or 1, *names)
    if wanted is None:
        with pytest.raises(InputError, match=r"2 channels, but there is 1"):
            training_channels(spec, Path("model"), given)
    else:
        assert training_channels(spec, Path("model"), given) == wanted


@pytest.mark.parametrize(
    ("outputs", "activation", "classes", "image"),
    [
        (1, "linear", (), True),
        (1, "sigmoid", (), False),
        (3, "linear", (), False),
        (1, "linear", SPEC.classes[:2], False),
    ],
)
def test_one_linear_output_without_classes_is_an_image(
    outputs: int, activation: str, classes: tuple[LabelClass, ...], image: bool
):
    arguments = {**ARGUMENTS, "outputs": outputs}
    spec = dataclasses.replace(
        SPEC, arguments=arguments, output_activation=activation, classes=classes
    )
    assert gives_image(spec) == image
    if image or classes:
        check_predictable(spec, Path("model"))
    else:
        with pytest.raises(InputError, match="no classes that exclude each other, and no image"):
            check_predictable(spec, Path("model"))


def test_a_one_output_network_has_two_classes(tmp_path: Path):
    arguments = {**ARGUMENTS, "outputs": 1}
    spec = dataclasses.replace(
        SPEC, arguments=arguments, output_activation="sigmoid", classes=SPEC.classes[:2]
    )
    write_model(tmp_path / "one", spec, values_of(spec), history={})
    assert read_model(tmp_path / "one")[0] == spec


def test_a_model_that_is_there_is_replaced_only_when_asked(model_dir: Path):
    with pytest.raises(InputError, match="--overwrite"):
        write_model(model_dir, SPEC, PARAMETERS, history={})
    doubled = {path: 2 * value for path, value in PARAMETERS.items()}
    write_model(model_dir, SPEC, doubled, history={}, overwrite=True)
    assert {path.name for path in model_dir.iterdir()} == {".voxtune", "model.json", "params"}
    found = read_model(model_dir)[1]
    assert all((found[path] == value).all() for path, value in doubled.items())


def refused(model_dir: Path) -> str:
    """The sentence with which a model directory is refused."""
    with pytest.raises(InputError) as caught:
        read_model(model_dir)
    sentence = str(caught.value)
    assert str(model_dir) in sentence
    assert "\n" not in sentence
    return sentence


def test_a_folder_without_model_json(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert "is not a model directory" in refused(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"5", b"\xff\xfe\x00", b"[" * 100_000, b'{"format": 1}']
)
def test_a_model_json_that_is_no_model(model_dir: Path, content: bytes):
    (model_dir / "model.json").write_bytes(content)
    assert "model.json cannot be read" in refused(model_dir)


def change(*path: str | int, to: Any) -> Callable[[dict], None]:
    """Sets what stands at a path of model.json."""

    def alter(document: Any) -> None:
        for name in path[:-1]:
            document = document[name]
        document[path[-1]] = to

    return alter


def remove(*path: str) -> Callable[[dict], None]:
    """Takes away what stands at a path of model.json."""

    def alter(document: Any) -> None:
        for name in path[:-1]:
            document = document[name]
        del document[path[-1]]

    return alter


ALTERATIONS = {
    "another format": change("format", to="keras model"),
    "another version": change("version", to=2),
    **{f"no {key}": remove(key) for key in ("format", "family", "arguments", "classes")},
    "no contract": remove("contract"),
    "no block": remove("contract", "block"),
    "no outputs": remove("arguments", "outputs"),
    "channels of words": change("arguments", "channels", to="one"),
    "something more": change("wings", to=2),
    "more in the contract": change("contract", "wings", to=2),
    "a contract that is a list": change("contract", to=[1, 2]),
    "classes that are a number": change("classes", to=3),
    "a class without a name": change("classes", to=[{"value": n} for n in range(3)]),
    "a first class that is not 0": change("classes", 0, "value", to=5),
    "two classes of one value": change("classes", 2, "value", to=17),
    "a class of control characters": change("classes", 1, "name", to="a\x1b[2J"),
    "a class that is no UTF-8": change("classes", 1, "name", to="a\ud800"),
    "too few classes": change("classes", to=[{"value": 0, "name": "background"}]),
    "a block of two sizes": change("contract", "block", to=[8, 8]),
    "a block of zero": change("contract", "block", to=[8, 0, 8]),
    "an endless block": change("contract", "block", to=[8, float("inf"), 8]),
    "a block of words": change("contract", "block", to=["a", "b", "c"]),
    "a negative spacing": change("contract", "spacing_mm", to=[1, -1, 1]),
    "a spacing of NaN": change("contract", "spacing_mm", to=[1, float("nan"), 1]),
    "an unknown intensity": change("contract", "intensity", to="rainbow"),
    "an intensity that is a list": change("contract", "intensity", to=[]),
    "a window without ends": change("contract", "intensity", to="window"),
    "a window that is a number": change("contract", "window", to=3),
    "a window that no scaling asks for": change("contract", "window", to=[0, 1]),
    "a grid smaller than the block": change("contract", "grid", to=[1, 1, 1]),
    "a grid of words": change("contract", "grid", to="large"),
    "an unknown interpolation": change("contract", "interpolation", to="nearest"),
    "an orientation that is none": change("contract", "orientation", to="XYZ"),
    "an orientation that is a number": change("contract", "orientation", to=5),
    "a threshold of words": change("contract", "threshold", to="high"),
    "no threshold": change("contract", "threshold", to=None),
    "quantiles that are a number": change("contract", "quantiles", to=1),
    "quantiles of words": change("contract", "quantiles", to=["a", "b", "c", "d", "e"]),
    "quantiles that fall": change("contract", "quantiles", to=[5, 4, 3, 2, 1]),
    "channels that are a number": change("contract", "channels", to=1),
    "names of more channels": change("contract", "channels", to=["t1", "t2"]),
    "an unknown family": change("family", to="resnet"),
    "a family that is a list": change("family", to=["meshnet"]),
    "arguments that are a list": change("arguments", to=[1]),
    "outputs of words": change("arguments", "outputs", to="three"),
    "an unknown argument": change("arguments", "wings", to=2),
    "negative filters": change("arguments", "filters", to=-2),
    "dilations that are a number": change("arguments", "dilations", to=1),
    "an unknown activation": change("arguments", "activation", to="swoosh"),
    "other filters": change("arguments", "filters", to=5),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_model_json_is_a_sentence(model_dir: Path, name: str):
    path = model_dir / "model.json"
    document = json.loads(path.read_text())
    ALTERATIONS[name](document)
    path.write_text(json.dumps(document))
    refused(model_dir)


def test_an_argument_that_the_family_has_a_default_for_may_be_left_out(model_dir: Path):
    path = model_dir / "model.json"
    document = json.loads(path.read_text())
    del document["arguments"]["channels"]
    path.write_text(json.dumps(document))
    assert read_model(model_dir)[1].keys() == PARAMETERS.keys()


def test_parameters_of_another_network_are_refused(model_dir: Path):
    path = model_dir / "model.json"
    document = json.loads(path.read_text())
    document["arguments"]["norm"] = None
    path.write_text(json.dumps(document))
    assert "block1/norm/bias" in refused(model_dir)


def test_lost_parameters_are_a_sentence(model_dir: Path):
    shutil.rmtree(model_dir / "params")
    assert "params" in refused(model_dir)


def test_a_unetr_takes_blocks_of_the_shape_of_its_positions_alone():
    arguments = {"outputs": 1, "size": [32, 16, 16], "width": 4, "blocks": 4, "heads": 1}
    check_block("unetr", arguments, (32, 16, 16))
    with pytest.raises(InputError, match=r"--block 16 16 32 does not suit .* blocks of 32 16 16"):
        check_block("unetr", arguments, (16, 16, 32))
