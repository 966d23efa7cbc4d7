"""The residual-encoder U-Net against nnU-Net's own software, and how it is run.

`resenc_unet.golden.npz` was written by PyTorch and dynamic-network-architectures, with the script
make_resenc_golden.py beside it; the numbers of parameters are what that script prints.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from voxtune.converters.from_flax import to_graph
from voxtune.engine.step import split
from voxtune.models.errors import InputError
from voxtune.models.families import Network, abstract, build, complete
from voxtune.models.lowering import plain_lowerings
from voxtune.models.parameters import assemble, by_path, count

SMALL = {"features": [4, 6, 6], "blocks": [1, 2, 1], "strides": [1, 2, 2], "convs": 2}
SEVEN = {
    "features": [32, 64, 128, 256, 320, 320, 320],
    "blocks": [1, 3, 4, 6, 6, 6, 6],
    "strides": [1, 2, 2, 2, 2, 2, 2],
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """Input, output, gradient, and each parameter by its path."""
    with np.load(Path(__file__).with_name("resenc_unet.golden.npz")) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def network(golden: dict[str, np.ndarray]) -> Network:
    rest = ("x", "y", "weights", "gradient")
    values = {path: value for path, value in golden.items() if path not in rest}
    return assemble("resenc_unet", {"channels": 2, "outputs": 3, **SMALL}, values)


@pytest.mark.parametrize(
    ("arguments", "whole", "lower_heads"),
    [({}, 102_349_770, 1_544), (SEVEN, 141_889_612, 2_186), (SMALL, 11_446, 14)],
)
def test_parameters_are_nnunets_but_for_heads_that_prediction_leaves_out(
    arguments: dict, whole: int, lower_heads: int
) -> None:
    found = abstract("resenc_unet", {"outputs": 2, **arguments})
    assert count(found) == whole - lower_heads


def test_it_computes_what_nnunets_network_does(network: Network, golden: dict) -> None:
    graph, state = nnx.split(network)

    @jax.jit
    def run(x: Array) -> tuple[Array, Array]:
        def total(x: Array) -> tuple[Array, Array]:
            logits = nnx.merge(graph, state)(x)
            return (logits * golden["weights"]).sum(), logits

        gradient, logits = jax.grad(total, has_aux=True)(x)
        return logits, gradient

    logits, gradient = run(jnp.asarray(golden["x"]))
    for found, wanted in ((logits, golden["y"]), (gradient, golden["gradient"])):
        assert abs(wanted).max() > 1
        np.testing.assert_allclose(found, wanted, atol=1e-5 * abs(wanted).max())


def test_values_start_as_in_nnunet() -> None:
    """He normal for a slope of 0.01; zero for biases and the last scale before each sum."""
    arguments = {"outputs": 2, "features": [16, 24], "blocks": [1, 1], "strides": [1, 2]}
    values = by_path(build("resenc_unet", arguments))
    for path, value in values.items():
        if path.endswith("kernel"):
            # PyTorch takes the outputs of a transposed convolution for its inputs.
            entering = value.shape[4] if "/up/" in path else value.shape[3]
            wanted = np.sqrt(2 / (1 + 0.01**2) / (np.prod(value.shape[:3]) * entering))
            assert float(value.std()) == pytest.approx(wanted, rel=5 / np.sqrt(value.size))
        elif path.endswith("scale"):
            assert (value == (0 if "unit2" in path else 1)).all()
        else:
            assert not value.any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"blocks": [1, 1]}, "lists of the same length"),
        ({"features": [4], "blocks": [1], "strides": [1]}, "two at least"),
        ({"strides": [2, 2, 2]}, "'strides' is 1 for the first"),
        ({"strides": [1, 2, 1]}, "then 2 or more"),
    ],
)
def test_arguments_that_do_not_go_together_are_a_sentence(arguments: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        abstract("resenc_unet", {"outputs": 2, **SMALL, **arguments})


def test_sizes_and_levels_are_those_of_the_stages(network: Network) -> None:
    down, up = ("encoder1", "encoder2", "encoder3"), ("decoder2", "decoder1")
    assert network.levels() == ("stem", *down, *up, "head")
    assert abstract("resenc_unet", {"outputs": 2}).min_multiple == 32
    assert network.receptive_field is None  # of a norm over the whole input


SUPERVISED = {"outputs": 3, **SMALL, "deep_supervision": True}


@pytest.fixture(scope="module")
def supervised() -> Network:
    return build("resenc_unet", SUPERVISED)


class TestDeepSupervision:
    def test_it_has_the_originals_number_of_parameters(self) -> None:
        """dynamic-network-architectures: 102,349,770 with the heads that deep supervision needs."""
        network = abstract("resenc_unet", {"outputs": 2, "deep_supervision": True})
        assert count(network) == 102_349_770
        assert network.head_paths == ("head", "head2", "head3", "head4", "head5")

    def test_training_gives_logits_of_each_resolution_and_prediction_one(self) -> None:
        network = abstract("resenc_unet", SUPERVISED)
        x = jax.ShapeDtypeStruct((1, 8, 8, 8, 1), jnp.float32)
        for remat in (False, True):
            apply, *arrays = split(network, remat=remat)
            given, _ = jax.eval_shape(apply, *arrays, x, jax.random.key(0))
            assert [each.shape for each in given] == [(1, 8, 8, 8, 3), (1, 4, 4, 4, 3)]
        logits, _ = jax.eval_shape(apply, *arrays, x)
        assert logits.shape == (1, 8, 8, 8, 3)

    def test_a_step_trains_every_head(self, supervised: Network, step_of: Any) -> None:
        step, state = step_of(supervised, steps=10, warmup=0)
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.normal(size=(2, 8, 8, 8, 1)).astype(np.float32),
            "label": rng.integers(0, 3, (2, 8, 8, 8)).astype(np.uint8),
        }
        with plain_lowerings():
            after, metrics = jax.jit(step)(state, batch)
        for head in supervised.head_paths:
            assert (after.params[head]["kernel"] != state.params[head]["kernel"]).all()
        assert int(metrics["counts"].true.sum()) == batch["label"].size

    def test_the_heads_of_lower_resolutions_are_not_exported(self, supervised: Network) -> None:
        arguments = complete("resenc_unet", SUPERVISED)
        graph, weights = to_graph("resenc_unet", arguments, "linear", by_path(supervised))
        assert "head" in weights
        assert not any(name.startswith("head2") for name in weights)
        assert set(weights) <= set(graph.by_name)
