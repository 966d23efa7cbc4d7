"""The check before the first step: small networks whose answer is known by hand."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from voxtune.engine.contract import Contract
from voxtune.engine.model_dir import LabelClass, ModelSpec
from voxtune.engine.sanity import check_start
from voxtune.models.families import abstract
from voxtune.models.graph import Graph, GraphCall, GraphLayer
from voxtune.models.norms import BatchNorm
from voxtune.models.parameters import shapes

BLOCK = (8, 8, 8)
CLASSES = (LabelClass(0, "background"), LabelClass(1, "lesion"))
CONTRACT = Contract("RAS", None, "zscore", BLOCK)
RNG = np.random.default_rng(0)
IMAGES = [RNG.normal(size=(9, 8, 10, 1)).astype(np.float32) for _ in range(3)]
Parameters = dict[str, np.ndarray]


def meshnet(**changed: Any) -> tuple[ModelSpec, Parameters]:
    """`relu(norm(x + 1))` at each voxel; class 1 where that is above 1: right for N(0, 1)."""
    arguments = {"channels": 1, "outputs": 2, "filters": 1, "dilations": [1], "norm": "batch"}
    arguments |= changed
    channels = arguments["channels"]
    values = {
        path: np.zeros(shape, np.float32) for path, shape in shapes("meshnet", arguments).items()
    }
    values["block1/conv/kernel"][1, 1, 1] = 1 / np.sqrt(channels)
    values["block1/conv/bias"][:] = 1
    if arguments["norm"]:
        values["block1/norm/mean"][:] = values["block1/norm/var"][:] = 1
        values["block1/norm/scale"][:] = values["block1/norm/bias"][:] = 1
    values["head/kernel"][..., -1], values["head/bias"][-1] = 1, -1
    spec = ModelSpec("meshnet", arguments, "softmax", CLASSES, CONTRACT)
    return spec, values


def graph(values: Mapping[str, np.ndarray]) -> tuple[ModelSpec, Parameters]:
    """The same as a Keras graph, its norm with an epsilon of its own and without beta."""
    layers = (
        GraphLayer("conv", "Conv3D", {"filters": 1, "kernel_size": [3, 3, 3], "padding": "same"}),
        GraphLayer("norm", "BatchNormalization", {"epsilon": 0.5, "center": False}),
        GraphLayer("head", "Conv3D", {"filters": 2, "kernel_size": [1, 1, 1]}),
    )
    names = ["image", *(each.name for each in layers)]
    calls = tuple(GraphCall(b, b, (a,)) for a, b in itertools.pairwise(names))
    document = Graph(layers, calls, {"image": (None, None, None, 1)}, ("head",)).to_json()
    given = {
        "conv/kernel": values["block1/conv/kernel"],
        "conv/bias": values["block1/conv/bias"],
        "norm/gamma": values["block1/norm/scale"],
        "norm/moving_mean": values["block1/norm/mean"],
        "norm/moving_variance": values["block1/norm/var"],
        "head/kernel": values["head/kernel"],
        "head/bias": values["head/bias"],
    }
    spec = ModelSpec("graph", {"graph": document, "outputs": 2}, "softmax", CLASSES, CONTRACT)
    return spec, given


@pytest.mark.parametrize("as_graph", [False, True])
@pytest.mark.parametrize(
    ("of_voxels", "offset", "variance", "distance"),
    [(1, 0, "", ""), (2, 0, "", ""), (4, 0, "16", ""), (0.2, 0, "0.04", ""), (1, 3, "", "3")],
)
def test_statistics_are_compared_with_what_reaches_the_norm(
    as_graph: bool, of_voxels: float, offset: float, variance: str, distance: str
) -> None:
    spec, values = meshnet()
    if as_graph:
        spec, values = graph(values)
    # Exactly N(0, 1) over both blocks, so that variance and distance are what they are here.
    pair = np.stack([image[:8, :8, :8] for image in IMAGES[:2]])
    pair = (pair - pair.mean()) / pair.std()
    found = check_start(spec, values, list(pair * of_voxels + offset))
    said = " ".join(found)
    assert ("batch norms" in said) == bool(variance or distance)
    if variance:
        assert f"has {variance} times the variance" in said
    if distance:
        assert f"its mean is {distance} standard deviations" in said
        assert "intensity (zscore)" in said


@pytest.mark.parametrize(
    ("of_voxels", "warns"), [(2, False), (2.5, True), (0.4, True), (0.5, False)]
)
def test_the_first_norm_counts_by_itself(of_voxels: float, warns: bool) -> None:
    """Those behind it may receive what they stored all the same: it evens scalings out."""
    spec, values = meshnet(dilations=[1, 1])
    pair = np.stack([image[:8, :8, :8] for image in IMAGES[:2]])
    pair = (pair - pair.mean()) / pair.std()
    values["block2/conv/kernel"][1, 1, 1] = 1
    # What block 1 gives then, nearly: so the second norm has nothing to say.
    values["block2/norm/mean"][:], values["block2/norm/var"][:] = of_voxels, of_voxels**2
    found = check_start(spec, values, list(pair * of_voxels))
    assert any("first batch norm" in each for each in found) == warns


@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        ("highresnet", {}),
        ("meshnet", {"dilations": [1, 2]}),
        ("synthseg_unet", {"filters": 2, "depth": 1}),
        ("unet", {"filters": 2, "depth": 1, "norm": "batch"}),
    ],
)
def test_every_batch_norm_taps_under_its_own_path(family: str, arguments: dict[str, Any]) -> None:
    network = abstract(family, {"outputs": 2, **arguments})
    assert isinstance(network, nnx.Module)
    modules = nnx.iter_modules(network)
    norms = {"/".join(map(str, path)) for path, each in modules if isinstance(each, BatchNorm)}
    graph, state = nnx.split(network)
    tapped = set()

    def run(state: nnx.State, x: jax.Array) -> Any:
        return nnx.merge(graph, state)(x, tap=lambda path, _: tapped.add(path))

    jax.eval_shape(run, state, jax.ShapeDtypeStruct((1, 8, 8, 8, 1), np.float32))
    assert norms
    assert norms <= tapped


def test_values_that_drown_the_biases_are_told() -> None:
    spec, values = meshnet(norm=None)
    values["head/bias"][-1] = -1.5
    assert check_start(spec, values, IMAGES) == []
    (found,) = check_start(spec, values, [np.abs(image) * 255 for image in IMAGES])
    assert "far larger than those that it was trained on" in found
    largest = np.abs(IMAGES[0][:8, :, 1:9]).max() * 255
    assert f"values up to {largest:.4g}" in found
    # A network without biases has no scale of its own.
    for path in ("block1/conv/bias", "head/bias"):
        values[path][:] = 0
    assert check_start(spec, values, [image * 255 for image in IMAGES]) == []


def test_a_network_that_says_one_class_is_told() -> None:
    spec, values = meshnet(norm=None)
    values["head/bias"][-1] = -30
    (found,) = check_start(spec, values, IMAGES)
    assert "calls 100.0% of the middle of the first training scans background:" in found
    assert "orientation (RAS) and intensity (zscore)" in found
    assert "cropped" in found
    values["head/bias"][-1] = 30
    (found,) = check_start(spec, values, IMAGES)
    assert "scans lesion:" in found


def test_it_says_which_scaling_would_let_the_network_tell_classes_apart() -> None:
    spec, values = meshnet(norm=None)
    values["head/bias"][-1] = -1.8  # class 1 above 0.8
    wrong = dataclasses.replace(CONTRACT, intensity="minmax")
    squeezed = [(image - image.min()) / np.ptp(image) / 2 for image in IMAGES]
    (found,) = check_start(dataclasses.replace(spec, contract=wrong), values, squeezed)
    zscored = [(image - image.mean()) / image.std() for image in squeezed[:2]]
    share = np.mean([image[:8, :, 1:9] > 0.8 for image in zscored])
    assert f"{share:.0%} with intensity zscore" in found


def test_the_threshold_of_a_one_class_network_counts() -> None:
    spec, values = meshnet(norm=None, outputs=1)
    values["head/kernel"][:] = 0.1
    values["head/bias"][:] = -1.5  # probability 0.18 at least, 0.27 at most
    assert len(check_start(spec, values, IMAGES)) == 1
    low = dataclasses.replace(CONTRACT, threshold=0.2)
    assert check_start(dataclasses.replace(spec, contract=low), values, IMAGES) == []


def test_a_network_that_finds_more_in_a_turned_scan_is_told() -> None:
    """One that labels what is brighter than its neighbour above: edges that face down."""
    spec, values = meshnet(norm=None)
    kernel = values["block1/conv/kernel"]
    kernel[:] = 0
    kernel[1, 1, 1], kernel[1, 1, 2] = 1, -1
    values["block1/conv/bias"][:] = 0
    values["head/bias"][-1] = -0.5
    ramp = np.broadcast_to(np.arange(8.0)[:, None, None, None] % 4, (8, 8, 8, 1))
    saw = [np.float32(ramp)] * 2  # along the first axis: rises by 1 a voxel, falls by 3
    along = [np.moveaxis(each, 0, 2)[:, :, ::-1] for each in saw]  # the network's own way
    assert check_start(spec, values, along) == []
    (found,) = check_start(spec, values, saw)
    assert "with orientation SPL" in found
    # Where the sizes of a voxel differ, nothing is known of exchanged axes.
    uneven = dataclasses.replace(CONTRACT, spacing_mm=(1.0, 1.0, 3.0))
    assert not any(
        "SPL" in each
        for each in check_start(dataclasses.replace(spec, contract=uneven), values, saw)
    )


def test_without_classes_and_with_several_channels_only_values_are_looked_at() -> None:
    spec, values = meshnet(channels=2, outputs=1)
    spec = dataclasses.replace(spec, classes=(), output_activation="linear")
    images = [RNG.normal(size=(8, 8, 8, 2)).astype(np.float32) for _ in range(2)]
    assert check_start(spec, values, images) == []
    (found,) = check_start(spec, values, [image * 100 for image in images])
    assert "batch norms" in found


def test_values_that_are_not_finite_are_told() -> None:
    spec, values = meshnet(norm=None)
    (found,) = check_start(spec, values, [image * np.float32(np.inf) for image in IMAGES])
    assert "not finite" in found


def test_random_weights_count_by_their_means() -> None:
    arguments = {"outputs": 2, "filters": 2, "dilations": [1]}
    values = {
        path: np.ones(shape, np.float32)
        for path, shape in shapes("bayesian_meshnet", arguments).items()
    }
    spec = ModelSpec("bayesian_meshnet", arguments, "softmax", CLASSES, CONTRACT)
    assert check_start(spec, values, IMAGES) == check_start(spec, values, IMAGES)


@pytest.mark.parametrize("axis", [1, [2], None])
def test_batch_norms_of_something_else_than_channels_are_left_out(axis: Any) -> None:
    """One along depth, and one in a gate, behind the mean over all voxels."""
    conv = {"filters": 2, "kernel_size": [1, 1, 1]}
    layers = [GraphLayer("conv", "Conv3D", conv)]
    calls = [GraphCall("conv", "conv", ("image",))]
    if axis is None:
        layers += [
            GraphLayer("pool", "GlobalAveragePooling3D", {"keepdims": False}),
            GraphLayer("norm", "BatchNormalization", {}),
            GraphLayer("shape", "Reshape", {"target_shape": [1, 1, 1, 2]}),
            GraphLayer("gate", "Multiply", {}),
        ]
        calls += [
            GraphCall("pool", "pool", ("conv",)),
            GraphCall("norm", "norm", ("pool",)),
            GraphCall("shape", "shape", ("norm",)),
            GraphCall("gate", "gate", ("conv", "shape")),
        ]
    else:
        layers += [GraphLayer("norm", "BatchNormalization", {"axis": axis})]
        calls += [GraphCall("norm", "norm", ("conv",))]
    made = Graph(tuple(layers), tuple(calls), {"image": (8, 8, 8, 1)}, (calls[-1].name,))
    arguments = {"graph": made.to_json(), "outputs": 2}
    rng = np.random.default_rng(0)
    values = {
        path: rng.uniform(0.5, 1.5, shape).astype(np.float32)
        for path, shape in shapes("graph", arguments).items()
    }
    spec = ModelSpec("graph", arguments, "linear", CLASSES, CONTRACT)
    assert not any("batch norm" in each for each in check_start(spec, values, IMAGES[:2]))
