"""What training starts from: where each tensor comes from, and what the network gives at first."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from voxtune.engine.config import Finetune
from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec
from voxtune.engine.rules import Parameters, make_rules
from voxtune.engine.start import Start, make_start
from voxtune.models.errors import InputError
from voxtune.models.families import FAMILIES, build
from voxtune.models.graph import Graph, GraphCall, GraphLayer
from voxtune.models.layers import Head
from voxtune.models.meshnet import MeshNet
from voxtune.models.parameters import by_path, shapes
from voxtune.models.run import Run

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


# The smallest network of each family but graphs.
_SMALL: Mapping[str, Mapping[str, Any]] = {
    "bayesian_meshnet": {"filters": 2, "dilations": [1]},
    "highresnet": {"filters": 2, "blocks": 1},
    "meshnet": {"filters": 2, "dilations": [1]},
    "resenc_unet": {"features": [2, 4], "blocks": [1, 1], "strides": [1, 2]},
    "synthseg_unet": {"filters": 2, "depth": 1},
    "unet": {"filters": 2, "depth": 1},
    "unetr": {"size": [4] * 3, "patch": 2, "width": 2, "blocks": 1, "heads": 1, "filters": 2},
    "vnet": {"filters": 4, "depth": 1},
}
SMALL = {name: {"channels": 1, "outputs": 2, **each} for name, each in _SMALL.items()}


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
ONE = altered(outputs=1, output_activation="sigmoid")


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


def hows(found: Start) -> dict[str, set[str]]:
    """How → paths."""
    groups: dict[str, set[str]] = {}
    for path, origin in found.origin.items():
        groups.setdefault(origin.how, set()).add(path)
    return groups


def details(found: Start) -> dict[str, str]:
    """Path → detail of all that is not simply loaded."""
    return {path: each.detail for path, each in found.origin.items() if each.detail != "loaded"}


def logits(spec: ModelSpec, tensors: Tensors, x: np.ndarray) -> np.ndarray:
    """What a network gives."""
    return np.asarray(spec.network(tensors)(jnp.asarray(x, jnp.float32)), np.float64)


def of_head(spec: ModelSpec, tensors: Tensors, features: int) -> np.ndarray:
    """What a network's head gives of some features."""
    x = np.random.default_rng(1).normal(size=(1, 4, 4, 4, features)).astype(np.float32)
    network: Any = spec.network(tensors)
    return np.asarray(network.head(jnp.asarray(x), Run(), "head"), np.float64)


def scan(channels: int = 1) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(1, 4, 4, 4, channels))


# A new head


def test_the_trunk_is_the_pretrained_one_to_the_last_bit() -> None:
    found = start()
    assert found.parameters["head/kernel"].shape == (1, 1, 1, 2, 3)
    for path in TRUNK:
        assert np.asarray(found.parameters[path]).tobytes() == PARAMETERS[path].tobytes()
    assert hows(found) == {"loaded": TRUNK, "initialised": HEAD}
    assert found.pretrained == TRUNK
    assert found.dropped == dict.fromkeys(HEAD, "the last layer is new")
    assert found.spec.classes == CLASSES
    assert found.spec.arguments["outputs"] == 3
    assert found.network().head_paths == ("head",)
    assert list(found.parameters) == list(found.origin) == list(PARAMETERS)


def test_nothing_is_copied() -> None:
    found = start(parameters=PARAMETERS)
    assert all(found.parameters[path] is PARAMETERS[path] for path in TRUNK)


def test_a_new_head_that_sees_nothing_gives_the_prevalence() -> None:
    found = start()
    odds = jax.nn.softmax(found.parameters["head/bias"])
    np.testing.assert_allclose(odds, PREVALENCE, rtol=1e-5)
    assert details(found) == {
        "head/kernel": "initialised from seed 0",
        "head/bias": "initialised: log of class prevalence",
    }
    one = start(CLASSES[:2], activation="sigmoid", prevalence=np.array([0.8, 0.2]))
    assert one.parameters["head/kernel"].shape == (1, 1, 1, 2, 1)
    np.testing.assert_allclose(jax.nn.sigmoid(one.parameters["head/bias"]), [0.2], rtol=1e-5)
    assert one.origin["head/bias"].detail == "initialised: log odds of class prevalence"


