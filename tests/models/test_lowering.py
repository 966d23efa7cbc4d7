"""Each lowering against plain XLA operations in float64, in bfloat16, and over four devices."""

from collections.abc import Callable
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from voxtune.models.depth_slices import conv_by_fours, conv_depth_slices, conv_strided_slices
from voxtune.models.lowering import (
    conv,
    conv_plain,
    conv_space_to_batch,
    conv_strided,
    conv_transpose_blocks,
    lowering_of,
    max_pool,
    plain_lowerings,
)
from voxtune.models.up_slices import up_conv_slices
from voxtune.models.winograd import pays

RNG = np.random.default_rng(0)
NAMES = ("NDHWC", "DHWIO", "NDHWC")
Lowering = Callable[..., Array]


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def reference(x: Array, kernel: Array, dilation: int = 1, stride: int = 1) -> Array:
    """XLA's convolution with `size // 2` zeros on both sides."""
    pads = [(size // 2 * dilation,) * 2 for size in kernel.shape[:3]]
    gaps, steps = (dilation,) * 3, (stride,) * 3
    return lax.conv_general_dilated(
        x, kernel, steps, pads, rhs_dilation=gaps, dimension_numbers=NAMES
    )


def spread_out(x: Array, kernel: Array) -> Array:
    """The transposed convolution whose kernel equals its stride, as XLA does it."""
    size = kernel.shape[0]
    return lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1, ::-1],
        (1, 1, 1),
        [(size - 1, size - 1)] * 3,
        lhs_dilation=(size,) * 3,
        dimension_numbers=NAMES,
    )


def with_gradients(function: Lowering, *arrays: np.ndarray) -> tuple[Array, tuple[Array, ...]]:
    """The result, and the gradients of its sum weighted by the sine of its places."""

    def total(*arrays: Array) -> tuple[Array, Array]:
        y = function(*arrays)
        weights = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return (y * weights.astype(y.dtype)).astype(jnp.promote_types(y.dtype, "f4")).sum(), y

    numbers = tuple(range(len(arrays)))
    gradients, y = jax.jit(jax.grad(total, numbers, has_aux=True))(*map(jnp.asarray, arrays))
    return y, gradients


def same(function: Lowering, plain: Lowering, *arrays: np.ndarray) -> None:
    ours, theirs = with_gradients(function, *arrays), with_gradients(plain, *arrays)
    for found, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert wanted.dtype == jnp.float64
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "filters", "dilation"),
    [
        ((2, 5, 6, 7, 3), 4, 1),
        ((2, 4, 3, 5, 8), 16, 1),  # gathered by number, both ways
        ((1, 4, 9, 5, 8), 3, 2),
        ((1, 4, 9, 8, 1), 2, 2),  # one channel
        ((1, 5, 6, 7, 2), 3, 8),  # all but the middle tap see zeros alone
    ],
)
@pytest.mark.parametrize("lowering", [conv_depth_slices, conv_space_to_batch])
@pytest.mark.usefixtures("float64")
def test_convolution(lowering, shape, filters, dilation):
    x, kernel = normal(*shape), normal(3, 3, 3, shape[-1], filters)
    same(partial(lowering, dilation=dilation), partial(reference, dilation=dilation), x, kernel)


@pytest.mark.parametrize(
    ("shape", "filters", "dilation"),
    [
        ((2, 5, 6, 8, 16), 17, 1),
        ((1, 1, 3, 11, 16), 16, 1),  # one voxel more than fill the fours
        ((1, 5, 3, 23, 17), 16, 2),
        ((1, 2, 1, 32, 16), 16, 4),  # all but the middle tap see zeros alone
    ],
)
@pytest.mark.usefixtures("float64")
def test_convolution_by_fours(shape, filters, dilation):
    x, kernel = jnp.asarray(normal(*shape)), jnp.asarray(normal(3, 3, 3, shape[-1], filters))
    found = jax.jit(conv_by_fours, static_argnums=2)(x, kernel, dilation)
    wanted = reference(x, kernel, dilation)
    assert wanted.dtype == jnp.float64
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)


def test_fours_lose_little_in_float32():
    x, kernel = np.maximum(normal(1, 4, 8, 16, 128), 0), normal(3, 3, 3, 128, 32)
    x, kernel = np.float32(x), np.float32(kernel)
    with jax.enable_x64(True):
        wanted = np.asarray(reference(jnp.float64(x), jnp.float64(kernel)))
    assert wanted.dtype == np.float64
    found = jax.jit(conv_by_fours, static_argnums=2)(jnp.asarray(x), jnp.asarray(kernel), 1)
    assert np.abs(found - wanted).max() < 3e-6 * np.abs(wanted).max()


