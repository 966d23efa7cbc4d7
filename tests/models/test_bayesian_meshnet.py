"""The Bayesian MeshNet: its originals' parameters and divergence, its draws, how it is run."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from voxtune.converters.errors import ConversionError
from voxtune.converters.families import as_graph
from voxtune.converters.from_flax import to_graph
from voxtune.converters.keras_file import read_keras_file
from voxtune.converters.keras_model import KerasWeights
from voxtune.converters.to_flax import convert
from voxtune.converters.verify import QUICK_TO_COMPILE
from voxtune.converters.weights_only import fit
from voxtune.models.errors import InputError
from voxtune.models.families import Network, abstract, build
from voxtune.models.lowering import plain_lowerings
from voxtune.models.parameters import assemble, by_path, count
from voxtune.models.variational import divergence

RNG = np.random.default_rng(0)
SMALL: dict[str, Any] = {"outputs": 3, "filters": 3, "dilations": (1, 2)}
KWYK: dict[str, Any] = {"convolution": "weight_norm", "dropout": "concrete"}
CASES: dict[str, dict[str, Any]] = {
    "nobrainer": {**SMALL, "prior": "learned", "dropout": 0.5},
    "plain": {**SMALL, "convolution": "reparameterization"},
    "kwyk": {**SMALL, **KWYK},
}
X = jax.random.normal(jax.random.key(0), (2, 6, 6, 6, 1))


@pytest.fixture(autouse=True)
def plain():
    """Convolutions as XLA has them, which compile faster."""
    with plain_lowerings():
        yield


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    return {case: build("bayesian_meshnet", arguments) for case, arguments in CASES.items()}


@partial(jax.jit, static_argnums=0, compiler_options=QUICK_TO_COMPILE)
def _run(graph: nnx.GraphDef[Network], state: nnx.State, x: Array, key: Array | None) -> Array:
    return nnx.merge(graph, state)(x, rngs=None if key is None else nnx.Rngs(dropout=key))


def run(network: Network, x: Array, seed: int | None = None) -> np.ndarray:
    """Its logits: of the means, or a draw where a seed is given."""
    key = None if seed is None else jax.random.key(seed)
    return np.asarray(_run(*nnx.split(network), x, key))


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({"outputs": 1}, 1_637_758),  # variational_meshnet with TF Probability's default prior
        # Nobrainer 1.2.1's own, counted by Keras.
        ({"outputs": 1, "prior": "learned"}, 2_456_324),
        ({"outputs": 3, "prior": "learned"}, 2_456_610),
    ],
)
def test_parameter_counts_are_nobrainers(arguments: dict[str, Any], parameters: int) -> None:
    assert count(abstract("bayesian_meshnet", arguments)) == parameters


def test_parameter_count_is_kwyks() -> None:
    """The variables of each of its SavedModels are 12.0 MB of float32."""
    arguments = {"outputs": 50, "filters": 96, "dilations": (1, 1, 1, 2, 4, 8, 1), **KWYK}
    network = abstract("bayesian_meshnet", arguments)
    assert round(4 * count(network) / 1e6, 1) == 12.0
    assert network.receptive_field == 37


def test_nobrainers_divergence_is_met(shared_data: Path) -> None:
    """Of the sample file: 3000 times the sum of what Nobrainer 1.2.1's `divergence_fn_bayesian`
    and, for the last layer, TF Probability 0.22.1's `kl_divergence` give in float32."""
    path = shared_data / "keras/nobrainer/variational_meshnet.h5"
    network: Any = convert(read_keras_file(path)).network()
    found = network.kl()
    assert (found.shape, found.dtype) == ((), jnp.float32)
    assert float(found) == pytest.approx(281_593.88, rel=2e-6)