def test_all_that_depends_on_the_classes_is_new() -> None:
    """VNet's last two convolutions have as many filters as there are classes."""
    found = start(spec=dataclasses.replace(SPEC, family="vnet", arguments=SMALL["vnet"]))
    layers = ("conv/kernel", "conv/bias", "kernel", "bias")
    assert hows(found)["initialised"] == {f"head/{each}" for each in layers}
    assert found.parameters["head/conv/kernel"].shape == (3, 3, 3, 4, 3)
    assert not np.any(found.parameters["head/conv/bias"])
    np.testing.assert_allclose(found.parameters["head/bias"], np.log(PREVALENCE), rtol=1e-5)


@pytest.mark.parametrize("convolution", ["flipout", "weight_norm"])
def test_heads_with_random_weights_have_a_bias_too(convolution: str) -> None:
    arguments = {**SMALL["bayesian_meshnet"], "convolution": convolution}
    spec = dataclasses.replace(SPEC, family="bayesian_meshnet", arguments=arguments)
    name = {"flipout": "bias_posterior_loc", "weight_norm": "bias_m"}[convolution]
    found = start(spec=spec)
    np.testing.assert_allclose(found.parameters[f"head/{name}"], np.log(PREVALENCE), rtol=1e-5)
    # Extended, the new class is to the background as 0.1 to 0.7, as long as nothing is drawn.
    more, old = start(MORE, spec, head="extend"), tensors_of(spec)
    before, after = of_head(spec, old, 2), of_head(more.spec, more.parameters, 2)
    np.testing.assert_allclose(after[..., :2], before, rtol=1e-5)
    np.testing.assert_allclose(after[..., 2], before[..., 0] + np.log(0.1 / 0.7), rtol=1e-5)


def test_a_head_without_a_bias_is_noted(graph_spec: Callable[..., ModelSpec]) -> None:
    found = start(spec=graph_spec(use_bias=False))
    assert found.notes == ("head has no bias: its classes do not start at their prevalence",)
    assert details(found) == {"head/kernel": "initialised from seed 0"}


