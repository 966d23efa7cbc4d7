"""The networks of peers, given voxtune's weights, compute what voxtune's do.

Keras's runs on JAX, as the suite `predict` calls it. What is not installed is skipped.
"""

import jax
import numpy as np
import pytest

from voxtune.benchmarks import peer, predict_peer
from voxtune.benchmarks.nets import NETS, keras_weights
from voxtune.engine.step import split
from voxtune.models.families import build

EDGE = 16  # voxels
IMAGE = np.random.default_rng(1).normal(size=(EDGE,) * 3).astype(np.float32)


@pytest.fixture(scope="module", params=NETS)
def network(request: pytest.FixtureRequest) -> tuple[str, np.ndarray]:
    """A network's name, and the logits `[D, H, W, K]` of voxtune's."""
    net = NETS[request.param]
    apply, params, statistics = split(build(net.family, dict(net.arguments)))
    logits = jax.jit(lambda *given: apply(*given)[0])(params, statistics, IMAGE[None, ..., None])
    return request.param, np.asarray(logits[0])


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Of how far logits lie apart."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * expected.std())


def test_keras_computes_the_same(network: tuple[str, np.ndarray]) -> None:
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "jax":
        pytest.skip("Keras does not run on JAX here")
    name, expected = network
    made = peer.keras_network(name, keras_weights(NETS[name]), (*IMAGE.shape, 1))
    assert_close(predict_peer.on_jax_of(made)(IMAGE), expected)


def test_pytorch_computes_the_same(network: tuple[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    name, expected = network
    made = peer.torch_network(name, keras_weights(NETS[name]))
    with torch.inference_mode():
        found = made(torch.from_numpy(IMAGE)[None, None])[0].movedim(0, -1)
    assert_close(found.numpy(), expected)
