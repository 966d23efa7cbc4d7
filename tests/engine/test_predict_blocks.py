"""Blocks of a volume, blended into what one pass over the whole volume would have given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from voxtune.engine.mesh import data_mesh
from voxtune.engine.predict import Predictor, block_weight
from voxtune.engine.step import split
from voxtune.engine.tiling import block_starts
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
    predictor = Predictor(apply, (EDGE,) * 3, 0.25, data_mesh())
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
