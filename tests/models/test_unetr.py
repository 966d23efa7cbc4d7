"""UNETR by itself: shapes, levels, precision, dropout, remat, batches over devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from voxtune.models.errors import InputError
from voxtune.models.families import Network, abstract
from voxtune.models.lowering import plain_lowerings
from voxtune.models.parameters import assemble, shapes
from voxtune.models.run import Run
from voxtune.models.transformer import Attention, Heads, TransformerBlock
from voxtune.models.unetr import Positions

TINY: dict[str, Any] = {
    "outputs": 2,
    "size": (8, 16, 8),
    "width": 8,
    "blocks": 2,
    "heads": 2,
    "patch": 4,
    "mlp": 6,
    "filters": 2,
    "dropout": 0.2,
    "mlp_dropout": 0.3,
}
BATCH = 2


@pytest.fixture(scope="module")
def network() -> Network:
    random = np.random.default_rng(1)
    values = {
        path: random.uniform(0.5, 1.5, shape) if path.endswith(("scale", "var"))
        else random.normal(size=shape) * 0.3
        for path, shape in shapes("unetr", TINY).items()
    }  # fmt: skip
    return assemble("unetr", TINY, {path: np.float32(each) for path, each in values.items()})


@pytest.fixture(scope="module")
def forward(network: Network) -> Callable[[jax.Array], jax.Array]:
    """Prediction, compiled."""
    return jax.jit(network)


@pytest.fixture(scope="module")
def x() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (BATCH, *TINY["size"], 1))


def test_nobrainers_size_at_every_level() -> None:
    """Hatamizadeh et al. 2022, figure 2, but for the channels of the decoder's levels."""
    found: dict[str, tuple[int, ...]] = {}
    graph, state = nnx.split(abstract("unetr", {"outputs": 14}))
    block = jax.ShapeDtypeStruct((2, 96, 96, 96, 1), jnp.float32)

    def run(state: nnx.State, x: jax.Array) -> jax.Array:
        tap = lambda path, value: found.update({path: value.shape})  # noqa: E731
        return nnx.merge(graph, state)(x, tap=tap)

    assert jax.eval_shape(run, state, block).shape == (2, 96, 96, 96, 14)
    assert found["embedding/add"] == found["encoder4/block3/add"] == (2, 216, 768)
    for path, edge, channels in (
        ("skip3/up1/unit/activation", 12, 512),
        ("skip2/up2/unit/activation", 24, 256),
        ("skip1/up3/unit/activation", 48, 128),
        ("skip0/unit2/activation", 96, 64),
        ("bottom/up", 12, 512),
        ("decoder3/concat", 12, 1024),
        ("decoder3/up", 24, 256),
        ("decoder2/up", 48, 128),
        ("decoder1/up", 96, 64),
        ("decoder0/concat", 96, 128),
    ):
        assert found[path] == (2, edge, edge, edge, channels), path


def test_levels_go_from_input_to_output() -> None:
    assert abstract("unetr", TINY).levels() == (
        "embedding", "skip0", "encoder1", "skip1", "encoder2", "bottom", "decoder1", "decoder0",
        "head",
    )  # fmt: skip


def test_every_voxel_depends_on_the_whole_block(
    network: Network, forward: Callable[[jax.Array], jax.Array], x: jax.Array
) -> None:
    assert network.receptive_field is None
    moved = np.asarray(forward(x.at[0, -1, -1, -1].add(10.0)) != forward(x))
    assert moved[0].mean() > 0.5  # the others are where ReLU gives 0
    assert moved[0, :4, :4, :4].any()
    assert not moved[1:].any()


def test_another_block_is_refused(network: Network, x: jax.Array) -> None:
    with pytest.raises(ValueError, match=r"blocks of \(8, 16, 8\) voxels, not \(8, 8, 16\)"):
        network(x.swapaxes(2, 3))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"size": (8, 8)}, "three multiples of its patch 4"),
        ({"size": (8, 8, 6)}, "three multiples of its patch 4"),
        ({"patch": 3}, "power of two"),
        ({"patch": 1}, "power of two"),
        ({"blocks": 3}, "a multiple of 2 blocks, not 3"),
        ({"heads": 3}, "a multiple of its heads 3"),
        ({"filters": 3}, "even"),
    ],
)
def test_sizes_that_do_not_divide_are_a_sentence(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        abstract("unetr", {**TINY, **arguments})


def test_positions_begin_as_keras_begins_an_embedding() -> None:
    table = Positions(512, 8, rngs=nnx.Rngs(0)).bias
    assert table.shape == (512, 8)
    assert -0.05 <= float(table.min()) < -0.049  # uniform from -0.05 to 0.05
    assert 0.049 < float(table.max()) < 0.05


def test_heads_begin_as_the_dense_layers_that_they_are_in_nobrainer() -> None:
    limit = np.sqrt(6 / (64 + 64))  # Glorot and Bengio 2010, Keras's default
    for shape, entering in (((64, 8, 8), 1), ((8, 8, 64), 2)):
        kernel = Heads(shape, entering, rngs=nnx.Rngs(0)).kernel
        assert 0.97 * limit < float(abs(kernel[...]).max()) <= limit


def test_bfloat16_is_near_float32(
    network: Network, forward: Callable[[jax.Array], jax.Array], x: jax.Array
) -> None:
    wanted, found = forward(x), forward(x.astype(jnp.bfloat16))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol=0.05 * float(abs(wanted).max()))
    assert float(abs(found - wanted).max()) > 0
    types = set()
    jax.eval_shape(
        lambda x: network(x, tap=lambda path, value: types.add((path, value.dtype.name))),
        jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
    )
    assert {name for path, name in types if path != "head"} == {"bfloat16"}


