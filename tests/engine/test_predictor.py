"""Whole volumes by windows, mirrors, members and draws, against what numpy makes of the network."""

import itertools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array
from scipy import ndimage

from voxtune.engine.mesh import make_mesh, on_all, over_depth
from voxtune.engine.predicted import Predicted
from voxtune.engine.predictor import Member, Mirrors, Predictor
from voxtune.engine.step import Apply, split
from voxtune.engine.tiling import block_starts, weighted_tiles
from voxtune.models.lowering import conv, lowering_of
from voxtune.models.norms import normalise_slabs
from voxtune.models.parameters import assemble, shapes
from voxtune.models.sampling import sampled

RNG = np.random.default_rng(1)
ONE = "data=1"


def member(network: Callable[[Array], Array], devices: str = ONE) -> Member:
    """A network without parameters."""
    mesh = make_mesh(devices)
    apply: Any = lambda params, statistics, image: (network(image), statistics)  # noqa: E731
    return Member(cast(Apply, apply), *jax.device_put(({}, {}), on_all(mesh)))


def meshnet(devices: str = ONE, seed: int = 0, **arguments: Any) -> Member:
    """A random network that sees one voxel around each, in a mesh of devices."""
    chosen: dict[str, Any] = {
        "channels": 1,
        "outputs": 3,
        "filters": 2,
        "dilations": [1],
        "activation": "relu",
        "norm": None,
        **arguments,
    }
    return random_member("meshnet", chosen, devices, seed)


def random_member(
    family: str, arguments: dict[str, Any], devices: str = ONE, seed: int = 0
) -> Member:
    """A network with random parameters, in a mesh of devices."""
    rng = np.random.default_rng(seed)
    values = {
        path: rng.normal(size=shape).astype(np.float32)
        for path, shape in shapes(family, arguments).items()
    }
    apply, *arrays = split(assemble(family, arguments, values))
    return Member(apply, *jax.device_put(arrays, on_all(make_mesh(devices))))


def whole(network: Member, image: np.ndarray) -> np.ndarray:
    """Probabilities in one pass."""
    logits, _ = network.apply(network.params, network.statistics, jnp.asarray(image)[None])
    return np.asarray(jax.nn.softmax(logits[0]))