def test_fours_are_taken_where_they_pay():
    def volume(edge: int, channels: int = 32, dtype: str = "f4") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, edge, edge, edge, channels), dtype)

    def kernel(channels: int = 32, dtype: str = "f4") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((3, 3, 3, channels, channels), dtype)

    assert pays(volume(64), kernel(), 1)
    assert pays(volume(64), kernel(), 8)
    assert not pays(volume(64), kernel(), 16)  # half of what is read lies outside
    assert not pays(volume(66), kernel(), 8)  # 96 voxels are computed for 66
    assert not pays(volume(16), kernel(), 1)
    assert pays(volume(128, 16), kernel(16), 1)
    assert not pays(volume(128, 15), kernel(15), 1)
    assert not pays(volume(64, 32, "bfloat16"), kernel(32, "bfloat16"), 1)
    taken = str(jax.make_jaxpr(conv_depth_slices)(volume(64), kernel()))
    with mock.patch("voxtune.models.depth_slices.pays", return_value=False):
        other = str(jax.make_jaxpr(partial(conv_depth_slices))(volume(64), kernel()))
    assert taken != other


@pytest.mark.parametrize("shape", [(2, 4, 6, 8, 3), (1, 5, 7, 3, 8), (1, 1, 2, 1, 1)])
@pytest.mark.usefixtures("float64")
def test_strided_convolution(shape):
    x, kernel = normal(*shape), normal(3, 3, 3, shape[-1], 4)
    same(conv_strided_slices, partial(reference, stride=2), x, kernel)
    same(conv_strided, partial(reference, stride=2), x, kernel)
    for stride in (1, 3):  # as XLA does it
        same(partial(conv_strided, stride=stride), partial(reference, stride=stride), x, kernel)


@pytest.mark.usefixtures("float64")
def test_a_kernel_of_one_voxel_is_a_product():
    same(conv, reference, normal(2, 3, 4, 5, 6), normal(1, 1, 1, 6, 2))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.usefixtures("float64")
def test_transposed_convolution(size):
    x, kernel = normal(2, 2, 3, 4, 3), normal(size, size, size, 3, 2)
    same(conv_transpose_blocks, spread_out, x, kernel)


def window(x: Array) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 2, 1), (1, 2, 2, 2, 1), "VALID")


@pytest.mark.usefixtures("float64")
def test_max_pool():
    same(max_pool, window, normal(2, 5, 4, 7, 3))  # odd sizes: the last plane fills no block


@pytest.mark.usefixtures("float64")
def test_ties_send_their_gradient_to_the_first_voxel():
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.zeros((1, 2, 2, 2, 1)))
    assert gradient.ravel().tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    same(max_pool, window, np.maximum(normal(1, 6, 6, 6, 2), 0))  # XLA's choice on CPUs too


# --- bfloat16 --------------------------------------------------------------------------------

CHANNELS = 8
FORMS: dict[str, tuple[Lowering, tuple[int, ...]]] = {
    "plain": (partial(conv_plain, dilation=2), (3, 3, 3, CHANNELS, 3)),
    "slices": (conv_depth_slices, (3, 3, 3, CHANNELS, 3)),
    "slices, dilated": (partial(conv_depth_slices, dilation=2), (3, 3, 3, CHANNELS, 3)),
    "slices, stride 2": (conv_strided_slices, (3, 3, 3, CHANNELS, 3)),
    "batch": (partial(conv_space_to_batch, dilation=2), (3, 3, 3, CHANNELS, 3)),
    "product": (conv, (1, 1, 1, CHANNELS, 3)),
    "transposed": (conv_transpose_blocks, (2, 2, 2, CHANNELS, 3)),
    "up, slices": (up_conv_slices, (CHANNELS, 4, 4, 4, 3)),
}


@pytest.mark.parametrize("name", FORMS)
def test_bfloat16_is_near_float32(name):
    lowering, shape = FORMS[name]
    x, kernel = (jnp.bfloat16(each) for each in (normal(1, 16, 12, 10, CHANNELS), normal(*shape)))
    y, gradients = with_gradients(lowering, x, kernel)
    exact, its_gradients = with_gradients(lowering, x.astype("f4"), kernel.astype("f4"))
    for found, wanted in zip((y, *gradients), (exact, *its_gradients), strict=True):
        assert found.dtype == jnp.bfloat16
        # Rounded once, to 8 bits: sums of hundreds of terms in bfloat16 would be off by percents.
        # The gradients' weights were rounded too.
        error = np.linalg.norm(found.astype("f4") - wanted) / np.linalg.norm(wanted)
        assert error < 2**-8