def test_the_new_head_follows_the_seed_as_the_architecture_draws_it() -> None:
    one, same_seed, other = (start(seed=seed).parameters["head/kernel"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same_seed)
    assert not np.allclose(one, other)
    whole = by_path(build("meshnet", {**SPEC.arguments, "outputs": 3}, 0))
    np.testing.assert_array_equal(one, whole["head/kernel"])


def test_random_loads_nothing() -> None:
    found = start(init="random", seed=3)
    assert hows(found) == {"initialised": set(PARAMETERS)}
    assert set(details(found).values()) == {
        "initialised from seed 3",
        "initialised: log of class prevalence",
    }
    assert found.dropped == dict.fromkeys(PARAMETERS, "--init random")
    assert not found.pretrained
    assert not np.allclose(found.parameters[FIRST], PARAMETERS[FIRST])
    kept = start(SPEC.classes, init="random", head="keep", prevalence=np.array([0.8, 0.2]))
    np.testing.assert_allclose(kept.parameters["head/bias"], np.log([0.8, 0.2]), rtol=1e-5)


def test_random_and_pretrained_start_from_the_same_new_head() -> None:
    """So that a comparison of the two compares the trunk."""
    one, other = (start(init=init).parameters for init in ("pretrained", "random"))
    for path in HEAD:
        np.testing.assert_array_equal(one[path], other[path])


# Controls


def test_controls_start_from_the_same_new_head_too() -> None:
    heads = [start(seed=2, init=init).parameters for init in ("pretrained", "shuffled", "matched")]
    for path in HEAD:
        np.testing.assert_array_equal(heads[1][path], heads[0][path])
        np.testing.assert_array_equal(heads[2][path], heads[0][path])


def test_shuffled_has_the_pretrained_values_in_other_places() -> None:
    found = start(seed=2, init="shuffled")
    assert not found.pretrained
    for path in TRUNK:
        value, before = found.parameters[path], PARAMETERS[path]
        np.testing.assert_array_equal(np.sort(value, axis=None), np.sort(before, axis=None))
        assert found.origin[path].how == "adapted"
    assert (found.parameters[FIRST] != PARAMETERS[FIRST]).any()
    assert (found.parameters[FIRST] != start(seed=3, init="shuffled").parameters[FIRST]).any()


def test_matched_draws_kernels_of_the_pretrained_scale_and_starts_norms_anew() -> None:
    found, fresh = start(seed=2, init="matched"), start(seed=2, init="random")
    assert not found.pretrained
    for path in TRUNK:
        value = found.parameters[path]
        if path.endswith("kernel"):
            np.testing.assert_allclose(value.mean(), PARAMETERS[path].mean(), rtol=1e-5)
            np.testing.assert_allclose(value.std(), PARAMETERS[path].std(), rtol=1e-5)
            drawn = np.corrcoef(value.ravel(), np.ravel(fresh.parameters[path]))[0, 1]
            np.testing.assert_allclose(drawn, 1, rtol=1e-5)  # the same draw, stretched
        else:
            np.testing.assert_array_equal(value, fresh.parameters[path])
            assert "matched" in found.dropped[path]


@pytest.mark.parametrize("head", ["new", "keep", "extend"])
@pytest.mark.parametrize("init", ["shuffled", "matched"])
def test_controls_account_for_every_tensor(init: str, head: str) -> None:
    classes = {"new": CLASSES, "keep": SPEC.classes, "extend": MORE}[head]
    told = start(classes, seed=2, init=init, head=head).to_json()
    arguments = {**SPEC.arguments, "outputs": len(classes)}
    assert told["parameters"].keys() == shapes(SPEC.family, arguments).keys()
    loaded = {path for path, how in told["parameters"].items() if how.startswith("loaded")}
    assert not loaded
    # Of the model each tensor is used in another form, or dropped.
    used = {path for path, how in told["parameters"].items() if "initialised from" not in how}
    assert PARAMETERS.keys() <= used | told["dropped"].keys()


@pytest.mark.parametrize("init", ["shuffled", "matched"])
def test_controls_take_no_weights_from_elsewhere(init: str) -> None:
    with pytest.raises(InputError, match=f"--init {init} starts from no pretrained weights"):
        start(init=init, init_from=Path("other"))


@pytest.mark.parametrize("init", ["shuffled", "matched"])
def test_nothing_pulls_to_what_was_shuffled(init: str) -> None:
    """The options of the arm that it is compared with may stay."""
    anchors = {}
    for each in (init, "pretrained"):
        begun = start(init=each)
        rule = ("block*/kernel anchor=1",)
        config = Finetune(Path("model"), "s.csv", Path(), init=each, rule=rule)  # type: ignore[arg-type]
        rows = make_rules(Parameters.of(begun.network(), begun.pretrained), config).rows
        anchors[each] = {path for path, row in rows.items() if row.anchor}
    assert anchors == {init: set(), "pretrained": {FIRST}}


def test_a_network_that_gives_an_image_has_one_linear_output_without_classes() -> None:
    found = start((), loss="mean_squared_error")
    assert (found.spec.output_activation, found.spec.arguments["outputs"]) == ("linear", 1)
    np.testing.assert_array_equal(found.parameters["head/bias"], [0.0])
    image = altered(outputs=1, output_activation="linear", classes=())
    kept = start((), image, loss="mean_squared_error", head="keep")
    assert hows(kept) == {"loaded": set(PARAMETERS)}
    assert kept.spec.output_activation == "linear"


# A head kept or extended


def test_a_kept_head_is_the_pretrained_one() -> None:
    found = start(SPEC.classes, head="keep")
    assert hows(found) == {"loaded": set(PARAMETERS)}
    assert found.pretrained == set(PARAMETERS)
    assert not found.dropped
    for path, value in PARAMETERS.items():
        np.testing.assert_array_equal(found.parameters[path], value)


@pytest.mark.parametrize("family", ["meshnet", "vnet"])
def test_an_extended_network_tells_old_classes_apart_as_it_did(family: str) -> None:
    spec = dataclasses.replace(SPEC, family=family, arguments=SMALL[family])
    found = start(MORE, spec, head="extend")
    features = {"meshnet": 2, "vnet": 4}[family]
    before = of_head(spec, tensors_of(spec), features)
    after = of_head(found.spec, found.parameters, features)
    np.testing.assert_allclose(after[..., :2], before, rtol=1e-5)
    np.testing.assert_allclose(after[..., 2], before[..., 0] + np.log(0.1 / 0.7), rtol=1e-5)
    assert set(details(found).values()) == {"adapted: 2 classes kept, 1 added"}
    assert found.pretrained == {path for path in found.origin if not path.startswith("head/")}
    assert not found.dropped


def test_an_extended_sigmoid_is_a_softmax_that_gives_the_same() -> None:
    found = start(MORE, ONE, head="extend")
    before, after = of_head(ONE, tensors_of(ONE), 2), of_head(found.spec, found.parameters, 2)
    np.testing.assert_array_equal(after[..., 0], 0)
    np.testing.assert_allclose(after[..., 1:2], before, rtol=1e-5)
    assert found.spec.output_activation == "softmax"
    assert found.notes[0].startswith("the threshold 0.3 was for one class")


class TwoHeads(MeshNet):
    """With a second head beside the last."""

    def __init__(self, *, channels: int = 1, outputs: int, rngs: nnx.Rngs) -> None:
        super().__init__(channels=channels, outputs=outputs, filters=2, dilations=(1,), rngs=rngs)
        self.side = Head(2, outputs, rngs=rngs)

    @property
    def head_paths(self) -> tuple[str, ...]:
        return ("head", "side")


def test_several_heads_are_treated_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(dict[str, type], FAMILIES), "two", TwoHeads)
    spec = dataclasses.replace(SPEC, family="two", arguments={"channels": 1, "outputs": 2})
    both = {f"{head}/{name}" for head in ("head", "side") for name in ("kernel", "bias")}
    new, more = start(spec=spec), start(MORE, spec, head="extend")
    assert new.network().head_paths == ("head", "side")
    assert hows(new)["initialised"] == hows(more)["adapted"] == both
    for head in new.network().head_paths:
        np.testing.assert_allclose(new.parameters[f"{head}/bias"], np.log(PREVALENCE), rtol=1e-5)
        old = tensors_of(spec)[f"{head}/kernel"]
        wanted = old[..., [0, 1, 0]]
        np.testing.assert_array_equal(more.parameters[f"{head}/kernel"], wanted)


