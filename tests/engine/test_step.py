"""The training step: what moves, what does not, and that devices do not matter."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from voxtune.engine.checkpoint import flat
from voxtune.engine.config import Finetune
from voxtune.engine.mesh import data_mesh, on_all, over_data
from voxtune.engine.optimizer import make_optimizer
from voxtune.engine.step import Apply, TrainState, make_predict_step, make_train_step, split
from voxtune.models.families import build
from voxtune.models.parameters import assemble, shapes

# Programs here run a few times: compiling without LLVM's optimisations takes a fifth of the time.
QUICK = {"xla_backend_optimization_level": 0}
CONFIG = Finetune(Path("model"), Path("subjects.csv"), Path("run"), steps=10, warmup=0)
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.normal(size=(4, 6, 6, 6, 1)).astype(np.float32),
    "label": RNG.integers(0, 2, (4, 6, 6, 6)).astype(np.uint8),
}


def network(**options: Any) -> tuple[Apply, Any, Any]:
    """A small MeshNet of two classes with random weights; its variances are positive."""
    arguments = {
        "channels": 1,
        "outputs": 2,
        "filters": 2,
        "dilations": (1,),
        "norm": None,
    } | options
    rng = np.random.default_rng(1)
    values = {
        path: np.abs(rng.normal(size=shape)) if path.endswith("var") else rng.normal(size=shape)
        for path, shape in shapes("meshnet", arguments).items()
    }
    return split(assemble("meshnet", arguments, {k: np.float32(v) for k, v in values.items()}))


def first_state(params: Any, statistics: Any, optimizer: Any, seed: int = 0) -> TrainState:
    key = jax.random.key(seed)
    return TrainState(jnp.int32(0), params, statistics, optimizer.init(params), key)


def run(mesh: Mesh, steps: int) -> tuple[TrainState, list[float], str]:
    """Some steps on a mesh: the last state, the losses, and the compiled program."""
    apply, params, statistics = network()
    optimizer = make_optimizer(CONFIG, params, "head")
    state = jax.device_put(first_state(params, statistics, optimizer), on_all(mesh))
    batch = jax.device_put(BATCH, over_data(mesh))
    compiled = jax.jit(make_train_step(apply, optimizer, (0,))).lower(state, batch).compile(QUICK)
    losses = []
    for _ in range(steps):
        state, metrics = compiled(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses, compiled.as_text()


@pytest.fixture(scope="module")
def one_device() -> tuple[TrainState, list[float], str]:
    """Three steps on one device."""
    return run(data_mesh(1), 3)


@pytest.fixture(scope="module")
def four_devices() -> tuple[TrainState, list[float], str]:
    """Three steps on four devices, each with one block of the batch."""
    return run(data_mesh(4), 3)


def test_four_devices_do_what_one_does(one_device, four_devices):
    np.testing.assert_allclose(four_devices[1], one_device[1], rtol=1e-5)
    ours, theirs = (jax.tree.leaves(each[0].params) for each in (four_devices, one_device))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


def test_no_device_is_sent_the_blocks_of_another(four_devices):
    """Gradients are summed over devices; blocks and activations stay where they are."""
    _, _, program = four_devices
    assert "all-reduce" in program
    assert "all-gather" not in program
    assert "all-to-all" not in program


def test_each_device_has_the_whole_state_after_a_step(four_devices):
    for array in jax.tree.leaves(four_devices[0].params):
        assert array.sharding.is_fully_replicated
        assert len(array.devices()) == 4


def test_steps_are_counted_and_the_key_stays(one_device):
    state = one_device[0]
    assert int(state.step) == 3
    wanted = jax.random.key_data(jax.random.key(0))
    np.testing.assert_array_equal(jax.random.key_data(state.key), wanted)


def test_the_loss_falls_on_a_batch_that_stays(one_device):
    assert one_device[1][-1] < one_device[1][0]


@pytest.fixture(scope="module")
def noisy() -> Any:
    """A network with dropout and batch normalisation: a jitted step and its first state."""
    apply, params, statistics = network(dropout=0.5, norm="batch")
    optimizer = make_optimizer(CONFIG, params, "head")
    step = jax.jit(make_train_step(apply, optimizer, ()), compiler_options=QUICK)
    return step, first_state(params, statistics, optimizer), apply


# Augmentation leaves a constant image alone: it has no contrast, and noise goes by its spread.
CONSTANT = {
    "image": np.full((2, 4, 4, 4, 1), 2.0, np.float32),
    "label": BATCH["label"][:2, :4, :4, :4],
}


def at(state: TrainState, **changes: Any) -> TrainState:
    return TrainState(**{**vars(state), **changes})


def test_dropout_differs_by_step_and_by_seed_and_by_nothing_else(noisy):
    step, state, _ = noisy
    found = [
        float(step(each, CONSTANT)[1]["loss"])
        for each in (
            state,
            state,
            at(state, step=jnp.int32(1)),
            at(state, key=jax.random.key(1)),
        )
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_statistics_move_in_training_by_a_hundredth(noisy):
    """Keras's momentum: 0.99 of the running mean stays, 0.01 of the batch's comes in."""
    step, state, _ = noisy
    after, _ = step(state, CONSTANT)
    before, found = flat(state.statistics), flat(after.statistics)
    assert found.keys() == before.keys() == {"block1/norm/mean", "block1/norm/var"}
    kernel, bias = (np.asarray(state.params["block1"]["conv"][name]) for name in ("kernel", "bias"))
    # By hand: a constant image times the sum of the taps that lie inside, in 4 x 4 x 4 voxels.
    reach = np.array([[t in range(3) and 0 <= v + t - 1 < 4 for t in range(3)] for v in range(4)])
    inside = np.einsum("ap,bq,cr->abcpqr", *(reach.astype(float),) * 3)
    values = 2.0 * np.einsum("abcpqr,pqrio->abco", inside, kernel.astype(np.float64)) + bias
    mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))
    for path, wanted in (("block1/norm/mean", mean), ("block1/norm/var", variance)):
        expected = 0.99 * np.asarray(before[path]) + 0.01 * wanted
        np.testing.assert_allclose(found[path], expected, rtol=1e-5)


def test_prediction_changes_no_statistics_and_drops_nothing(noisy):
    _, state, apply = noisy
    image = jnp.asarray(BATCH["image"])
    _, statistics = apply(state.params, state.statistics, image)
    assert statistics is state.statistics
    predict = jax.jit(make_predict_step(apply), compiler_options=QUICK)
    together = predict(state.params, state.statistics, image)
    np.testing.assert_array_equal(together, predict(state.params, state.statistics, image))
    # A scan's result does not depend on what else is in the batch.
    others = image.at[1:].multiply(7)
    alone = predict(state.params, state.statistics, others)
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-6)
    assert not np.allclose(alone[1], together[1])


def test_prediction_gives_probabilities():
    apply, params, statistics = network(outputs=1)
    image = jnp.asarray(BATCH["image"])
    predict = jax.jit(make_predict_step(apply), compiler_options=QUICK)
    found = np.asarray(predict(params, statistics, image))
    assert found.shape == (4, 6, 6, 6, 2)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)
    logits, _ = apply(params, statistics, image)
    np.testing.assert_allclose(found[..., 1], jax.nn.sigmoid(logits[..., 0]), rtol=1e-5)


def test_the_divergence_of_random_weights_joins_the_loss():
    arguments = {"outputs": 2, "filters": 2, "dilations": (1,)}
    random = build("bayesian_meshnet", arguments)
    wanted = float(random.kl())
    apply, params, statistics = split(random)
    optimizer = make_optimizer(CONFIG, params, "head")
    step = jax.jit(make_train_step(apply, optimizer, (), voxels=50), compiler_options=QUICK)
    _, metrics = step(first_state(params, statistics, optimizer), CONSTANT)
    np.testing.assert_allclose(metrics["kl"], wanted / 50, rtol=1e-5)
    parts = metrics["dice_loss"] + metrics["cross_entropy"] + metrics["kl"]
    np.testing.assert_allclose(metrics["loss"], parts, rtol=1e-6)


def test_other_networks_have_no_divergence(noisy):
    step, state, _ = noisy
    assert "kl" not in step(state, CONSTANT)[1]


@pytest.mark.parametrize("remat", [False, True])
def test_bfloat16_leaves_parameters_and_loss_in_float32(remat: bool):
    arguments = {"outputs": 2, "filters": 2, "dilations": (1,)}
    apply, params, statistics = split(build("meshnet", arguments), "bfloat16", remat)
    optimizer = make_optimizer(CONFIG, params, "head")
    step = make_train_step(apply, optimizer, ())
    state = first_state(params, statistics, optimizer)
    after, metrics = jax.eval_shape(step, state, CONSTANT)
    dtypes = [each.dtype for each in jax.tree.leaves(state)]
    assert [each.dtype for each in jax.tree.leaves(after)] == dtypes
    assert {str(each.dtype) for each in metrics.values()} == {"float32"}
    traced = str(jax.make_jaxpr(step)(state, CONSTANT))
    assert "bf16[" in traced
    assert ("remat2[" in traced) == remat