# --- choice ----------------------------------------------------------------------------------

KERNEL = (3, 3, 3, 2, 2)


def mesh_of(data: int, spatial: int) -> Mesh:
    return jax.make_mesh(
        (data, spatial),
        ("data", "spatial"),
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[: data * spatial],
    )


def test_the_backend_chooses():
    def chosen(backend: str, *rest: int) -> str:
        with mock.patch("jax.default_backend", return_value=backend):
            return lowering_of(KERNEL, *rest)

    assert [chosen("cpu"), chosen("cpu", 16), chosen("cpu", 1, 2)] == ["slices"] * 3
    assert [chosen("gpu"), chosen("gpu", 16), chosen("gpu", 1, 2)] == ["plain", "batch", "plain"]
    assert [chosen("tpu"), chosen("tpu", 16), chosen("tpu", 1, 2)] == ["plain"] * 3
    assert lowering_of((1, 1, 1, 2, 2)) == "product"
    assert lowering_of((5, 5, 5, 2, 2)) == "plain"


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_split_depth_wants_the_plain_convolution(backend):
    with mock.patch("jax.default_backend", return_value=backend):
        with jax.set_mesh(mesh_of(1, 4)):
            assert lowering_of(KERNEL, 2) == "plain"
        with jax.set_mesh(mesh_of(4, 1)):
            assert lowering_of(KERNEL, 2) != "plain"


def test_the_choice_is_made_again_for_what_was_jitted():
    x, kernel, jitted = jnp.ones((1, 4, 4, 4, 2)), jnp.ones(KERNEL), jax.jit(conv)

    def loops() -> bool:
        return "while" in jitted.lower(x, kernel).as_text()

    assert loops()
    with plain_lowerings():
        assert not loops()
    with jax.set_mesh(mesh_of(1, 4)):
        assert not loops()
    assert loops()


# --- devices ---------------------------------------------------------------------------------

OVER_DEVICES: dict[str, tuple[Lowering, tuple[int, ...] | None]] = {
    "conv": (conv, (3, 3, 3, 2, 3)),
    "conv by number": (conv, (3, 3, 3, 8, 3)),
    "conv, one channel": (conv, (3, 3, 3, 1, 3)),
    "conv, dilated": (partial(conv, dilation=2), (3, 3, 3, 2, 3)),
    "conv of one voxel": (conv, (1, 1, 1, 2, 3)),
    "strided": (conv_strided, (3, 3, 3, 2, 3)),
    "transposed": (conv_transpose_blocks, (2, 2, 2, 2, 3)),
    "max pool": (max_pool, None),
}


@pytest.mark.parametrize(
    ("data", "spatial", "backend"), [(4, 1, "cpu"), (4, 1, "gpu"), (1, 4, "cpu")]
)
@pytest.mark.parametrize("name", OVER_DEVICES)
def test_devices_do_what_one_does_and_gather_nothing(name, data, spatial, backend):
    function, shape = OVER_DEVICES[name]
    kernels = [] if shape is None else [jnp.float32(normal(*shape))]
    x = jnp.float32(normal(4, 16, 6, 6, 2 if shape is None else shape[-2]))
    numbers = tuple(range(1 + len(kernels)))

    def total(*arrays: Array) -> Array:
        return (function(*arrays) ** 2).sum()

    alone = jax.grad(total, numbers)(x, *kernels)
    mesh = mesh_of(data, spatial)
    split, whole = NamedSharding(mesh, P("data", "spatial")), NamedSharding(mesh, P())
    where = (split, *(whole for _ in kernels))
    with mock.patch("jax.default_backend", return_value=backend), jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(total, numbers), in_shardings=where, out_shardings=where)
        compiled = gradient.lower(x, *kernels).compile()
        found = compiled(*jax.device_put((x, *kernels), where))
    program = compiled.as_text()
    assert "all-gather" not in program
    assert "all-to-all" not in program
    for mine, wanted in zip(found, alone, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-3)


def test_fours_gather_no_batch():
    x, kernel = jnp.float32(normal(4, 2, 3, 8, 16)), jnp.float32(normal(3, 3, 3, 16, 16))
    by_fours = partial(conv_by_fours, dilation=1)
    alone, mesh = conv_depth_slices(x, kernel), mesh_of(4, 1)
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    where = split, whole
    convolve = jax.jit(by_fours, in_shardings=where, out_shardings=split)
    compiled = convolve.lower(x, kernel).compile()
    assert "all-" not in compiled.as_text()
    np.testing.assert_allclose(compiled(*jax.device_put((x, kernel), where)), alone, atol=1e-4)
