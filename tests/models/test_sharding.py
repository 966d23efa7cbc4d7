"""Training steps of which batch and depth are split over devices, against one device's."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from voxtune.engine.mesh import DATA
from voxtune.models.errors import InputError
from voxtune.models.families import abstract, build
from voxtune.models.lowering import SPATIAL, conv_plain, plain_lowerings
from voxtune.models.sharding import check_depth_split, splitting_depth

StepOf = Callable[..., tuple[Any, Any]]
DEPTH, EDGE = 16, 8
# Small, with all that a family is made of: norms, dropout, windows as wide as a device's slices.
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"filters": 2, "depth": 2},
    "meshnet": {"filters": 2, "dilations": (1, 4), "dropout": 0.3},
    "highresnet": {"filters": 2, "blocks": 1},
    "vnet": {"filters": 4, "depth": 1},
    "resenc_unet": {"features": (2, 4), "blocks": (1, 1), "strides": (1, 2), "convs": 1},
}
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.normal(size=(4, DEPTH, EDGE, EDGE, 1)).astype(np.float32),
    "label": RNG.integers(0, 3, (4, DEPTH, EDGE, EDGE)).astype(np.uint8),
}


def run(step_of: StepOf, family: str, data: int, spatial: int) -> tuple[Any, float, str]:
    """A step by the gradient itself: gradients and new statistics, the loss, and the program.

    Blocks are augmented in the step, with flips along all axes.

    Args:
        step_of: makes the step.
        family: a key of `NETWORKS`.
        data: devices that the batch is split over.
        spatial: devices that each block's depth is split over.
    """
    network = build(family, {"outputs": 3, **NETWORKS[family]})
    check_depth_split(network, DEPTH, spatial)
    devices = jax.devices()[: data * spatial]
    mesh = jax.make_mesh(
        (data, spatial), (DATA, SPATIAL), axis_types=(AxisType.Auto,) * 2, devices=devices
    )
    step, state = step_of(network, optax.sgd(1.0))
    whole, parts = NamedSharding(mesh, P()), NamedSharding(mesh, P(DATA, SPATIAL))
    jitted = jax.jit(step, in_shardings=(whole, parts), out_shardings=whole)
    with jax.set_mesh(mesh):
        compiled = jitted.lower(state, BATCH).compile()
        after, metrics = compiled(*jax.device_put((state, BATCH), (whole, parts)))
    gradients = jax.tree.map(np.subtract, state.params, after.params)
    return (gradients, after.statistics), float(metrics["loss"]), compiled.as_text()


@cache
def one_device(step_of: StepOf, family: str) -> tuple[Any, float, str]:
    """What one device does, its convolutions put to XLA as they are."""
    with plain_lowerings():
        return run(step_of, family, 1, 1)


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize(
    ("data", "spatial", "lowerings"),
    # Where depth is split, convolutions are put to XLA as they are without being told.
    [(4, 1, nullcontext), (4, 1, plain_lowerings), (2, 4, nullcontext)],
    ids=["batch", "batch-plain", "both"],
)
def test_devices_do_what_one_does_and_gather_nothing(step_of, family, data, spatial, lowerings):
    wanted, its_loss, _ = one_device(step_of, family)
    with lowerings():
        found, loss, program = run(step_of, family, data, spatial)
    assert loss == pytest.approx(its_loss, rel=1e-5)
    for mine, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-5)
    assert "all-reduce" in program
    assert "all-gather" not in program
    assert "all-to-all" not in program


def test_a_depth_that_does_not_split_is_a_sentence():
    unet = abstract("unet", {"outputs": 1})  # halves three times
    meshnet = abstract("meshnet", {"outputs": 1})  # dilations up to 16
    for network, depth, shards in ((unet, 32, 4), (unet, 48, 2), (meshnet, 64, 4), (unet, 7, 1)):
        check_depth_split(network, depth, shards)
    for network, depth, shards, said in (
        (
            unet,
            24,
            4,
            "24 slices .* over 4 devices: each needs at least 8 .* --block of at least 32 slices",
        ),
        (unet, 8, 2, "8 slices .* over 2 devices: each needs at least 16 .* at least 32 slices"),
        (unet, 72, 4, "72 slices .* each needs a multiple of 8 .*--block of 64 slices, or --mesh"),
        (meshnet, 66, 4, "66 slices .* each needs as many slices as the others; .* of 64 slices"),
        (meshnet, 60, 4, "60 slices .* over 4 devices: each needs at least 16 .* least 64 slices"),
    ):
        with pytest.raises(InputError, match=said):
            check_depth_split(network, depth, shards)


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("family", ["unet", "meshnet"])
def test_the_least_depth_that_splits_is_found(family, shards):
    network = abstract(family, {"outputs": 1})

    def splits(depth):
        try:
            check_depth_split(network, depth, shards)
        except InputError:
            return False
        return depth % network.min_multiple == 0

    for depth in (1, 33, 64, 100, 129, 160):
        found = splitting_depth(network, depth, shards)
        assert found == next(each for each in range(depth, 400) if splits(each))


def test_a_window_wider_than_a_devices_slices_would_gather():
    """What `check_depth_split` is there for: the step would be right, but slow and large."""
    network = abstract("meshnet", {"outputs": 1, "dilations": (6,)})
    with pytest.raises(InputError, match="each needs at least 6 slices"):
        check_depth_split(network, 16, 4)
    axes = {"axis_types": (AxisType.Auto,), "devices": jax.devices()[:4]}
    over_depth = NamedSharding(jax.make_mesh((4,), (SPATIAL,), **axes), P(None, SPATIAL))
    convolve = jax.jit(conv_plain, in_shardings=(over_depth, None), static_argnums=2)
    x, kernel = jnp.ones((1, 16, 4, 4, 1)), jnp.ones((3, 3, 3, 1, 1))
    gathers = ["all-gather" in convolve.lower(x, kernel, d).compile().as_text() for d in (4, 6)]
    assert gathers == [False, True]