SIZE, EDGE = (13, 20, 9), 8
IMAGE = RNG.normal(size=(*SIZE, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> Member:
    return meshnet()


@pytest.fixture(scope="module")
def windows(network: Member) -> Predicted:
    """Probabilities by windows of 8 voxels."""
    return Predictor((EDGE,) * 3, 0.25, make_mesh(ONE))([network], IMAGE)


class TestWindows:
    def test_where_each_window_sees_all_that_counts_they_are_the_whole_pass(
        self, network: Member, windows: Predicted
    ) -> None:
        """The receptive field is one voxel around, and a window's faces are without it."""
        found, wanted = np.asarray(windows.mean), whole(network, IMAGE)
        assert found.shape == wanted.shape == (*SIZE, 3)
        inner = [self.seen_whole(size) for size in SIZE]
        clean = inner[0][:, None, None] & inner[1][None, :, None] & inner[2][None, None, :]
        assert 0.2 < clean.mean() < 1
        np.testing.assert_allclose(found[clean], wanted[clean], atol=1e-5)
        assert not np.allclose(found[~clean], wanted[~clean], atol=1e-3)

    def seen_whole(self, size: int) -> np.ndarray:
        """Where no window that holds a voxel ends beside it, but the volume itself."""
        clean = np.ones(size, bool)
        for start in block_starts(size, EDGE, 0.25):
            if start > 0:
                clean[start] = False
            if start + EDGE < size:
                clean[start + EDGE - 1] = False
        return clean

    def test_probabilities_sum_to_one_everywhere(self, windows: Predicted) -> None:
        np.testing.assert_allclose(np.asarray(windows.mean).sum(axis=-1), 1, rtol=1e-5)

    def test_a_network_that_changes_nothing_gives_a_smooth_field_back(self) -> None:
        smooth = ndimage.gaussian_filter(RNG.normal(size=(37, 21, 16, 2)), (4, 4, 4, 0))
        smooth = (smooth / smooth.std()).astype(np.float32)
        echo = Predictor((16, 12, 16), 0.5, make_mesh(ONE), values=True)
        found = echo([member(lambda image: image)], smooth)
        np.testing.assert_allclose(found.mean, smooth, atol=1e-6)

    def test_a_border_effect_leaves_no_seam(self) -> None:
        """Of a constant image, whose windows are 1 inside, and 0 in their first and last plane.

        Uniform weights would leave steps of a half, and of a third where three windows meet.
        """
        edge = 16

        def bordered(image: Array) -> Array:
            inside = (jnp.arange(edge) % (edge - 1) > 0).astype(jnp.float32)
            return image * inside[:, None, None, None]

        predictor = Predictor((edge, 4, 4), 0.5, make_mesh(ONE), values=True)
        found = predictor([member(bordered)], np.ones((40, 4, 4, 1), np.float32))
        line = found.channel(0)[:, 0, 0]
        assert line[0] == line[-1] == 0  # which no other window sees
        assert np.abs(np.diff(line[1:-1])).max() < 0.002

    def test_a_small_scan_is_reflected_to_one_window(self, network: Member) -> None:
        image = IMAGE[:5, :7, :6]
        padded = np.pad(image, ((1, 2), (0, 1), (1, 1), (0, 0)), mode="reflect")
        found = Predictor((EDGE,) * 3, 0.25, make_mesh(ONE))([network], image)
        np.testing.assert_allclose(
            found.mean, whole(network, padded)[1:6, :7, 1:7], rtol=1e-5, atol=1e-6
        )
        long = np.pad(IMAGE[:, :7, :6], ((0, 0), (0, 1), (1, 1), (0, 0)), mode="reflect")
        predictor = Predictor((EDGE,) * 3, 0.25, make_mesh(ONE))
        reflected = np.asarray(predictor([network], long).mean)[:, :7, 1:7]
        np.testing.assert_allclose(predictor([network], IMAGE[:, :7, :6]).mean, reflected)

    def test_one_network_serves_all_shapes(self, network: Member) -> None:
        """It is traced once, whatever the volumes."""
        traced = list[int]()

        def count(image: Array) -> Array:
            traced.append(1)
            return image

        predictor = Predictor((8, 8, 8), 0.25, make_mesh(ONE), values=True)
        echo = member(count)
        for shape in ((13, 8, 9, 1), (20, 31, 8, 1), (8, 8, 8, 1), (5, 8, 8, 1)):
            predictor([echo], np.ones(shape, np.float32))
        assert len(traced) == 1


def looks_everywhere(params: Any, statistics: Any, image: Any) -> Any:
    """A convolution, a norm over slabs of depth, and attention between all voxels."""
    x = normalise_slabs(conv(image, params["kernel"]), jnp.ones(4), jnp.zeros(4))
    voxels = x.reshape(x.shape[0], -1, 4)
    shares = jax.nn.softmax(voxels @ voxels.swapaxes(1, 2), axis=-1)
    return (shares @ voxels).reshape(x.shape) + x, statistics


class TestDevices:
    @pytest.mark.parametrize("devices", ["data=2", "data=4", "spatial=2,data=1"])
    def test_windows_on_several_are_those_on_one(self, windows: Predicted, devices: str) -> None:
        mesh = make_mesh(devices)
        found = Predictor((EDGE,) * 3, 0.25, mesh)([meshnet(devices)], IMAGE)
        np.testing.assert_allclose(found.mean, windows.mean, atol=1e-5)
        np.testing.assert_allclose(found.highest(), windows.highest(), atol=1e-5)

    def test_that_share_blocks_predict_what_one_does(self) -> None:
        image = RNG.normal(size=(11, 8, 8, 1)).astype(np.float32)
        params = {"kernel": RNG.normal(size=(3, 3, 3, 1, 4)).astype(np.float32)}
        network, found = cast(Apply, looks_everywhere), []
        for devices in (ONE, "data=2,spatial=2", "data=1,spatial=4"):
            mesh = make_mesh(devices)
            one = Member(network, *jax.device_put((params, {}), on_all(mesh)))
            mirrors = Mirrors((0,))
            predictor = Predictor((8,) * 3, 0.25, mesh, values=True, mirrors=mirrors)
            found.append(np.asarray(predictor([one], image).mean))
        assert found[0].std() > 1e-2
        for each in found[1:]:
            np.testing.assert_allclose(each, found[0], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("family", "random"),
        [
            ("meshnet", {"dropout": 0.5, "activation": "relu", "norm": None}),
            ("bayesian_meshnet", {"convolution": "flipout"}),  # flips for each block of a batch
        ],
    )
    def test_draws_are_those_of_one(self, family: str, random: dict[str, Any]) -> None:
        arguments = {"channels": 1, "outputs": 2, "filters": 2, "dilations": [1], **random}
        found = []
        for devices in (ONE, "data=4", "data=2,spatial=2"):
            one = random_member(family, arguments, devices)
            predictor = Predictor((EDGE,) * 3, 0.25, make_mesh(devices), samples=2, seed=3)
            found.append(np.asarray(predictor([one], IMAGE).mean))
        assert found[0].std() > 0.1
        for each in found[1:]:
            np.testing.assert_allclose(each, found[0], atol=1e-5)

    @pytest.mark.parametrize(("devices", "form"), [("data=2", "slices"), ("spatial=2", "plain")])
    def test_convolutions_know_whether_depth_is_split(self, devices: str, form: str) -> None:
        """And each device has its part of a block alone, of what comes out too."""
        seen: list[Any] = []

        def network(image: Array) -> Array:
            seen.append(lowering_of((3, 3, 3, 1, 1)))
            jax.debug.inspect_array_sharding(image, callback=lambda each: seen.append(each))
            return image

        mesh = make_mesh(devices)
        predictor = Predictor((4, 8, 8), 0.25, mesh, values=True)
        image = np.arange(8.0**3, dtype=np.float32).reshape(8, 8, 8, 1)
        found = predictor([member(network, devices)], image)
        np.testing.assert_allclose(found.mean, image, rtol=1e-6)
        assert seen[0] == form
        assert seen[1].is_equivalent_to(over_depth(mesh), 5)


class TestVariance:
    """By several windows, which disagree where they overlap."""

    def predicted(self, *members: Member) -> Predicted:
        return Predictor((EDGE,) * 3, 0.25, make_mesh(ONE), variance=True)(members, IMAGE)

    def test_passes_that_agree_have_none(self, network: Member) -> None:
        np.testing.assert_allclose(self.predicted(network, network).variance(), 0, atol=1e-6)

    def test_it_is_that_of_each_window_blended(self, network: Member) -> None:
        """Of two passes it is a quarter of the squared difference."""
        other = meshnet(seed=5)
        wanted = np.zeros(SIZE)
        for corner, along in weighted_tiles(SIZE, (EDGE,) * 3, 0.25):
            place = tuple(slice(at, at + EDGE) for at in corner)
            one, two = (whole(each, IMAGE[place]) for each in (network, other))
            wanted[place] += np.einsum("i,j,k", *along) * ((one - two) ** 2 / 4).sum(-1)
        assert wanted.mean() > 1e-2
        np.testing.assert_allclose(self.predicted(network, other).variance(), wanted, atol=1e-5)


class TestPasses:
    """In one window, so that the whole pass is the reference."""

    shape = (8, 8, 8)
    image = RNG.normal(size=(*shape, 1)).astype(np.float32)

    def predicted(self, *members: Member, **options: Any) -> Predicted:
        return Predictor(self.shape, 0.25, make_mesh(ONE), **options)(members, self.image)

    def test_mirrors_are_averaged_and_classes_that_have_a_side_exchanged(
        self, network: Member
    ) -> None:
        mirrors = Mirrors((0, 1, 2), 1, ((1, 2),))
        found = self.predicted(network, mirrors=mirrors, variance=True)
        passes = []
        for axes in itertools.chain.from_iterable(
            itertools.combinations((0, 1, 2), number) for number in range(4)
        ):
            back = np.flip(whole(network, np.flip(self.image, axes)), axes)
            passes.append(back[..., [0, 2, 1]] if 1 in axes else back)
        assert len(passes) == 8
        np.testing.assert_allclose(found.mean, np.mean(passes, axis=0), atol=1e-5)
        np.testing.assert_allclose(found.variance(), np.var(passes, axis=0).sum(-1), atol=1e-5)

    def test_mirrors_change_nothing_of_what_is_symmetric(self) -> None:
        blurred = member(lambda image: jnp.concatenate([image, image**2, -image], -1))
        plain = self.predicted(blurred)
        mirrored = self.predicted(blurred, mirrors=Mirrors((0, 1, 2), 0))
        np.testing.assert_allclose(mirrored.mean, plain.mean, atol=1e-6)

    def test_members_are_averaged_as_probabilities(self, network: Member) -> None:
        found = self.predicted(network, meshnet(seed=5), variance=True)
        passes = [whole(each, self.image) for each in (network, meshnet(seed=5))]
        mean = np.mean(passes, axis=0)
        np.testing.assert_allclose(found.mean, mean, atol=1e-5)
        np.testing.assert_allclose(found.variance(), np.var(passes, axis=0).sum(-1), atol=1e-5)
        np.testing.assert_allclose(found.entropy(), -(mean * np.log(mean)).sum(-1), atol=1e-5)
        np.testing.assert_array_equal(found.winners(), np.asarray(found.mean).argmax(-1))
        np.testing.assert_allclose(found.highest(), mean.max((0, 1, 2)), atol=1e-5)

    def test_draws_are_those_of_their_keys(self) -> None:
        dropping = meshnet(dropout=0.5, filters=8)
        found = self.predicted(dropping, samples=4, seed=7, variance=True)
        passes = []
        for key in jax.random.split(jax.random.key(7), 4):
            x = jnp.asarray(self.image)[None]
            logits = dropping.apply.drawn(dropping.params, dropping.statistics, x, key)
            passes.append(np.asarray(jax.nn.softmax(logits[0])))
        mean, variance = np.mean(passes, axis=0), np.var(passes, axis=0).sum(-1)
        assert variance.mean() > 1e-3
        np.testing.assert_allclose(found.mean, mean, atol=1e-5)
        np.testing.assert_allclose(found.variance(), variance, atol=1e-5)
        again = self.predicted(dropping, samples=4, seed=7)
        np.testing.assert_array_equal(again.mean, found.mean)
        other = self.predicted(dropping, samples=4, seed=8)
        assert not np.allclose(other.mean, found.mean, atol=1e-3)

    def test_many_draws_agree_with_sampled(self) -> None:
        """Of one distribution: 200 draws each, by keys that differ."""
        arguments: dict[str, Any] = {
            "channels": 1,
            "outputs": 1,
            "filters": 2,
            "dilations": [1],
            "convolution": "reparameterization",
        }
        rng = np.random.default_rng(0)
        network = assemble(
            "bayesian_meshnet",
            arguments,
            {
                path: rng.normal(size=shape).astype(np.float32)
                for path, shape in shapes("bayesian_meshnet", arguments).items()
            },
        )
        apply, *arrays = split(network)
        one = Member(apply, *arrays)
        found = Predictor((4, 4, 4), 0.25, make_mesh(ONE), samples=200, variance=True)(
            [one], self.image[:4, :4, :4]
        )
        wanted = sampled(
            network, jnp.asarray(self.image[None, :4, :4, :4]), nnx.Rngs(dropout=1), samples=200
        )
        variance = np.asarray(wanted.variance[0]).sum(-1)
        assert np.abs(found.variance() - variance).max() < 0.15
        assert variance.max() > 0.2
        np.testing.assert_allclose(found.mean, wanted.mean[0], atol=0.15)
        np.testing.assert_allclose(found.entropy(), wanted.entropy[0], atol=0.15)


class TestPredicted:
    def test_what_lies_beyond_the_volume_counts_for_nothing(self) -> None:
        mean = RNG.random((2, 3, 4, 2)).astype(np.float32) - 1
        wide = np.pad(mean, [(1, 2), (0, 3), (2, 1), (0, 0)], constant_values=9.0)
        found = Predicted(jnp.asarray(wide), np.s_[1:3, 0:3, 2:6])
        assert found.shape == (2, 3, 4)
        np.testing.assert_array_equal(found.mean, mean)
        np.testing.assert_array_equal(found.channel(1), mean[..., 1])
        np.testing.assert_array_equal(found.highest(), mean.max((0, 1, 2)))
        np.testing.assert_array_equal(found.winners(), mean.argmax(-1))
        np.testing.assert_array_equal(found.winners(-0.5), mean[..., 1] > -0.5)
        assert found.winners().dtype == np.uint8
        assert Predicted.of(np.zeros((1, 1, 1, 257))).winners().dtype == np.uint16