def test_a_class_under_another_name_is_noted() -> None:
    """Classes are told apart by their values: a person may have meant another one."""
    named = dataclasses.replace(SPEC.classes[1], name="lesion")
    found = start(classes=(SPEC.classes[0], named, *SPEC.classes[2:]), head="keep")
    old = SPEC.classes[1]
    assert f"the model's class {old.value} {old.name} is called lesion here" in found.notes
    assert not [each for each in start(classes=SPEC.classes, head="keep").notes if "called" in each]


def test_an_old_class_that_no_scan_has_is_noted() -> None:
    found = start(MORE, head="extend", prevalence=np.array([0.9, 0.0, 0.1]))
    assert found.notes == ("no training scan has 1 head, which the network will unlearn",)
    assert start(SPEC.classes, head="keep", prevalence=np.array([0.9, 0.1])).notes == ()


# Channels

READERS = {
    "bayesian_meshnet": {
        f"block1/conv/kernel_posterior_{name}" for name in ("loc", "untransformed_scale")
    },
    "graph": {"first/kernel", "up/kernel"},
    "highresnet": {"stem/kernel"},
    "meshnet": {FIRST},
    "resenc_unet": {"stem/conv/kernel"},
    "synthseg_unet": {"encoder1/unit1/conv/kernel"},
    "unet": {"encoder1/unit1/conv/kernel"},
    "unetr": {"embedding/patches/kernel", "skip0/unit1/conv/kernel"},
    "vnet": {"encoder1/unit1/conv/kernel"},
}


