"""Blocks of a volume, blended into what one pass over the whole volume would have given."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxtune.engine.mesh import make_mesh, on_all, over_depth
from voxtune.engine.predict import Predictor, block_weight
from voxtune.engine.step import Apply, split
from voxtune.engine.tiling import block_starts
from voxtune.models.lowering import conv, lowering_of
from voxtune.models.norms import normalise_slabs
from voxtune.models.parameters import assemble, shapes


class TestWeights:
    @pytest.mark.parametrize("block", [(128, 128, 128), (8, 16, 4), (1, 1, 1)])
    def test_weights_are_positive_symmetric_and_highest_in_the_middle(
        self, block: tuple[int, int, int]
    ) -> None:
        weight = block_weight(block)
        assert (weight.shape, weight.dtype) == (block, np.float32)
        assert weight.min() > 0
        np.testing.assert_array_equal(weight, weight[::-1, ::-1, ::-1])
        assert weight.max() == weight[tuple(size // 2 for size in block)]


SIZE, EDGE = (13, 20, 9), 8
RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def passes() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a random network that sees one voxel around each.

    By windows of 8 voxels, and in one pass over the whole volume.
    """
    arguments = {
        "channels": 1,
        "outputs": 3,
        "filters": 2,
        "dilations": [1],
        "activation": "relu",
        "norm": None,
    }
    rng = np.random.default_rng(0)
    values = {
        path: rng.normal(size=shape).astype(np.float32)
        for path, shape in shapes("meshnet", arguments).items()
    }
    apply, params, statistics = split(assemble("meshnet", arguments, values))
    image = rng.normal(size=(*SIZE, 1)).astype(np.float32)
    predictor = Predictor(apply, (EDGE,) * 3, 0.25, make_mesh())
    whole, _ = jax.jit(apply)(params, statistics, jnp.asarray(image)[None])
    return predictor(params, statistics, image), np.asarray(jax.nn.softmax(whole[0]))


class TestWindows:
    def test_both_are_equal_away_from_the_windows_faces(
        self, passes: tuple[np.ndarray, np.ndarray]
    ) -> None:
        windows, whole = passes
        assert windows.shape == whole.shape == (*SIZE, 3)
        inner = [self.seen_whole(size) for size in SIZE]
        clean = inner[0][:, None, None] & inner[1][None, :, None] & inner[2][None, None, :]
        assert 0.2 < clean.mean() < 1
        np.testing.assert_allclose(windows[clean], whole[clean], atol=1e-5)
        assert not np.allclose(windows[~clean], whole[~clean], atol=1e-3)

    def seen_whole(self, size: int) -> np.ndarray:
        """Where no window that holds a voxel ends beside it, but the volume itself."""
        clean = np.ones(size, bool)
        for start in block_starts(size, EDGE, 0.25):
            if start > 0:
                clean[start] = False
            if start + EDGE < size:
                clean[start + EDGE - 1] = False
        return clean

    def test_probabilities_sum_to_one_everywhere(
        self, passes: tuple[np.ndarray, np.ndarray]
    ) -> None:
        np.testing.assert_allclose(passes[0].sum(axis=-1), 1, rtol=1e-5)


def looks_everywhere(params: Any, statistics: Any, image: Any) -> Any:
    """A convolution, a norm over slabs of depth, and attention between all voxels."""
    x = normalise_slabs(conv(image, params["kernel"]), jnp.ones(4), jnp.zeros(4))
    voxels = x.reshape(x.shape[0], -1, 4)
    shares = jax.nn.softmax(voxels @ voxels.swapaxes(1, 2), axis=-1)
    return (shares @ voxels).reshape(x.shape) + x, statistics


def test_devices_that_share_blocks_predict_what_one_does() -> None:
    image = RNG.normal(size=(11, 8, 8, 1)).astype(np.float32)
    params = {"kernel": RNG.normal(size=(3, 3, 3, 1, 4)).astype(np.float32)}
    network, found = cast(Apply, looks_everywhere), []
    for devices in ("data=1", "data=2,spatial=2", "spatial=4"):
        mesh = make_mesh(devices)
        arrays = jax.device_put((params, {}), on_all(mesh))
        found.append(Predictor(network, (8,) * 3, 0.25, mesh, values=True)(*arrays, image))
    assert found[0].std() > 1e-2
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("devices", "form"), [("data=2", "slices"), ("spatial=2", "plain")])
def test_convolutions_know_whether_depth_is_split(devices: str, form: str):
    """And each device has its part of a block alone, of what comes out too."""
    seen = []

    def network(params: Any, statistics: Any, image: Any) -> Any:
        seen.append(lowering_of((3, 3, 3, 1, 1)))
        jax.debug.inspect_array_sharding(image, callback=lambda each: seen.append(each))
        return image, statistics

    mesh = make_mesh(devices)
    image = np.arange(8.0**3, dtype=np.float32).reshape(8, 8, 8, 1)
    predictor = Predictor(cast(Apply, network), (4, 8, 8), 0.25, mesh, values=True)
    np.testing.assert_allclose(predictor({}, {}, image), image, rtol=1e-6)
    assert seen[0] == form
    assert seen[1].is_equivalent_to(over_depth(mesh), 5)