def test_the_softmax_of_attention_is_float32() -> None:
    attention = Attention(8, 2, dropout=0.0, rngs=nnx.Rngs(0))
    tokens = jax.ShapeDtypeStruct((1, 3, 8), jnp.bfloat16)
    text = str(jax.make_jaxpr(lambda x: attention(x, Run()))(tokens))
    assert "f32[1,2,3,3] = exp" in text
    assert "bf16[1,2,3,3] = exp" not in text


BEFORE_MLP = {
    "attention_norm",
    "attention",
    "attention_add",
    "mlp_norm",
    "mlp_in",
    "mlp_activation",
}


@pytest.mark.parametrize(
    ("rates", "kept"),
    [
        ({"dropout": 0.9, "mlp_dropout": 0.0}, {"attention_norm"}),  # the weights are dropped too
        ({"dropout": 0.0, "mlp_dropout": 0.9}, BEFORE_MLP),
    ],
)
def test_what_is_dropped_where(rates: dict[str, float], kept: set[str]) -> None:
    block = TransformerBlock(8, 2, 6, **rates, rngs=nnx.Rngs(1))

    @jax.jit
    def run(x: jax.Array, key: jax.Array | None) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        rngs = None if key is None else nnx.Rngs(dropout=key)
        block(x, Run(rngs=rngs, tap=found.__setitem__), "block")
        return found

    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    plain, one, again, other = (
        run(x, key) for key in (None, *map(jax.random.key, (1, 1, 2)))
    )  # fmt: skip
    same = {name for name in plain if np.allclose(plain[name], one[name])}
    assert same == {f"block/{name}" for name in kept}
    np.testing.assert_array_equal(one["block/add"], again["block/add"])
    assert not np.allclose(one["block/add"], other["block/add"])


class Step(NamedTuple):
    """Loss, statistics and gradients in training: `run(params, rest, x, key)`."""

    run: Any
    params: Any
    rest: Any


def step(network: Network, remat: bool = False) -> Step:
    graph, params, rest = nnx.split(network, nnx.Param, ...)

    def loss(params: Any, rest: Any, x: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        merged = nnx.merge(graph, params, rest, copy=True)
        logits = merged(x, train=True, rngs=nnx.Rngs(dropout=key), remat=remat)
        return (logits**2).mean(), nnx.state(merged, nnx.BatchStat)

    return Step(jax.value_and_grad(loss, has_aux=True), params, rest)


KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def plain(network: Network, x: jax.Array) -> Any:
    """What a step gives on one device."""
    run, params, rest = step(network)
    with plain_lowerings():
        compiled = jax.jit(run).lower(params, rest, x, KEY).compile()
    ((one, _), _), ((other, _), _) = (
        compiled(params, rest, x, k) for k in (KEY, jax.random.key(4))
    )
    assert not np.isclose(one, other)  # values are dropped
    return compiled(params, rest, x, KEY)


def assert_same(found: Any, wanted: Any) -> None:
    """Loss and statistics to 1e-5; gradients to 1e-5 of the largest.

    A bias before batch normalisation has the gradient 0, and gets rounding.
    """
    ((loss, statistics), gradients), ((wanted_loss, wanted_statistics), wanted_gradients) = (
        found, wanted,
    )  # fmt: skip
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    for ours, theirs in ((statistics, wanted_statistics), (gradients, wanted_gradients)):
        pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
        largest = max(float(abs(each).max()) for _, each in pairs)
        for mine, other in pairs:
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * largest)


def test_remat_and_a_batch_over_devices_give_the_same(
    network: Network, x: jax.Array, plain: Any
) -> None:
    """Both at once, since compiling is all of the time; nothing is gathered."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    run, params, rest = step(network, remat=True)
    params, rest = jax.device_put((params, rest), NamedSharding(mesh, P()))
    split = jax.device_put(x, NamedSharding(mesh, P("data")))
    with plain_lowerings():
        traced = jax.jit(run).trace(params, rest, split, KEY)
        compiled = traced.lower().compile()
    text = str(traced.jaxpr)
    assert text.count("remat2[") + text.count("checkpoint[") >= len(network.levels())
    program = compiled.as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program
    assert_same(compiled(params, rest, split, KEY), plain)
