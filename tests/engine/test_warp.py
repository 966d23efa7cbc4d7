"""Turned, stretched and bent blocks: equal to SciPy, image by order 1 and label by order 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from voxtune.engine.mesh import make_mesh, over_data
from voxtune.engine.warp import affine, warp

SHAPE = (9, 10, 8)
RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(*SHAPE, 2)).astype(np.float32)
LABEL = RNG.choice(np.array([0, 3, 7, 255], np.uint8), SHAPE)
DISPLACEMENT = RNG.uniform(-3, 3, (*SHAPE, 3)).astype(np.float32)
STILL = {"rotation": (0, 0, 0), "scaling": (1, 1, 1), "shear": (0, 0, 0), "translation": (0, 0, 0)}
MOVES = {
    "still": {},
    "rotation": {"rotation": (0.5, -0.3, 2.8)},
    "scaling": {"scaling": (0.7, 1.4, 1.1)},
    "shear": {"shear": (0.2, -0.1, 0.3)},
    "translation": {"translation": (2.3, -1.6, 0.4)},
    "far": {"translation": (40.2, -31.7, 25.1)},  # through several mirrors
    "all": {
        "rotation": (-0.4, 0.9, 0.2),
        "scaling": (1.3, 0.8, 1.2),
        "shear": (0.1, 0.2, -0.3),
        "translation": (1.1, 0.7, -2.2),
    },
}
run = jax.jit(warp)


def matrix_of(move: dict, spacing: tuple[float, ...] = (1, 1, 1)) -> np.ndarray:
    given = [jnp.asarray(value, jnp.float32) for value in {**STILL, **move}.values()]
    return np.asarray(affine(*given, spacing))


def sources(matrix: np.ndarray, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Where each voxel comes from, float64 `[3, D, H, W]`."""
    centre = (np.array(shape) - 1).reshape(3, 1, 1, 1) / 2
    offsets = np.indices(shape) - centre
    turned = np.tensordot(matrix[:, :3].astype(float), offsets, 1)
    return turned + matrix[:, 3].reshape(3, 1, 1, 1) + centre


def check(image: np.ndarray, label: np.ndarray, found: np.ndarray, coordinates: np.ndarray) -> None:
    """Both are what SciPy samples at the coordinates."""
    for channel in range(image.shape[-1]):
        wanted = ndimage.map_coordinates(image[..., channel], coordinates, order=1, mode="mirror")
        np.testing.assert_allclose(found[0][..., channel], wanted, atol=2e-5)
    wanted = ndimage.map_coordinates(label, coordinates, order=0, mode="mirror")
    tie = (np.abs(coordinates % 1 - 0.5) < 1e-4).any(axis=0)  # where rounding may go either way
    assert tie.mean() < 0.05
    np.testing.assert_array_equal(np.asarray(found[1])[~tie], wanted[~tie])


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 1, 0.8)])
def test_affine_is_a_rotation_in_millimetres_of_what_was_scaled_and_sheared(spacing):
    move = MOVES["all"]
    a, b, c = move["shear"]
    mm = Rotation.from_euler("xyz", move["rotation"]).as_matrix()
    mm = mm @ np.diag(move["scaling"]) @ [[1, a, b], [0, 1, c], [0, 0, 1]]
    to_mm = np.diag(spacing)
    found = matrix_of(move, spacing)
    np.testing.assert_allclose(found[:, :3], np.linalg.inv(to_mm) @ mm @ to_mm, atol=1e-6)
    np.testing.assert_allclose(found[:, 3], move["translation"])


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_an_affine_change_is_scipys(move):
    matrix = matrix_of(move, (1.5, 1, 0.8))
    found = run(IMAGE, LABEL, matrix)
    check(IMAGE, LABEL, found, sources(matrix))
    centre = (np.array(SHAPE) - 1) / 2
    turned = matrix[:, :3].astype(float)
    offset = centre + matrix[:, 3] - turned @ centre
    whole = ndimage.affine_transform(IMAGE[..., 0], turned, offset, order=1, mode="mirror")
    np.testing.assert_allclose(found[0][..., 0], whole, atol=2e-5)


def test_a_displacement_is_added_to_where_the_affine_leads():
    matrix = matrix_of(MOVES["all"])
    coordinates = sources(matrix) + np.moveaxis(DISPLACEMENT, -1, 0)
    check(IMAGE, LABEL, run(IMAGE, LABEL, matrix, DISPLACEMENT), coordinates)


def test_without_strength_nothing_changes_by_a_bit():
    for displacement in (None, np.zeros((*SHAPE, 3), np.float32)):
        image, label = run(IMAGE, LABEL, matrix_of({}), displacement)
        np.testing.assert_array_equal(image, IMAGE)
        np.testing.assert_array_equal(label, LABEL)
        assert (image.dtype, label.dtype) == (IMAGE.dtype, LABEL.dtype)


def test_a_quarter_turn_takes_each_voxel_to_another():
    image, label = IMAGE[:8, :8], LABEL[:8, :8]
    found = run(image, label, matrix_of({"rotation": (0, 0, np.pi / 2)}))
    np.testing.assert_allclose(found[0], np.rot90(image, axes=(1, 0)), atol=1e-5)
    np.testing.assert_array_equal(found[1], np.rot90(label, axes=(1, 0)))


def test_a_slice_of_one_voxel_is_as_good_as_any_block():
    matrix = matrix_of(MOVES["all"])
    image, label = IMAGE[:1], LABEL[:1]
    check(image, label, run(image, label, matrix), sources(matrix, label.shape))


def test_a_target_is_interpolated_as_the_image_is():
    matrix = matrix_of(MOVES["all"])
    image, target = run(IMAGE, IMAGE[..., 0], matrix)
    np.testing.assert_array_equal(target, image[..., 0])
    assert not np.isin(target, IMAGE).all()


def test_nan_of_a_target_spreads_to_its_neighbours_alone():
    target = IMAGE[..., 0].copy()
    target[4, 4, 4] = np.nan
    image, found = run(IMAGE, target, matrix_of({"translation": (0.5, 0, 0)}))
    assert np.isfinite(image).all()
    near = np.argwhere(np.isnan(np.asarray(found)))
    assert len(near) >= 2
    assert (np.abs(near - 4) <= 1).all()


def test_blocks_that_are_split_over_devices_stay_where_they_are():
    sharding = over_data(make_mesh("data=4"))
    moves = np.stack([matrix_of(MOVES[name]) for name in ("still", "all", "rotation", "shear")])
    batch = [np.stack([each] * 4) for each in (IMAGE, LABEL)] + [moves]
    batch.append(np.stack([DISPLACEMENT] * 4))
    split = jax.jit(jax.vmap(warp), in_shardings=sharding, out_shardings=sharding)
    compiled = split.lower(*batch).compile()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()
    image, label = map(np.asarray, compiled(*jax.device_put(batch, sharding)))
    for i in range(4):
        alone = run(*(each[i] for each in batch))
        np.testing.assert_allclose(image[i], alone[0], atol=1e-5)
        assert (label[i] == alone[1]).mean() > 0.99