@pytest.fixture(scope="module")
def graph_spec() -> Callable[..., ModelSpec]:
    """A graph whose input is read by a convolution and a transposed one."""

    def make(first: str = "Conv3D", **head: Any) -> ModelSpec:
        size = {"filters": 2, "kernel_size": [1, 1, 1]}
        config = size if first == "Conv3D" else {}
        made = (
            GraphLayer("first", first, config),
            GraphLayer("up", "Conv3DTranspose", size),
            GraphLayer("add", "Add", {}),
            GraphLayer("head", "Conv3D", {**size, **head}),
        )
        reads = {"first": ["x"], "up": ["x"], "add": ["first", "up"], "head": ["add"]}
        calls = tuple(GraphCall(name, name, tuple(each)) for name, each in reads.items())
        graph = Graph(made, calls, {"x": (None, None, None, 1)}, ("head",))
        arguments = {"graph": graph.to_json(), "channels": 1, "outputs": 2}
        return dataclasses.replace(SPEC, family="graph", arguments=arguments)

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_more_channels(
    family: str, graph_spec: Callable[..., ModelSpec]
) -> None:
    spec = (
        graph_spec()
        if family == "graph"
        else dataclasses.replace(SPEC, family=family, arguments=SMALL[family])
    )
    found = start(spec.classes, spec, ("t1", "flair", "t2"), head="keep")
    groups = hows(found)
    assert groups["adapted"] == READERS[family]
    assert groups["loaded"] == found.parameters.keys() - READERS[family]
    assert found.pretrained == set(found.parameters)
    assert found.spec.channels == 3
    wanted = shapes(found.spec.family, found.spec.arguments)
    assert {path: value.shape for path, value in found.parameters.items()} == wanted


@pytest.mark.parametrize("family", ["meshnet", "graph"])
def test_equal_channels_give_what_one_gave(
    family: str, graph_spec: Callable[..., ModelSpec]
) -> None:
    spec = graph_spec() if family == "graph" else SPEC
    before = logits(spec, tensors_of(spec), scan())
    found = start(spec.classes, spec, ("t1", "t2"), head="keep")
    same = jnp.asarray(scan().repeat(2, axis=-1), jnp.float32)
    np.testing.assert_allclose(found.spec.network(found.parameters)(same), before, rtol=1e-5)
    text = "adapted: 1 channel copied to 2, divided by 2"
    assert details(found) == dict.fromkeys(READERS[family], text)
    zero = start(spec.classes, spec, ("t1", "t2"), head="keep", new_channels="zero")
    beside = np.concatenate([scan(), scan() + 5], axis=-1)
    np.testing.assert_allclose(logits(zero.spec, zero.parameters, beside), before, rtol=1e-5)


def test_a_graph_that_cannot_be_given_more_channels_is_a_sentence(
    graph_spec: Callable[..., ModelSpec],
) -> None:
    spec = graph_spec("BatchNormalization")
    with pytest.raises(InputError, match=r"cannot be given 2 channels: the gamma .*'first'"):
        start(spec.classes, spec, ("t1", "t2"), head="keep")


def chain(*layers: tuple[str, str, dict[str, Any], list[str]]) -> ModelSpec:
    """A graph of layers, each a name, a kind, settings, and what it reads; "x" is the image."""
    made = tuple(GraphLayer(name, kind, config) for name, kind, config, _ in layers)
    calls = tuple(GraphCall(name, name, tuple(reads)) for name, _, _, reads in layers)
    graph = Graph(made, calls, {"x": (None, None, None, 1)}, (layers[-1][0],))
    arguments = {"graph": graph.to_json(), "channels": 1, "outputs": 2}
    return dataclasses.replace(SPEC, family="graph", arguments=arguments)


CONV = {"filters": 2, "kernel_size": 1}