@pytest.mark.parametrize("case", CASES)
def test_it_draws_where_it_is_given_randomness(case: str, networks: dict[str, Network]) -> None:
    network = networks[case]
    np.testing.assert_array_equal(run(network, X), run(network, X))
    draws = [run(network, X, seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.allclose(draws[0], draws[2])
    assert not np.allclose(draws[0], run(network, X))
    with pytest.raises(ValueError, match="needs `rngs`"):
        network(X, train=True)


@pytest.mark.parametrize("case", CASES)
def test_bf16_draws_in_float32_and_is_near_it(case: str, networks: dict[str, Network]) -> None:
    network, narrow = networks[case], X.astype(jnp.bfloat16)
    for seed in (None, 1):
        wide, found = run(network, X, seed), run(network, narrow, seed)
        assert wide.dtype == found.dtype == np.float32
        assert 1e-5 < np.linalg.norm(found - wide) / np.linalg.norm(wide) < 0.03


@pytest.mark.parametrize("case", CASES)
def test_a_graph_draws_and_diverges_as_its_family(case: str, networks: dict[str, Network]) -> None:
    family: Any = networks[case]
    graph, weights = to_graph("bayesian_meshnet", CASES[case], "linear", by_path(family))
    flat = {
        f"{layer}/{name}": value
        for layer, arrays in weights.items()
        for name, value in arrays.items()
    }
    same: Any = assemble("graph", {"graph": graph.to_json()}, flat)
    assert float(same.kl()) == pytest.approx(float(family.kl()), rel=1e-5)
    np.testing.assert_allclose(run(same, X, 1), run(family, X, 1), atol=1e-5)


def test_a_graph_without_random_weights_has_no_divergence() -> None:
    arguments = {"channels": 1, "outputs": 2, "filters": 1, "dilations": [1], "norm": None}
    graph = as_graph("meshnet", arguments).to_json()
    plain: Any = abstract("graph", {"graph": graph})
    assert plain.kl() is None


@pytest.mark.parametrize("case", ["nobrainer", "kwyk"])
def test_remat_draws_the_same_again(case: str, networks: dict[str, Network]) -> None:
    graph, state = nnx.split(networks[case])

    def loss(state: nnx.State, remat: bool) -> Array:
        network: Any = nnx.merge(graph, state, copy=True)
        logits = network(X, train=True, rngs=nnx.Rngs(dropout=1), remat=remat)
        return (logits**2).mean() + 1e-4 * network.kl()

    both = jax.jit(
        lambda state: [jax.value_and_grad(loss)(state, remat) for remat in (False, True)],
        compiler_options=QUICK_TO_COMPILE,
    )
    (value, gradient), (again, gradient_again) = both(state)
    assert float(value) == pytest.approx(float(again), rel=1e-6)
    drawn = (run(networks[case], X, 1) ** 2).mean()  # training draws as prediction does
    assert float(value) - 1e-4 * float(divergence(networks[case])) == pytest.approx(drawn, rel=1e-4)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(gradient_again), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(abs(one).max()))
        assert np.any(one)
    traced = str(jax.make_jaxpr(lambda state: loss(state, True))(state))
    levels = networks[case].levels()
    assert len(re.findall(r"\b(?:remat2?|checkpoint)\[", traced)) == len(levels)


def test_weight_norm_has_no_learned_prior() -> None:
    with pytest.raises(InputError, match="no learned prior"):
        abstract("bayesian_meshnet", {"outputs": 1, "prior": "learned", **KWYK})


# --- files of kwyk ---------------------------------------------------------------------------


def kwyk_file(concrete: bool) -> KerasWeights:
    """Variables of its estimators, by layer as they stand in a SavedModel: by the alphabet."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for number in range(1, 9):
        last = number == 8
        size, filters = (1, 5) if last else (3, 4)
        kernel = (size, size, size, 1 if number == 1 else 4, filters)
        scope = "logits" if last else f"layer_{number}"
        if concrete and not last:
            layers[f"{scope}/concrete_dropout"] = {"p": RNG.uniform(0.5, 0.98, 4)}
        layers[f"{scope}/conv3d"] = {
            "bias_a": RNG.normal(size=filters),
            "bias_m": RNG.normal(size=filters),
            "g": RNG.uniform(1, 2, (1, 1, 1, 1, filters)),
            "kernel_a": RNG.normal(size=kernel),
            "v": RNG.normal(size=kernel),
        }
    arrays = {
        layer: {name: value.astype(np.float32) for name, value in weights.items()}
        for layer, weights in layers.items()
    }
    return KerasWeights(Path("kwyk"), "SavedModel", "", "tensorflow", arrays, "", ())


@pytest.mark.parametrize(("dropout", "share"), [("concrete", None), (0.1, 0.9)])
def test_weights_of_kwyk_make_the_network_of_their_means(
    dropout: float | str, share: float | None
) -> None:
    """nobrainer/models/meshnetbvwn.py and meshnetbwn.py of neuronets/kwyk: without
    randomness, plain convolutions of which each result is multiplied by the share kept."""
    file = kwyk_file(dropout == "concrete")
    dilations = [1, 1, 1, 2, 4, 8, 1]
    given = {"dilations": dilations, "activation": "relu", "dropout": dropout}
    conversion = fit(file, "bayesian_meshnet", given)
    assert conversion.arguments["convolution"] == "weight_norm"
    assert conversion.output_activation == "softmax"
    plain: dict[str, np.ndarray] = {}
    for number in range(1, 9):
        scope, path = (
            ("logits", "head") if number == 8 else (f"layer_{number}", f"block{number}/conv")
        )
        held = file.layers[f"{scope}/conv3d"]
        kept: Any = 1.0 if number == 8 else share
        if kept is None:
            kept = np.clip(file.layers[f"{scope}/concrete_dropout"]["p"], 0.05, 0.95)
        length = np.sqrt((held["v"].astype(np.float64) ** 2).sum((0, 1, 2, 3)))
        plain[f"{path}/kernel"] = (held["g"] * held["v"] / length * kept).astype(np.float32)
        plain[f"{path}/bias"] = (held["bias_m"] * kept).astype(np.float32)
    same = {"outputs": 5, "filters": 4, "dilations": dilations, "norm": None}
    wanted = run(assemble("meshnet", same, plain), X)
    found = run(conversion.network(), X)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_weights_do_not_tell_dropout() -> None:
    with pytest.raises(ConversionError, match="dilations and activation and dropout") as error:
        fit(kwyk_file(concrete=True), "bayesian_meshnet", {})
    assert "dilations=1,1,1,2,4,8,1 activation=relu" in str(error.value)
    assert "dropout=concrete" in str(error.value)
