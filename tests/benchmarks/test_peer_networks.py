"""The networks of peers, given voxtune's weights, compute what voxtune's do.

Keras's runs on JAX, as the suite `predict` calls it. What is not installed is skipped.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from voxtune.benchmarks import peer, predict_peer
from voxtune.benchmarks.nets import MAIN, NETS, Net, for_peers
from voxtune.converters.families import as_graph
from voxtune.engine.step import split

EDGE = 16  # voxels
IMAGE = np.random.default_rng(1).normal(size=(EDGE,) * 3).astype(np.float32)
_UNET = {"outputs": 2, "filters": 2, "depth": 1}
# Of all layers that the others have.
SMALL: Mapping[str, Mapping[str, Any]] = {
    "graph": {"graph": as_graph("unet", _UNET).to_json()},
    "highresnet": {"filters": 2, "blocks": 1},
    "resenc_unet": {"features": (2, 4), "blocks": (1, 1), "strides": (1, 2)},
    "synthseg_unet": {"filters": 2, "depth": 1, "outputs": 2},
    "unetr": {"patch": 4, "width": 8, "heads": 2, "blocks": 2, "mlp": 8, "filters": 2},
}


def computed(net: Net, path: Path) -> np.ndarray:
    """The logits `[D, H, W, K]` of voxtune's, for which a file is written as peers read it."""
    network = net.built()
    apply, params, statistics = split(network)
    np.savez(path, allow_pickle=False, **for_peers(net, params, statistics))
    logits = jax.jit(lambda *given: apply(*given)[0])(params, statistics, IMAGE[None, ..., None])
    return np.asarray(logits[0])


@pytest.fixture(scope="module", params=MAIN)
def network(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, np.ndarray]:
    """A network's name, the file that peers read, and the logits of voxtune's."""
    path = tmp_path_factory.mktemp("peers") / "network.npz"
    return request.param, path, computed(NETS[request.param], path)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Of how far logits lie apart."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * expected.std())


@pytest.fixture
def keras() -> None:
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras does not run on JAX here")


def keras_logits(path: Path) -> np.ndarray:
    made = peer.keras_network(*peer.network_in(path), (*IMAGE.shape, 1))
    return np.asarray(predict_peer.on_jax_of(made)(IMAGE))


@pytest.mark.usefixtures("keras")
def test_keras_computes_the_same(network: tuple[str, Path, np.ndarray]) -> None:
    _, path, expected = network
    assert_close(keras_logits(path), expected)


@pytest.mark.usefixtures("keras")
@pytest.mark.parametrize("name", SMALL)
def test_keras_computes_the_same_of_all_layers(name: str, tmp_path: Path) -> None:
    net = NETS[name].at(IMAGE.shape)
    net = Net(net.title, net.family, {**net.arguments, **SMALL[name]})
    expected = computed(net, tmp_path / "network.npz")
    assert_close(keras_logits(tmp_path / "network.npz"), expected)


@pytest.mark.usefixtures("keras")
@pytest.mark.parametrize("name", NETS)
def test_keras_has_the_layers_of_those_that_say_so(name: str) -> None:
    layers = importlib.import_module("keras").layers
    net = NETS[name]
    kinds = {each.kind for each in as_graph(net.family, net.arguments).layers}
    own = {"ZeroPadding3DChannels"}  # which `keras_network` writes as an operation
    assert all(hasattr(layers, each) for each in kinds - own) == net.keras


def test_pytorch_computes_the_same(network: tuple[str, Path, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    name, path, expected = network
    made = peer.torch_network(name, [*peer.network_in(path)[1].values()])
    with torch.inference_mode():
        found = made(torch.from_numpy(IMAGE)[None, None])[0].movedim(0, -1)
    assert_close(found.numpy(), expected)
