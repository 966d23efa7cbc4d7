"""The training step: what moves, what does not, and that devices do not matter."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from voxtune.engine.augment import PROFILES
from voxtune.engine.changes import UNCHANGED, Augmented, Changes
from voxtune.engine.config import Finetune
from voxtune.engine.mesh import make_mesh, on_all, over_data
from voxtune.engine.rules import Parameters, make_rules
from voxtune.engine.step import TrainState, TrainStep, make_step, predict_step, split
from voxtune.engine.trees import flat
from voxtune.models.families import Network, build
from voxtune.models.flops import flops
from voxtune.models.parameters import assemble, shapes

# Programs here run a few times: compiling without LLVM's optimisations takes a fifth of the time.
QUICK = {"xla_backend_optimization_level": 0}
CONFIG: dict[str, Any] = {"steps": 10, "warmup": 0}
LIGHT = Augmented(PROFILES["light"], (0,))
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.normal(size=(4, 6, 6, 6, 1)).astype(np.float32),
    "label": RNG.integers(0, 2, (4, 6, 6, 6)).astype(np.uint8),
}


def network(**options: Any) -> Network:
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
    return assemble("meshnet", arguments, {k: np.float32(v) for k, v in values.items()})


def make(
    given: Network,
    changes: Changes = UNCHANGED,
    voxels: int = 1,
    **changed: Any,
) -> tuple[TrainStep, TrainState]:
    """The training step of a network and the state before the first step."""
    config = Finetune(Path("model"), "subjects.csv", Path("run"), **CONFIG | changed)
    rules = make_rules(Parameters.of(given), config)
    step, params, statistics = make_step(given, config, rules, changes=changes, voxels=voxels)
    return step, step.first_state(params, statistics, 0)


def jitted(step: TrainStep) -> Any:
    return jax.jit(step, compiler_options=QUICK)


def run(mesh: Mesh, steps: int) -> tuple[TrainState, list[float], str]:
    """Some steps on a mesh: the last state, the losses, and the compiled program."""
    step, state = make(network(), LIGHT)
    state = jax.device_put(state, on_all(mesh))
    batch = jax.device_put(BATCH, over_data(mesh))
    compiled = jax.jit(step).lower(state, batch).compile(QUICK)
    losses = []
    for _ in range(steps):
        state, metrics = compiled(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses, compiled.as_text()


@pytest.fixture(scope="module")
def one_device() -> tuple[TrainState, list[float], str]:
    """Three steps on one device."""
    return run(make_mesh("data=1"), 3)


@pytest.fixture(scope="module")
def four_devices() -> tuple[TrainState, list[float], str]:
    """Three steps on four devices, each with one block of the batch."""
    return run(make_mesh("data=4"), 3)


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
    step, state = make(network(dropout=0.5, norm="batch"))
    return jitted(step), state, step.apply


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
    predict = jax.jit(partial(predict_step, apply), compiler_options=QUICK)
    together = predict(state.params, state.statistics, image)
    np.testing.assert_array_equal(together, predict(state.params, state.statistics, image))
    # A scan's result does not depend on what else is in the batch.
    others = image.at[1:].multiply(7)
    alone = predict(state.params, state.statistics, others)
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-6)
    assert not np.allclose(alone[1], together[1])


def test_prediction_gives_probabilities():
    apply, params, statistics = split(network(outputs=1))
    image = jnp.asarray(BATCH["image"])
    predict = jax.jit(partial(predict_step, apply), compiler_options=QUICK)
    found = np.asarray(predict(params, statistics, image))
    assert found.shape == (4, 6, 6, 6, 2)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-6)
    logits, _ = apply(params, statistics, image)
    np.testing.assert_allclose(found[..., 1], jax.nn.sigmoid(logits[..., 0]), rtol=1e-5)


def test_the_divergence_of_random_weights_joins_the_loss():
    arguments = {"outputs": 2, "filters": 2, "dilations": (1,)}
    random = build("bayesian_meshnet", arguments)
    wanted = float(random.kl())
    step, state = make(random, voxels=50)
    _, metrics = jitted(step)(state, CONSTANT)
    np.testing.assert_allclose(metrics["kl"], wanted / 50, rtol=1e-5)
    parts = metrics["dice_loss"] + metrics["cross_entropy"] + metrics["kl"]
    np.testing.assert_allclose(metrics["loss"], parts, rtol=1e-6)


def test_other_networks_have_no_divergence(noisy):
    step, state, _ = noisy
    assert "kl" not in step(state, CONSTANT)[1]


@pytest.mark.parametrize("remat", [False, True])
def test_bfloat16_leaves_parameters_and_loss_in_float32(remat: bool):
    arguments = {"outputs": 2, "filters": 2, "dilations": (1,)}
    step, state = make(build("meshnet", arguments), compute_dtype="bfloat16", remat=remat)
    after, metrics = jax.eval_shape(step, state, CONSTANT)
    dtypes = [each.dtype for each in jax.tree.leaves(state)]
    assert [each.dtype for each in jax.tree.leaves(after)] == dtypes
    numbers = {name: each for name, each in metrics.items() if name not in ("counts", "skipped")}
    assert {str(each.dtype) for each in numbers.values()} == {"float32"}
    traced = str(jax.make_jaxpr(step)(state, CONSTANT))
    assert "bf16[" in traced
    assert ("remat2[" in traced) == remat


# A network of three levels, to freeze some of.
DEEP: Mapping[str, Any] = {"dilations": (1, 1), "norm": "batch"}


def steps(
    step: TrainStep, state: TrainState, count: int
) -> tuple[TrainState, list[dict[str, Any]]]:
    """Some steps with one compiled program."""
    compiled, found = jitted(step), []
    for _ in range(count):
        state, metrics = compiled(state, BATCH)
        found.append(metrics)
    assert compiled._cache_size() == 1
    return state, found


def everything(state: TrainState) -> dict[str, np.ndarray]:
    """Path → copy of all parameters and statistics."""
    return {path: np.array(x) for path, x in (flat(state.params) | flat(state.statistics)).items()}


class TestFreezing:
    def test_frozen_leaves_are_bit_identical_after_twenty_steps(self) -> None:
        step, state = make(network(**DEEP), freeze_until="block2", steps=20)
        before = everything(state)
        after = everything(steps(step, state, 20)[0])
        frozen = {path for path in before if np.array_equal(before[path], after[path])}
        assert frozen == {path for path in before if path.startswith("block1/")}

    def test_a_frozen_norm_normalises_by_its_statistics(self) -> None:
        """As in prediction, though the network is in training."""
        step, state = make(network(**DEEP), freeze_until="head", steps=20)
        logits, statistics = step.apply(
            state.params,
            state.statistics,
            jnp.asarray(BATCH["image"]),
            jax.random.key(0),
            state.step,
        )
        predicted, _ = step.apply(state.params, state.statistics, jnp.asarray(BATCH["image"]))
        np.testing.assert_allclose(logits, predicted, rtol=1e-5, atol=1e-5)
        for path, value in flat(statistics).items():
            np.testing.assert_array_equal(value, flat(state.statistics)[path])

    def test_levels_thaw_one_by_one_in_one_program(self) -> None:
        step, state = make(network(**DEEP), unfreeze_every=2, optimizer="sgd", schedule="constant")
        compiled, moved = jitted(step), []
        for _ in range(5):
            before = everything(state)
            state, _ = compiled(state, BATCH)
            after = everything(state)
            moved.append({p.split("/")[0] for p in before if (before[p] != after[p]).any()})
        assert moved == [{"head"}] * 2 + [{"head", "block2"}] * 2 + [{"head", "block2", "block1"}]
        assert compiled._cache_size() == 1

    def test_what_lies_below_the_frozen_costs_no_backward_pass(self) -> None:
        """The gradient of a kernel, and of what comes in, cost as much as the forward pass each;
        the first level asks for no gradient of the image."""
        deep = network(**DEEP)
        step, state = make(deep)
        forward = flops(step.apply, state.params, state.statistics, BATCH["image"])
        voxels = BATCH["label"].size
        block1, block2, head = (2 * voxels * n for n in (27 * 2, 27 * 4, 4))
        assert forward == block1 + block2 + head
        assert flops(step, state, BATCH) == 2 * block1 + 3 * block2 + 3 * head
        for level, wanted in (("block2", 2 * block2 + 3 * head), ("head", block2 + 2 * head)):
            step, state = make(deep, freeze_until=level)
            assert flops(step, state, BATCH) == block1 + wanted
        step, state = make(deep, unfreeze_every=1)
        assert flops(step, state, BATCH) == 2 * block1 + 3 * block2 + 3 * head


class TestRegularisers:
    def test_l2_joins_the_loss(self) -> None:
        step, state = make(network(), l2=0.25)
        _, metrics = jitted(step)(state, BATCH)
        kernels = [value for path, value in flat(state.params).items() if path.endswith("kernel")]
        wanted = 0.25 * sum((np.asarray(each, np.float64) ** 2).sum() for each in kernels)
        assert float(metrics["l2"]) == pytest.approx(wanted, rel=1e-5)
        parts = sum(float(metrics[name]) for name in ("dice_loss", "cross_entropy", "l2"))
        assert float(metrics["loss"]) == pytest.approx(parts, rel=1e-6)

    def test_l2_has_the_gradient_of_a_sum_of_squares(self) -> None:
        """What it adds to a step of SGD: 2 l2 times the kernel, at first 1.99 times (Nesterov)."""
        after = []
        for l2 in (0.0, 0.25):
            changed = {"optimizer": "sgd", "schedule": "constant", "clip": 0.0, "weight_decay": 0.0}
            step, state = make(network(), l2=l2, trunk_lr=0.1, **changed)
            kernel = np.asarray(state.params["block1"]["conv"]["kernel"])
            state, _ = jitted(step)(state, BATCH)
            after.append(np.asarray(state.params["block1"]["conv"]["kernel"]))
        wanted = -0.1 * 1.99 * 2 * 0.25 * kernel
        np.testing.assert_allclose(after[1] - after[0], wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("devices", "recipe"),
    [(1, {}), (2, {}), (1, {"clip": 0.1, "l2": 0.1, "unfreeze_every": 1, "ema": 0.5})],
    ids=str,
)
def test_parts_of_a_batch_are_the_whole(devices: int, recipe: dict[str, Any]):
    """Accumulation changes neither loss nor gradient, nor sends blocks between devices."""
    mesh, found = make_mesh(f"data={devices}"), []
    for accumulate in (1, 2):
        step, state = make(network(), LIGHT, accumulate=accumulate, optimizer="sgd", **recipe)
        state = jax.device_put(state, on_all(mesh))
        batch = jax.device_put(BATCH, over_data(mesh))
        compiled = jax.jit(step).lower(state, batch).compile(QUICK)
        assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all"))
        state, metrics = compiled(state, batch)
        found.append((everything(state), metrics))
    (whole, metrics), (parts, others) = found
    for path, value in whole.items():
        np.testing.assert_allclose(parts[path], value, rtol=1e-5, atol=1e-6)
    for name in ("loss", "dice_loss", "gradient_norm"):
        assert float(others[name]) == pytest.approx(float(metrics[name]), rel=1e-5)
    for mine, other in zip(
        *map(jax.tree.leaves, (metrics["counts"], others["counts"])), strict=True
    ):
        np.testing.assert_array_equal(mine, other)


@pytest.fixture(scope="module")
def stepped() -> Any:
    step, state = make(network(**DEEP), ema=0.9)
    return jitted(step), state


class TestSkipping:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_step_that_is_not_finite_changes_nothing(self, stepped: Any, value: float) -> None:
        step, state = stepped
        bad = {**BATCH, "image": np.full_like(BATCH["image"], value)}
        after, metrics = step(state, bad)
        assert int(after.skipped) == int(metrics["skipped"]) == 1
        assert int(after.step) == 1
        kept = ("params", "statistics", "optimizer", "average")
        for name in kept:
            for mine, other in zip(
                *(jax.tree.leaves(getattr(each, name)) for each in (after, state)), strict=True
            ):
                np.testing.assert_array_equal(mine, other)
        assert float(metrics["update_norm"]) == 0
        again, _ = step(after, bad)
        assert int(again.skipped) == 2
        good, _ = step(again, BATCH)
        assert int(good.skipped) == 0
        assert not np.array_equal(good.params["head"]["kernel"], state.params["head"]["kernel"])

    def test_the_norm_of_the_update_is_of_what_is_added(self, stepped: Any) -> None:
        step, state = stepped
        after, metrics = step(state, BATCH)
        moved = jax.tree.map(lambda new, old: np.sum((new - old) ** 2), after.params, state.params)
        wanted = math.sqrt(sum(jax.tree.leaves(moved)))
        assert wanted > 1e-4
        assert float(metrics["update_norm"]) == pytest.approx(wanted, rel=1e-3)

    def test_the_average_follows_the_weights(self, stepped: Any) -> None:
        """Share min(0.9, (1 + t) / (10 + t)) of the old one: 1/10 at the first step, then 2/11."""
        step, state = stepped
        average = np.asarray(state.params["head"]["kernel"], np.float64)
        for share in (1 / 10, 2 / 11, 3 / 12):
            state, _ = step(state, BATCH)
            average = share * average + (1 - share) * np.asarray(state.params["head"]["kernel"])
        np.testing.assert_allclose(state.average["head"]["kernel"], average, rtol=1e-5)
        np.testing.assert_allclose(state.averaged()["head"]["kernel"], average, rtol=1e-5)


def test_the_average_leaves_frozen_parameters_as_they_are():
    _, state = make(network(**DEEP), ema=0.9, freeze_until="head")
    assert set(state.average) == {"head"}
    assert set(state.averaged()) == {"block1", "block2", "head"}
    assert not make(network())[1].average


def test_blocks_are_counted_by_class():
    step, state = make(network())
    _, metrics = jitted(step)(state, BATCH)
    counts = metrics["counts"]
    np.testing.assert_array_equal(counts.true, np.bincount(BATCH["label"].ravel()))
    assert int(counts.predicted.sum()) == BATCH["label"].size


def test_an_image_is_learned_from_an_image():
    step, state = make(network(outputs=1), loss="mean_squared_error", trunk_lr=1e-2, head_lr=1e-2)
    compiled, losses = jitted(step), []
    batch = {"image": BATCH["image"], "label": BATCH["image"][..., 0] * 2}
    for _ in range(4):
        state, metrics = compiled(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    assert "counts" not in metrics
    apply = step.apply
    predict = jax.jit(partial(predict_step, apply, values=True), compiler_options=QUICK)
    found = predict(state.params, state.statistics, jnp.asarray(BATCH["image"]))
    logits, _ = apply(state.params, state.statistics, jnp.asarray(BATCH["image"]))
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)


def test_a_network_whose_names_hold_slashes_keeps_its_form():
    """A Keras model inside a model, and attention: names are not split, weights not exchanged."""
    conv = {"filters": 2, "kernel_size": [1, 1, 1]}
    graph = {
        "layers": [
            {"name": "inner/c1", "kind": "Conv3D", "config": conv},
            {"name": "inner-c", "kind": "Conv3D", "config": conv},
            {"name": "att", "kind": "MultiHeadAttention", "config": {"num_heads": 1, "key_dim": 2}},
            {"name": "head", "kind": "Conv3D", "config": conv},
        ],
        "calls": [
            {"name": "inner/c1", "layer": "inner/c1", "inputs": ["x"]},
            {"name": "inner-c", "layer": "inner-c", "inputs": ["inner/c1"]},
            {"name": "att", "layer": "att", "inputs": ["inner-c", "inner-c"]},
            {"name": "head", "layer": "head", "inputs": ["att"]},
        ],
        "inputs": {"x": [None, None, None, 1]},
        "outputs": ["head"],
    }
    given = build("graph", {"graph": graph})
    batch = {name: each[:1, :2, :2, :2] for name, each in BATCH.items()}
    logits = given(jnp.asarray(batch["image"]))
    step, state = make(given, rule=("inner/c1/* freeze", "att/* from_step=1"), ema=0.5)
    compiled = jax.jit(step).lower(state, batch).compile(QUICK)
    after = compiled(compiled(state, batch)[0], batch)[0]
    before, found = everything(state), everything(after)
    same = {path for path in before if np.array_equal(before[path], found[path])}
    assert same == {"inner/c1/kernel", "inner/c1/bias"}
    mine, _ = step.apply(state.params, state.statistics, jnp.asarray(batch["image"]))
    np.testing.assert_allclose(mine, logits, rtol=1e-5, atol=1e-6)