@pytest.mark.parametrize("head", ["keep", "extend"])
def test_a_head_that_reads_the_image_is_given_more_channels_too(head: str) -> None:
    spec, classes = chain(("head", "Conv3D", CONV, ["x"])), MORE if head == "extend" else MORE[:2]
    found = start(classes, spec, ("t1", "t2"), head=head)
    same = scan().repeat(2, axis=-1)
    before, after = (
        logits(spec, tensors_of(spec), scan()),
        logits(found.spec, found.parameters, same),
    )
    np.testing.assert_allclose(after[..., :2], before, rtol=1e-5)
    added = ", 2 classes kept, 1 added" if head == "extend" else ""
    text = f"adapted: 1 channel copied to 2, divided by 2{added}"
    assert found.origin["head/kernel"].detail == text
    assert found.origin["head/kernel"].pretrained == (head == "keep")


@pytest.mark.parametrize("head", ["keep", "extend"])
def test_a_head_that_reads_image_and_features_together_is_a_sentence(head: str) -> None:
    spec = chain(
        ("first", "Conv3D", CONV, ["x"]),
        ("join", "Concatenate", {}, ["x", "first"]),
        ("head", "Conv3D", CONV, ["join"]),
    )
    classes = MORE if head == "extend" else MORE[:2]
    with pytest.raises(InputError, match=r"head/kernel has the shape 1x1x1x3x2, but .*1x1x1x4x2"):
        start(classes, spec, ("t1", "t2"), head=head)
    new = start(MORE, spec, ("t1", "t2"))  # which takes the head as it comes
    assert new.parameters["head/kernel"].shape == (1, 1, 1, 4, 3)


def test_channels_that_are_added_to_something_are_a_sentence() -> None:
    """One feature would be added to each of two channels."""
    spec = chain(
        ("first", "Conv3D", {"filters": 1, "kernel_size": 1}, ["x"]),
        ("add", "Add", {}, ["x", "first"]),
        ("head", "Conv3D", CONV, ["add"]),
    )
    with pytest.raises(
        InputError, match=r"given 2 channels: .*'add' \(Add\) takes the image's chan"
    ):
        start(SPEC.classes, spec, ("t1", "t2"), head="keep")


def test_a_kernel_that_reads_image_and_features_together_is_a_sentence() -> None:
    spec = chain(
        ("first", "Conv3D", CONV, ["x"]),
        ("join", "Concatenate", {}, ["x", "first"]),
        ("second", "Conv3D", CONV, ["join"]),
        ("head", "Conv3D", CONV, ["second"]),
    )
    with pytest.raises(InputError, match=r"shape 1x1x1x3x2, but .* has 1x1x1x4x2; give as many"):
        start(spec.classes, spec, ("t1", "t2"))


# What is said of it


def test_a_run_directory_keeps_what_became_of_each_tensor() -> None:
    found = json.loads(json.dumps(start(channels=("t1", "t2")).to_json()))
    assert found["parameters"].keys() == PARAMETERS.keys()
    assert found["parameters"]["block1/conv/bias"] == "loaded"
    assert found["parameters"][FIRST] == "adapted: 1 channel copied to 2, divided by 2"
    assert found["dropped"] == dict.fromkeys(HEAD, "the last layer is new")
    note = "channels: t1 in the place of the model's only one, t2 new"
    assert found["notes"] == [note]


def test_a_log_counts_and_lists_what_is_not_simply_loaded() -> None:
    found = start(channels=("t1", "t2"))
    assert found.lines() == [
        "meshnet, tensors: 5 loaded, 1 adapted, 2 initialised, 2 dropped",
        "  adapted: 1 channel copied to 2, divided by 2: block1/conv/kernel",
        "  initialised: log of class prevalence: head/bias",
        "  initialised from seed 0: head/kernel",
        "  dropped, the last layer is new: head/bias, head/kernel",
        "note: channels: t1 in the place of the model's only one, t2 new",
    ]
    many = dataclasses.replace(found, dropped={f"a{n}": f"reason {n}" for n in range(20)})
    lines = many.lines()
    assert len(lines) == 14
    assert lines[-2] == "  and 12 more such lines, all in parameters.json"
